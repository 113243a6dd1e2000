//! A tiny process that cleans up when the agent cannot: `medes-agent keeper`.
//!
//! It holds the read end of a pipe whose write end only the agent has. However the agent ends, the pipe then closes;
//! the keeper kills every process below the node's control group, removes the groups and unmounts the run
//! directory. It is in a session and a control group of its own, so that what hits the agent does not hit it.

use std::fs;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::reaper::{ExitStatus, ExitWatch, Reaper};
use crate::sandbox::cgroup::{Branch, KEEPER_GROUP, kill_and_remove};

/// Largest order the keeper reads.
const ORDER_BYTES_MAX: u64 = 256 << 10;
/// What it answers when it is ready.
const READY: &[u8] = b"ready\n";
/// How long it may take to get there.
const START_WAIT: Duration = Duration::from_secs(10);

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The program could not be started or spoken to.
    #[error("start the keeper")]
    Spawn {
        /// What the system said.
        source: io::Error,
    },
    /// It ended or said something else than that it is ready.
    #[error("the keeper did not get ready")]
    NotReady,
    /// It took too long.
    #[error("the keeper was not ready within {} s", START_WAIT.as_secs())]
    Late,
}

/// What the keeper has to clean up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperOrder {
    /// The node's control group.
    pub branches: Vec<Branch>,
    /// The node's run directory.
    pub run_dir: PathBuf,
}

/// The agent's handle. The keeper guards the process, not this value: dropping it changes nothing.
#[derive(Debug)]
pub struct Keeper {
    exit: ExitWatch,
}

impl Keeper {
    /// Starts the keeper and waits until it is on guard. Dropped half way, the keeper cleans up and ends.
    pub(crate) async fn start(
        reaper: &Reaper,
        program: &Path,
        order: &KeeperOrder,
    ) -> Result<Self, KeeperError> {
        let failed = |source| KeeperError::Spawn { source };
        let mut line = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        let mut command = Command::new(program);
        command.arg("keeper").env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let (mut child, exit) = reaper.spawn(&mut command).map_err(failed)?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(KeeperError::NotReady);
        };
        // Far below what a pipe holds, so this does not block.
        stdin.write_all(&line).map_err(failed)?;
        let stdout = pipe::Receiver::from_owned_fd(stdout.into()).map_err(failed)?;
        let mut answer = Vec::new();
        let mut stdout = stdout.take(READY.len() as u64);
        match tokio::time::timeout(START_WAIT, stdout.read_to_end(&mut answer)).await {
            Err(_elapsed) => Err(KeeperError::Late),
            Ok(Err(source)) => Err(failed(source)),
            Ok(Ok(_)) if answer == READY => {
                // Never closed by anybody but the kernel, when this process has ended: the keeper kills the whole
                // agent group, and an agent still busy with its farewell is in it.
                let _until_the_end = stdin.into_raw_fd();
                Ok(Self { exit })
            }
            Ok(Ok(_)) => Err(KeeperError::NotReady),
        }
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> Pid {
        self.exit.pid()
    }

    /// Waits for its end. Cancel-safe.
    pub(crate) async fn died(&self) -> ExitStatus {
        self.exit.clone().wait().await
    }
}

/// The keeper's own life.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The agent is gone, so this goes wherever its own errors went.
            eprintln!("medes-agent keeper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    use anyhow::Context;
    // A stop signal to the whole service must not end the keeper before it has cleaned up behind the agent.
    let mut kept_out = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
        kept_out.add(signal);
    }
    kept_out.thread_block().context("block signals")?;
    nix::unistd::setsid().context("start a session")?;
    let mut input = io::stdin().lock();
    let mut line = String::new();
    input.by_ref().take(ORDER_BYTES_MAX).read_line(&mut line).context("read the order")?;
    let order: KeeperOrder = serde_json::from_str(&line).context("understand the order")?;
    for branch in &order.branches {
        branch.child(KEEPER_GROUP).join().with_context(|| format!("join {}", branch.dir.display()))?;
    }
    let mut output = io::stdout().lock();
    output.write_all(READY).and_then(|()| output.flush()).context("say ready")?;
    // Nobody ever writes here again: this ends when the agent's end of the pipe closes.
    io::copy(&mut input, &mut io::sink()).context("watch the agent")?;
    clean_up(&order)
}

fn clean_up(order: &KeeperOrder) -> anyhow::Result<()> {
    let removed = kill_and_remove(&order.branches, Some(KEEPER_GROUP));
    // With it go all mounts below: what the sandboxes wrote is freed even if another process holds this namespace.
    // Not mounted means that the agent did not get that far or has done it itself.
    let _not_mounted = umount2(&order.run_dir, MntFlags::MNT_DETACH);
    let _not_empty = fs::remove_dir(&order.run_dir);
    removed?;
    for branch in &order.branches {
        // To where a process may be in any version of control groups; it is about to end.
        let top = Branch { dir: branch.top.clone(), ..branch.clone() };
        top.join()?;
    }
    kill_and_remove(&order.branches, None)?;
    Ok(())
}
