//! Every kind of event goes over the wire and into a file and comes back the same; what is too much is refused.

use super::*;
use crate::wire;

fn phases() -> Vec<Phase> {
    vec![Phase::new("dump", Duration::from_micros(1_234)), Phase::new("encode", Duration::from_micros(5))]
}

fn choice() -> Choice {
    let mut choice = Choice::of(Alternative::new("dedup", "idle for 60 s").bytes(7));
    choice.reject(Alternative::new("purge", "keep_alive is not over").costs(Some(Duration::from_millis(3))));
    choice.fact("idle_ms", 60_000);
    choice
}

/// One of each kind, in the order of [`TraceKind::ALL`].
fn one_of_each() -> Vec<What> {
    let snapshot = SnapshotId::new(1 << 32 | 9).unwrap();
    vec![
        What::State(StateChange {
            from: None,
            to: Some(SandboxState::Dedup),
            cause: Cause::NodeLost,
            decision: EventId::new(8),
        }),
        What::Idle { idle: Duration::from_millis(1_500), private_bytes: 4096 },
        What::Review(choice()),
        What::Start(choice()),
        What::Ready { start: StartKind::Restore, took: Duration::from_micros(77), phases: phases() },
        What::Dedup(DedupSummary {
            pages: PageClasses { zero: 1, same: 2, delta: 3, whole: 4, hot_skipped: 5, reused: 6 },
            bases: vec![snapshot],
            nodes: vec!["n1".parse().unwrap()],
            bytes_in: 40_960,
            bytes_out: 100,
            phases: phases(),
        }),
        What::Eviction(choice()),
        What::Purge { reason: "policy".into() },
        What::Base(BaseChange { snapshot, made: true, pages: 8, bytes: 32_768, phases: phases() }),
        What::Error(Trouble {
            doing: "dedup".into(),
            kind: FailureKind::DumpRefused,
            message: "an open connection".into(),
            pause: Some(Duration::from_secs(600)),
        }),
        What::Node { change: NodeChange::Away, sandboxes: 3 },
        What::Request { start: StartKind::Warm, phases: phases() },
        What::Asked { operation: "dedup".into() },
        What::Move(choice()),
    ]
}

fn event(what: What) -> Event {
    let about = About {
        node: Some("node-0".parse().unwrap()),
        sandbox: SandboxId::of(1, 2),
        function: Some("html".parse().unwrap()),
    };
    Event { id: EventId::new(1 << 32 | 42).unwrap(), unix_micros: 1_700_000_000_000_001, about, what }
}

#[test]
fn every_kind_comes_back_from_the_wire_and_from_json() {
    let all = one_of_each();
    let kinds: Vec<_> = all.iter().map(What::kind).collect();
    assert_eq!(kinds, TraceKind::ALL);
    for what in all {
        let event = event(what);
        assert_eq!(Event::try_from(wire::TraceEvent::from(event.clone())).as_ref(), Ok(&event));
        let line = serde_json::to_string(&event).unwrap();
        assert!(line.contains(&format!("\"kind\":\"{}\"", event.what.kind().word())), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event, "{line}");
        let bare = Event { about: About::default(), ..event };
        assert_eq!(Event::try_from(wire::TraceEvent::from(bare.clone())), Ok(bare));
    }
}

#[test]
fn a_line_reads_as_documented() {
    let line = serde_json::to_value(event(What::State(StateChange {
        from: Some(SandboxState::Warm),
        to: None,
        cause: Cause::Done,
        decision: EventId::new(1 << 32 | 7),
    })));
    assert_eq!(
        line.unwrap(),
        serde_json::json!({
            "event": "ev-1-42", "unix_micros": 1_700_000_000_000_001_u64, "node": "node-0", "sandbox": "sb-1-2",
            "function": "html", "kind": "state", "from": "warm", "to": null, "cause": "done",
            "decision": "ev-1-7"
        })
    );
}

#[test]
fn what_is_too_much_is_refused_on_receipt_and_never_sent() {
    let long = "x".repeat(TRACE_TEXT_MAX + 1);
    let sent = wire::TraceEvent::from(event(What::Purge { reason: long.clone() }));
    assert!(Event::try_from(sent).is_ok(), "it is cut on its way out");
    let raw = |what| {
        let wire = wire::TraceEvent::from(event(What::Purge { reason: "x".into() }));
        wire::TraceEvent { what: Some(what), ..wire }
    };
    use wire::trace_event::What as Raw;
    let option = |name: &str| wire::TraceOption { name: name.into(), ..Default::default() };
    let bad = [
        raw(Raw::Purge(wire::TracePurge { reason: long.clone() })),
        raw(Raw::Review(wire::TraceChoice::default())),
        raw(Raw::Review(wire::TraceChoice {
            chosen: Some(option("a")),
            rejected: vec![option("b"); TRACE_OPTIONS_MAX + 1],
            facts: Vec::new(),
        })),
        raw(Raw::Review(wire::TraceChoice { chosen: Some(option(&long)), ..Default::default() })),
        raw(Raw::Dedup(wire::TraceDedup { bases: vec![1; 65], ..Default::default() })),
        raw(Raw::Request(wire::TraceRequest { start: 99, phases: Vec::new() })),
        raw(Raw::State(wire::TraceState { from: 77, to: 1, cause: 1, decision: 0 })),
        wire::TraceEvent { id: 0, ..raw(Raw::Purge(wire::TracePurge::default())) },
        wire::TraceEvent { node: "No Node".into(), ..raw(Raw::Purge(wire::TracePurge::default())) },
        wire::TraceEvent { what: None, ..Default::default() },
    ];
    for raw in bad {
        assert!(Event::try_from(raw.clone()).is_err(), "{raw:?}");
    }
    let mut many = choice();
    (0..100).for_each(|_| many.reject(Alternative::new("x", "y")));
    assert_eq!(many.rejected.len(), TRACE_OPTIONS_MAX);
}

#[test]
fn a_filter_wants_what_all_its_parts_want() {
    let event = event(What::Purge { reason: "asked".into() });
    let wants = |filter: &Filter| filter.wants(&event.about, event.what.kind());
    assert!(wants(&Filter::default()));
    let right = Filter {
        function: Some("html".parse().unwrap()),
        node: Some("node-0".parse().unwrap()),
        sandbox: SandboxId::of(1, 2),
        kinds: vec![TraceKind::Dedup, TraceKind::Purge],
    };
    assert!(wants(&right));
    assert_eq!(Filter::try_from(wire::TraceFilter::from(right.clone())), Ok(right.clone()));
    let wrong = [
        Filter { function: Some("video".parse().unwrap()), ..right.clone() },
        Filter { node: Some("node-1".parse().unwrap()), ..right.clone() },
        Filter { sandbox: SandboxId::of(1, 3), ..right.clone() },
        Filter { kinds: vec![TraceKind::Dedup], ..right.clone() },
    ];
    assert!(wrong.iter().all(|filter| !wants(filter)));
    let nobody = About::default();
    assert!(!Filter { sandbox: SandboxId::of(1, 2), ..Filter::default() }.wants(&nobody, TraceKind::Node));
}

#[test]
fn an_event_id_reads_as_it_prints() {
    let id = EventId::new(3 << 32 | 17).unwrap();
    assert_eq!(id.to_string(), "ev-3-17");
    assert_eq!(id.to_string().parse(), Ok(id));
    for bad in ["", "ev-", "ev-1", "ev-0-0", "sb-1-2", "ev-1-99999999999"] {
        assert!(bad.parse::<EventId>().is_err(), "{bad}");
    }
}
