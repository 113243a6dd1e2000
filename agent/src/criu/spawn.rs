//! Brings a CRIU into being, where it belongs, and sees that it goes.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use super::find::Criu;
use super::worker::{Output, StartWorkerError};
use crate::{
    reaper::{ExitStatus, ExitWatch, Reaper},
    sandbox::sys,
};

/// User and group.
type Ids = (u32, u32);

/// How long a CRIU may take to be gone once it was killed or has answered.
const EXIT_TIME_MAX: Duration = Duration::from_secs(5);

/// A CRIU and whatever it starts. Dropping it kills all of it.
#[derive(Debug)]
pub(super) struct Running {
    exit: ExitWatch,
}

impl Running {
    /// The process, as the agent sees it.
    pub(super) fn pid(&self) -> Pid {
        self.exit.pid()
    }

    /// Whether it is still there. A process that waits in a pool can die like any other.
    pub(super) fn is_alive(&self) -> bool {
        self.exit.now().is_none()
    }

    /// Waits for it to be gone; says how it went. Cancel-safe.
    pub(super) async fn gone(&mut self) -> ExitStatus {
        self.exit.wait().await
    }

    /// Waits for it to be gone, but not for ever: then it is killed.
    pub(super) async fn finish(mut self) {
        let _lingers = tokio::time::timeout(EXIT_TIME_MAX, self.gone()).await;
    }

    /// Kills it, its helpers, and whatever it has made that is not yet a session of its own.
    pub(super) fn kill(&self) {
        // Once collected, its number may mean another process.
        if self.is_alive() {
            // The only error is that nobody is left.
            let _gone = killpg(self.pid(), Signal::SIGKILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a CRIU is born.
#[derive(Debug)]
pub(super) struct Birthplace {
    /// Its network namespace.
    pub(super) netns: OwnedFd,
    /// What its real user and group are, if not the agent's.
    pub(super) real: Option<Ids>,
}

impl Birthplace {
    /// That of one who is to dump this process.
    pub(super) fn beside(pid: Pid) -> Result<Self, StartWorkerError> {
        let netns = File::open(format!("/proc/{pid}/ns/net")).map_err(StartWorkerError::EnterNetns)?.into();
        Ok(Self { netns, real: real_ids(pid).map_err(StartWorkerError::Prepare)? })
    }
}

/// Who asks for the limits of a process needs CAP_SYS_RESOURCE, or the same real user and group (prlimit(2)). Containers that are
/// allowed much else often lack that one, so there CRIU is really whom it dumps. Only there: libnftables, which it asks about the
/// kernel once ([`super::Criu::check`]; what it found stays in `/run/criu.kdat`), ends such a program at once.
fn real_ids(pid: Pid) -> io::Result<Option<Ids>> {
    let may = caps::has_cap(None, caps::CapSet::Effective, caps::Capability::CAP_SYS_RESOURCE);
    if may.unwrap_or(false) {
        return Ok(None);
    }
    let status = procfs::process::Process::new(pid.as_raw()).and_then(|process| process.status());
    let status = status.map_err(io::Error::other)?;
    Ok(Some((status.ruid, status.rgid)))
}

/// Starts `criu swrk 0`; gives our end of its socket, and its network namespace. Blocks for about a millisecond.
pub(super) fn spawn_worker(
    criu: &Criu,
    reaper: &Reaper,
    birthplace: Birthplace,
    output: Option<Output>,
) -> Result<(Running, OwnedFd, OwnedFd), StartWorkerError> {
    let prepare = |errno: Errno| StartWorkerError::Prepare(errno.into());
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
    )
    .map_err(prepare)?;
    // CRIU waits with plain blocking calls.
    let blocking = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty());
    nix::fcntl::fcntl(&theirs, blocking).map_err(prepare)?;

    let mut command = criu.command();
    command.args(["swrk", "0"]).stdin(theirs);
    match output {
        Some(Output { stdout, stderr }) => command.stdout(stdout).stderr(stderr),
        None => command.stdout(Stdio::null()).stderr(Stdio::null()),
    };
    let (running, netns) = spawn(command, reaper, birthplace)?;
    Ok((running, ours, netns))
}

/// Starts a CRIU in a process group of its own. Blocks for about a millisecond.
pub(super) fn spawn(
    mut command: Command,
    reaper: &Reaper,
    Birthplace { netns, real }: Birthplace,
) -> Result<(Running, OwnedFd), StartWorkerError> {
    command.process_group(0);
    // A child is born in the network namespace of the thread that makes it, as the users that it is, and a thread that has changed
    // its own is of no use to anyone else: so it is a thread for this one call. This keeps std's cheap way of starting programs
    // open, which a hook between fork and exec would close.
    let reaper = reaper.clone();
    let born = thread::Builder::new().name("criu-start".into()).spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET).map_err(|e| StartWorkerError::EnterNetns(e.into()))?;
        if let Some((uid, gid)) = real {
            sys::be_really(uid, gid).map_err(StartWorkerError::Prepare)?;
        }
        let (_child, exit) = reaper.spawn(&mut command).map_err(|source| StartWorkerError::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })?;
        Ok((Running { exit }, netns))
    });
    let born = born.map_err(StartWorkerError::Prepare)?.join();
    born.unwrap_or_else(|_| Err(StartWorkerError::Prepare(io::Error::other("the starting thread panicked"))))
}
