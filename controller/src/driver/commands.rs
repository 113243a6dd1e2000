//! What agents are told to do, and what came of it. Every command is answered, overdue, or cut off with its stream.

use std::time::Duration;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, Success},
    ids::{CommandId, NodeId, SandboxId},
    sandbox::StartKind,
    standing::Standing,
    trace::{About, Cause, Trouble, What},
};

use super::{
    Action, ConnectionId, Driver, PurgeReason, Ticket, failure,
    state::{Kind, Life, Pending, Sandbox, Timer},
};
use crate::now::Now;

impl Driver {
    /// Tells a node to do something. `false`, and nothing has happened, when the node cannot be reached.
    #[expect(clippy::too_many_arguments, reason = "the parts of one command, each named at its few callers")]
    pub(super) fn issue(
        &mut self,
        now: Now,
        node: &NodeId,
        command: Command,
        kind: Kind,
        limit: Duration,
        ticket: Option<Ticket>,
        reserved_bytes: u64,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(connection) = self.nodes.get(node).and_then(|node| node.connection) else { return false };
        self.tell_key(connection, node, &command, out);
        self.command_counter += 1;
        let id = CommandId(self.command_counter);
        // Calling a park off is about a command, not a second one about the sandbox.
        let sandbox = command.sandbox().filter(|_| kind != Kind::CancelPark);
        if let Some(sandbox) = sandbox.and_then(|id| self.sandboxes.get_mut(&id)) {
            sandbox.busy = true;
            sandbox.contradicted = 0;
        }
        let deadline = now.after(limit);
        let pending =
            Pending { kind, sandbox, node: node.clone(), issued: now, deadline, ticket, reserved_bytes };
        self.under_way.insert(id, pending);
        self.weigh(node);
        self.arm(deadline, Timer::Command(id));
        out.push(Action::Command { connection, id, command });
        true
    }

    /// A command is over, one way or another.
    fn end_command(&mut self, id: CommandId) -> Option<Pending> {
        let pending = self.under_way.remove(id)?;
        self.weigh(&pending.node);
        Some(pending)
    }

    pub(super) fn command_done(
        &mut self,
        now: Now,
        connection: ConnectionId,
        id: CommandId,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(node) = self.connections.get(&connection) else { return };
        if self.under_way.get(id).is_none_or(|pending| pending.node != *node) {
            // Overdue or cut off before: the next report tells how things are.
            return;
        }
        let Some(pending) = self.end_command(id) else { return };
        if pending.kind == Kind::CancelPark {
            // What became of the park, its own answer tells.
            return;
        }
        self.unbusy(&pending);
        if let Some(ticket) = pending.ticket {
            Self::answer(out, ticket, result.clone());
        }
        match pending.kind {
            Kind::Start | Kind::Clone(_) | Kind::Restore | Kind::Unpark => {
                self.start_done(now, &pending, result, out);
            }
            Kind::Dedup | Kind::Park => self.dedup_done(now, &pending, result, out),
            Kind::Offer => self.offer_done(now, &pending, result, out),
            Kind::Take => self.take_done(now, &pending, result, out),
            Kind::MakeBase(snapshot) => self.base_done(now, &pending, snapshot, result, out),
            Kind::CancelPark => {}
            Kind::Purge => self.purge_done(&pending, result, out),
            Kind::DropSnapshot(snapshot) => self.drop_done(now, snapshot, result),
            Kind::Copy(snapshot) => self.copy_done(now, &pending, snapshot, result, out),
            Kind::DropCopy(snapshot) => self.copy_dropped(now, &pending.node, snapshot, &result, out),
        }
        if let Some(sandbox) = pending.sandbox {
            self.touch(now, sandbox, out);
        }
        if matches!(pending.kind, Kind::Offer | Kind::Take) {
            self.drain_on(now, out);
        }
        self.wake_starved();
    }

    fn unbusy(&mut self, pending: &Pending) {
        if let Some(sandbox) = pending.sandbox.and_then(|id| self.sandboxes.get_mut(&id)) {
            sandbox.busy = false;
            sandbox.called_back = false;
            sandbox.review_at = None;
        }
    }

    /// Ends a sandbox. Nothing happens while another command about it is under way.
    pub(super) fn purge(
        &mut self,
        now: Now,
        id: SandboxId,
        why: PurgeReason,
        ticket: Option<Ticket>,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(sandbox) = self.sandboxes.get(&id).filter(|sandbox| !sandbox.busy) else { return false };
        let node = sandbox.node.clone();
        let limit = self.settings.purge_max;
        if !self.issue(now, &node, Command::Purge { sandbox: id }, Kind::Purge, limit, ticket, 0, out) {
            return false;
        }
        // An eviction has told itself, with the reasons.
        if why != PurgeReason::Evicted {
            self.decide(id, What::Purge { reason: why.word().into() }, out);
        }
        self.enter(now, id, Life::Purging, Cause::Decided, out);
        true
    }

    pub(super) fn command_overdue(&mut self, now: Now, id: CommandId, out: &mut Vec<Action>) {
        if self.under_way.get(id).is_none_or(|pending| pending.deadline > now) {
            return;
        }
        let Some(pending) = self.end_command(id) else { return };
        if pending.kind == Kind::CancelPark {
            return;
        }
        self.unbusy(&pending);
        let why = failure(FailureKind::Deadline, format!("node {} did not answer in time", pending.node));
        self.tell_overdue(&pending, &why, out);
        if let Some(ticket) = pending.ticket {
            Self::answer(out, ticket, Err(why.clone()));
        }
        self.avoid(now, &pending.node);
        match (pending.kind, pending.sandbox) {
            (Kind::Start | Kind::Clone(_) | Kind::Restore | Kind::Unpark, Some(sandbox)) => {
                let start = pending.kind.start().unwrap_or(StartKind::Cold);
                self.tell_failed(sandbox, doing(start), &why, None, out);
                let name = self.sandboxes.get(&sandbox).map(|sandbox| sandbox.function.clone());
                self.end_broken(now, sandbox, why.kind, out);
                if let Some(name) = name {
                    self.stop_waiting_for(&name, sandbox, Some(start));
                    if pending.ticket.is_none() {
                        self.count_attempt(now, &name, why, out);
                    }
                    self.dirty.insert(name);
                }
            }
            (Kind::Offer | Kind::Take, Some(sandbox)) => {
                self.move_unknown(sandbox, &why, out);
                self.arm(now.after(self.settings.dedup_max), Timer::Passing(sandbox));
            }
            // What became of it, the next report tells. Until then it is used for nothing.
            (_, Some(sandbox)) => self.arm(now.after(self.settings.dedup_max), Timer::Passing(sandbox)),
            (Kind::DropSnapshot(snapshot) | Kind::DropCopy(snapshot), None) => {
                self.arm(now.after(self.settings.purge_max), Timer::Snapshot(snapshot));
            }
            (_, None) => {}
        }
        if let Kind::MakeBase(snapshot) = pending.kind {
            self.forget_snapshot(snapshot, out);
        }
        self.wake_starved();
    }

    fn tell_overdue(&mut self, pending: &Pending, why: &Failure, out: &mut Vec<Action>) {
        let about = About {
            node: Some(pending.node.clone()),
            function: pending.sandbox.and_then(|id| self.about(id).function),
            sandbox: pending.sandbox,
        };
        let (kind, message) = (why.kind, why.message.clone());
        let trouble = Trouble { doing: "command".into(), kind, message, pause: Some(self.settings.avoid) };
        self.tell(about, What::Error(trouble), out);
    }

    /// A stream has ended: what was under way on it may still happen, but nobody will say so.
    pub(super) fn cut_commands(&mut self, now: Now, node: &NodeId, out: &mut Vec<Action>) {
        let cut: Vec<_> = self.under_way.of_node(node).map(|(id, _)| id).collect();
        for id in cut {
            let Some(pending) = self.end_command(id) else { continue };
            self.unbusy(&pending);
            if let Some(ticket) = pending.ticket {
                let message = format!("the connection to node {node} broke before the command had ended");
                Self::answer(out, ticket, Err(failure(FailureKind::Internal, message)));
            }
            let Some(sandbox) = pending.sandbox else { continue };
            if matches!(pending.kind, Kind::Offer | Kind::Take) {
                let message = format!("the connection to node {node} broke during the move");
                self.move_unknown(sandbox, &failure(FailureKind::Internal, message), out);
            }
            self.arm(now.after(self.settings.dedup_max), Timer::Passing(sandbox));
            if let Some(name) = self.sandboxes.get(&sandbox).map(|sandbox| sandbox.function.clone()) {
                self.stop_waiting_for(&name, sandbox, None);
                self.dirty.insert(name);
            }
        }
    }

    /// A sandbox in a passing state without a command has had long enough.
    pub(super) fn passing_overdue(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        if sandbox.busy || !sandbox.life.is_passing() {
            return;
        }
        let due = sandbox.since.after(self.settings.dedup_max);
        if due > now {
            return self.arm(due, Timer::Passing(id));
        }
        self.purge(now, id, PurgeReason::Broken, None, out);
    }

    /// After any change of a sandbox: end it if nobody wants it here, else let it serve and be reviewed.
    pub(super) fn touch(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        if sandbox.is_idle() && self.is_unwanted(sandbox) {
            self.purge(now, id, PurgeReason::Unwanted, None, out);
            return;
        }
        if sandbox.is_idle() {
            match self.standing(sandbox.goes_to()) {
                Standing::Draining => return self.leave_drained(now, id, out),
                Standing::Resting => return self.go_to_rest(now, id, out),
                Standing::Open | Standing::Cordoned | Standing::Unspecified => {}
            }
        }
        let name = sandbox.function.clone();
        self.arm_review(now, id);
        if self.waiting.contains(&name) {
            self.dirty.insert(name);
        }
    }

    pub(super) fn retire_unwanted(
        &mut self,
        now: Now,
        name: &medes_proto::ids::FunctionName,
        out: &mut Vec<Action>,
    ) {
        let all: Vec<SandboxId> = self.by_function.get(name).into_iter().flatten().copied().collect();
        for id in all {
            self.touch(now, id, out);
        }
    }

    /// Forgets a sandbox that is no more. Requests in it, a command about it and its leases end with it.
    pub(super) fn remove_sandbox(
        &mut self,
        id: SandboxId,
        cause: Cause,
        why: Option<&Failure>,
        out: &mut Vec<Action>,
    ) {
        self.tell_leaving(id, cause, out);
        let gone = || failure(FailureKind::NotFound, format!("{id} is gone"));
        self.move_unknown(id, &why.cloned().unwrap_or_else(gone), out);
        let Some(sandbox) = self.forget_sandbox(id) else { return };
        for request in &sandbox.open {
            if self.requests.remove(request).is_some() {
                let why = why.cloned().map(super::Refusal::Failed);
                let why = why.unwrap_or_else(|| super::Refusal::NodeLost(sandbox.node.clone()));
                out.push(Action::Refuse { request: *request, why });
            }
        }
        let about: Vec<_> = self.under_way.about(id).map(|(command, _)| command).collect();
        for command in about {
            let Some(pending) = self.end_command(command) else { continue };
            if let Some(ticket) = pending.ticket {
                Self::answer(out, ticket, Err(why.cloned().unwrap_or_else(gone)));
            }
            if let Kind::MakeBase(snapshot) = pending.kind {
                self.forget_snapshot(snapshot, out);
            }
        }
        self.stop_waiting_for(&sandbox.function, id, None);
        self.check_bases = true;
        self.dirty.insert(sandbox.function);
    }

    pub(super) fn forget_sandbox(&mut self, id: SandboxId) -> Option<Sandbox> {
        let sandbox = self.sandboxes.remove(&id)?;
        if let Some(node) = self.nodes.get_mut(&sandbox.node) {
            node.sandboxes.remove(&id);
        }
        if let Some(all) = self.by_function.get_mut(&sandbox.function) {
            all.remove(&id);
            if all.is_empty() {
                self.by_function.remove(&sandbox.function);
            }
        }
        self.leases.remove(&id);
        Some(sandbox)
    }
}

/// What is being done by a start, as events and metrics name it.
pub(super) const fn doing(start: StartKind) -> &'static str {
    match start {
        StartKind::Restore => "restore",
        StartKind::Unpark => "unpark",
        StartKind::Clone => "clone",
        _ => "start",
    }
}
