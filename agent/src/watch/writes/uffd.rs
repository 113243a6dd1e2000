//! Fence: the ioctls of write tracking, and descriptors of other processes.
#![allow(unsafe_code, reason = "userfaultfd, pagemap and pidfd have no safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::Pid;

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
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
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, ScanArg);

const API: u64 = 0xAA;
/// Write protection also of pages that are not there yet.
const WP_UNPOPULATED: u64 = 1 << 13;
/// A write only clears the protection: nobody has to answer a fault.
const WP_ASYNC: u64 = 1 << 15;
const MODE_WP: u64 = 1 << 1;

/// Protect what is found again.
const SCAN_PROTECT: u64 = 1;
const PROTECTABLE: u64 = 1;
const WRITTEN: u64 = 1 << 1;
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const ZERO_PAGE: u64 = 1 << 5;
/// Ranges fetched by one call.
const REGIONS: usize = 1024;

/// A userfaultfd of another process, used for nothing but asynchronous write protection. The protection goes when it
/// is dropped.
#[derive(Debug)]
pub(super) struct WriteProtection {
    fd: OwnedFd,
}

impl WriteProtection {
    /// Takes a descriptor that nobody has used yet.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut api = Api { api: API, features: WP_ASYNC | WP_UNPOPULATED, ioctls: 0 };
        // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct.
        unsafe { uffdio_api(fd.as_raw_fd(), &raw mut api) }?;
        Ok(Self { fd })
    }

    /// Makes a mapping one whose pages can be protected. Doing it again changes nothing.
    pub(super) fn register(&self, area: &Range<u64>) -> io::Result<()> {
        let len = area.end - area.start;
        let mut register = Register { start: area.start, len, mode: MODE_WP, ioctls: 0 };
        // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct. The addresses are
        // another process's: no memory of ours is meant.
        unsafe { uffdio_register(self.fd.as_raw_fd(), &raw mut register) }?;
        Ok(())
    }
}

/// Private pages within `span` that were written since they were last protected, in order; protects them again.
/// False from `each` ends the scan.
pub(super) fn take_written(
    pagemap: &File,
    span: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> bool,
) -> io::Result<()> {
    let mut regions = [Region::default(); REGIONS];
    let mut start = span.start;
    while start < span.end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            flags: SCAN_PROTECT,
            start,
            end: span.end,
            vec: regions.as_mut_ptr().addr() as u64,
            vec_len: REGIONS as u64,
            category_inverted: FILE | ZERO_PAGE,
            category_mask: PROTECTABLE | WRITTEN | FILE | ZERO_PAGE,
            category_anyof_mask: PRESENT | SWAPPED,
            return_mask: WRITTEN,
            ..ScanArg::default()
        };
        // SAFETY: the file is open; the kernel reads and writes exactly this struct, whose size it is told, and at
        // most `vec_len` regions at `vec`, which live until after the call.
        let found = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut arg) }?;
        let found = usize::try_from(found).unwrap_or(0).min(REGIONS);
        for region in &regions[..found] {
            if !each(region.start..region.end) {
                return Ok(());
            }
        }
        if arg.walk_end <= start {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        start = arg.walk_end;
    }
    Ok(())
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
pub(super) fn fd_of(pid: Pid, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call takes plain integers and returns a new descriptor or an error.
    let process = new_fd(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: as above; the process's descriptor is open.
    new_fd(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_have_the_sizes_of_the_kernel() {
        assert_eq!((size_of::<Api>(), size_of::<Register>()), (24, 32));
        assert_eq!((size_of::<ScanArg>(), size_of::<Region>()), (96, 24));
    }
}
