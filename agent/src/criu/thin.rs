//! Images of which only a part of the pages is put back by CRIU: the rest comes later, by whoever serves missing pages.
//!
//! Only pages of private memory without a file may be left out: of no other can a page be missing. Those that the kernel writes by itself
//! stay, whatever they are.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

use prost::Message;

use super::files;
use super::image_file::{self, Entries, ImageFileError, LARGE_BYTES_MAX, MM_MAGIC, PAGEMAP_MAGIC};
use super::images::{ImageSet, Owner, PAGE_BYTES, PRESENT, PagesFile, Run};
use super::mappings::{FILE, GUARD, MM_BYTES_MAX, VDSO, VSYSCALL, VVAR};
use super::wire::images as wire;

// How it is mapped, from mmap(2).
const PRIVATE: u32 = libc::MAP_PRIVATE as u32;
const ANONYMOUS: u32 = libc::MAP_ANONYMOUS as u32;
const LOCKED: u32 = libc::MAP_LOCKED as u32;
const HUGE: u32 = libc::MAP_HUGETLB as u32;
// More of CRIU's words for a mapping.
const AIO_RING: u32 = 1 << 13;
const SHADOW_STACK: u32 = 1 << 15;

/// Of one pages file: which of its pages CRIU puts back, and which come later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thinned {
    /// The file, as CRIU finds it: only what it puts back.
    pub file: PagesFile,
    /// Positions of these pages among those that the file had.
    pub now: Vec<u64>,
    /// The others: numbers of the pages (address / 4096), and their positions.
    pub later: Vec<(u64, u64)>,
}

impl ImageSet {
    /// Decides for every pages file. `folder` is the one this set was read from.
    pub fn thin(&self, folder: &Path) -> Result<Vec<Thinned>, ImageFileError> {
        let bare = self.bare_memory(folder)?;
        let of = |file: &PagesFile| match file.owner {
            Owner::Process { pid } => (Some(pid), bare.get(&pid).map(Vec::as_slice).unwrap_or_default()),
            Owner::Shared { .. } => (None, &[][..]),
        };
        Ok(self.pages.iter().map(|file| self.thinned(file, of(file))).collect())
    }

    fn thinned(&self, file: &PagesFile, (pid, bare): (Option<u32>, &[Range<u64>])) -> Thinned {
        let kernels: Vec<Range<u64>> = self
            .rseq
            .iter()
            .filter(|area| Some(area.pid) == pid)
            .map(|area| {
                area.address / PAGE_BYTES..(area.address + u64::from(area.bytes)).div_ceil(PAGE_BYTES)
            })
            .collect();
        let (mut now, mut later, mut runs) = (Vec::new(), Vec::new(), Vec::<Run>::new());
        for (position, address) in (0..).zip(file.addresses()) {
            let page = address / PAGE_BYTES;
            let at = bare.partition_point(|range| range.end <= address);
            let is_bare = bare.get(at).is_some_and(|range| range.contains(&address));
            if is_bare && !kernels.iter().any(|range| range.contains(&page)) {
                later.push((page, position));
                continue;
            }
            now.push(position);
            match runs.last_mut() {
                Some(last) if last.address + last.pages * PAGE_BYTES == address => last.pages += 1,
                _ => runs.push(Run { address, pages: 1 }),
            }
        }
        let pages = now.len() as u64;
        Thinned { file: PagesFile { runs, pages, ..file.clone() }, now, later }
    }

    /// Of each process the private memory without a file, in order.
    fn bare_memory(&self, folder: &Path) -> Result<BTreeMap<u32, Vec<Range<u64>>>, ImageFileError> {
        let mut all = BTreeMap::new();
        for pid in &self.pids {
            let name = format!("mm-{pid}.img");
            if self.skeleton.contains(&name) {
                let read = files::parse(folder, &name, MM_BYTES_MAX.into(), |bytes| {
                    let mut entries =
                        Entries::<wire::MmEntry>::image(bytes, MM_MAGIC)?.up_to(MM_BYTES_MAX as usize);
                    let vmas = entries.next().transpose()?.map(|mm| mm.vmas).unwrap_or_default();
                    let mut bare: Vec<Range<u64>> =
                        vmas.iter().filter(|vma| is_bare(vma)).map(|vma| vma.start..vma.end).collect();
                    bare.sort_unstable_by_key(|range| range.start);
                    Ok(bare)
                })?;
                all.insert(*pid, read);
            }
        }
        Ok(all)
    }
}

fn is_bare(vma: &wire::VmaEntry) -> bool {
    let other = VSYSCALL | VDSO | FILE | VVAR | AIO_RING | SHADOW_STACK | GUARD;
    let flags = vma.flags.unwrap_or_default();
    vma.status & other == 0 && flags & (PRIVATE | ANONYMOUS | LOCKED | HUGE) == PRIVATE | ANONYMOUS
}

/// Writes the page map of a file with fewer pages than it was dumped with.
pub fn write_pagemap(folder: &Path, file: &PagesFile) -> Result<(), ImageFileError> {
    let name = match file.owner {
        Owner::Process { pid } => format!("pagemap-{pid}.img"),
        Owner::Shared { id } => format!("pagemap-shmem-{id}.img"),
    };
    let path = folder.join(name);
    let failed = |source: io::Error| ImageFileError::Read { path: path.clone(), source };
    let bytes = image_file::read(&path, LARGE_BYTES_MAX)?;
    let broken = || failed(io::ErrorKind::InvalidData.into());
    let mut entries =
        Entries::<wire::PagemapHead>::image(&bytes, PAGEMAP_MAGIC).map_err(|_broken| broken())?;
    let head = entries.next().and_then(Result::ok).ok_or_else(broken)?;
    // CRIU 4.2 counts in a new field and those before it in the old one: as the one that dumped it, which will read it.
    let first = entries.then::<wire::PagemapEntry>().next().and_then(Result::ok);
    let counts_anew = first.is_some_and(|entry| entry.nr_pages.is_some());
    let entries = file.runs.iter().map(|run| {
        let old = u32::try_from(run.pages).unwrap_or(u32::MAX);
        wire::PagemapEntry {
            vaddr: run.address,
            compat_nr_pages: if counts_anew { 0 } else { old },
            in_parent: None,
            flags: Some(PRESENT),
            nr_pages: counts_anew.then_some(run.pages),
        }
        .encode_to_vec()
    });
    let all: Vec<Vec<u8>> = std::iter::once(head.encode_to_vec()).chain(entries).collect();
    fs::write(&path, image_file::image(PAGEMAP_MAGIC, &all)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vma(start: u64, end: u64, status: u32, flags: u32) -> wire::VmaEntry {
        wire::VmaEntry { start, end, pgoff: 0, shmid: 0, status, flags: Some(flags) }
    }

    #[test]
    fn only_private_memory_without_a_file_can_be_missing() {
        let bare = PRIVATE | ANONYMOUS;
        assert!(is_bare(&vma(0, 4096, 1, bare)) && is_bare(&vma(0, 4096, 1 | 1 << 5, bare)));
        for (status, flags) in [
            (1 | 1 << 6, PRIVATE),
            (1 | 1 << 6, bare),
            (1, libc::MAP_SHARED as u32 | ANONYMOUS),
            (1, bare | LOCKED),
            (1, bare | HUGE),
            (VDSO, bare),
            (VVAR, bare),
            (SHADOW_STACK, bare),
        ] {
            assert!(!is_bare(&vma(0, 4096, status, flags)), "{status:#x} {flags:#x}");
        }
        assert!(!is_bare(&wire::VmaEntry { flags: None, ..vma(0, 4096, 1, bare) }), "not known to be one");
    }

    #[test]
    fn what_the_kernel_writes_stays_and_what_is_left_keeps_its_order() {
        let owner = Owner::Process { pid: 1 };
        let runs = vec![Run { address: 0x1000, pages: 4 }, Run { address: 0x9000, pages: 2 }];
        let file = PagesFile { owner, name: "pages-1.img".into(), runs, pages: 6 };
        let rseq = vec![super::super::images::RseqArea { pid: 1, address: 0x2fe0, bytes: 0x40 }];
        let set = ImageSet { rseq, ..ImageSet::default() };
        let Thinned { file, now, later } = set.thinned(&file, (Some(1), &[0x1000..0x3000, 0x3000..0x5000]));
        assert_eq!(later, [(1, 0), (4, 3)]);
        assert_eq!(now, [1, 2, 4, 5]);
        assert_eq!(file.runs, [Run { address: 0x2000, pages: 2 }, Run { address: 0x9000, pages: 2 }]);
        assert_eq!(file.pages, 4);
    }

    #[test]
    fn pages_are_counted_as_they_were_in_the_dump() {
        let run = |pages, compat, new| {
            let entry = wire::PagemapEntry {
                vaddr: 0x1000,
                compat_nr_pages: compat,
                in_parent: None,
                flags: Some(PRESENT),
                nr_pages: new,
            };
            assert_eq!(entry.nr_pages.unwrap_or(entry.compat_nr_pages.into()), pages);
            entry.encode_to_vec()
        };
        for (dumped, left) in [(run(9, 0, Some(9)), run(2, 0, Some(2))), (run(9, 9, None), run(2, 2, None))] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("pagemap-1.img");
            let head = wire::PagemapHead { pages_id: 7 }.encode_to_vec();
            fs::write(&path, image_file::image(PAGEMAP_MAGIC, &[head.clone(), dumped])).unwrap();
            let runs = vec![Run { address: 0x1000, pages: 2 }];
            let owner = Owner::Process { pid: 1 };
            let file = PagesFile { owner, name: "pages-7.img".into(), runs, pages: 2 };
            write_pagemap(folder.path(), &file).unwrap();
            assert_eq!(fs::read(&path).unwrap(), image_file::image(PAGEMAP_MAGIC, &[head, left]));
        }
    }
}
