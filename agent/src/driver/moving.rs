//! Sandboxes in dedup that go to another node, and those that come from one.
//!
//! A node that offers a sandbox still has it, and may do anything with it, which withdraws the offer. The other one asks for it
//! when it has everything it needs; from the answer on it is that node's, and never both could let it run.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::Success,
    function::FunctionSpec,
    ids::{CommandId, NodeId, SandboxId, SnapshotId},
    moving::OfferedSandbox,
    sandbox::SandboxState,
};

use super::{Action, Driver, Entry, Taken, Ticket, busy, not_here};
use crate::moving::send::Record;

/// How long an offer holds.
const OFFER_HOLDS: Duration = Duration::from_secs(60);
/// Sandboxes given up that are remembered, so that whoever did not hear the answer can ask again.
const GIVEN_MAX: usize = 256;

/// What goes and what has gone.
#[derive(Debug, Default)]
pub(super) struct Moving {
    /// To whom, and until when.
    offers: BTreeMap<SandboxId, (NodeId, Instant)>,
    given: VecDeque<OfferedSandbox>,
}

impl Moving {
    /// Something else is done to it now.
    pub(super) fn withdraw(&mut self, sandbox: SandboxId) {
        self.offers.remove(&sandbox);
    }

    /// It comes back: that it has gone before means nothing any more.
    fn comes_back(&mut self, sandbox: SandboxId) {
        self.given.retain(|given| given.sandbox != sandbox);
    }

    fn give(&mut self, offered: &OfferedSandbox) {
        if self.given.len() >= GIVEN_MAX {
            self.given.pop_front();
        }
        self.given.push_back(offered.clone());
    }
}

impl Driver {
    pub(super) fn offer(
        &mut self,
        now: Instant,
        (id, sandbox): (CommandId, SandboxId),
        to: NodeId,
        out: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        let entry = self.sandboxes.get(&sandbox).ok_or_else(|| not_here(sandbox))?;
        if !entry.waits_in(SandboxState::Dedup) {
            return Err(busy(sandbox, entry.state, "offer"));
        }
        self.moving.offers.insert(sandbox, (to, now + OFFER_HOLDS));
        out.push(Action::Reply { command: id, result: Ok(Box::<Success>::default()) });
        Ok(())
    }

    /// Another node wants to read what is offered to it, or to have it.
    pub(super) fn offer_asked(
        &mut self,
        now: Instant,
        offered: &OfferedSandbox,
        (give_up, ticket): (bool, Ticket),
        out: &mut Vec<Action>,
    ) {
        match self.is_offered(now, offered) {
            Err(_gone) if give_up && self.moving.given.contains(offered) => {
                out.push(Action::Admit { ticket });
            }
            Err(why) => out.push(Action::Refuse { ticket, why }),
            Ok(()) => {
                // What is admitted to read takes all it needs along at once.
                out.push(Action::Admit { ticket });
                if give_up {
                    self.moving.give(offered);
                    self.remove(offered.sandbox, None, out);
                }
            }
        }
    }

    fn is_offered(&self, now: Instant, offered: &OfferedSandbox) -> Result<(), Failure> {
        let OfferedSandbox { sandbox, to } = offered;
        let entry = self.sandboxes.get(sandbox).ok_or_else(|| not_here(*sandbox))?;
        let holds = |(whom, until): &(NodeId, Instant)| whom == to && now <= *until;
        if entry.waits_in(SandboxState::Dedup) && self.moving.offers.get(sandbox).is_some_and(holds) {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Busy, format!("{sandbox} is not offered to {to}")))
    }

    /// What is known here of a sandbox that goes.
    pub fn record(&self, sandbox: SandboxId) -> Record {
        let record = |entry: &Entry| Record {
            pages: entry.pages,
            requests: entry.requests,
            starts_from_dedup: entry.starts_from_dedup,
        };
        self.sandboxes.get(&sandbox).map(record).unwrap_or_default()
    }

    pub(super) fn take(
        &mut self,
        now: Instant,
        (id, sandbox): (CommandId, SandboxId),
        (spec, revision): (Box<FunctionSpec>, u64),
        from: (NodeId, String),
        out: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        self.has_place("take over", sandbox)?;
        self.moving.comes_back(sandbox);
        out.push(Action::Take { sandbox, spec: spec.clone(), from });
        let mut entry = Entry::starting(now, id, spec, revision);
        (entry.state, entry.arriving) = (SandboxState::Dedup, true);
        self.sandboxes.insert(sandbox, entry);
        Ok(())
    }

    pub(super) fn taken(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        result: Result<Taken, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        match result {
            Ok(taken) => {
                let phases = taken.phases.clone();
                entry.take_in(now, taken);
                self.finish(now, sandbox, Success { phases, ..Success::default() }, out);
            }
            Err(failure) => self.end(sandbox, failure, out),
        }
    }
}

impl Driver {
    /// Nobody has asked for it, and nobody waits for an answer.
    pub(super) fn taken_in(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        (spec, revision): (Box<FunctionSpec>, u64),
        (taken, age, is_parked): (Taken, Duration, bool),
    ) {
        let mut entry = Entry::new(now, spec, revision);
        entry.take_in(now, taken);
        if is_parked {
            entry.state = SandboxState::Parked;
        }
        let since = now.checked_sub(age).unwrap_or(now);
        (entry.since, entry.born, entry.last_used) = (since, since, since);
        self.sandboxes.insert(sandbox, entry);
    }

    /// What of a sandbox in dedup or parked the next agent must know. `None`: it is in another state, or something is being done to it.
    pub fn resting(&self, sandbox: SandboxId) -> Option<RestingEntry<'_>> {
        let rests =
            |entry: &&Entry| entry.waits_in(SandboxState::Dedup) || entry.waits_in(SandboxState::Parked);
        let entry = self.sandboxes.get(&sandbox).filter(rests)?;
        let Entry { revision, stored_bytes, bases, since, .. } = entry;
        Some(RestingEntry { revision: *revision, stored_bytes: *stored_bytes, bases, since: *since })
    }
}

/// What the driver knows of a sandbox that rests.
#[derive(Debug, Clone, Copy)]
pub struct RestingEntry<'d> {
    /// Of which text of the function's file.
    pub revision: u64,
    /// All bytes kept for it.
    pub stored_bytes: u64,
    /// Base snapshots that these refer to.
    pub bases: &'d [SnapshotId],
    /// When it was put away.
    pub since: Instant,
}

impl Entry {
    fn take_in(&mut self, now: Instant, taken: Taken) {
        let Taken { stored_bytes, bases, pages, requests, starts_from_dedup, phases } = taken;
        self.enter(now, SandboxState::Dedup);
        (self.arriving, self.shrinks) = (false, true);
        (self.stored_bytes, self.bases, self.pages) = (stored_bytes, bases, pages);
        (self.requests, self.starts_from_dedup) = (requests, starts_from_dedup);
        self.last_phases = phases;
    }

    /// In this state, and nothing is being done to it.
    fn waits_in(&self, state: SandboxState) -> bool {
        self.state == state && self.command.is_none() && self.doomed.is_none()
    }
}
