//! Base snapshots: made, placed, referenced, dropped.
//!
//! A snapshot is referenced by reports of dedup sandboxes, by leases (a dedup under way has claimed it, no report
//! shows it yet) and by ghosts (its dedup sandbox's node is lost, but may only be cut off). It is dropped only when
//! nobody refers to it, and its function is gone or the policy lets it go.

use std::collections::BTreeSet;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, InitState, SnapshotReport, Success},
    ids::{FunctionName, NodeId, SandboxId, SnapshotId},
    registry::{Acquire, SnapshotPlace},
    trace::{About, BaseChange, Cause, What},
};

use super::{
    Action, Driver, Ticket, failure,
    state::{Ghost, Kind, Life, Pending, Sandbox, Snapshot, SnapshotLife, Timer},
};
use crate::now::Now;

impl Driver {
    pub(super) fn make_base(
        &mut self,
        now: Now,
        id: SandboxId,
        init: bool,
        ticket: Option<Ticket>,
        out: &mut Vec<Action>,
    ) -> bool {
        let Some(sandbox) = self.sandboxes.get(&id) else { return false };
        let (node, function, revision) = (sandbox.node.clone(), sandbox.function.clone(), sandbox.revision);
        let reserved = sandbox.report.private_bytes;
        let Some(snapshot) = self.next_snapshot() else { return false };
        let command = Command::MakeBase { sandbox: id, snapshot, init };
        // The agent registers fingerprints before it answers.
        out.push(Action::ExpectSnapshot(snapshot));
        let limit = self.settings.dedup_max;
        if !self.issue(now, &node, command, Kind::MakeBase(snapshot), limit, ticket, reserved, out) {
            out.push(Action::ForgetSnapshot(snapshot));
            return false;
        }
        let init = init.then_some(InitState { revision, clonable: false });
        let report = SnapshotReport { id: snapshot, function: function.clone(), pages: 0, bytes: 0, init };
        self.insert_snapshot(snapshot, Snapshot::new(function, node, SnapshotLife::Making, report));
        self.enter(now, id, Life::MakingBase, Cause::Decided, out);
        true
    }

    pub(super) fn base_done(
        &mut self,
        now: Now,
        pending: &Pending,
        id: SnapshotId,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(sandbox_id) = pending.sandbox else { return };
        let cause = if result.is_ok() { Cause::Done } else { Cause::Failed };
        self.enter(now, sandbox_id, Life::Warm, cause, out);
        match result {
            Ok(success) => {
                if let Some(sandbox) = self.sandboxes.get_mut(&sandbox_id) {
                    if let Some(report) = success.sandbox {
                        sandbox.report = report;
                    }
                    if success.snapshot.as_ref().is_some_and(|snapshot| snapshot.init.is_none()) {
                        sandbox.report.base_snapshot = Some(id);
                    }
                }
                let mut made =
                    BaseChange { snapshot: id, made: true, pages: 0, bytes: 0, phases: success.phases };
                if let (Some(report), Some(snapshot)) = (success.snapshot, self.snapshots.get_mut(&id)) {
                    let bytes = i64::try_from(report.bytes).unwrap_or(i64::MAX);
                    (made.pages, made.bytes) = (report.pages, report.bytes);
                    snapshot.report = report;
                    self.drift(&pending.node, bytes);
                }
                self.place_snapshot(id, out);
                // One whose function went away meanwhile is dropped at once.
                self.check_bases = true;
                self.tell_of(sandbox_id, What::Base(made), out);
            }
            Err(why) => {
                let init = self.snapshots.get(&id).filter(|snapshot| snapshot.report.init.is_some());
                if let Some(name) = init.map(|snapshot| snapshot.function.clone()) {
                    self.no_init(now, &name);
                }
                self.forget_snapshot(id, out);
                self.tell_failed(sandbox_id, "base", &why, None, out);
                if matches!(why.kind, FailureKind::NotFound | FailureKind::Crashed | FailureKind::OutOfMemory)
                {
                    self.end_broken(now, sandbox_id, why.kind, out);
                } else {
                    self.block_dumps(now, sandbox_id, &why);
                }
            }
        }
    }

    /// Lookups may name it from now on, if its node can be reached.
    fn place_snapshot(&mut self, id: SnapshotId, out: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        if !self.nodes.contains_key(&snapshot.node) {
            return;
        }
        snapshot.life = SnapshotLife::Live;
        self.place_again(id, out);
    }

    pub(super) fn forget_snapshot(&mut self, id: SnapshotId, out: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshots.remove(&id) else { return };
        snapshot.holders().for_each(|node| self.holds_no_more(id, node));
        let function = snapshot.function;
        self.short.remove(&id);
        self.outdated.remove(&id);
        if let Some(bases) = self.bases_of.get_mut(&function) {
            bases.remove(&id);
            if bases.is_empty() {
                self.bases_of.remove(&function);
                self.orphaned.remove(&function);
            }
        }
        out.push(Action::ForgetSnapshot(id));
    }

    fn insert_snapshot(&mut self, id: SnapshotId, snapshot: Snapshot) {
        self.bases_of.entry(snapshot.function.clone()).or_default().insert(id);
        self.mark_orphaned(&snapshot.function);
        if self.is_outdated(&snapshot) {
            self.outdated.insert(id);
        }
        self.held.entry(snapshot.node.clone()).or_default().insert(id);
        self.snapshots.insert(id, snapshot);
    }

    /// A function has gone or come, or has its first snapshot.
    pub(super) fn mark_orphaned(&mut self, name: &FunctionName) {
        match self.bases_of.contains_key(name) && !self.functions.contains_key(name) {
            true => drop(self.orphaned.insert(name.clone())),
            false => drop(self.orphaned.remove(name)),
        }
    }

    /// The snapshots of a function, with their numbers.
    pub(super) fn bases_of(&self, name: &FunctionName) -> impl Iterator<Item = (SnapshotId, &Snapshot)> {
        let ids = self.bases_of.get(name).into_iter().flatten();
        ids.filter_map(|id| Some((*id, self.snapshots.get(id)?)))
    }

    pub(super) fn forget_snapshots_of(&mut self, now: Now, node: &NodeId, out: &mut Vec<Action>) {
        self.holds_only(now, node, &BTreeSet::new(), out);
        for id in self.snapshots_of(node) {
            self.lose_holder(id, out);
        }
    }

    /// Those for which readers are sent to it.
    fn snapshots_of(&self, node: &NodeId) -> Vec<SnapshotId> {
        self.on_node(node).filter(|(_, snapshot)| snapshot.node == *node).map(|(id, _)| id).collect()
    }

    /// A node is away (`until` unknown) or lost: nobody is told to read from it.
    pub(super) fn hide_snapshots(
        &mut self,
        now: Now,
        node: &NodeId,
        until: Option<Now>,
        out: &mut Vec<Action>,
    ) {
        self.holds_only(now, node, &BTreeSet::new(), out);
        for id in self.snapshots_of(node) {
            if self.promote(id, out) {
                continue;
            }
            let Some(snapshot) = self.snapshots.get_mut(&id) else { continue };
            if !matches!(snapshot.life, SnapshotLife::Hidden { .. }) {
                out.push(Action::HideSnapshot(id));
            }
            snapshot.life = SnapshotLife::Hidden { until };
            if let Some(until) = until {
                self.arm(until, Timer::Snapshot(id));
            }
        }
    }

    /// What a node says it holds. Only a Hello is sure that a snapshot is not there: a MakeBase may be under way.
    pub(super) fn reconcile_snapshots(
        &mut self,
        now: Now,
        node: &NodeId,
        reports: Vec<SnapshotReport>,
        sure: bool,
        out: &mut Vec<Action>,
    ) {
        let mut seen = BTreeSet::new();
        for report in reports {
            let id = report.id;
            seen.insert(id);
            match self.snapshots.get_mut(&id) {
                Some(snapshot) if snapshot.node != *node => self.has_copy(id, node, out),
                Some(snapshot) => {
                    snapshot.report = report;
                    if matches!(snapshot.life, SnapshotLife::Hidden { .. })
                        || sure && snapshot.life == SnapshotLife::Making
                    {
                        self.place_snapshot(id, out);
                    }
                }
                None => {
                    let function = report.function.clone();
                    let life = SnapshotLife::Live;
                    self.insert_snapshot(id, Snapshot::new(function, node.clone(), life, report));
                    self.place_snapshot(id, out);
                    self.check_bases = true;
                }
            }
        }
        if sure {
            self.holds_only(now, node, &seen, out);
        }
        let gone = self.snapshots_of(node).into_iter().filter(|id| !seen.contains(id));
        for id in gone.collect::<Vec<_>>() {
            let making = self.under_way.of_snapshots().any(|pending| pending.kind == Kind::MakeBase(id));
            let life = self.snapshots.get(&id).map(|snapshot| snapshot.life);
            // A heartbeat may have crossed the MakeBase's answer; the next Hello settles it.
            if !making && (sure || life == Some(SnapshotLife::Dropping)) {
                self.lose_holder(id, out);
            }
        }
    }

    /// A base of the sandbox's function that can be read, on its own node if there is one; the newest, which stays
    /// longest.
    pub(super) fn base_for(&self, id: SandboxId) -> Option<SnapshotPlace> {
        let sandbox = self.sandboxes.get(&id)?;
        let readable =
            self.bases_of(&sandbox.function).filter(|(_, snapshot)| snapshot.life == SnapshotLife::Live);
        let best = readable.max_by_key(|(id, snapshot)| (snapshot.is_on(&sandbox.node), *id))?;
        self.place_for(best, &sandbox.node)
    }

    pub(super) fn acquire(&mut self, ticket: Ticket, acquire: Acquire, out: &mut Vec<Action>) {
        let Acquire { sandbox, snapshots } = acquire;
        let missing = snapshots
            .iter()
            .find(|id| !self.snapshots.get(id).is_some_and(|snapshot| snapshot.life == SnapshotLife::Live));
        let result = if let Some(id) = missing {
            Err(failure(FailureKind::NotFound, format!("{id} is not there, or on its way out")))
        } else if !self.sandboxes.contains_key(&sandbox) {
            Err(failure(FailureKind::NotFound, format!("{sandbox} is not known")))
        } else {
            self.want_copies(snapshots.iter().copied());
            self.leases.entry(sandbox).or_default().extend(snapshots);
            Ok(Success::default())
        };
        Self::answer(out, ticket, result);
    }

    /// A sandbox is told to be made of a base, or to be stored against it: it must not be dropped meanwhile.
    pub(super) fn claim(&mut self, sandbox: SandboxId, base: Option<SnapshotId>) {
        if let Some(base) = base {
            self.leases.entry(sandbox).or_default().insert(base);
        }
    }

    pub(super) fn remember_references(&mut self, node: &NodeId, id: SandboxId, until: Now) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let reported = sandbox.report.bases.iter();
        let bases: BTreeSet<_> =
            reported.chain(self.leases.get(&id).into_iter().flatten()).copied().collect();
        if !bases.is_empty() {
            self.ghosts.insert(id, Ghost { node: node.clone(), bases, until });
            self.arm(until, Timer::Ghost(id));
        }
    }

    pub(super) fn ghost_due(&mut self, now: Now, id: SandboxId) {
        if self.ghosts.get(&id).is_some_and(|ghost| ghost.until <= now) {
            self.ghosts.remove(&id);
            self.check_bases = true;
        }
    }

    /// Every snapshot that somebody refers to.
    pub(super) fn referenced(&self) -> BTreeSet<SnapshotId> {
        let reports = self.sandboxes.values().flat_map(|sandbox| &sandbox.report.bases);
        let leases = self.leases.values().flatten();
        let ghosts = self.ghosts.values().flat_map(|ghost| &ghost.bases);
        reports.chain(leases).chain(ghosts).copied().collect()
    }

    /// Whether a dedup sandbox's bases can be read, as far as known.
    pub(super) fn bases_are_there(&self, sandbox: &Sandbox) -> bool {
        let live = |id| self.snapshots.get(id).is_some_and(|snapshot| snapshot.life == SnapshotLife::Live);
        sandbox.report.bases.iter().all(live)
    }

    pub(super) fn drop_bases(&mut self, now: Now, out: &mut Vec<Action>) {
        // Asked whenever a reference goes, so it must not look at everything.
        let of = |names: &mut dyn Iterator<Item = &FunctionName>| -> Vec<SnapshotId> {
            let all = names.flat_map(|name| self.bases_of(name));
            all.filter(|(_, snapshot)| snapshot.life == SnapshotLife::Live).map(|(id, _)| id).collect()
        };
        let outdated = |id: &&SnapshotId| {
            self.snapshots.get(id).is_some_and(|snapshot| snapshot.life == SnapshotLife::Live)
        };
        let mut droppable: BTreeSet<SnapshotId> = self.outdated.iter().filter(outdated).copied().collect();
        droppable.extend(match self.policy.keeps_bases() {
            true => of(&mut self.orphaned.iter()),
            // But for those that new sandboxes are made of.
            false => {
                let kept = |id: &SnapshotId| {
                    let snapshot = self.snapshots.get(id).filter(|snapshot| snapshot.report.init.is_some());
                    snapshot.is_some_and(|snapshot| self.functions.contains_key(&snapshot.function))
                };
                let mut all = of(&mut self.bases_of.keys());
                all.retain(|id| !kept(id));
                all
            }
        });
        if droppable.is_empty() {
            return;
        }
        let referenced = self.referenced();
        for id in droppable.into_iter().filter(|id| !referenced.contains(id)) {
            self.drop_snapshot(now, id, out);
        }
    }

    pub(super) fn drop_snapshot(&mut self, now: Now, id: SnapshotId, out: &mut Vec<Action>) {
        let Some(node) = self.snapshots.get(&id).map(|snapshot| snapshot.node.clone()) else { return };
        let limit = self.settings.purge_max;
        if self.drop_copies(now, id, out) {
            // The last one goes when no copy is left that could come back as a base of its own.
            return;
        }
        let command = Command::DropSnapshot { snapshot: id };
        if !self.issue(now, &node, command, Kind::DropSnapshot(id), limit, None, 0, out) {
            return;
        }
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        snapshot.life = SnapshotLife::Dropping;
        let (pages, bytes) = (snapshot.report.pages, snapshot.report.bytes);
        let about = About { node: Some(node), sandbox: None, function: Some(snapshot.function.clone()) };
        // No lookup may name it from here on: whoever acquires it now is refused.
        out.push(Action::HideSnapshot(id));
        let dropped = BaseChange { snapshot: id, made: false, pages, bytes, phases: Vec::new() };
        self.tell(about, What::Base(dropped), out);
    }

    pub(super) fn drop_done(&mut self, now: Now, id: SnapshotId, result: Result<Success, Failure>) {
        match result {
            Err(why) if why.kind != FailureKind::NotFound => {
                self.arm(now.after(self.settings.purge_max), Timer::Snapshot(id));
            }
            _ => {
                // The next report without it confirms; the registry forgets it with the record.
                self.arm(now, Timer::Snapshot(id));
                if let Some(snapshot) = self.snapshots.get_mut(&id) {
                    snapshot.life = SnapshotLife::Hidden { until: Some(now) };
                }
            }
        }
    }

    /// A hidden snapshot's time is over, or a drop is to be tried again.
    pub(super) fn snapshot_due(&mut self, now: Now, id: SnapshotId, out: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshots.get(&id) else { return };
        match snapshot.life {
            SnapshotLife::Hidden { until: Some(until) } if until <= now => self.forget_snapshot(id, out),
            SnapshotLife::Dropping => {
                let dropping = [Kind::DropSnapshot(id), Kind::DropCopy(id)];
                let told = self.under_way.of_snapshots().any(|pending| dropping.contains(&pending.kind));
                if !told {
                    self.drop_snapshot(now, id, out);
                }
            }
            _ => {}
        }
    }
}
