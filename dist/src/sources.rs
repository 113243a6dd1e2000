//! What the checkout and the build have for those who have neither.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use medes_deploy::{
    archive::{self, ArchiveError, Entry, What},
    elf::{self, Glibc},
    release::PROGRAMS,
};

/// The program that brings the others to hosts.
const DEPLOY: &str = "medes-deploy";
/// What is told of Medes, by its name in the checkout and the one it is handed out by.
const DOCUMENTS: [(&str, &str); 6] = [
    ("LICENSE", "LICENSE"),
    ("dist/README.md", "README.md"),
    ("deploy/README.md", "hosts.md"),
    ("deploy/observe/README.md", "runbook.md"),
    ("METRICS.md", "METRICS.md"),
    ("THREAT-MODEL.md", "THREAT-MODEL.md"),
];
/// What others show and watch Medes by.
const OBSERVE: [&str; 2] = ["alerts.yaml", "dashboard.json"];
/// The controller's configuration, with all its defaults.
const CONFIG: &str = "controller/src/config.toml";

/// Where everything is taken from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// The checkout.
    pub root: PathBuf,
    /// The folder of the programs.
    pub programs: PathBuf,
    /// What the programs were built with beyond the usual, as cargo's `--features` takes it.
    pub features: String,
    /// A CRIU with all that it needs, if one is to go along.
    pub criu: Option<PathBuf>,
}

/// Something is not there.
#[derive(Debug, thiserror::Error)]
#[error("read {}", .path.display())]
pub struct SourceError {
    /// What.
    pub path: PathBuf,
    /// Why.
    source: io::Error,
}

impl Sources {
    /// The programs, below `folder` (with a slash, or empty).
    pub fn programs(&self, folder: &str) -> Vec<Entry> {
        let names = PROGRAMS.iter().chain([&DEPLOY]);
        let entry = |name: &&str| Entry {
            name: format!("{folder}{name}"),
            what: What::File { from: self.programs.join(name), program: true },
        };
        names.map(entry).collect()
    }

    /// The CRIU, as the folder `name`; nothing where none goes along.
    ///
    /// # Errors
    /// When it cannot be looked through.
    pub fn criu(&self, name: &str) -> Result<Vec<Entry>, ArchiveError> {
        self.criu.as_deref().map_or_else(|| Ok(Vec::new()), |criu| archive::folder(criu, name))
    }

    /// What is to be read, below `folder`.
    pub fn documents(&self, folder: &str) -> Vec<Entry> {
        DOCUMENTS.iter().map(|(from, name)| self.plain(from, format!("{folder}{name}"))).collect()
    }

    /// Dashboard and alerts, below `folder`.
    pub fn observe(&self, folder: &str) -> Vec<Entry> {
        OBSERVE
            .iter()
            .map(|name| self.plain(&format!("deploy/observe/{name}"), format!("{folder}{name}")))
            .collect()
    }

    /// The controller's configuration with all its defaults.
    pub fn config(&self, name: &str) -> Entry {
        self.plain(CONFIG, name.into())
    }

    fn plain(&self, from: &str, name: String) -> Entry {
        Entry { name, what: What::File { from: self.root.join(from), program: false } }
    }

    /// The newest C library that a program needs; `None` when all are linked statically.
    ///
    /// # Errors
    /// When a program is not there.
    pub fn glibc(&self) -> Result<Option<Glibc>, SourceError> {
        let mut newest = None;
        for entry in self.programs("") {
            let path = self.programs.join(entry.name);
            newest = newest.max(elf::needs(&path).map_err(|source| SourceError { path, source })?);
        }
        Ok(newest)
    }
}

/// The text of a file.
///
/// # Errors
/// When it is not there or no text.
pub fn text(path: &Path) -> Result<String, SourceError> {
    fs::read_to_string(path).map_err(|source| SourceError { path: path.into(), source })
}
