//! The raw calls of the doctor: asks the kernel what its memory interfaces can do.
#![allow(unsafe_code, reason = "ioctls on userfaultfd and pagemap have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `struct uffdio_api`: what is asked for goes in, what the kernel can do comes back.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct pm_scan_arg`: twelve words.
#[repr(C)]
#[derive(Default)]
struct PmScanArg {
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

const UFFD_API: u64 = 0xAA;

nix::ioctl_readwrite!(uffdio_api, 0xAA, 0x3F, UffdioApi);
nix::ioctl_readwrite!(pagemap_scan, b'f', 16, PmScanArg);

/// The features of userfaultfd, as bits. The descriptor is closed again at once.
pub(super) fn userfaultfd_features() -> io::Result<u64> {
    // SAFETY: the call takes flags only and returns a new descriptor or an error.
    let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    let raw = i32::try_from(raw).map_err(io::Error::other)?;
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
    let mut api = UffdioApi { api: UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: the descriptor is open, and the kernel reads and writes exactly this struct.
    unsafe { uffdio_api(descriptor.as_raw_fd(), &raw mut api) }?;
    Ok(api.features)
}

/// Whether this kernel can list pages by what happened to them. Scans nothing.
pub(super) fn has_pagemap_scan() -> io::Result<()> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let size = u64::try_from(size_of::<PmScanArg>()).map_err(io::Error::other)?;
    let mut empty = PmScanArg { size, ..PmScanArg::default() };
    // SAFETY: the file is open, the kernel reads and writes exactly this struct, whose size it is
    // told, and there is neither a range to scan nor a vector to fill.
    unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut empty) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structs_have_the_sizes_of_the_kernel() {
        assert_eq!(size_of::<UffdioApi>(), 24);
        assert_eq!(size_of::<PmScanArg>(), 96);
    }
}
