//! A tmpfs on `/run` for the agent alone, where the host has none.
//!
//! CRIU probes the kernel (50-60 ms) unless it finds its notes of an earlier run in `/run/criu.kdat`, and it keeps
//! those only on a tmpfs. Most hosts have one there. Where not, the agent, which lives in a mount namespace of its own,
//! puts one there: nothing changes for the rest of the host.

use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};

const RUN: &str = "/run";

/// Why `/run` cannot be made private.
#[derive(Debug, thiserror::Error)]
#[error("mount a tmpfs on /run")]
pub struct PrivateRunError(#[source] io::Error);

/// Whether CRIU can keep its notes as things are.
#[must_use]
pub fn is_tmpfs() -> bool {
    statfs(Path::new(RUN)).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

/// Puts a tmpfs on `/run`, unless there is one already. True when something was done.
///
/// The calling thread must be in a mount namespace of the agent's own, whose mounts do not reach the host.
pub fn ensure() -> Result<bool, PrivateRunError> {
    if is_tmpfs() {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("medes-run"), RUN, Some("tmpfs"), flags, Some("mode=0755,size=16m"))
        .map_err(|errno| PrivateRunError(errno.into()))?;
    Ok(true)
}
