//! Nodes that people keep work away from: cordoned, being drained, or put to rest.
//!
//! It is kept by name, so it outlives the node's agent: who drains a node for an upgrade also says when work may come
//! again.

use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NodeId, SandboxId},
    standing::Standing,
    trace::{Alternative, Choice, NodeChange, What},
};

use super::{
    Action, Driver, PurgeReason, failure,
    state::{Life, Node, Sandbox},
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
            Standing::Resting => NodeChange::Resting,
            Standing::Open | Standing::Unspecified => NodeChange::Opened,
        };
        match standing {
            Standing::Open | Standing::Unspecified => drop(self.standings.remove(node)),
            _ => drop(self.standings.insert(node.clone(), standing)),
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

    /// A sandbox that gets no more requests because of where it is.
    pub(super) fn is_out_of_service(&self, sandbox: &Sandbox) -> bool {
        matches!(self.standing(sandbox.goes_to()), Standing::Draining | Standing::Resting)
    }

    /// Nobody uses a sandbox of a node that is being put to rest: it is parked or deduplicated, and what cannot be ends. What rests already is
    /// left to the policy.
    pub(super) fn go_to_rest(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        if sandbox.life.is_put_away() {
            return self.arm_review(now, id);
        }
        if sandbox.life != Life::Warm {
            return;
        }
        if sandbox.dump_blocked_until.is_some_and(|until| until > now) {
            self.purge(now, id, PurgeReason::Drained, None, out);
            return;
        }
        self.decide(id, What::Review(rest_choice(self.parks(id))), out);
        match self.parks(id) {
            true => self.park(now, id, out),
            false => self.dedup(now, id, false, None, out),
        };
    }
}

fn rest_choice(parks: bool) -> Choice {
    let what = if parks { "park" } else { "dedup" };
    let mut choice = Choice::of(Alternative::new(what, "its node is being put to rest"));
    choice.reject(Alternative::new("keep", "what is warm ends with its agent"));
    choice
}
