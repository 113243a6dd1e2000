//! The state folder of a cluster under test: removed when all went well, kept with its logs when not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// A fresh folder. Stays where it is unless [`Scratch::remove`] is called.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn make() -> Result<Self> {
        // In the system's temporary folder, whose path is short: Unix sockets will be made in it.
        let fresh = tempfile::Builder::new().prefix("medes-bench-").tempdir();
        // Resolved, because the table of mounts knows no symbolic links.
        let path = fs::canonicalize(fresh.context("make a state folder")?.keep())
            .context("find the state folder")?;
        Ok(Self { path })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the folder, unless something is mounted in it: a mount that a sandbox left behind
    /// would show us files of the host, and they are not ours to remove.
    pub(crate) fn remove(self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("read the table of mounts")?;
        if let Some(mount) = mount_below(&mounts, &self.path) {
            bail!("{} is still mounted; {} is kept", mount, self.path.display());
        }
        fs::remove_dir_all(&self.path).with_context(|| format!("remove {}", self.path.display()))
    }
}

/// The first mount point at or below `path`. Its fifth field is the mount point (proc(5)).
fn mount_below<'a>(mountinfo: &'a str, path: &Path) -> Option<&'a str> {
    let mut points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.find(|point| Path::new(point).starts_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_with_what_is_in_it() {
        let scratch = Scratch::make().unwrap();
        let path = scratch.path().to_owned();
        fs::create_dir(path.join("logs")).unwrap();
        scratch.remove().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn mounts_in_the_folder_are_seen() {
        let table = "21 1 254:0 / / rw - ext4 root rw\n40 21 0:3 / /tmp/medes-bench-x/a rw - tmpfs none rw\n";
        assert_eq!(mount_below(table, Path::new("/tmp/medes-bench-x")), Some("/tmp/medes-bench-x/a"));
        assert_eq!(mount_below(table, Path::new("/tmp/medes-bench-x/a")), Some("/tmp/medes-bench-x/a"));
        assert_eq!(
            mount_below(table, Path::new("/tmp/medes-bench")),
            None,
            "another folder with a like name"
        );
    }
}
