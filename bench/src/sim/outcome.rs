//! What came of a simulated cluster, in numbers.

use std::time::Duration;

use medes_proto::sandbox::StartKind;

/// What came of it all.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// Requests by how they found their sandbox.
    pub(super) warm: u64,
    pub(super) restored: u64,
    pub(super) cold: u64,
    /// Requests that were refused.
    pub(super) refused: u64,
    /// Time from a request's arrival until its sandbox had it, in seconds.
    pub(super) waits: Vec<f32>,
    /// (wait + execution) / execution.
    pub(super) slowdowns: Vec<f32>,
    /// Commands that succeeded.
    pub(super) dedups: u64,
    pub(super) restores: u64,
    pub(super) bases: u64,
    pub(super) purges: u64,
    /// Memory of the whole cluster at the end of each minute.
    pub(super) bytes: Vec<u64>,
    /// Most sandboxes at a time.
    pub(super) sandboxes_max: usize,
    /// Most that one node held beyond its memory, at any time.
    pub(super) over_bytes_max: u64,
    /// Events that the driver was told.
    pub(super) events: u64,
}

impl Outcome {
    /// A request has found its sandbox.
    pub(super) fn count(&mut self, start: StartKind, wait: Duration, execution: Duration) {
        match start {
            StartKind::Cold => self.cold += 1,
            StartKind::Restore | StartKind::Unpark => self.restored += 1,
            _ => self.warm += 1,
        }
        self.waits.push(wait.as_secs_f32());
        let execution = execution.as_secs_f32().max(1e-3);
        self.slowdowns.push((wait.as_secs_f32() + execution) / execution);
    }

    /// Requests that were served.
    pub(super) fn requests(&self) -> u64 {
        self.warm + self.restored + self.cold
    }
}
