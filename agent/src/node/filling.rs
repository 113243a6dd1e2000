//! What warm sandboxes have not touched since they came back, brought back while the node has memory for it: then their next requests
//! wait for nothing.

use medes_proto::{fleet::NodeMemory, ids::SandboxId};

use super::{Body, Node};
use crate::{pager::Paged, pressure};

/// Whether at least so many of a hundred bytes are free.
const fn is_plenty(memory: &NodeMemory, percent: u32) -> bool {
    let free = memory.cap_bytes.saturating_sub(memory.used_bytes);
    free / 100 >= memory.cap_bytes / 10_000 * percent as u64
}

impl Node {
    /// What is done with the memory of warm sandboxes: what they do not touch is taken, or what they have not touched yet is brought back while so many
    /// of a hundred bytes of the node are free.
    #[must_use]
    pub fn with_warm(mut self, trims: bool, fill_percent: Option<u32>) -> Self {
        if trims {
            self.driver = self.driver.trimming();
        }
        self.fill_percent = fill_percent;
        self
    }

    /// Begins with one that rests, if there is plenty: the next look tells what is left then.
    pub(super) fn fill_one(&self) {
        let is_wanted = self.fill_percent.is_some_and(|percent| is_plenty(&self.measured.node(), percent));
        if !is_wanted || pressure::is_high() {
            return;
        }
        let waits = |(id, body): (&SandboxId, &'_ Body)| match body {
            Body::Warm(warm, _) if self.driver.rests(*id) => {
                warm.paged.clone().filter(|paged| !paged.is_filling())
            }
            _ => None,
        };
        self.bodies.iter().find_map(waits).iter().for_each(Paged::fill);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plenty_is_a_part_of_what_the_node_may_use() {
        let memory = |used_bytes| NodeMemory { cap_bytes: 1 << 30, used_bytes, ..NodeMemory::default() };
        assert!(is_plenty(&memory(0), 100) && is_plenty(&memory(1 << 29), 49));
        assert!(!is_plenty(&memory(1 << 29), 51) && !is_plenty(&memory(2 << 30), 1));
        assert!(is_plenty(&memory(2 << 30), 0));
    }
}
