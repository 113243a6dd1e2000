//! What people are shown: rows made from the driver's state, changing nothing.

use std::time::Duration;

use medes_proto::{
    fleet::{HeldKey, NodeMemory, SnapshotReport},
    function::FunctionSpec,
    ids::{FunctionName, NodeId, SandboxId, TenantName},
    sandbox::SandboxReport,
    standing::Standing,
};

use super::{
    Driver,
    state::{Node, Sandbox, SnapshotLife},
};
use crate::now::Now;

/// A function and its numbers.
#[derive(Debug, Clone)]
pub struct FunctionRow {
    /// The function.
    pub spec: FunctionSpec,
    /// Of its text.
    pub revision: u64,
    /// Warm sandboxes, serving or not.
    pub warm: usize,
    /// Sandboxes whose memory is taken.
    pub dedup: usize,
    /// Base snapshots.
    pub bases: usize,
    /// Requests since the controller's start.
    pub requests: u64,
    /// Cold starts since then.
    pub cold_starts: u64,
    /// Restores since then.
    pub restores: u64,
    /// Clones since then.
    pub clones: u64,
}

/// A sandbox and where it is.
#[derive(Debug, Clone)]
pub struct SandboxRow {
    /// As last reported, with the driver's own idea of its state.
    pub report: SandboxReport,
    /// Its node.
    pub node: NodeId,
}

/// A node and what it holds.
#[derive(Debug, Clone)]
pub struct NodeRow {
    /// Its name.
    pub name: NodeId,
    /// host:port of its Node service.
    pub address: String,
    /// Of its agent.
    pub version: String,
    /// As last reported.
    pub memory: NodeMemory,
    /// Since it was last heard.
    pub silent: Duration,
    /// Sandboxes on it.
    pub sandboxes: usize,
    /// Base snapshots on it.
    pub snapshots: Vec<SnapshotReport>,
    /// What it cannot do.
    pub lacks: Vec<String>,
    /// What it is given to do.
    pub standing: Standing,
    /// Its stream is open now.
    pub connected: bool,
    /// Of its agent's life.
    pub incarnation: u64,
    /// Inside its sandboxes, also those that nobody waits for any more.
    pub requests: usize,
    /// Of its sandboxes, those that are parked or in dedup and with which nothing is being done.
    pub resting: usize,
    /// Tenants' keys that it says it knows.
    pub keys: Vec<HeldKey>,
}

impl Driver {
    /// All functions, by name.
    pub fn function_rows(&self) -> Vec<FunctionRow> {
        let rows = self.functions.iter().filter_map(|(name, function)| {
            let view = self.function_view(name)?;
            Some(FunctionRow {
                spec: function.spec.clone(),
                revision: function.revision,
                warm: view.warm,
                dedup: view.dedup,
                bases: view.bases,
                requests: function.arrivals.total(),
                cold_starts: function.cold_starts,
                restores: function.restores,
                clones: function.clones,
            })
        });
        rows.collect()
    }

    /// Functions of a tenant, by name.
    pub fn functions_of(&self, tenant: &TenantName) -> Vec<FunctionName> {
        let own = self.functions.values().filter(|function| function.spec.tenant == *tenant);
        own.map(|function| function.spec.name.clone()).collect()
    }

    /// All sandboxes, by number.
    pub fn sandbox_rows(&self, now: Now) -> Vec<SandboxRow> {
        self.sandboxes.values().map(|sandbox| self.row_of(now, sandbox)).collect()
    }

    /// One of them.
    pub fn sandbox_row(&self, now: Now, id: SandboxId) -> Option<SandboxRow> {
        Some(self.row_of(now, self.sandboxes.get(&id)?))
    }

    fn row_of(&self, now: Now, sandbox: &Sandbox) -> SandboxRow {
        let mut report = sandbox.report.clone();
        report.state = sandbox.life.shown(!sandbox.open.is_empty());
        let running = !sandbox.open.is_empty();
        let since = if running { sandbox.last_used } else { sandbox.since.max(sandbox.last_used) };
        report.state_age = now.since(since);
        let reported = self.nodes.get(&sandbox.node).map_or(now, |node| node.heard);
        report.age = report.age.saturating_add(now.since(reported)).max(report.state_age);
        SandboxRow { report, node: sandbox.node.clone() }
    }

    /// All nodes that are connected, or were until a moment ago.
    pub fn node_rows(&self, now: Now) -> Vec<NodeRow> {
        let rows = self.nodes.iter().map(|(name, node)| NodeRow {
            name: name.clone(),
            address: node.address.clone(),
            version: node.version.clone(),
            memory: node.memory,
            silent: now.since(node.heard),
            sandboxes: node.sandboxes.len(),
            snapshots: self
                .snapshots
                .values()
                .filter(|snapshot| snapshot.is_on(name) && snapshot.life != SnapshotLife::Making)
                .map(|snapshot| snapshot.report.clone())
                .collect(),
            lacks: node.lacks.clone(),
            standing: self.standing(name),
            connected: node.connection.is_some(),
            incarnation: node.incarnation,
            requests: self.all_on(node).map(Sandbox::inside).sum(),
            resting: self.all_on(node).filter(|sandbox| sandbox.life.is_put_away() && !sandbox.busy).count(),
            keys: node.keys.clone(),
        });
        rows.collect()
    }

    fn all_on<'d>(&'d self, node: &'d Node) -> impl Iterator<Item = &'d Sandbox> {
        node.sandboxes.iter().filter_map(|id| self.sandboxes.get(id))
    }

    /// The node that has a sandbox, and its host:port.
    pub fn home_of(&self, id: SandboxId) -> Option<(NodeId, String)> {
        let node = &self.sandboxes.get(&id)?.node;
        Some((node.clone(), self.nodes.get(node)?.address.clone()))
    }

    /// Sandboxes of a function, in any state.
    pub fn sandboxes_of(&self, name: &FunctionName) -> usize {
        self.by_function.get(name).map_or(0, |all| all.len())
    }
}
