//! Commands under way, and what those of each node and about each sandbox are.
//!
//! Whether a node may start one more, or how full it will be, is asked for many nodes at each start: nothing here looks at all commands.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use medes_proto::ids::{CommandId, NodeId, SandboxId};

use super::state::{Kind, Pending};

/// Every command that has been issued and has not ended.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    all: BTreeMap<CommandId, Pending>,
    /// None empty.
    of_nodes: BTreeMap<NodeId, OfNode>,
    /// By sandbox, none empty.
    about: BTreeMap<SandboxId, BTreeSet<CommandId>>,
    /// Those about snapshots: few at a time.
    of_snapshots: BTreeSet<CommandId>,
    /// Halves of moves: a few for each node.
    moves: BTreeSet<CommandId>,
}

#[derive(Debug, Default)]
struct OfNode {
    ids: BTreeSet<CommandId>,
    /// Sizes come from agents, so their sum may be anything.
    reserved_bytes: u128,
    starts: usize,
    takings: usize,
}

impl OfNode {
    fn tallies(&mut self, pending: &Pending) -> [Option<&mut usize>; 2] {
        let starts = matches!(pending.kind, Kind::Start | Kind::Clone(_) | Kind::Restore);
        let takes = pending.kind.takes_memory();
        [starts.then_some(&mut self.starts), takes.then_some(&mut self.takings)]
    }
}

const fn is_about_a_snapshot(kind: Kind) -> bool {
    matches!(kind, Kind::MakeBase(_) | Kind::DropSnapshot(_) | Kind::Copy(_) | Kind::DropCopy(_))
}

impl UnderWay {
    pub(super) fn insert(&mut self, id: CommandId, pending: Pending) {
        let of_node = self.of_nodes.entry(pending.node.clone()).or_default();
        of_node.ids.insert(id);
        of_node.reserved_bytes += u128::from(pending.reserved_bytes);
        of_node.tallies(&pending).into_iter().flatten().for_each(|tally| *tally += 1);
        if let Some(sandbox) = pending.sandbox {
            self.about.entry(sandbox).or_default().insert(id);
        }
        if is_about_a_snapshot(pending.kind) {
            self.of_snapshots.insert(id);
        }
        if matches!(pending.kind, Kind::Offer | Kind::Take) {
            self.moves.insert(id);
        }
        self.all.insert(id, pending);
    }

    pub(super) fn remove(&mut self, id: CommandId) -> Option<Pending> {
        let pending = self.all.remove(&id)?;
        if let Some(of_node) = self.of_nodes.get_mut(&pending.node) {
            of_node.ids.remove(&id);
            of_node.reserved_bytes -= u128::from(pending.reserved_bytes);
            of_node.tallies(&pending).into_iter().flatten().for_each(|tally| *tally -= 1);
            if of_node.ids.is_empty() {
                self.of_nodes.remove(&pending.node);
            }
        }
        if let Some(sandbox) = pending.sandbox
            && let Entry::Occupied(mut about) = self.about.entry(sandbox)
        {
            about.get_mut().remove(&id);
            if about.get().is_empty() {
                about.remove();
            }
        }
        self.of_snapshots.remove(&id);
        self.moves.remove(&id);
        Some(pending)
    }

    pub(super) fn get(&self, id: CommandId) -> Option<&Pending> {
        self.all.get(&id)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.of_nodes.is_empty() && self.about.is_empty()
    }

    fn known<'a>(
        &'a self,
        ids: impl Iterator<Item = &'a CommandId>,
    ) -> impl Iterator<Item = (CommandId, &'a Pending)> {
        ids.filter_map(|&id| Some((id, self.all.get(&id)?)))
    }

    /// Those that a node was given.
    pub(super) fn of_node(&self, node: &NodeId) -> impl Iterator<Item = (CommandId, &Pending)> {
        self.known(self.of_nodes.get(node).into_iter().flat_map(|of_node| &of_node.ids))
    }

    /// Those about a sandbox.
    pub(super) fn about(&self, sandbox: SandboxId) -> impl Iterator<Item = (CommandId, &Pending)> {
        self.known(self.about.get(&sandbox).into_iter().flatten())
    }

    /// Those that make, copy or drop a snapshot.
    pub(super) fn of_snapshots(&self) -> impl Iterator<Item = &Pending> {
        self.known(self.of_snapshots.iter()).map(|(_, pending)| pending)
    }

    /// Both halves of moves.
    pub(super) fn moves(&self) -> impl Iterator<Item = &Pending> {
        self.known(self.moves.iter()).map(|(_, pending)| pending)
    }

    /// Memory that those of a node will take and no report shows yet.
    pub(super) fn reserved_bytes(&self, node: &NodeId) -> u64 {
        let reserved = self.of_nodes.get(node).map_or(0, |of_node| of_node.reserved_bytes);
        u64::try_from(reserved).unwrap_or(u64::MAX)
    }

    /// Starts and restores on a node.
    pub(super) fn starts(&self, node: &NodeId) -> usize {
        self.of_nodes.get(node).map_or(0, |of_node| of_node.starts)
    }

    /// Dedups and parks on a node.
    pub(super) fn takings(&self, node: &NodeId) -> usize {
        self.of_nodes.get(node).map_or(0, |of_node| of_node.takings)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::now::Now;

    fn kind(number: u8) -> Kind {
        let snapshot = medes_proto::ids::SnapshotId::new(1).unwrap();
        match number % 7 {
            0 => Kind::Start,
            1 => Kind::Restore,
            2 => Kind::Dedup,
            3 => Kind::Park,
            4 => Kind::Take,
            5 => Kind::Copy(snapshot),
            _ => Kind::Purge,
        }
    }

    fn pending(node: u8, sandbox: u8, number: u8, reserved_bytes: u64) -> Pending {
        Pending {
            kind: kind(number),
            sandbox: SandboxId::new(sandbox.into()),
            node: format!("n{node}").parse().unwrap(),
            issued: Now::START,
            deadline: Now::START,
            ticket: None,
            reserved_bytes,
        }
    }

    proptest! {
        /// Whatever was put in and taken out: what is told is what a look at all of them says.
        #[test]
        fn tallies_are_those_of_all(steps in proptest::collection::vec(
            (0u8..3, 0u8..4, any::<u8>(), any::<u64>(), any::<bool>()), 0..60,
        )) {
            let mut under_way = UnderWay::default();
            for (at, (node, sandbox, number, bytes, takes)) in steps.into_iter().enumerate() {
                under_way.insert(CommandId(at as u64), pending(node, sandbox, number, bytes));
                if takes {
                    under_way.remove(CommandId(u64::from(number) % (at as u64 + 1)));
                }
                for node in 0..3 {
                    let node: NodeId = format!("n{node}").parse().unwrap();
                    let all = || under_way.all.values().filter(|one| one.node == node);
                    let of = |kinds: &dyn Fn(Kind) -> bool| all().filter(|one| kinds(one.kind)).count();
                    prop_assert_eq!(under_way.of_node(&node).count(), all().count());
                    let starts = of(&|kind| matches!(kind, Kind::Start | Kind::Restore));
                    prop_assert_eq!(under_way.starts(&node), starts);
                    prop_assert_eq!(under_way.takings(&node), of(&Kind::takes_memory));
                    let bytes = all().map(|one| one.reserved_bytes).fold(0, u64::saturating_add);
                    prop_assert_eq!(under_way.reserved_bytes(&node), bytes);
                }
                for sandbox in 1..4 {
                    let id = SandboxId::new(sandbox).unwrap();
                    let about = under_way.all.values().filter(|one| one.sandbox == Some(id)).count();
                    prop_assert_eq!(under_way.about(id).count(), about);
                }
                let count = |kind: &dyn Fn(Kind) -> bool| under_way.all.values().filter(|one| kind(one.kind)).count();
                prop_assert_eq!(under_way.of_snapshots().count(), count(&is_about_a_snapshot));
                prop_assert_eq!(under_way.moves().count(), count(&|kind| kind == Kind::Take));
            }
            for id in under_way.all.keys().copied().collect::<Vec<_>>() {
                under_way.remove(id);
            }
            prop_assert!(under_way.is_empty());
            prop_assert!(under_way.of_snapshots.is_empty() && under_way.moves.is_empty());
        }
    }
}
