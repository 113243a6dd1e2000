//! Nodes in the order in which they are filled: the one that will use the least memory first.

use std::collections::{BTreeMap, BTreeSet};

use medes_proto::ids::NodeId;

/// What each node will use once everything under way is done.
#[derive(Debug, Default)]
pub(super) struct Fullness {
    bytes: BTreeMap<NodeId, u64>,
    order: BTreeSet<(u64, NodeId)>,
}

impl Fullness {
    /// It will use so much. `None`: it is not there any more.
    pub(super) fn set(&mut self, node: &NodeId, bytes: Option<u64>) {
        let known = self.bytes.get(node).copied();
        if known == bytes {
            return;
        }
        if let Some(known) = known {
            self.order.remove(&(known, node.clone()));
        }
        match bytes {
            Some(bytes) => {
                self.order.insert((bytes, node.clone()));
                self.bytes.insert(node.clone(), bytes);
            }
            None => drop(self.bytes.remove(node)),
        }
    }

    /// 0 of a node that is not there.
    pub(super) fn of(&self, node: &NodeId) -> u64 {
        self.bytes.get(node).copied().unwrap_or(0)
    }

    /// All nodes, the emptiest first; those that use the same by name.
    pub(super) fn emptiest_first(&self) -> impl Iterator<Item = &NodeId> {
        self.order.iter().map(|(_, node)| node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emptiest_comes_first() {
        let [a, b, c] = ["a", "b", "c"].map(|name| name.parse::<NodeId>().unwrap());
        let mut fullness = Fullness::default();
        for (node, bytes) in [(&c, 5), (&b, 5), (&a, 9), (&a, 7)] {
            fullness.set(node, Some(bytes));
        }
        let names = |fullness: &Fullness| fullness.emptiest_first().cloned().collect::<Vec<_>>();
        assert_eq!(names(&fullness), [b.clone(), c.clone(), a.clone()]);
        fullness.set(&b, Some(8));
        assert_eq!(names(&fullness), [c.clone(), a.clone(), b.clone()]);
        fullness.set(&c, None);
        assert_eq!(names(&fullness), [a.clone(), b.clone()]);
        assert_eq!([a, b, c].map(|node| fullness.of(&node)), [7, 8, 0]);
    }
}
