//! Moving restored processes into a housing: they come with a network namespace and an output pipe of their own.
//!
//! CRIU is started before it is known for whom, so the namespace and the pipe that it hands to the processes exist
//! before the housing learns of them. A [`Seat`] is made for each waiting worker; its [`Intake`] is what the
//! housing takes over when the worker's turn comes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::criu::{Inherited, Output, Seat};

use super::housing::Housing;
use super::http::{self, Request, RequestError, Response};
use super::log::{Log, Pipe};
use super::netns;
use super::tree::{Ended, Tree};

/// What a housing takes over from a worker.
#[derive(Debug)]
pub struct Intake {
    network: OwnedFd,
    pipe: Pipe,
}

/// Makes what one waiting worker needs: a fresh network namespace and an output pipe. Blocks for some milliseconds.
pub fn seat() -> io::Result<Seat<Intake>> {
    let netns = netns::create()?;
    let pipe = Pipe::new()?;
    let output = Output { stdout: pipe.sink()?, stderr: pipe.sink()? };
    let network = netns.try_clone()?;
    Ok(Seat { netns, output: Some(output), keep: Intake { network, pipe } })
}

impl Housing {
    /// Takes over a worker's namespace and pipe, in place of those the sandbox had.
    ///
    /// Returns the old pipe as CRIU's images name it, and what stands for it now.
    pub fn move_in(&mut self, intake: Intake) -> io::Result<Vec<(String, Inherited)>> {
        let Intake { network, pipe } = intake;
        let old = self.log.pipe_name()?;
        pipe.give_to(self.spec.uid, self.spec.gid)?;
        self.log.attach(pipe)?;
        self.network = network.into();
        Ok(vec![(old, Inherited::Stdout)])
    }

    /// A way in for requests that does not borrow the housing.
    pub fn entrance(&self, tree: &Tree) -> Entrance {
        Entrance {
            door: self.host.shared.door.clone(),
            network: self.network.clone(),
            port: self.spec.port,
            log: self.log.clone(),
            tree: tree.clone(),
        }
    }

    /// Bytes of the sandbox's private files, which stay when its processes go.
    pub fn private_bytes(&self) -> u64 {
        used_bytes(self.private_dir())
    }
}

/// Bytes in use of the file system that a folder is in.
pub(super) fn used_bytes(folder: &Path) -> u64 {
    let Ok(fs) = nix::sys::statvfs::statvfs(folder) else { return 0 };
    fs.blocks().saturating_sub(fs.blocks_free()) * fs.fragment_size()
}

/// A way into a sandbox for one request after the other. Holds its log and its end in view.
#[derive(Debug)]
pub struct Entrance {
    door: netns::Door,
    network: std::sync::Arc<OwnedFd>,
    port: u16,
    log: Log,
    tree: Tree,
}

impl Entrance {
    /// Sends one request in. Cancel-safe: dropping it closes the connection.
    pub async fn request(&self, request: Request) -> Result<Response, RequestError> {
        http::exchange(self.door.connect(&self.network, self.port), self.port, request).await
    }

    /// Whether nobody in there can see a request any more; see [`Tree::is_ending`].
    pub fn is_ending(&self) -> bool {
        self.tree.is_ending()
    }

    /// Waits until the sandbox's first process has ended. Cancel-safe.
    pub async fn ended(&self) -> Ended {
        self.tree.ended().await
    }

    /// What the sandbox prints.
    pub fn log(&self) -> &Log {
        &self.log
    }
}
