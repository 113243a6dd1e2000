//! The way to see writes of kernels without asynchronous write protection: a bit for each page that the kernel sets when it
//! is written, and clears for a whole process when it is told to.
//!
//! Between the look and the clearing a write can be lost, and clearing flushes the process's TLBs: so this is the second
//! best way. Nothing is injected, and nothing stays in the process.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::ops::Range;
use std::path::Path;

use crate::pagemap::{self, OF_FILE, PRESENT, SOFT_DIRTY, SWAPPED};

const PAGE_BYTES: u64 = 4096;
/// What `clear_refs` understands as "forget what was written".
const FORGET: &str = "4";

/// Ranges of addresses, whole pages, in order.
pub(super) type Ranges = Vec<Range<u64>>;

/// Whether this kernel keeps the bit: a page that was just written has it.
pub(super) fn is_known() -> io::Result<bool> {
    let page = black_box(vec![1_u8; 2 * PAGE_BYTES as usize]);
    let number = (page.as_ptr().addr() as u64).div_ceil(PAGE_BYTES);
    let mut known = false;
    pagemap::entries(&File::open("/proc/self/pagemap")?, number, 1, |_page, entry| known = has_bit(entry))?;
    drop(black_box(page));
    Ok(known)
}

const fn has_bit(entry: u64) -> bool {
    entry & PRESENT != 0 && entry & SOFT_DIRTY != 0
}

/// Private pages of these areas that are there, and those of them that were written since [`forget`].
pub(super) fn look(pagemap: &File, areas: &[Range<u64>]) -> io::Result<(Ranges, Ranges)> {
    let (mut there, mut written) = (Ranges::new(), Ranges::new());
    for area in areas {
        let (first, last) = (area.start / PAGE_BYTES, area.end / PAGE_BYTES);
        pagemap::entries(pagemap, first, last - first, |page, entry| {
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                add(&mut there, page);
                if entry & SOFT_DIRTY != 0 {
                    add(&mut written, page);
                }
            }
        })?;
    }
    Ok((there, written))
}

fn add(ranges: &mut Ranges, page: u64) {
    let start = page * PAGE_BYTES;
    match ranges.last_mut() {
        Some(last) if last.end == start => last.end = start + PAGE_BYTES,
        _ => ranges.push(start..start + PAGE_BYTES),
    }
}

/// Has the kernel forget what a process has written. `clear_refs`: its file of that name.
pub(super) fn forget(clear_refs: &Path) -> io::Result<()> {
    fs::write(clear_refs, FORGET)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_bit_counts_only_where_a_page_is() {
        assert!(has_bit(PRESENT | SOFT_DIRTY | 42));
        assert!(!has_bit(PRESENT) && !has_bit(SOFT_DIRTY) && !has_bit(0));
    }

    #[test]
    fn whether_this_kernel_has_it_can_be_said() {
        // Either answer is right: not to know would be an error.
        println!("soft-dirty bits: {}", is_known().unwrap());
    }

    #[test]
    fn written_and_present_private_pages_are_read_from_a_pagemap() {
        let mut file = tempfile::tempfile().unwrap();
        let entries = [
            PRESENT | SOFT_DIRTY,
            PRESENT,
            PRESENT | SOFT_DIRTY,
            SWAPPED | SOFT_DIRTY,
            PRESENT | OF_FILE | SOFT_DIRTY,
            0,
            PRESENT | SOFT_DIRTY,
        ];
        for entry in entries {
            file.write_all(&entry.to_ne_bytes()).unwrap();
        }
        let page = |first: u64, last: u64| first * PAGE_BYTES..last * PAGE_BYTES;
        let (there, written) = look(&file, &[page(0, 5), page(5, 7)]).unwrap();
        assert_eq!(there, [page(0, 4), page(6, 7)]);
        assert_eq!(written, [page(0, 1), page(2, 4), page(6, 7)]);
        // Behind the end of the file is nothing the kernel lets look at.
        assert_eq!(look(&file, &[page(90, 95)]).unwrap(), (Vec::new(), Vec::new()));
    }

    #[test]
    fn forgetting_is_what_the_kernel_documents() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clear_refs");
        forget(&file).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "4");
    }
}
