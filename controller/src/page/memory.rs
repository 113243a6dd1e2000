//! The memory of the cluster by state over time: a ring of samples, one every few seconds. Pure.

use std::collections::VecDeque;

use medes_proto::sandbox::SandboxState;
use serde::Serialize;

use crate::driver::{NodeRow, SandboxRow};

/// Samples that are kept. At one every five seconds: an hour.
pub(super) const SAMPLES_MAX: usize = 720;

/// Memory at one moment, in bytes. `warm` to `rest` add up to `used`, unless sandboxes were counted later than their nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Sample {
    /// Milliseconds since 1970; later than that of the sample before, also after a restart.
    pub(super) unix_ms: u64,
    /// Of sandboxes that have their memory, or are getting or giving it.
    pub(super) warm: u64,
    /// Of parked sandboxes: what stayed and what is stored.
    pub(super) parked: u64,
    /// Of sandboxes in dedup.
    pub(super) dedup: u64,
    /// Of base snapshots.
    pub(super) bases: u64,
    /// What else the nodes use: agents, kernel.
    pub(super) rest: u64,
    /// All that nodes use.
    pub(super) used: u64,
    /// All that they may use.
    pub(super) cap: u64,
}

impl Sample {
    /// What the driver's rows say.
    pub(super) fn of(nodes: &[NodeRow], sandboxes: &[SandboxRow]) -> Self {
        let mut sample = Self::default();
        for SandboxRow { report, .. } in sandboxes {
            let (private, stored) = (report.private_bytes, report.stored_bytes);
            match report.state {
                SandboxState::Parked => {
                    sample.parked = sample.parked.saturating_add(private).saturating_add(stored);
                }
                SandboxState::Dedup | SandboxState::Restoring => {
                    sample.dedup = sample.dedup.saturating_add(stored);
                }
                SandboxState::Unspecified
                | SandboxState::Starting
                | SandboxState::Warm
                | SandboxState::Running
                | SandboxState::Deduping => {
                    sample.warm = sample.warm.saturating_add(private).saturating_add(stored);
                }
            }
        }
        for row in nodes {
            sample.bases = sample.bases.saturating_add(row.memory.base_bytes);
            sample.used = sample.used.saturating_add(row.memory.used_bytes);
            sample.cap = sample.cap.saturating_add(row.memory.cap_bytes);
        }
        let named = [sample.warm, sample.parked, sample.dedup, sample.bases];
        sample.rest = named.into_iter().fold(sample.used, u64::saturating_sub);
        sample
    }
}

/// The samples, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Memory {
    samples: VecDeque<Sample>,
}

impl Memory {
    /// Takes a sample in, and forgets the oldest one if there are too many.
    pub(super) fn keep(&mut self, unix_ms: u64, sample: Sample) {
        if self.samples.len() >= SAMPLES_MAX {
            self.samples.pop_front();
        }
        // A clock that was set back must not hide what is new.
        let unix_ms = self.samples.back().map_or(unix_ms, |last| unix_ms.max(last.unix_ms + 1));
        self.samples.push_back(Sample { unix_ms, ..sample });
    }

    /// Those that are later than this.
    pub(super) fn after(&self, unix_ms: u64) -> Vec<Sample> {
        let known = self.samples.partition_point(|sample| sample.unix_ms <= unix_ms);
        self.samples.iter().skip(known).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use medes_proto::{fleet::NodeMemory, ids::SandboxId, sandbox::SandboxReport, standing::Standing};

    use super::*;

    fn node(used_bytes: u64, base_bytes: u64) -> NodeRow {
        NodeRow {
            name: "n1".parse().unwrap(),
            address: String::new(),
            version: String::new(),
            memory: NodeMemory { cap_bytes: 1_000, used_bytes, base_bytes, ..NodeMemory::default() },
            silent: Duration::ZERO,
            sandboxes: 0,
            snapshots: Vec::new(),
            lacks: Vec::new(),
            standing: Standing::Open,
            connected: true,
            incarnation: 1,
            requests: 0,
            resting: 0,
            keys: Vec::new(),
        }
    }

    fn sandbox(state: SandboxState, private_bytes: u64, stored_bytes: u64) -> SandboxRow {
        let id = SandboxId::of(1, 1).unwrap();
        let report = SandboxReport::new(id, "f".parse().unwrap(), 1, state);
        let report = SandboxReport { private_bytes, stored_bytes, ..report };
        SandboxRow { report, node: "n1".parse().unwrap() }
    }

    #[test]
    fn memory_is_told_by_state_and_adds_up() {
        use SandboxState::{Dedup, Deduping, Parked, Restoring, Running, Warm};
        let sandboxes = [
            sandbox(Warm, 100, 5),
            sandbox(Running, 50, 0),
            sandbox(Deduping, 20, 0),
            sandbox(Parked, 3, 10),
            sandbox(Dedup, 0, 7),
            sandbox(Restoring, 90, 8),
        ];
        let sample = Sample::of(&[node(300, 30), node(100, 10)], &sandboxes);
        assert_eq!((sample.warm, sample.parked, sample.dedup, sample.bases), (175, 13, 15, 40));
        assert_eq!((sample.rest, sample.used, sample.cap), (400 - 243, 400, 2_000));
        // Counted later than their node: nothing is less than nothing.
        assert_eq!(Sample::of(&[node(100, 0)], &sandboxes).rest, 0);
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_tells_what_is_new() {
        let mut memory = Memory::default();
        assert_eq!(memory.after(0), []);
        let most = SAMPLES_MAX as u64;
        for at in 1..=most + 10 {
            memory.keep(at * 5_000, Sample { used: at, ..Sample::default() });
        }
        let all = memory.after(0);
        assert_eq!((all.len() as u64, all[0].unix_ms, all[0].used), (most, 11 * 5_000, 11));
        let newest = memory.after((most + 8) * 5_000);
        assert_eq!(newest.iter().map(|sample| sample.used).collect::<Vec<_>>(), [most + 9, most + 10]);
        assert_eq!((memory.after((most + 10) * 5_000), memory.after(u64::MAX)), (vec![], vec![]));
        // The clock was set back.
        memory.keep(7, Sample::default());
        assert_eq!(memory.after((most + 10) * 5_000).len(), 1);
    }
}
