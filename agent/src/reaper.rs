//! The only place of the agent that waits for children.
//!
//! The agent is a subreaper, so besides the processes it starts itself, orphans of sandboxes, restored trees and
//! CRIU's helpers become its children. Whoever cares about a process claims its number; what nobody claims is
//! remembered for a while in a bounded table and then forgotten. Nobody else may use `wait`, `waitpid` or
//! `tokio::process`, or statuses would go to the wrong place.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many statuses nobody has claimed are kept.
const UNCLAIMED_MAX: usize = 1024;
/// Children collected in one go before other tasks get their turn.
const COLLECT_MAX: usize = 256;
/// A lost SIGCHLD costs at most this long.
const SWEEP: Duration = Duration::from_millis(500);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It is gone, but another process took its status (a restored tree whose CRIU worker waited for it).
    Unknown,
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_unknown) => write!(f, "killed by signal {number}"),
            },
            Self::Unknown => f.write_str("ended, status unknown"),
        }
    }
}

/// Waits for the end of one process. Clones all see the same end.
#[derive(Debug, Clone)]
pub struct ExitWatch {
    pid: Pid,
    seen: watch::Receiver<Option<ExitStatus>>,
}

impl ExitWatch {
    /// The process being watched.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// The status, if the process has already been collected.
    pub fn now(&self) -> Option<ExitStatus> {
        *self.seen.borrow()
    }

    /// Waits for the end. Cancel-safe; may be called again.
    pub async fn wait(&mut self) -> ExitStatus {
        match self.seen.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(ExitStatus::Unknown),
            // The reaper is gone: the agent is shutting down.
            Err(_closed) => ExitStatus::Unknown,
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    claimed: BTreeMap<i32, watch::Sender<Option<ExitStatus>>>,
    unclaimed: VecDeque<(i32, ExitStatus)>,
}

/// Handle of the reaper. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

impl Reaper {
    /// Starts collecting children on `tasks` until `stop`. One per process.
    pub fn start(tasks: &TaskTracker, stop: CancellationToken) -> io::Result<Self> {
        let reaper = Self { table: Arc::default() };
        let mut child_ended = signal(SignalKind::child())?;
        let worker = reaper.clone();
        tasks.spawn(async move {
            loop {
                let more = worker.collect();
                if more {
                    tokio::task::yield_now().await;
                    continue;
                }
                tokio::select! {
                    _ = child_ended.recv() => {}
                    () = tokio::time::sleep(SWEEP) => {}
                    () = stop.cancelled() => return,
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a process and claims it in one step.
    ///
    /// Use this and not `Command::spawn`: when the program cannot be executed, the standard library waits for the
    /// failed child itself and panics if the reaper was faster. The lock held here keeps the reaper away.
    pub fn spawn(&self, command: &mut Command) -> io::Result<(Child, ExitWatch)> {
        let mut table = self.lock();
        let child = command.spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id()).map_err(|_too_big| io::Error::from(Errno::ESRCH))?);
        // A status of an earlier process with this number is not ours.
        table.unclaimed.retain(|(other, _)| *other != pid.as_raw());
        Ok((child, Self::watch(&mut table, pid)))
    }

    /// Claims a process that somebody else started for us (the stage, CRIU). It may have ended already.
    pub fn claim(&self, pid: Pid) -> ExitWatch {
        let mut table = self.lock();
        let mut watch = Self::watch(&mut table, pid);
        if let Some(at) = table.unclaimed.iter().rposition(|(other, _)| *other == pid.as_raw()) {
            let earlier = table.unclaimed.remove(at);
            // The status belongs to this process only if no process has that number now.
            let gone = nix::sys::signal::kill(pid, None) == Err(Errno::ESRCH);
            if let (true, Some((_, status))) = (gone, earlier) {
                table.claimed.remove(&pid.as_raw());
                let (_sender, seen) = watch::channel(Some(status));
                watch = ExitWatch { pid, seen };
            }
        }
        watch
    }

    fn watch(table: &mut Table, pid: Pid) -> ExitWatch {
        // Claims whose watchers have all gone are dropped here, so the table cannot grow without end.
        table.claimed.retain(|_, sender| sender.receiver_count() > 0);
        let sender = table.claimed.entry(pid.as_raw()).or_insert_with(|| watch::channel(None).0);
        ExitWatch { pid, seen: sender.subscribe() }
    }

    /// Collects ended children; true when there may be more.
    fn collect(&self) -> bool {
        for _ in 0..COLLECT_MAX {
            // Locked for each step, so that `spawn` can never run between a fork and its failed exec.
            let mut table = self.lock();
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, ExitStatus::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _core)) => (pid, ExitStatus::Signal(signal as i32)),
                // Real-time signals are not in nix's list and come as EINVAL; the child is collected all the same.
                Err(Errno::EINVAL | Errno::EINTR) => continue,
                Ok(_) | Err(_) => return false,
            };
            table.settle(pid.as_raw(), status);
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn settle(&mut self, pid: i32, status: ExitStatus) {
        match self.claimed.remove(&pid) {
            Some(sender) if sender.receiver_count() > 0 => {
                sender.send_replace(Some(status));
            }
            _ => {
                if self.unclaimed.len() == UNCLAIMED_MAX {
                    self.unclaimed.pop_front();
                }
                self.unclaimed.push_back((pid, status));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unclaimed_statuses_are_bounded_and_the_oldest_goes_first() {
        let mut table = Table::default();
        for pid in 0..i32::try_from(UNCLAIMED_MAX).expect("small") + 1 {
            table.settle(pid, ExitStatus::Code(0));
        }
        assert_eq!(table.unclaimed.len(), UNCLAIMED_MAX);
        assert_eq!(table.unclaimed.front(), Some(&(1, ExitStatus::Code(0))));
    }

    #[test]
    fn a_claimed_status_reaches_every_clone_of_the_watch() {
        let mut table = Table::default();
        let watch = Reaper::watch(&mut table, Pid::from_raw(7));
        let other = watch.clone();
        table.settle(7, ExitStatus::Signal(9));
        assert_eq!(watch.now(), Some(ExitStatus::Signal(9)));
        assert_eq!(other.now(), Some(ExitStatus::Signal(9)));
        assert!(table.claimed.is_empty());
    }

    #[test]
    fn claims_nobody_waits_for_are_dropped() {
        let mut table = Table::default();
        drop(Reaper::watch(&mut table, Pid::from_raw(7)));
        let _kept = Reaper::watch(&mut table, Pid::from_raw(8));
        assert_eq!(table.claimed.keys().copied().collect::<Vec<_>>(), vec![8]);
    }
}
