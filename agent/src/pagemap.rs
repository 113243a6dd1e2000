//! `/proc/PID/pagemap`: what the kernel says of each page of a process. Nothing of a page is read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Bits of an entry, as the kernel's `admin-guide/mm/pagemap` has them.
pub(crate) const PRESENT: u64 = 1 << 63;
pub(crate) const SWAPPED: u64 = 1 << 62;
/// Of a file, or shared memory.
pub(crate) const OF_FILE: u64 = 1 << 61;
/// Written since `4` was last written to `clear_refs`. Always 0 where the kernel does not know it.
pub(crate) const SOFT_DIRTY: u64 = 1 << 55;

/// In an entry that is [`SWAPPED`]: which device, and where on it.
const DEVICE: u64 = (1 << 5) - 1;
const PLACE: u64 = ((1 << 50) - 1) << 5;
/// What stands there for a missing page that is marked as protected by a userfaultfd: the last number there is for a device, which is none
/// (`SWP_PTE_MARKER`), and the mark (`PTE_MARKER_UFFD_WP`), as Linux has them in `swap.h` and `swapops.h`.
const MARK: u64 = DEVICE | 1 << 5;

/// Whether an entry is that of a page which is missing for certain and marked, not of one that is on a disk.
pub(crate) const fn is_mark(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED | OF_FILE | DEVICE | PLACE) == SWAPPED | MARK
}

/// Entries read at a time.
const ENTRIES: usize = 8_192;
const ENTRY_BYTES: usize = 8;

/// The entries of `pages` pages from `first` (address / 4096) on, in order. Ends early where the kernel does not let look.
pub(crate) fn entries(
    pagemap: &File,
    first: u64,
    pages: u64,
    mut each: impl FnMut(u64, u64),
) -> io::Result<()> {
    let mut bytes = vec![0_u8; ENTRIES.min(usize::try_from(pages).unwrap_or(ENTRIES)) * ENTRY_BYTES];
    let mut at = 0;
    while at < pages {
        let count = usize::try_from(pages - at).map_or(ENTRIES, |left| left.min(ENTRIES));
        let part = &mut bytes[..count * ENTRY_BYTES];
        let read = pagemap.read_at(part, (first + at) * ENTRY_BYTES as u64)? / ENTRY_BYTES;
        if read == 0 {
            return Ok(());
        }
        for entry in part[..read * ENTRY_BYTES].as_chunks().0 {
            each(first + at, u64::from_ne_bytes(*entry));
            at += 1;
        }
    }
    Ok(())
}
