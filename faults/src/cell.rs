//! One cell of the matrix: what a cluster is doing, what happens to it just then, and what must hold all the same.

use crate::{cluster::Kind, hosts::Place};

/// What a cluster is doing with one sandbox, the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// It answers requests.
    Serve,
    /// A request waits for its cold start.
    Launch,
    Dedup,
    /// A request waits for it to come back from its image.
    Restore,
    /// A request waits for one more of its kind.
    Clone,
    Park,
    /// Parked once more, what it had written is stored small.
    Shrink,
    /// Warm, it gives away what it does not touch.
    Trim,
    /// A request has it come back from parked.
    Unpark,
    /// The base that it refers to is copied to the other node.
    Replicate,
    /// It goes to the other node.
    Move,
    /// It is given up, as when its memory is needed.
    Evict,
}

impl Act {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Launch => "cold start",
            Self::Dedup => "dedup",
            Self::Restore => "restore",
            Self::Clone => "clone",
            Self::Park => "park",
            Self::Shrink => "shrink",
            Self::Trim => "trim",
            Self::Unpark => "unpark",
            Self::Replicate => "replicate",
            Self::Move => "move",
            Self::Evict => "evict",
        }
    }

    /// Whether a caller waits for it.
    const fn is_request(self) -> bool {
        matches!(self, Self::Serve | Self::Launch | Self::Restore | Self::Clone | Self::Unpark)
    }
}

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The agent at work.
    Agent,
    /// The other one.
    Other,
    Controller,
    /// All CRIU processes of the agent, and all it starts in the next moment.
    Criu,
    Keeper,
    /// A thread of the agent that serves pages. It is a thread, so its process goes with it.
    Pager,
    /// The agent's helper that stops processes and has them make calls.
    Helper,
    /// The function's processes.
    Function,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The step fails.
    Fail,
    /// kill -9.
    Kill(Victim),
    /// Nothing gets through between the two, for so many seconds.
    Cut(Place, Place, u64),
    /// It stands still for so many seconds: to it all clocks jump ahead.
    Stop(Place, u64),
    /// The agent's memory for images under way is full.
    FullScratch,
    /// The controller's disk is full.
    FullDisk,
    /// The function takes more memory than it may.
    Hoard,
    /// The function fills its private files.
    Litter,
    /// The kernel has no memory for the agent.
    Starve,
    /// What A sends comes at 256 kbit/s.
    Throttle,
    /// Each piece of what A sends to B comes 50 ms later.
    Delay,
    /// Bits of what A sends to B are others.
    Flip,
    /// B's monotonic clocks are a day ahead; the subject goes there, and back to where they are behind.
    Clock,
}

impl Fault {
    pub(crate) fn word(self) -> String {
        match self {
            Self::Fail => "it fails".into(),
            Self::Kill(victim) => format!(
                "kill -9 {}",
                match victim {
                    Victim::Agent => "agent",
                    Victim::Other => "other agent",
                    Victim::Controller => "controller",
                    Victim::Criu => "CRIU",
                    Victim::Keeper => "keeper",
                    Victim::Pager => "pager thread",
                    Victim::Helper => "inject helper",
                    Victim::Function => "function",
                }
            ),
            Self::Cut(one, other, seconds) => format!("cut {}-{} {seconds} s", one.word(), other.word()),
            Self::Stop(place, seconds) => format!("{} stands still {seconds} s", place.word()),
            Self::FullScratch => "tmpfs for images full".into(),
            Self::FullDisk => "controller's disk full".into(),
            Self::Hoard => "function out of memory".into(),
            Self::Litter => "function's tmpfs full".into(),
            Self::Starve => "agent out of memory".into(),
            Self::Throttle => "peer at 256 kbit/s".into(),
            Self::Delay => "peer late by 50 ms a piece".into(),
            Self::Flip => "bits flipped on the way".into(),
            Self::Clock => "clock a day ahead, then behind".into(),
        }
    }

    /// How long it lasts.
    pub(crate) const fn seconds(self) -> u64 {
        match self {
            Self::Cut(_, _, seconds) | Self::Stop(_, seconds) => seconds,
            _ => 0,
        }
    }
}

/// A cell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) act: Act,
    /// The step of the agent at which it happens; else before or while it acts.
    pub(crate) step: Option<&'static str>,
    pub(crate) fault: Fault,
    /// The node whose agent is at work.
    pub(crate) at: Place,
    pub(crate) kind: Kind,
}

/// What must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The caller gets its answer, whatever it takes: no sandbox had seen the request.
    pub(crate) answered: bool,
    /// The subject goes on where it was.
    pub(crate) kept: bool,
    /// Words that a request may be refused with, from the moment it happens until it must have been noticed.
    pub(crate) excuses: &'static [&'static str],
}

impl Cell {
    /// Unique, and what `--only` looks in.
    pub(crate) fn name(&self) -> String {
        let step = self.step.map(|step| format!(" at {step}")).unwrap_or_default();
        let kind = match self.kind {
            Kind::Usual | Kind::Trims => "",
            Kind::Bare => ", base on the other node",
            Kind::Kept => ", with takeover",
        };
        format!("{}{step}{kind}: {}", self.act.word(), self.fault.word())
    }

    /// Where the subject is.
    pub(crate) fn home(&self) -> Place {
        match self.act {
            Act::Replicate | Act::Move => Place::A,
            _ => self.at,
        }
    }

    /// The node that is not at work.
    pub(crate) fn other(&self) -> Place {
        if self.at == Place::A { Place::B } else { Place::A }
    }

    /// How much trouble takes its home away.
    fn home_is_lost(&self) -> bool {
        let home = match self.fault {
            Fault::Kill(Victim::Agent | Victim::Keeper | Victim::Pager) | Fault::Starve => self.at,
            Fault::Kill(Victim::Other) => self.other(),
            // Given up by the controller, and ended when it was asked for again elsewhere.
            Fault::Cut(Place::Controller, place, 2..) | Fault::Stop(place @ (Place::A | Place::B), 2..) => {
                place
            }
            _ => return false,
        };
        home == self.home() && !self.is_left()
    }

    /// Whether the subject rests while its agent is killed, and the next agent takes it over.
    fn is_left(&self) -> bool {
        let rests = matches!(self.act, Act::Replicate | Act::Move | Act::Shrink);
        self.kind == Kind::Kept && rests && matches!(self.fault, Fault::Kill(_))
    }

    pub(crate) fn expected(&self) -> Expected {
        let touches_function = match self.fault {
            Fault::Kill(Victim::Function) | Fault::Hoard => true,
            Fault::Fail => matches!(self.act, Act::Unpark | Act::Restore),
            // What CRIU leaves of what it was about to dump or to bring back nobody knows.
            Fault::Kill(Victim::Criu) => matches!(self.act, Act::Dedup | Act::Restore),
            Fault::Kill(Victim::Helper) => matches!(self.act, Act::Park | Act::Trim),
            // What it comes back from is on the other node.
            Fault::Kill(Victim::Other) | Fault::Stop(..) | Fault::Cut(Place::A, Place::B, 2..) => {
                self.kind == Kind::Bare && self.act == Act::Restore
            }
            // B keeps no whole base of another node: what was stored with one on A does not come back there.
            Fault::Delay => self.kind == Kind::Bare && self.act == Act::Move,
            Fault::FullScratch | Fault::Flip | Fault::Throttle => self.act == Act::Restore,
            _ => false,
        };
        // Once handed over and not yet told, a sandbox goes with the one who has it.
        let between =
            self.step == Some("given-up") && matches!(self.fault, Fault::Fail | Fault::Kill(Victim::Agent));
        let has_subject = !matches!(self.act, Act::Launch | Act::Clone | Act::Evict);
        let excuses: &'static [&'static str] = match self.fault {
            Fault::Kill(Victim::Controller) => &["no connection"],
            // It answers late, and late is when it looks at who has been silent.
            Fault::Stop(Place::Controller, _) => &[],
            Fault::Cut(Place::Client, ..) => &["no connection", "deadline", "hung"],
            Fault::Kill(Victim::Agent | Victim::Other | Victim::Pager) | Fault::Starve => &["node_lost"],
            // Its base comes slower than the caller wants to wait.
            Fault::Throttle => &["node_lost", "deadline"],
            Fault::Cut(Place::Controller, ..) | Fault::Stop(..) => &["node_lost"],
            // It stops in order: what was in a sandbox ends with it.
            Fault::Kill(Victim::Keeper) => &["node_lost", "shutting_down", "crashed"],
            Fault::Kill(Victim::Function) => &["crashed"],
            Fault::Fail if self.act == Act::Unpark => &["corrupt", "crashed"],
            Fault::Hoard => &["out_of_memory"],
            _ => &[],
        };
        // Thawed at once, an unparked sandbox may have seen the request; a sandbox that serves has.
        let has_seen = matches!(self.act, Act::Unpark | Act::Serve);
        Expected {
            answered: self.act.is_request()
                && (!has_seen || excuses.is_empty())
                && !self.is_callers_own()
                && self.fault != Fault::Throttle,
            kept: has_subject && !touches_function && !between && !self.home_is_lost(),
            excuses,
        }
    }

    /// Whether it hits whoever calls, or whom it calls: then nobody can answer.
    fn is_callers_own(&self) -> bool {
        matches!(self.fault, Fault::Kill(Victim::Controller) | Fault::Cut(Place::Client, ..))
    }
}
