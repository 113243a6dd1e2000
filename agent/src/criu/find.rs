//! Finds the CRIU to use: one that was named, or the one on `PATH`.
//!
//! A private copy is a folder that holds an unpacked distribution package with all its libraries
//! (`usr/sbin/criu`, `lib64/ld-linux-*.so.*`, `usr/lib/*-linux-gnu`). It is started through its own loader, so it
//! needs nothing of the system but the kernel.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::worker::Worker;
use super::{AskCriuError, CheckCriuError, check};
use crate::reaper::Reaper;

/// Names a CRIU binary or the folder of a private copy, where no explicit path is given.
pub const CRIU_ENV: &str = "MEDES_CRIU";

const IN_A_COPY: [&str; 3] = ["usr/sbin/criu", "usr/bin/criu", "sbin/criu"];
const LOADER_DIRS: [&str; 4] = ["lib64", "usr/lib64", "lib", "usr/lib"];
/// A folder of libraries has hundreds of entries at most; more is not a private copy.
const ENTRIES_MAX: usize = 10_000;

/// A CRIU that can be started. Finding one does not run it; [`Criu::check`] does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Criu {
    program: PathBuf,
    /// The loader and library folders of a private copy.
    loader: Option<(PathBuf, Vec<PathBuf>)>,
}

/// The release of a CRIU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Why no CRIU was found.
#[derive(Debug, thiserror::Error)]
pub enum FindCriuError {
    /// The named path cannot be read.
    #[error("look at the CRIU named by {asked_by}: {path}")]
    Named {
        /// `--criu` or the environment variable.
        asked_by: &'static str,
        /// What was named.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: io::Error,
    },
    /// The named path exists and is neither a program nor a private copy.
    #[error("{path}, named by {asked_by}, is neither a CRIU program nor a folder with usr/sbin/criu in it")]
    NotCriu {
        /// `--criu` or the environment variable.
        asked_by: &'static str,
        /// What was named.
        path: PathBuf,
    },
    /// A private copy without its loader.
    #[error(
        "the private CRIU in {root} has no loader (lib64/ld-linux-*.so.*) or no libraries (usr/lib/*-linux-gnu)"
    )]
    NoLoader {
        /// The private copy.
        root: PathBuf,
    },
    /// Nothing was named and `PATH` has none.
    #[error("no criu on PATH; install it, or name one with --criu or MEDES_CRIU")]
    NotOnPath,
}

impl Criu {
    /// Finds CRIU: `explicit` if given, else what `MEDES_CRIU` names, else `criu` on `PATH`.
    /// A path may name the program or the folder of a private copy.
    pub fn find(explicit: Option<&Path>) -> Result<Self, FindCriuError> {
        if let Some(path) = explicit {
            return Self::at(path, "--criu");
        }
        if let Some(path) = env::var_os(CRIU_ENV).filter(|path| !path.is_empty()) {
            return Self::at(Path::new(&path), CRIU_ENV);
        }
        let dirs = env::var_os("PATH").unwrap_or_default();
        // The administrators' folder is often missing from PATH under sudo and in services.
        let on_path = env::split_paths(&dirs).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
        let program = on_path.map(|dir| dir.join("criu")).find(|path| is_program(path));
        Ok(Self { program: program.ok_or(FindCriuError::NotOnPath)?, loader: None })
    }

    fn at(path: &Path, asked_by: &'static str) -> Result<Self, FindCriuError> {
        let named = |source| FindCriuError::Named { asked_by, path: path.to_owned(), source };
        let path = fs::canonicalize(path).map_err(named)?;
        if !path.is_dir() {
            return match copy_around(&path) {
                Some(root) => Self::private_copy(&root, path),
                None if is_program(&path) => Ok(Self { program: path, loader: None }),
                None => Err(FindCriuError::NotCriu { asked_by, path }),
            };
        }
        match IN_A_COPY.map(|inside| path.join(inside)).into_iter().find(|program| is_program(program)) {
            Some(program) => Self::private_copy(&path, program),
            None => Err(FindCriuError::NotCriu { asked_by, path }),
        }
    }

    fn private_copy(root: &Path, program: PathBuf) -> Result<Self, FindCriuError> {
        let loader = LOADER_DIRS.iter().find_map(|dir| {
            entries(&root.join(dir)).find(|path| {
                let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
                name.starts_with("ld-linux") && name.contains(".so") && is_program(path)
            })
        });
        let mut libraries: Vec<PathBuf> = entries(&root.join("usr/lib"))
            .chain(entries(&root.join("lib")))
            .filter(|path| path.to_string_lossy().ends_with("-linux-gnu") && path.is_dir())
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        libraries.sort();
        libraries.dedup();
        match loader {
            Some(loader) if !libraries.is_empty() => Ok(Self { program, loader: Some((loader, libraries)) }),
            _ => Err(FindCriuError::NoLoader { root: root.to_owned() }),
        }
    }

    /// The program that will run.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Whether it is a private copy, started through its own loader.
    #[must_use]
    pub fn is_private_copy(&self) -> bool {
        self.loader.is_some()
    }

    /// Asks CRIU for its version. Starts it once.
    pub async fn version(&self, reaper: &Reaper) -> Result<Version, AskCriuError> {
        check::version(Worker::start_here(self, reaper).await?).await
    }

    /// Runs `criu check`: can this kernel and these rights dump and restore at all? Also knows what that check misses.
    /// `scratch` is an existing folder CRIU may write its log to.
    pub async fn check(&self, reaper: &Reaper, scratch: &Path) -> Result<(), CheckCriuError> {
        check::age(self.version(reaper).await?)?;
        check::filter()?;
        check::check(Worker::start_here(self, reaper).await?, scratch).await
    }

    pub(super) fn command(&self) -> Command {
        let mut command = match &self.loader {
            None => Command::new(&self.program),
            Some((loader, libraries)) => {
                let mut command = Command::new(loader);
                let libraries = env::join_paths(libraries).unwrap_or_default();
                command.arg("--library-path").arg(libraries).arg(&self.program);
                command
            }
        };
        // The host's CRIU settings files (and its environment) must not change what we ask for.
        command.arg("--no-default-config").env_clear().current_dir("/");
        if let Some(path) = env::var_os("PATH") {
            command.env("PATH", path);
        }
        command
    }
}

/// The private copy a program lies in, if it does: `ROOT/usr/sbin/criu` with a loader under `ROOT`.
/// The system itself (`/`) is not a private copy.
fn copy_around(program: &Path) -> Option<PathBuf> {
    let root = program.parent()?.parent()?.parent()?;
    let has_loader = |dir: &&str| {
        entries(&root.join(dir))
            .any(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ld-linux")))
    };
    (root != Path::new("/") && LOADER_DIRS.iter().any(has_loader)).then(|| root.to_owned())
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().take(ENTRIES_MAX).filter_map(|entry| entry.ok().map(|e| e.path()))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_private_copy_is_started_through_its_own_loader() {
        let root = tempfile::tempdir().unwrap();
        let criu = root.path().join("usr/sbin/criu");
        program(&criu);
        assert!(matches!(Criu::find(Some(root.path())), Err(FindCriuError::NoLoader { .. })));
        program(&root.path().join("usr/lib/x86_64-linux-gnu/libc.so.6"));
        program(&root.path().join("usr/lib64/ld-linux-x86-64.so.2"));
        let by_root = Criu::find(Some(root.path())).unwrap();
        assert!(by_root.is_private_copy());
        assert_eq!(by_root, Criu::find(Some(&criu)).unwrap(), "naming the program inside is the same");
        let command = by_root.command();
        assert!(command.get_program().to_string_lossy().ends_with("ld-linux-x86-64.so.2"));
    }

    #[test]
    fn a_plain_program_runs_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let criu = dir.path().join("criu");
        program(&criu);
        assert!(!Criu::find(Some(&criu)).unwrap().is_private_copy());
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Criu::find(Some(&criu)), Err(FindCriuError::NotCriu { asked_by: "--criu", .. })));
        assert!(matches!(Criu::find(Some(&dir.path().join("none"))), Err(FindCriuError::Named { .. })));
    }
}
