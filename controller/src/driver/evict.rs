//! A node's memory: what it will use once everything under way is done, and who makes room.

use std::collections::BTreeSet;

use medes_proto::{
    ids::{FunctionName, NodeId, SandboxId},
    trace::What,
};

use super::{
    Action, Driver, PurgeReason,
    idle::Moment,
    state::{Kind, Life, Sandbox},
};
use crate::now::Now;

/// A sandbox that may be ended for room, and what keeping it is worth to the policy.
#[derive(Debug, Clone, Copy)]
struct Victim {
    id: SandboxId,
    worth: f64,
}

impl Driver {
    /// What a node may use. `None`: as much as it likes.
    pub(super) fn cap(&self, node: &NodeId) -> Option<u64> {
        let reported = self.nodes.get(node)?.memory.cap_bytes;
        let cap = match self.settings.node_cap_bytes {
            Some(ours) if reported == 0 => ours,
            Some(ours) => ours.min(reported),
            None => reported,
        };
        (cap > 0).then_some(cap)
    }

    /// What a node will use: its last report, what has changed since, and what commands under way will take. 0 if it is not there.
    pub(super) fn projected(&self, name: &NodeId) -> u64 {
        self.fullness.of(name)
    }

    /// Something that [`Self::projected`] counts has changed.
    pub(super) fn weigh(&mut self, name: &NodeId) {
        let reserved = self.under_way.reserved_bytes(name);
        let bytes = self.nodes.get(name).map(|node| {
            node.memory.used_bytes.saturating_add(reserved).saturating_add_signed(node.drift_bytes)
        });
        self.fullness.set(name, bytes);
    }

    pub(super) fn has_room(&self, node: &NodeId, need: u64) -> bool {
        self.cap(node).is_none_or(|cap| self.projected(node).saturating_add(need) <= cap)
    }

    /// What one more warm sandbox of a function is taken to need.
    pub(super) fn estimate(&self, name: &FunctionName) -> u64 {
        let Some(function) = self.functions.get(name) else { return self.settings.sandbox_bytes };
        let seen = function.warm_bytes.bytes();
        seen.unwrap_or(self.settings.sandbox_bytes).min(function.spec.memory_bytes)
    }

    /// Bytes that purges under way will free.
    fn on_its_way_out(&self, node: &NodeId) -> u64 {
        let purges = self.under_way.of_node(node).filter(|(_, pending)| pending.kind == Kind::Purge);
        purges
            .filter_map(|(_, pending)| self.sandboxes.get(&pending.sandbox?))
            .map(|sandbox| sandbox.report.private_bytes.max(sandbox.report.stored_bytes))
            .sum()
    }

    /// Purges idle sandboxes until `need` more bytes fit, once the purges are done. Those that are worth least to the policy
    /// first, sources of bases last, never one that runs. If all of them are not enough, none is purged.
    ///
    /// Returns whether there will be room.
    pub(super) fn make_room(
        &mut self,
        now: Now,
        node: &NodeId,
        need: u64,
        spare: Option<SandboxId>,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(victims) = self.victims(now, node, need, spare) else { return false };
        self.evict(now, node, need, &victims, out);
        true
    }

    /// The same for what nobody waits for: only those go that are worth less than `worth`.
    pub(super) fn make_room_below(
        &mut self,
        now: Now,
        node: &NodeId,
        need: u64,
        worth: f64,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(victims) = self.victims(now, node, need, None) else { return false };
        let is_worth_it = victims.iter().all(|victim| victim.worth < worth);
        if is_worth_it {
            self.evict(now, node, need, &victims, out);
        }
        is_worth_it
    }

    fn evict(&mut self, now: Now, node: &NodeId, need: u64, victims: &[Victim], out: &mut Vec<Action>) {
        let all: Vec<SandboxId> = victims.iter().map(|victim| victim.id).collect();
        for &Victim { id, worth } in victims {
            let choice = self.eviction_choice(node, need, id, &all);
            self.decide(id, What::Eviction(choice), out);
            self.given_up(now, id);
            self.purge(now, id, PurgeReason::Evicted, None, out);
            if let Some(node) = self.nodes.get_mut(node) {
                node.clock = node.clock.max(worth);
                node.price.pay(now, worth);
            }
        }
        for function in self.functions_behind(&all) {
            self.evicted(now, &function, node);
        }
    }

    /// It will not be used any more, and might have been.
    fn given_up(&mut self, now: Now, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get(&id).filter(|sandbox| sandbox.uses > 0) else { return };
        if let Some(function) = self.functions.get_mut(&sandbox.function) {
            function.reuses.give_up(now.since(sandbox.last_used));
        }
    }

    fn functions_behind(&self, sandboxes: &[SandboxId]) -> BTreeSet<FunctionName> {
        let known = sandboxes.iter().filter_map(|id| self.sandboxes.get(id));
        known.map(|sandbox| sandbox.function.clone()).collect()
    }

    /// How many bytes have to go for `need` more to fit. `None`: none may be added at all.
    fn excess(&self, node: &NodeId, need: u64) -> Option<u64> {
        if !self.is_reachable(node) {
            return None;
        }
        let Some(cap) = self.cap(node) else { return Some(0) };
        let wanted = self.projected(node).saturating_add(need);
        Some(wanted.saturating_sub(cap).saturating_sub(self.on_its_way_out(node)))
    }

    /// Whether room can be made at all.
    fn can_make_room(&self, node: &NodeId, need: u64) -> bool {
        let idle = |excess| excess == 0 || self.idle_on(node).map(Sandbox::held_bytes).sum::<u64>() >= excess;
        self.excess(node, need).is_some_and(idle)
    }

    fn victims(&self, now: Now, node: &NodeId, need: u64, spare: Option<SandboxId>) -> Option<Vec<Victim>> {
        let over = self.excess(node, need)?;
        let (victims, left) = self.worth_least(now, node, over, spare);
        (left == 0).then_some(victims)
    }

    /// Idle sandboxes of a node that hold so many bytes together, those that are worth least; and how many bytes are still left
    /// after all of them.
    fn worth_least(
        &self,
        now: Now,
        node: &NodeId,
        mut over: u64,
        spare: Option<SandboxId>,
    ) -> (Vec<Victim>, u64) {
        let mut victims = Vec::new();
        if over == 0 {
            return (victims, 0);
        }
        for victim in self.idle_by_worth(now, node).into_iter().filter(|victim| Some(victim.id) != spare) {
            if over == 0 {
                break;
            }
            over = over.saturating_sub(self.held_bytes(victim.id));
            victims.push(victim);
        }
        (victims, over)
    }

    fn held_bytes(&self, id: SandboxId) -> u64 {
        self.sandboxes.get(&id).map_or(0, |sandbox| sandbox.held_bytes())
    }

    /// The idle sandboxes of a node that hold memory.
    fn idle_on(&self, node: &NodeId) -> impl Iterator<Item = &Sandbox> {
        let all = self.nodes.get(node).into_iter().flat_map(|node| &node.sandboxes);
        all.filter_map(|id| self.sandboxes.get(id))
            .filter(|sandbox| sandbox.is_idle() && sandbox.held_bytes() > 0)
    }

    /// The idle sandboxes of a node in the order in which they go.
    fn idle_by_worth(&self, now: Now, node: &NodeId) -> Vec<Victim> {
        let moment = Moment::of(self, now);
        let mut victims: Vec<_> = self
            .idle_on(node)
            .filter_map(|sandbox| {
                let view = sandbox.view(now)?;
                let worth = self.policy.worth(&moment, &sandbox.function, &view);
                Some((view.is_base_source, Victim { id: sandbox.id, worth }))
            })
            .collect();
        victims.sort_unstable_by(|(a_base, a), (b_base, b)| {
            a_base.cmp(b_base).then(a.worth.total_cmp(&b.worth)).then(a.id.cmp(&b.id))
        });
        victims.into_iter().map(|(_, victim)| victim).collect()
    }

    /// Makes room on the emptiest node where it can be made.
    pub(super) fn make_room_anywhere(&mut self, now: Now, need: u64, out: &mut Vec<Action>) {
        let may = |name: &&NodeId| self.may_start_on(now, name) && self.can_make_room(name, need);
        let possible = self.fullness.emptiest_first().find(may).cloned();
        if let Some(node) = possible {
            self.make_room(now, &node, need, None, out);
        }
    }

    /// A report says that a node is over its cap.
    pub(super) fn relieve(&mut self, now: Now, node: &NodeId, out: &mut Vec<Action>) {
        let (Some(cap), Some(used)) = (self.cap(node), self.nodes.get(node).map(|n| n.memory.used_bytes))
        else {
            return;
        };
        let over = used.saturating_sub(cap).saturating_sub(self.on_its_way_out(node));
        let (victims, _left) = self.worth_least(now, node, over, None);
        self.evict(now, node, 0, &victims, out);
    }

    /// A sandbox's memory has changed since its node's last report.
    pub(super) fn drift(&mut self, name: &NodeId, by: i64) {
        if let Some(node) = self.nodes.get_mut(name) {
            node.drift_bytes = node.drift_bytes.saturating_add(by);
        }
        self.weigh(name);
    }

    /// Memory of a sandbox in its present life, as far as known.
    pub(super) fn footprint(&self, id: SandboxId) -> i64 {
        let bytes = self.sandboxes.get(&id).map_or(0, |sandbox| match sandbox.life {
            Life::Starting => 0,
            _ => sandbox.held_bytes(),
        });
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }
}
