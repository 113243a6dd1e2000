//! The description of one service: written by a deployment, read by `medes-supervise`, turned into a unit for systemd.

use std::{net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};

/// In `args`: the folder of the version that the service is part of.
pub const HERE: &str = "{here}";

/// One program that is kept running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// One sentence, for people.
    pub description: String,
    /// Relative to the version's folder.
    pub program: String,
    /// [`HERE`] stands for the version's folder.
    pub args: Vec<String>,
    /// All that the program may ever have, as the kernel names them (`CAP_KILL`). Empty: none.
    pub capabilities: Vec<String>,
    /// How long it may take to end when it is told to. After that it is killed.
    pub stop_within_s: u32,
    /// Opened before the program starts and kept when it ends: who connects meanwhile waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sockets: Vec<Socket>,
}

/// A listening socket that the program inherits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Socket {
    /// What the program knows it by (`LISTEN_FDNAMES`).
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Service {
    /// The arguments of the version in `folder`.
    pub fn args_in(&self, folder: &Path) -> Vec<String> {
        let folder = folder.to_string_lossy();
        self.args.iter().map(|arg| arg.replace(HERE, &folder)).collect()
    }
}
