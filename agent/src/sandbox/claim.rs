//! A node's name is taken, and with it what the agent before left under that name.

use std::io;
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};

use super::cgroup::Branch;
use super::host::{self, HostError};
use super::spec::check_name;
use crate::keeper::{self, Before, Key, Left};
use crate::memory_file::MappedFile;

/// The name of a node, for as long as this is there, in whatever way the process ends.
#[derive(Debug)]
pub struct Claim {
    pub(super) lock: UnixListener,
    pub(super) left: Vec<Left>,
    /// Who waits until all of it is served.
    pub(super) before: Option<Before>,
    pub(super) standing: Option<Standing>,
}

/// The node as the agent before left it, with parked sandboxes in it.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) place: Place,
    /// The mount namespace that they were mounted in.
    mounts: OwnedFd,
}

/// Where everything of a node is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Its control groups.
    pub(crate) branches: Vec<Branch>,
    /// Its run directory.
    pub(crate) run_dir: PathBuf,
}

impl Claim {
    /// Takes the name, and receives what was left, which stays the keeper's until the node is started. Blocks until the keeper of an agent that has
    /// just ended has cleaned up.
    ///
    /// # Errors
    /// Another agent of this name runs, or it is no name.
    pub fn new(node: &str) -> Result<Self, HostError> {
        check_name("node", node)?;
        let lock = lock_name(node)?;
        let (left, before) = keeper::receive(node).unwrap_or_else(|error| {
            tracing::warn!(%error, "what the agent before left did not arrive");
            (Vec::new(), None)
        });
        let (of_node, left): (Vec<_>, Vec<_>) = left.into_iter().partition(|left| left.key == Key::Node);
        match of_node.into_iter().next().map(Standing::of).transpose() {
            Ok(standing) => Ok(Self { lock, left, before, standing }),
            Err(error) => {
                tracing::warn!(%error, "what the agent before left makes no sense here, and ends");
                // Its keeper ends what somebody has taken and does not serve.
                let begun = before.map_or(Ok(()), |before| before.begin());
                begun.map_err(HostError::io("decline what the agent before left"))?;
                Ok(Self { lock, left: Vec::new(), before: None, standing: None })
            }
        }
    }

    /// Gives this process the mount namespace that sandboxes of this node are in, or one of its own, and makes it the parent of its
    /// orphans.
    ///
    /// Before any thread: namespaces belong to threads, and only those started later follow. Nothing outside of this process changes.
    pub fn enter_mounts(&self) -> Result<(), HostError> {
        match &self.standing {
            None => host::enter_private_mounts(),
            Some(standing) => {
                setns(&standing.mounts, CloneFlags::CLONE_NEWNS)
                    .map_err(|errno| HostError::io("enter the mounts of the agent before")(errno.into()))?;
                host::have_private_mounts()
            }
        }
    }
}

impl Standing {
    fn of(left: Left) -> io::Result<Self> {
        let mut files = left.files.into_iter();
        let (Some(place), Some(mounts)) = (files.next(), files.next()) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let place = serde_json::from_slice(MappedFile::received(place)?.as_ref())?;
        Ok(Self { place, mounts })
    }
}

/// The name is taken for as long as the returned socket is open.
fn lock_name(node: &str) -> Result<UnixListener, HostError> {
    let address = SocketAddr::from_abstract_name(format!("medes-node-{node}"))
        .map_err(HostError::io("make the address of the node's name lock"))?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => HostError::Taken { node: node.to_owned() },
        _ => HostError::io("lock the node's name")(error),
    })
}
