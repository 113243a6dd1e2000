//! One event as one aligned line.

use std::time::Duration;

use medes_proto::{
    sandbox::PageClasses,
    trace::{Alternative, BaseChange, Cause, Choice, DedupSummary, Event, Fact, StateChange, Trouble, What},
};

use crate::{human, output::plain};

/// The words above the columns.
pub(crate) fn heading() -> String {
    columns(["TIME (UTC)", "EVENT", "NODE", "SANDBOX", "FUNCTION", "KIND", "WHAT"])
}

/// An event, with a line end.
pub(crate) fn line(event: &Event) -> String {
    let text = |part: Option<String>| part.unwrap_or_else(|| "-".into());
    let about = &event.about;
    columns([
        &time(event.unix_micros),
        &event.id.to_string(),
        &text(about.node.as_ref().map(ToString::to_string)),
        &text(about.sandbox.map(|id| id.to_string())),
        &text(about.function.as_ref().map(ToString::to_string)),
        event.what.kind().word(),
        &plain(&what(&event.what)),
    ])
}

/// Where events are missing.
pub(crate) fn dropped(count: u64) -> String {
    let events = human::count(count, "event was", "events were");
    format!("-- {events} dropped here: this reader was slower than they came\n")
}

fn columns([time, event, node, sandbox, function, kind, what]: [&str; 7]) -> String {
    format!("{time:<12}  {event:<9} {node:<10} {sandbox:<9} {function:<12} {kind:<8}  {what}\n")
}

/// `16:03:21.123`, UTC.
pub(crate) fn time(unix_micros: u64) -> String {
    let (seconds, millis) = (unix_micros / 1_000_000, unix_micros / 1_000 % 1_000);
    let (hours, minutes) = (seconds / 3_600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{millis:03}", seconds % 60)
}

/// What an event says, without what it is about.
pub(crate) fn what(what: &What) -> String {
    match what {
        What::State(change) => state(change),
        What::Idle { idle, private_bytes } => {
            format!("no work for {}, {} private", human::took(*idle), human::bytes(*private_bytes))
        }
        What::Review(choice) | What::Start(choice) | What::Eviction(choice) | What::Move(choice) => {
            choice_line(choice)
        }
        What::Ready { start, took, phases } => {
            let start = start.word();
            join(&[format!("{start} in {}", human::took(*took)), human::phases(phases)])
        }
        What::Dedup(summary) => dedup(summary),
        What::Purge { reason } => format!("ends: {reason}"),
        What::Base(change) => base(change),
        What::Error(trouble) => error(trouble),
        What::Node { change, sandboxes } => {
            let word = change.as_str_name().trim_start_matches("CHANGE_").to_ascii_lowercase();
            format!("{word}, {}", human::count((*sandboxes).into(), "sandbox", "sandboxes"))
        }
        What::Request { start, phases } => join(&[format!("sent, {}", start.word()), human::phases(phases)]),
        What::Asked { operation } => format!("somebody asked for {operation}"),
    }
}

fn join(parts: &[String]) -> String {
    parts.iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join("; ")
}

fn state(change: &StateChange) -> String {
    let word = |state: Option<medes_proto::sandbox::SandboxState>, none| state.map_or(none, |s| s.word());
    let (from, to) = (word(change.from, "new"), word(change.to, "gone"));
    let why = match change.cause {
        Cause::Decided => "decided",
        Cause::Done => "done",
        Cause::Failed => "failed",
        Cause::Reported => "reported by its agent",
        Cause::Ended => "ended by itself",
        Cause::NodeLost => "its node is lost",
        Cause::Unspecified => "unknown",
    };
    let decision = change.decision.map(|id| format!(", {id}")).unwrap_or_default();
    format!("{from} -> {to} ({why}{decision})")
}

/// `dedup: idle and quiet (34 ms); not base: its function has bases enough`.
pub(crate) fn choice_line(choice: &Choice) -> String {
    let rejected = choice.rejected.iter().map(|option| format!("not {}", alternative(option)));
    join(&[alternative(&choice.chosen)].into_iter().chain(rejected).collect::<Vec<_>>())
}

/// `restore sb-1-2: the last one used (35 ms, 41.2 MiB)`.
pub(crate) fn alternative(option: &Alternative) -> String {
    let cost = option.cost.filter(|cost| !cost.is_zero()).map(|cost| format!("~{}", human::took(cost)));
    let bytes = option.bytes.map(human::bytes);
    let estimates: Vec<_> = cost.into_iter().chain(bytes).collect();
    match estimates.is_empty() {
        true => format!("{}: {}", option.name, option.reason),
        false => format!("{}: {} ({})", option.name, option.reason, estimates.join(", ")),
    }
}

/// An input as people read it: its unit is in the number, not in the name.
pub(crate) fn fact(fact: &Fact) -> String {
    let Fact { name, value } = fact;
    if let Some(name) = name.strip_suffix("_ms") {
        format!("{name} {}", human::took(Duration::from_millis(*value)))
    } else if let Some(name) = name.strip_suffix("_bytes") {
        format!("{name} {}", human::bytes(*value))
    } else {
        format!("{name} {value}")
    }
}

fn dedup(summary: &DedupSummary) -> String {
    let DedupSummary { pages, bases, nodes, bytes_in, bytes_out, phases } = summary;
    let part = human::percent(*bytes_out, *bytes_in).map(|part| format!(" ({part})")).unwrap_or_default();
    let sizes = format!("{} -> {}{part}", human::bytes(*bytes_in), human::bytes(*bytes_out));
    let names = |all: Vec<String>| all.join(" ");
    let from = match bases.is_empty() {
        true => "no base".into(),
        false => format!(
            "{} on {}",
            names(bases.iter().map(ToString::to_string).collect()),
            names(nodes.iter().map(ToString::to_string).collect())
        ),
    };
    join(&[sizes, page_classes(pages), from, human::phases(phases)])
}

/// `pages: 3 zero, 10 same, 4 delta, 1 whole`.
pub(crate) fn page_classes(pages: &PageClasses) -> String {
    let classes: Vec<_> = pages
        .by_class()
        .into_iter()
        // Few sandboxes have hot pages, and those say so.
        .filter(|(class, pages)| *class != "hot-skipped" || *pages > 0)
        .map(|(class, pages)| format!("{pages} {class}"))
        .collect();
    let reused = if pages.reused > 0 { format!(" ({} reused)", pages.reused) } else { String::new() };
    format!("pages: {}{reused}", classes.join(", "))
}

fn base(change: &BaseChange) -> String {
    let word = if change.made { "made" } else { "dropped" };
    let pages = human::count(change.pages, "page", "pages");
    let text = format!("{} {word}: {pages}, {}", change.snapshot, human::bytes(change.bytes));
    join(&[text, human::phases(&change.phases)])
}

fn error(trouble: &Trouble) -> String {
    let kind = trouble.kind.as_str_name().trim_start_matches("FAILURE_KIND_").to_ascii_lowercase();
    let pause = trouble.pause.map(|pause| format!("not again for {}", human::age(pause))).unwrap_or_default();
    join(&[format!("{} failed ({kind}): {}", trouble.doing, trouble.message), pause])
}

#[cfg(test)]
mod tests {
    use medes_proto::{
        failure::FailureKind,
        ids::{SandboxId, SnapshotId},
        sandbox::{Phase, SandboxState},
        trace::{About, EventId},
    };

    use super::*;

    fn shown(what: What) -> String {
        let about = About {
            node: Some("node-0".parse().unwrap()),
            sandbox: SandboxId::of(1, 2),
            function: Some("html".parse().unwrap()),
        };
        let id = EventId::new(1 << 32 | 42).unwrap();
        line(&Event { id, unix_micros: 57_801_123_456, about, what })
    }

    #[test]
    fn a_line_stands_under_its_heading() {
        let change = StateChange {
            from: Some(SandboxState::Warm),
            to: Some(SandboxState::Deduping),
            cause: Cause::Decided,
            decision: EventId::new(1 << 32 | 41),
        };
        let text = shown(What::State(change));
        assert_eq!(
            text,
            "16:03:21.123  ev-1-42   node-0     sb-1-2    html         state     warm -> deduping (decided, ev-1-41)\n"
        );
        for word in ["EVENT", "NODE", "SANDBOX", "FUNCTION", "KIND", "WHAT"] {
            let at = heading().find(word).unwrap();
            assert!(text.as_bytes()[at - 1] == b' ' && text.as_bytes()[at] != b' ', "{word}");
        }
    }

    #[test]
    fn a_dedup_says_classes_bases_bytes_and_phases() {
        let text = shown(What::Dedup(DedupSummary {
            pages: PageClasses { zero: 1, same: 2, delta: 3, whole: 4, hot_skipped: 5, reused: 6 },
            bases: vec![SnapshotId::new(1 << 32 | 9).unwrap()],
            nodes: vec!["node-1".parse().unwrap()],
            bytes_in: 40 << 20,
            bytes_out: 1 << 20,
            phases: vec![Phase::new("dump", Duration::from_millis(31))],
        }));
        assert!(
            text.ends_with(
                "40.0 MiB -> 1.0 MiB (2.5 %); pages: 1 zero, 2 same, 3 delta, 4 whole, 5 hot-skipped \
                 (6 reused); base-1-9 on node-1; \
                 dump 31.0 ms\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_choice_says_what_was_rejected_and_at_what_cost() {
        let mut choice = Choice::of(
            Alternative::new("restore sb-1-2", "all bases are there")
                .costs(Some(Duration::from_millis(35)))
                .bytes(1 << 20),
        );
        choice.reject(Alternative::new("cold", "a restore comes first").costs(Some(Duration::from_secs(2))));
        let text = shown(What::Start(choice));
        assert!(
            text.ends_with(
                "restore sb-1-2: all bases are there (~35.0 ms, 1.0 MiB); not cold: a restore comes first \
                 (~2.00 s)\n"
            ),
            "{text}"
        );
        assert_eq!(fact(&Fact { name: "idle_ms".into(), value: 61_000 }), "idle 61.00 s");
        assert_eq!(fact(&Fact { name: "private_bytes".into(), value: 2048 }), "private 2.0 KiB");
        assert_eq!(fact(&Fact { name: "queued".into(), value: 3 }), "queued 3");
    }

    #[test]
    fn a_message_cannot_drive_the_terminal() {
        let message = "bad \u{1b}[31m\nline".into();
        let text = shown(What::Error(Trouble {
            doing: "dedup".into(),
            kind: FailureKind::DumpRefused,
            message,
            pause: Some(Duration::from_secs(600)),
        }));
        assert!(
            text.ends_with("dedup failed (dump_refused): bad  [31m line; not again for 10m00s\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }
}
