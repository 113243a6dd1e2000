//! What is simulated.

use std::time::Duration;

use medes_controller::{
    driver::{self, Keeping},
    policy::PolicySettings,
};

use super::Trouble;

/// Heartbeats that may be missed.
const MISSED_MAX: u32 = 4;

/// How long requests take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Execution {
    /// As the trace has it.
    OfTrace,
    /// As long as those of the function that was measured.
    OfModel,
}

/// A cluster and what is asked of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) nodes: u32,
    pub(crate) node_bytes: u64,
    /// What a node holds on which nothing was ever started.
    pub(crate) empty_bytes: u64,
    pub(crate) seed: u64,
    pub(crate) speedup: f64,
    /// Functions are new at the beginning, and requests come so much later. Zero: they were there before.
    pub(crate) lead: Duration,
    pub(crate) execution: Execution,
    pub(crate) heartbeat: Duration,
    /// Minutes that are not counted.
    pub(crate) warm_up: usize,
    pub(crate) init_snapshots: bool,
    pub(crate) base_copies: u32,
    pub(crate) policy: PolicySettings,
    pub(crate) keeping: Keeping,
    pub(crate) trouble: Trouble,
}

impl Settings {
    pub(super) fn driver(&self) -> driver::Settings {
        driver::Settings {
            silent_max: self.heartbeat * MISSED_MAX,
            nodes_max: self.nodes as usize,
            init_snapshots: self.init_snapshots,
            base_copies: self.base_copies,
            keeping: self.keeping,
            ..driver::Settings::default()
        }
    }
}
