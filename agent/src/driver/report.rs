//! The state as the controller and people see it.

use std::time::Instant;

use super::{Driver, Entry};
use medes_proto::{
    fleet::SnapshotReport,
    ids::SandboxId,
    sandbox::{SandboxReport, WriteHeat},
};

impl Driver {
    /// All sandboxes; `measure` tells one's private bytes, and what was seen of its writes.
    pub fn sandboxes(
        &self,
        now: Instant,
        measure: impl Fn(SandboxId) -> (u64, WriteHeat),
    ) -> Vec<SandboxReport> {
        self.sandboxes.iter().map(|(&id, entry)| entry.report(now, id, measure(id))).collect()
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
    pub(super) fn report(
        &self,
        now: Instant,
        id: SandboxId,
        (private_bytes, heat): (u64, WriteHeat),
    ) -> SandboxReport {
        SandboxReport {
            id,
            function: self.spec.name.clone(),
            function_revision: self.revision,
            state: self.state,
            state_age: now.duration_since(self.since),
            age: now.duration_since(self.born),
            private_bytes,
            stored_bytes: self.stored_bytes,
            bases: self.bases.clone(),
            base_snapshot: self.base_snapshot,
            undumpable: self.undumpable.clone(),
            requests: self.requests,
            starts_from_dedup: self.starts_from_dedup,
            last_phases: self.last_phases.clone(),
            pages: self.pages,
            open_requests: self.open_requests,
            heat,
        }
    }
}
