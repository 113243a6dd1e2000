//! The only room that knows CRIU: it freezes a sandbox into image files and makes a sandbox of them again.
//!
//! CRIU runs as `criu swrk`, one process per request, started before it is needed ([`Pool`]) and spoken to over a
//! socket ([`Worker`]). A worker lives in the network namespace of the sandbox it serves, because CRIU then leaves
//! that namespace alone instead of running a dozen helper programs for it.
//!
//! - [`Criu`]: which CRIU, its version, `criu check`
//! - [`dump`] and [`restore`]: the two requests, each with one error type that says what can be done about it
//! - [`preflight`]: sees what would be refused before anything is frozen
//! - [`images`]: reads the files of a dump, trusting nothing in them
//! - [`tree`]: the processes of a sandbox, and letting a stopped one run
//! - [`run_dir`]: keeps CRIU's kernel feature cache warm where `/run` is not a tmpfs
//!
//! CRIU needs to be root here. Nothing in this room changes the host.

mod check;
mod dump;
mod find;
mod image_file;
pub mod images;
mod log;
mod pool;
pub mod preflight;
mod restore;
pub mod run_dir;
mod spawn;
mod stats;
pub mod tree;
mod wire;
mod worker;

pub use check::{AskCriuError, CheckCriuError};
pub use dump::{DumpError, DumpRequest, Dumped, Leave, dump};
pub use find::{CRIU_ENV, Criu, FindCriuError, Version};
pub use log::Reason;
pub use pool::{Pool, Seat, TakeWorkerError};
pub use restore::{Inherited, RestoreError, RestoreRequest, Restored, restore};
pub use worker::{CallError, Output, StartWorkerError, Worker};

use std::path::{Path, PathBuf};

/// A mount of the sandbox that exists outside of it as well: CRIU is told to leave it out of the images and to bind
/// it again at restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalMount {
    /// Joins the two sides. Any short name without `:`, `[` or `]`, unique in its sandbox.
    pub key: String,
    /// Where the sandbox sees it.
    pub inside: PathBuf,
    /// Where the agent sees what is to be bound there at restore.
    pub outside: PathBuf,
}

impl ExternalMount {
    /// What dump is told: the mount at this place has this name.
    fn at_dump(&self) -> String {
        format!("mnt[{}]:{}", self.inside.display(), self.key)
    }

    /// What restore is told: the mount of this name is found here.
    fn at_restore(&self) -> String {
        format!("mnt[{}]:{}", self.key, self.outside.display())
    }
}

/// Files that share a folder with the images and are no part of them.
const LOG_FILE: &str = "criu.log";

fn log_path(images: &Path) -> PathBuf {
    images.join(LOG_FILE)
}
