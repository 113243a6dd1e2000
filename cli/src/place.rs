//! Where a running `medes up` says where it is, so that every other verb finds it without being told.
//!
//! One small file per user, in a folder that only this user can write: whoever could write it could send the
//! user's requests elsewhere.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{sys::signal, unistd::Pid};
use serde::{Deserialize, Serialize};

const FILE: &str = "up.json";
const FILE_BYTES_MAX: u64 = 16 << 10;

/// What a running `medes up` tells others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Active {
    /// host:port of the controller.
    pub(crate) control: String,
    /// host:port of its HTTP gateway.
    pub(crate) gateway: String,
    /// Where everything is kept.
    pub(crate) state_dir: PathBuf,
    /// Process of `medes up`.
    pub(crate) pid: i32,
}

/// The user's folder, made if it is missing.
///
/// An existing folder that somebody else owns or may write is refused.
pub(crate) fn runtime_dir() -> io::Result<PathBuf> {
    let dir = match std::env::var_os("MEDES_RUNTIME_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) => Path::new(&dir).join("medes"),
            None => std::env::temp_dir().join(format!("medes-{}", nix::unistd::getuid())),
        },
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let found = fs::symlink_metadata(&dir)?;
    let ours = found.is_dir() && found.uid() == nix::unistd::getuid().as_raw() && found.mode() & 0o022 == 0;
    if ours {
        Ok(dir)
    } else {
        let why = format!("{} is not a folder that only this user may write", dir.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

/// The `medes up` that runs now, if one does. The file of one that was killed is passed over.
pub(crate) fn find_active() -> Option<Active> {
    read(&runtime_dir().ok()?).filter(|active| signal::kill(Pid::from_raw(active.pid), None).is_ok())
}

fn read(dir: &Path) -> Option<Active> {
    let mut text = String::new();
    fs::File::open(dir.join(FILE)).ok()?.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok().filter(|active: &Active| active.pid > 0)
}

/// Says where this `medes up` is. The last one to say so is the one that is found.
pub(crate) fn announce(dir: &Path, active: &Active) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(serde_json::to_string(active)?.as_bytes())?;
    file.persist(dir.join(FILE))?;
    Ok(())
}

/// Takes it back, unless another `medes up` has said something since.
pub(crate) fn withdraw(dir: &Path, active: &Active) -> io::Result<()> {
    if read(dir).as_ref() == Some(active) { fs::remove_file(dir.join(FILE)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(pid: i32) -> Active {
        Active { control: "h:1".into(), gateway: "h:2".into(), state_dir: "s".into(), pid }
    }

    #[test]
    fn what_is_announced_is_found_until_it_is_withdrawn() {
        let dir = tempfile::tempdir().unwrap();
        announce(dir.path(), &active(5)).unwrap();
        assert_eq!(read(dir.path()), Some(active(5)));
        withdraw(dir.path(), &active(5)).unwrap();
        assert_eq!(read(dir.path()), None);
    }

    #[test]
    fn one_up_does_not_withdraw_the_word_of_another() {
        let dir = tempfile::tempdir().unwrap();
        announce(dir.path(), &active(5)).unwrap();
        announce(dir.path(), &active(6)).unwrap();
        withdraw(dir.path(), &active(5)).unwrap();
        assert_eq!(read(dir.path()), Some(active(6)));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_no_controller() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "{}", "nonsense", r#"{"control":"h:1","gateway":"h:2","state_dir":"s","pid":-1}"#] {
            fs::write(dir.path().join(FILE), text).unwrap();
            assert_eq!(read(dir.path()), None, "{text}");
        }
    }
}
