//! A command arrives: its agent begins the work, or refuses it as real agents do. Where nothing goes wrong nothing is ever refused.

use std::{result::Result as Outcome, time::Duration};

use anyhow::{Result, bail, ensure};
use medes_proto::{
    failure::FailureKind,
    fleet::Command,
    ids::{CommandId, NodeId, SandboxId, SnapshotId},
    registry::SnapshotPlace,
    sandbox::SandboxState,
};

use super::{Deed, World};
use crate::sim::agent::Held;

/// Until a sandbox whose park is called off is warm again.
const CALL_BACK: Duration = Duration::from_millis(5);
/// 10 Gbit/s, as between the paper's nodes.
const WIRE_BYTES_PER_S: f64 = 1.25e9;
/// What an offer takes, and a move to another node besides the bytes.
const OFFER: Duration = Duration::from_millis(1);
const MOVE: Duration = Duration::from_millis(50);
/// What dropping a snapshot takes.
const DROP: Duration = Duration::from_millis(1);

impl World<'_> {
    pub(super) fn commanded(&mut self, agent: usize, id: CommandId, command: Command) -> Result<()> {
        self.check_allowed(&command)?;
        if self.is_lost() {
            return Ok(());
        }
        match self.begin(agent, id, &command) {
            Ok(takes) => {
                let takes = takes.mul_f64(self.agents[agent].slowness);
                if let Command::Dedup { sandbox, .. } | Command::Park { sandbox, .. } = &command {
                    self.agent_does(agent, takes / 2, Deed::Claims(id, *sandbox));
                }
                self.agent_does(agent, takes, Deed::Carries(id, Box::new(command)));
            }
            // The work on the sandbox ends first; then it is purged, and this is answered.
            Err(None) => {}
            Err(Some(kind)) if self.settings.trouble.happens() => {
                self.agent_does(agent, Duration::ZERO, Deed::Refuses(id, kind));
            }
            Err(Some(kind)) => bail!("{command:?} makes no sense to its agent: {kind:?}"),
        }
        Ok(())
    }

    /// What no driver may ask for, whatever went wrong before.
    fn check_allowed(&self, command: &Command) -> Result<()> {
        match command {
            Command::Start { sandbox, .. } => {
                ensure!(!self.homes.contains_key(sandbox), "{sandbox} is started twice");
            }
            Command::Restore { sandbox, .. } => {
                let held = self.homes.get(sandbox).and_then(|home| self.agents[*home].sandboxes.get(sandbox));
                let resumed = held.is_some_and(|held| held.state == SandboxState::Restoring);
                ensure!(!resumed, "{sandbox} is resumed twice");
            }
            Command::DropSnapshot { snapshot } => {
                let others = self.holders.get(snapshot).map_or(0, |holders| holders.len());
                let refers = self.references.get(snapshot).copied().unwrap_or(0);
                ensure!(others > 1 || refers == 0, "{snapshot} is dropped, and {refers} images refer to it");
            }
            _ => {}
        }
        Ok(())
    }

    /// Begins the work: how long it takes on a node that is not slow. `None`: it is done when other work has ended.
    fn begin(
        &mut self,
        agent: usize,
        id: CommandId,
        command: &Command,
    ) -> Outcome<Duration, Option<FailureKind>> {
        match command {
            Command::Start { sandbox, function, revision, clone_of } => {
                let number = self.numbers.get(&function.name).copied().ok_or(FailureKind::Invalid)?;
                let held = Held { cloned: clone_of.is_some(), ..Held::starting(number, *revision, id) };
                Ok(self.begin_start(agent, *sandbox, held, clone_of.as_ref()))
            }
            Command::MakeBase { sandbox, init, .. } => {
                let held = self.take(agent, *sandbox, id, &[SandboxState::Warm], SandboxState::Deduping)?;
                let (function, served) = (held.function, held.served);
                if *init && served > 0 {
                    self.give_back(agent, *sandbox, SandboxState::Warm);
                    return Err(Some(FailureKind::DedupFailed));
                }
                let model = self.model.of(function);
                Ok(if *init { &model.init_ms } else { &model.base_ms }.draw(&mut self.dice))
            }
            Command::Dedup { sandbox, base, .. } => {
                let from = [SandboxState::Warm, SandboxState::Parked];
                let function = self.take(agent, *sandbox, id, &from, SandboxState::Deduping)?.function;
                let fetch = self.refer(agent, *sandbox, base.as_ref());
                Ok(fetch + self.model.of(function).dedup_ms.draw(&mut self.dice))
            }
            Command::Park { sandbox, base, .. } => {
                let held = self.take(agent, *sandbox, id, &[SandboxState::Warm], SandboxState::Deduping)?;
                held.parks += 1;
                let (function, first) = (held.function, held.parks == 1);
                let fetch = self.refer(agent, *sandbox, base.as_ref());
                let model = self.model.of(function);
                Ok(fetch + if first { &model.first_park_ms } else { &model.park_ms }.draw(&mut self.dice))
            }
            Command::CancelPark { sandbox } => {
                let held = self.agents[agent].sandboxes.get(sandbox);
                if let Some(park) = held.and_then(|held| held.command) {
                    self.agent_does(agent, CALL_BACK, Deed::Stops(park, *sandbox));
                }
                Ok(Duration::ZERO)
            }
            Command::Restore { sandbox, .. } => self.begin_restore(agent, *sandbox, id),
            Command::Offer { sandbox, to } => {
                let to = self.node_at(to).ok_or(FailureKind::Invalid)?;
                let held = self.agents[agent].sandboxes.get_mut(sandbox).ok_or(FailureKind::NotFound)?;
                if held.state != SandboxState::Dedup || held.command.is_some() {
                    return Err(Some(FailureKind::Busy));
                }
                held.offered_to = Some(to);
                Ok(OFFER)
            }
            Command::Take { sandbox, .. } => {
                let from = self.offered(agent, *sandbox).ok_or(FailureKind::Internal)?;
                Ok(MOVE + over_the_wire(self.agents[from].sandboxes[sandbox].stored_bytes))
            }
            Command::Purge { sandbox } => self.begin_purge(agent, *sandbox, id),
            Command::Replicate { place } => {
                let there = self.find(place.snapshot).ok_or(FailureKind::BaseLost)?;
                Ok(over_the_wire(there.1))
            }
            Command::DropSnapshot { .. } => Ok(DROP),
        }
    }

    fn begin_start(
        &mut self,
        agent: usize,
        sandbox: SandboxId,
        held: Held,
        clone_of: Option<&SnapshotPlace>,
    ) -> Duration {
        let model = self.model.of(held.function);
        let bytes = held.memory(model).all_bytes;
        self.agents[agent].sandboxes.insert(sandbox, held);
        self.homes.insert(sandbox, agent);
        self.outcome.sandboxes_max = self.outcome.sandboxes_max.max(self.homes.len());
        self.agents[agent].hold(sandbox, bytes);
        let fetch = clone_of.map_or(Duration::ZERO, |place| self.fetch(agent, place.snapshot));
        let start = match &model.clone {
            Some(clone) if clone_of.is_some() => clone,
            _ => &model.cold,
        };
        fetch + start.ready_ms.draw(&mut self.dice)
    }

    fn begin_restore(
        &mut self,
        agent: usize,
        sandbox: SandboxId,
        id: CommandId,
    ) -> Outcome<Duration, Option<FailureKind>> {
        let from = [SandboxState::Dedup, SandboxState::Parked];
        let parked =
            self.agents[agent].sandboxes.get(&sandbox).is_some_and(|held| held.state == SandboxState::Parked);
        let models = self.model;
        let held = self.take(agent, sandbox, id, &from, SandboxState::Restoring)?;
        held.restores += 1;
        held.in_place = parked;
        let model = models.of(held.function);
        let bytes = held.memory(model).all_bytes + held.stored_bytes;
        self.agents[agent].hold(sandbox, bytes);
        let start = if parked { &model.unpark } else { &model.restore };
        Ok(start.ready_ms.draw(&mut self.dice))
    }

    fn begin_purge(
        &mut self,
        agent: usize,
        sandbox: SandboxId,
        id: CommandId,
    ) -> Outcome<Duration, Option<FailureKind>> {
        let held = self.agents[agent].sandboxes.get_mut(&sandbox).ok_or(FailureKind::NotFound)?;
        let strict = !self.settings.trouble.happens();
        if held.command.is_some() {
            let twice = held.doomed.replace(id).is_some();
            return Err(if strict || twice { Some(FailureKind::Busy) } else { None });
        }
        if strict && !held.open.is_empty() {
            return Err(Some(FailureKind::Busy));
        }
        (held.command, held.offered_to) = (Some(id), None);
        let (function, inside) = (held.function, std::mem::take(&mut held.open));
        inside.into_iter().for_each(|request| self.plan_cut(request));
        Ok(self.model.of(function).purge_ms.draw(&mut self.dice))
    }

    /// Which node it is: the one at 3 is called n3.
    fn node_at(&self, node: &NodeId) -> Option<usize> {
        let at = node.as_str().strip_prefix('n')?.parse().ok()?;
        (at < self.agents.len()).then_some(at)
    }

    /// The node that offers a sandbox to this one.
    pub(super) fn offered(&self, to: usize, sandbox: SandboxId) -> Option<usize> {
        let from = *self.homes.get(&sandbox)?;
        let held = self.agents[from].sandboxes.get(&sandbox)?;
        (held.state == SandboxState::Dedup && held.offered_to == Some(to)).then_some(from)
    }

    /// Marks a sandbox as worked on, if it is in a state that this work begins from.
    fn take(
        &mut self,
        agent: usize,
        sandbox: SandboxId,
        id: CommandId,
        from: &[SandboxState],
        to: SandboxState,
    ) -> Outcome<&mut Held, Option<FailureKind>> {
        let held = self.agents[agent].sandboxes.get_mut(&sandbox).ok_or(FailureKind::NotFound)?;
        if !from.contains(&held.state) || held.command.is_some() || !held.open.is_empty() {
            return Err(Some(FailureKind::Busy));
        }
        (held.command, held.offered_to) = (Some(id), None);
        held.state = to;
        held.idle_since = None;
        Ok(held)
    }

    /// The work on a sandbox is over, and it is in this state.
    pub(super) fn give_back(&mut self, agent: usize, sandbox: SandboxId, state: SandboxState) {
        let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) else { return };
        held.command = None;
        held.state = state;
        if state == SandboxState::Warm && held.open.is_empty() {
            self.rest(agent, sandbox);
        }
    }

    /// An image that is being made will refer to this base, if it can be had.
    fn refer(&mut self, agent: usize, sandbox: SandboxId, base: Option<&SnapshotPlace>) -> Duration {
        let base = base.map(|place| place.snapshot).filter(|base| self.find(*base).is_some());
        self.set_bases(agent, sandbox, base.into_iter().collect());
        base.map_or(Duration::ZERO, |base| self.fetch(agent, base))
    }

    /// What a sandbox's image refers to from now on.
    pub(super) fn set_bases(&mut self, agent: usize, sandbox: SandboxId, bases: Vec<SnapshotId>) {
        let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) else { return };
        for base in &bases {
            *self.references.entry(*base).or_default() += 1;
        }
        let before = std::mem::replace(&mut held.bases, bases);
        self.forget_references(&before);
    }

    pub(super) fn forget_references(&mut self, bases: &[SnapshotId]) {
        for base in bases {
            if let Some(count) = self.references.get_mut(base) {
                *count -= 1;
                if *count == 0 {
                    self.references.remove(base);
                }
            }
        }
    }

    /// A node that holds a snapshot, and its bytes.
    pub(super) fn find(&self, snapshot: SnapshotId) -> Option<(usize, u64)> {
        let holder = *self.holders.get(&snapshot)?.first()?;
        Some((holder, self.agents[holder].snapshots.get(&snapshot)?.bytes))
    }

    /// Has a node hold a copy of a snapshot, if it is not there; what that takes.
    fn fetch(&mut self, agent: usize, snapshot: SnapshotId) -> Duration {
        if self.agents[agent].has(snapshot) {
            return Duration::ZERO;
        }
        let Some((_, bytes)) = self.find(snapshot) else { return Duration::ZERO };
        self.agents[agent].keep_replica(snapshot, bytes);
        over_the_wire(bytes)
    }
}

fn over_the_wire(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / WIRE_BYTES_PER_S)
}
