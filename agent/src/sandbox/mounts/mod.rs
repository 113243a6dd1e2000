//! The file systems a sandbox sees: a read-only root, private writable folders, a few devices.
//!
//! Everything is prepared in the agent's own mount namespace and only bound into the sandbox's namespace by the
//! stage. So the private folders live on while no process does, and CRIU can treat every mount as external.

pub(crate) mod mountinfo;
mod plan;

pub(crate) use plan::{Bind, Layout, PROC_READ_ONLY, ROOT, SHOWN, TMPFS};
pub use plan::{ExternalMount, MountError};

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Device files every program may expect: name, major, minor.
const DEVICES: [(&str, u64, u64); 5] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)];
/// Links every program may expect in /dev.
const DEVICE_LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Makes the /dev that all sandboxes of the node share, read-only, at `dir` (an existing empty folder).
pub(crate) fn make_dev(dir: &Path) -> Result<(), MountError> {
    let error = |doing| MountError::io(doing, dir);
    mount_tmpfs(dir, 64 << 10, 0o755, MsFlags::MS_NOSUID)?;
    for (name, major, minor) in DEVICES {
        let path = dir.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))
            .map_err(|source| MountError::io("make device", &path)(source.into()))?;
        // The umask took some bits.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(error("set mode in"))?;
    }
    for (name, target) in DEVICE_LINKS {
        symlink(target, dir.join(name)).map_err(error("make link in"))?;
    }
    fs::create_dir(dir.join("shm")).map_err(error("make folder in"))?;
    let flags =
        MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(None::<&Path>, dir, None::<&str>, flags, None::<&str>)
        .map_err(|source| MountError::io("make read-only", dir)(source.into()))
}

/// Mounts a tmpfs of bounded size.
pub(crate) fn mount_tmpfs(dir: &Path, bytes_max: u64, mode: u32, flags: MsFlags) -> Result<(), MountError> {
    // Files are bounded too: an inode costs kernel memory whatever its size.
    let inodes = (bytes_max / 4096).clamp(64, 1 << 20);
    let options = format!("size={bytes_max},nr_inodes={inodes},mode={mode:o}");
    mount(Some("medes"), dir, Some("tmpfs"), flags, Some(options.as_str()))
        .map_err(|source| MountError::io("mount tmpfs on", dir)(source.into()))
}
