//! Which pages a running sandbox writes, seen from outside: asynchronous write protection and PAGEMAP_SCAN.
//!
//! A userfaultfd is made in the process ([`inject`]), taken over and closed there: the process holds nothing it could
//! misuse, and CRIU sees nothing it would refuse. A write to a protected page clears the protection in the kernel, at
//! the cost of one short fault; nobody is asked. [`Writes::take`] returns what was written since the last time and
//! protects it again. Ends with the memory it is about: after `exec` or a restore a new one has to be made.

mod areas;
mod inject;
mod uffd;

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::reaper::Reaper;

pub use inject::{InjectError, Stage};
use uffd::WriteProtection;

/// How long the helper may take altogether.
const INJECT_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 4096;
/// Ranges kept of one look; a sandbox that writes more scattered than this is not worth the memory.
const RANGES_MAX: usize = 1 << 18;
const PAGE_BYTES: u64 = 4096;

/// Why the writes of a process are not known.
#[derive(Debug, thiserror::Error)]
pub enum WritesError {
    /// No userfaultfd could be made in it.
    #[error("make a userfaultfd in process {pid}")]
    Inject {
        /// The process.
        pid: Pid,
        /// Why not.
        source: InjectError,
    },
    /// The helper that does it could not be started or understood.
    #[error("start the helper that makes a userfaultfd")]
    Helper(#[source] io::Error),
    /// The kernel has no asynchronous write protection (before Linux 6.7).
    #[error("ask for asynchronous write protection")]
    Api(#[source] io::Error),
    /// The memory this was about is gone: the process has ended, or is another program now.
    #[error("its memory is gone")]
    Gone,
    /// Its pages could not be looked through.
    #[error("look for written pages")]
    Scan(#[source] io::Error),
    /// Too many ranges.
    #[error("its writes are scattered over more than {RANGES_MAX} ranges")]
    TooScattered,
}

/// What `medes-agent inject` says.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The descriptor, held until standard input closes, and how long the process stood still.
    Made {
        fd: i32,
        stopped_us: u64,
    },
    Failed(InjectError),
}

/// Arguments of `medes-agent inject`.
#[derive(Debug, clap::Args)]
pub struct InjectArgs {
    /// The process to make a userfaultfd in
    pid: i32,
}

/// Life of the helper: makes the userfaultfd, holds it until its agent has taken it.
pub fn inject_main(arguments: &InjectArgs) -> ExitCode {
    let injected = inject::inject(Pid::from_raw(arguments.pid));
    let answer = match &injected {
        Ok(made) => {
            let stopped_us = u64::try_from(made.stopped.as_micros()).unwrap_or(u64::MAX);
            Answer::Made { fd: made.number(), stopped_us }
        }
        Err(error) => Answer::Failed(error.clone()),
    };
    let said = serde_json::to_writer(io::stdout().lock(), &answer).map_err(io::Error::from);
    // What the agent reads ends here; what follows is only its word that it has taken the descriptor.
    let said = said.and_then(|()| io::Write::write_all(&mut io::stdout(), b"\n"));
    let held = said.and_then(|()| io::stdin().read_to_end(&mut Vec::new()));
    if held.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Written ranges of addresses, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// The ranges, apart from each other, whole pages.
    pub ranges: Vec<Range<u64>>,
}

impl Written {
    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| (range.end - range.start) / PAGE_BYTES).sum()
    }

    /// Numbers (address / 4096) of the pages, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|range| range.start / PAGE_BYTES..range.end / PAGE_BYTES)
    }
}

/// Tracks the writes of one process. Dropping it ends the tracking; the process runs on at full speed.
#[derive(Debug)]
pub struct Writes {
    pid: Pid,
    protection: WriteProtection,
    pagemap: File,
    stopped: Duration,
}

impl Writes {
    /// Begins to track a process. The first [`Writes::take`] returns all its private pages and arms them.
    ///
    /// `program` is the agent's own. The process stands still for some hundred microseconds; system calls in progress
    /// are restarted, those that never are (`epoll_wait`, `nanosleep` with a signal handler) may return early, as
    /// after any stop.
    ///
    /// Dropped half way: the helper finishes and lets the process go.
    pub async fn begin(reaper: &Reaper, program: &Path, pid: Pid) -> Result<Self, WritesError> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|_gone| WritesError::Gone)?;
        let mut command = Command::new(program);
        command.arg("inject").arg(pid.to_string()).env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let (mut child, mut exit) = reaper.spawn(&mut command).map_err(WritesError::Helper)?;
        // Only when this closes the helper ends, with it its copy of the descriptor.
        let held = child.stdin.take();
        let missing = || WritesError::Helper(io::ErrorKind::BrokenPipe.into());
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stdout = pipe::Receiver::from_owned_fd(stdout.into()).map_err(WritesError::Helper)?;
        let answer = tokio::time::timeout(INJECT_MAX, answer(stdout)).await;
        let answer = answer.map_err(|_late| WritesError::Helper(io::ErrorKind::TimedOut.into()))?;
        match answer.map_err(WritesError::Helper)? {
            Answer::Failed(InjectError::Gone) => Err(WritesError::Gone),
            Answer::Failed(source) => Err(WritesError::Inject { pid, source }),
            Answer::Made { fd, stopped_us } => {
                let helper = i32::try_from(child.id()).map_err(|_large| missing())?;
                let fd = uffd::fd_of(Pid::from_raw(helper), fd).map_err(WritesError::Helper)?;
                drop(held);
                // So that from here on the protection is in our hands alone. If it will not end, it holds no more
                // than what ends with it.
                let _ended = tokio::time::timeout(INJECT_MAX, exit.wait()).await;
                let protection = WriteProtection::new(fd).map_err(WritesError::Api)?;
                let stopped = Duration::from_micros(stopped_us);
                Ok(Self { pid, protection, pagemap, stopped })
            }
        }
    }

    /// Whose writes.
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// How long the process stood still at the beginning.
    pub const fn stopped(&self) -> Duration {
        self.stopped
    }

    /// Private pages that were written since the last time, protected again from now on. Memory mapped since then
    /// counts as written. Blocks for milliseconds, a few per 100 MB that changed.
    ///
    /// # Errors
    /// After [`WritesError::Gone`] this is good for nothing any more.
    pub fn take(&self) -> Result<Written, WritesError> {
        let maps =
            fs::read_to_string(format!("/proc/{}/maps", self.pid)).map_err(|_gone| WritesError::Gone)?;
        let mut span: Option<Range<u64>> = None;
        for area in areas::tracked(&maps) {
            // All of them, each time: another mapping at the same place is not registered, and nobody tells.
            match self.protection.register(&area) {
                Ok(()) => span = Some(span.map_or(area.start, |span| span.start)..area.end),
                Err(error) if gone(&error) => return Err(WritesError::Gone),
                // Unmapped since the look, or memory of a kind that cannot be protected: the scan leaves it out.
                Err(error) => tracing::trace!(pid = %self.pid, ?area, %error, "not tracked"),
            }
        }
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let Some(span) = span else { return Err(WritesError::Gone) };
        let mut fits = true;
        uffd::take_written(&self.pagemap, span, |range| {
            match ranges.last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => ranges.push(range),
            }
            fits = ranges.len() <= RANGES_MAX;
            fits
        })
        .map_err(|error| if gone(&error) { WritesError::Gone } else { WritesError::Scan(error) })?;
        if fits { Ok(Written { ranges }) } else { Err(WritesError::TooScattered) }
    }
}

/// The memory of the process has gone, or is another program's by now.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOMEM))
}

async fn answer(stdout: pipe::Receiver) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    let mut stdout = stdout.take(ANSWER_BYTES_MAX);
    // One line; the helper keeps its end open.
    while !bytes.ends_with(b"\n") {
        if stdout.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(serde_json::from_slice(&bytes)?)
}
