//! What others are told of a running supervisor: one small file of `key=value` lines, replaced whole.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use super::RunArgs;

/// Where a service's files are.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) pid: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) log: PathBuf,
}

impl Files {
    pub(crate) fn of(args: &RunArgs) -> Self {
        let file = |ending: &str| args.run.join(format!("{}.{ending}", args.name));
        Self { pid: file("pid"), state: file("state"), log: file("log") }
    }

    /// Says that this process is the one, or fails when another is.
    pub(crate) fn claim(&self) -> Result<Flock<File>> {
        let path = &self.pid;
        let file =
            OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o644).open(path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_file, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!("another supervisor has {}", path.display())
            }
            Err((_file, errno)) => return Err(errno).with_context(|| format!("lock {}", path.display())),
        };
        fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("write {}", path.display()))?;
        Ok(lock)
    }

    /// Nothing runs any more.
    pub(crate) fn withdraw(&self) {
        // Who finds one that could not be removed sees that its process is gone.
        let _gone = (fs::remove_file(&self.state), fs::remove_file(&self.pid));
    }
}

/// How things stand.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The folder of the version that runs, or is to run.
    pub(crate) version: PathBuf,
    /// The program's process.
    pub(crate) child: Option<i32>,
    /// How often it was started in this version.
    pub(crate) starts: u32,
    /// How it ended the last time.
    pub(crate) last_end: Option<String>,
}

impl State {
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let child = self.child.map(|pid| pid.to_string()).unwrap_or_default();
        let last = self.last_end.as_deref().unwrap_or_default();
        let version = self.version.display();
        let text = format!("version={version}\nchild={child}\nstarts={}\nlast_end={last}\n", self.starts);
        let fresh = path.with_extension("state.new");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, path)
    }
}
