//! The one owner of this node's state: events in, actions out. No I/O and no clock (time is an argument).
//!
//! ```text
//! starting ──► warm ⇄ running
//!               │ ▲
//!   dedup, park ▼ │  restore
//!       deduping  restoring        any failure of a dedup leads back to warm,
//!               │ ▲                any failure of a restore ends the sandbox
//!               ▼ │
//!      dedup or parked             anything ──► gone (purged, or ended by itself)
//! ```
//!
//! One that is parked can be deduplicated as if it were warm: its memory comes back first.
//!
//! The shell ([`crate::node`]) holds what the states stand for (processes, images) and carries out the actions.

mod apply;
mod moving;
mod report;
mod trim;
pub use report::{Holder, Measures};
pub use trim::Trimmed;
#[cfg(test)]
mod tests;

use self::{moving::Moving, trim::Trim};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, SnapshotReport, Success},
    function::FunctionSpec,
    ids::{CommandId, NodeId, SandboxId, SnapshotId},
    moving::OfferedSandbox,
    registry::SnapshotPlace,
    sandbox::{PageClasses, Phase, SandboxState},
};

/// A request that waits at the door for the driver's word. Made by the shell, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The controller wants something done.
    Command {
        /// Named in the answer.
        id: CommandId,
        /// What.
        command: Command,
    },
    /// The controller does not want these sandboxes any more.
    Unwanted(Vec<SandboxId>),
    /// Nor these base snapshots.
    UnwantedBases(Vec<SnapshotId>),
    /// How long a sandbox must be idle before it is reported.
    IdlePeriod(Duration),
    /// How long a dedup image waits before it is made smaller; zero: for ever.
    SmallAfter(Duration),
    /// For how long the kernel has seen a sandbox do nothing, asked or not; zero while it works.
    Quiet {
        /// Which.
        sandbox: SandboxId,
        /// How long.
        idle: Duration,
    },
    /// A request for a sandbox is at the door.
    RequestAsked {
        /// For which sandbox.
        sandbox: SandboxId,
        /// Which request.
        ticket: Ticket,
    },
    /// An admitted request has its answer, or failed.
    RequestEnded {
        /// Of which sandbox.
        sandbox: SandboxId,
        /// Whether the sandbox answered.
        answered: bool,
    },
    /// A start has ended.
    Launched {
        /// Which sandbox.
        sandbox: SandboxId,
        /// What came up, or why there is no sandbox.
        result: Result<Launched, Failure>,
    },
    /// A dedup has ended. After a failure the sandbox is warm again, unless it was lost.
    Deduped {
        /// Which sandbox.
        sandbox: SandboxId,
        /// The image, or why there is none.
        result: Result<Deduped, DedupFailed>,
    },
    /// A restore has ended. After a failure there is no sandbox.
    Restored {
        /// Which sandbox.
        sandbox: SandboxId,
        /// Its phases and digest, or why it failed.
        result: Result<Restored, Failure>,
    },
    /// A base snapshot was made, or not; the sandbox is warm either way, unless it was lost.
    BaseMade {
        /// From which sandbox.
        sandbox: SandboxId,
        /// The snapshot.
        result: Result<(SnapshotReport, Vec<Phase>), DedupFailed>,
    },
    /// A base snapshot of another node was copied, or not.
    Replicated {
        /// Which.
        snapshot: SnapshotId,
        /// What it is.
        result: Result<SnapshotReport, Failure>,
    },
    /// A sandbox of another node was taken over, or not.
    Taken {
        /// Which.
        sandbox: SandboxId,
        /// What it is.
        result: Result<Taken, Failure>,
    },
    /// The agent before left a sandbox that rests, which is here now.
    TakenIn {
        /// Which.
        sandbox: SandboxId,
        /// What it runs.
        spec: Box<FunctionSpec>,
        /// Of which text of the function's file.
        revision: u64,
        /// What it is.
        taken: Taken,
        /// For how long it has rested.
        age: Duration,
        /// Its processes are there: it is parked.
        is_parked: bool,
    },
    /// The agent before left a base snapshot, which is here now.
    TakenInBase(SnapshotReport),
    /// Another node asks at the door for a sandbox that it says is offered to it.
    OfferAsked {
        /// Which, and who.
        offered: OfferedSandbox,
        /// To give it up; else only to read it.
        give_up: bool,
        /// Which question.
        ticket: Ticket,
    },
    /// An attempt to store a sandbox smaller has ended.
    Shrunk {
        /// Whose.
        sandbox: SandboxId,
        /// What it is stored as now, if that is something else than before.
        smaller: Option<Smaller>,
    },
    /// A step of a trim has ended. After a failure the sandbox is as it was, unless it was lost.
    Trimmed {
        /// Which sandbox.
        sandbox: SandboxId,
        /// What was taken, or why nothing was.
        result: Result<Trimmed, DedupFailed>,
    },
    /// Processes, image and housing of a sandbox are gone.
    Removed {
        /// Which sandbox.
        sandbox: SandboxId,
    },
    /// The processes ended without being told to.
    Exited {
        /// Of which sandbox.
        sandbox: SandboxId,
        /// How.
        why: Failure,
    },
    /// Time has passed.
    Tick,
}

/// A finished start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Launched {
    /// How long each step took.
    pub phases: Vec<Phase>,
    /// Bytes that what is missing of a clone is made from, if anything is.
    pub stored_bytes: u64,
    /// Base snapshots that it is made from.
    pub bases: Vec<SnapshotId>,
}

/// How a dedup is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DedupOrder {
    /// Hash the memory first.
    pub digest_memory: bool,
    /// A base of the sandbox's function, if the controller knows one.
    pub base: Option<SnapshotPlace>,
}

/// A finished dedup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deduped {
    /// All bytes kept.
    pub stored_bytes: u64,
    /// Base snapshots the image refers to.
    pub bases: Vec<SnapshotId>,
    /// What became of the pages.
    pub pages: PageClasses,
    /// Pages the registry was asked about.
    pub looked_up: u64,
    /// The base it was aligned with, if it was.
    pub aligned_with: Option<SnapshotId>,
    /// How long each step took.
    pub phases: Vec<Phase>,
    /// Hash of the memory before, where asked for.
    pub memory_digest: Option<[u8; 32]>,
    /// The processes are still there: it is parked.
    pub in_place: bool,
    /// What is stored may become smaller while it waits.
    pub shrinks: bool,
}

/// A sandbox in dedup that came from another node, or from the agent before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Taken {
    /// All bytes kept.
    pub stored_bytes: u64,
    /// Base snapshots the image refers to.
    pub bases: Vec<SnapshotId>,
    /// What became of its pages.
    pub pages: PageClasses,
    /// Requests it has answered.
    pub requests: u64,
    /// How often it came back from dedup.
    pub starts_from_dedup: u64,
    /// How long each step took.
    pub phases: Vec<Phase>,
}

/// What a sandbox is stored as that took the place of something larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Smaller {
    /// All bytes kept.
    pub stored_bytes: u64,
    /// Base snapshots the image refers to.
    pub bases: Vec<SnapshotId>,
    /// What became of the pages.
    pub pages: PageClasses,
}

/// A dedup or snapshot that did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupFailed {
    /// Why.
    pub failure: Failure,
    /// The sandbox did not survive it either.
    pub lost: bool,
}

/// A finished restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// How long each step took.
    pub phases: Vec<Phase>,
    /// Hash of the memory before it ran, where asked for.
    pub memory_digest: Option<[u8; 32]>,
    /// It was parked: what is missing of it is still made from what is stored.
    pub in_place: bool,
}

/// What the shell does next.
#[derive(Debug)]
pub enum Action {
    /// Start a sandbox; answer with [`Event::Launched`].
    Launch {
        /// Its number.
        sandbox: SandboxId,
        /// What it runs.
        spec: Box<FunctionSpec>,
        /// The init snapshot that it is a clone of, and where that is; `None`: from nothing.
        clone_of: Option<SnapshotPlace>,
    },
    /// Take its memory; answer with [`Event::Deduped`].
    Dedup {
        /// Whose.
        sandbox: SandboxId,
        /// How.
        order: DedupOrder,
    },
    /// Take it and leave the processes; answer with [`Event::Deduped`].
    Park {
        /// Whose.
        sandbox: SandboxId,
        /// A base of its function, if the controller knows one.
        base: Option<SnapshotPlace>,
        /// Of a hundred of its pages so many may stay.
        resident_percent: u32,
    },
    /// Take some of its memory between two requests; answer with [`Event::Trimmed`].
    Trim {
        /// Whose.
        sandbox: SandboxId,
        /// At most so many pages.
        pages_max: usize,
    },
    /// Call a park or a trim off, if it is still possible; it ends with [`Event::Deduped`] or [`Event::Trimmed`] all the same.
    CancelPark {
        /// Whose.
        sandbox: SandboxId,
    },
    /// Give it back; answer with [`Event::Restored`].
    Restore {
        /// Whose.
        sandbox: SandboxId,
        /// Hash the memory before it runs.
        digest_memory: bool,
    },
    /// Store it smaller, if that can be; answer with [`Event::Shrunk`]. Meanwhile it may be given back or removed.
    Shrink {
        /// Whose.
        sandbox: SandboxId,
    },
    /// Make a base snapshot; answer with [`Event::BaseMade`].
    MakeBase {
        /// From which sandbox.
        sandbox: SandboxId,
        /// Its number.
        snapshot: SnapshotId,
        /// Of which text of the function's file, if it is the function's init snapshot.
        init: Option<u64>,
    },
    /// End it and free all it has; answer with [`Event::Removed`].
    Remove {
        /// Which.
        sandbox: SandboxId,
    },
    /// Take over a sandbox that another node offers; answer with [`Event::Taken`].
    Take {
        /// Which.
        sandbox: SandboxId,
        /// What it runs.
        spec: Box<FunctionSpec>,
        /// Who has it, and host:port of that node's Node service.
        from: (NodeId, String),
    },
    /// Copy a base snapshot of another node; answer with [`Event::Replicated`].
    Replicate {
        /// Which, and where it is.
        place: SnapshotPlace,
    },
    /// Free a base snapshot.
    DropSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Let a request through to its sandbox; tell [`Event::RequestEnded`] when it is over. Another node gets what it asks for.
    Admit {
        /// Which request.
        ticket: Ticket,
    },
    /// Send a request away.
    Refuse {
        /// Which request.
        ticket: Ticket,
        /// Why.
        why: Failure,
    },
    /// Answer a command.
    Reply {
        /// Which.
        command: CommandId,
        /// What it came to.
        result: Result<Box<Success>, Failure>,
    },
    /// Tell the controller that a sandbox is idle.
    ReportIdle {
        /// Which.
        sandbox: SandboxId,
        /// For how long.
        idle: Duration,
    },
    /// Tell the controller that a sandbox ended by itself.
    ReportGone {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        why: Failure,
    },
}

/// One sandbox, as far as decisions need it.
#[derive(Debug)]
struct Entry {
    spec: Box<FunctionSpec>,
    revision: u64,
    state: SandboxState,
    since: Instant,
    born: Instant,
    /// End of the last request, or of the start or restore.
    last_used: Instant,
    /// When it was last reported idle, so that each idle period is reported once.
    reported_idle: Option<Instant>,
    /// The command whose work is under way.
    command: Option<CommandId>,
    /// Its processes ended, or it was purged, while work was under way: remove it when that ends.
    doomed: Option<Failure>,
    /// The purge to answer when it is gone.
    purge: Option<CommandId>,
    open_requests: u32,
    requests: u64,
    starts_from_dedup: u64,
    undumpable: Option<String>,
    stored_bytes: u64,
    bases: Vec<SnapshotId>,
    base_snapshot: Option<SnapshotId>,
    last_phases: Vec<Phase>,
    pages: PageClasses,
    /// Nobody has tried yet to store it smaller.
    shrinks: bool,
    /// It is another node's until that has given it up.
    arriving: bool,
    trim: Trim,
}

/// Owns every sandbox and snapshot of this node.
#[derive(Debug)]
pub struct Driver {
    sandboxes: BTreeMap<SandboxId, Entry>,
    snapshots: BTreeMap<SnapshotId, SnapshotReport>,
    /// Those that are being copied, and the command to answer then.
    replicating: BTreeMap<SnapshotId, CommandId>,
    idle_period: Duration,
    small_after: Duration,
    /// An image is being made smaller: one at a time.
    shrinking: bool,
    /// Warm sandboxes give away what they do not touch.
    trims: bool,
    sandboxes_max: usize,
    moving: Moving,
}

impl Driver {
    /// A node without sandboxes that may have at most `sandboxes_max`.
    pub fn new(sandboxes_max: usize) -> Self {
        Self {
            sandboxes: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            replicating: BTreeMap::new(),
            idle_period: Duration::from_secs(60),
            small_after: Duration::ZERO,
            shrinking: false,
            trims: false,
            sandboxes_max,
            moving: Moving::default(),
        }
    }

    /// Takes one event in and puts what follows from it into `out`.
    pub fn apply(&mut self, now: Instant, event: Event, out: &mut Vec<Action>) {
        let Some(event) = self.defer(event, out) else { return };
        match event {
            Event::Command { id, command } => self.command(now, id, command, out),
            Event::Unwanted(sandboxes) => {
                for sandbox in sandboxes {
                    self.remove(sandbox, None, out);
                }
            }
            Event::UnwantedBases(snapshots) => {
                for snapshot in snapshots {
                    self.snapshots.remove(&snapshot);
                    out.push(Action::DropSnapshot { snapshot });
                }
            }
            Event::IdlePeriod(period) => self.idle_period = period,
            Event::SmallAfter(period) => self.small_after = period,
            Event::RequestAsked { sandbox, ticket } => self.request_asked(now, sandbox, ticket, out),
            Event::RequestEnded { sandbox, answered } => self.request_ended(now, sandbox, answered),
            Event::Launched { sandbox, result } => self.launched(now, sandbox, result, out),
            Event::Deduped { sandbox, result } => self.deduped(now, sandbox, result, out),
            Event::Restored { sandbox, result } => self.restored(now, sandbox, result, out),
            Event::BaseMade { sandbox, result } => self.base_made(now, sandbox, result, out),
            Event::Replicated { snapshot, result } => self.replicated(snapshot, result, out),
            Event::Taken { sandbox, result } => self.taken(now, sandbox, result, out),
            Event::TakenIn { sandbox, spec, revision, taken, age, is_parked } => {
                self.taken_in(now, sandbox, (spec, revision), (taken, age, is_parked));
            }
            Event::TakenInBase(report) => {
                self.snapshots.insert(report.id, report);
            }
            Event::OfferAsked { offered, give_up, ticket } => {
                self.offer_asked(now, &offered, (give_up, ticket), out);
            }
            Event::Shrunk { sandbox, smaller } => self.shrunk(now, (sandbox, smaller), out),
            Event::Trimmed { sandbox, result } => self.trimmed(now, sandbox, result, out),
            Event::Removed { sandbox } => self.removed(sandbox, out),
            Event::Exited { sandbox, why } => self.exited(sandbox, why, out),
            Event::Quiet { sandbox, idle } => self.quiet(now, sandbox, idle),
            Event::Tick => {
                self.report_idle(now, out);
                self.shrink_one(now, out);
                self.trim_one(now, out);
            }
        }
    }

    /// Work that nobody asked for is use too: a sandbox in the middle of it is not idle.
    fn quiet(&mut self, now: Instant, sandbox: SandboxId, idle: Duration) {
        if let Some(entry) = self.sandboxes.get_mut(&sandbox)
            && let Some(worked) = now.checked_sub(idle)
        {
            entry.last_used = entry.last_used.max(worked);
        }
    }

    /// Each idle sandbox is reported once per idle period: the controller may have had a reason to leave it.
    fn report_idle(&mut self, now: Instant, out: &mut Vec<Action>) {
        for (&sandbox, entry) in &mut self.sandboxes {
            let rests =
                matches!(entry.state, SandboxState::Warm | SandboxState::Dedup | SandboxState::Parked);
            if !rests || entry.command.is_some() {
                continue;
            }
            let quiet_since = entry.reported_idle.unwrap_or(entry.last_used).max(entry.last_used);
            if now.duration_since(quiet_since) >= self.idle_period {
                entry.reported_idle = Some(now);
                let idle = now.duration_since(entry.last_used);
                out.push(Action::ReportIdle { sandbox, idle });
            }
        }
    }
}

/// After which time of waiting what was parked in haste is stored small: who is wanted back sooner need not have worked for it.
const PARKED_SMALL_AFTER: Duration = Duration::from_secs(2);

/// What waits is stored smaller, one sandbox at a time: images, while the node has nothing else to do; what was parked in haste, whatever it does, since
/// that takes most of the memory that was to be won.
impl Driver {
    fn shrink_one(&mut self, now: Instant, out: &mut Vec<Action>) {
        if self.shrinking {
            return;
        }
        let images = !self.small_after.is_zero() && !self.sandboxes.values().any(Entry::is_worked_on);
        let waited = |entry: &Entry| {
            let least = match entry.state {
                SandboxState::Parked => Some(PARKED_SMALL_AFTER),
                SandboxState::Dedup => images.then_some(self.small_after),
                _ => None,
            };
            entry.shrinks
                && entry.doomed.is_none()
                && least.is_some_and(|least| now.duration_since(entry.since) >= least)
        };
        let waiting = self.sandboxes.iter_mut().filter(|(_, entry)| waited(entry));
        let Some((&sandbox, entry)) = waiting.min_by_key(|(_, entry)| entry.since) else { return };
        entry.shrinks = false;
        self.shrinking = true;
        out.push(Action::Shrink { sandbox });
    }

    fn shrunk(
        &mut self,
        now: Instant,
        (sandbox, smaller): (SandboxId, Option<Smaller>),
        out: &mut Vec<Action>,
    ) {
        self.shrinking = false;
        if let (Some(entry), Some(smaller)) = (self.sandboxes.get_mut(&sandbox), smaller) {
            let Smaller { stored_bytes, bases, pages } = smaller;
            entry.stored_bytes = stored_bytes;
            entry.bases = bases;
            entry.pages = PageClasses { reused: entry.pages.reused, ..pages };
        }
        // Many may have been parked at once.
        self.shrink_one(now, out);
    }
}

fn not_here(sandbox: SandboxId) -> Failure {
    Failure::new(FailureKind::NotFound, format!("{sandbox} is not on this node"))
}

fn busy(sandbox: SandboxId, state: SandboxState, wanted: &str) -> Failure {
    Failure::new(FailureKind::Busy, format!("{wanted} {sandbox}: it is {}", state.word()))
}
