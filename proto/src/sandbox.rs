//! A sandbox as its agent reports it.

use std::time::Duration;

use crate::{
    WireError,
    ids::{FunctionName, SandboxId, SnapshotId, snapshot_from_wire},
    limits, wire,
};
pub use wire::{SandboxState, StartKind};

impl SandboxState {
    /// The word people see.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Starting => "starting",
            Self::Warm => "warm",
            Self::Running => "running",
            Self::Deduping => "deduping",
            Self::Dedup => "dedup",
            Self::Restoring => "restoring",
            Self::Parked => "parked",
        }
    }
}

impl StartKind {
    /// The word people see, also in the gateway's headers.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Warm => "warm",
            Self::Restore => "restore",
            Self::Cold => "cold",
            Self::Unpark => "unpark",
            Self::Clone => "clone",
        }
    }

    /// The kind with this word.
    pub fn from_word(word: &str) -> Option<Self> {
        let all = [Self::Warm, Self::Restore, Self::Cold, Self::Unpark, Self::Clone];
        all.into_iter().find(|kind| kind.word() == word)
    }
}

/// One named step of an operation, and how long it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// The step.
    pub name: String,
    /// Its length.
    pub took: Duration,
}

impl Phase {
    /// A step.
    pub fn new(name: impl Into<String>, took: Duration) -> Self {
        Self { name: name.into(), took }
    }
}

impl From<Phase> for wire::Phase {
    fn from(phase: Phase) -> Self {
        Self { name: phase.name, micros: u64::try_from(phase.took.as_micros()).unwrap_or(u64::MAX) }
    }
}

/// Phases as a message carries them.
pub fn phases_to_wire(phases: Vec<Phase>) -> Vec<wire::Phase> {
    phases.into_iter().take(limits::PHASES_MAX).map(Into::into).collect()
}

/// Phases from a message.
pub fn phases_from_wire(raw: Vec<wire::Phase>) -> Result<Vec<Phase>, WireError> {
    if raw.len() > limits::PHASES_MAX {
        return Err(WireError::invalid("phases", "too many"));
    }
    Ok(raw.into_iter().map(|p| Phase::new(p.name, Duration::from_micros(p.micros))).collect())
}

/// Pages of one dedup, by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PageClasses {
    /// All zero.
    pub zero: u64,
    /// Equal to a base page.
    pub same: u64,
    /// Kept as the difference from a base page.
    pub delta: u64,
    /// Kept whole, compressed.
    pub whole: u64,
    /// Kept whole without a look at any base, because requests write them all the time. Not among `whole`.
    pub hot_skipped: u64,
    /// Of all these, as many were taken over unchanged from the image the sandbox came back from.
    pub reused: u64,
}

impl PageClasses {
    /// Pages of all classes.
    pub fn total(&self) -> u64 {
        self.by_class().into_iter().fold(0, |sum, (_, pages)| sum.saturating_add(pages))
    }

    /// The classes by the words people see; each page is in one.
    pub const fn by_class(&self) -> [(&'static str, u64); 5] {
        let Self { zero, same, delta, whole, hot_skipped, reused: _ } = *self;
        [("zero", zero), ("same", same), ("delta", delta), ("whole", whole), ("hot-skipped", hot_skipped)]
    }

    /// Bytes of all these pages.
    pub fn bytes(&self) -> u64 {
        self.total().saturating_mul(medes_dedup::page::PAGE_BYTES as u64)
    }
}

impl From<PageClasses> for wire::PageClasses {
    fn from(pages: PageClasses) -> Self {
        let PageClasses { zero, same, delta, whole, hot_skipped, reused } = pages;
        Self { zero, same, delta, whole, hot_skipped, reused }
    }
}

impl From<wire::PageClasses> for PageClasses {
    fn from(raw: wire::PageClasses) -> Self {
        let wire::PageClasses { zero, same, delta, whole, hot_skipped, reused } = raw;
        Self { zero, same, delta, whole, hot_skipped, reused }
    }
}

/// What was seen of a sandbox's writes, window by window: a window is one request or a burst of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteHeat {
    /// Windows this is about; 0: nothing is known.
    pub windows: u32,
    /// Pages written in most of them.
    pub hot_pages: u64,
    /// Pages written in some.
    pub warm_pages: u64,
    /// Pages written in the newest one.
    pub written_pages: u64,
    /// Pages touched in the newest one: written, or read as far as that was seen.
    pub touched_pages: u64,
}

impl From<WriteHeat> for wire::WriteHeat {
    fn from(heat: WriteHeat) -> Self {
        let WriteHeat { windows, hot_pages, warm_pages, written_pages, touched_pages } = heat;
        Self { windows, hot_pages, warm_pages, written_pages, touched_pages }
    }
}

impl From<wire::WriteHeat> for WriteHeat {
    fn from(raw: wire::WriteHeat) -> Self {
        let wire::WriteHeat { windows, hot_pages, warm_pages, written_pages, touched_pages } = raw;
        Self { windows, hot_pages, warm_pages, written_pages, touched_pages }
    }
}

/// What the kernel has seen of a sandbox's tasks since it has them: since its start, or since it last came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Activity {
    /// Time on processors.
    pub cpu: Duration,
    /// How long it has done no work; what a timer wakes it for is none while it is short.
    pub quiet: Duration,
    /// `None`: the node has no kernel programs that see it.
    pub wakes: Option<Wakes>,
}

/// How often a sandbox went from idle to runnable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wakes {
    /// In all.
    pub all: u64,
    /// Of these, by a timer.
    pub by_timer: u64,
}

impl From<Activity> for wire::Activity {
    fn from(activity: Activity) -> Self {
        let Activity { cpu, quiet, wakes } = activity;
        Self {
            cpu_ms: millis(cpu),
            quiet_ms: millis(quiet),
            wakes: wakes.map(|wakes| wakes.all),
            timer_wakes: wakes.map(|wakes| wakes.by_timer),
        }
    }
}

impl From<wire::Activity> for Activity {
    fn from(raw: wire::Activity) -> Self {
        let wire::Activity { cpu_ms, quiet_ms, wakes, timer_wakes } = raw;
        Self {
            cpu: Duration::from_millis(cpu_ms),
            quiet: Duration::from_millis(quiet_ms),
            wakes: wakes.zip(timer_wakes).map(|(all, by_timer)| Wakes { all, by_timer }),
        }
    }
}

/// A sandbox as its agent reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxReport {
    /// Which.
    pub id: SandboxId,
    /// Of which function.
    pub function: FunctionName,
    /// Of which text of the function file.
    pub function_revision: u64,
    /// Where it is in its life.
    pub state: SandboxState,
    /// How long it has been there.
    pub state_age: Duration,
    /// Since its first start.
    pub age: Duration,
    /// Anonymous and copied-on-write bytes of its processes; 0 in dedup state.
    pub private_bytes: u64,
    /// All bytes the node keeps for it in dedup state.
    pub stored_bytes: u64,
    /// Base snapshots its dedup image refers to.
    pub bases: Vec<SnapshotId>,
    /// The snapshot taken from it, if any.
    pub base_snapshot: Option<SnapshotId>,
    /// Why it cannot be dumped, if that is known.
    pub undumpable: Option<String>,
    /// Requests it has answered.
    pub requests: u64,
    /// How often it came back from dedup.
    pub starts_from_dedup: u64,
    /// Its last dedup or restore, by phase.
    pub last_phases: Vec<Phase>,
    /// What its last dedup made of its pages.
    pub pages: PageClasses,
    /// Requests being served now.
    pub open_requests: u32,
    /// What was seen of its writes.
    pub heat: WriteHeat,
    /// What was seen of its tasks; `None`: it has none, or is not watched.
    pub activity: Option<Activity>,
}

impl SandboxReport {
    /// One that nothing is known of yet but this.
    pub fn new(id: SandboxId, function: FunctionName, function_revision: u64, state: SandboxState) -> Self {
        Self {
            id,
            function,
            function_revision,
            state,
            state_age: Duration::ZERO,
            age: Duration::ZERO,
            private_bytes: 0,
            stored_bytes: 0,
            bases: Vec::new(),
            base_snapshot: None,
            undumpable: None,
            requests: 0,
            starts_from_dedup: 0,
            last_phases: Vec::new(),
            pages: PageClasses::default(),
            open_requests: 0,
            heat: WriteHeat::default(),
            activity: None,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl From<SandboxReport> for wire::SandboxReport {
    fn from(report: SandboxReport) -> Self {
        Self {
            sandbox: report.id.get(),
            function: report.function.into(),
            function_revision: report.function_revision,
            state: report.state.into(),
            state_age_ms: millis(report.state_age),
            age_ms: millis(report.age),
            private_bytes: report.private_bytes,
            stored_bytes: report.stored_bytes,
            bases: report.bases.into_iter().map(SnapshotId::get).collect(),
            base_snapshot: report.base_snapshot.map_or(0, SnapshotId::get),
            undumpable: report.undumpable.unwrap_or_default(),
            requests: report.requests,
            starts_from_dedup: report.starts_from_dedup,
            last_phases: phases_to_wire(report.last_phases),
            pages: Some(report.pages.into()),
            open_requests: report.open_requests,
            heat: Some(report.heat.into()),
            activity: report.activity.map(Into::into),
        }
    }
}

impl TryFrom<wire::SandboxReport> for SandboxReport {
    type Error = WireError;

    fn try_from(raw: wire::SandboxReport) -> Result<Self, WireError> {
        let state = SandboxState::try_from(raw.state).unwrap_or(SandboxState::Unspecified);
        if state == SandboxState::Unspecified {
            return Err(WireError::invalid("sandbox.state", "unknown"));
        }
        if raw.bases.len() > limits::IMAGE_BASES_MAX {
            return Err(WireError::invalid("sandbox.bases", "too many"));
        }
        if raw.undumpable.len() > limits::FAILURE_BYTES_MAX {
            return Err(WireError::invalid("sandbox.undumpable", "too long"));
        }
        let bases = raw.bases.into_iter().map(|id| snapshot_from_wire(id, "sandbox.bases"));
        Ok(Self {
            id: SandboxId::from_wire(raw.sandbox, "sandbox.sandbox")?,
            function: raw
                .function
                .parse()
                .map_err(|_name| WireError::invalid("sandbox.function", "not a function name"))?,
            function_revision: raw.function_revision,
            state,
            state_age: Duration::from_millis(raw.state_age_ms),
            age: Duration::from_millis(raw.age_ms),
            private_bytes: raw.private_bytes,
            stored_bytes: raw.stored_bytes,
            bases: bases.collect::<Result<_, _>>()?,
            base_snapshot: SnapshotId::new(raw.base_snapshot),
            undumpable: Some(raw.undumpable).filter(|why| !why.is_empty()),
            requests: raw.requests,
            starts_from_dedup: raw.starts_from_dedup,
            last_phases: phases_from_wire(raw.last_phases)?,
            pages: raw.pages.unwrap_or_default().into(),
            open_requests: raw.open_requests,
            heat: raw.heat.unwrap_or_default().into(),
            activity: raw.activity.map(Into::into),
        })
    }
}
