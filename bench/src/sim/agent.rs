//! What a simulated node holds.

use std::collections::BTreeMap;

use medes_controller::now::Now;
use medes_proto::{
    function::FunctionSpec,
    ids::{FunctionName, SandboxId, SnapshotId},
    sandbox::SandboxState,
};

use super::costs::Cost;

/// A sandbox, as its agent knows it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) function: u32,
    pub(super) revision: u64,
    pub(super) state: SandboxState,
    pub(super) bases: Vec<SnapshotId>,
    /// What its dedup image holds, if it has one.
    pub(super) stored_bytes: u64,
    pub(super) source_of: Option<SnapshotId>,
    /// Since when nobody has used it; `None` while somebody does.
    pub(super) idle_since: Option<Now>,
    pub(super) open: u32,
}

/// One node.
#[derive(Debug, Default)]
pub(super) struct Agent {
    pub(super) sandboxes: BTreeMap<SandboxId, Held>,
    pub(super) snapshots: BTreeMap<SnapshotId, u32>,
    pub(super) used_bytes: u64,
}

/// A function as its agent is told of it: nothing of it is ever run.
pub(super) fn spec(name: &FunctionName, cost: &Cost) -> FunctionSpec {
    let text = format!("name = '{name}'\ncommand = ['x']");
    let spec = FunctionSpec::from_toml(&text).unwrap_or_else(|_| unreachable!("a plain function file"));
    FunctionSpec { memory_bytes: cost.warm_bytes, ..spec }
}
