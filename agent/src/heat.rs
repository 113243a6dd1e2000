//! Where a warm sandbox's memory is: its processes' mappings and, page by page, what the kernel says of them.
//!
//! Present, private, of a file, swapped; and hot, warm, read or cold where its writes are tracked. Nothing of a page is read.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader},
};

use medes_dedup::page::PAGE_BYTES;
use medes_proto::{
    heat::{HeatMap, Mapping, PageClass, Range},
    ids::SandboxId,
    limits::{HEAT_MAPPINGS_MAX, HEAT_NAME_BYTES_MAX, HEAT_RANGES_MAX},
};
use nix::unistd::Pid;

use crate::{
    criu::tree,
    pagemap::{self, OF_FILE, PRESENT, SWAPPED},
    watch::tracked::Known,
};

/// Pages looked at for one map, present or not: 16 GiB of addresses.
const PAGES_MAX: u64 = 4 << 20;

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum HeatError {
    /// Its processes cannot be listed.
    #[error("list its processes")]
    Members(#[from] tree::TreeError),
    /// A process cannot be looked at.
    #[error("look at the memory of process {pid}")]
    Read {
        /// Which.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
}

/// Looks at all processes of a sandbox, which may run meanwhile. Blocks, for about 0.1 us a page.
///
/// With `known`, private pages are hot, warm or cold by their writes, and of the cold ones those are told that are read.
pub fn look(sandbox: SandboxId, root: Pid, known: Option<Known>) -> Result<HeatMap, HeatError> {
    let source = if known.is_some() { "watch" } else { "procfs" };
    let mut map = Looking { known, ..Looking::default() };
    for pid in tree::members(root)? {
        let pid = pid.as_raw();
        match map.process(pid) {
            // It has ended meanwhile: then it has no memory.
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::ESRCH | nix::libc::ENOENT)) => {}
            Err(source) => return Err(HeatError::Read { pid, source }),
            Ok(()) => {}
        }
    }
    Ok(HeatMap { sandbox, source: source.into(), mappings: map.mappings, truncated: map.truncated })
}

/// A map under construction, and what is left of its limits.
#[derive(Debug, Default)]
struct Looking {
    known: Option<Known>,
    mappings: Vec<Mapping>,
    pages: u64,
    ranges: usize,
    truncated: bool,
}

/// A line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
struct Area {
    start: u64,
    end: u64,
    name: String,
}

impl Looking {
    fn process(&mut self, pid: i32) -> io::Result<()> {
        let maps = BufReader::new(File::open(format!("/proc/{pid}/maps"))?);
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        for line in maps.lines() {
            if let Some(area) = parse(&line?) {
                self.area(pid, area, &pagemap)?;
            }
        }
        Ok(())
    }

    fn area(&mut self, pid: i32, area: Area, pagemap: &File) -> io::Result<()> {
        let page_bytes = PAGE_BYTES as u64;
        let (first, pages) = (area.start / page_bytes, (area.end - area.start) / page_bytes);
        let full = self.mappings.len() >= HEAT_MAPPINGS_MAX || self.ranges >= HEAT_RANGES_MAX;
        if full || self.pages.saturating_add(pages) > PAGES_MAX {
            self.truncated = true;
            return Ok(());
        }
        self.pages += pages;
        let mut ranges = Ranges::default();
        pagemap::entries(pagemap, first, pages, |page, entry| {
            ranges.add(page - first, class(entry).map(|class| self.heated(class, pid, page)));
        })?;
        let room = HEAT_RANGES_MAX - self.ranges;
        self.truncated |= ranges.0.len() > room;
        ranges.0.truncate(room);
        if !ranges.0.is_empty() {
            self.ranges += ranges.0.len();
            self.mappings.push(Mapping { pid, start: area.start, pages, name: area.name, ranges: ranges.0 });
        }
        Ok(())
    }
}

impl Looking {
    /// The class of a page (address / 4096), with its heat where that is known.
    fn heated(&self, class: PageClass, pid: i32, page: u64) -> PageClass {
        match &self.known {
            Some(known) if class == PageClass::Private => known.class(pid, page),
            _ => class,
        }
    }
}

/// Pages of the same class side by side become one range.
#[derive(Debug, Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    fn add(&mut self, page: u64, class: Option<PageClass>) {
        let Some(class) = class else { return };
        match self.0.last_mut() {
            Some(last) if last.class == class && last.first + last.pages == page => last.pages += 1,
            _ => self.0.push(Range { first: page, pages: 1, class }),
        }
    }
}

const fn class(entry: u64) -> Option<PageClass> {
    if entry & PRESENT != 0 {
        Some(if entry & OF_FILE != 0 { PageClass::File } else { PageClass::Private })
    } else if entry & SWAPPED != 0 {
        Some(PageClass::Swapped)
    } else {
        None
    }
}

/// `55d0-55f0 r-xp 00000000 08:01 42   /usr/bin/x`. `None`: a line of another shape.
fn parse(line: &str) -> Option<Area> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut name = words.nth(4).unwrap_or_default().trim().to_owned();
    while name.len() > HEAT_NAME_BYTES_MAX {
        name.pop();
    }
    (end > start).then_some(Area { start, end, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_maps_are_read_with_and_without_a_name() {
        let area = |start, end, name: &str| Some(Area { start, end, name: name.into() });
        let library = "7f0000001000-7f0000003000 r-xp 00001000 fe:01 1234                       /lib/a b.so";
        assert_eq!(parse(library), area(0x7f00_0000_1000, 0x7f00_0000_3000, "/lib/a b.so"));
        assert_eq!(parse("1000-2000 rw-p 00000000 00:00 0 "), area(0x1000, 0x2000, ""));
        assert_eq!(parse("1000-2000 rw-p 00000000 00:00 0      [heap]"), area(0x1000, 0x2000, "[heap]"));
        for bad in ["", "1000", "x-y rw-p", "2000-1000 rw-p 0 0 0"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn neighbours_of_one_class_are_one_range() {
        let mut ranges = Ranges::default();
        let entries = [PRESENT, PRESENT, PRESENT | OF_FILE, 0, PRESENT | OF_FILE, SWAPPED];
        for (page, entry) in (0..).zip(entries) {
            ranges.add(page, class(entry));
        }
        let range = |first, pages, class| Range { first, pages, class };
        use PageClass::{File, Private, Swapped};
        assert_eq!(
            ranges.0,
            [range(0, 2, Private), range(2, 1, File), range(4, 1, File), range(5, 1, Swapped)]
        );
    }

    #[test]
    fn our_own_memory_is_seen_where_it_is() {
        let pages = 64_u64;
        let mut memory = vec![0_u8; usize::try_from(pages + 1).unwrap() * PAGE_BYTES];
        memory.iter_mut().step_by(PAGE_BYTES).for_each(|byte| *byte = 1);
        let mut looking = Looking::default();
        looking.process(nix::unistd::getpid().as_raw()).unwrap();
        let first = (memory.as_ptr() as u64).next_multiple_of(PAGE_BYTES as u64);
        let within = |mapping: &&Mapping| {
            (mapping.start..mapping.start + mapping.pages * PAGE_BYTES as u64).contains(&first)
        };
        let mapping = looking.mappings.iter().find(within).expect("the mapping of our vector");
        let at = (first - mapping.start) / PAGE_BYTES as u64;
        let holds = |range: &&Range| range.class == PageClass::Private && range.first <= at;
        let range = mapping.ranges.iter().rev().find(holds).expect("private pages");
        assert!(range.first + range.pages >= at + pages - 1, "{range:?}, {at}");
        assert!(
            looking.mappings.iter().any(|mapping| mapping.count(PageClass::File) > 0),
            "our program's text"
        );
    }
}
