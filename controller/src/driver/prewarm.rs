//! Sandboxes that are there before a request is: functions that have none get one when the policy says.

use std::time::Duration;

use medes_proto::ids::{FunctionName, NodeId, SandboxId};

use super::{
    Action, Driver,
    idle::{Moment, POLICY_ASKS},
    state::{Life, Sandbox, Timer},
};
use crate::now::Now;

/// Nodes on which room is looked for, for a sandbox that nobody waits for.
const NODES_MAX: usize = 8;
/// Whoever was ended for it is gone after this, most times.
const ROOM_COMES: Duration = Duration::from_millis(500);
/// Where there is no room, it is looked for again after this.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

impl Driver {
    /// The function of this sandbox gets one again after `wait`, if it has none then.
    pub(super) fn prewarm_after(&mut self, now: Now, id: SandboxId, wait: Duration) {
        let Some(name) = self.sandboxes.get(&id).map(|sandbox| sandbox.function.clone()) else { return };
        self.prewarm_at(&name, now.after(wait));
    }

    fn prewarm_at(&mut self, name: &FunctionName, at: Now) {
        if let Some(function) = self.functions.get_mut(name) {
            function.prewarm_at = Some(at);
            self.arm(at, Timer::Functions);
        }
    }

    /// A function may have lost its last sandbox for room on a node: it gets one again when the policy says.
    pub(super) fn evicted(&mut self, now: Now, name: &FunctionName, node: &NodeId) {
        if self.has_one(name) {
            return;
        }
        let price = self.nodes.get(node).map_or(0.0, |node| node.price.at(now));
        let function = self.function_view(name);
        let wait =
            function.and_then(|function| self.policy.back_after(&Moment::of(self, now), &function, price));
        if let Some(wait) = wait {
            self.prewarm_at(name, now.after(wait));
        }
    }

    /// Starts sandboxes that a policy wants to be there before the requests are.
    pub(super) fn prewarm_due(&mut self, now: Now, out: &mut Vec<Action>) {
        let due = |function: &mut super::state::Function| {
            function.prewarm_at.take_if(|at| *at <= now).is_some() && function.queue.is_empty()
        };
        let due: Vec<FunctionName> = self
            .functions
            .iter_mut()
            .filter_map(|(name, function)| due(function).then(|| name.clone()))
            .collect();
        for name in due {
            if self.has_one(&name) || self.stopping {
                continue;
            }
            match self.pick_node(now, &name) {
                Some(node) => drop(self.start(now, &name, (&node, true), None, POLICY_ASKS, out)),
                None => self.make_room_ahead(now, &name, out),
            }
        }
    }

    fn has_one(&self, name: &FunctionName) -> bool {
        let wanted = |sandbox: &Sandbox| sandbox.life != Life::Purging && !self.is_unwanted(sandbox);
        self.of_function(name).any(wanted)
    }

    /// Room for a sandbox that nobody waits for yet: only those go that are worth less.
    fn make_room_ahead(&mut self, now: Now, name: &FunctionName, out: &mut Vec<Action>) {
        let Some(function) = self.function_view(name) else { return };
        let Some(worth) = self.policy.worth_of_new(&Moment::of(self, now), &function) else { return };
        let need = self.estimate(name);
        let may = |node: &&NodeId| self.may_start_on(now, node);
        let nodes: Vec<NodeId> =
            self.fullness.emptiest_first().filter(may).take(NODES_MAX).cloned().collect();
        if nodes.into_iter().any(|node| self.make_room_below(now, &node, need, worth, out)) {
            return self.prewarm_at(name, now.after(ROOM_COMES));
        }
        let Some(function) = self.function_view(name) else { return };
        let prices = self.nodes.values().map(|node| node.price.at(now));
        let price = prices.min_by(f64::total_cmp).unwrap_or(0.0);
        if let Some(wait) = self.policy.back_after(&Moment::of(self, now), &function, price) {
            self.prewarm_at(name, now.after(wait.max(LOOK_AGAIN)));
        }
    }
}
