//! Sandboxes in dedup that go to another node: because their own has no room for them, is kept from work, or somebody says so.
//!
//! The node that has one is told to offer it, the other to take it over. Only the first can say that it is no longer there, and
//! says so to the second; so there is never a moment in which both could let it run, whatever this controller believes meanwhile.

use std::time::Duration;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, Success},
    ids::{FunctionName, NodeId, SandboxId},
    sandbox::SandboxReport,
    standing::Standing,
    trace::{Alternative, Cause, Choice, StateChange, What},
};

use super::{
    Action, Driver, PurgeReason, Ticket, failure,
    outcomes::is_nodes_fault,
    state::{Kind, Life, Pending, Sandbox},
};
use crate::now::Now;

/// Moves under way from one node, or to one.
const UNDER_WAY_MAX: usize = 4;
/// What a move takes besides the bytes, and bytes in a second, until one of the function has been seen.
const MOVE_BASE: Duration = Duration::from_millis(50);
const MOVE_BYTES_PER_SECOND: f64 = 200e6;
/// What a restore is taken to need until one of the function has been seen.
const RESTORE_GUESS: Duration = Duration::from_millis(200);

pub(super) const NO_ROOM: &str =
    "its own node cannot restore it, this one can, and that is sooner than a start";
const DRAINED: &str = "its node is being drained";

/// Where a sandbox is going.
#[derive(Debug, Clone)]
pub(super) struct Move {
    pub(super) to: NodeId,
    /// Who asked, if a person did.
    ticket: Option<Ticket>,
    began: Now,
    /// When it entered dedup: it does not begin anew there.
    since: Now,
}

impl Driver {
    /// Begins to move a sandbox in dedup. `false`, and nothing has happened, when its node cannot be reached.
    pub(super) fn move_to(
        &mut self,
        now: Now,
        id: SandboxId,
        to: &NodeId,
        (ticket, why): (Option<Ticket>, &str),
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(sandbox) = self.sandboxes.get(&id) else { return false };
        let (from, since) = (sandbox.node.clone(), sandbox.since);
        let choice = self.move_choice(sandbox, to, why);
        let (command, limit) = (Command::Offer { sandbox: id, to: to.clone() }, self.settings.purge_max);
        if !self.issue(now, &from, command, Kind::Offer, limit, None, 0, out) {
            return false;
        }
        self.decide(id, What::Move(choice), out);
        self.enter(now, id, Life::Moving, Cause::Decided, out);
        if let Some(sandbox) = self.sandboxes.get_mut(&id) {
            sandbox.moving = Some(Move { to: to.clone(), ticket, began: now, since });
            sandbox.went_to = Some(to.clone());
        }
        true
    }

    fn move_choice(&self, sandbox: &Sandbox, to: &NodeId, why: &str) -> Choice {
        let chosen = Alternative::new(format!("move to {to}"), why).bytes(sandbox.report.stored_bytes);
        let mut choice = Choice::of(chosen.costs(Some(self.move_time(sandbox))));
        choice.fact("stored_bytes", sandbox.report.stored_bytes);
        choice.fact("from_used_bytes", self.projected(&sandbox.node));
        choice.fact("to_used_bytes", self.projected(to));
        for other in self.nodes.keys().filter(|name| *name != to && **name != sandbox.node) {
            let why_not = if self.may_take(other) { "it uses more memory" } else { "it cannot take it" };
            choice.reject(Alternative::new(format!("move to {other}"), why_not));
        }
        choice
    }

    /// It is offered: the other node is told to take it.
    pub(super) fn offer_done(
        &mut self,
        now: Now,
        pending: &Pending,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(id) = pending.sandbox else { return };
        let taken = result.and_then(|_offered| self.have_it_taken(now, id, out));
        if let Err(why) = taken {
            self.not_moved(now, id, &why, out);
        }
    }

    fn have_it_taken(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) -> Result<(), Failure> {
        let unwanted = || failure(FailureKind::NotFound, "its function has another text now");
        let sandbox = self.sandboxes.get(&id).filter(|sandbox| !self.is_unwanted(sandbox));
        let sandbox = sandbox.ok_or_else(unwanted)?;
        let (name, from) = (sandbox.function.clone(), sandbox.node.clone());
        let function = self.functions.get(&name).ok_or_else(unwanted)?;
        let away = |node: &NodeId| failure(FailureKind::Internal, format!("node {node} is not connected"));
        let address = self.nodes.get(&from).ok_or_else(|| away(&from))?.address.clone();
        let to = sandbox.moving.as_ref().map(|going| going.to.clone()).ok_or_else(unwanted)?;
        // A request waits for it, as like as not: there must be room for all of it.
        let reserved = self.estimate(&name).max(sandbox.report.stored_bytes);
        let (function, revision) = (Box::new(function.spec.clone()), function.revision);
        let command = Command::Take { sandbox: id, function, revision, from, address };
        match self.issue(now, &to, command, Kind::Take, self.settings.restore_max, None, reserved, out) {
            true => Ok(()),
            false => Err(away(&to)),
        }
    }

    pub(super) fn take_done(
        &mut self,
        now: Now,
        pending: &Pending,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(id) = pending.sandbox else { return };
        match result {
            Ok(Success { sandbox: Some(report), .. }) => {
                // Its old node is credited nothing: a report of it may have done so already.
                self.drift(&pending.node, i64::try_from(report.stored_bytes).unwrap_or(i64::MAX));
                self.moved(now, id, &pending.node, report, out);
            }
            Ok(_) => {
                let why =
                    failure(FailureKind::Internal, format!("node {} says nothing of {id}", pending.node));
                self.not_moved(now, id, &why, out);
            }
            Err(why) => {
                if is_nodes_fault(why.kind) && why.kind != FailureKind::Unsupported {
                    self.avoid(now, &pending.node);
                }
                self.not_moved(now, id, &why, out);
            }
        }
    }

    /// It is there now, and no longer where it was.
    pub(super) fn moved(
        &mut self,
        now: Now,
        id: SandboxId,
        to: &NodeId,
        report: SandboxReport,
        out: &mut Vec<Action>,
    ) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        let from = std::mem::replace(&mut sandbox.node, to.clone());
        sandbox.report = report;
        sandbox.move_after = None;
        let name = sandbox.function.clone();
        let going = self.rests_again(now, id, Cause::Done, out);
        if let Some(node) = self.nodes.get_mut(&from) {
            node.sandboxes.remove(&id);
        }
        if let Some(node) = self.nodes.get_mut(to) {
            node.sandboxes.insert(id);
        }
        // People are shown the same state as before; that it has come about is told all the same.
        let (from, to) = (Some(Life::Dedup.shown(false)), Some(Life::Dedup.shown(false)));
        let decision = self.sandboxes.get(&id).and_then(|sandbox| sandbox.decided);
        self.tell_of(id, What::State(StateChange { from, to, cause: Cause::Done, decision }), out);
        if let Some(Move { ticket, began, .. }) = going {
            if let Some(function) = self.functions.get_mut(&name) {
                function.moving.add_time(now.since(began));
            }
            self.answer_mover(ticket, Ok(id), out);
        }
        // Bases that only its old node had may be wanted here.
        self.check_bases = true;
        self.dirty.insert(name);
    }

    fn not_moved(&mut self, now: Now, id: SandboxId, why: &Failure, out: &mut Vec<Action>) {
        self.tell_failed(id, "move", why, None, out);
        let after = now.after(self.settings.purge_max);
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        sandbox.move_after = Some(after);
        let name = sandbox.function.clone();
        let going = self.rests_again(now, id, Cause::Failed, out);
        self.answer_mover(going.and_then(|going| going.ticket), Err(why.clone()), out);
        self.dirty.insert(name);
    }

    /// It is known where it is, in dedup as before and since then. What is left of its move.
    fn rests_again(&mut self, now: Now, id: SandboxId, cause: Cause, out: &mut Vec<Action>) -> Option<Move> {
        let going = self.sandboxes.get_mut(&id)?.moving.take();
        self.enter(now, id, Life::Dedup, cause, out);
        let sandbox = self.sandboxes.get_mut(&id)?;
        sandbox.since = going.as_ref().map_or(sandbox.since, |going| going.since);
        sandbox.went_to = None;
        going
    }

    /// It is gone from where it was, and may be where it was going: what it refers to is kept until that is known.
    pub(super) fn remember_moved(&mut self, now: Now, id: SandboxId) {
        if let Some(to) = self.sandboxes.get(&id).and_then(|sandbox| sandbox.went_to.clone()) {
            self.remember_references(&to, id, now.after(self.settings.lost_memory));
        }
    }

    /// What was under way about it was overdue or cut off: a report will tell where it is.
    pub(super) fn move_unknown(&mut self, id: SandboxId, why: &Failure, out: &mut Vec<Action>) {
        let going = self.sandboxes.get_mut(&id).and_then(|sandbox| sandbox.moving.as_mut());
        let ticket = going.and_then(|going| going.ticket.take());
        self.answer_mover(ticket, Err(why.clone()), out);
    }

    fn answer_mover(
        &self,
        ticket: Option<Ticket>,
        result: Result<SandboxId, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(ticket) = ticket else { return };
        let report = |id| self.sandboxes.get(&id).map(|sandbox| sandbox.report.clone());
        Self::answer(out, ticket, result.map(|id| Success { sandbox: report(id), ..Success::default() }));
    }

    /// A sandbox that nobody uses on a node that is being drained: one in dedup goes elsewhere, if there is a place for it.
    pub(super) fn leave_drained(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let node = sandbox.node.clone();
        let bytes = sandbox.report.stored_bytes;
        let could = |to: &NodeId| *to != node && self.could_take(to) && self.has_much_room(to, bytes);
        if !sandbox.may_move(now) || !self.nodes.keys().any(could) {
            self.purge(now, id, PurgeReason::Drained, None, out);
            return;
        }
        // With as many under way as may be it waits: each report looks at it again, and each move that ends.
        if self.moves_of(&node) < UNDER_WAY_MAX
            && let Some(to) = self.place_to_move(&node, |to| self.has_much_room(to, bytes))
        {
            self.move_to(now, id, &to, (None, DRAINED), out);
        }
    }

    /// A move is over: others of nodes that are being drained may go now.
    pub(super) fn drain_on(&mut self, now: Now, out: &mut Vec<Action>) {
        let draining = self.standings.iter().filter(|(_, standing)| **standing == Standing::Draining);
        let draining: Vec<NodeId> = draining.map(|(node, _)| node.clone()).collect();
        for node in draining {
            let left = self.nodes.get(&node).into_iter().flat_map(|node| &node.sandboxes).copied();
            let left: Vec<SandboxId> = left.filter(|id| self.is_left(*id)).take(UNDER_WAY_MAX).collect();
            left.into_iter().for_each(|id| self.leave_drained(now, id, out));
        }
    }

    fn is_left(&self, id: SandboxId) -> bool {
        self.sandboxes.get(&id).is_some_and(|sandbox| sandbox.life == Life::Dedup && sandbox.is_idle())
    }

    /// A sandbox in dedup that a request can have sooner than a start, on another node than its own, and that node.
    pub(super) fn pick_to_move(&self, now: Now, name: &FunctionName) -> Option<(SandboxId, NodeId)> {
        let start = self.functions.get(name).and_then(|function| {
            let clone = self.clone_source(name).and_then(|_| function.clone.time());
            clone.or(function.cold_start.time())
        });
        let sandbox = self
            .usable(name)
            .filter(|sandbox| sandbox.may_move(now) && !self.can_restore(now, sandbox))
            .filter(|sandbox| {
                start.is_none_or(|start| self.move_time(sandbox) + self.restore_time(name) < start)
            })
            .max_by_key(|sandbox| (self.bases_are_there(sandbox), sandbox.last_used, sandbox.id))?;
        Some((sandbox.id, self.place_for_request(now, sandbox)?))
    }

    /// Where a sandbox could be restored for a request, if it can be moved.
    pub(super) fn place_for_request(&self, now: Now, sandbox: &Sandbox) -> Option<NodeId> {
        let need = self.estimate(&sandbox.function);
        let has_room = |to: &NodeId| self.may_start_on(now, to) && self.has_room(to, need);
        let may = sandbox.may_move(now) && self.moves_of(&sandbox.node) < UNDER_WAY_MAX;
        if may { self.place_to_move(&sandbox.node, has_room) } else { None }
    }

    /// The node for a sandbox of `from`: one with room, of these the one that uses the least memory.
    pub(super) fn place_to_move(&self, from: &NodeId, has_room: impl Fn(&NodeId) -> bool) -> Option<NodeId> {
        let may = |name: &&NodeId| *name != from && self.may_take(name) && has_room(name);
        self.fullness.emptiest_first().find(may).cloned()
    }

    fn may_take(&self, node: &NodeId) -> bool {
        self.could_take(node) && self.moves_of(node) < UNDER_WAY_MAX
    }

    fn could_take(&self, node: &NodeId) -> bool {
        self.is_reachable(node) && self.standing(node) == Standing::Open
    }

    /// Moves under way from a node, or to it.
    fn moves_of(&self, node: &NodeId) -> usize {
        let about = |pending: &&Pending| {
            let sandbox = pending.sandbox.and_then(|id| self.sandboxes.get(&id));
            sandbox.is_some_and(|sandbox| sandbox.node == *node || sandbox.goes_to() == node)
        };
        self.under_way.moves().filter(about).count()
    }

    fn move_time(&self, sandbox: &Sandbox) -> Duration {
        let seen = self.functions.get(&sandbox.function).and_then(|function| function.moving.time());
        let bytes = sandbox.report.stored_bytes as f64;
        seen.unwrap_or_else(|| MOVE_BASE + Duration::from_secs_f64(bytes / MOVE_BYTES_PER_SECOND))
    }

    fn restore_time(&self, name: &FunctionName) -> Duration {
        self.functions.get(name).and_then(|function| function.restore.time()).unwrap_or(RESTORE_GUESS)
    }
}

impl Sandbox {
    /// Its node, or the one it is on its way to.
    pub(super) fn goes_to(&self) -> &NodeId {
        self.moving.as_ref().map_or(&self.node, |going| &going.to)
    }

    /// Whether another node could have it.
    pub(super) fn may_move(&self, now: Now) -> bool {
        let rested = self.move_after.is_none_or(|after| now >= after);
        self.life == Life::Dedup && self.is_idle() && rested
    }
}
