//! Nodes that people keep work away from: cordoned, or being drained.
//!
//! It is kept by name, so it outlives the node's agent: who drains a node for an upgrade also says when work may come
//! again.

use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NodeId, SandboxId},
    standing::Standing,
    trace::NodeChange,
};

use super::{
    Action, Driver, failure,
    state::{Node, Sandbox},
};
use crate::now::Now;

impl Driver {
    /// The same driver, with what people have said about nodes in an earlier life.
    #[must_use]
    pub fn with_standings(mut self, standings: impl IntoIterator<Item = (NodeId, Standing)>) -> Self {
        self.standings.extend(standings.into_iter().filter(|(_, standing)| *standing != Standing::Open));
        self
    }

    /// What a node is given to do.
    pub fn standing(&self, node: &NodeId) -> Standing {
        self.standings.get(node).copied().unwrap_or(Standing::Open)
    }

    /// Nodes that are connected and open.
    pub fn nodes_open(&self) -> usize {
        let open = |(name, node): &(&NodeId, &Node)| {
            node.connection.is_some() && self.standing(name) == Standing::Open
        };
        self.nodes.iter().filter(open).count()
    }

    /// Whether a node may be given this standing; whether that changes anything.
    ///
    /// # Errors
    /// A node that was never here cannot be kept from work, and not more than there may be nodes.
    pub fn may_stand(&self, node: &NodeId, standing: Standing) -> Result<bool, Failure> {
        let known = self.nodes.contains_key(node) || self.standings.contains_key(node);
        if !known && standing != Standing::Open {
            return Err(failure(FailureKind::NotFound, format!("there is no node {node}")));
        }
        if !self.standings.contains_key(node) && self.standings.len() >= self.settings.nodes_max {
            return Err(failure(FailureKind::Busy, "too many nodes are kept from work already"));
        }
        Ok(self.standing(node) != standing)
    }

    pub(super) fn stand(&mut self, now: Now, node: &NodeId, standing: Standing, out: &mut Vec<Action>) {
        if self.standing(node) == standing {
            return;
        }
        let change = match standing {
            Standing::Cordoned => NodeChange::Cordoned,
            Standing::Draining => NodeChange::Draining,
            Standing::Open | Standing::Unspecified => NodeChange::Opened,
        };
        match standing {
            Standing::Cordoned | Standing::Draining => drop(self.standings.insert(node.clone(), standing)),
            Standing::Open | Standing::Unspecified => drop(self.standings.remove(node)),
        }
        let all: Vec<SandboxId> =
            self.nodes.get(node).map(|node| node.sandboxes.iter().copied().collect()).unwrap_or_default();
        self.tell_node(node, change, all.len(), out);
        for id in all {
            self.touch(now, id, out);
        }
        if standing == Standing::Draining {
            self.copy_away(node);
        }
        self.wake_waiting();
    }

    /// A sandbox that is to end as soon as nobody uses it, because of where it is.
    pub(super) fn is_drained(&self, sandbox: &Sandbox) -> bool {
        self.standing(sandbox.goes_to()) == Standing::Draining
    }
}
