//! `medes support-bundle`: what somebody who is to help needs to know of a cluster and of this machine, in one file, without secrets.
//!
//! Works without a controller, too: whatever cannot be had is named with the reason.

mod gather;
mod redact;

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use serde::Serialize;

use self::gather::Gathered;
use crate::{
    client::{Address, Client},
    error::CliError,
    human,
    output::Output,
};

#[derive(Debug, clap::Args)]
pub(crate) struct SupportArgs {
    /// Where to write it [default: medes-support-SECONDS.tar.gz here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Where a program serves metrics (its --metrics); may be given several times
    #[arg(long = "metrics", value_name = "HOST:PORT")]
    pub(crate) metrics: Vec<Address>,
    /// A log whose end goes along; may be given several times
    #[arg(long = "log", value_name = "FILE")]
    pub(crate) logs: Vec<PathBuf>,
    /// A configuration that goes along; may be given several times [default: what a package has in /etc/medes]
    #[arg(long = "config", value_name = "FILE")]
    pub(crate) configs: Vec<PathBuf>,
    /// Sandboxes whose history goes along, those that changed last first
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub(crate) sandboxes: usize,
}

/// What is in a bundle, and what could not be had.
#[derive(Debug, Serialize)]
struct BundleView {
    file: String,
    bytes: u64,
    parts: Vec<String>,
    missing: Vec<gather::Missing>,
}

pub(crate) async fn run(
    args: SupportArgs,
    connect: impl AsyncFnOnce() -> Result<Client, CliError>,
    output: &Output,
) -> Result<(), CliError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let file = args.out.clone().unwrap_or_else(|| format!("medes-support-{}.tar.gz", now.as_secs()).into());
    let Gathered { parts, missing } = gather::all(&args, connect).await;
    let bytes =
        write(&file, &parts, now).map_err(|source| CliError::WriteFile { path: file.clone(), source })?;
    let names = parts.into_iter().map(|(name, _)| name).collect();
    let view = BundleView { file: file.display().to_string(), bytes, parts: names, missing };
    output.answer(&view, || text(&view))
}

fn text(view: &BundleView) -> String {
    let parts = human::count(view.parts.len() as u64, "part", "parts");
    let mut text = format!("{} written: {parts}, {}\n", view.file, human::bytes(view.bytes));
    for missing in &view.missing {
        text += &format!("not in it: {} ({})\n", missing.name, missing.why);
    }
    text + "Secrets are taken out as far as they can be told; look through logs and configurations before you pass it on.\n"
}

/// Readable by whoever wrote it alone. Replaces an older one.
fn write(file: &Path, parts: &[(String, Vec<u8>)], now: Duration) -> io::Result<u64> {
    let open = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    // An older one may have been everybody's to read.
    open.set_permissions(fs::Permissions::from_mode(0o600))?;
    let mut archive = tar::Builder::new(GzEncoder::new(open, Compression::default()));
    for (name, bytes) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o600);
        header.set_mtime(now.as_secs());
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, Path::new("medes-support").join(name), &**bytes)?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    Ok(file.metadata()?.len())
}
