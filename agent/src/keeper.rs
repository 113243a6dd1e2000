//! A tiny process that cleans up when the agent cannot: `medes-agent keeper`.
//!
//! It holds one end of a socket whose other end only the agent has. However the agent ends, the socket then closes;
//! the keeper kills every process below the node's control group, removes the groups and unmounts the run
//! directory. It is in a session and a control group of its own, so that what hits the agent does not hit it.
//!
//! It also holds a second descriptor of every userfaultfd. The last one that is closed turns missing pages into zeros; so
//! when the agent is gone, who touches one waits, until the keeper has killed it.
//!
//! And it holds what the agent leaves to the next one on its node ([`Left`]): what rests. For a while after the agent's
//! end it waits for that one (`takeover`).

mod life;
mod line;
mod takeover;

pub use life::main;
pub(crate) use line::{FILES_MAX, Key};
pub(crate) use takeover::{Before, Left, receive};

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use line::{Word, receive as answer, send};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::ReceiveTimeout};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::pager::Guard;
use crate::reaper::{ExitStatus, ExitWatch, Reaper};
use crate::sandbox::claim::Place;

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
    #[error("start the keeper, {program}")]
    Spawn {
        /// Which program.
        program: PathBuf,
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
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeeperOrder {
    /// Where the node is.
    pub(crate) place: Place,
    /// Its sandboxes' folders, by their names.
    pub(crate) sandboxes: PathBuf,
    /// The node's name.
    pub(crate) node: String,
    /// How long after the agent's end what it left waits for the next one; zero: nothing is left.
    pub(crate) takeover: Duration,
    /// Whether the node's groups are in a scope of systemd, which must not lose sight of the keeper.
    pub(crate) in_scope: bool,
}

/// The agent's handle. The keeper guards the process, not this value: dropping it changes nothing.
#[derive(Debug)]
pub struct Keeper {
    exit: ExitWatch,
    line: Line,
    leaves: AtomicBool,
}

/// The agent's end of the socket. Never closed by anybody but the kernel, when this process has ended: the keeper kills
/// the whole agent group, and an agent still busy with its farewell is in it.
#[derive(Debug)]
struct Line(Mutex<RawFd>);

/// A keeper that does not know yet what to do. Dropped, it ends.
#[derive(Debug)]
pub(crate) struct Starting {
    program: PathBuf,
    exit: ExitWatch,
    line: OwnedFd,
    stdout: ChildStdout,
}

impl Starting {
    /// Starts the keeper. `command` is the agent's own program, or starts it in its own process.
    pub(crate) fn new(reaper: &Reaper, mut command: Command) -> Result<Self, KeeperError> {
        let program = PathBuf::from(command.get_program());
        let failed = |source| KeeperError::Spawn { program: program.clone(), source };
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(|errno| failed(errno.into()))?;
        setsockopt(&ours, ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS))
            .map_err(|errno| failed(errno.into()))?;
        command.arg("keeper").env_clear().current_dir("/").stdin(theirs).stdout(Stdio::piped());
        let (mut child, exit) = reaper.spawn(&mut command).map_err(failed)?;
        drop(command);
        let stdout = child.stdout.take().ok_or(KeeperError::NotReady)?;
        Ok(Self { program, exit, line: ours, stdout })
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> Pid {
        self.exit.pid()
    }

    /// Tells it what to do and waits until it is on guard. Dropped half way, the keeper cleans up and ends.
    pub(crate) async fn on_guard(self, order: &KeeperOrder) -> Result<Keeper, KeeperError> {
        let Self { program, exit, line, stdout } = self;
        let failed = |source| KeeperError::Spawn { program: program.clone(), source };
        let leaves = !order.takeover.is_zero();
        let order = serde_json::to_vec(order).map_err(|error| failed(error.into()))?;
        line::send_bytes(line.as_raw_fd(), &order, &[]).map_err(failed)?;
        let stdout = pipe::Receiver::from_owned_fd(stdout.into()).map_err(failed)?;
        let mut answer = Vec::new();
        let mut stdout = stdout.take(READY.len() as u64);
        match tokio::time::timeout(START_WAIT, stdout.read_to_end(&mut answer)).await {
            Err(_elapsed) => Err(KeeperError::Late),
            Ok(Err(source)) => Err(failed(source)),
            Ok(Ok(_)) if answer == READY => {
                let line = Line(Mutex::new(line.into_raw_fd()));
                Ok(Keeper { exit, line, leaves: leaves.into() })
            }
            Ok(Ok(_)) => Err(KeeperError::NotReady),
        }
    }
}

impl Keeper {
    /// Its process number.
    pub(crate) fn pid(&self) -> Pid {
        self.exit.pid()
    }

    /// Waits for its end. Cancel-safe.
    pub(crate) async fn died(&self) -> ExitStatus {
        self.exit.clone().wait().await
    }

    /// Whether anything is left to the next agent at all.
    pub(crate) fn leaves(&self) -> bool {
        self.leaves.load(Ordering::Acquire)
    }

    /// From now on nothing is left to anybody, and what was left is forgotten: there is to be no next agent.
    pub(crate) fn leave_nothing(&self) {
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leaves.swap(false, Ordering::AcqRel) {
            say(*line, Word::End(0), &[]);
        }
    }

    /// From now on the next agent is to have this, in place of what had the same key.
    pub(crate) fn leave(&self, key: Key, files: &[BorrowedFd<'_>]) {
        self.tell(Word::Leave(key), files);
    }

    /// From now on the next agent is not to have this: who hears that this has returned may do with it what must happen only once.
    pub(crate) fn take_back(&self, key: Key) {
        self.tell(Word::TakeBack(key), &[]);
    }

    /// What is told is heard in this order, also after this agent's end.
    fn tell(&self, word: Word, files: &[BorrowedFd<'_>]) {
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leaves() {
            say(*line, word, files);
        }
    }
}

/// Something that is not answered.
fn say(line: RawFd, word: Word, files: &[BorrowedFd<'_>]) {
    if let Err(error) = send(line, word, files) {
        tracing::debug!(%error, "the keeper is gone, and so is what it held");
    }
}

impl Guard for Keeper {
    /// Returns when the keeper has it.
    fn hold(&self, number: u64, uffd: OwnedFd) -> io::Result<()> {
        use std::os::fd::AsFd as _;
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(*line, Word::Hold(number), &[uffd.as_fd()])?;
        loop {
            match answer(*line)?.map(|heard| heard.word) {
                None => return Err(io::ErrorKind::BrokenPipe.into()),
                Some(Word::Hold(held)) if held == number => return Ok(()),
                Some(Word::LetGo(refused)) if refused == number => {
                    return Err(io::ErrorKind::QuotaExceeded.into());
                }
                // To a question that was given up.
                Some(_) => {}
            }
        }
    }

    fn let_go(&self, number: u64) {
        let line = self.line.0.lock().unwrap_or_else(PoisonError::into_inner);
        say(*line, Word::LetGo(number), &[]);
    }
}
