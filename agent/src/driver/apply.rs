//! What each event does to the state.

use std::{collections::btree_map::Entry as MapEntry, time::Instant};

use super::{
    Action, DedupFailed, DedupOrder, Deduped, Driver, Entry, Launched, Restored, Ticket, Trim, busy, not_here,
};
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, SnapshotReport, Success},
    function::FunctionSpec,
    ids::{CommandId, SandboxId, SnapshotId},
    registry::SnapshotPlace,
    sandbox::{PageClasses, Phase, SandboxState},
};

impl Driver {
    pub(super) fn command(&mut self, now: Instant, id: CommandId, command: Command, out: &mut Vec<Action>) {
        let refused = match command {
            Command::Start { sandbox, function, revision, clone_of } => {
                self.start(now, id, sandbox, (function, revision, clone_of), out)
            }
            Command::Purge { sandbox } => {
                if self.sandboxes.contains_key(&sandbox) {
                    self.remove(sandbox, Some(id), out);
                    Ok(())
                } else {
                    Err(not_here(sandbox))
                }
            }
            Command::Offer { sandbox, to } => self.offer(now, (id, sandbox), to, out),
            Command::Take { sandbox, function, revision, from, address } => {
                self.take(now, (id, sandbox), (function, revision), (from, address), out)
            }
            Command::Replicate { place } => self.replicate(id, place, out),
            Command::DropSnapshot { snapshot } => match self.snapshots.remove(&snapshot) {
                Some(_) => {
                    out.push(Action::DropSnapshot { snapshot });
                    out.push(Action::Reply { command: id, result: Ok(Box::default()) });
                    Ok(())
                }
                None => Err(Failure::new(FailureKind::NotFound, format!("{snapshot} is not on this node"))),
            },
            Command::Dedup { sandbox, digest_memory, base } => self
                .begin(now, id, sandbox, self.warm_or_parked(sandbox), SandboxState::Deduping, "dedup")
                .map(|()| out.push(Action::Dedup { sandbox, order: DedupOrder { digest_memory, base } })),
            Command::Park { sandbox, base, resident_percent } => self
                .begin(now, id, sandbox, SandboxState::Warm, SandboxState::Deduping, "park")
                .map(|()| out.push(Action::Park { sandbox, base, resident_percent })),
            Command::CancelPark { sandbox } => {
                // Whatever else is under way goes on; and if it is parked already, or warm again, there is nothing to do.
                let entry = self.sandboxes.get(&sandbox).filter(|entry| entry.command.is_some());
                if entry.is_some_and(|entry| entry.state == SandboxState::Deduping) {
                    out.push(Action::CancelPark { sandbox });
                }
                out.push(Action::Reply { command: id, result: Ok(Box::default()) });
                Ok(())
            }
            Command::MakeBase { sandbox, snapshot, init } => self
                .init_of(sandbox, init)
                .and_then(|init| {
                    self.begin(
                        now,
                        id,
                        sandbox,
                        SandboxState::Warm,
                        SandboxState::Deduping,
                        "make a base of",
                    )?;
                    Ok(init)
                })
                .map(|init| out.push(Action::MakeBase { sandbox, snapshot, init })),
            Command::Restore { sandbox, digest_memory } => self
                .begin(now, id, sandbox, self.dedup_or_parked(sandbox), SandboxState::Restoring, "restore")
                .map(|()| out.push(Action::Restore { sandbox, digest_memory })),
        };
        if let Err(failure) = refused {
            out.push(Action::Reply { command: id, result: Err(failure) });
        }
    }

    fn start(
        &mut self,
        now: Instant,
        id: CommandId,
        sandbox: SandboxId,
        (spec, revision, clone_of): (Box<FunctionSpec>, u64, Option<SnapshotPlace>),
        out: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        self.has_place("start", sandbox)?;
        out.push(Action::Launch { sandbox, spec: spec.clone(), clone_of });
        self.sandboxes.insert(sandbox, Entry::starting(now, id, spec, revision));
        Ok(())
    }

    /// Whether there may be one more sandbox, and this one.
    pub(super) fn has_place(&self, verb: &str, sandbox: SandboxId) -> Result<(), Failure> {
        if self.sandboxes.contains_key(&sandbox) {
            return Err(Failure::new(FailureKind::Busy, format!("{verb} {sandbox}: it exists")));
        }
        if self.sandboxes.len() >= self.sandboxes_max {
            let message = format!("{verb} {sandbox}: this node has {} sandboxes already", self.sandboxes_max);
            return Err(Failure::new(FailureKind::NoSpace, message));
        }
        Ok(())
    }

    /// The text of the function of which this sandbox shows the init state, if it is asked for and still true.
    fn init_of(&self, sandbox: SandboxId, wanted: bool) -> Result<Option<u64>, Failure> {
        let entry = self.sandboxes.get(&sandbox).filter(|_| wanted);
        let Some(entry) = entry else { return Ok(None) };
        // What a request left behind would be in every clone.
        if entry.requests > 0 || entry.open_requests > 0 {
            let message = format!("make an init snapshot of {sandbox}: it has served requests");
            return Err(Failure::new(FailureKind::DedupFailed, message));
        }
        Ok(Some(entry.revision))
    }

    fn is_parked(&self, sandbox: SandboxId) -> bool {
        self.sandboxes.get(&sandbox).is_some_and(|entry| entry.state == SandboxState::Parked)
    }

    /// The state that a dedup of it begins from.
    fn warm_or_parked(&self, sandbox: SandboxId) -> SandboxState {
        if self.is_parked(sandbox) { SandboxState::Parked } else { SandboxState::Warm }
    }

    /// The state that a restore of it begins from.
    fn dedup_or_parked(&self, sandbox: SandboxId) -> SandboxState {
        if self.is_parked(sandbox) { SandboxState::Parked } else { SandboxState::Dedup }
    }

    /// Marks the sandbox as worked on, if it is in the state that this work begins from.
    fn begin(
        &mut self,
        now: Instant,
        id: CommandId,
        sandbox: SandboxId,
        from: SandboxState,
        to: SandboxState,
        verb: &str,
    ) -> Result<(), Failure> {
        let entry = self.sandboxes.get_mut(&sandbox).ok_or_else(|| not_here(sandbox))?;
        if entry.state != from || entry.command.is_some() || entry.doomed.is_some() {
            return Err(busy(sandbox, entry.state, verb));
        }
        entry.command = Some(id);
        entry.enter(now, to);
        self.moving.withdraw(sandbox);
        Ok(())
    }

    pub(super) fn request_asked(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        ticket: Ticket,
        out: &mut Vec<Action>,
    ) {
        let refusal = match self.sandboxes.get_mut(&sandbox) {
            None => Some(not_here(sandbox)),
            Some(entry) => match entry.state {
                SandboxState::Warm | SandboxState::Running
                    if entry.open_requests < entry.spec.requests_max && entry.doomed.is_none() =>
                {
                    entry.open_requests += 1;
                    if entry.state == SandboxState::Warm {
                        entry.enter(now, SandboxState::Running);
                    }
                    None
                }
                state => Some(busy(sandbox, state, "invoke")),
            },
        };
        out.push(match refusal {
            None => Action::Admit { ticket },
            Some(why) => Action::Refuse { ticket, why },
        });
    }

    pub(super) fn request_ended(&mut self, now: Instant, sandbox: SandboxId, answered: bool) {
        // It may be gone: a crash ends both the request and the sandbox, in either order.
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        entry.open_requests = entry.open_requests.saturating_sub(1);
        entry.requests += u64::from(answered);
        entry.last_used = now;
        if entry.open_requests == 0 && entry.state == SandboxState::Running {
            entry.enter(now, SandboxState::Warm);
        }
    }

    pub(super) fn launched(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        result: Result<Launched, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        match result {
            Ok(Launched { phases, stored_bytes, bases }) => {
                entry.settle_warm(now);
                (entry.stored_bytes, entry.bases) = (stored_bytes, bases);
                entry.last_phases.clone_from(&phases);
                self.finish(now, sandbox, Success { phases, ..Success::default() }, out);
            }
            Err(failure) => self.end(sandbox, failure, out),
        }
    }

    pub(super) fn deduped(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        result: Result<Deduped, DedupFailed>,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        match result {
            Ok(Deduped { stored_bytes, bases, pages, phases, memory_digest, in_place, shrinks, .. }) => {
                entry.enter(now, if in_place { SandboxState::Parked } else { SandboxState::Dedup });
                entry.stored_bytes = stored_bytes;
                entry.bases = bases;
                entry.pages = pages;
                entry.shrinks = shrinks;
                entry.last_phases.clone_from(&phases);
                self.finish(now, sandbox, Success { phases, memory_digest, ..Success::default() }, out);
            }
            Err(failed) => self.not_dumped(now, sandbox, failed, out),
        }
    }

    /// A dedup or a snapshot that failed: the sandbox is warm as before, unless it was lost.
    fn not_dumped(&mut self, now: Instant, sandbox: SandboxId, failed: DedupFailed, out: &mut Vec<Action>) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        let DedupFailed { failure, lost } = failed;
        if lost {
            self.end(sandbox, failure, out);
            return;
        }
        if failure.kind == FailureKind::DumpRefused {
            entry.undumpable = Some(failure.message.clone());
        }
        // Its time of last use stands: a failed dedup is not a use.
        entry.enter(now, SandboxState::Warm);
        if let Some(command) = entry.command.take() {
            out.push(Action::Reply { command, result: Err(failure) });
        }
        self.remove_if_doomed(sandbox, out);
    }

    pub(super) fn restored(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        result: Result<Restored, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        match result {
            Ok(Restored { phases, memory_digest, in_place }) => {
                entry.settle_warm(now);
                entry.starts_from_dedup += 1;
                if !in_place {
                    entry.stored_bytes = 0;
                    entry.bases.clear();
                }
                entry.last_phases.clone_from(&phases);
                self.finish(now, sandbox, Success { phases, memory_digest, ..Success::default() }, out);
            }
            Err(failure) => self.end(sandbox, failure, out),
        }
    }

    pub(super) fn base_made(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        result: Result<(SnapshotReport, Vec<Phase>), DedupFailed>,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        match result {
            Ok((snapshot, phases)) => {
                entry.enter(now, SandboxState::Warm);
                if snapshot.init.is_none() {
                    entry.base_snapshot = Some(snapshot.id);
                }
                entry.last_phases.clone_from(&phases);
                self.snapshots.insert(snapshot.id, snapshot.clone());
                let success = Success { snapshot: Some(snapshot), phases, ..Success::default() };
                self.finish(now, sandbox, success, out);
            }
            Err(failed) => self.not_dumped(now, sandbox, failed, out),
        }
    }

    fn replicate(
        &mut self,
        id: CommandId,
        place: SnapshotPlace,
        out: &mut Vec<Action>,
    ) -> Result<(), Failure> {
        let snapshot = place.snapshot;
        if let Some(held) = self.snapshots.get(&snapshot) {
            let success = Success { snapshot: Some(held.clone()), ..Success::default() };
            out.push(Action::Reply { command: id, result: Ok(Box::new(success)) });
            return Ok(());
        }
        match self.replicating.entry(snapshot) {
            MapEntry::Vacant(free) => {
                free.insert(id);
                out.push(Action::Replicate { place });
                Ok(())
            }
            MapEntry::Occupied(_) => {
                Err(Failure::new(FailureKind::Busy, format!("copy {snapshot}: that is under way")))
            }
        }
    }

    pub(super) fn replicated(
        &mut self,
        snapshot: SnapshotId,
        result: Result<SnapshotReport, Failure>,
        out: &mut Vec<Action>,
    ) {
        if let Ok(report) = &result {
            self.snapshots.insert(snapshot, report.clone());
        }
        if let Some(command) = self.replicating.remove(&snapshot) {
            let held = |report| Box::new(Success { snapshot: Some(report), ..Success::default() });
            out.push(Action::Reply { command, result: result.map(held) });
        }
    }

    /// Answers the command under way with how the sandbox is now.
    pub(super) fn finish(
        &mut self,
        now: Instant,
        sandbox: SandboxId,
        mut success: Success,
        out: &mut Vec<Action>,
    ) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        if let Some(command) = entry.command.take() {
            success.sandbox = Some(entry.report(now, sandbox));
            out.push(Action::Reply { command, result: Ok(Box::new(success)) });
        }
        self.remove_if_doomed(sandbox, out);
    }

    /// The work under way left nothing of the sandbox: answers its command, then frees what remains.
    pub(super) fn end(&mut self, sandbox: SandboxId, failure: Failure, out: &mut Vec<Action>) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        match entry.command.take() {
            Some(command) => out.push(Action::Reply { command, result: Err(failure.clone()) }),
            None => out.push(Action::ReportGone { sandbox, why: failure.clone() }),
        }
        entry.doomed = Some(failure);
        out.push(Action::Remove { sandbox });
    }

    /// Removes a sandbox now, or as soon as the work on it has ended. `command` is answered when it is gone.
    pub(super) fn remove(&mut self, sandbox: SandboxId, command: Option<CommandId>, out: &mut Vec<Action>) {
        self.moving.withdraw(sandbox);
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        let working = entry.is_worked_on();
        let already = entry.doomed.is_some();
        entry.doomed.get_or_insert_with(|| {
            Failure::new(
                FailureKind::NotFound,
                format!("{sandbox} was purged while work on it was under way"),
            )
        });
        if let Some(command) = command
            && let Some(waiting) = entry.purge.replace(command)
        {
            let why = Failure::new(FailureKind::Busy, format!("{sandbox} is being purged twice"));
            out.push(Action::Reply { command: waiting, result: Err(why) });
        }
        if !working && !already {
            out.push(Action::Remove { sandbox });
        }
    }

    pub(super) fn remove_if_doomed(&mut self, sandbox: SandboxId, out: &mut Vec<Action>) {
        if self.sandboxes.get(&sandbox).is_some_and(|entry| entry.doomed.is_some()) {
            out.push(Action::Remove { sandbox });
        }
    }

    pub(super) fn removed(&mut self, sandbox: SandboxId, out: &mut Vec<Action>) {
        let Some(entry) = self.sandboxes.remove(&sandbox) else { return };
        if let Some(command) = entry.purge {
            out.push(Action::Reply { command, result: Ok(Box::default()) });
        }
    }

    pub(super) fn exited(&mut self, sandbox: SandboxId, why: Failure, out: &mut Vec<Action>) {
        let Some(entry) = self.sandboxes.get_mut(&sandbox) else { return };
        // Of one that is being trimmed the step's result tells, or who watches it afterwards.
        if entry.doomed.is_some() || entry.trim.is_under_way() {
            return;
        }
        entry.doomed = Some(why.clone());
        // While work is under way its own result says what happened to the sandbox.
        if entry.command.is_none() {
            out.push(Action::ReportGone { sandbox, why });
            out.push(Action::Remove { sandbox });
        }
    }
}

impl Entry {
    pub(super) fn starting(now: Instant, command: CommandId, spec: Box<FunctionSpec>, revision: u64) -> Self {
        Self { command: Some(command), ..Self::new(now, spec, revision) }
    }

    /// One that nothing is known of yet.
    pub(super) fn new(now: Instant, spec: Box<FunctionSpec>, revision: u64) -> Self {
        Self {
            spec,
            revision,
            state: SandboxState::Starting,
            since: now,
            born: now,
            last_used: now,
            reported_idle: None,
            command: None,
            doomed: None,
            purge: None,
            open_requests: 0,
            requests: 0,
            starts_from_dedup: 0,
            undumpable: None,
            stored_bytes: 0,
            bases: Vec::new(),
            base_snapshot: None,
            last_phases: Vec::new(),
            pages: PageClasses::default(),
            shrinks: false,
            arriving: false,
            trim: Trim::new(now),
        }
    }

    pub(super) fn enter(&mut self, now: Instant, state: SandboxState) {
        self.state = state;
        self.since = now;
    }

    /// Ready for a request, as after a use.
    fn settle_warm(&mut self, now: Instant) {
        self.enter(now, SandboxState::Warm);
        self.last_used = now;
        self.reported_idle = None;
        self.trim.begin_anew();
    }
}
