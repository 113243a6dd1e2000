//! Control groups: one for the node, below it one for the agent, one for the keeper and one per sandbox.
//!
//! Works on cgroup v2 and on the hybrid layout (memory, pids and freezer as v1 hierarchies beside an empty
//! unified one). A group is therefore a set of directories with one name, one per hierarchy ([`Branch`]).
//! Everything is created below the group this process is in, so limits set on the agent from outside keep holding; or in a scope of systemd
//! (`super::scope`), and then limits belong to the slice that both are in.

mod branch;
mod files;
mod group;
mod node;

pub use branch::{Branch, Kind};
pub(crate) use branch::{groups_of, own_groups};
pub use group::{Limits, SandboxCgroup, Usage};
pub(crate) use node::{KEEPER as KEEPER_GROUP, group_name};
pub use node::{NodeCgroup, kill_and_remove};

use std::io;
use std::path::PathBuf;

/// Why something with a control group did not work.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The machine has no hierarchy this could work with.
    #[error(
        "no usable cgroup hierarchy: neither cgroup2 nor a v1 memory, pids or freezer hierarchy is mounted"
    )]
    NoHierarchy,
    /// One file or directory refused.
    #[error("{doing} {path}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Processes did not die, or directories did not go away, before the deadline.
    #[error("{path} still has {processes} processes after {waited_ms} ms")]
    StillPopulated {
        /// The group's directory.
        path: PathBuf,
        /// How many processes are still in it.
        processes: usize,
        /// How long was waited.
        waited_ms: u64,
    },
    /// The group did not freeze before the deadline.
    #[error("{path} did not freeze within {waited_ms} ms")]
    NotFrozen {
        /// The group's directory.
        path: PathBuf,
        /// How long was waited.
        waited_ms: u64,
    },
}

impl CgroupError {
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}
