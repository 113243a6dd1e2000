//! The state as the controller and people see it.

use std::time::Instant;

use super::{Driver, Entry};
use medes_proto::{
    fleet::SnapshotReport,
    function::FunctionSpec,
    ids::{SandboxId, SnapshotId},
    sandbox::{Activity, SandboxReport, SandboxState, WriteHeat},
};

/// What the driver does not know of a sandbox, because it takes a look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measures {
    /// Anonymous and copied-on-write bytes of its processes.
    pub private_bytes: u64,
    /// What was seen of its writes.
    pub heat: WriteHeat,
    /// What was seen of its tasks.
    pub activity: Option<Activity>,
}

/// A sandbox as the accounts know it.
#[derive(Debug, Clone, Copy)]
pub struct Holder<'d> {
    /// Which.
    pub id: SandboxId,
    /// What it runs, and whose it is.
    pub spec: &'d FunctionSpec,
    /// Where it is in its life.
    pub state: SandboxState,
    /// All bytes kept for it, as of when it was put away.
    pub stored_bytes: u64,
    /// Base snapshots that these refer to.
    pub bases: &'d [SnapshotId],
}

impl Measures {
    /// Puts them into a report.
    pub fn fill(self, report: &mut SandboxReport) {
        let Self { private_bytes, heat, activity } = self;
        (report.private_bytes, report.heat, report.activity) = (private_bytes, heat, activity);
    }
}

impl Driver {
    /// Whether it is warm, and neither a request nor anybody's work is under way in it.
    pub fn rests(&self, sandbox: SandboxId) -> bool {
        let entry = self.sandboxes.get(&sandbox);
        entry.is_some_and(|entry| entry.state == SandboxState::Warm && !entry.is_worked_on())
    }

    /// All sandboxes, with what `measure` tells of each.
    pub fn sandboxes(&self, now: Instant, measure: impl Fn(SandboxId) -> Measures) -> Vec<SandboxReport> {
        let measured = |(&id, entry): (&SandboxId, &Entry)| {
            let mut report = entry.report(now, id);
            measure(id).fill(&mut report);
            report
        };
        // Of one that is on its way here its old node tells, as long as that has it.
        self.sandboxes.iter().filter(|(_, entry)| !entry.arriving).map(measured).collect()
    }

    /// All sandboxes, those on their way here included: what there is of them takes memory here.
    pub fn holders(&self) -> impl Iterator<Item = Holder<'_>> {
        self.sandboxes.iter().map(|(&id, entry)| Holder {
            id,
            spec: &entry.spec,
            state: entry.state,
            stored_bytes: entry.stored_bytes,
            bases: &entry.bases,
        })
    }

    /// All base snapshots.
    pub fn snapshots(&self) -> Vec<SnapshotReport> {
        self.snapshots.values().cloned().collect()
    }

    /// Bytes of all dedup images.
    pub fn image_bytes(&self) -> u64 {
        self.sandboxes.values().map(|entry| entry.stored_bytes).sum()
    }
}

impl Entry {
    /// Without what takes a look.
    pub(super) fn report(&self, now: Instant, id: SandboxId) -> SandboxReport {
        SandboxReport {
            state_age: now.duration_since(self.since),
            age: now.duration_since(self.born),
            stored_bytes: self.stored_bytes,
            bases: self.bases.clone(),
            base_snapshot: self.base_snapshot,
            undumpable: self.undumpable.clone(),
            requests: self.requests,
            starts_from_dedup: self.starts_from_dedup,
            last_phases: self.last_phases.clone(),
            pages: self.pages,
            open_requests: self.open_requests,
            ..SandboxReport::new(id, self.spec.name.clone(), self.revision, self.state)
        }
    }
}
