//! What becomes of an idle sandbox. A policy is pure: it sees a [`View`], returns a [`Review`], keeps nothing.

use std::time::Duration;

use medes_proto::{
    ids::{FunctionName, SandboxId},
    sandbox::WriteHeat,
};

mod arrivals;
mod fixed;
mod greedy_dual;
mod hybrid;
mod idle_times;
mod marginal;
mod medes;
mod never_unload;
mod settings;
mod storing;
#[cfg(test)]
mod tests;
mod waits;

pub use arrivals::Arrivals;
pub use fixed::{Fixed, FixedSettings};
pub use greedy_dual::GreedyDual;
pub use hybrid::Hybrid;
pub use idle_times::IdleTimes;
pub use marginal::Marginal;
pub use medes::{Medes, Objective};
pub use never_unload::NeverUnload;
pub use settings::{PolicyKind, PolicySettings, UnknownPolicy};

/// Decides over idle sandboxes and unreferenced bases.
pub trait Policy: Send + std::fmt::Debug {
    /// The word in configuration files and logs.
    fn name(&self) -> &'static str;

    /// How long a sandbox that became warm or dedup just now may be left without a review.
    fn first_review(&self, life: IdleLife) -> Duration;

    /// What becomes of this sandbox. It is idle: no request, no command under way.
    fn review(&self, view: &dyn View, function: &FunctionView<'_>, sandbox: &SandboxView) -> Review;

    /// What keeping an idle sandbox is worth: whoever needs memory ends those that are worth least.
    ///
    /// Asked about all idle sandboxes of a node whenever room is needed there, so a function should be looked at only if it has
    /// to be. Unless a policy knows better, the longest idle is worth least.
    fn worth(&self, view: &dyn View, function: &FunctionName, sandbox: &SandboxView) -> f64 {
        let _ = (view, function);
        -sandbox.idle.as_secs_f64()
    }

    /// The function has lost its last sandbox for room on a node where memory costs `price` now ([`SandboxView::price`]): after how long it
    /// should have one again although nobody asks.
    fn back_after(&self, view: &dyn View, function: &FunctionView<'_>, price: f64) -> Option<Duration> {
        let _ = (view, function, price);
        None
    }

    /// What a new sandbox of a function without any would be [worth](Self::worth): those that are worth less may go for it although nobody
    /// asks. `None`: nobody goes.
    fn worth_of_new(&self, view: &dyn View, function: &FunctionView<'_>) -> Option<f64> {
        let _ = (view, function);
        None
    }

    /// Its periods and bounds, for the trace; names end in their unit.
    fn limits(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Whether bases that nobody refers to stay, though their functions live.
    fn keeps_bases(&self) -> bool {
        // A base nobody uses today is what the next dedup of its function needs.
        true
    }
}

/// How fast what memory was worth on a node is forgotten.
pub const PRICE_HALF_LIFE: Duration = Duration::from_secs(300);

/// Everything a policy may know. The driver has it; so does the simulator.
pub trait View {
    /// Time since the origin of the arrival histories.
    fn now(&self) -> Duration;
    /// The cluster as a whole. Looks at every node.
    fn cluster(&self) -> ClusterView;
    /// One function.
    fn function(&self, name: &FunctionName) -> Option<FunctionView<'_>>;
    /// What the dedup of a warm sandbox brings, and whether enough others of its node bring more. Others are counted only until there are.
    fn gain(&self, sandbox: SandboxId) -> Gain;
    /// The paper's maximum arrival rates ([`Arrivals::rate_max`]) of all functions together, as of this second. For policies that share out memory
    /// among all of them.
    fn rates_max(&self, minutes: usize) -> f64;
}

/// The cluster as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ClusterView {
    /// Connected nodes.
    pub nodes: usize,
    /// What they may use together.
    pub cap_bytes: u64,
    /// What they use.
    pub used_bytes: u64,
}

/// One function: its sandboxes, its traffic, what its starts cost. Averages are `None` until first seen.
#[derive(Debug, Clone)]
pub struct FunctionView<'a> {
    /// Its name.
    pub name: &'a FunctionName,
    /// Sandboxes that are warm, serving requests or not.
    pub warm: usize,
    /// Of these: serving a request now.
    pub running: usize,
    /// Sandboxes whose memory is taken, or being taken.
    pub dedup: usize,
    /// Sandboxes on their way to warm.
    pub starting: usize,
    /// Base snapshots on reachable nodes.
    pub bases: usize,
    /// Base snapshots being made.
    pub bases_coming: usize,
    /// Requests that wait.
    pub queued: usize,
    /// When requests came.
    pub arrivals: &'a Arrivals,
    /// Memory of a warm sandbox.
    pub warm_bytes: Option<u64>,
    /// Memory of a dedup image.
    pub dedup_bytes: Option<u64>,
    /// A new sandbox, however it was made: from nothing or as a clone.
    pub cold_start: Option<Duration>,
    /// A restore.
    pub restore: Option<Duration>,
    /// A request that found a warm sandbox: all its time outside of the sandbox.
    pub warm_start: Option<Duration>,
    /// Time inside the sandbox.
    pub execution: Option<Duration>,
    /// How long nobody wanted anything of it, each time.
    pub idle_times: &'a IdleTimes,
    /// How long single sandboxes of it were idle until they were used again, or were given up.
    pub reuses: &'a IdleTimes,
    /// Requests that its present sandboxes have served.
    pub uses: u64,
}

/// The two lives in which a sandbox can be idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleLife {
    /// Its memory is there.
    Warm,
    /// Its memory is taken.
    Dedup,
}

/// One idle sandbox.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SandboxView {
    /// Which.
    pub id: SandboxId,
    /// Warm or dedup.
    pub life: IdleLife,
    /// Since its last request, or its start if there was none.
    pub idle: Duration,
    /// Since it entered this life.
    pub in_life: Duration,
    /// Whether its agent, too, saw no work in it for the idle period.
    pub quiet: bool,
    /// Its memory when warm; 0 if that is not known.
    pub private_bytes: u64,
    /// Its dedup image, and of one that is parked what is left of its memory.
    pub stored_bytes: u64,
    /// Whether a base snapshot was taken from it.
    pub is_base_source: bool,
    /// For how long it must not be dumped, because that failed.
    pub dump_blocked: Option<Duration>,
    /// The highest worth of any sandbox that its node had ended for room, when this one was last used.
    pub clock: f64,
    /// What the sandboxes were worth that its node had ended for room lately; falls by half in [`PRICE_HALF_LIFE`] without.
    pub price: f64,
    /// The part of its node's memory that nobody uses and nothing under way will take; 1 where it has no limit.
    pub free: f64,
    /// What was seen of its writes.
    pub heat: WriteHeat,
}

/// What the dedup of a warm sandbox brings, held against that of the others of its node that are idle and quiet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Gain {
    /// Memory that it brings: what the sandbox has, without what its image will take and what it writes all the time.
    pub won_bytes: u64,
    /// What it costs, in pages to encode: pages that are only compared count an eighth.
    pub work_pages: u64,
    /// Idle sandboxes of the node that bring more memory for the same work.
    pub ahead: usize,
    /// Idle sandboxes of the node in all, itself included.
    pub among: usize,
    /// Dedups that may begin on the node now.
    pub slots: usize,
}

impl Gain {
    /// Whether it brings more than another one for the same work.
    pub fn is_above(&self, other: &Self) -> bool {
        let rate = |one: &Self, of: &Self| u128::from(one.won_bytes) * u128::from(of.work_pages.max(1));
        rate(self, other) > rate(other, self)
    }
}

/// What becomes of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Take a base snapshot of it.
    MakeBase,
    /// Take its memory.
    Dedup,
    /// Give it its memory back, although no request asks for it.
    Restore,
    /// End it.
    Purge,
}

impl Verdict {
    /// The word in the trace.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::MakeBase => "base",
            Self::Dedup => "dedup",
            Self::Restore => "restore",
            Self::Purge => "purge",
        }
    }
}

/// A verdict with its reasons, and when to ask again if the sandbox is still idle then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Review {
    /// What becomes of it.
    pub verdict: Verdict,
    /// Why.
    pub because: &'static str,
    /// What else could have become of it, and why it did not.
    pub rejected: Vec<(Verdict, &'static str)>,
    /// At the latest, ask again after this.
    pub again: Duration,
    /// When it is purged: start one of the function again after this, if it has none then.
    pub prewarm: Option<Duration>,
}
