//! Who of the node's sandboxes works without being asked: the watch, by the node's names.

use std::collections::BTreeMap;
use std::time::Duration;

use medes_proto::ids::SandboxId;

use crate::{
    metrics,
    sandbox::cgroup::SandboxCgroup,
    watch::{Counts, Group, Key, Watch, now_ns},
};

/// Looks between two sweeps of the watch's tables.
const SWEEP_EVERY: u32 = 240;

/// Sandboxes with processes, watched.
#[derive(Debug)]
pub(super) struct Watching {
    watch: Watch,
    keys: BTreeMap<SandboxId, Watched>,
    looks: u32,
}

/// A sandbox, and what was counted of it already.
#[derive(Debug)]
struct Watched {
    key: Key,
    counted: Counts,
}

impl Watching {
    pub(super) const fn new(watch: Watch) -> Self {
        Self { watch, keys: BTreeMap::new(), looks: 0 }
    }

    /// It has processes now, perhaps others than before.
    pub(super) fn begin(&mut self, sandbox: SandboxId, cgroup: &SandboxCgroup) {
        self.end(sandbox);
        let group = Group { cgroup_id: cgroup.id(), procs: cgroup.main_dir().join("cgroup.procs") };
        match self.watch.add(group, now_ns()) {
            Ok(key) => drop(self.keys.insert(sandbox, Watched { key, counted: Counts::default() })),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(%sandbox, error, "not watched: only its requests count as work");
            }
        }
    }

    /// It has none any more, or they are somebody else's for a while.
    pub(super) fn end(&mut self, sandbox: SandboxId) {
        if let Some(watched) = self.keys.remove(&sandbox) {
            self.watch.remove(watched.key);
        }
    }

    /// For how long each has done nothing; zero for one that works now.
    pub(super) fn look(&mut self) -> Vec<(SandboxId, Duration)> {
        self.looks = self.looks.wrapping_add(1);
        if self.looks.is_multiple_of(SWEEP_EVERY) {
            let swept = self.watch.sweep();
            if swept > 0 {
                tracing::debug!(swept, lost = ?self.watch.lost(), "tasks whose end was not seen");
            }
        }
        let now_ns = now_ns();
        metrics::lost(&self.watch.lost());
        let watch = &mut self.watch;
        let idle = |(&sandbox, watched): (&SandboxId, &mut Watched)| {
            let seen = watch.activity(watched.key, now_ns)?;
            if let Some(counts) = seen.counts {
                metrics::events(&watched.counted, &counts);
                watched.counted = counts;
            }
            Some((sandbox, seen.idle(now_ns).unwrap_or_default()))
        };
        self.keys.iter_mut().filter_map(idle).collect()
    }
}
