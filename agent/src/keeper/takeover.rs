//! From a keeper whose agent has ended to the next agent on the node, over a socket that is named after the node.
//!
//! ```text
//! next agent:  connect                      they are mine                        they are served
//! keeper:               each thing · how many               the name is yours                     (ends)
//! ```
//!
//! The keeper has them until the next agent says that they are its own, and nobody has them twice: it says so before it does anything with them,
//! and not before it knows that it can start, so that one that cannot loses nothing. The keeper holds what it must not let go of until they are served, which is when another keeper holds it too; should the next agent end
//! before that, it ends the parked ones. Both ends look who is at the other one: somebody else may take the name.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, setsockopt,
    socket,
    sockopt::{PeerCredentials, ReceiveTimeout, SendTimeout},
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::line::{Heard, Key, Word, receive as next_word, send};
use crate::sandbox::sys::accept;

/// How long one end waits for the other: longer than a keeper takes to clean up.
const ANSWER_SECONDS: i64 = 20;

/// How long the next agent may take with all of it.
const SERVED_SECONDS: i64 = 120;

/// Most things that are handed over: more are no node's.
const LEFT_MAX: usize = 1 << 16;

/// One thing that an agent left.
#[derive(Debug)]
pub(crate) struct Left {
    /// What it is.
    pub(crate) key: Key,
    /// What it is made of; the first one says what else it is.
    pub(crate) files: Vec<OwnedFd>,
}

/// What became of what was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody came for it.
    Unwanted,
    /// The next agent has it.
    Served,
    /// The next agent had it, and ended before all of it was served.
    Dropped,
}

/// The place where the next agent comes.
#[derive(Debug)]
pub(super) struct Heir {
    door: OwnedFd,
    /// Signals that say that nobody will come.
    told: SignalFd,
    /// Whether a signal that came while the agent was there was meant for this process.
    told_alone: bool,
}

impl Heir {
    /// From now on the next agent on this node can come; it waits. SIGTERM and SIGINT must be blocked. Of those that come before the agent's end only
    /// one that is `told_alone` counts: others were meant for the agent.
    pub(super) fn expect(node: &str, told_alone: bool) -> io::Result<Self> {
        let door = new_socket()?;
        bind(door.as_raw_fd(), &address(node)?)?;
        listen(&door, Backlog::new(1)?)?;
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        let told = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { door, told, told_alone })
    }

    /// Waits for it and gives it all of these. Returns after so long even if nobody came, and when this process is told to end.
    pub(super) fn hand_over(self, left: &[Left], wait: Duration) -> io::Result<Fate> {
        // Who told the agent to end may have told this process too, and did not mean this.
        while !self.told_alone && self.told.read_signal()?.is_some() {}
        let until = Instant::now() + wait;
        while let Some(rest) = until.checked_duration_since(Instant::now()) {
            let timeout = PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX);
            let either = [self.door.as_fd(), self.told.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut either.clone(), timeout) {
                Ok(0) | Err(Errno::EINTR) => continue,
                ready => ready?,
            };
            if self.told.read_signal()?.is_some() {
                break;
            }
            match accept(&self.door).and_then(|visitor| give(visitor, left)) {
                Ok(visitor) => {
                    // In this order: who hears of it can take the name.
                    drop(self);
                    return Ok(served(&visitor, left.len() as u64));
                }
                // Whoever that was, the next agent may still come.
                Err(error) => eprintln!("medes-agent keeper: hand over to the next agent: {error}"),
            }
        }
        Ok(Fate::Unwanted)
    }
}

fn give(visitor: OwnedFd, left: &[Left]) -> io::Result<OwnedFd> {
    is_one_of_us(&visitor)?;
    have_deadlines(&visitor, ANSWER_SECONDS)?;
    let line = visitor.as_raw_fd();
    for Left { key, files } in left {
        let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(line, Word::Leave(*key), &files)?;
    }
    let all = Word::End(left.len() as u64);
    send(line, all, &[])?;
    match next_word(line)? {
        Some(Heard { word, .. }) if word == all => Ok(visitor),
        Some(_) => Err(io::ErrorKind::InvalidData.into()),
        None => Err(io::Error::new(io::ErrorKind::ConnectionReset, "it ended before it had begun")),
    }
}

/// Waits until who has all of it serves it.
fn served(visitor: &OwnedFd, count: u64) -> Fate {
    let (line, all) = (visitor.as_raw_fd(), Word::End(count));
    let told = have_deadlines(visitor, SERVED_SECONDS).and_then(|()| send(line, all, &[]));
    match told.and_then(|()| next_word(line)) {
        Ok(Some(Heard { word, .. })) if word == all => Fate::Served,
        _ => Fate::Dropped,
    }
}

/// The keeper of the agent before, until all that it handed over is served.
#[derive(Debug)]
pub(crate) struct Before {
    line: OwnedFd,
    count: u64,
}

impl Before {
    /// All that it has given is this agent's from now on, and its name is free. Blocks until it has heard that.
    pub(crate) fn begin(&self) -> io::Result<()> {
        let (line, all) = (self.line.as_raw_fd(), Word::End(self.count));
        send(line, all, &[])?;
        match next_word(line)? {
            Some(Heard { word, .. }) if word == all => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// All of it is served: it can end.
    pub(crate) fn let_go(self) {
        if let Err(error) = send(self.line.as_raw_fd(), Word::End(self.count), &[]) {
            tracing::warn!(%error, "the keeper of the agent before did not wait");
        }
    }
}

/// What the agent before left on this node, and who waits until it is served; nothing if nobody is there. Blocks until its keeper has
/// cleaned up.
pub(crate) fn receive(node: &str) -> io::Result<(Vec<Left>, Option<Before>)> {
    let keeper = new_socket()?;
    have_deadlines(&keeper, ANSWER_SECONDS)?;
    match connect(keeper.as_raw_fd(), &address(node)?) {
        Err(Errno::ECONNREFUSED) => return Ok((Vec::new(), None)),
        connected => connected?,
    }
    is_one_of_us(&keeper)?;
    let line = keeper.as_raw_fd();
    let mut left = Vec::new();
    loop {
        let heard = match next_word(line) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && left.is_empty() => None,
            heard => heard?,
        };
        match heard {
            Some(Heard { word: Word::Leave(key), files }) if left.len() < LEFT_MAX => {
                left.push(Left { key, files });
            }
            Some(Heard { word: Word::End(count), .. }) if count == left.len() as u64 => {
                return Ok((left, Some(Before { line: keeper, count })));
            }
            // It had nothing to give, and has ended.
            None if left.is_empty() => return Ok((left, None)),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn new_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

fn address(node: &str) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new_abstract(format!("medes-keeper-{node}").as_bytes())?)
}

/// Only agents and keepers of this user.
fn is_one_of_us(other: &OwnedFd) -> io::Result<()> {
    let user = getsockopt(other, PeerCredentials)?.uid();
    if user == nix::unistd::geteuid().as_raw() { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn have_deadlines(line: &OwnedFd, seconds: i64) -> io::Result<()> {
    let answer = TimeVal::seconds(seconds);
    setsockopt(line, ReceiveTimeout, &answer)?;
    Ok(setsockopt(line, SendTimeout, &answer)?)
}
