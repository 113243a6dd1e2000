//! CRIU: which one, and whether it works on this kernel.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::kernel::whole;
use super::{Check, Inputs};
use crate::criu::Criu;
use crate::reaper::Reaper;

const NAME: &str = "criu";
const WITHOUT: &str = "sandboxes can be neither dumped nor restored: they stay warm until they are purged";
const FIX: &str = "run `cargo xtask setup --only criu`, or name a CRIU 4.1 or newer in MEDES_CRIU";

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
        Ok(()) => Check::ok(NAME, found),
        Err(error) => Check::missing(NAME, format!("{found}; {}", whole(&error)), WITHOUT, FIX),
    }
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
