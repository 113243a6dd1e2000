//! Which sandbox serves a request, which is started for it, and on which node.
//!
//! Warm before parked before dedup before a clone before cold. Starts are counted against the requests that wait: never more sandboxes on
//! their way than waiting requests need.

use std::collections::VecDeque;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::Command,
    ids::{FunctionName, NodeId, SandboxId},
    sandbox::{SandboxReport, SandboxState},
    standing::Standing,
    trace::{Cause, What},
};

use super::{
    Action, Driver, RequestId, Ticket, failure,
    moving::NO_ROOM,
    state::{Kind, Life, Sandbox, Snapshot, Stage},
    why::Way,
};
use crate::now::Now;

impl Driver {
    /// Serves a function's queue as far as possible, and starts what the rest of it needs.
    pub(super) fn schedule(&mut self, now: Now, name: &FunctionName, out: &mut Vec<Action>) {
        self.dispatch(now, name, out);
        if self.functions.get(name).is_none_or(|function| function.queue.is_empty()) {
            self.waiting.remove(name);
            self.starved.remove(name);
        } else if !self.stopping {
            match self.start_needed(now, name, out) {
                true => drop(self.starved.remove(name)),
                false => drop(self.starved.insert(name.clone())),
            }
        }
    }

    fn dispatch(&mut self, now: Now, name: &FunctionName, out: &mut Vec<Action>) {
        let Some(function) = self.functions.get_mut(name) else { return };
        let mut queue = std::mem::take(&mut function.queue);
        let mut free = if queue.is_empty() { Vec::new() } else { self.free_sandboxes(name) };
        let mut left = VecDeque::new();
        while let Some(id) = queue.pop_front() {
            let Some(&sandbox) = free.last() else {
                queue.push_front(id);
                break;
            };
            if self.reserved_for(id).is_some() {
                left.push_back(id);
                continue;
            }
            self.send(now, id, sandbox, out);
            if self.sandboxes.get(&sandbox).is_none_or(|sandbox| sandbox.room() == 0) {
                free.pop();
            }
        }
        left.append(&mut queue);
        if let Some(function) = self.functions.get_mut(name) {
            function.queue = left;
        }
    }

    /// Sandboxes that can take a request now, the most recently used last.
    fn free_sandboxes(&self, name: &FunctionName) -> Vec<SandboxId> {
        let mut free: Vec<_> = self
            .usable(name)
            .filter(|sandbox| sandbox.room() > 0)
            .map(|sandbox| (sandbox.last_used, sandbox.id))
            .collect();
        free.sort_unstable();
        free.into_iter().map(|(_, id)| id).collect()
    }

    /// Sandboxes of the function's present text on nodes that can be reached and are in service.
    pub(super) fn usable(&self, name: &FunctionName) -> impl Iterator<Item = &Sandbox> {
        self.of_function(name).filter(|sandbox| self.is_usable(sandbox))
    }

    fn is_usable(&self, sandbox: &Sandbox) -> bool {
        !self.is_unwanted(sandbox) && self.is_reachable(sandbox.goes_to()) && !self.is_out_of_service(sandbox)
    }

    pub(super) fn of_function(&self, name: &FunctionName) -> impl Iterator<Item = &Sandbox> {
        self.by_function.get(name).into_iter().flatten().filter_map(|id| self.sandboxes.get(id))
    }

    pub(super) fn is_unwanted(&self, sandbox: &Sandbox) -> bool {
        self.functions.get(&sandbox.function).is_none_or(|function| function.revision != sandbox.revision)
    }

    pub(super) fn is_reachable(&self, node: &NodeId) -> bool {
        self.nodes.get(node).is_some_and(|node| node.connection.is_some())
    }

    /// The caller named a sandbox. If it is free the request goes there; if it is in dedup it is restored for it.
    pub(super) fn prefer(&mut self, now: Now, id: RequestId, wish: SandboxId, out: &mut Vec<Action>) {
        let Some(request) = self.requests.get(&id) else { return };
        let Some(sandbox) = self.sandboxes.get(&wish) else { return };
        if sandbox.function != request.function || !self.is_usable(sandbox) {
            return;
        }
        if sandbox.room() > 0 {
            self.unqueue(id);
            self.send(now, id, wish, out);
        } else if self.pick_parking(&sandbox.function) == Some(wish) {
            self.call_back(now, wish, "the caller named this sandbox", out);
        } else if sandbox.life.is_put_away() && sandbox.is_idle() && self.can_restore(now, sandbox) {
            if self.restore(now, wish, false, None, "the caller named this sandbox", out)
                && let Some(request) = self.requests.get_mut(&id)
            {
                request.stage = Stage::Queued { waits_for: Some(wish), cold: false };
            }
        } else if let Some(to) = self.place_for_request(now, sandbox) {
            let why = "the caller named this sandbox, and its own node cannot restore it";
            self.move_to(now, wish, &to, (None, why), out);
        }
    }

    /// Whether its own node could have it back now.
    pub(super) fn can_restore(&self, now: Now, sandbox: &Sandbox) -> bool {
        let need = self.estimate(&sandbox.function);
        self.may_start_on(now, &sandbox.node) && self.has_room(&sandbox.node, need)
    }

    /// Returns whether as many are on their way as are needed.
    fn start_needed(&mut self, now: Now, name: &FunctionName, out: &mut Vec<Action>) -> bool {
        // Each round starts one sandbox or ends the loop.
        while self.needs_start(name) {
            let may_restore = !self.owes_cold(name);
            if may_restore && let Some(sandbox) = self.pick_dedup(now, name, true) {
                let idle = self.sandboxes.get(&sandbox).map(|sandbox| now.since(sandbox.last_used));
                if let (Some(idle), Some(function)) = (idle, self.functions.get_mut(name)) {
                    function.reuses.count(idle);
                }
                let why = "of those with room on their node: parked before dedup, all bases at hand, the last one used";
                if !self.restore(now, sandbox, false, None, why, out) {
                    return false;
                }
                continue;
            }
            if may_restore && let Some(sandbox) = self.pick_parking(name) {
                let why = "its memory is just being taken, which is called off: nothing is sooner ready";
                if !self.call_back(now, sandbox, why, out) {
                    return false;
                }
                continue;
            }
            if !self.is_settled(now) {
                return false;
            }
            if may_restore && let Some((sandbox, to)) = self.pick_to_move(now, name) {
                if !self.move_to(now, sandbox, &to, (None, NO_ROOM), out) {
                    return false;
                }
                continue;
            }
            let need = self.estimate(name);
            if let Some(node) = self.pick_node(now, name) {
                let why = "no sandbox can take the request; of the nodes with room, those that hold the init snapshot first, this one uses the least memory";
                if self.start(now, name, (&node, may_restore), None, why, out).is_err() {
                    return false;
                }
                continue;
            }
            // Nowhere to go as it is: make room, and look again when there is some.
            let home = if may_restore { self.pick_dedup(now, name, false) } else { None };
            match home.and_then(|id| self.sandboxes.get(&id)).map(|sandbox| sandbox.node.clone()) {
                Some(node) if self.make_room(now, &node, need, home, out) => {}
                _ => self.make_room_anywhere(now, need, out),
            }
            return false;
        }
        true
    }

    /// More requests wait than the sandboxes on their way will take.
    fn needs_start(&self, name: &FunctionName) -> bool {
        let Some(function) = self.functions.get(name) else { return false };
        let mut reserved = 0;
        let mut waiting = 0;
        for &id in &function.queue {
            match self.reserved_for(id) {
                Some(_) => reserved += 1,
                None => waiting += 1,
            }
        }
        let coming: usize = self
            .usable(name)
            .filter(|sandbox| (sandbox.life.is_coming() || sandbox.called_back) && sandbox.stray == 0)
            .map(|sandbox| sandbox.requests_max)
            .sum();
        // A sandbox reserved for one request may have room for more, but counting on it would be a guess.
        let coming = coming.saturating_sub(reserved);
        let sandboxes = self.by_function.get(name).map_or(0, |all| all.len());
        let allowed = self.settings.function_sandboxes_max.is_none_or(|max| {
            // Dedup sandboxes can be restored at the limit, they count already.
            sandboxes < max || self.usable(name).any(|s| s.life.is_put_away() && s.is_idle())
        });
        waiting > coming && allowed
    }

    /// Somebody's restore failed, and no cold start is under way for them yet.
    fn owes_cold(&self, name: &FunctionName) -> bool {
        let Some(function) = self.functions.get(name) else { return false };
        let owed = function.queue.iter().filter(|&id| {
            matches!(
                self.requests.get(id).map(|request| request.stage),
                Some(Stage::Queued { cold: true, .. })
            )
        });
        let cold = self.usable(name).filter(|sandbox| sandbox.life == Life::Starting);
        owed.count() > cold.map(|sandbox| sandbox.requests_max).sum()
    }

    /// The sandbox to restore: parked, then all bases there, then the most recently used.
    fn pick_dedup(&self, now: Now, name: &FunctionName, with_room: bool) -> Option<SandboxId> {
        let need = self.estimate(name);
        self.usable(name)
            .filter(|sandbox| sandbox.life.is_put_away() && sandbox.is_idle())
            .filter(|sandbox| self.may_start_on(now, &sandbox.node))
            .filter(|sandbox| !with_room || self.has_room(&sandbox.node, need))
            .max_by_key(|sandbox| {
                let parked = sandbox.life == Life::Parked;
                (parked, self.bases_are_there(sandbox), sandbox.last_used, sandbox.id)
            })
            .map(|sandbox| sandbox.id)
    }

    /// The sandbox whose park is called off: the one that was begun last, since it has come least far.
    fn pick_parking(&self, name: &FunctionName) -> Option<SandboxId> {
        let parks = |id| self.under_way.about(id).any(|(_, one)| one.kind == Kind::Park);
        self.usable(name)
            .filter(|sandbox| sandbox.life == Life::Deduping && !sandbox.called_back && parks(sandbox.id))
            .max_by_key(|sandbox| (sandbox.since, sandbox.id))
            .map(|sandbox| sandbox.id)
    }

    /// Calls the park of a sandbox off. It comes back warm, or, when it has come too far for that, parked.
    fn call_back(&mut self, now: Now, id: SandboxId, why: &str, out: &mut Vec<Action>) -> bool {
        let Some(sandbox) = self.sandboxes.get(&id) else { return false };
        let (function, node) = (sandbox.function.clone(), sandbox.node.clone());
        let choice = self.start_choice(now, &function, &Way::Restore(id), why);
        let (command, limit) = (Command::CancelPark { sandbox: id }, self.settings.dedup_max);
        if !self.issue(now, &node, command, Kind::CancelPark, limit, None, 0, out) {
            return false;
        }
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.called_back = true;
        }
        self.decide(id, What::Start(choice), out);
        true
    }

    /// The node that has room for a start: one that holds what it would be a clone of, then the one with the least memory used.
    pub(super) fn pick_node(&self, now: Now, function: &FunctionName) -> Option<NodeId> {
        let need = self.estimate(function);
        let source = self.clone_source(function).map(|(_, snapshot)| snapshot);
        let fits = |name: &&NodeId| self.may_start_on(now, name) && self.has_room(name, need);
        let holders = source.into_iter().flat_map(Snapshot::holders).filter(fits);
        let holder = holders.min_by_key(|name| (self.projected(name), *name));
        holder.or_else(|| self.fullness.emptiest_first().find(fits)).cloned()
    }

    /// Reachable, open, not avoided, and not starting as many as it may already.
    pub(super) fn may_start_on(&self, now: Now, name: &NodeId) -> bool {
        let Some(node) = self.nodes.get(name) else { return false };
        node.connection.is_some()
            && self.standing(name) == Standing::Open
            && node.avoid_until.is_none_or(|until| until <= now)
            && self.under_way.starts(name) < self.settings.node_starts_max
            && node.sandboxes.len() < medes_proto::limits::SANDBOXES_MAX
    }

    /// Starts one more sandbox: a clone, if it may be one and there is something to clone, else from nothing.
    pub(super) fn start(
        &mut self,
        now: Now,
        name: &FunctionName,
        (node, may_clone): (&NodeId, bool),
        ticket: Option<Ticket>,
        why: &str,
        out: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        let need = self.estimate(name);
        let Some(function) = self.functions.get(name) else {
            return Err(failure(FailureKind::NotFound, format!("there is no function {name}")));
        };
        let (spec, revision) = (function.spec.clone(), function.revision);
        let Some(id) = self.next_sandbox() else {
            return Err(failure(
                FailureKind::Internal,
                "all sandbox numbers of this controller's life are used",
            ));
        };
        let source = self.clone_source(name).filter(|_| may_clone);
        let clone_of = source.and_then(|source| self.place_for(source, node));
        let (way, kind, limit) = match &clone_of {
            Some(place) => (Way::Clone(node, place), Kind::Clone(place.snapshot), self.settings.restore_max),
            None => {
                (Way::Cold(node), Kind::Start, spec.ready_timeout.saturating_add(self.settings.start_slack))
            }
        };
        let choice = self.start_choice(now, name, &way, why);
        let sandbox = starting_sandbox(now, id, node, &spec, revision);
        self.insert_sandbox(sandbox);
        if let Some(place) = &clone_of {
            self.claim(id, Some(place.snapshot));
        }
        let command = Command::Start { sandbox: id, function: Box::new(spec), revision, clone_of };
        if !self.issue(now, node, command, kind, limit, ticket, need, out) {
            self.forget_sandbox(id);
            return Err(failure(FailureKind::NotFound, format!("node {node} is not connected")));
        }
        if let Some(function) = self.functions.get_mut(name) {
            match kind {
                Kind::Clone(_) => function.clones += 1,
                _ => function.cold_starts += 1,
            }
        }
        self.decide(id, What::Start(choice), out);
        self.tell_arrived(id, Cause::Decided, out);
        Ok(())
    }

    pub(super) fn restore(
        &mut self,
        now: Now,
        id: SandboxId,
        digest_memory: bool,
        ticket: Option<Ticket>,
        why: &str,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(sandbox) = self.sandboxes.get(&id) else { return false };
        let (function, node) = (sandbox.function.clone(), sandbox.node.clone());
        let kind = if sandbox.life == Life::Parked { Kind::Unpark } else { Kind::Restore };
        let need = self.estimate(&function);
        let command = Command::Restore { sandbox: id, digest_memory };
        let limit = self.settings.restore_max;
        let choice = self.start_choice(now, &function, &Way::Restore(id), why);
        if !self.issue(now, &node, command, kind, limit, ticket, need, out) {
            return false;
        }
        self.decide(id, What::Start(choice), out);
        self.enter(now, id, Life::Restoring, Cause::Decided, out);
        if let Some(function) = self.functions.get_mut(&function) {
            function.restores += 1;
        }
        true
    }

    pub(super) fn insert_sandbox(&mut self, sandbox: Sandbox) {
        self.by_function.entry(sandbox.function.clone()).or_default().insert(sandbox.id);
        if let Some(node) = self.nodes.get_mut(&sandbox.node) {
            node.sandboxes.insert(sandbox.id);
        }
        self.sandboxes.insert(sandbox.id, sandbox);
    }
}

fn starting_sandbox(
    now: Now,
    id: SandboxId,
    node: &NodeId,
    spec: &medes_proto::function::FunctionSpec,
    revision: u64,
) -> Sandbox {
    let report = SandboxReport::new(id, spec.name.clone(), revision, SandboxState::Starting);
    let requests_max = usize::try_from(spec.requests_max).unwrap_or(usize::MAX);
    Sandbox::new(now, node.clone(), Life::Starting, requests_max, report)
}
