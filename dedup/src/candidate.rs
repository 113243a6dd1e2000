//! Which base pages are worth reading for a page, out of everything the registry named.
//!
//! Two concerns meet here. A page wants the base page that shares most chunks with it. An image wants few
//! snapshots and few nodes behind it, because each is one more that must answer before the sandbox can come
//! back. So an image has a bounded [`FanOut`], filled by [`FanOut::plan`] with the snapshots that serve the
//! most pages, and each page then chooses among what is in it.
//!
//! Answers depend on nothing but the arguments: no clock, no random tie-break, no map order.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::image::BASES_MAX;
use crate::page::{BasePage, SnapshotId};

/// Number of a node in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// One base page that may resemble a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// The base page.
    pub base: BasePage,
    /// The node it would be read from.
    pub node: NodeId,
    /// How many chunks of the page's fingerprint it shares. 0 is allowed: "same place", for instance.
    pub votes: u16,
}

/// Bounds on what one image may depend on, and on the work for one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CandidateRules {
    /// Most base snapshots behind one image; at most [`BASES_MAX`].
    pub snapshots_max: usize,
    /// Most nodes other than its own that an image reads from.
    pub remote_nodes_max: usize,
    /// Most base pages tried for one page.
    pub tries_max: usize,
}

/// Own function, a few relatives and a common ancestor fit in eight; three remote nodes keep a restore from
/// waiting for the slowest of many. Two tries: the second rarely wins, but then by a lot.
impl Default for CandidateRules {
    fn default() -> Self {
        Self { snapshots_max: 8, remote_nodes_max: 3, tries_max: 2 }
    }
}

/// What one image depends on so far. Never more than its rules allow.
#[derive(Debug, Clone)]
pub struct FanOut {
    rules: CandidateRules,
    local: NodeId,
    /// The node each snapshot is read from. The first one stays: one snapshot is one connection.
    snapshots: BTreeMap<SnapshotId, NodeId>,
    remote: BTreeSet<NodeId>,
}

impl FanOut {
    /// An image on this node that depends on nothing yet.
    pub fn new(rules: CandidateRules, local: NodeId) -> Self {
        let rules = CandidateRules { snapshots_max: rules.snapshots_max.min(BASES_MAX), ..rules };
        Self { rules, local, snapshots: BTreeMap::new(), remote: BTreeSet::new() }
    }

    /// Snapshots the image may refer to and the node each is read from, in order of snapshot number.
    pub fn snapshots(&self) -> impl ExactSizeIterator<Item = (SnapshotId, NodeId)> {
        self.snapshots.iter().map(|(snapshot, node)| (*snapshot, *node))
    }

    /// Takes a snapshot in, if the bounds allow. True when it is in afterwards.
    ///
    /// For what is known beforehand: the snapshot a sandbox descends from, its function's base.
    pub fn admit(&mut self, snapshot: SnapshotId, node: NodeId) -> bool {
        if self.snapshots.contains_key(&snapshot) {
            return true;
        }
        if !self.has_room_for(node) {
            return false;
        }
        self.snapshots.insert(snapshot, node);
        if node != self.local {
            self.remote.insert(node);
        }
        true
    }

    /// Takes in the snapshots that serve the most pages, given the hints of every page of the image.
    ///
    /// Without this, the first few pages would fill the bounds with whatever they happened to resemble.
    pub fn plan<'h>(&mut self, pages: impl IntoIterator<Item = &'h [Hint]>) {
        let mut votes: BTreeMap<(SnapshotId, NodeId), u64> = BTreeMap::new();
        for hints in pages {
            // Only the best page of a snapshot counts: a page gets one base.
            let mut best: BTreeMap<(SnapshotId, NodeId), u16> = BTreeMap::new();
            for hint in hints {
                let slot = best.entry((hint.base.snapshot, hint.node)).or_default();
                *slot = hint.votes.max(*slot);
            }
            best.into_iter().for_each(|(key, count)| *votes.entry(key).or_default() += u64::from(count));
        }
        let mut ranked: Vec<_> = votes.into_iter().filter(|(_, count)| *count > 0).collect();
        ranked.sort_by_key(|((snapshot, node), count)| {
            (Reverse(*count), *node != self.local, *snapshot, *node)
        });
        for ((snapshot, node), _) in ranked {
            self.admit(snapshot, node);
        }
    }

    /// The base pages to try for one page, best first, into `chosen` (cleared first; no more than `tries_max`).
    ///
    /// Most votes win; ties go to this node, then to a snapshot that already serves the image, then to the
    /// lowest number. A new snapshot is taken in only while there is room.
    pub fn choose(&mut self, hints: &[Hint], chosen: &mut Vec<BasePage>) {
        chosen.clear();
        let mut last = None;
        while chosen.len() < self.rules.tries_max {
            // Hints are few and tries fewer: looking again beats sorting a copy.
            let next = hints
                .iter()
                .map(|hint| (self.rank(hint), hint))
                .filter(|(rank, hint)| last < Some(*rank) && !chosen.contains(&hint.base))
                .min_by_key(|(rank, _)| *rank);
            let Some((rank, hint)) = next else { return };
            last = Some(rank);
            if self.admit(hint.base.snapshot, hint.node) {
                chosen.push(hint.base);
                // What serves the image has changed, and with it the ranks.
                last = None;
            }
        }
    }

    /// Smaller is better. No two different hints have equal ranks.
    fn rank(&self, hint: &Hint) -> (Reverse<u16>, bool, bool, BasePage, NodeId) {
        let serving = self.snapshots.get(&hint.base.snapshot);
        let node = serving.copied().unwrap_or(hint.node);
        (Reverse(hint.votes), node != self.local, serving.is_none(), hint.base, node)
    }

    fn has_room_for(&self, node: NodeId) -> bool {
        let node_fits = node == self.local
            || self.remote.contains(&node)
            || self.remote.len() < self.rules.remote_nodes_max;
        node_fits && self.snapshots.len() < self.rules.snapshots_max
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::page::PageIndex;

    const HERE: NodeId = NodeId(1);
    const THERE: NodeId = NodeId(2);

    fn page(snapshot: u64, page: u32) -> BasePage {
        BasePage { snapshot: SnapshotId::new(snapshot).unwrap(), page: PageIndex(page) }
    }

    fn hint(snapshot: u64, at: u32, node: NodeId, votes: u16) -> Hint {
        Hint { base: page(snapshot, at), node, votes }
    }

    fn chosen(fan_out: &mut FanOut, hints: &[Hint]) -> Vec<BasePage> {
        let mut chosen = Vec::new();
        fan_out.choose(hints, &mut chosen);
        chosen
    }

    fn rules(snapshots_max: usize, remote_nodes_max: usize, tries_max: usize) -> CandidateRules {
        CandidateRules { snapshots_max, remote_nodes_max, tries_max }
    }

    #[test]
    fn votes_come_first_then_locality_then_use() {
        let mut fan_out = FanOut::new(rules(8, 8, 4), HERE);
        assert!(fan_out.admit(SnapshotId::new(9).unwrap(), HERE));
        let hints = [
            hint(1, 0, THERE, 3),
            hint(2, 0, HERE, 3),
            hint(9, 0, HERE, 3),
            hint(3, 0, THERE, 5),
            hint(4, 0, HERE, 1),
        ];
        assert_eq!(chosen(&mut fan_out, &hints), [page(3, 0), page(9, 0), page(2, 0), page(1, 0)]);
    }

    #[test]
    fn a_full_image_takes_no_new_snapshot_but_still_uses_its_own() {
        let mut fan_out = FanOut::new(rules(1, 8, 4), HERE);
        assert_eq!(chosen(&mut fan_out, &[hint(1, 0, HERE, 1)]), [page(1, 0)]);
        assert_eq!(chosen(&mut fan_out, &[hint(2, 0, HERE, 9), hint(1, 7, HERE, 1)]), [page(1, 7)]);
    }

    #[test]
    fn an_image_that_may_not_read_elsewhere_does_not() {
        let mut fan_out = FanOut::new(rules(8, 0, 4), HERE);
        assert_eq!(chosen(&mut fan_out, &[hint(1, 0, THERE, 9)]), []);
        assert_eq!(chosen(&mut fan_out, &[hint(1, 0, THERE, 9), hint(2, 0, HERE, 1)]), [page(2, 0)]);
    }

    #[test]
    fn the_plan_keeps_what_serves_most_pages() {
        let pages = [
            vec![hint(1, 0, HERE, 5)],
            vec![hint(2, 0, HERE, 3), hint(2, 1, HERE, 3)],
            vec![hint(2, 1, HERE, 3)],
        ];
        let mut fan_out = FanOut::new(rules(1, 0, 1), HERE);
        fan_out.plan(pages.iter().map(Vec::as_slice));
        assert_eq!(fan_out.snapshots().collect::<Vec<_>>(), [(SnapshotId::new(2).unwrap(), HERE)]);
    }

    #[test]
    fn hints_repeated_are_tried_once() {
        let mut fan_out = FanOut::new(rules(8, 8, 4), HERE);
        let hints = [hint(1, 0, HERE, 2), hint(1, 0, HERE, 2), hint(1, 0, THERE, 1)];
        assert_eq!(chosen(&mut fan_out, &hints), [page(1, 0)]);
    }

    fn hints() -> impl Strategy<Value = Vec<Hint>> {
        let one = (1u64..8, 0u32..4, 1u64..5, 0u16..5);
        proptest::collection::vec(one, 0..12).prop_map(|raw| {
            raw.into_iter()
                .map(|(snapshot, at, node, votes)| hint(snapshot, at, NodeId(node), votes))
                .collect()
        })
    }

    proptest! {
        /// Whatever is asked, the bounds hold, and everything chosen was named by a hint.
        #[test]
        fn bounds_hold(
            pages in proptest::collection::vec(hints(), 0..8),
            snapshots_max in 0usize..5,
            remote in 0usize..4,
            tries in 0usize..4,
            planned in any::<bool>(),
        ) {
            let mut fan_out = FanOut::new(rules(snapshots_max, remote, tries), HERE);
            if planned {
                fan_out.plan(pages.iter().map(Vec::as_slice));
            }
            let mut used = BTreeSet::new();
            for hints in &pages {
                let chosen = chosen(&mut fan_out, hints);
                prop_assert!(chosen.len() <= tries);
                for base in chosen {
                    prop_assert!(hints.iter().any(|hint| hint.base == base));
                    used.insert(base.snapshot);
                }
            }
            prop_assert!(used.len() <= snapshots_max);
            let nodes: BTreeMap<_, _> = fan_out.snapshots().collect();
            prop_assert!(used.iter().all(|snapshot| nodes.contains_key(snapshot)));
            let elsewhere: BTreeSet<_> = nodes.values().filter(|node| **node != HERE).collect();
            prop_assert!(elsewhere.len() <= remote);
        }

        /// The order in which the registry happened to answer changes nothing.
        #[test]
        fn order_of_hints_is_irrelevant(hints in hints(), tries in 1usize..4) {
            let mut reversed = hints.clone();
            reversed.reverse();
            let mut a = FanOut::new(rules(3, 2, tries), HERE);
            let mut b = a.clone();
            prop_assert_eq!(chosen(&mut a, &hints), chosen(&mut b, &reversed));
            prop_assert_eq!(a.snapshots().collect::<Vec<_>>(), b.snapshots().collect::<Vec<_>>());
        }
    }
}
