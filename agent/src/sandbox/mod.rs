//! Runs functions as sandboxes: own namespaces, own cgroup, read-only root, bounded log, no capability.
//!
//! [`Host`] is what a node has once: the private run directory, the node's cgroup, the keeper.
//! [`Housing`] is what outlives the processes of one sandbox: folder, mounts, cgroup, log pipe and network namespace.
//! [`Tree`] is the processes themselves, from a cold start ([`Housing::launch`]) or from a CRIU restore
//! ([`Housing::adopt`]).

pub mod cgroup;
pub mod claim;
pub mod host;
pub mod housing;
pub mod http;
pub mod intake;
pub mod launch;
pub mod log;
pub mod mounts;
pub mod netns;
pub(crate) mod order;
pub mod scope;
pub(crate) mod seccomp;
pub mod spec;
pub(crate) mod sys;
pub mod tree;

pub use cgroup::{CgroupError, Usage};
pub use claim::Claim;
pub use host::{Host, HostConfig, HostError, enter_private_mounts};
pub(crate) use housing::KeptHousing;
pub use housing::{CreateError, Housing, RemoveError};
pub use http::{Request, RequestError, Response};
pub use intake::{Entrance, Intake, seat};
pub use launch::{LaunchError, NotReady};
pub(crate) use log::Pipe;
pub use log::{Log, LogLine, LogTail};
pub(crate) use mounts::TMPFS;
pub use mounts::{ExternalMount, MountError};
pub use order::Step;
pub use spec::{LaunchSpec, SandboxId, SpecError};
pub use tree::{AdoptError, Ended, KillError, Tree};
