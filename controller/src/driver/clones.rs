//! Init snapshots, and which new sandboxes are clones of them.
//!
//! A function's init snapshot is taken of a sandbox that has become ready, before its first request, so that no request's data is in
//! what others are made of. One is enough for a text of the function; it is taken of the first start that nobody cloned, and a
//! function that is applied gets a sandbox for it at once.

use std::time::Duration;

use medes_proto::{
    function::StartMode,
    ids::{FunctionName, NodeId, SandboxId, SnapshotId},
    registry::SnapshotPlace,
};

use super::{
    Action, Driver,
    state::{Snapshot, SnapshotLife, Timer},
};
use crate::now::Now;

/// Of the memory of a node init snapshots take at most so many hundredths: each is for one function alone, and most functions are rarely asked for.
const INIT_PERCENT: u64 = 12;

/// Nobody was ended for room for so long before an init snapshot is made on a node.
const INIT_CALM: Duration = Duration::from_secs(600);

impl Driver {
    /// Init snapshots of the function's present text, in whatever life.
    fn init_snapshots(&self, name: &FunctionName) -> impl Iterator<Item = (SnapshotId, &Snapshot)> {
        let revision = self.functions.get(name).map(|function| function.revision);
        let of_text = move |snapshot: &Snapshot| {
            snapshot.report.init.is_some_and(|init| Some(init.revision) == revision)
        };
        self.bases_of(name).filter(move |(_, snapshot)| of_text(snapshot))
    }

    /// A function has a new text: it gets a sandbox whose state its new init snapshot shows.
    pub(super) fn applied_init(&mut self, now: Now, name: &FunctionName) {
        let outdated: Vec<SnapshotId> = self
            .bases_of(name)
            .filter(|(_, snapshot)| self.is_outdated(snapshot))
            .map(|(id, _)| id)
            .collect();
        self.check_bases |= !outdated.is_empty();
        self.outdated.extend(outdated);
        if !self.wants_init(now, name) {
            return;
        }
        if let Some(function) =
            self.functions.get_mut(name).filter(|function| function.spec.start != StartMode::Cold)
        {
            function.prewarm_at = Some(now);
            self.arm(now, Timer::Functions);
        }
    }

    /// Nobody makes a sandbox of it any more.
    pub(super) fn is_outdated(&self, snapshot: &Snapshot) -> bool {
        let revision = self.functions.get(&snapshot.function).map(|function| function.revision);
        snapshot.report.init.is_some_and(|init| revision.is_some_and(|revision| revision > init.revision))
    }

    fn wants_init(&self, now: Now, name: &FunctionName) -> bool {
        let function = self.functions.get(name);
        let is_due = function.is_some_and(|function| function.init_after.is_none_or(|at| at <= now));
        // One whose node is away may never come back.
        let there = |(_, snapshot): (_, &Snapshot)| {
            matches!(snapshot.life, SnapshotLife::Making | SnapshotLife::Live)
        };
        self.settings.init_snapshots && is_due && !self.init_snapshots(name).any(there)
    }

    /// A sandbox has come up from nothing and has served nobody: its function's init snapshot is taken of it, if there is none. A
    /// request that waits for the sandbox waits for that as well.
    pub(super) fn make_init(&mut self, now: Now, id: SandboxId, out: &mut Vec<Action>) {
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let stays = sandbox.uses == 0 && !self.is_unwanted(sandbox) && !self.is_out_of_service(sandbox);
        let has_room = self.has_room_for_init(now, &sandbox.node, sandbox.report.private_bytes);
        if stays && has_room && !self.stopping && self.wants_init(now, &sandbox.function) {
            self.make_base(now, id, true, None, out);
        }
    }

    /// Whether a node has room for one more init snapshot: as for anything that only helps, and in the part that is theirs. The first one may
    /// be larger than that. Where somebody was ended for room lately it would not stay, and the sandboxes that go for it would.
    fn has_room_for_init(&self, now: Now, node: &NodeId, bytes: u64) -> bool {
        if self.nodes.get(node).is_some_and(|node| node.price.was_paid_within(now, INIT_CALM)) {
            return false;
        }
        let here = self.on_node(node).filter(|(_, one)| one.report.init.is_some());
        let held: u64 = here.map(|(_, one)| one.report.bytes).sum();
        let fits = |cap: u64| held.saturating_add(bytes) <= cap / 100 * INIT_PERCENT;
        self.has_much_room(node, bytes) && (held == 0 || self.cap(node).is_none_or(fits))
    }

    /// It did not come about: not again for a while.
    pub(super) fn no_init(&mut self, now: Now, name: &FunctionName) {
        let after = now.after(self.settings.keeping.dump_pause);
        if let Some(function) = self.functions.get_mut(name) {
            function.init_after = Some(after);
        }
    }

    /// The snapshot that a new sandbox of the function can be a clone of.
    pub(super) fn clone_source(&self, name: &FunctionName) -> Option<(SnapshotId, &Snapshot)> {
        self.functions.get(name).filter(|function| function.spec.start != StartMode::Cold)?;
        let usable = |snapshot: &Snapshot| {
            snapshot.life == SnapshotLife::Live
                && !snapshot.unfit
                && snapshot.report.init.is_some_and(|init| init.clonable)
        };
        self.init_snapshots(name).filter(|(_, snapshot)| usable(snapshot)).last()
    }

    /// Where a node would have it from.
    pub(super) fn place_for(
        &self,
        (id, snapshot): (SnapshotId, &Snapshot),
        node: &NodeId,
    ) -> Option<SnapshotPlace> {
        let holder = if snapshot.is_on(node) { node } else { &snapshot.node };
        let address = self.nodes.get(holder)?.address.clone();
        Some(SnapshotPlace { snapshot: id, node: holder.clone(), address })
    }

    /// On a node that is almost full the init snapshot goes that nobody refers to and whose function was asked for longest ago.
    pub(super) fn shed_init(&mut self, now: Now, node: &NodeId, out: &mut Vec<Action>) {
        let after = now.after(self.settings.purge_max);
        match self.nodes.get_mut(node) {
            // Who refers to what is known only by looking at all.
            Some(node) if node.shed_after.is_none_or(|at| at <= now) => node.shed_after = Some(after),
            _ => return,
        }
        let served_here = |snapshot: &Snapshot| snapshot.life == SnapshotLife::Live && snapshot.node == *node;
        let here = self.on_node(node).filter(|(_, one)| one.report.init.is_some() && served_here(one));
        let here: Vec<(SnapshotId, FunctionName)> =
            here.map(|(id, one)| (id, one.function.clone())).collect();
        if here.is_empty() {
            return;
        }
        let referenced = self.referenced();
        let asked = |name: &FunctionName| self.functions.get(name).and_then(|function| function.last_asked);
        let unused = here.into_iter().filter(|(id, _)| !referenced.contains(id));
        if let Some((id, name)) = unused.min_by_key(|(_, name)| asked(name)) {
            self.no_init(now, &name);
            self.drop_snapshot(now, id, out);
        }
    }

    /// A clone failed, and not for want of room: no more are made of this snapshot.
    pub(super) fn clone_failed(&mut self, id: SnapshotId) {
        if let Some(snapshot) = self.snapshots.get_mut(&id) {
            snapshot.unfit = true;
        }
    }
}
