//! Pages of private file mappings that the process has changed.
//!
//! The kernel lets no page of a file mapping be missing. So where the process has pages of its own in one (the data of a program and
//! of its libraries, their tables of addresses), they are stored with what lies between them, and when memory is given up
//! memory without a file takes the place of that part of the mapping, with the same rights. For the program nothing
//! changes but the name in `/proc/PID/maps`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::unistd::Pid;

use crate::inject::{Operation, OperatorError, Stage};
use crate::maps::{self, Area, FilePart};
use crate::uffd;

const PAGE: u64 = 4096;

/// Pages of the file between two changed ones that go with them: each range apart is one more mapping.
const BETWEEN_MAX: u64 = 8 * PAGE;

/// Ranges taken of one process: it may have some 65,000 mappings.
const RANGES_MAX: usize = 4096;

/// Part of a file mapping whose place memory without a file can take.
#[derive(Debug)]
pub(super) struct Changed {
    /// What it is.
    pub(super) part: FilePart,
    protection: u64,
}

impl Changed {
    /// Its addresses.
    pub(super) fn range(&self) -> Range<u64> {
        self.part.range.clone()
    }

    /// Has memory without a file, of zeros, take its place. False: it stays what it is.
    pub(super) fn take(&self, pid: Pid, operation: &mut Operation) -> Result<bool, OperatorError> {
        let Range { start, end } = self.part.range;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let map = [start, end - start, self.protection, u64::from(flags.cast_unsigned()), u64::MAX, 0];
        let mapped = operation.try_call(pid, libc::SYS_mmap, &map, Stage::Call)?;
        Ok(u64::try_from(mapped) == Ok(start))
    }
}

/// Where a process that stands still has changed pages of files: in all mappings, or in those that it can change now. Locked ones are
/// left alone.
pub(super) fn changed(
    (memory, pagemap): (&File, &File),
    maps: &str,
    locked: &[Range<u64>],
    all: bool,
) -> io::Result<Vec<Changed>> {
    let mut found = Vec::new();
    let areas = maps::areas(maps).filter(Area::is_of_a_file);
    for area in areas.filter(|area| (all || area.is_tracked()) && !locked.contains(&area.range())) {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        uffd::present(pagemap, area.range(), |range, _| match ranges.last_mut() {
            Some(last) if are_readable(memory, last.end..range.start) => last.end = range.end,
            _ => ranges.push(range),
        })?;
        let protection = u64::from(area.protection().cast_unsigned());
        found.extend(ranges.into_iter().map(|range| Changed { part: area.file_part(range), protection }));
    }
    found.truncate(RANGES_MAX);
    Ok(found)
}

/// Whether a gap can be stored with what is around it: not if it is behind the end of a file that has become shorter.
fn are_readable(memory: &File, gap: Range<u64>) -> bool {
    gap.end - gap.start <= BETWEEN_MAX
        && gap.step_by(PAGE as usize).all(|page| memory.read_exact_at(&mut [0], page).is_ok())
}
