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
    ids::{CommandId, NodeId, SandboxId},
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
        if !entry.waits_in_dedup() {
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
        if entry.waits_in_dedup() && self.moving.offers.get(sandbox).is_some_and(holds) {
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
            Ok(Taken { stored_bytes, bases, pages, requests, starts_from_dedup, phases }) => {
                entry.enter(now, SandboxState::Dedup);
                (entry.arriving, entry.shrinks) = (false, true);
                (entry.stored_bytes, entry.bases, entry.pages) = (stored_bytes, bases, pages);
                (entry.requests, entry.starts_from_dedup) = (requests, starts_from_dedup);
                entry.last_phases.clone_from(&phases);
                self.finish(now, sandbox, Success { phases, ..Success::default() }, out);
            }
            Err(failure) => self.end(sandbox, failure, out),
        }
    }
}

impl Entry {
    /// In dedup, and nothing is being done to it.
    fn waits_in_dedup(&self) -> bool {
        self.state == SandboxState::Dedup && self.command.is_none() && self.doomed.is_none()
    }
}
