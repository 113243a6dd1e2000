//! Processes that a dead agent leaves behind: they become children of `medes up`, which ends them.
//!
//! Agents are reapers themselves, so what a living agent's processes leave goes to that agent, not to us:
//! a child that we did not start belongs to an agent that is gone. One of them is the agent's keeper, which is
//! just removing what the agent had; it does not listen to SIGTERM, and it must not be killed before it is done.

use std::time::Duration;

use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpid},
};

/// Rounds with SIGTERM: 12 s, more than a keeper waits for what it kills.
const GENTLE_ROUNDS_MAX: usize = 600;
/// Rounds with SIGKILL after that. Each round ends the children of those that the round before ended. Process
/// trees are not deeper.
const ROUNDS_MAX: usize = 200;
const ROUND: Duration = Duration::from_millis(20);

/// The right to end what agents leave behind.
pub(super) struct Orphans {
    /// Children that whoever became this program (`exec medes up`) had before. Not ours to end.
    before: Vec<Pid>,
}

impl Orphans {
    /// From now on, orphans below this process become its children. Call it before the first child.
    pub(super) fn adopt() -> Self {
        let before = strangers(&[]);
        if let Err(error) = prctl::set_child_subreaper(true) {
            eprintln!("medes: what a killed agent leaves behind will not be cleaned up: {error}");
        }
        Self { before }
    }

    /// Ends and reaps every child of this process but `ours`. How many are still there in the end.
    pub(super) async fn sweep(&self, mut ours: Vec<Pid>) -> usize {
        ours.extend(&self.before);
        let mut left = 0;
        for round in 0..GENTLE_ROUNDS_MAX + ROUNDS_MAX {
            let signal = if round < GENTLE_ROUNDS_MAX { Signal::SIGTERM } else { Signal::SIGKILL };
            left = 0;
            for pid in strangers(&ours) {
                // Its number cannot be given to another process before we have waited for it.
                let _already_ended = kill(pid, signal);
                let gone = !matches!(waitpid(pid, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive));
                left += usize::from(!gone);
            }
            if left == 0 && strangers(&ours).is_empty() {
                return 0;
            }
            tokio::time::sleep(ROUND).await;
        }
        left
    }
}

fn strangers(ours: &[Pid]) -> Vec<Pid> {
    let me = getpid().as_raw();
    let Ok(processes) = procfs::process::all_processes() else { return Vec::new() };
    let children = processes.filter_map(|process| {
        // A process may end while it is looked at.
        let stat = process.ok()?.stat().ok()?;
        (stat.ppid == me).then(|| Pid::from_raw(stat.pid))
    });
    children.filter(|pid| !ours.contains(pid)).collect()
}
