//! When each sandbox's writes are looked at: once it has been quiet for a moment, so that no request waits for it; and of which
//! request each fault is followed: the first one after a look, so that what it costs does not grow with their number.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use medes_proto::{ids::SandboxId, sandbox::WriteHeat};
use tokio_util::task::TaskTracker;

use crate::{
    pager::Paged,
    sandbox::cgroup::SandboxCgroup,
    watch::{
        Fault,
        tracked::{Tracked, Tracking},
    },
};

/// How long a sandbox must have done nothing.
const QUIET: Duration = Duration::from_secs(1);
/// Between two looks at one sandbox: each makes the first write to every page slower once.
const GAP: Duration = Duration::from_secs(10);

/// A sandbox with processes.
#[derive(Debug)]
struct Paced {
    tracked: Arc<Tracked>,
    cgroup: SandboxCgroup,
    /// What serves its missing pages.
    paged: Option<Paged>,
    /// The last look of this life.
    looked: Option<Instant>,
    /// Requests inside.
    open: u32,
    following: Following,
}

/// Whose faults are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Following {
    /// Those of the next request.
    Next,
    /// Those of the request that is inside.
    Now,
    /// No more in this window.
    Done,
}

/// The sandboxes whose writes are tracked; none at all where tracking is off.
#[derive(Debug)]
pub(super) struct Pace {
    tracking: Option<Tracking>,
    sandboxes: BTreeMap<SandboxId, Paced>,
}

impl Pace {
    pub(super) const fn new(tracking: Option<Tracking>) -> Self {
        Self { tracking, sandboxes: BTreeMap::new() }
    }

    /// It has processes now. `tracked`: what is known of its earlier lives.
    pub(super) fn begin(
        &mut self,
        sandbox: SandboxId,
        cgroup: &SandboxCgroup,
        (tracked, paged): (&mut Option<Arc<Tracked>>, Option<Paged>),
    ) {
        let Some(tracking) = &self.tracking else { return };
        let tracked = tracked.get_or_insert_with(|| Arc::new(Tracked::new(tracking.clone()))).clone();
        let (cgroup, following) = (cgroup.clone(), Following::Done);
        let paced = Paced { tracked, cgroup, paged, looked: None, open: 0, following };
        self.sandboxes.insert(sandbox, paced);
    }

    /// It has none any more, or they are somebody else's for a while.
    pub(super) fn end(&mut self, sandbox: SandboxId) {
        self.sandboxes.remove(&sandbox);
    }

    /// A request goes in. Returns whether its faults are to be followed.
    pub(super) fn entered(&mut self, sandbox: SandboxId) -> bool {
        let Some(paced) = self.sandboxes.get_mut(&sandbox) else { return false };
        paced.open += 1;
        paced.tracked.note_request();
        let follow = paced.open == 1 && paced.following == Following::Next;
        if follow {
            paced.following = Following::Now;
        }
        follow
    }

    /// A request has come out. Returns whether faults need not be followed any more.
    pub(super) fn left(&mut self, sandbox: SandboxId) -> bool {
        let Some(paced) = self.sandboxes.get_mut(&sandbox) else { return false };
        paced.open = paced.open.saturating_sub(1);
        let followed = paced.following == Following::Now;
        if followed {
            paced.following = Following::Done;
        }
        followed
    }

    /// Faults that were followed.
    pub(super) fn faulted(&self, sandbox: SandboxId, faults: Vec<Fault>) {
        if let Some(paced) = self.sandboxes.get(&sandbox) {
            paced.tracked.note_faults(faults);
        }
    }

    /// It has been idle for so long; begins a look if one is due.
    pub(super) fn quiet(&mut self, now: Instant, sandbox: SandboxId, idle: Duration, tasks: &TaskTracker) {
        let Some(paced) = self.sandboxes.get_mut(&sandbox) else { return };
        if !paced.is_due(now, idle) {
            return;
        }
        (paced.looked, paced.following) = (Some(now), Following::Next);
        let (tracked, cgroup, paged) = (paced.tracked.clone(), paced.cgroup.clone(), paced.paged.clone());
        tasks.spawn(async move { tracked.look(&cgroup.pids().unwrap_or_default(), paged.as_ref()).await });
    }

    /// What is known of a sandbox's writes.
    pub(super) fn heat(&self, sandbox: SandboxId) -> WriteHeat {
        let Some(paced) = self.sandboxes.get(&sandbox) else { return WriteHeat::default() };
        let summary = paced.tracked.summary();
        WriteHeat {
            windows: summary.windows,
            hot_pages: summary.hot,
            warm_pages: summary.warm,
            written_pages: summary.written,
            touched_pages: summary.touched,
        }
    }
}

impl Paced {
    fn is_due(&self, now: Instant, idle: Duration) -> bool {
        let quiet = self.open == 0 && idle >= QUIET;
        let news = self.looked.is_none_or(|looked| self.tracked.has_served() && now >= looked + GAP);
        quiet && news
    }
}
