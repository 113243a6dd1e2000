//! The running processes of one sandbox.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use procfs::process::{Process, Stat, StatFlags};
use tokio::io::unix::AsyncFd;

use crate::reaper::{ExitStatus, ExitWatch, Reaper};

use super::cgroup::{CgroupError, SandboxCgroup};
use super::sys;

/// How long a process that is gone may take to hand its status to the reaper.
const STATUS_WAIT: Duration = Duration::from_secs(1);
/// How long a killed process may take to go.
const END_WAIT: Duration = Duration::from_secs(5);

/// SIGKILL among pending signals.
const KILLED: u64 = 1 << (libc::SIGKILL - 1);
/// The state of a thread that has ended.
const ZOMBIE: char = 'Z';

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// What its first process returned.
    pub status: ExitStatus,
    /// Whether the kernel killed it for want of memory.
    pub out_of_memory: bool,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.out_of_memory { f.write_str("out of memory") } else { self.status.fmt(f) }
    }
}

/// Why a process could not be taken as the sandbox's.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It has ended already, or never was.
    #[error("open process {pid}")]
    Gone {
        /// The process.
        pid: Pid,
        /// What the system said.
        source: io::Error,
    },
    /// It is not in the sandbox's control group, so limits and kill would miss it.
    #[error("process {pid} is not in the sandbox's control group")]
    NotInside {
        /// The process.
        pid: Pid,
    },
    /// The control group could not be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Why processes are still there after a kill.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// The control group did not get empty.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The first process did not end (stuck in the kernel).
    #[error("process {pid} did not end within {} s of being killed", END_WAIT.as_secs())]
    StillRunning {
        /// The process.
        pid: Pid,
    },
}

/// The processes of one sandbox, held by a handle of the first one. Clones are the same tree.
///
/// Dropping it ends nothing: the housing decides.
#[derive(Debug, Clone)]
pub struct Tree {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    pid: Pid,
    process: AsyncFd<OwnedFd>,
    exit: ExitWatch,
    cgroup: SandboxCgroup,
    oom_kills_before: u64,
    killed: AtomicBool,
}

impl Tree {
    /// Takes a process. `oom_kills_before` is the group's count before the process was started.
    pub(crate) fn take(
        reaper: &Reaper,
        pid: Pid,
        cgroup: SandboxCgroup,
        oom_kills_before: u64,
    ) -> Result<Self, AdoptError> {
        let gone = |source| AdoptError::Gone { pid, source };
        let handle = sys::pidfd_open(pid).map_err(gone)?;
        let exit = reaper.claim(pid);
        let process = sys::wait_readable(handle).map_err(gone)?;
        let shared = Shared { pid, process, exit, cgroup, oom_kills_before, killed: AtomicBool::new(false) };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The first process (number 1 inside), by its number in the agent's pid namespace.
    pub fn pid(&self) -> Pid {
        self.shared.pid
    }

    /// All processes of the sandbox, by their numbers in the agent's pid namespace.
    pub fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        self.shared.cgroup.pids()
    }

    /// Waits until the first process has ended (the others end with it: it is process 1 of its namespace).
    /// Cancel-safe; may be called any number of times.
    pub async fn ended(&self) -> Ended {
        // An error means the runtime is stopping; then the status below is all there is.
        let _gone = self.shared.process.readable().await;
        let mut exit = self.shared.exit.clone();
        let status = tokio::time::timeout(STATUS_WAIT, exit.wait()).await.unwrap_or(ExitStatus::Unknown);
        let shot = matches!(status, ExitStatus::Unknown | ExitStatus::Signal(libc::SIGKILL));
        let by_us = self.shared.killed.load(Ordering::Acquire);
        let out_of_memory = shot && !by_us && self.oom_kills() > 0;
        Ended { status, out_of_memory }
    }

    /// Whether the first process is still there.
    pub fn is_running(&self) -> bool {
        // Signal 0 is "no signal" but nix has no name for it here; the handle's readiness says the same.
        let mut handle = [nix::poll::PollFd::new(self.shared.process.as_fd(), nix::poll::PollFlags::POLLIN)];
        !matches!(nix::poll::poll(&mut handle, nix::poll::PollTimeout::ZERO), Ok(1..))
    }

    /// Whether the first process runs no more instruction of its own: it has ended, or was killed and is still on its way out. What was not sent
    /// to it by now it has not seen.
    pub fn is_ending(&self) -> bool {
        !self.is_running() || is_ending(self.shared.pid)
    }

    /// Processes the kernel has killed in this sandbox for want of memory since it was started or restored.
    pub fn oom_kills(&self) -> u64 {
        self.shared.cgroup.oom_kills().saturating_sub(self.shared.oom_kills_before)
    }

    /// Kills everything in the control group and waits until it is gone. Bounded; cancel-safe; may be repeated.
    pub async fn kill(&self) -> Result<Ended, KillError> {
        let shared = &self.shared;
        if self.is_running() {
            shared.killed.store(true, Ordering::Release);
        }
        // Directly as well: between fork and joining its group it would be missed. Gone already is fine.
        let _gone = sys::pidfd_kill(shared.process.as_fd(), Signal::SIGKILL);
        shared.cgroup.kill().await?;
        let ended = tokio::time::timeout(END_WAIT, self.ended()).await;
        ended.map_err(|_elapsed| KillError::StillRunning { pid: shared.pid })
    }
}

/// As the kernel tells of its first thread: a process that is killed has that signal pending, on each of its threads, until it begins to exit. Just
/// between the two a look can miss it.
fn is_ending(pid: Pid) -> bool {
    let stat = Process::new(pid.as_raw()).and_then(|process| process.stat());
    stat.map_or(true, |stat| says_ending(&stat))
}

fn says_ending(stat: &Stat) -> bool {
    let exits = stat.flags & StatFlags::PF_EXITING.bits() != 0;
    // A first thread that has ended says nothing: others may go on without it.
    stat.signal & KILLED != 0 || (exits && stat.state != ZOMBIE)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use procfs::FromRead;

    use super::*;

    #[test]
    fn who_was_killed_or_exits_is_ending_and_nobody_else() {
        let says = |state: char, flags: u32, signal: u64| {
            let line =
                format!("7 (x) {state} 1 7 7 0 -1 {flags} {}{signal} {}", "0 ".repeat(21), "0 ".repeat(21));
            says_ending(&Stat::from_read(line.as_bytes()).unwrap())
        };
        let exits = StatFlags::PF_EXITING.bits();
        assert!(!says('S', 0, 0) && !says('R', 0, 1 << (libc::SIGTERM - 1)));
        assert!(says('S', 0, KILLED) && says('R', exits, 0) && says('D', exits, 0));
        assert!(!says(ZOMBIE, exits, 0), "others may go on");
    }

    #[test]
    fn who_has_ended_is_ending() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap());
        assert!(!is_ending(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_ending(pid));
    }
}
