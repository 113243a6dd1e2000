//! Who of the node's sandboxes works without being asked: the watch, by the node's names.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use medes_proto::{
    ids::SandboxId,
    sandbox::{Activity, Wakes},
};

use super::Node;
use crate::{
    driver::Event,
    metrics,
    sandbox::cgroup::SandboxCgroup,
    watch::{Counts, Fault, Group, Key, Sight, Wants, Watch, now_ns},
};

/// Who is idle is known within this time; a look at a sandbox costs about a microsecond.
const LOOK: Duration = Duration::from_millis(100);
const _: () = assert!(LOOK.as_millis() <= 100, "the bound that DESIGN gives");
/// By procfs a look costs some ten microseconds for each task.
const LOOK_PROCFS: Duration = Duration::from_millis(250);
/// Between two sweeps of the watch's tables.
const SWEEP: Duration = Duration::from_secs(60);
/// Faults fetched at once.
const FAULTS_MAX: usize = 1 << 15;

/// Sandboxes with processes, watched.
#[derive(Debug)]
pub(super) struct Watching {
    watch: Watch,
    keys: BTreeMap<SandboxId, Watched>,
    /// Whether it can be told which pages a request faults on.
    follows: bool,
    swept: Instant,
}

/// A sandbox, and what was seen of it the last time.
#[derive(Debug)]
struct Watched {
    key: Key,
    counted: Counts,
    activity: Option<Activity>,
}

impl Watching {
    /// `follows`: faults of some requests are wanted.
    pub(super) fn new(mut watch: Watch, follows: bool) -> Self {
        let loaded = (follows && watch.sight() != Sight::Procfs).then(|| watch.load_faults());
        if let Some(Err(error)) = &loaded {
            let error: &dyn std::error::Error = error;
            tracing::info!(
                error,
                "faults are not followed: pages that are only read are seen when they appear"
            );
        }
        let follows = matches!(loaded, Some(Ok(())));
        Self { watch, keys: BTreeMap::new(), follows, swept: Instant::now() }
    }

    /// How often to look.
    pub(super) fn pace(&self) -> Duration {
        if self.watch.sight() == Sight::Procfs { LOOK_PROCFS } else { LOOK }
    }

    /// Begins or ends to follow the faults of a sandbox.
    pub(super) fn follow(&mut self, sandbox: SandboxId, events: bool) {
        let Some(watched) = self.keys.get(&sandbox).filter(|_| self.follows) else { return };
        if let Err(error) = self.watch.want_faults(watched.key, Wants { events, heat: false }) {
            tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "follow faults");
        }
    }

    /// Faults that were followed and not yet fetched, by sandbox.
    pub(super) fn faults(&mut self) -> BTreeMap<SandboxId, Vec<Fault>> {
        let mut found: BTreeMap<SandboxId, Vec<Fault>> = BTreeMap::new();
        if !self.follows {
            return found;
        }
        for fault in self.watch.faults(FAULTS_MAX) {
            let of = self.keys.iter().find(|(_, watched)| watched.key == fault.key);
            if let Some((&sandbox, _)) = of {
                found.entry(sandbox).or_default().push(fault);
            }
        }
        found
    }

    /// It has processes now, perhaps others than before.
    pub(super) fn begin(&mut self, sandbox: SandboxId, cgroup: &SandboxCgroup) {
        self.end(sandbox);
        let group = Group { cgroup_id: cgroup.id(), procs: cgroup.main_dir().join("cgroup.procs") };
        match self.watch.add(group, now_ns()) {
            Ok(key) => {
                self.keys.insert(sandbox, Watched { key, counted: Counts::default(), activity: None });
            }
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

    /// What was seen of a sandbox's tasks at the last look.
    pub(super) fn activity(&self, sandbox: SandboxId) -> Option<Activity> {
        self.keys.get(&sandbox)?.activity
    }

    /// For how long each has done nothing; zero for one that works now.
    pub(super) fn look(&mut self) -> Vec<(SandboxId, Duration)> {
        self.watch.pass_log_on();
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
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
            let quiet = seen.idle(now_ns).unwrap_or_default();
            let wakes = |counts: Counts| Wakes { all: counts.wakes, by_timer: counts.timer_wakes };
            watched.activity = Some(Activity { cpu: seen.ran, quiet, wakes: seen.counts.map(wakes) });
            Some((sandbox, quiet))
        };
        self.keys.iter_mut().filter_map(idle).collect()
    }
}

impl Node {
    /// Looks who works.
    pub(super) fn look(&mut self) {
        for (sandbox, idle) in self.watching.look() {
            self.pace.quiet(Instant::now(), sandbox, idle, &self.tools.tasks);
            self.apply(Event::Quiet { sandbox, idle });
        }
        self.fetch_faults();
    }
}
