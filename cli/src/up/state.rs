//! The folder where `medes up` keeps everything: one folder per part, one log per part.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::UpError;
use crate::place;

/// The folder. One that we made is removed when all went well.
pub(super) struct StateDir {
    path: PathBuf,
    ours: bool,
}

impl StateDir {
    /// `given`, or a fresh folder in the user's runtime folder.
    pub(super) fn make(given: Option<&Path>) -> Result<Self, UpError> {
        let failed = |path: &Path, source| UpError::StateDir { path: path.into(), source };
        let state = match given {
            Some(path) => {
                make_folder(path).map_err(|source| failed(path, source))?;
                let path = fs::canonicalize(path).map_err(|source| failed(path, source))?;
                Self { path, ours: false }
            }
            None => {
                let parent = place::runtime_dir().map_err(|source| failed(Path::new("medes"), source))?;
                let fresh = tempfile::Builder::new().prefix("up-").tempdir_in(&parent);
                let fresh = fresh.map_err(|source| failed(&parent, source))?;
                Self { path: fresh.keep(), ours: true }
            }
        };
        state.folder("logs")?;
        Ok(state)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A part's own folder.
    pub(super) fn folder(&self, name: &str) -> Result<PathBuf, UpError> {
        let path = self.path.join(name);
        make_folder(&path).map_err(|source| UpError::StateDir { path: path.clone(), source })?;
        Ok(path)
    }

    /// A part's log.
    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Removes the folder if we made it and all went well. Where it is, if somebody may want to look at it.
    pub(super) fn end(self, well: bool) -> Option<PathBuf> {
        if !self.ours {
            return (!well).then_some(self.path);
        }
        // A mount that was left behind would show us files that are not ours to remove.
        if well && !has_mounts(&self.path) && fs::remove_dir_all(&self.path).is_ok() {
            return None;
        }
        Some(self.path)
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Is anything mounted at or below `path`? Yes, when nobody can tell.
fn has_mounts(path: &Path) -> bool {
    let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo());
    mounts.map_or(true, |mounts| mounts.into_iter().any(|mount| mount.mount_point.starts_with(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_folder_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        for well in [true, false] {
            let state = StateDir::make(Some(&path)).unwrap();
            assert!(state.log("controller").parent().unwrap().is_dir());
            assert_eq!(state.end(well).is_some(), !well);
            assert!(path.is_dir());
        }
    }

    #[test]
    fn mounts_are_seen() {
        assert!(has_mounts(Path::new("/")));
        assert!(!has_mounts(tempfile::tempdir().unwrap().path()));
    }
}
