//! The only room that knows CRIU: it freezes a sandbox into image files and makes a sandbox of them again.
//!
//! CRIU runs as `criu swrk`, one process per request, started before it is needed ([`Pool`]) and spoken to over a
//! socket ([`Worker`]). A worker lives in the network namespace of the sandbox it serves, because CRIU then leaves
//! that namespace alone instead of running a dozen helper programs for it.
//!
//! - [`Criu`]: which CRIU, its version, `criu check`
//! - [`dump`] and [`restore`]: the two requests, each with one error type that says what can be done about it; [`dump_to_memory`] is the
//!   first one without a file system, by what is in `capture`
//! - [`preflight`]: sees what would be refused before anything is frozen
//! - [`files`]: where the files of a dump are; [`images`]: reads them, trusting nothing in them; what was mapped where in `mappings`
//! - [`tree`]: the processes of a sandbox, and letting a stopped one run
//! - [`run_dir`]: keeps CRIU's kernel feature cache warm where `/run` is not a tmpfs
//!
//! CRIU needs to be root here. Nothing in this room changes the host.

mod capture;
mod check;
mod dump;
mod dump_to_memory;
pub mod files;
mod find;
mod image_file;
pub mod images;
mod log;
mod mappings;
mod pool;
pub mod preflight;
mod restore;
pub mod run_dir;
mod spawn;
mod stats;
pub mod thin;
pub mod tree;
mod wire;
mod worker;

pub use capture::CaptureError;
pub use check::{AskCriuError, CheckCriuError};
pub use dump::{DumpError, DumpRequest, Dumped, Leave, dump};
pub use dump_to_memory::dump_to_memory;
pub use find::{CRIU_ENV, Criu, FindCriuError, Version};
pub use log::Reason;
pub use pool::{Pool, Seat, TakeWorkerError};
pub use restore::{Inherited, RestoreError, RestoreRequest, Restored, restore};
pub use worker::{CallError, Output, StartWorkerError, Worker};

use std::path::{Path, PathBuf};

pub use crate::sandbox::ExternalMount;

/// What dump is told: the mount at this place has this name.
fn named(mount: &ExternalMount) -> String {
    format!("mnt[{}]:{}", mount.inside.display(), mount.key)
}

/// What restore is told: the mount of this name is found here.
fn found(mount: &ExternalMount) -> String {
    format!("mnt[{}]:{}", mount.key, mount.outside.display())
}

/// Files that share a folder with the images and are no part of them.
const LOG_FILE: &str = "criu.log";

fn log_path(images: &Path) -> PathBuf {
    images.join(LOG_FILE)
}
