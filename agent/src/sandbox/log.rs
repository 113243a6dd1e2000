//! What a sandbox prints, kept in a bounded ring.
//!
//! Standard output and error are one pipe, whose both ends the agent holds. Restored processes come with a pipe of
//! their own ([`super::intake`]); the log goes on with that one.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sys;

/// Lines kept.
pub const LINES_MAX: usize = 2_000;
/// Bytes kept, over all lines.
pub const BYTES_MAX: usize = 256 << 10;
/// Longest line; the rest of a longer one becomes the next line.
pub const LINE_BYTES_MAX: usize = 8 << 10;
/// Bytes read before other tasks get their turn.
const TURN_BYTES: usize = 256 << 10;

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Counts from 0 in each sandbox; a gap means lines were dropped.
    pub number: u64,
    /// When the agent read it.
    pub at: SystemTime,
    /// The text; bytes that are no UTF-8 are replaced.
    pub text: String,
}

/// A part of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogTail {
    /// Oldest first.
    pub lines: Vec<LogLine>,
    /// Lines that have been dropped since the sandbox began, to stay within the bounds.
    pub dropped: u64,
}

impl std::fmt::Display for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, line) in self.lines.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&line.text)?;
        }
        Ok(())
    }
}

/// The bounded ring itself: bytes in, lines out.
#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    dropped: u64,
    next: u64,
    partial: Vec<u8>,
}

impl Ring {
    fn push(&mut self, mut bytes: &[u8], at: SystemTime) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.partial.len();
            let window = &bytes[..room.min(bytes.len())];
            let newline = window.iter().position(|&byte| byte == b'\n');
            let taken = newline.unwrap_or(window.len());
            self.partial.extend_from_slice(&window[..taken]);
            bytes = &bytes[taken + usize::from(newline.is_some())..];
            if newline.is_some() || self.partial.len() == LINE_BYTES_MAX {
                self.end_line(at);
            }
        }
    }

    fn end_line(&mut self, at: SystemTime) {
        let text = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        self.bytes += text.len();
        self.lines.push_back(LogLine { number: self.next, at, text });
        self.next += 1;
        while self.lines.len() > LINES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.text.len();
            self.dropped += 1;
        }
    }

    fn since(&self, number: u64, lines_max: usize) -> LogTail {
        let lines = self.lines.iter().filter(|line| line.number >= number).take(lines_max).cloned().collect();
        LogTail { lines, dropped: self.dropped }
    }

    fn tail(&self, lines_max: usize, at: SystemTime) -> LogTail {
        let skip = self.lines.len().saturating_sub(lines_max);
        let mut lines: Vec<LogLine> = self.lines.iter().skip(skip).cloned().collect();
        if !self.partial.is_empty() {
            // The last words of a crashed program often lack the newline.
            let text = String::from_utf8_lossy(&self.partial).into_owned();
            lines.push(LogLine { number: self.next, at, text });
        }
        let skip = lines.len().saturating_sub(lines_max);
        LogTail { lines: lines.split_off(skip), dropped: self.dropped }
    }
}

/// The two ends of an output pipe.
#[derive(Debug)]
pub(crate) struct Pipe {
    pub(crate) source: OwnedFd,
    pub(crate) sink: OwnedFd,
}

impl Pipe {
    pub(crate) fn new() -> io::Result<Self> {
        let (source, sink) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        // Only our end: a function that finds its output pipe full must wait, not fail.
        fcntl(&source, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Self { source, sink })
    }

    /// A program that opens its output by name (`/dev/stdout`) needs the right to.
    pub(crate) fn give_to(&self, uid: u32, gid: u32) -> io::Result<()> {
        Ok(fchown(&self.sink, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
    }

    /// Another descriptor of the end that processes write to.
    pub(crate) fn sink(&self) -> io::Result<OwnedFd> {
        self.sink.try_clone()
    }
}

struct Shared {
    ring: Ring,
    source: std::fs::File,
    /// What processes write to. Held so that the pipe never ends while the housing exists.
    sink: Arc<OwnedFd>,
    /// Ends the reader of this pipe.
    reading: CancellationToken,
}

/// The log of one sandbox. Clones share it.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Mutex<Shared>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

impl Log {
    /// The log of what comes through this pipe.
    pub(crate) fn of(pipe: Pipe, tasks: &TaskTracker, stop: CancellationToken) -> io::Result<Self> {
        let Pipe { source, sink } = pipe;
        let reading = stop.child_token();
        let ready = sys::wait_readable(source.try_clone()?)?;
        let source = std::fs::File::from(source);
        let shared = Shared { ring: Ring::default(), source, sink: Arc::new(sink), reading: reading.clone() };
        let log = Self { shared: Arc::new(Mutex::new(shared)), tasks: tasks.clone(), stop };
        log.read(ready, reading);
        Ok(log)
    }

    /// Goes on with another pipe: the sandbox's processes are new ones. What the old pipe still holds is kept.
    pub(crate) fn attach(&self, pipe: Pipe) -> io::Result<()> {
        let Pipe { source, sink } = pipe;
        let reading = self.stop.child_token();
        let ready = sys::wait_readable(source.try_clone()?)?;
        // The old processes are gone: a pipe holds no more than one turn.
        self.pump();
        {
            let mut shared = self.lock();
            shared.reading.cancel();
            shared.source = std::fs::File::from(source);
            shared.sink = Arc::new(sink);
            shared.reading = reading.clone();
        }
        self.read(ready, reading);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, ready: tokio::io::unix::AsyncFd<OwnedFd>, stop: CancellationToken) {
        let reader = self.clone();
        self.tasks.spawn(async move {
            loop {
                let mut guard = tokio::select! {
                    ready = ready.readable() => match ready {
                        Ok(guard) => guard,
                        Err(_runtime_stops) => return,
                    },
                    () = stop.cancelled() => return,
                };
                if reader.pump() {
                    tokio::task::yield_now().await;
                } else {
                    guard.clear_ready();
                }
            }
        });
    }

    /// Reads what is in the pipe now; true when the turn ended before the pipe was empty.
    fn pump(&self) -> bool {
        let mut shared = self.lock();
        let mut buffer = [0; 16 << 10];
        let mut turn = 0;
        while turn < TURN_BYTES {
            match shared.source.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => {
                    shared.ring.push(&buffer[..count], SystemTime::now());
                    turn += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_would_block) => return false,
            }
        }
        true
    }

    /// The last lines, including what was written up to now, ended by a newline or not.
    pub fn tail(&self, lines_max: usize) -> LogTail {
        self.pump();
        let shared = self.lock();
        shared.ring.tail(lines_max, SystemTime::now())
    }

    /// Whole lines from `number` on, for following.
    pub fn since(&self, number: u64, lines_max: usize) -> LogTail {
        self.pump();
        let shared = self.lock();
        shared.ring.since(number, lines_max)
    }

    /// The end that processes write to.
    pub(crate) fn sink(&self) -> Arc<OwnedFd> {
        self.lock().sink.clone()
    }

    /// Further descriptors of both ends of its pipe.
    pub(crate) fn pipe(&self) -> io::Result<Pipe> {
        let shared = self.lock();
        Ok(Pipe { source: shared.source.try_clone()?.into(), sink: shared.sink.try_clone()? })
    }

    /// The pipe as `/proc/PID/fd` and CRIU's images name it.
    pub(crate) fn pipe_name(&self) -> io::Result<String> {
        let inode = nix::sys::stat::fstat(self.sink().as_fd())?.st_ino;
        Ok(format!("pipe:[{inode}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(tail: &LogTail) -> Vec<&str> {
        tail.lines.iter().map(|line| line.text.as_str()).collect()
    }

    #[test]
    fn lines_survive_being_cut_anywhere() {
        let text = b"one\n\ntwo \xff\nrest";
        for cut in 0..text.len() {
            let mut ring = Ring::default();
            ring.push(&text[..cut], SystemTime::UNIX_EPOCH);
            ring.push(&text[cut..], SystemTime::UNIX_EPOCH);
            assert_eq!(
                texts(&ring.tail(10, SystemTime::UNIX_EPOCH)),
                ["one", "", "two \u{fffd}", "rest"],
                "{cut}"
            );
            assert_eq!(texts(&ring.since(0, 10)), ["one", "", "two \u{fffd}"], "{cut}");
        }
    }

    #[test]
    fn both_bounds_hold_and_what_was_dropped_is_counted() {
        let mut ring = Ring::default();
        for number in 0..LINES_MAX + 5 {
            ring.push(format!("{number}\n").as_bytes(), SystemTime::UNIX_EPOCH);
        }
        assert_eq!((ring.lines.len(), ring.dropped), (LINES_MAX, 5));
        assert_eq!(ring.since(0, 1).lines.first().map(|line| line.number), Some(5));
        for _ in 0..100 {
            ring.push(&vec![b'x'; LINE_BYTES_MAX], SystemTime::UNIX_EPOCH);
        }
        assert!(ring.bytes <= BYTES_MAX);
        assert_eq!(ring.bytes, ring.lines.iter().map(|line| line.text.len()).sum::<usize>());
        assert_eq!(ring.dropped + ring.lines.len() as u64, ring.next);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let mut ring = Ring::default();
        ring.push(&vec![b'x'; LINE_BYTES_MAX * 2 + 1], SystemTime::UNIX_EPOCH);
        assert_eq!(ring.lines.len(), 2);
        assert_eq!(ring.partial.len(), 1);
    }
}
