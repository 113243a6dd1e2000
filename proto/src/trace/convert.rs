//! Events from and to their messages. Texts are cut on sending, everything is checked on receipt.

use std::time::Duration;

use super::{
    About, Alternative, BaseChange, Cause, Choice, DedupSummary, Event, EventId, Explanation, Fact, Filter,
    Item, NodeChange, StateChange, TraceKind, Trouble, What,
};
use crate::{
    WireError,
    failure::{FailureKind, cut},
    ids::{NodeId, SandboxId, SnapshotId, snapshot_from_wire},
    limits::{IMAGE_BASES_MAX, TRACE_EVENTS_MAX, TRACE_FACTS_MAX, TRACE_OPTIONS_MAX, TRACE_TEXT_MAX},
    sandbox::{PageClasses, SandboxReport, SandboxState, StartKind, phases_from_wire, phases_to_wire},
    wire::{self, trace_event, trace_item},
};

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn short(text: String) -> String {
    cut(text, TRACE_TEXT_MAX)
}

fn node_from_wire(raw: &str) -> Result<NodeId, WireError> {
    raw.parse().map_err(|_name| WireError::invalid("trace.node", "not a node name"))
}

impl From<Event> for wire::TraceEvent {
    fn from(event: Event) -> Self {
        let Event { id, unix_micros, about: About { node, sandbox, function }, what } = event;
        Self {
            id: id.get(),
            unix_micros,
            node: node.map(Into::into).unwrap_or_default(),
            sandbox: sandbox.map_or(0, SandboxId::get),
            function: function.map(Into::into).unwrap_or_default(),
            what: Some(what.into()),
        }
    }
}

impl TryFrom<wire::TraceEvent> for Event {
    type Error = WireError;

    fn try_from(raw: wire::TraceEvent) -> Result<Self, WireError> {
        let wire::TraceEvent { id, unix_micros, node, sandbox, function, what } = raw;
        let about = About {
            node: (!node.is_empty()).then(|| node_from_wire(&node)).transpose()?,
            sandbox: SandboxId::new(sandbox),
            function: (!function.is_empty())
                .then(|| function.parse())
                .transpose()
                .map_err(|_name| WireError::invalid("trace.function", "not a function name"))?,
        };
        let id = EventId::new(id).ok_or(WireError::invalid("trace.id", "zero"))?;
        let what = what.ok_or(WireError::missing("trace.what"))?.try_into()?;
        let event = Self { id, unix_micros, about, what };
        event.check()?;
        Ok(event)
    }
}

impl From<What> for trace_event::What {
    fn from(what: What) -> Self {
        match what {
            What::State(StateChange { from, to, cause, decision }) => Self::State(wire::TraceState {
                from: from.unwrap_or_default().into(),
                to: to.unwrap_or_default().into(),
                cause: cause.into(),
                decision: decision.map_or(0, EventId::get),
            }),
            What::Idle { idle, private_bytes } => {
                Self::Idle(wire::TraceIdle { idle_ms: millis(idle), private_bytes })
            }
            What::Review(choice) => Self::Review(choice.into()),
            What::Start(choice) => Self::Start(choice.into()),
            What::Eviction(choice) => Self::Eviction(choice.into()),
            What::Move(choice) => Self::Move(choice.into()),
            What::Ready { start, took, phases } => Self::Ready(wire::TraceReady {
                start: start.into(),
                micros: micros(took),
                phases: phases_to_wire(phases),
            }),
            What::Dedup(summary) => Self::Dedup(summary.into()),
            What::Purge { reason } => Self::Purge(wire::TracePurge { reason: short(reason) }),
            What::Base(BaseChange { snapshot, made, pages, bytes, phases }) => {
                let phases = phases_to_wire(phases);
                Self::Base(wire::TraceBase { snapshot: snapshot.get(), made, pages, bytes, phases })
            }
            What::Error(Trouble { doing, kind, message, pause }) => Self::Error(wire::TraceError {
                doing: short(doing),
                kind: kind.into(),
                message: short(message),
                pause_ms: pause.map_or(0, millis),
            }),
            What::Node { change, sandboxes } => {
                Self::NodeChange(wire::TraceNode { change: change.into(), sandboxes })
            }
            What::Request { start, phases } => {
                Self::Request(wire::TraceRequest { start: start.into(), phases: phases_to_wire(phases) })
            }
            What::Asked { operation } => Self::Asked(wire::TraceAsked { operation: short(operation) }),
        }
    }
}

impl TryFrom<trace_event::What> for What {
    type Error = WireError;

    fn try_from(raw: trace_event::What) -> Result<Self, WireError> {
        use trace_event::What as Raw;
        Ok(match raw {
            Raw::State(wire::TraceState { from, to, cause, decision }) => Self::State(StateChange {
                from: state_from_wire(from)?,
                to: state_from_wire(to)?,
                cause: named(Cause::try_from(cause), Cause::Unspecified, "state.cause")?,
                decision: EventId::new(decision),
            }),
            Raw::Idle(wire::TraceIdle { idle_ms, private_bytes }) => {
                Self::Idle { idle: Duration::from_millis(idle_ms), private_bytes }
            }
            Raw::Review(choice) => Self::Review(choice.try_into()?),
            Raw::Start(choice) => Self::Start(choice.try_into()?),
            Raw::Eviction(choice) => Self::Eviction(choice.try_into()?),
            Raw::Move(choice) => Self::Move(choice.try_into()?),
            Raw::Ready(wire::TraceReady { start, micros, phases }) => Self::Ready {
                start: start_from_wire(start)?,
                took: Duration::from_micros(micros),
                phases: phases_from_wire(phases)?,
            },
            Raw::Dedup(summary) => Self::Dedup(summary.try_into()?),
            Raw::Purge(wire::TracePurge { reason }) => Self::Purge { reason },
            Raw::Base(wire::TraceBase { snapshot, made, pages, bytes, phases }) => Self::Base(BaseChange {
                snapshot: snapshot_from_wire(snapshot, "base.snapshot")?,
                made,
                pages,
                bytes,
                phases: phases_from_wire(phases)?,
            }),
            Raw::Error(wire::TraceError { doing, kind, message, pause_ms }) => Self::Error(Trouble {
                doing,
                // A kind that a newer peer knows and we do not is still a failure.
                kind: FailureKind::try_from(kind).unwrap_or(FailureKind::Internal),
                message,
                pause: Some(pause_ms).filter(|&ms| ms > 0).map(Duration::from_millis),
            }),
            Raw::NodeChange(wire::TraceNode { change, sandboxes }) => Self::Node {
                change: named(NodeChange::try_from(change), NodeChange::Unspecified, "node.change")?,
                sandboxes,
            },
            Raw::Request(wire::TraceRequest { start, phases }) => {
                Self::Request { start: start_from_wire(start)?, phases: phases_from_wire(phases)? }
            }
            Raw::Asked(wire::TraceAsked { operation }) => Self::Asked { operation },
        })
    }
}

/// An enum's value that has a name here.
fn named<T: Copy + PartialEq, E>(
    value: Result<T, E>,
    unknown: T,
    field: &'static str,
) -> Result<T, WireError> {
    value.ok().filter(|value| *value != unknown).ok_or(WireError::invalid(field, "unknown"))
}

fn start_from_wire(raw: i32) -> Result<StartKind, WireError> {
    named(StartKind::try_from(raw), StartKind::Unspecified, "trace.start")
}

fn state_from_wire(raw: i32) -> Result<Option<SandboxState>, WireError> {
    let state = SandboxState::try_from(raw)
        .map_err(|_number| WireError::invalid("state.from or state.to", "unknown"))?;
    Ok(Some(state).filter(|state| *state != SandboxState::Unspecified))
}

impl From<DedupSummary> for wire::TraceDedup {
    fn from(summary: DedupSummary) -> Self {
        let DedupSummary { pages, bases, nodes, bytes_in, bytes_out, phases } = summary;
        Self {
            pages: Some(pages.into()),
            bases: bases.into_iter().map(SnapshotId::get).collect(),
            nodes: nodes.into_iter().map(Into::into).collect(),
            bytes_in,
            bytes_out,
            phases: phases_to_wire(phases),
        }
    }
}

impl TryFrom<wire::TraceDedup> for DedupSummary {
    type Error = WireError;

    fn try_from(raw: wire::TraceDedup) -> Result<Self, WireError> {
        let wire::TraceDedup { pages, bases, nodes, bytes_in, bytes_out, phases } = raw;
        if bases.len() > IMAGE_BASES_MAX || nodes.len() > IMAGE_BASES_MAX {
            return Err(WireError::invalid("dedup.bases or dedup.nodes", "too many"));
        }
        let bases = bases.into_iter().map(|id| snapshot_from_wire(id, "dedup.bases"));
        Ok(Self {
            pages: PageClasses::from(pages.unwrap_or_default()),
            bases: bases.collect::<Result<_, _>>()?,
            nodes: nodes.iter().map(|node| node_from_wire(node)).collect::<Result<_, _>>()?,
            bytes_in,
            bytes_out,
            phases: phases_from_wire(phases)?,
        })
    }
}

impl From<Choice> for wire::TraceChoice {
    fn from(choice: Choice) -> Self {
        let Choice { chosen, rejected, facts } = choice;
        Self {
            chosen: Some(chosen.into()),
            rejected: rejected.into_iter().take(TRACE_OPTIONS_MAX).map(Into::into).collect(),
            facts: facts
                .into_iter()
                .take(TRACE_FACTS_MAX)
                .map(|Fact { name, value }| wire::TraceFact { name: short(name), value })
                .collect(),
        }
    }
}

impl TryFrom<wire::TraceChoice> for Choice {
    type Error = WireError;

    fn try_from(raw: wire::TraceChoice) -> Result<Self, WireError> {
        let wire::TraceChoice { chosen, rejected, facts } = raw;
        Ok(Self {
            chosen: chosen.ok_or(WireError::missing("choice.chosen"))?.into(),
            rejected: rejected.into_iter().map(Into::into).collect(),
            facts: facts.into_iter().map(|wire::TraceFact { name, value }| Fact { name, value }).collect(),
        })
    }
}

impl From<Alternative> for wire::TraceOption {
    fn from(option: Alternative) -> Self {
        let Alternative { name, reason, cost, bytes } = option;
        Self { name: short(name), reason: short(reason), cost_micros: cost.map(micros), bytes }
    }
}

impl From<wire::TraceOption> for Alternative {
    fn from(raw: wire::TraceOption) -> Self {
        let wire::TraceOption { name, reason, cost_micros, bytes } = raw;
        Self { name, reason, cost: cost_micros.map(Duration::from_micros), bytes }
    }
}

impl From<Filter> for wire::TraceFilter {
    fn from(filter: Filter) -> Self {
        let Filter { function, node, sandbox, kinds } = filter;
        Self {
            function: function.map(Into::into).unwrap_or_default(),
            node: node.map(Into::into).unwrap_or_default(),
            sandbox: sandbox.map_or(0, SandboxId::get),
            kinds: kinds.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::TraceFilter> for Filter {
    type Error = WireError;

    fn try_from(raw: wire::TraceFilter) -> Result<Self, WireError> {
        let wire::TraceFilter { function, node, sandbox, kinds } = raw;
        if kinds.len() > TraceKind::ALL.len() {
            return Err(WireError::invalid("filter.kinds", "too many"));
        }
        let kind = |raw| named(TraceKind::try_from(raw), TraceKind::Unspecified, "filter.kinds");
        Ok(Self {
            function: (!function.is_empty())
                .then(|| function.parse())
                .transpose()
                .map_err(|_name| WireError::invalid("filter.function", "not a function name"))?,
            node: (!node.is_empty()).then(|| node_from_wire(&node)).transpose()?,
            sandbox: SandboxId::new(sandbox),
            kinds: kinds.into_iter().map(kind).collect::<Result<_, _>>()?,
        })
    }
}

impl From<Item> for wire::TraceItem {
    fn from(item: Item) -> Self {
        let item = match item {
            Item::Begin => trace_item::Item::Begin(wire::TraceBegin {}),
            Item::Event(event) => trace_item::Item::Event((*event).into()),
            Item::Dropped(count) => trace_item::Item::Dropped(count),
        };
        Self { item: Some(item) }
    }
}

impl TryFrom<wire::TraceItem> for Item {
    type Error = WireError;

    fn try_from(raw: wire::TraceItem) -> Result<Self, WireError> {
        Ok(match raw.item.ok_or(WireError::missing("item"))? {
            trace_item::Item::Begin(wire::TraceBegin {}) => Self::Begin,
            trace_item::Item::Event(event) => Self::Event(Box::new(event.try_into()?)),
            trace_item::Item::Dropped(count) => Self::Dropped(count),
        })
    }
}

impl From<Explanation> for wire::ExplainReply {
    fn from(explanation: Explanation) -> Self {
        let Explanation { now, change, decision, review, history, forgotten } = explanation;
        let (now, node) =
            now.map_or((None, String::new()), |(report, node)| (Some(report.into()), node.into()));
        Self {
            now,
            node,
            change: change.map(Into::into),
            decision: decision.map(Into::into),
            review: review.map(Into::into),
            history: history.into_iter().map(Into::into).collect(),
            forgotten,
        }
    }
}

impl TryFrom<wire::ExplainReply> for Explanation {
    type Error = WireError;

    fn try_from(raw: wire::ExplainReply) -> Result<Self, WireError> {
        let wire::ExplainReply { now, node, change, decision, review, history, forgotten } = raw;
        if history.len() > TRACE_EVENTS_MAX {
            return Err(WireError::invalid("explain.history", "too many"));
        }
        let event = |raw: Option<wire::TraceEvent>| raw.map(Event::try_from).transpose();
        let now = match now {
            Some(report) => Some((SandboxReport::try_from(report)?, node_from_wire(&node)?)),
            None => None,
        };
        Ok(Self {
            now,
            change: event(change)?,
            decision: event(decision)?,
            review: event(review)?,
            history: history.into_iter().map(Event::try_from).collect::<Result<_, _>>()?,
            forgotten,
        })
    }
}
