//! CRIU: which one, and whether it works on this kernel.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::kernel::{self, whole};
use super::{Check, Inputs};
use crate::criu::{Criu, Version};
use crate::reaper::Reaper;

const NAME: &str = "criu";
const WITHOUT: &str = "sandboxes can be neither dumped nor restored: they stay warm until they are purged";
const FIX: &str = "run `cargo xtask setup --only criu`, or name a CRIU 4.2 or newer in MEDES_CRIU";

pub(super) async fn check(inputs: &Inputs, reaper: &Reaper) -> Check {
    let criu = match Criu::find(inputs.criu.as_deref()) {
        Ok(criu) => criu,
        Err(error) => return Check::missing(NAME, whole(&error), WITHOUT, FIX),
    };
    let version = match criu.version(reaper).await {
        Ok(version) => version,
        Err(error) => return Check::missing(NAME, whole(&error), WITHOUT, FIX),
    };
    let copy = if criu.is_private_copy() { " (private copy)" } else { "" };
    let found = format!("{version}{copy} at {}", criu.program().display());
    let scratch = match Scratch::make() {
        Ok(scratch) => scratch,
        Err(error) => {
            let found = format!("{found}; not tried: no temporary folder: {error}");
            return Check::degraded(
                NAME,
                found,
                "whether it works here is not known",
                "make room in the temporary folder",
            );
        }
    };
    match criu.check(reaper, &scratch.0).await {
        Ok(()) if too_old(version, &kernel::release()) => {
            Check::missing(NAME, format!("{found}; it cannot dump TCP sockets on this kernel"), WITHOUT, FIX)
        }
        Ok(()) => Check::ok(NAME, found),
        Err(error) => Check::missing(NAME, format!("{found}; {}", whole(&error)), WITHOUT, FIX),
    }
}

/// Linux 6.16 refuses a socket option that CRIU before 4.2 reads of every socket. `criu check` does
/// not see that, and every sandbox listens on TCP.
fn too_old(criu: Version, release: &str) -> bool {
    (criu.major, criu.minor) < (4, 2) && kernel::numbers(release) >= Some((6, 16))
}

/// A folder for CRIU's log that goes away again.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> io::Result<Self> {
        let template = std::env::temp_dir().join("medes-doctor-XXXXXX");
        Ok(Self(nix::unistd::mkdtemp(&template)?))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may stay behind if somebody took our rights meanwhile; it holds one small log.
        drop(fs::remove_dir_all(&self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_kernels_need_a_new_criu() {
        let version = |minor| Version { major: 4, minor, patch: 1 };
        assert!(too_old(version(1), "6.18.44"));
        assert!(!too_old(version(1), "6.12.0-9-amd64"));
        assert!(!too_old(version(2), "6.18.44"));
    }
}
