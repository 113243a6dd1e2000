//! A scope of systemd for the node: control groups that do not end with the agent's service.
//!
//! systemd ends all that is in a service's control groups with the service. What waits for the next agent on the node must therefore be
//! elsewhere, and systemd has scopes for that: groups of processes that it did not start, delegated to who asked for them
//! (systemd.scope(5), and CGROUP_DELEGATION.md of systemd). The first process in this one is the keeper, and it is there for as long as anything of the node is.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::Pid;

use super::cgroup::{Branch, groups_of, own_groups};

/// How long systemd may take. It is asked once, when the agent starts.
const ENTER_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
/// How long what is in the scope may take to end when it is told to.
const STOP_SECONDS: u32 = 20;

/// Why the node has no scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    /// Which groups a process is in could not be read.
    #[error("read the control groups of {whose}")]
    Groups {
        /// Whose.
        whose: String,
        /// What the system said.
        source: io::Error,
    },
    /// What the node uses is counted in its slice, so that must be its own.
    #[error("this service is in {}; give it a slice of its own (Slice=medes.slice)", dir.display())]
    Slice {
        /// The group that the service's is in.
        dir: PathBuf,
    },
    /// The keeper is where it was started.
    #[error("systemd made no scope within {} s; is it process 1 here?", ENTER_WAIT.as_secs())]
    NotEntered,
}

/// The node's control groups, where they are not below the agent's own.
#[derive(Debug)]
pub(crate) struct Scope {
    /// The groups of the scope.
    pub(crate) branches: Vec<Branch>,
    /// The process in it.
    pub(crate) keeper: Pid,
}

/// Sees to it that nothing of others is in the slice that the agent's service is in.
pub(crate) fn check_slice() -> Result<(), ScopeError> {
    let own = own_groups()
        .map_err(|source| ScopeError::Groups { whose: format!("process {}", std::process::id()), source })?;
    own.iter().try_for_each(|service| slice_of(service).map(drop))
}

fn slice_of(service: &Branch) -> Result<Branch, ScopeError> {
    let slice = service.parent();
    let name = slice.dir.file_name().unwrap_or_default().to_string_lossy();
    let is_own = name.ends_with(".slice") && !["system.slice", "user.slice"].contains(&&*name);
    if is_own { Ok(slice) } else { Err(ScopeError::Slice { dir: slice.dir }) }
}

/// What starts the keeper in a scope, in the slice of this service.
pub(crate) fn command(program: &Path, node: &str) -> Command {
    let mut command = Command::new("systemd-run");
    // A number of its own: the scope of an agent before may still be there.
    let unit = format!("--unit=medes-{node}-{}", std::process::id());
    command.args(["--scope", "--quiet", "--collect", "--slice-inherit", &unit]);
    command.arg(format!("--description=Sandboxes of node {node}"));
    command.args(["--property=Delegate=yes", &format!("--property=TimeoutStopSec={STOP_SECONDS}"), "--"]);
    command.arg(program);
    command
}

/// Waits until the keeper is in groups of its own.
pub(crate) async fn entered(keeper: Pid) -> Result<Scope, ScopeError> {
    let groups = |source| ScopeError::Groups { whose: format!("process {keeper}"), source };
    let own = own_groups().map_err(groups)?;
    let mut waited = Duration::ZERO;
    loop {
        let branches = groups_of(keeper).map_err(groups)?;
        if branches.iter().zip(&own).all(|(its, own)| its.dir != own.dir) {
            return Ok(Scope { branches, keeper });
        }
        if waited >= ENTER_WAIT {
            return Err(ScopeError::NotEntered);
        }
        tokio::time::sleep(POLL).await;
        waited += POLL;
    }
}

#[cfg(test)]
mod tests {
    use super::super::cgroup::Kind;
    use super::*;

    #[test]
    fn the_slice_is_one_that_nobody_else_is_in() {
        let service = |dir: &str| Branch { kind: Kind::Unified, dir: dir.into(), top: "/c".into() };
        let slice = slice_of(&service("/c/medes.slice/medes-agent.service")).unwrap();
        assert_eq!(slice.dir, Path::new("/c/medes.slice"));
        for shared in ["/c/system.slice/medes-agent.service", "/c/user.slice/x", "/c/x/y", "/c"] {
            assert!(matches!(slice_of(&service(shared)), Err(ScopeError::Slice { .. })), "{shared}");
        }
    }
}
