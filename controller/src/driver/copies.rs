//! Copies of base snapshots on other nodes: made once an image refers to a base, so that no node's end loses what it is made of.
//!
//! A snapshot has one holder that readers are sent to and any number of copies, on nodes that can be reached. When the holder goes,
//! a copy takes its place; another copy is made where there is room. Nobody is ended for a copy, and on a node that is full
//! it is the first to go.

use std::collections::{BTreeMap, BTreeSet};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, SnapshotReport, Success},
    ids::{FunctionName, NodeId, SnapshotId},
    registry::SnapshotPlace,
    standing::Standing,
};

use super::{
    Action, Driver,
    state::{Kind, Pending, Snapshot, SnapshotLife, Timer},
};
use crate::now::Now;

/// Copies under way in the whole cluster.
const UNDER_WAY_MAX: usize = 4;
/// Snapshots remembered as held by too few.
const SHORT_MAX: usize = 1 << 16;
/// Snapshots looked at after one event.
const LOOKED_AT_MAX: usize = 16;
/// A copy may fill a node up to this part of its memory...
const FILLS_PERCENT: u64 = 75;
/// ... and goes when more than this is used.
const SHED_PERCENT: u64 = 90;

impl Snapshot {
    pub(super) const fn new(
        function: FunctionName,
        node: NodeId,
        life: SnapshotLife,
        report: SnapshotReport,
    ) -> Self {
        Self { function, node, copies: BTreeSet::new(), copy_after: None, life, unfit: false, report }
    }

    /// Whether this node holds it.
    pub(super) fn is_on(&self, node: &NodeId) -> bool {
        self.node == *node || self.copies.contains(node)
    }

    pub(super) fn holders(&self) -> impl Iterator<Item = &NodeId> {
        std::iter::once(&self.node).chain(&self.copies)
    }
}

impl Driver {
    /// An image refers to these: they are worth a copy.
    pub(super) fn want_copies(&mut self, ids: impl Iterator<Item = SnapshotId>) {
        if self.settings.base_copies > 1 {
            let room = SHORT_MAX.saturating_sub(self.short.len());
            self.short.extend(ids.take(room));
            self.check_copies = true;
        }
    }

    /// Begins to make copies that are missing, where there is room for them.
    pub(super) fn make_copies(&mut self, now: Now, out: &mut Vec<Action>) {
        let is_due = |snapshot: &Snapshot| {
            snapshot.life == SnapshotLife::Live && snapshot.copy_after.is_none_or(|after| now >= after)
        };
        // One that is not known may be on a node that has not come yet.
        let due = self.short.iter().filter(|id| self.snapshots.get(id).is_some_and(is_due));
        for id in due.copied().take(LOOKED_AT_MAX).collect::<Vec<_>>() {
            let wanted = usize::try_from(self.settings.base_copies).unwrap_or(usize::MAX);
            let few = |snapshot: &&Snapshot| self.lasting_holders(snapshot) < wanted;
            let Some(snapshot) = self.snapshots.get(&id).filter(few) else {
                self.short.remove(&id);
                continue;
            };
            let under_way = self.under_way.of_snapshots().filter(|one| matches!(one.kind, Kind::Copy(_)));
            let kinds: Vec<Kind> = under_way.map(|pending| pending.kind).collect();
            if kinds.contains(&Kind::Copy(id)) {
                continue;
            }
            if kinds.len() >= UNDER_WAY_MAX {
                return;
            }
            let Some(node) = self.node_for_copy(now, id, snapshot) else {
                // Looking for one takes time: not at each report.
                self.pause_copies(now, id);
                continue;
            };
            let Some(place) = self.place_of(id, &snapshot.node) else { continue };
            let (bytes, limit) = (snapshot.report.bytes, self.settings.dedup_max);
            self.issue(now, &node, Command::Replicate { place }, Kind::Copy(id), limit, None, bytes, out);
        }
    }

    /// There is a node that was not there before: perhaps it has room.
    pub(super) fn try_copies_again(&mut self) {
        for id in &self.short {
            if let Some(snapshot) = self.snapshots.get_mut(id) {
                snapshot.copy_after = None;
            }
        }
        self.check_copies = true;
    }

    /// Those that nobody is about to take out of service.
    fn lasting_holders(&self, snapshot: &Snapshot) -> usize {
        snapshot.holders().filter(|node| self.standing(node) != Standing::Draining).count()
    }

    /// What a node that is to be taken out of service holds is wanted elsewhere.
    pub(super) fn copy_away(&mut self, node: &NodeId) {
        let held: Vec<_> = self.on_node(node).map(|(id, _)| id).collect();
        self.want_copies(held.into_iter());
    }

    /// Whether a node has room for something that only helps.
    pub(super) fn has_much_room(&self, node: &NodeId, bytes: u64) -> bool {
        let after = self.projected(node).saturating_add(bytes);
        self.cap(node).is_none_or(|cap| after <= cap / 100 * FILLS_PERCENT)
    }

    /// Where a copy does most good: where sandboxes of its function refer to it, else where most is free.
    fn node_for_copy(&self, now: Now, id: SnapshotId, snapshot: &Snapshot) -> Option<NodeId> {
        let may = |name: &NodeId| {
            let Some(node) = self.nodes.get(name) else { return false };
            let avoided = node.avoid_until.is_some_and(|until| now < until);
            let open = node.connection.is_some() && self.standing(name) == Standing::Open;
            open && !avoided && !snapshot.is_on(name) && self.has_much_room(name, snapshot.report.bytes)
        };
        let mut referring: BTreeMap<&NodeId, usize> = BTreeMap::new();
        for sandbox in self.of_function(&snapshot.function).filter(|one| one.report.bases.contains(&id)) {
            *referring.entry(&sandbox.node).or_default() += 1;
        }
        let best = referring.into_iter().filter(|(name, _)| may(name));
        let best = best.max_by_key(|(name, count)| (*count, std::cmp::Reverse(self.projected(name))));
        let best = best.map(|(name, _)| name);
        best.or_else(|| self.fullness.emptiest_first().find(|name| may(name))).cloned()
    }

    pub(super) fn copy_done(
        &mut self,
        now: Now,
        pending: &Pending,
        id: SnapshotId,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        match result {
            Ok(success) => {
                let bytes = success.snapshot.map_or(0, |report| report.bytes);
                self.drift(&pending.node, i64::try_from(bytes).unwrap_or(i64::MAX));
                self.has_copy(id, &pending.node, out);
            }
            Err(_told_by_its_agent) => self.pause_copies(now, id),
        }
        self.check_copies = true;
    }

    /// A node holds it, as it seems.
    pub(super) fn has_copy(&mut self, id: SnapshotId, node: &NodeId, out: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        if snapshot.copies.insert(node.clone()) {
            self.held.entry(node.clone()).or_default().insert(id);
            match snapshot.life {
                SnapshotLife::Live => self.place_again(id, out),
                SnapshotLife::Hidden { .. } => drop(self.promote(id, out)),
                SnapshotLife::Making | SnapshotLife::Dropping => {}
            }
        }
    }

    /// Tells readers who holds it now.
    pub(super) fn place_again(&mut self, id: SnapshotId, out: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshots.get(&id) else { return };
        let holders: Vec<_> = snapshot.holders().filter_map(|node| self.place_of(id, node)).collect();
        if !holders.is_empty() {
            out.push(Action::PlaceSnapshot { snapshot: id, holders });
        }
    }

    fn place_of(&self, snapshot: SnapshotId, node: &NodeId) -> Option<SnapshotPlace> {
        let address = self.nodes.get(node)?.address.clone();
        Some(SnapshotPlace { snapshot, node: node.clone(), address })
    }

    /// Its holder is not to be counted on: a copy takes its place. False: there is none.
    pub(super) fn promote(&mut self, id: SnapshotId, out: &mut Vec<Action>) -> bool {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return false };
        if matches!(snapshot.life, SnapshotLife::Making | SnapshotLife::Dropping) {
            return false;
        }
        let Some(node) = snapshot.copies.pop_first() else { return false };
        let before = std::mem::replace(&mut snapshot.node, node);
        snapshot.life = SnapshotLife::Live;
        self.holds_no_more(id, &before);
        self.place_again(id, out);
        self.want_copies(std::iter::once(id));
        true
    }

    /// Its holder says that it is not there any more.
    pub(super) fn lose_holder(&mut self, id: SnapshotId, out: &mut Vec<Action>) {
        if !self.promote(id, out) {
            self.forget_snapshot(id, out);
        }
    }

    /// All that a node holds, as far as anybody may rely on it, is `held`; one that is away: nothing.
    pub(super) fn holds_only(
        &mut self,
        now: Now,
        node: &NodeId,
        held: &BTreeSet<SnapshotId>,
        out: &mut Vec<Action>,
    ) {
        let copies = self.on_node(node).filter(|(_, snapshot)| snapshot.copies.contains(node));
        let lacks: Vec<_> = copies.map(|(id, _)| id).filter(|id| !held.contains(id)).collect();
        for id in lacks {
            self.has_no_copy(now, id, node, out);
        }
    }

    fn has_no_copy(&mut self, now: Now, id: SnapshotId, node: &NodeId, out: &mut Vec<Action>) {
        let Some(snapshot) = self.snapshots.get_mut(&id) else { return };
        let life = snapshot.life;
        if snapshot.copies.remove(node) {
            self.holds_no_more(id, node);
        }
        match life {
            SnapshotLife::Live => {
                self.place_again(id, out);
                self.want_copies(std::iter::once(id));
            }
            // The last of its copies is gone: its turn.
            SnapshotLife::Dropping => self.arm(now, Timer::Snapshot(id)),
            SnapshotLife::Making | SnapshotLife::Hidden { .. } => {}
        }
    }

    /// The snapshots that a node holds, as far as anybody knows.
    pub(super) fn on_node(&self, node: &NodeId) -> impl Iterator<Item = (SnapshotId, &Snapshot)> {
        let ids = self.held.get(node).into_iter().flatten();
        ids.filter_map(|&id| Some((id, self.snapshots.get(&id)?)))
    }

    pub(super) fn holds_no_more(&mut self, id: SnapshotId, node: &NodeId) {
        if let Some(held) = self.held.get_mut(node) {
            held.remove(&id);
            if held.is_empty() {
                self.held.remove(node);
            }
        }
    }

    /// Nobody needs it: its copies go first. False: there is none.
    pub(super) fn drop_copies(&mut self, now: Now, id: SnapshotId, out: &mut Vec<Action>) -> bool {
        let Some(snapshot) = self.snapshots.get_mut(&id).filter(|snapshot| !snapshot.copies.is_empty())
        else {
            return false;
        };
        if snapshot.life != SnapshotLife::Dropping {
            snapshot.life = SnapshotLife::Dropping;
            out.push(Action::HideSnapshot(id));
        }
        for node in snapshot.copies.clone() {
            self.drop_copy(now, id, &node, out);
        }
        true
    }

    fn drop_copy(&mut self, now: Now, id: SnapshotId, node: &NodeId, out: &mut Vec<Action>) {
        let told = |pending: &Pending| pending.kind == Kind::DropCopy(id) && pending.node == *node;
        if !self.under_way.of_snapshots().any(told) {
            let (command, limit) = (Command::DropSnapshot { snapshot: id }, self.settings.purge_max);
            self.issue(now, node, command, Kind::DropCopy(id), limit, None, 0, out);
        }
    }

    pub(super) fn copy_dropped(
        &mut self,
        now: Now,
        node: &NodeId,
        id: SnapshotId,
        result: &Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        match result {
            Err(why) if why.kind != FailureKind::NotFound => {
                self.arm(now.after(self.settings.purge_max), Timer::Snapshot(id));
            }
            _ => {
                let bytes = self.snapshots.get(&id).map_or(0, |snapshot| snapshot.report.bytes);
                self.drift(node, i64::try_from(bytes).unwrap_or(i64::MAX).saturating_neg());
                self.has_no_copy(now, id, node, out);
            }
        }
    }

    /// On a node that is almost full one copy goes, before anybody is ended for room; where there is none, an init snapshot.
    pub(super) fn shed(&mut self, now: Now, node: &NodeId, out: &mut Vec<Action>) {
        let Some(cap) = self.cap(node) else { return };
        if self.projected(node) <= cap / 100 * SHED_PERCENT {
            return;
        }
        let live =
            |snapshot: &Snapshot| snapshot.life == SnapshotLife::Live && snapshot.copies.contains(node);
        let copies = self.on_node(node).filter(|(_, snapshot)| live(snapshot));
        let largest = copies.max_by_key(|(_, snapshot)| snapshot.report.bytes).map(|(id, _)| id);
        if let Some(id) = largest {
            self.pause_copies(now, id);
            return self.drop_copy(now, id, node, out);
        }
        self.shed_init(now, node, out);
    }

    fn pause_copies(&mut self, now: Now, id: SnapshotId) {
        let after = now.after(self.settings.purge_max);
        if let Some(snapshot) = self.snapshots.get_mut(&id) {
            snapshot.copy_after = Some(after);
        }
    }
}
