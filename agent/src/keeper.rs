//! A tiny process that cleans up when the agent cannot: `medes-agent keeper`.
//!
//! It holds one end of a socket whose other end only the agent has. However the agent ends, the socket then closes;
//! the keeper kills every process below the node's control group, removes the groups and unmounts the run
//! directory. It is in a session and a control group of its own, so that what hits the agent does not hit it.
//!
//! It also holds a second descriptor of every userfaultfd. The last one that is closed turns missing pages into zeros; so
//! when the agent is gone, who touches one waits, until the keeper has killed it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    setsockopt, socketpair, sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::pager::Guard;
use crate::reaper::{ExitStatus, ExitWatch, Reaper};
use crate::sandbox::cgroup::{Branch, KEEPER_GROUP, kill_and_remove};

/// Largest order the keeper reads.
const ORDER_BYTES_MAX: usize = 256 << 10;
/// A word about a userfaultfd: what to do, and its number.
const WORD_BYTES: usize = 9;
const HOLD: u8 = b'+';
const LET_GO: u8 = b'-';
/// What it answers when it is ready.
const READY: &[u8] = b"ready\n";
/// How long it may take to get there.
const START_WAIT: Duration = Duration::from_secs(10);
/// How long it may take to say that it holds something.
const ANSWER_SECONDS: i64 = 2;

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
    line: Line,
}

/// The agent's end of the socket. Never closed by anybody but the kernel, when this process has ended: the keeper kills
/// the whole agent group, and an agent still busy with its farewell is in it.
#[derive(Debug)]
struct Line(Mutex<RawFd>);

impl Keeper {
    /// Starts the keeper and waits until it is on guard. Dropped half way, the keeper cleans up and ends.
    pub(crate) async fn start(
        reaper: &Reaper,
        program: &Path,
        order: &KeeperOrder,
    ) -> Result<Self, KeeperError> {
        let failed = |source| KeeperError::Spawn { source };
        let order = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| failed(errno.into()))?;
        setsockopt(&ours, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))
            .map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(program);
        command.arg("keeper").env_clear().current_dir("/").stdin(theirs).stdout(Stdio::piped());
        let (mut child, exit) = reaper.spawn(&mut command).map_err(failed)?;
        drop(command);
        let stdout = child.stdout.take().ok_or(KeeperError::NotReady)?;
        send(ours.as_raw_fd(), &order, &[]).map_err(failed)?;
        let stdout = pipe::Receiver::from_owned_fd(stdout.into()).map_err(failed)?;
        let mut answer = Vec::new();
        let mut stdout = stdout.take(READY.len() as u64);
        match tokio::time::timeout(START_WAIT, stdout.read_to_end(&mut answer)).await {
            Err(_elapsed) => Err(KeeperError::Late),
            Ok(Err(source)) => Err(failed(source)),
            Ok(Ok(_)) if answer == READY => Ok(Self { exit, line: Line(Mutex::new(ours.into_raw_fd())) }),
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

impl Guard for Keeper {
    /// Returns when the keeper has it.
    fn hold(&self, number: u64, uffd: OwnedFd) -> io::Result<()> {
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(*line, &word(HOLD, number), &[uffd.as_raw_fd()])?;
        loop {
            let mut answer = [0; WORD_BYTES];
            let read =
                recvmsg::<()>(*line, &mut [IoSliceMut::new(&mut answer)], None, MsgFlags::empty())?.bytes;
            match answer {
                _ if read < WORD_BYTES => return Err(io::ErrorKind::BrokenPipe.into()),
                answer if answer == word(HOLD, number) => return Ok(()),
                answer if answer == word(LET_GO, number) => return Err(io::ErrorKind::QuotaExceeded.into()),
                // To a question that was given up.
                _ => {}
            }
        }
    }

    fn let_go(&self, number: u64) {
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = send(*line, &word(LET_GO, number), &[]) {
            tracing::debug!(%error, "the keeper is gone, and so is what it held");
        }
    }
}

fn word(what: u8, number: u64) -> [u8; WORD_BYTES] {
    let mut word = [what; WORD_BYTES];
    word[1..].copy_from_slice(&number.to_ne_bytes());
    word
}

fn send(line: RawFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let rights = if descriptors.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(line, &[IoSlice::new(bytes)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
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
    let input = io::stdin().as_raw_fd();
    let mut order = vec![0; ORDER_BYTES_MAX];
    let mut parts = [IoSliceMut::new(&mut order)];
    let read = recvmsg::<()>(input, &mut parts, None, MsgFlags::empty()).context("read the order")?.bytes;
    let order: KeeperOrder = serde_json::from_slice(&order[..read]).context("understand the order")?;
    if let Ok((_soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where that is refused it holds fewer, and says so for each.
        let _refused = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    for branch in &order.branches {
        branch.child(KEEPER_GROUP).join().with_context(|| format!("join {}", branch.dir.display()))?;
    }
    let mut output = io::stdout().lock();
    output.write_all(READY).and_then(|()| output.flush()).context("say ready")?;
    let held = keep(input);
    let cleaned = clean_up(&order);
    // Only now: nobody is left who could come upon zeros.
    drop(held);
    cleaned
}

/// Holds what it is given until the agent's end of the socket closes.
fn keep(input: RawFd) -> BTreeMap<u64, RawFd> {
    let mut held = BTreeMap::new();
    let mut room = nix::cmsg_space!([RawFd; 1]);
    loop {
        let mut bytes = [0; WORD_BYTES];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg::<()>(input, &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(received) if received.bytes > 0 => received,
            Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) | Err(_) => return held,
        };
        let given = received.cmsgs().into_iter().flatten().find_map(|message| match message {
            ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
            _ => None,
        });
        let [what, number @ ..] = bytes;
        let number = u64::from_ne_bytes(number);
        let before = match (what, given) {
            (HOLD, Some(descriptor)) => {
                let before = held.insert(number, descriptor);
                // An agent that does not hear it parks nothing.
                let _gone = send(input, &word(HOLD, number), &[]);
                before
            }
            (HOLD, None) => {
                let _gone = send(input, &word(LET_GO, number), &[]);
                None
            }
            _ => held.remove(&number),
        };
        if let Some(descriptor) = before {
            // Ours alone, and open: there is nothing that could go wrong.
            let _closed = nix::unistd::close(descriptor);
        }
    }
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
