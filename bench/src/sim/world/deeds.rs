//! Work is over: what it changed, and what the driver is told.

use std::{result::Result as Outcome, time::Duration};

use anyhow::Result;
use medes_controller::driver::{Event, RequestId, Ticket};
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, InitState, Success},
    ids::{CommandId, SandboxId, SnapshotId},
    registry::Acquire,
    sandbox::{SandboxState, StartKind},
};

use super::{What, World, callers::End};
use crate::sim::agent::Snapshot;

/// Nobody waits with this one but a dedup under way, whose claim is answered at once.
const CLAIM: Ticket = Ticket(1);

impl World<'_> {
    /// A command has been carried out, unless its sandbox was taken from under it.
    pub(super) fn carries(&mut self, agent: usize, id: CommandId, command: &Command) -> Result<()> {
        if let Some(sandbox) = command.sandbox()
            && !matches!(command, Command::CancelPark { .. } | Command::Offer { .. } | Command::Take { .. })
        {
            let held = self.agents[agent].sandboxes.get(&sandbox);
            if held.is_none_or(|held| held.command != Some(id)) {
                return Ok(());
            }
        }
        let result = match command {
            Command::Start { sandbox, clone_of, .. } => {
                let source = clone_of.as_ref().map(|place| place.snapshot);
                self.started(agent, *sandbox, source)
            }
            Command::MakeBase { sandbox, snapshot, init } => {
                self.base_made(agent, *sandbox, *snapshot, *init)
            }
            Command::Dedup { sandbox, .. } => self.deduped(agent, *sandbox),
            Command::Park { sandbox, .. } => self.parked(agent, *sandbox),
            Command::Restore { sandbox, .. } => self.restored(agent, *sandbox),
            Command::Purge { sandbox } => {
                self.outcome.purges += 1;
                self.remove(agent, *sandbox);
                Ok(Success::default())
            }
            Command::Replicate { place } => self.copied(agent, place.snapshot),
            Command::DropSnapshot { snapshot } => self.dropped(agent, *snapshot),
            Command::Take { sandbox, .. } => self.taken(agent, *sandbox),
            Command::CancelPark { .. } | Command::Offer { .. } => Ok(Success::default()),
        };
        let result = result.map(|success| {
            let report = |sandbox| self.agents[agent].report(sandbox, &self.names, self.model);
            let about = command.sandbox().filter(|_| !matches!(command, Command::CancelPark { .. }));
            Success { sandbox: about.and_then(report), ..success }
        });
        self.answer(agent, id, result)?;
        match command.sandbox() {
            Some(sandbox) => self.purge_doomed(agent, sandbox),
            None => Ok(()),
        }
    }

    /// The driver hears what came of a command.
    pub(super) fn answer(
        &mut self,
        agent: usize,
        command: CommandId,
        result: Outcome<Success, FailureKind>,
    ) -> Result<()> {
        let Some(connection) = self.agents[agent].connection else { return Ok(()) };
        if self.is_lost() {
            return Ok(());
        }
        let failure = |kind| Failure::new(kind, "it did not work");
        self.tell(Event::Done { connection, command, result: Box::new(result.map_err(failure)) })
    }

    fn purge_doomed(&mut self, agent: usize, sandbox: SandboxId) -> Result<()> {
        let held = self.agents[agent].sandboxes.get_mut(&sandbox);
        let Some(purge) = held.and_then(|held| held.doomed.take()) else { return Ok(()) };
        self.outcome.purges += 1;
        self.remove(agent, sandbox);
        self.answer(agent, purge, Ok(Success::default()))
    }

    fn started(
        &mut self,
        agent: usize,
        sandbox: SandboxId,
        source: Option<SnapshotId>,
    ) -> Outcome<Success, FailureKind> {
        if source.is_some_and(|source| !self.agents[agent].has(source)) {
            self.remove(agent, sandbox);
            return Err(FailureKind::BaseLost);
        }
        let by = if source.is_some() { StartKind::Clone } else { StartKind::Cold };
        self.ready(agent, sandbox, by);
        Ok(Success::default())
    }

    /// A sandbox can serve from now on.
    fn ready(&mut self, agent: usize, sandbox: SandboxId, by: StartKind) {
        if let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) {
            held.ready_by = Some(by);
        }
        self.give_back(agent, sandbox, SandboxState::Warm);
    }

    fn base_made(
        &mut self,
        agent: usize,
        sandbox: SandboxId,
        id: SnapshotId,
        init: bool,
    ) -> Outcome<Success, FailureKind> {
        self.give_back(agent, sandbox, SandboxState::Warm);
        let held = self.agents[agent].sandboxes.get_mut(&sandbox).ok_or(FailureKind::NotFound)?;
        let (function, revision) = (held.function, held.revision);
        if !init {
            held.source_of = Some(id);
        }
        let model = self.model.of(function);
        let snapshot = Snapshot {
            function,
            init: init.then_some(InitState { revision, clonable: model.clone.is_some() }),
            bytes: if init { model.init_bytes } else { model.base_bytes },
        };
        self.hold_snapshot(agent, id, snapshot);
        if init {
            self.outcome.inits += 1;
        } else {
            self.outcome.bases += 1;
        }
        Ok(Success { snapshot: Some(snapshot.report(id, &self.names)), ..Success::default() })
    }

    fn hold_snapshot(&mut self, agent: usize, id: SnapshotId, snapshot: Snapshot) {
        if self.agents[agent].snapshots.insert(id, snapshot).is_none() {
            self.agents[agent].grow(snapshot.bytes);
            self.holders.entry(id).or_default().insert(agent);
        }
    }

    fn copied(&mut self, agent: usize, id: SnapshotId) -> Outcome<Success, FailureKind> {
        let (holder, _) = self.find(id).ok_or(FailureKind::BaseLost)?;
        let snapshot = *self.agents[holder].snapshots.get(&id).ok_or(FailureKind::BaseLost)?;
        self.hold_snapshot(agent, id, snapshot);
        self.outcome.copies += 1;
        Ok(Success { snapshot: Some(snapshot.report(id, &self.names)), ..Success::default() })
    }

    fn dropped(&mut self, agent: usize, id: SnapshotId) -> Outcome<Success, FailureKind> {
        let snapshot = self.agents[agent].snapshots.remove(&id).ok_or(FailureKind::NotFound)?;
        self.agents[agent].shrink(snapshot.bytes);
        self.let_go(agent, id);
        Ok(Success::default())
    }

    /// A node no longer holds a snapshot.
    pub(super) fn let_go(&mut self, agent: usize, id: SnapshotId) {
        if let Some(holders) = self.holders.get_mut(&id) {
            holders.remove(&agent);
            if holders.is_empty() {
                self.holders.remove(&id);
            }
        }
    }

    /// A dedup claims the base that its image will refer to; without one it goes on alone.
    pub(super) fn claims(&mut self, agent: usize, id: CommandId, sandbox: SandboxId) -> Result<()> {
        let held = self.agents[agent].sandboxes.get(&sandbox).filter(|held| held.command == Some(id));
        let Some(snapshots) = held.map(|held| held.bases.clone()).filter(|bases| !bases.is_empty()) else {
            return Ok(());
        };
        self.granted = None;
        if !self.is_lost() {
            self.tell(Event::Acquire { ticket: CLAIM, acquire: Acquire { sandbox, snapshots } })?;
        }
        if self.granted != Some(true) {
            self.set_bases(agent, sandbox, Vec::new());
        }
        Ok(())
    }

    fn deduped(&mut self, agent: usize, sandbox: SandboxId) -> Outcome<Success, FailureKind> {
        let held = self.agents[agent].sandboxes.get_mut(&sandbox).ok_or(FailureKind::NotFound)?;
        let model = self.model.of(held.function);
        held.stored_bytes = if held.bases.is_empty() { model.alone_bytes } else { model.stored_bytes };
        let bytes = held.stored_bytes;
        self.agents[agent].hold(sandbox, bytes);
        self.aligned(agent, sandbox);
        self.give_back(agent, sandbox, SandboxState::Dedup);
        self.outcome.dedups += 1;
        Ok(Success::default())
    }

    fn parked(&mut self, agent: usize, sandbox: SandboxId) -> Outcome<Success, FailureKind> {
        let held = self.agents[agent].sandboxes.get_mut(&sandbox).ok_or(FailureKind::NotFound)?;
        let model = self.model.of(held.function);
        held.stored_bytes = model.parked_stored_bytes;
        let bytes = held.stored_bytes + model.parked.all_bytes;
        self.agents[agent].hold(sandbox, bytes);
        self.aligned(agent, sandbox);
        self.give_back(agent, sandbox, SandboxState::Parked);
        self.outcome.parks += 1;
        Ok(Success::default())
    }

    /// For what a sandbox's image refers to there is an index now.
    fn aligned(&mut self, agent: usize, sandbox: SandboxId) {
        let now = self.now;
        let agent = &mut self.agents[agent];
        let Some(held) = agent.sandboxes.get(&sandbox) else { return };
        let bytes = self.model.of(held.function).index_bytes;
        held.bases.clone().into_iter().for_each(|base| agent.use_index(now, base, bytes));
    }

    /// A request wants a sandbox that is being parked.
    pub(super) fn stops(&mut self, agent: usize, park: CommandId, sandbox: SandboxId) -> Result<()> {
        let held = self.agents[agent].sandboxes.get(&sandbox);
        if held.is_none_or(|held| held.command != Some(park)) {
            return Ok(());
        }
        self.set_bases(agent, sandbox, Vec::new());
        self.give_back(agent, sandbox, SandboxState::Warm);
        self.answer(agent, park, Err(FailureKind::Cancelled))?;
        self.purge_doomed(agent, sandbox)
    }

    fn restored(&mut self, agent: usize, sandbox: SandboxId) -> Outcome<Success, FailureKind> {
        let held = self.agents[agent].sandboxes.get(&sandbox).ok_or(FailureKind::NotFound)?;
        let (bases, in_place) = (held.bases.clone(), held.in_place);
        if bases.iter().any(|base| self.find(*base).is_none()) {
            self.remove(agent, sandbox);
            return Err(FailureKind::BaseLost);
        }
        if in_place {
            // Its image stays: it is good for the next park.
            self.outcome.unparks += 1;
            self.ready(agent, sandbox, StartKind::Unpark);
            return Ok(Success::default());
        }
        self.set_bases(agent, sandbox, Vec::new());
        self.agents[agent].keep_earlier(sandbox);
        self.outcome.restores += 1;
        self.ready(agent, sandbox, StartKind::Restore);
        Ok(Success::default())
    }

    /// A sandbox comes over from the node that offers it, which has it no more.
    fn taken(&mut self, agent: usize, sandbox: SandboxId) -> Outcome<Success, FailureKind> {
        let from = self.offered(agent, sandbox).ok_or(FailureKind::Internal)?;
        let mut held = self.agents[from].remove(sandbox).ok_or(FailureKind::Internal)?;
        let bytes = std::mem::take(&mut held.bytes);
        held.offered_to = None;
        self.agents[agent].sandboxes.insert(sandbox, held);
        self.agents[agent].hold(sandbox, bytes);
        self.homes.insert(sandbox, agent);
        Ok(Success::default())
    }

    /// Nothing of a sandbox is left.
    pub(super) fn remove(&mut self, agent: usize, sandbox: SandboxId) {
        let Some(held) = self.agents[agent].remove(sandbox) else { return };
        self.homes.remove(&sandbox);
        self.forget_references(&held.bases);
        for request in held.open {
            self.plan_cut(request);
        }
    }

    /// A request whose sandbox is gone comes to nothing.
    pub(super) fn plan_cut(&mut self, request: RequestId) {
        let Some(attempt) = self.callers.get(&request).map(|caller| caller.attempt) else { return };
        self.plan(Duration::ZERO, What::Ends { request, attempt, end: End::Lost });
    }
}
