//! What the cluster decides and what came of it: one schema for the live trace, `explain`, recordings and metrics.
//!
//! Never page contents, never a request's body, path or headers: an event has no field that could carry them.
//! As JSON (recordings, `medes trace --json`) an event is one flat object; field names end in their unit.

mod convert;
mod json;

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

pub use crate::wire::{TraceKind, trace_node::Change as NodeChange, trace_state::Cause};
use crate::{
    WireError,
    failure::FailureKind,
    ids::{FunctionName, NodeId, SandboxId, SnapshotId},
    limits::{PHASES_MAX, TRACE_FACTS_MAX, TRACE_OPTIONS_MAX, TRACE_TEXT_MAX},
    sandbox::{PageClasses, Phase, SandboxState, StartKind},
};

impl TraceKind {
    /// All that an event can have, in the order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::State,
        Self::Idle,
        Self::Review,
        Self::Start,
        Self::Ready,
        Self::Dedup,
        Self::Eviction,
        Self::Purge,
        Self::Base,
        Self::Error,
        Self::Node,
        Self::Request,
        Self::Asked,
        Self::Move,
    ];

    /// The word people see and type.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::State => "state",
            Self::Idle => "idle",
            Self::Review => "review",
            Self::Start => "start",
            Self::Ready => "ready",
            Self::Dedup => "dedup",
            Self::Eviction => "eviction",
            Self::Purge => "purge",
            Self::Base => "base",
            Self::Error => "error",
            Self::Node => "node",
            Self::Request => "request",
            Self::Asked => "asked",
            Self::Move => "move",
        }
    }
}

/// Number of an event: the controller's incarnation in the upper half, a counter in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct EventId(NonZeroU64);

impl EventId {
    /// `None` for zero.
    pub const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number, as messages carry it.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// As people read it: `ev-1-42`.
impl fmt::Display for EventId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ev-{}-{}", self.0.get() >> 32, self.0.get() & u64::from(u32::MAX))
    }
}

/// Text that is not an event's number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an event (they look like ev-1-42)")]
pub struct ParseEventIdError;

impl FromStr for EventId {
    type Err = ParseEventIdError;

    fn from_str(text: &str) -> Result<Self, ParseEventIdError> {
        let parse = || {
            let (incarnation, counter) = text.strip_prefix("ev-")?.split_once('-')?;
            let (upper, lower): (u32, u32) = (incarnation.parse().ok()?, counter.parse().ok()?);
            Self::new(u64::from(upper) << 32 | u64::from(lower))
        };
        parse().ok_or(ParseEventIdError)
    }
}

impl From<EventId> for String {
    fn from(id: EventId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for EventId {
    type Error = ParseEventIdError;

    fn try_from(text: String) -> Result<Self, ParseEventIdError> {
        text.parse()
    }
}

/// One thing that was decided or has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which.
    #[serde(rename = "event")]
    pub id: EventId,
    /// Microseconds since 1970 (UTC), by the controller's clock.
    pub unix_micros: u64,
    /// What it is about.
    #[serde(flatten)]
    pub about: About,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// What an event is about, as far as it is about one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxId>,
    /// The function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
}

/// What was decided or has happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum What {
    /// A sandbox has entered another state.
    State(StateChange),
    /// Its agent sees no work in it.
    Idle {
        /// Since its last work.
        #[serde(rename = "idle_micros", with = "json::micros")]
        idle: Duration,
        /// Its memory.
        private_bytes: u64,
    },
    /// The policy has looked at an idle sandbox.
    Review(Choice),
    /// A sandbox is to be started, and how.
    Start(Choice),
    /// It is ready.
    Ready {
        /// How it was started.
        #[serde(with = "json::word")]
        start: StartKind,
        /// From the command to its answer.
        #[serde(rename = "took_micros", with = "json::micros")]
        took: Duration,
        /// Inside the agent.
        #[serde(with = "json::phases")]
        phases: Vec<Phase>,
    },
    /// A sandbox's memory has been taken.
    Dedup(DedupSummary),
    /// A sandbox is to end because its memory is needed.
    Eviction(Choice),
    /// A sandbox is to end for another reason.
    Purge {
        /// policy, unwanted, broken, asked.
        reason: String,
    },
    /// A base snapshot was made or is dropped.
    Base(BaseChange),
    /// Something failed.
    Error(Trouble),
    /// A node has come, is away, or is lost.
    Node {
        /// Which of these.
        #[serde(with = "json::word")]
        change: NodeChange,
        /// Sandboxes that went with it.
        sandboxes: u32,
    },
    /// A request has been sent to a sandbox.
    Request {
        /// How the sandbox came to be ready.
        #[serde(with = "json::word")]
        start: StartKind,
        /// Its wait: queue, then start.
        #[serde(with = "json::phases")]
        phases: Vec<Phase>,
    },
    /// A sandbox in dedup is to go to another node.
    Move(Choice),
    /// A person has asked for an operation.
    Asked {
        /// start, base, dedup, restore, move, purge.
        operation: String,
    },
}

/// From one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateChange {
    /// `None`: it did not exist, as far as the controller knew.
    #[serde(with = "json::optional_word")]
    pub from: Option<SandboxState>,
    /// `None`: it is gone.
    #[serde(with = "json::optional_word")]
    pub to: Option<SandboxState>,
    /// Why.
    #[serde(with = "json::word")]
    pub cause: Cause,
    /// The last decision about this sandbox, if any is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<EventId>,
}

/// A decision: what was chosen, what was rejected and why, and what was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// What was chosen.
    pub chosen: Alternative,
    /// What was not.
    pub rejected: Vec<Alternative>,
    /// What was looked at.
    pub facts: Vec<Fact>,
}

impl Choice {
    /// A choice without alternatives or inputs.
    pub fn of(chosen: Alternative) -> Self {
        Self { chosen, rejected: Vec::new(), facts: Vec::new() }
    }

    /// Notes one that was not chosen. Beyond the limit the first ones stay: they came closest.
    pub fn reject(&mut self, alternative: Alternative) {
        if self.rejected.len() < TRACE_OPTIONS_MAX {
            self.rejected.push(alternative);
        }
    }

    /// Notes those that were not taken, as far as there is room; no more of them are made.
    pub fn reject_all(&mut self, alternatives: impl Iterator<Item = Alternative>) {
        let room = TRACE_OPTIONS_MAX.saturating_sub(self.rejected.len());
        self.rejected.extend(alternatives.take(room));
    }

    /// Notes an input; its name ends in its unit.
    pub fn fact(&mut self, name: &str, value: u64) {
        if self.facts.len() < TRACE_FACTS_MAX {
            self.facts.push(Fact { name: name.into(), value });
        }
    }

    /// The value of an input.
    pub fn value(&self, name: &str) -> Option<u64> {
        self.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value)
    }
}

/// One way a decision could have gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alternative {
    /// A verdict, a start kind, a sandbox, a node.
    pub name: String,
    /// Why, or why not.
    pub reason: String,
    /// Estimated time, if known.
    #[serde(
        rename = "cost_micros",
        default,
        skip_serializing_if = "Option::is_none",
        with = "json::optional_micros"
    )]
    pub cost: Option<Duration>,
    /// Memory it takes or gives, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

impl Alternative {
    /// Without estimates.
    pub fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), reason: reason.into(), cost: None, bytes: None }
    }

    /// With its estimated time.
    #[must_use]
    pub fn costs(self, cost: Option<Duration>) -> Self {
        Self { cost, ..self }
    }

    /// With the memory it takes or gives.
    #[must_use]
    pub fn bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }
}

/// One input of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Ends in its unit.
    pub name: String,
    /// In that unit.
    pub value: u64,
}

/// What a dedup came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupSummary {
    /// Pages by what became of them.
    #[serde(with = "json::pages")]
    pub pages: PageClasses,
    /// Base snapshots the image refers to.
    #[serde(with = "json::snapshots")]
    pub bases: Vec<SnapshotId>,
    /// Where those are.
    pub nodes: Vec<NodeId>,
    /// All pages looked at.
    pub bytes_in: u64,
    /// All that is stored.
    pub bytes_out: u64,
    /// How long each step took.
    #[serde(with = "json::phases")]
    pub phases: Vec<Phase>,
}

/// A base snapshot that was made or is dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseChange {
    /// Which.
    #[serde(with = "json::snapshot")]
    pub snapshot: SnapshotId,
    /// `false`: it is dropped.
    pub made: bool,
    /// Pages in it.
    pub pages: u64,
    /// Bytes it holds.
    pub bytes: u64,
    /// How long each step took.
    #[serde(with = "json::phases")]
    pub phases: Vec<Phase>,
}

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// start, restore, dedup, move, base, sandbox, command.
    pub doing: String,
    /// What kind of failure.
    #[serde(rename = "failure", with = "json::word")]
    pub kind: FailureKind,
    /// One sentence.
    pub message: String,
    /// How long it is not tried again, if that is said.
    #[serde(rename = "pause_micros", default, with = "json::optional_micros")]
    pub pause: Option<Duration>,
}

impl What {
    /// What it is, in one word.
    pub const fn kind(&self) -> TraceKind {
        match self {
            Self::State(_) => TraceKind::State,
            Self::Idle { .. } => TraceKind::Idle,
            Self::Review(_) => TraceKind::Review,
            Self::Start(_) => TraceKind::Start,
            Self::Ready { .. } => TraceKind::Ready,
            Self::Dedup(_) => TraceKind::Dedup,
            Self::Eviction(_) => TraceKind::Eviction,
            Self::Purge { .. } => TraceKind::Purge,
            Self::Base(_) => TraceKind::Base,
            Self::Error(_) => TraceKind::Error,
            Self::Node { .. } => TraceKind::Node,
            Self::Request { .. } => TraceKind::Request,
            Self::Asked { .. } => TraceKind::Asked,
            Self::Move(_) => TraceKind::Move,
        }
    }
}

impl Event {
    /// What is too long or too many in it. Also for events that were read from a file.
    pub fn check(&self) -> Result<(), WireError> {
        let text = |text: &str| match text.len() {
            0..=TRACE_TEXT_MAX => Ok(()),
            _ => Err(WireError::invalid("trace text", "too long")),
        };
        let few = |length: usize, max: usize, field| match length <= max {
            true => Ok(()),
            false => Err(WireError::invalid(field, "too many")),
        };
        let phases = |phases: &[Phase]| {
            few(phases.len(), PHASES_MAX, "phases")?;
            phases.iter().try_for_each(|phase| text(&phase.name))
        };
        match &self.what {
            What::Review(choice) | What::Start(choice) | What::Eviction(choice) | What::Move(choice) => {
                few(choice.rejected.len(), TRACE_OPTIONS_MAX, "choice.rejected")?;
                few(choice.facts.len(), TRACE_FACTS_MAX, "choice.facts")?;
                let options = choice.rejected.iter().chain([&choice.chosen]);
                options.flat_map(|option| [&option.name, &option.reason]).try_for_each(|part| text(part))?;
                choice.facts.iter().try_for_each(|fact| text(&fact.name))
            }
            What::Dedup(summary) => {
                few(summary.bases.len(), crate::limits::IMAGE_BASES_MAX, "dedup.bases")?;
                few(summary.nodes.len(), crate::limits::IMAGE_BASES_MAX, "dedup.nodes")?;
                phases(&summary.phases)
            }
            What::Ready { phases: steps, .. } | What::Request { phases: steps, .. } => phases(steps),
            What::Base(change) => phases(&change.phases),
            What::Error(trouble) => text(&trouble.doing).and_then(|()| text(&trouble.message)),
            What::Purge { reason: word } | What::Asked { operation: word } => text(word),
            What::State(_) | What::Idle { .. } | What::Node { .. } => Ok(()),
        }
    }
}

/// Which events a subscriber wants. What is empty wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only of this function.
    pub function: Option<FunctionName>,
    /// Only of this node.
    pub node: Option<NodeId>,
    /// Only of this sandbox.
    pub sandbox: Option<SandboxId>,
    /// Only of these kinds.
    pub kinds: Vec<TraceKind>,
}

impl Filter {
    /// Whether an event is wanted. One that is about no function is not about this function.
    pub fn wants(&self, about: &About, kind: TraceKind) -> bool {
        fn same<T: PartialEq>(wish: Option<&T>, is: Option<&T>) -> bool {
            wish.is_none() || wish == is
        }
        same(self.function.as_ref(), about.function.as_ref())
            && same(self.node.as_ref(), about.node.as_ref())
            && same(self.sandbox.as_ref(), about.sandbox.as_ref())
            && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

/// What a subscriber receives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// First on every stream.
    Begin,
    /// Something happened.
    Event(Box<Event>),
    /// This many events were thrown away here: the subscriber was slower than they came.
    Dropped(u64),
}

/// Why a sandbox is where it is.
#[derive(Debug, Clone, Default)]
pub struct Explanation {
    /// As it is now, and on which node; `None`: it is gone.
    pub now: Option<(crate::sandbox::SandboxReport, NodeId)>,
    /// The change that brought it where it is.
    pub change: Option<Event>,
    /// The decision behind that change.
    pub decision: Option<Event>,
    /// What the policy last said about it.
    pub review: Option<Event>,
    /// Oldest first.
    pub history: Vec<Event>,
    /// Older events that were forgotten.
    pub forgotten: u64,
}

#[cfg(test)]
mod tests;
