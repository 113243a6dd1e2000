//! Nodes and what they say: attach, heartbeat, silence, loss. The agent is the source of truth for its sandboxes,
//! except about a sandbox that a command is under way for: there the command's answer comes first.

use std::collections::BTreeSet;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Hello, Inventory},
    ids::{NodeId, SandboxId},
    sandbox::{SandboxReport, SandboxState},
    trace::{About, Cause, NodeChange, What},
};

use super::{
    Action, CloseReason, ConnectionId, Driver, PurgeReason, failure,
    state::{Life, Node, Price, Sandbox, Timer},
};
use crate::now::Now;

/// Reports in a row that must contradict what the driver thinks before it believes them: one may have crossed the
/// answer to a command on its way.
const CONTRADICTIONS: u8 = 2;
/// A controller that is late by such a part of a node's silence has stood still.
const STOOD_STILL: u32 = 3;

impl Sandbox {
    pub(super) fn new(
        now: Now,
        node: NodeId,
        life: Life,
        requests_max: usize,
        report: SandboxReport,
    ) -> Self {
        let since = now.before(report.state_age);
        Self {
            id: report.id,
            function: report.function.clone(),
            revision: report.function_revision,
            node,
            life,
            since,
            last_used: since,
            requests_max,
            open: BTreeSet::new(),
            // The requests came through an earlier connection or controller.
            stray: report.open_requests as usize,
            busy: false,
            called_back: false,
            quiet: false,
            review_at: None,
            dump_blocked_until: None,
            dump_failures: 0,
            moving: None,
            went_to: None,
            move_after: None,
            last_start: None,
            decided: None,
            kept: None,
            uses: 0,
            clock: 0.0,
            contradicted: 0,
            warm_bytes: 0,
            report,
        }
    }
}

impl Driver {
    pub(super) fn attached(
        &mut self,
        now: Now,
        connection: ConnectionId,
        hello: Hello,
        out: &mut Vec<Action>,
    ) {
        let name = hello.node.clone();
        if !self.nodes.contains_key(&name) && self.nodes.len() >= self.settings.nodes_max {
            return out.push(Action::Close { connection, why: CloseReason::TooManyNodes });
        }
        if let Some(old) = self.nodes.get(&name) {
            if let Some(connection) = old.connection {
                self.connections.remove(&connection);
                out.push(Action::Close { connection, why: CloseReason::Replaced });
            }
            if old.incarnation == hello.incarnation {
                self.cut_commands(now, &name, out);
            } else {
                // A new agent: nothing of what the old one held is left.
                self.lose_node(now, &name, false, out);
            }
        }
        self.connections.insert(connection, name.clone());
        let sandboxes = self.nodes.remove(&name).map(|old| old.sandboxes).unwrap_or_default();
        let Hello { node: _, incarnation, version, address, inventory, lacks } = hello;
        let node = Node {
            incarnation,
            version,
            address,
            lacks,
            connection: Some(connection),
            heard: now,
            memory: inventory.memory,
            drift_bytes: 0,
            avoid_until: None,
            clock: 0.0,
            price: Price::default(),
            shed_after: None,
            sandboxes,
            told: BTreeSet::new(),
            keys: inventory.keys,
        };
        self.nodes.insert(name.clone(), node);
        self.weigh(&name);
        self.arm(now.after(self.settings.silent_max), Timer::Nodes);

        // The Welcome goes first on the stream, but what it purges, and whose keys it tells, is only known after the inventory is read.
        let welcome_at = out.len();
        let ghosts = &mut self.ghosts;
        inventory.sandboxes.iter().for_each(|report| drop(ghosts.remove(&report.id)));
        self.check_bases = true;
        self.want_copies(inventory.sandboxes.iter().flat_map(|report| &report.bases).copied());
        let purge = self.reconcile(now, &name, inventory.sandboxes, true, out);
        self.reconcile_snapshots(now, &name, inventory.snapshots, true, out);
        let (idle, tenants) = (self.settings.keeping.idle, self.tell_all_keys(&name));
        out.insert(welcome_at, Action::Welcome { connection, idle, purge, tenants });
        self.try_copies_again();
        let sandboxes = self.nodes.get(&name).map_or(0, |node| node.sandboxes.len());
        self.tell_node(&name, NodeChange::Attached, sandboxes, out);
        self.wake_waiting();
    }

    pub(super) fn detached(&mut self, now: Now, connection: ConnectionId, out: &mut Vec<Action>) {
        let Some(name) = self.connections.remove(&connection) else { return };
        if let Some(node) = self.nodes.get_mut(&name) {
            node.connection = None;
        }
        self.cut_commands(now, &name, out);
        self.hide_snapshots(now, &name, None, out);
        let sandboxes = self.nodes.get(&name).map_or(0, |node| node.sandboxes.len());
        self.tell_node(&name, NodeChange::Away, sandboxes, out);
        // Its grace runs from when it was last heard, as if it were silent.
        self.arm(now, Timer::Nodes);
    }

    pub(super) fn reported(
        &mut self,
        now: Now,
        connection: ConnectionId,
        inventory: Inventory,
        out: &mut Vec<Action>,
    ) {
        let Some(name) = self.connections.get(&connection).cloned() else { return };
        if let Some(node) = self.nodes.get_mut(&name) {
            node.heard = now;
            node.memory = inventory.memory;
            node.drift_bytes = 0;
            node.keys = inventory.keys;
        }
        self.weigh(&name);
        for stranger in self.reconcile(now, &name, inventory.sandboxes, false, out) {
            self.purge_stranger(now, &name, stranger, out);
        }
        self.reconcile_snapshots(now, &name, inventory.snapshots, false, out);
        self.correct_keys(connection, &name, out);
        // There may be room for a copy now, or too little for one that is there.
        self.check_copies = true;
        self.shed(now, &name, out);
        self.relieve(now, &name, out);
        self.wake_starved();
    }

    /// Compares a report with what is known. Returns sandboxes that must not exist.
    fn reconcile(
        &mut self,
        now: Now,
        node: &NodeId,
        reports: Vec<SandboxReport>,
        sure: bool,
        out: &mut Vec<Action>,
    ) -> Vec<SandboxId> {
        let mut seen = BTreeSet::new();
        let mut strangers = Vec::new();
        for report in reports {
            let id = report.id;
            if !seen.insert(id) {
                continue;
            }
            match self.sandboxes.get(&id) {
                // Its old node has given it up, or it would not be told of here.
                Some(known) if known.life == Life::Moving && known.goes_to() == node => {
                    // With the command under way, its answer says the same and more.
                    if !known.busy {
                        self.moved(now, id, node, report, out);
                    }
                }
                // Two nodes with one sandbox: one of them is wrong, and it is not the one that was asked to make it.
                Some(known) if known.node != *node => strangers.push(id),
                Some(_) => self.update(now, report, sure, out),
                None if self.functions.contains_key(&report.function) => self.adopt(now, node, report, out),
                None => strangers.push(id),
            }
            self.touch(now, id, out);
        }
        self.notice_missing(now, node, &seen, sure, out);
        strangers
    }

    fn adopt(&mut self, now: Now, node: &NodeId, report: SandboxReport, out: &mut Vec<Action>) {
        let id = report.id;
        self.ghosts.remove(&id);
        let requests_max =
            self.functions.get(&report.function).map_or(1, |function| function.spec.requests_max);
        let requests_max = usize::try_from(requests_max).unwrap_or(usize::MAX);
        let life = Life::reported(report.state);
        if life == Life::Warm
            && report.private_bytes > 0
            && let Some(function) = self.functions.get_mut(&report.function)
        {
            function.warm_bytes.add(report.private_bytes as f64);
        }
        self.insert_sandbox(Sandbox::new(now, node.clone(), life, requests_max, report));
        self.tell_arrived(id, Cause::Reported, out);
        if life.is_passing() {
            self.arm(now.after(self.settings.dedup_max), Timer::Passing(id));
        }
    }

    fn update(&mut self, now: Now, report: SandboxReport, sure: bool, out: &mut Vec<Action>) {
        let id = report.id;
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        let reported = Life::reported(report.state);
        sandbox.stray = sandbox.stray.min(report.open_requests as usize);
        if sandbox.busy {
            // Only sizes; references and state come with the command's answer.
            sandbox.report.private_bytes = report.private_bytes;
            sandbox.report.stored_bytes = report.stored_bytes;
            return;
        }
        let purging = sandbox.life == Life::Purging;
        let believed = if reported == sandbox.life {
            sandbox.contradicted = 0;
            false
        } else if sandbox.life.is_passing() && !purging {
            // Its command is overdue or cut off: this is how it ended, or that it has not.
            true
        } else if !purging {
            sandbox.contradicted += 1;
            sure || sandbox.contradicted >= CONTRADICTIONS
        } else {
            false
        };
        if believed {
            self.enter(now, id, reported, Cause::Reported, out);
        }
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        self.check_bases |= sandbox.report.bases != report.bases;
        // What was parked in haste has been stored small since.
        let both_parked = sandbox.report.state == report.state && report.state == SandboxState::Parked;
        if both_parked
            && report.stored_bytes < sandbox.report.stored_bytes
            && let Some(function) = self.functions.get_mut(&sandbox.function)
        {
            function.dedup_bytes.add(report.stored_bytes as f64);
        }
        let settled = !matches!(report.state, SandboxState::Deduping | SandboxState::Restoring);
        sandbox.report = report;
        let passing = sandbox.life.is_passing();
        if settled {
            self.check_bases |= self.leases.remove(&id).is_some();
        }
        if purging {
            self.purge(now, id, PurgeReason::Broken, None, out);
        } else if passing {
            self.arm(now.after(self.settings.dedup_max), Timer::Passing(id));
        }
    }

    /// Sandboxes that should be there and are not.
    fn notice_missing(
        &mut self,
        now: Now,
        node: &NodeId,
        seen: &BTreeSet<SandboxId>,
        sure: bool,
        out: &mut Vec<Action>,
    ) {
        let Some(known) = self.nodes.get(node).map(|node| &node.sandboxes) else { return };
        let missing: Vec<SandboxId> = known.difference(seen).copied().collect();
        for id in missing {
            let Some(sandbox) = self.sandboxes.get_mut(&id).filter(|sandbox| !sandbox.busy) else { continue };
            sandbox.contradicted = sandbox.contradicted.saturating_add(1);
            if sure || sandbox.contradicted >= CONTRADICTIONS {
                let why = failure(FailureKind::Crashed, format!("{id} is no longer on node {node}"));
                self.remember_moved(now, id);
                self.remove_sandbox(id, Cause::Reported, Some(&why), out);
            }
        }
    }

    /// Has a node end a sandbox that is not in the driver's books.
    fn purge_stranger(&mut self, now: Now, node: &NodeId, id: SandboxId, out: &mut Vec<Action>) {
        let told = self.under_way.about(id).any(|(_, pending)| pending.node == *node);
        if self.sandboxes.contains_key(&id) || told {
            return;
        }
        let limit = self.settings.purge_max;
        let command = medes_proto::fleet::Command::Purge { sandbox: id };
        if self.issue(now, node, command, super::state::Kind::Purge, limit, None, 0, out) {
            let about = About { node: Some(node.clone()), sandbox: Some(id), function: None };
            let reason = PurgeReason::Unwanted.word().into();
            self.tell(about, What::Purge { reason }, out);
        }
    }

    pub(super) fn sandbox_gone(
        &mut self,
        connection: ConnectionId,
        id: SandboxId,
        why: &Failure,
        out: &mut Vec<Action>,
    ) {
        let Some(node) = self.connections.get(&connection) else { return };
        // With a command under way, its answer says the same and more.
        if self.sandboxes.get(&id).is_none_or(|sandbox| sandbox.node != *node || sandbox.busy) {
            return;
        }
        self.tell_failed(id, "sandbox", why, None, out);
        self.leave_open(id, why);
        self.remove_sandbox(id, Cause::Ended, Some(why), out);
    }

    /// Who comes this late has stood still itself (a stopped process, a paused machine), and could hear nobody meanwhile: what nodes have said is
    /// still to be read. So their silence counts from now.
    pub(super) fn stood_still(&mut self, now: Now) {
        let late = self.wake_at().map(|at| now.since(at)).unwrap_or_default();
        if late >= self.settings.silent_max / STOOD_STILL {
            self.nodes
                .values_mut()
                .filter(|node| node.connection.is_some())
                .for_each(|node| node.heard = now);
        }
    }

    /// Gives up silent nodes; lets avoided ones and the settle time end.
    pub(super) fn nodes_due(&mut self, now: Now, out: &mut Vec<Action>) {
        let limit = self.settings.silent_max;
        let silent: Vec<NodeId> = self
            .nodes
            .iter()
            .filter(|(_, n)| now.since(n.heard) >= limit)
            .map(|(name, _)| name.clone())
            .collect();
        for name in silent {
            if let Some(connection) = self.nodes.get(&name).and_then(|node| node.connection) {
                self.connections.remove(&connection);
                out.push(Action::Close { connection, why: CloseReason::Silent });
            }
            self.lose_node(now, &name, true, out);
        }
        if let Some(next) = self.nodes.values().map(|node| node.heard.after(limit)).min() {
            self.arm(next, Timer::Nodes);
        }
        self.wake_waiting();
    }

    /// A node and all it held are gone. If it was only `cut_off`, its references and snapshots are remembered for
    /// some time.
    fn lose_node(&mut self, now: Now, name: &NodeId, cut_off: bool, out: &mut Vec<Action>) {
        self.cut_commands(now, name, out);
        let Some(node) = self.nodes.get(name) else { return };
        let all: Vec<SandboxId> = node.sandboxes.iter().copied().collect();
        let until = now.after(self.settings.lost_memory);
        for &id in &all {
            if cut_off {
                self.remember_references(name, id, until);
            }
            self.remember_moved(now, id);
            self.remove_sandbox(id, Cause::NodeLost, None, out);
        }
        if cut_off {
            self.hide_snapshots(now, name, Some(until), out);
        } else {
            self.ghosts.retain(|_, ghost| ghost.node != *name);
            self.forget_snapshots_of(now, name, out);
        }
        self.nodes.remove(name);
        self.weigh(name);
        self.check_bases = true;
        self.tell_node(name, NodeChange::Lost, all.len(), out);
    }
}
