//! Real dumps to measure on: sandboxes of a function, and clones of one, as CRIU writes them.
//!
//! ```text
//! <name>-1, -2, -3              independent sandboxes, after a few requests; the first is the base
//! <name>-init                   right after it was ready: a base that no request has touched
//! <name>-clone-1, -clone-2      restored from `init` by plain CRIU, after more requests
//! ```
//!
//! All of it twice, because it matters whose the data is. As `<function>` every sandbox draws its data from a seed of
//! its own, as if it served a user of its own. As `<function>@shared` data, models and inputs come from one seed, as
//! if they were part of what was deployed; only the requests differ. Address space randomisation is on, and hash
//! seeds are random.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use medes_agent::roads::{Stopwatch, Warm, blocking};
use medes_proto::function::FunctionSpec;

use crate::{
    functions::{Function, SHARED_SEED},
    station::{
        Station,
        ask::ask,
        plain::{self, Images},
    },
};

const INDEPENDENT: u64 = 3;
const REQUESTS: u64 = 6;
const CLONES: u64 = 2;
const CLONE_REQUESTS: u64 = 20;
/// Requests of one sandbox have numbers that no other one's have.
const REQUESTS_APART: u64 = 1000;

/// Makes all dumps of a function, each in a folder of its own in `folder`.
pub(super) async fn make(station: &mut Station, function: &Function, folder: &Path) -> Result<()> {
    let own = FunctionSpec::from_toml(&function.toml).context("read its function file")?;
    let mut shared = own.clone();
    shared.env.insert(SHARED_SEED.0.to_owned(), SHARED_SEED.1.to_owned());
    let names = [function.name.clone(), format!("{}@shared", function.name)];
    for (name, spec) in names.into_iter().zip([own, shared]) {
        let spec = Arc::new(spec);
        let to = |which: String| folder.join(format!("{name}-{which}"));
        for n in 1..=INDEPENDENT {
            independent(station, &spec, n, to(n.to_string()))
                .await
                .with_context(|| format!("dump {name}-{n}"))?;
        }
        clones(station, &spec, to).await.with_context(|| format!("dump clones of {name}"))?;
    }
    Ok(())
}

/// One sandbox from its start to its dump.
async fn independent(station: &mut Station, spec: &Arc<FunctionSpec>, n: u64, to: PathBuf) -> Result<()> {
    let (sandbox, _) = station.number()?;
    let Warm { housing, tree, .. } = station.start(sandbox, spec).await?;
    for request in 1..=REQUESTS {
        ask(&housing, n * REQUESTS_APART + request).await?;
    }
    let images = plain::dump(station, &housing, &tree, "images").await?;
    keep(images, to).await?;
    station.remove(sandbox, &housing).await
}

/// A sandbox that has served nothing, and what becomes of it after each of two ways to go on.
async fn clones(
    station: &mut Station,
    spec: &Arc<FunctionSpec>,
    to: impl Fn(String) -> PathBuf,
) -> Result<()> {
    let (sandbox, _) = station.number()?;
    let Warm { mut housing, tree, .. } = station.start(sandbox, spec).await?;
    let init = plain::dump(station, &housing, &tree, "init").await?;
    tree.kill().await?;
    for clone in 1..=CLONES {
        let mut watch = Stopwatch::start();
        let tree = plain::restore(station, &mut housing, &init, true, &mut watch).await?;
        for request in 1..=CLONE_REQUESTS {
            ask(&housing, clone * REQUESTS_APART + request).await?;
        }
        let images = plain::dump(station, &housing, &tree, "clone").await?;
        tree.kill().await?;
        keep(images, to(format!("clone-{clone}"))).await?;
    }
    keep(init, to("init".to_owned())).await?;
    station.remove(sandbox, &housing).await
}

/// Moves images from the node's tmpfs to a folder that stays, whole or not at all.
async fn keep(images: Images, to: PathBuf) -> Result<()> {
    blocking(move || {
        let doing = || format!("keep the images as {}", to.display());
        copy(images.path(), &to).with_context(doing)
    })
    .await
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let new = to.with_extension("new");
    for old in [&new, to] {
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    fs::create_dir_all(&new)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "img") {
            fs::copy(&path, new.join(path.file_name().context("a file without a name")?))?;
        }
    }
    Ok(fs::rename(&new, to)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_are_kept_and_nothing_of_an_earlier_run() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("html-1"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        for name in ["pages-1.img", "criu.log", "stats-dump"] {
            fs::write(from.join(name), name).unwrap();
        }
        fs::write(to.join("core-1.img"), "old").unwrap();
        copy(&from, &to).unwrap();
        let names: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["pages-1.img"]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half-made is left");
    }
}
