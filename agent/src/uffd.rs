//! Fence: userfaultfd, PAGEMAP_SCAN, and descriptors of other processes.
//!
//! All addresses are another process's: no memory of ours is ever meant, but for the bytes given to [`Uffd::copy`].
#![allow(unsafe_code, reason = "userfaultfd, pagemap and pidfd have no safe wrapper")]

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::Pid;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
struct Span {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    start: u64,
    len: u64,
    mode: u64,
}

/// `struct uffdio_copy`.
#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
struct ZeroPage {
    start: u64,
    len: u64,
    mode: u64,
    placed: i64,
}

/// `struct pm_scan_arg`: twelve words.
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, Api);
nix::ioctl_readwrite!(uffdio_register, 0xAA, 0x00, Register);
nix::ioctl_read!(uffdio_unregister, 0xAA, 0x01, Span);
nix::ioctl_read!(uffdio_wake, 0xAA, 0x02, Span);
nix::ioctl_readwrite!(uffdio_copy, 0xAA, 0x03, Copy);
nix::ioctl_readwrite!(uffdio_zeropage, 0xAA, 0x04, ZeroPage);
nix::ioctl_readwrite!(uffdio_writeprotect, 0xAA, 0x06, WriteProtect);
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArg);

const API: u64 = 0xAA;
/// The ioctl of /dev/userfaultfd that makes a userfaultfd for whoever calls it.
pub(crate) const DEVICE_NEW: u64 = 0xAA00;

const EVENT_FORK: u64 = 1 << 1;
const EVENT_REMAP: u64 = 1 << 2;
const EVENT_REMOVE: u64 = 1 << 3;
const EVENT_UNMAP: u64 = 1 << 6;
/// Write protection also of pages that are not there yet.
const WP_UNPOPULATED: u64 = 1 << 13;
/// A write only clears the protection: nobody has to answer a fault.
const WP_ASYNC: u64 = 1 << 15;

/// Features of a userfaultfd that only tells writes apart.
pub(crate) const TRACKING: u64 = WP_ASYNC | WP_UNPOPULATED;
/// Features of one that also brings missing pages: it must hear of everything that moves or drops pages.
pub(crate) const PAGING: u64 = TRACKING | EVENT_FORK | EVENT_REMAP | EVENT_REMOVE | EVENT_UNMAP;

/// Who touches a page that is not there waits until we have copied it.
pub(crate) const MISSING: u64 = 1;
/// Writes to protected pages are noticed.
pub(crate) const PROTECT: u64 = 1 << 1;

const COPY_PROTECTED: u64 = 1 << 1;
const COPY_WITHOUT_WAKING: u64 = 1;
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
const PROTECTED: u64 = 1;
const PAGE: u64 = 4096;

/// A userfaultfd of another process. What it was registered for ends when the last copy of it is closed: missing pages
/// are then zeros.
#[derive(Debug)]
pub(crate) struct Uffd {
    file: File,
}

/// What the kernel tells.
#[derive(Debug)]
pub(crate) enum Message {
    /// Somebody waits for a page.
    Fault {
        /// Its address.
        address: u64,
        /// To write to it.
        write: bool,
    },
    /// The process has forked; this is the child's memory, registered like its parent's.
    Fork(Uffd),
    /// Pages have moved.
    Remap {
        /// From this address.
        from: u64,
        /// To this one.
        to: u64,
        /// How many bytes.
        bytes: u64,
    },
    /// Contents were given up; what is read there next is zeros.
    Removed(Range<u64>),
    /// Nothing is mapped there any more.
    Unmapped(Range<u64>),
    /// Something of a newer kernel.
    Unknown(u8),
}

/// What else a copy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct How {
    /// A write to the pages is noticed.
    pub(crate) protected: bool,
    /// Whoever waits for them is woken. Not worth it while nobody runs: whoever waits all the same asks, and is answered.
    pub(crate) wake: bool,
}

/// What became of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    /// Pages that are there now, from the first on.
    pub(crate) pages: usize,
    /// Why no more than these.
    pub(crate) stopped: Option<i32>,
}

/// Messages read at once.
pub(crate) const MESSAGES: usize = 16;
const MESSAGE_BYTES: usize = 32;

impl Uffd {
    /// Takes a descriptor that nobody has used yet.
    pub(crate) fn open(fd: OwnedFd, features: u64) -> io::Result<Self> {
        let mut api = Api { api: API, features, ioctls: 0 };
        // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct.
        unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Self { file: fd.into() })
    }

    /// Takes a descriptor that another process has opened and used.
    pub(crate) fn taken_over(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }

    /// A second descriptor of the same.
    pub(crate) fn try_clone(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Registers a range for these modes. Doing it again changes nothing.
    pub(crate) fn register(&self, range: &Range<u64>, mode: u64) -> io::Result<()> {
        let mut register = Register { start: range.start, len: range.end - range.start, mode, ioctls: 0 };
        // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct.
        unsafe { uffdio_register(self.file.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }

    /// Ends that: what is missing there is zeros from now on.
    pub(crate) fn unregister(&self, range: &Range<u64>) -> io::Result<()> {
        let mut span = Span { start: range.start, len: range.end - range.start };
        // SAFETY: the descriptor is open, and the kernel reads exactly this struct.
        unsafe { uffdio_unregister(self.file.as_raw_fd(), &raw mut span) }?;
        Ok(())
    }

    /// Wakes whoever waits for a page of the range; who still misses it asks again.
    pub(crate) fn wake(&self, range: &Range<u64>) -> io::Result<()> {
        let mut span = Span { start: range.start, len: range.end - range.start };
        // SAFETY: the descriptor is open, and the kernel reads exactly this struct.
        unsafe { uffdio_wake(self.file.as_raw_fd(), &raw mut span) }?;
        Ok(())
    }

    /// Wakes whoever waits anywhere.
    pub(crate) fn wake_all(&self) -> io::Result<()> {
        self.wake(&(PAGE..(1 << 47) - PAGE))
    }

    /// Copies whole pages to where they are missing.
    pub(crate) fn copy(&self, address: u64, bytes: &[u8], how: How) -> Copied {
        let mode =
            if how.protected { COPY_PROTECTED } else { 0 } | if how.wake { 0 } else { COPY_WITHOUT_WAKING };
        let src = bytes.as_ptr().addr() as u64;
        let mut copy = Copy { dst: address, src, len: bytes.len() as u64, mode, copied: 0 };
        // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct; it reads `len` bytes at
        // `src`, which is a live slice of ours, and writes only into the other process.
        let result = unsafe { uffdio_copy(self.file.as_raw_fd(), &raw mut copy) };
        let pages = usize::try_from(copy.copied / PAGE.cast_signed()).unwrap_or(0);
        Copied { pages, stopped: result.err().map(|errno| errno as i32) }
    }

    /// Has so many missing pages be the one page of zeros that all processes share: they take no memory until they are written. A page that is
    /// [marked](Self::mark) is not missing enough for it (`EEXIST`).
    pub(crate) fn zero(&self, address: u64, pages: usize, wake: bool) -> Copied {
        let mode = if wake { 0 } else { COPY_WITHOUT_WAKING };
        let mut zero = ZeroPage { start: address, len: pages as u64 * PAGE, mode, placed: 0 };
        // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct, and maps only in the other process.
        let result = unsafe { uffdio_zeropage(self.file.as_raw_fd(), &raw mut zero) };
        let pages = usize::try_from(zero.placed / PAGE.cast_signed()).unwrap_or(0);
        Copied { pages, stopped: result.err().map(|errno| errno as i32) }
    }

    /// Marks pages of a range, whether they are there or not. The mark of a missing page moves with it, and goes when it is
    /// given up, unmapped, or copied.
    pub(crate) fn mark(&self, range: &Range<u64>) -> io::Result<()> {
        let mut protect = WriteProtect { start: range.start, len: range.end - range.start, mode: PROTECTED };
        // SAFETY: the descriptor is open, and the kernel reads exactly this struct.
        unsafe { uffdio_writeprotect(self.file.as_raw_fd(), &raw mut protect) }?;
        Ok(())
    }

    /// Whether the memory it is for is gone: the process has ended, or is another program.
    pub(crate) fn is_orphaned(&self) -> bool {
        self.copy_nowhere() == Some(libc::ESRCH)
    }

    /// Whether a change of its mappings is under way, or not read yet. If not, everything that has changed was read.
    pub(crate) fn is_changing(&self) -> bool {
        self.copy_nowhere() == Some(libc::EAGAIN)
    }

    /// Why a page is not copied to where nothing is ever mapped: ENOENT, unless there is a reason that comes first.
    fn copy_nowhere(&self) -> Option<i32> {
        const NOWHERE: u64 = (1 << 47) - 2 * PAGE;
        self.copy(NOWHERE, &[0; PAGE as usize], How { protected: false, wake: true }).stopped
    }

    /// What the kernel has to tell; nothing if it has nothing.
    pub(crate) fn read(&self) -> io::Result<Vec<Message>> {
        let mut bytes = [0; MESSAGES * MESSAGE_BYTES];
        match (&self.file).read(&mut bytes) {
            Ok(read) => Ok(bytes[..read].as_chunks().0.iter().map(message).collect()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// `struct uffd_msg`.
fn message(bytes: &[u8; MESSAGE_BYTES]) -> Message {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    match bytes[0] {
        0x12 => Message::Fault { address: word(16) & !(PAGE - 1), write: word(8) & 1 != 0 },
        0x13 => {
            let fd = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]).cast_signed();
            // SAFETY: the kernel has just made this descriptor for the reader of the message; nobody else owns it, and
            // each message is turned into a value once.
            Message::Fork(Uffd { file: unsafe { File::from_raw_fd(fd) } })
        }
        0x14 => Message::Remap { from: word(8), to: word(16), bytes: word(24) },
        0x15 => Message::Removed(word(8)..word(16)),
        0x16 => Message::Unmapped(word(8)..word(16)),
        other => Message::Unknown(other),
    }
}

/// Protect what is found again.
const SCAN_PROTECT: u64 = 1;
const PROTECTABLE: u64 = 1;
/// Written since it was protected, or never protected.
pub(crate) const WRITTEN: u64 = 1 << 1;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
/// Not there, but not nothing either: on a disk, or marked.
pub(crate) const SWAPPED: u64 = 1 << 4;
/// The one page of zeros that all processes share.
pub(crate) const ZERO_PAGE: u64 = 1 << 5;
/// Ranges fetched by one call. The kernel gathers 512 at a time; asked for more it says of a walk that it has ended that it ended
/// where the first 512 were full, and what lies behind would be told twice.
const REGIONS: usize = 512;

/// Private pages within `span` that were written since they were last protected, in order; protects them again.
/// False from `each` ends the scan.
pub(crate) fn take_written(
    pagemap: &File,
    span: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> bool,
) -> io::Result<()> {
    let query = ScanArg {
        flags: SCAN_PROTECT,
        category_inverted: FILE | ZERO_PAGE,
        category_mask: PROTECTABLE | WRITTEN | FILE | ZERO_PAGE,
        category_anyof_mask: PRESENT | SWAPPED,
        return_mask: WRITTEN,
        ..ScanArg::default()
    };
    scan(pagemap, span, &query, |range, _categories| each(range))
}

/// Private pages within `span` that are there, or marked, in order, each range with its categories ([`WRITTEN`], [`ZERO_PAGE`],
/// [`SWAPPED`]). Changes nothing.
pub(crate) fn present(
    pagemap: &File,
    span: Range<u64>,
    mut each: impl FnMut(Range<u64>, u64),
) -> io::Result<()> {
    let query = ScanArg {
        category_inverted: FILE,
        category_mask: FILE,
        category_anyof_mask: PRESENT | SWAPPED,
        return_mask: WRITTEN | ZERO_PAGE | SWAPPED,
        ..ScanArg::default()
    };
    scan(pagemap, span, &query, |range, categories| {
        each(range, categories);
        true
    })
}

/// Pages within `span` that are missing and marked ([`Uffd::mark`]), in order. A page that was swapped out and not written before
/// looks the same.
pub(crate) fn marked(pagemap: &File, span: Range<u64>, mut each: impl FnMut(Range<u64>)) -> io::Result<()> {
    let query = ScanArg {
        category_inverted: FILE | WRITTEN,
        category_mask: FILE | WRITTEN | SWAPPED,
        return_mask: SWAPPED,
        ..ScanArg::default()
    };
    scan(pagemap, span, &query, |range, _categories| {
        each(range);
        true
    })
}

fn scan(
    pagemap: &File,
    span: Range<u64>,
    query: &ScanArg,
    mut each: impl FnMut(Range<u64>, u64) -> bool,
) -> io::Result<()> {
    let mut regions = [Region::default(); REGIONS];
    let mut start = span.start;
    while start < span.end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start,
            end: span.end,
            vec: regions.as_mut_ptr().addr() as u64,
            vec_len: REGIONS as u64,
            ..*query
        };
        // SAFETY: the file is open; the kernel reads and writes exactly this struct, whose size it is told, and at
        // most `vec_len` regions at `vec`, which live until after the call.
        let found = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut arg) }?;
        let found = usize::try_from(found).unwrap_or(0).min(REGIONS);
        for region in &regions[..found] {
            if region.start < start {
                // Who has pages twice or in another order takes one for the other.
                return Err(io::Error::from(io::ErrorKind::InvalidData));
            }
            start = region.end;
            if !each(region.start..region.end, region.categories) {
                return Ok(());
            }
        }
        if arg.walk_end < start || (found == 0 && arg.walk_end == start) {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        start = arg.walk_end;
    }
    Ok(())
}

/// Whether this kernel can list pages by what happened to them. Scans nothing.
pub(crate) fn has_pagemap_scan() -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let mut empty = ScanArg { size: size_of::<ScanArg>() as u64, ..ScanArg::default() };
    // SAFETY: the file is open, the kernel reads and writes exactly this struct, whose size it is
    // told, and there is neither a range to scan nor a vector to fill.
    unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut empty) }?;
    Ok(())
}

/// The features of userfaultfd that this kernel has, as bits. The descriptor is closed again at once.
pub(crate) fn features() -> io::Result<u64> {
    // SAFETY: the call takes flags only and returns a new descriptor or an error.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let descriptor = new_fd(made)?;
    let mut api = Api { api: API, features: 0, ioctls: 0 };
    // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct.
    unsafe { uffdio_api(descriptor.as_raw_fd(), &raw mut api) }?;
    Ok(api.features)
}

fn new_fd(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A copy of a descriptor of another process.
pub(crate) fn fd_of(pid: Pid, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes plain integers and returns a new descriptor or an error.
    let process = new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: as above; the process's descriptor is open.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

#[cfg(test)]
mod tests {
    use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

    use super::*;

    #[test]
    fn the_structs_have_the_sizes_of_the_kernel() {
        assert_eq!((size_of::<Api>(), size_of::<Register>(), size_of::<Span>()), (24, 32, 16));
        assert_eq!((size_of::<WriteProtect>(), size_of::<ZeroPage>()), (24, 32));
        assert_eq!((size_of::<ScanArg>(), size_of::<Region>(), size_of::<Copy>()), (96, 24, 40));
    }

    #[test]
    fn pages_in_many_ranges_are_told_once_and_in_order() {
        const PAGES: usize = 4_000;
        let length = std::num::NonZeroUsize::new(PAGES * 4096).unwrap();
        let (rights, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: new memory at an address of the kernel's choice.
        let memory = unsafe { mmap_anonymous(None, length, rights, flags) }.unwrap();
        // SAFETY: all of it; no huge pages, so that every page is there or not by itself.
        unsafe { madvise(memory, length.get(), MmapAdvise::MADV_NOHUGEPAGE) }.unwrap();
        for page in (0..PAGES).step_by(2) {
            // SAFETY: within the mapping.
            let place = unsafe { memory.cast::<u8>().add(page * 4096) };
            // SAFETY: it is writable, and known to nobody else.
            unsafe { place.write_volatile(1) };
        }
        let first = memory.addr().get() as u64;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let mut found = Vec::new();
        present(&pagemap, first..first + length.get() as u64, |range, _| found.push(range)).unwrap();
        // SAFETY: all of it, and nobody refers to it any more.
        unsafe { munmap(memory, length.get()) }.unwrap();
        let expected = (0..PAGES as u64).step_by(2).map(|page| first + page * PAGE);
        assert_eq!(found, expected.map(|at| at..at + PAGE).collect::<Vec<_>>());
    }

    #[test]
    fn messages_are_read_as_the_kernel_writes_them() {
        let mut bytes = [0; MESSAGE_BYTES];
        bytes[0] = 0x12;
        bytes[8] = 1;
        bytes[16..24].copy_from_slice(&0x7001_u64.to_ne_bytes());
        assert!(matches!(message(&bytes), Message::Fault { address: 0x7000, write: true }));
        bytes[0] = 0x14;
        bytes[8..16].copy_from_slice(&0x1000_u64.to_ne_bytes());
        bytes[24..32].copy_from_slice(&0x2000_u64.to_ne_bytes());
        assert!(matches!(message(&bytes), Message::Remap { from: 0x1000, to: 0x7001, bytes: 0x2000 }));
        bytes[0] = 0x99;
        assert!(matches!(message(&bytes), Message::Unknown(0x99)));
    }
}
