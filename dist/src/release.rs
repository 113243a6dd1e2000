//! All artifacts of a version in one folder, with their checksums: all of them or none.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use medes_deploy::archive::{ArchiveError, Entry, What};

use crate::{
    chart::{self, ChartError},
    deb::{self, DebError, Needs},
    image::{self, ImageError, hex},
    package,
    sbom::{self, SbomError},
    sources::{SourceError, Sources},
    stamp::Stamp,
    tarball::{gzip, tar},
};

/// The file with the checksums of all others; a folder that has it is one of ours.
pub const SUMS: &str = "SHA256SUMS";

/// One file that is handed out.
#[derive(Debug)]
pub struct Artifact {
    /// Its name in the folder.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// Artifacts cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// A program.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A tarball.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The Debian package.
    #[error("make the Debian package")]
    Deb(#[from] DebError),
    /// The image.
    #[error("make the image")]
    Image(#[from] ImageError),
    /// The manifests.
    #[error("make the manifests")]
    Chart(#[from] ChartError),
    /// The list of what is inside.
    #[error("list what is inside")]
    Sbom(#[from] SbomError),
    /// A file or folder.
    #[error("write {}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else's folder.
    #[error("{} holds something else (there is no {SUMS} in it)", .0.display())]
    NotOurs(PathBuf),
}

/// The names of all artifacts, in the order in which they are made.
pub fn names(stamp: &Stamp) -> [String; 6] {
    let (name, version) = (stamp.name(), &stamp.version);
    [
        format!("{name}.tar.gz"),
        deb::file_name(stamp),
        format!("{name}.oci.tar"),
        format!("medes-{version}-kubernetes.yaml"),
        format!("medes-{version}-helm.tgz"),
        format!("medes-{version}-sbom.cdx.json"),
    ]
}

/// Makes all artifacts; `say` is told of each before it is made.
///
/// # Errors
/// When something is not there, cannot be understood, or may not be handed out.
pub fn make(sources: &Sources, stamp: &Stamp, say: &dyn Fn(&str)) -> Result<Vec<Artifact>, ReleaseError> {
    let names = names(stamp);
    let mut made = Vec::new();
    for (name, make) in names.into_iter().zip([tarball, debian, container, kubernetes, helm, inside]) {
        say(&name);
        made.push(Artifact { bytes: make(sources, stamp)?, name });
    }
    Ok(made)
}

/// For machines without a package manager, and for whoever deploys from here.
fn tarball(sources: &Sources, stamp: &Stamp) -> Result<Vec<u8>, ReleaseError> {
    let mut all = sources.programs("bin/");
    all.extend(sources.criu("criu")?);
    all.extend(sources.documents(""));
    all.extend(sources.observe("observe/"));
    all.push(sources.config("controller.toml"));
    let units = package::units(sources.criu.is_some()).into_iter().map(|unit| Entry {
        name: format!("systemd/{}", unit.name),
        what: What::Text(unit.text.into_bytes()),
    });
    all.extend(units);
    Ok(packed(&tar(&all, &format!("{}/", stamp.name()), stamp)?)?)
}

fn debian(sources: &Sources, stamp: &Stamp) -> Result<Vec<u8>, ReleaseError> {
    let needs = Needs { glibc: sources.glibc()?, criu: sources.criu.is_none() };
    Ok(deb::package(&package::entries(sources)?, needs, stamp)?)
}

fn container(sources: &Sources, stamp: &Stamp) -> Result<Vec<u8>, ReleaseError> {
    Ok(image::archive(sources, stamp)?)
}

fn kubernetes(sources: &Sources, _: &Stamp) -> Result<Vec<u8>, ReleaseError> {
    Ok(chart::manifests(&sources.root)?.into_bytes())
}

fn helm(sources: &Sources, stamp: &Stamp) -> Result<Vec<u8>, ReleaseError> {
    Ok(packed(&tar(&chart::entries(&sources.root), "", stamp)?)?)
}

/// What cargo linked, and the files of this machine that the image has.
fn inside(sources: &Sources, stamp: &Stamp) -> Result<Vec<u8>, ReleaseError> {
    let mut files = Vec::new();
    for (_, entries) in image::layers(sources)? {
        for Entry { name, what } in entries {
            let What::File { from, .. } = what else { continue };
            if !from.starts_with(&sources.programs) && !from.starts_with(sources.root.join("dist")) {
                let read = fs::read(&from).map_err(|source| ArchiveError::Read { path: from, source })?;
                files.push((name, hex(&read)));
            }
        }
    }
    let document = sbom::document((&sources.root, &sources.features), &files, stamp)?;
    Ok(format!("{document:#}\n").into_bytes())
}

fn packed(bytes: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    gzip(bytes).map_err(ArchiveError::Write)
}

/// Puts artifacts and their checksums in a folder, in place of what an earlier run left there. Whoever looks meanwhile sees a whole set.
///
/// # Errors
/// When the folder holds something else, or cannot be written.
pub fn put(made: &[Artifact], folder: &Path) -> Result<(), ReleaseError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ReleaseError::Write { path, source }
    };
    let is_empty = || folder.read_dir().is_ok_and(|mut files| files.next().is_none());
    if folder.exists() && !folder.join(SUMS).is_file() && !is_empty() {
        return Err(ReleaseError::NotOurs(folder.to_owned()));
    }
    let fresh = folder.with_extension("new");
    if fresh.exists() {
        fs::remove_dir_all(&fresh).map_err(failed(&fresh))?;
    }
    fs::create_dir_all(&fresh).map_err(failed(&fresh))?;
    for Artifact { name, bytes } in made {
        let path = fresh.join(name);
        fs::write(&path, bytes).map_err(failed(&path))?;
    }
    let sums = made.iter().map(|made| format!("{}  {}\n", hex(&made.bytes), made.name)).collect::<String>();
    fs::write(fresh.join(SUMS), sums).map_err(failed(&fresh))?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed(folder))?;
    }
    fs::rename(&fresh, folder).map_err(failed(folder))
}
