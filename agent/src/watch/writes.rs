//! Which pages a running sandbox writes, and which become present, seen from outside.
//!
//! Two ways ([`Way`]). The better one is asynchronous write protection and PAGEMAP_SCAN: a userfaultfd is made in the process
//! ([`crate::inject`]), taken over and closed there; the process holds nothing it could misuse, and CRIU sees nothing it
//! would refuse. A write to a protected page clears the protection in the kernel, at the cost of one short fault; nobody is
//! asked. Where a kernel lacks that, its soft-dirty bits tell ([`super::soft_dirty`]).
//!
//! [`Writes::take`] returns what happened since the last time and arms it again. Ends with the memory it is about: after `exec`
//! or a restore a new one has to be made.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::Pid;

use super::soft_dirty;
use crate::inject::{self, ForWhat, OperatorError, Operators};
use crate::maps;
use crate::pager::{Seen, Window};
use crate::reaper::Reaper;
use crate::roads::blocking;
use crate::uffd::{self, Uffd};

pub use crate::inject::{InjectError, Stage};

/// Ranges kept of one look; a sandbox that writes more scattered than this is not worth the memory.
const RANGES_MAX: usize = 1 << 18;
const PAGE_BYTES: u64 = 4096;

/// How writes are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Asynchronous write protection by a userfaultfd, and PAGEMAP_SCAN.
    Protection,
    /// Soft-dirty bits.
    SoftDirty,
}

impl Way {
    /// The best one this kernel has. Looks only.
    pub fn find() -> Option<Self> {
        let protects = uffd::features().map(|features| features & uffd::TRACKING == uffd::TRACKING);
        let protects = protects.unwrap_or(false) && uffd::has_pagemap_scan().is_ok();
        Self::choose(protects, || soft_dirty::is_known().unwrap_or(false))
    }

    fn choose(protects: bool, soft_dirty: impl FnOnce() -> bool) -> Option<Self> {
        if protects { Some(Self::Protection) } else { soft_dirty().then_some(Self::SoftDirty) }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Protection => "write protection",
            Self::SoftDirty => "soft-dirty bits",
        })
    }
}

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
    #[error("its pages are scattered over more than {RANGES_MAX} ranges")]
    TooScattered,
}

/// What became of private pages since the last look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Those that were written: ranges of addresses in order, apart from each other, whole pages.
    pub ranges: Vec<Range<u64>>,
    /// Those that were not there before, written or only read; in the same form.
    pub appeared: Vec<Range<u64>>,
}

impl Written {
    /// Number of written pages.
    pub fn pages(&self) -> u64 {
        self.ranges.iter().map(|range| (range.end - range.start) / PAGE_BYTES).sum()
    }

    /// Numbers (address / 4096) of the written pages, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        numbers(&self.ranges)
    }

    /// Numbers of the pages that were not there before, in order.
    pub fn appeared(&self) -> impl Iterator<Item = u64> {
        numbers(&self.appeared)
    }
}

fn numbers(ranges: &[Range<u64>]) -> impl Iterator<Item = u64> {
    ranges.iter().flat_map(|range| range.start / PAGE_BYTES..range.end / PAGE_BYTES)
}

/// Tracks the writes of one process. Dropping it ends the tracking; the process runs on at full speed.
#[derive(Debug)]
pub struct Writes {
    pid: Pid,
    pagemap: File,
    by: By,
    /// Private pages that were there at the last look.
    there: Mutex<Vec<Range<u64>>>,
}

#[derive(Debug)]
enum By {
    Protection {
        uffd: Uffd,
        stopped: Duration,
    },
    SoftDirty {
        clear_refs: PathBuf,
    },
    /// What serves its missing pages is on all of them.
    Pager(Window),
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
        let uffd = Uffd::open(fd, uffd::TRACKING).map_err(WritesError::Api)?;
        Ok(Self { pid, pagemap, by: By::Protection { uffd, stopped }, there: Mutex::default() })
    }

    /// The same by soft-dirty bits. The process does not stand still for it.
    pub fn begin_by_bits(pid: Pid) -> Result<Self, WritesError> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|_gone| WritesError::Gone)?;
        let clear_refs = PathBuf::from(format!("/proc/{pid}/clear_refs"));
        Ok(Self { pid, pagemap, by: By::SoftDirty { clear_refs }, there: Mutex::default() })
    }

    /// The same of a process whose missing pages are served: its service tells. What became present is what it had to wait for. Memory that
    /// it has mapped since the service began is not known.
    pub fn begin_by_pager(pid: Pid, window: Window) -> Result<Self, WritesError> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap")).map_err(|_gone| WritesError::Gone)?;
        Ok(Self { pid, pagemap, by: By::Pager(window), there: Mutex::default() })
    }

    /// Whose writes.
    pub const fn pid(&self) -> Pid {
        self.pid
    }

    /// How long the process stood still at the beginning.
    pub const fn stopped(&self) -> Duration {
        match self.by {
            By::Protection { stopped, .. } => stopped,
            By::SoftDirty { .. } | By::Pager(_) => Duration::ZERO,
        }
    }

    /// Private pages that were written since the last time, armed again from now on, and those that have become present. Memory
    /// mapped since then counts as written. Blocks for milliseconds, a few per 100 MB that changed.
    ///
    /// # Errors
    /// After [`WritesError::Gone`] this is good for nothing any more.
    pub fn take(&self) -> Result<Written, WritesError> {
        let maps = maps::read(self.pid).map_err(|_gone| WritesError::Gone)?;
        let areas: Vec<Range<u64>> =
            maps::areas(&maps).filter(maps::Area::is_tracked).map(|area| area.range()).collect();
        let (there, ranges) = match &self.by {
            By::Pager(window) => {
                let span = areas.first().zip(areas.last()).map(|(first, last)| first.start..last.end);
                let Seen { written, missed } =
                    window.take(&self.pagemap, span.ok_or(WritesError::Gone)?).map_err(failed)?;
                let join = |ranges: Vec<Range<u64>>| {
                    let mut joined = Looked::new();
                    ranges.into_iter().for_each(|range| add(&mut joined, range));
                    joined
                };
                return few(Written { ranges: join(written), appeared: join(missed) });
            }
            By::Protection { uffd, .. } => self.take_protected(uffd, &areas)?,
            By::SoftDirty { clear_refs } => {
                if areas.is_empty() {
                    return Err(WritesError::Gone);
                }
                let looked = soft_dirty::look(&self.pagemap, &areas);
                let looked = looked.and_then(|looked| soft_dirty::forget(clear_refs).map(|()| looked));
                looked.map_err(failed)?
            }
        };
        if there.len() > RANGES_MAX {
            return Err(WritesError::TooScattered);
        }
        let mut before = self.there.lock().unwrap_or_else(PoisonError::into_inner);
        let appeared = without(&there, &before);
        *before = there;
        few(Written { ranges, appeared })
    }

    /// Pages that are there, and those that were written; protects them again.
    fn take_protected(&self, uffd: &Uffd, areas: &[Range<u64>]) -> Result<(Looked, Looked), WritesError> {
        let mut span: Option<Range<u64>> = None;
        for area in areas {
            // All of them, each time: another mapping at the same place is not registered, and nobody tells.
            match uffd.register(area, uffd::PROTECT) {
                Ok(()) => span = Some(span.map_or(area.start, |span| span.start)..area.end),
                Err(error) if gone(&error) => return Err(WritesError::Gone),
                // Unmapped since the look, or memory of a kind that cannot be protected: the scan leaves it out.
                Err(error) => tracing::trace!(pid = %self.pid, ?area, %error, "not tracked"),
            }
        }
        let Some(span) = span else { return Err(WritesError::Gone) };
        let (mut written, mut there) = (Looked::new(), Looked::new());
        let scanned = uffd::take_written(&self.pagemap, span.clone(), |range| {
            add(&mut written, range);
            written.len() <= RANGES_MAX
        });
        // Those that are only read are there too, without being written.
        let present = scanned.and_then(|()| {
            uffd::present(&self.pagemap, span, |range, _categories| {
                if there.len() <= RANGES_MAX {
                    add(&mut there, range);
                }
            })
        });
        present.map_err(failed)?;
        Ok((there, written))
    }
}

fn few(written: Written) -> Result<Written, WritesError> {
    match written.ranges.len().max(written.appeared.len()) {
        ..=RANGES_MAX => Ok(written),
        _ => Err(WritesError::TooScattered),
    }
}

/// Ranges in order.
type Looked = Vec<Range<u64>>;

fn add(ranges: &mut Looked, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// What of `ranges` is not in `others`; both in order.
fn without(ranges: &[Range<u64>], others: &[Range<u64>]) -> Looked {
    let mut left = Looked::new();
    let mut others = others.iter().peekable();
    for range in ranges {
        let mut from = range.start;
        while let Some(other) = others.peek().filter(|other| other.start < range.end) {
            if from < other.start {
                left.push(from..other.start);
            }
            from = from.max(other.end);
            if other.end > range.end {
                break;
            }
            others.next();
        }
        if from < range.end {
            left.push(from..range.end);
        }
    }
    left
}

fn failed(error: io::Error) -> WritesError {
    if gone(&error) { WritesError::Gone } else { WritesError::Scan(error) }
}

/// The memory of the process has gone, or is another program's by now.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOMEM | libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    #[test]
    fn protection_goes_before_soft_dirty_bits_and_both_before_nothing() {
        assert_eq!(Way::choose(true, || unreachable!("not even asked for")), Some(Way::Protection));
        assert_eq!(Way::choose(false, || true), Some(Way::SoftDirty));
        assert_eq!(Way::choose(false, || false), None);
    }

    proptest! {
        #[test]
        fn a_difference_of_ranges_is_that_of_their_pages(a in btree_set(0_u64..40, 0..30), b in btree_set(0_u64..40, 0..30)) {
            let ranges = |pages: &std::collections::BTreeSet<u64>| {
                let mut ranges = Looked::new();
                pages.iter().for_each(|page| add(&mut ranges, page * PAGE_BYTES..(page + 1) * PAGE_BYTES));
                ranges
            };
            let left: Vec<u64> = numbers(&without(&ranges(&a), &ranges(&b))).collect();
            prop_assert_eq!(left, a.difference(&b).copied().collect::<Vec<_>>());
        }
    }
}
