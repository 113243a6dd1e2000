//! What people ask for, one sandbox at a time. Every ticket is answered once: here, or when its command ends.

use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NodeId, SandboxId},
    standing::Standing,
    trace::What,
};

use super::{
    Action, Driver, Operation, PurgeReason, Ticket, failure,
    state::{Life, Sandbox},
};
use crate::now::Now;

const ASKED_FOR: &str = "somebody asked for one more sandbox";

impl Driver {
    pub(super) fn asked(&mut self, now: Now, ticket: Ticket, operation: Operation, out: &mut Vec<Action>) {
        let done = match operation {
            Operation::Start { function, node, cold } => self
                .choose_node(now, &function, node)
                .and_then(|node| self.start(now, &function, (&node, !cold), Some(ticket), ASKED_FOR, out)),
            Operation::MakeBase(id) => self.idle_in(id, Life::Warm).and_then(|id| {
                self.decide(id, asked_for("base"), out);
                told(self.make_base(now, id, false, Some(ticket), out), id)
            }),
            Operation::Dedup { sandbox, digest_memory } => {
                self.idle_put(sandbox, Life::Warm).and_then(|id| {
                    self.decide(id, asked_for("dedup"), out);
                    told(self.dedup(now, id, digest_memory, Some(ticket), out), id)
                })
            }
            Operation::Restore { sandbox, digest_memory } => {
                self.idle_put(sandbox, Life::Dedup).and_then(|id| self.room_for(id)).and_then(|id| {
                    self.decide(id, asked_for("restore"), out);
                    let why = "somebody asked for it";
                    told(self.restore(now, id, digest_memory, Some(ticket), why, out), id)
                })
            }
            Operation::Move { sandbox, to } => self.idle_in(sandbox, Life::Dedup).and_then(|id| {
                let to = self.new_home(id, to)?;
                told(self.move_to(now, id, &to, (Some(ticket), "somebody asked for it"), out), id)
            }),
            Operation::Purge(id) => self
                .not_busy(id)
                .and_then(|id| told(self.purge(now, id, PurgeReason::Asked, Some(ticket), out), id)),
        };
        if let Err(why) = done {
            Self::answer(out, ticket, Err(why));
        }
    }

    fn choose_node(
        &self,
        now: Now,
        function: &medes_proto::ids::FunctionName,
        wish: Option<NodeId>,
    ) -> Result<NodeId, Failure> {
        let need = self.estimate(function);
        match wish {
            None => self
                .pick_node(now, function)
                .ok_or_else(|| failure(FailureKind::NoSpace, "no node has room for one more sandbox")),
            Some(node) if !self.is_reachable(&node) => {
                Err(failure(FailureKind::NotFound, format!("node {node} is not connected")))
            }
            Some(node) if self.standing(&node) != Standing::Open => {
                let word = self.standing(&node).word();
                Err(failure(FailureKind::Busy, format!("node {node} is {word}")))
            }
            Some(node) if !self.has_room(&node, need) => {
                Err(failure(FailureKind::NoSpace, format!("node {node} has no room for one more sandbox")))
            }
            Some(node) => Ok(node),
        }
    }

    fn new_home(&self, id: SandboxId, wish: Option<NodeId>) -> Result<NodeId, Failure> {
        let sandbox = self.known(id)?;
        let bytes = sandbox.report.stored_bytes;
        let refused = |kind, why: String| Err(failure(kind, format!("move {id}: {why}")));
        match wish {
            None => match self.place_to_move(&sandbox.node, |to| self.has_room(to, bytes)) {
                Some(node) => Ok(node),
                None => refused(FailureKind::NoSpace, "no other node has room for it".into()),
            },
            Some(node) if node == sandbox.node => refused(FailureKind::Busy, format!("it is on {node}")),
            Some(node) if !self.is_reachable(&node) => {
                refused(FailureKind::NotFound, format!("node {node} is not connected"))
            }
            Some(node) if self.standing(&node) != Standing::Open => {
                refused(FailureKind::Busy, format!("node {node} is {}", self.standing(&node).word()))
            }
            Some(node) if !self.has_room(&node, bytes) => {
                refused(FailureKind::NoSpace, format!("node {node} has no room for it"))
            }
            Some(node) => Ok(node),
        }
    }

    fn not_busy(&self, id: SandboxId) -> Result<SandboxId, Failure> {
        let sandbox = self.known(id)?;
        if sandbox.busy {
            return Err(failure(FailureKind::Busy, format!("{id}: another operation is under way")));
        }
        Ok(id)
    }

    /// The same for what is also done to one that is parked.
    fn idle_put(&self, id: SandboxId, life: Life) -> Result<SandboxId, Failure> {
        let parked = self.known(id)?.life == Life::Parked;
        self.idle_in(id, if parked { Life::Parked } else { life })
    }

    fn idle_in(&self, id: SandboxId, life: Life) -> Result<SandboxId, Failure> {
        let sandbox = self.known(id)?;
        if sandbox.life == life && sandbox.is_idle() {
            return Ok(id);
        }
        let is = sandbox.life.shown(!sandbox.open.is_empty()).word();
        let busy = if sandbox.busy { " (an operation is under way)" } else { "" };
        let wanted = life.shown(false).word();
        Err(failure(FailureKind::Busy, format!("{id} is {is}{busy}, not {wanted} and idle")))
    }

    /// Its memory comes back; the node must have room for that.
    fn room_for(&self, id: SandboxId) -> Result<SandboxId, Failure> {
        let sandbox = self.known(id)?;
        if self.has_room(&sandbox.node, self.estimate(&sandbox.function)) {
            return Ok(id);
        }
        Err(failure(FailureKind::NoSpace, format!("node {} has no room to restore {id}", sandbox.node)))
    }

    fn known(&self, id: SandboxId) -> Result<&Sandbox, Failure> {
        self.sandboxes.get(&id).ok_or_else(|| failure(FailureKind::NotFound, format!("there is no {id}")))
    }
}

fn asked_for(operation: &str) -> What {
    What::Asked { operation: operation.into() }
}

fn told(done: bool, id: SandboxId) -> Result<(), Failure> {
    match done {
        true => Ok(()),
        false => Err(failure(FailureKind::NotFound, format!("the node of {id} is not connected"))),
    }
}
