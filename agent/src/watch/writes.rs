//! Which pages a running sandbox writes, seen from outside: asynchronous write protection and PAGEMAP_SCAN.
//!
//! A userfaultfd is made in the process ([`crate::inject`]), taken over and closed there: the process holds nothing it could
//! misuse, and CRIU sees nothing it would refuse. A write to a protected page clears the protection in the kernel, at
//! the cost of one short fault; nobody is asked. [`Writes::take`] returns what was written since the last time and
//! protects it again. Ends with the memory it is about: after `exec` or a restore a new one has to be made.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;

use crate::inject::{self, ForWhat, OperatorError, Operators};
use crate::maps;
use crate::reaper::Reaper;
use crate::roads::blocking;
use crate::uffd::{self, Uffd};

pub use crate::inject::{InjectError, Stage};

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
    /// The helper that does it did not.
    #[error("have a userfaultfd made")]
    Helper(#[source] OperatorError),
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
    protection: Uffd,
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
        let operators = Operators::new(reaper.clone(), program.to_owned());
        let (fd, stopped) = blocking(move || {
            let mut operation = operators.begin()?;
            operation.hold(pid)?;
            let fd = inject::make_userfaultfd(&mut operation, pid, ForWhat::Tracking)?;
            Ok((fd, operation.let_go()?))
        })
        .await
        .map_err(|error| match error {
            OperatorError::Inject { source: InjectError::Gone, .. } => WritesError::Gone,
            OperatorError::Inject { pid, source } => WritesError::Inject { pid, source },
            other => WritesError::Helper(other),
        })?;
        let protection = Uffd::open(fd, uffd::TRACKING).map_err(WritesError::Api)?;
        Ok(Self { pid, protection, pagemap, stopped })
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
        let maps = maps::read(self.pid).map_err(|_gone| WritesError::Gone)?;
        let mut span: Option<Range<u64>> = None;
        for area in maps::areas(&maps).filter(maps::Area::is_tracked).map(|area| area.range()) {
            // All of them, each time: another mapping at the same place is not registered, and nobody tells.
            match self.protection.register(&area, uffd::PROTECT) {
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
