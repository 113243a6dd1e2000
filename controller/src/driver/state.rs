//! The nouns the driver keeps: sandbox, function, node, snapshot, request, pending command.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use medes_proto::{
    failure::Failure,
    fleet::{HeldKey, NodeMemory, SnapshotReport},
    function::FunctionSpec,
    ids::{FunctionName, NodeId, SandboxId, SnapshotId, TenantName},
    sandbox::{Phase, SandboxReport, SandboxState, StartKind},
    trace::EventId,
};

use super::{
    event::{ConnectionId, RequestId, Ticket},
    moving::Move,
};
use crate::{
    now::Now,
    policy::{Arrivals, IdleLife, IdleTimes, PRICE_HALF_LIFE},
};

/// Where a sandbox is, as far as the driver has decided it. `Warm` with open requests is "running".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Starting,
    Warm,
    MakingBase,
    Deduping,
    Dedup,
    /// In dedup in place: its processes are still there.
    Parked,
    Restoring,
    /// In dedup, and on its way to another node.
    Moving,
    Purging,
}

impl Life {
    pub(super) const fn reported(state: SandboxState) -> Self {
        match state {
            SandboxState::Unspecified | SandboxState::Warm | SandboxState::Running => Self::Warm,
            SandboxState::Starting => Self::Starting,
            SandboxState::Deduping => Self::Deduping,
            SandboxState::Dedup => Self::Dedup,
            SandboxState::Parked => Self::Parked,
            SandboxState::Restoring => Self::Restoring,
        }
    }

    /// Will be able to serve before long, without a new decision.
    pub(super) const fn is_coming(self) -> bool {
        matches!(self, Self::Starting | Self::Restoring | Self::MakingBase | Self::Moving)
    }

    /// Ends by itself, in one way or another.
    pub(super) const fn is_passing(self) -> bool {
        !matches!(self, Self::Warm | Self::Dedup | Self::Parked)
    }

    /// Its memory is taken; a restore gives it back.
    pub(super) const fn is_put_away(self) -> bool {
        matches!(self, Self::Dedup | Self::Parked)
    }

    /// The state people are shown.
    pub(super) const fn shown(self, open: bool) -> SandboxState {
        match self {
            Self::Starting => SandboxState::Starting,
            Self::Warm if open => SandboxState::Running,
            Self::Warm | Self::MakingBase | Self::Purging => SandboxState::Warm,
            Self::Deduping => SandboxState::Deduping,
            Self::Dedup | Self::Moving => SandboxState::Dedup,
            Self::Parked => SandboxState::Parked,
            Self::Restoring => SandboxState::Restoring,
        }
    }
}

/// The last start of a sandbox, for the phases of requests that waited for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct LastStart {
    pub(super) kind: StartKind,
    pub(super) commanded: Now,
    pub(super) ready: Now,
}

#[derive(Debug)]
pub(super) struct Sandbox {
    pub(super) id: SandboxId,
    pub(super) function: FunctionName,
    pub(super) revision: u64,
    pub(super) node: NodeId,
    pub(super) life: Life,
    /// When it entered `life`.
    pub(super) since: Now,
    /// End of its last request or start.
    pub(super) last_used: Now,
    pub(super) requests_max: usize,
    pub(super) open: BTreeSet<RequestId>,
    /// Requests it may still be serving that nobody waits for any more. It is not free while there are any.
    pub(super) stray: usize,
    /// A command about it is under way.
    pub(super) busy: bool,
    /// It is being parked, and was called back for a request.
    pub(super) called_back: bool,
    /// Its agent has seen no work in it for the idle period.
    pub(super) quiet: bool,
    /// When it will be reviewed. Timers for other moments mean nothing.
    pub(super) review_at: Option<Now>,
    pub(super) dump_blocked_until: Option<Now>,
    /// Where it is going, if it is.
    pub(super) moving: Option<Move>,
    /// Who may have it by now, if nobody knows how a move of it ended.
    pub(super) went_to: Option<NodeId>,
    /// It is not moved before that: a move of it failed.
    pub(super) move_after: Option<Now>,
    pub(super) dump_failures: u32,
    pub(super) last_start: Option<LastStart>,
    /// The last decision about it.
    pub(super) decided: Option<EventId>,
    /// Why the policy last kept it: said again only when it changes.
    pub(super) kept: Option<&'static str>,
    /// Requests it has been sent, as far as this controller knows.
    pub(super) uses: u64,
    /// Its node's clock when it was last used.
    pub(super) clock: f64,
    /// Reports in a row that contradict what is kept here.
    pub(super) contradicted: u8,
    /// What it held when it was last warm; 0 if that was not seen.
    pub(super) warm_bytes: u64,
    pub(super) report: SandboxReport,
}

impl Sandbox {
    pub(super) fn is_idle(&self) -> bool {
        !self.busy && self.open.is_empty() && self.stray == 0 && self.idle_life().is_some()
    }

    /// Requests it is serving.
    pub(super) fn inside(&self) -> usize {
        self.open.len().saturating_add(self.stray)
    }

    /// Requests it could take now.
    pub(super) fn room(&self) -> usize {
        match self.life {
            Life::Warm if !self.busy => {
                self.requests_max.saturating_sub(self.open.len()).saturating_sub(self.stray)
            }
            _ => 0,
        }
    }

    pub(super) fn idle_life(&self) -> Option<IdleLife> {
        match self.life {
            Life::Warm => Some(IdleLife::Warm),
            Life::Dedup | Life::Parked => Some(IdleLife::Dedup),
            _ => None,
        }
    }

    pub(super) fn enter(&mut self, life: Life, now: Now) {
        if self.life != life {
            self.life = life;
            self.since = now;
            self.moving = None;
        }
        self.contradicted = 0;
    }

    /// Bytes that its end would free.
    pub(super) fn held_bytes(&self) -> u64 {
        match self.life {
            Life::Dedup | Life::Moving => self.report.stored_bytes,
            Life::Parked => self.report.private_bytes.saturating_add(self.report.stored_bytes),
            _ => self.report.private_bytes.max(self.report.stored_bytes),
        }
    }
}

/// A running average, weight 1/8 for the newest.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Average(Option<f64>);

impl Average {
    pub(super) fn add(&mut self, value: f64) {
        self.0 = Some(self.0.map_or(value, |old| old + (value - old) / 8.0));
    }

    pub(super) fn add_time(&mut self, value: Duration) {
        self.add(value.as_secs_f64());
    }

    pub(super) fn time(self) -> Option<Duration> {
        self.0.map(|seconds| Duration::from_secs_f64(seconds.max(0.0)))
    }

    pub(super) fn bytes(self) -> Option<u64> {
        self.0.map(|bytes| bytes.max(0.0) as u64)
    }
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) spec: FunctionSpec,
    pub(super) revision: u64,
    /// Requests in the order they will be served.
    pub(super) queue: VecDeque<RequestId>,
    pub(super) arrivals: Arrivals,
    pub(super) cold_starts: u64,
    pub(super) restores: u64,
    pub(super) clones: u64,
    /// Of new sandboxes, however they were made: what the next one will take. That there is a snapshot now says little of then: where memory is
    /// short it goes first.
    pub(super) fresh: Average,
    pub(super) cold_start: Average,
    pub(super) clone: Average,
    pub(super) restore: Average,
    pub(super) unpark: Average,
    /// Moves of one in dedup to another node.
    pub(super) moving: Average,
    /// Requests that found a warm sandbox: all their time outside of it.
    pub(super) warm_start: Average,
    pub(super) execution: Average,
    pub(super) idle_times: IdleTimes,
    pub(super) reuses: IdleTimes,
    /// When a sandbox is to be started before a request asks for it.
    pub(super) prewarm_at: Option<Now>,
    /// When a request for it came last.
    pub(super) last_asked: Option<Now>,
    /// No init snapshot is taken before that: one did not come about.
    pub(super) init_after: Option<Now>,
    pub(super) warm_bytes: Average,
    pub(super) dedup_bytes: Average,
}

/// What sandboxes were worth that were ended on a node for room: rises halfway to each that is worth more, forgotten with time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Price {
    paid: f64,
    at: Option<Now>,
}

impl Price {
    pub(super) fn at(self, now: Now) -> f64 {
        let lives = self.at.map_or(0.0, |at| now.since(at).div_duration_f64(PRICE_HALF_LIFE));
        self.paid * (-lives).exp2()
    }

    /// Whether somebody was ended for room that lately.
    pub(super) fn was_paid_within(self, now: Now, period: Duration) -> bool {
        self.at.is_some_and(|at| now.since(at) < period)
    }

    pub(super) fn pay(&mut self, now: Now, worth: f64) {
        let paid = self.at(now);
        *self = Self { paid: paid.max((paid + worth) / 2.0), at: Some(now) };
    }
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) incarnation: u64,
    pub(super) version: String,
    pub(super) address: String,
    pub(super) lacks: Vec<String>,
    /// `None`: its stream broke, it may come back.
    pub(super) connection: Option<ConnectionId>,
    pub(super) heard: Now,
    pub(super) memory: NodeMemory,
    /// Changes since the last report: started (more) and purged (less).
    pub(super) drift_bytes: i64,
    pub(super) avoid_until: Option<Now>,
    /// The highest worth of any sandbox that was ended here for room.
    pub(super) clock: f64,
    pub(super) price: Price,
    /// No init snapshot has to make room here before that.
    pub(super) shed_after: Option<Now>,
    pub(super) sandboxes: BTreeSet<SandboxId>,
    /// Tenants whose keys it has been told on this stream.
    pub(super) told: BTreeSet<TenantName>,
    /// The keys that it says it knows.
    pub(super) keys: Vec<HeldKey>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SnapshotLife {
    /// Its MakeBase is under way.
    Making,
    Live,
    /// Its node is away or lost; forgotten at that moment unless the node comes back.
    Hidden {
        until: Option<Now>,
    },
    /// Its DropSnapshot is under way, or will be tried again.
    Dropping,
}

#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) function: FunctionName,
    /// Whom readers are sent to.
    pub(super) node: NodeId,
    /// Other nodes that can be reached and hold it, too.
    pub(super) copies: BTreeSet<NodeId>,
    /// No copy of it is made before that: one did not come about, or had to make room.
    pub(super) copy_after: Option<Now>,
    pub(super) life: SnapshotLife,
    /// A clone of it failed.
    pub(super) unfit: bool,
    pub(super) report: SnapshotReport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Queued {
        /// A sandbox that is being made ready for this request alone.
        waits_for: Option<SandboxId>,
        /// A restore failed for it: the next start for it is a cold one.
        cold: bool,
    },
    Sent {
        sandbox: SandboxId,
    },
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) function: FunctionName,
    pub(super) arrived: Now,
    pub(super) deadline: Now,
    pub(super) attempts: u8,
    pub(super) stage: Stage,
    /// How its sandbox had become ready, once it is sent.
    pub(super) start: Option<StartKind>,
    /// Why the sandbox that it was sent to has ended. Whether that one had seen it, only its own answer tells.
    pub(super) ended: Option<Failure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Start,
    /// A start as a clone of this one.
    Clone(SnapshotId),
    MakeBase(SnapshotId),
    Dedup,
    /// A dedup in place.
    Park,
    /// The end of one before it is done: a request wants the sandbox.
    CancelPark,
    Restore,
    /// A restore of one that is parked.
    Unpark,
    /// The first half of a move: its node lets another one have it.
    Offer,
    /// The second: that one takes it over.
    Take,
    Purge,
    DropSnapshot(SnapshotId),
    /// One more node is to hold it.
    Copy(SnapshotId),
    /// A node is to hold it no more, others do.
    DropCopy(SnapshotId),
}

impl Kind {
    /// What kind of start it is, if it is one.
    pub(super) const fn start(self) -> Option<StartKind> {
        match self {
            Self::Start => Some(StartKind::Cold),
            Self::Clone(_) => Some(StartKind::Clone),
            Self::Restore => Some(StartKind::Restore),
            Self::Unpark => Some(StartKind::Unpark),
            Self::MakeBase(_)
            | Self::Dedup
            | Self::Park
            | Self::CancelPark
            | Self::Offer
            | Self::Take
            | Self::Purge
            | Self::DropSnapshot(_)
            | Self::Copy(_)
            | Self::DropCopy(_) => None,
        }
    }

    /// Whether it takes the memory of a sandbox.
    pub(super) const fn takes_memory(self) -> bool {
        matches!(self, Self::Dedup | Self::Park)
    }
}

#[derive(Debug)]
pub(super) struct Pending {
    pub(super) kind: Kind,
    pub(super) sandbox: Option<SandboxId>,
    pub(super) node: NodeId,
    pub(super) issued: Now,
    pub(super) deadline: Now,
    /// Who asked, if a person did.
    pub(super) ticket: Option<Ticket>,
    /// Memory it will take, not yet in any report.
    pub(super) reserved_bytes: u64,
}

/// References of a sandbox whose node is lost: it may only be cut off, and come back.
#[derive(Debug)]
pub(super) struct Ghost {
    pub(super) node: NodeId,
    pub(super) bases: BTreeSet<SnapshotId>,
    pub(super) until: Now,
}

/// What wakes the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Request(RequestId),
    Command(medes_proto::ids::CommandId),
    Review(SandboxId),
    Passing(SandboxId),
    Snapshot(SnapshotId),
    Ghost(SandboxId),
    /// Functions that are to be started before a request asks: few, so one timer looks at all.
    Functions,
    /// Silent nodes, avoided nodes, the settle time: rare, so one timer looks at all.
    Nodes,
}

/// Wait so far of a request that is about to be sent: in the queue, and for its sandbox's start if nobody was served
/// by the sandbox since.
pub(super) fn wait_phases(request: &Request, sandbox: &Sandbox, now: Now) -> (StartKind, Vec<Phase>) {
    let waited_for = |start: &&LastStart| request.arrived < start.ready && sandbox.last_used <= start.ready;
    match sandbox.last_start.as_ref().filter(waited_for) {
        None => (StartKind::Warm, vec![Phase::new("queue", now.since(request.arrived))]),
        Some(start) => {
            let began = start.commanded.max(request.arrived);
            let took = start.ready.since(began);
            let queue = now.since(request.arrived).saturating_sub(took);
            (start.kind, vec![Phase::new("queue", queue), Phase::new(start.kind.word(), took)])
        }
    }
}
