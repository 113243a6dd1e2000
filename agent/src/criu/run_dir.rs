//! A tmpfs on `/run` for the agent alone, where the host has none.
//!
//! CRIU probes the kernel (50-60 ms) unless it finds its notes of an earlier run in `/run/criu.kdat`, and it keeps
//! those only on a tmpfs. Most hosts have one there. Where not, the agent takes a mount namespace of its own before
//! it starts any thread, and puts one there: nothing changes for the rest of the host, and every mount the agent
//! makes later goes away with it.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

const RUN: &str = "/run";

/// Why `/run` cannot be made private.
#[derive(Debug, thiserror::Error)]
#[error("{doing}")]
pub struct PrivateRunError {
    doing: &'static str,
    #[source]
    source: io::Error,
}

/// Whether CRIU can keep its notes as things are.
#[must_use]
pub fn is_tmpfs() -> bool {
    statfs(Path::new(RUN)).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

/// Gives the calling thread, and all threads and processes it starts later, a private tmpfs on `/run`, unless there
/// is a tmpfs already. To be called while the process has one thread. True when something was done.
pub fn make_private() -> Result<bool, PrivateRunError> {
    if is_tmpfs() {
        return Ok(false);
    }
    let failed = |doing| move |errno: nix::Error| PrivateRunError { doing, source: errno.into() };
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("take a mount namespace of our own"))?;
    // What the host mounts later still appears here; what we mount never appears there.
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .map_err(failed("keep our mounts from the host"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("medes-run"), RUN, Some("tmpfs"), flags, Some("mode=0755,size=16m"))
        .map_err(failed("mount a tmpfs on /run"))?;
    Ok(true)
}
