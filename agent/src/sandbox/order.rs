//! What the agent and the stage (the first step of a new sandbox, see `crate::stage`) say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::mounts::Bind;

/// Largest order; arguments and environment are bounded far below by `LaunchSpec::check`.
pub(crate) const ORDER_BYTES_MAX: usize = 1 << 20;
/// Largest report.
pub(crate) const REPORT_BYTES_MAX: usize = 16 << 10;

/// Everything the stage does, in plain values. Written by the agent, so it is already checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) hostname: String,
    pub(crate) command: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) dir: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) binds: Vec<Bind>,
    pub(crate) procs_files: Vec<PathBuf>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A line on the report pipe. The pipe closes without `Failed` when the function's program is running.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The sandbox's first process exists, with this number in the agent's pid namespace.
    Forked { pid: i32 },
    /// A step failed; the process ends.
    Failed { step: Step, path: Option<PathBuf>, errno: i32 },
}

/// The steps of the stage, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Read the order.
    Order,
    /// Enter the network namespace.
    Network,
    /// Leave the agent's namespaces.
    Unshare,
    /// Fork the first process of the new pid namespace.
    Fork,
    /// Join the control group.
    Cgroup,
    /// Become session leader.
    Session,
    /// Set the host name.
    Hostname,
    /// Mount something.
    Mount,
    /// Make the new root the root.
    Root,
    /// Enter the working folder.
    Dir,
    /// Open standard input.
    Stdin,
    /// Set resource limits.
    Limits,
    /// Become the function's user.
    User,
    /// Give up capabilities.
    Capabilities,
    /// Load the system call filters.
    Seccomp,
    /// Start the function's program.
    Exec,
    /// Start the function's program: it is there, but the interpreter or loader it names is not.
    Interpreter,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Order => "read the order",
            Self::Network => "enter the network namespace",
            Self::Unshare => "make namespaces",
            Self::Fork => "fork the first process",
            Self::Cgroup => "join the control group",
            Self::Session => "start a session",
            Self::Hostname => "set the host name",
            Self::Mount => "mount",
            Self::Root => "change the root directory",
            Self::Dir => "enter the working folder",
            Self::Stdin => "open standard input",
            Self::Limits => "set resource limits",
            Self::User => "change user",
            Self::Capabilities => "drop capabilities",
            Self::Seccomp => "load the system call filter",
            Self::Exec => "execute the command",
            Self::Interpreter => "find the interpreter of the command",
        })
    }
}
