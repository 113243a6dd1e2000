//! The screen as text, at the smallest size and at a larger one.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use medes_proto::{
    ids::SandboxId,
    trace::{About, EventId, Item, What},
    wire,
};
use ratatui::{Terminal, backend::TestBackend};

use super::*;
use crate::top::model::{Flow, Message, Snapshot};

fn sandbox(number: u64, function: &str, state: SandboxState, bytes: u64) -> wire::SandboxRow {
    let dedup = state == SandboxState::Dedup;
    let report = wire::SandboxReport {
        sandbox: 1 << 32 | number,
        function: function.into(),
        function_revision: 1,
        state: state.into(),
        state_age_ms: 12_000,
        private_bytes: if dedup { 0 } else { bytes },
        stored_bytes: if dedup { bytes } else { 0 },
        requests: number * 10,
        ..Default::default()
    };
    wire::SandboxRow { report: Some(report), node: format!("node-{}", number % 2) }
}

fn snapshot(requests: u64) -> Snapshot {
    let memory = wire::NodeMemory {
        cap_bytes: 2 << 30,
        used_bytes: 1 << 30,
        base_bytes: 64 << 20,
        image_bytes: 5 << 20,
        agent_bytes: 30 << 20,
    };
    let node = |number| wire::NodeRow {
        node: format!("node-{number}"),
        memory: Some(memory),
        silent_ms: 300,
        sandboxes: 6,
        lacks: vec!["eBPF: no BTF".into()],
        ..Default::default()
    };
    let function = |name: &str, requests| wire::FunctionRow {
        name: name.into(),
        tenant: "default".into(),
        warm: 3,
        dedup: 2,
        bases: 1,
        requests,
        cold_starts: 4,
        restores: 6,
        ..Default::default()
    };
    let mut sandboxes = vec![
        sandbox(1, "html", SandboxState::Running, 40 << 20),
        sandbox(2, "html", SandboxState::Dedup, 1 << 20),
        sandbox(3, "video", SandboxState::Warm, 80 << 20),
    ];
    sandboxes.extend((4..40).map(|number| sandbox(number, "vanilla", SandboxState::Dedup, 1 << 20)));
    Snapshot::new(
        wire::ListNodesReply { nodes: vec![node(0), node(1)], ..Default::default() },
        wire::ListFunctionsReply { functions: vec![function("html", requests), function("video", 0)] },
        wire::ListSandboxesReply { sandboxes },
    )
    .unwrap()
}

fn model() -> Model {
    let mut model = Model::new("127.0.0.1:7070".into());
    model.update(Duration::ZERO, Message::Looked(snapshot(100)));
    model.update(Duration::from_secs(2), Message::Looked(snapshot(150)));
    for number in 1..=30 {
        let about = About {
            sandbox: SandboxId::of(1, number),
            node: Some("node-0".parse().unwrap()),
            function: Some("html".parse().unwrap()),
        };
        let what = What::Asked { operation: "dedup".into() };
        let id = EventId::new(number.into()).unwrap();
        let event = Event { id, unix_micros: u64::from(number) * 1_000_000, about, what };
        model.update(Duration::from_secs(3), Message::Item(Item::Event(Box::new(event))));
    }
    model
}

fn press(model: &mut Model, code: KeyCode) -> Flow {
    model.update(Duration::from_secs(4), Message::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

fn shown(model: &Model, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, model)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

#[test]
fn all_that_matters_fits_80_by_24() {
    let lines = shown(&model(), 80, 24);
    let text = lines.join("\n");
    assert!(lines[0].starts_with("medes top  127.0.0.1:7070  2 nodes, 2 functions, 39 sandboxes"), "{text}");
    for state in ["starting 0", "warm 1", "running 1", "deduping 0", "dedup 37", "restoring 0"] {
        assert!(lines[1].contains(state), "{state}\n{text}");
    }
    assert!(lines[2].contains("80.0 MiB") && lines[2].contains("37.0 MiB"), "{text}");
    assert!(lines[3].contains("memory 2.0 GiB of 4.0 GiB"), "{text}");
    assert!(lines[4].contains("bases 128 MiB, dedup images 10.0 MiB, agents 60.0 MiB"), "{text}");
    // 50 more requests in 2 seconds, no start among them.
    assert_eq!(
        lines[5], "requests 150 (25.0/s), restores 12 (0.0/s), clones 0 (0.0/s), cold 8 (0.0/s)",
        "{text}"
    );
    assert!(lines[6].contains("Sandboxes") && lines[6].contains("Events"), "{text}");
    assert!(lines[7].starts_with("SANDBOX   FUNCTION     NODE       STATE"), "{text}");
    assert!(lines[8].starts_with("sb-1-1    html         node-1     running   12s    40.0 MiB"), "{text}");
    // The newest event first, and the keys at the bottom.
    let live = lines.iter().position(|line| line.starts_with("live")).unwrap();
    assert!(
        lines[live + 1].starts_with("00:00:30.000 sb-1-30    asked    somebody asked for dedup"),
        "{text}"
    );
    assert!(lines[23].starts_with("q quit  tab table  / filter  ? help"), "{text}");
}

#[test]
fn more_room_shows_more_rows_and_events() {
    let rows = |lines: &[String]| lines.iter().filter(|line| line.starts_with("sb-")).count();
    let (small, large) = (shown(&model(), 80, 24), shown(&model(), 120, 40));
    assert!(rows(&large) > rows(&small) + 8, "{} and {}", rows(&large), rows(&small));
    let events = |lines: &[String]| lines.iter().filter(|line| line.contains("somebody asked")).count();
    assert!(events(&large) > events(&small), "{}", large.join("\n"));
}

#[test]
fn keys_change_the_table_choose_rows_filter_and_quit() {
    let mut model = model();
    press(&mut model, KeyCode::Tab);
    assert!(shown(&model, 80, 24)[7].starts_with("FUNCTION"));
    press(&mut model, KeyCode::Right);
    let nodes = shown(&model, 80, 24);
    assert!(nodes[8].starts_with("node-0") && nodes[8].contains("eBPF: no"), "{}", nodes.join("\n"));
    press(&mut model, KeyCode::BackTab);
    press(&mut model, KeyCode::Left);
    assert_eq!(model.tab, Tab::Sandboxes);
    // The last row is shown when it is chosen, and no row beyond it can be.
    press(&mut model, KeyCode::End);
    press(&mut model, KeyCode::Down);
    let text = shown(&model, 80, 24).join("\n");
    assert!(text.contains("sb-1-3 ") && model.row() == 38, "{text}");
    // A filter, typed.
    press(&mut model, KeyCode::Char('/'));
    for letter in "video".chars() {
        assert_eq!(press(&mut model, KeyCode::Char(letter)), Flow::Continue);
    }
    assert!(shown(&model, 80, 24)[23].starts_with("filter: video_"));
    press(&mut model, KeyCode::Enter);
    let lines = shown(&model, 80, 24);
    assert_eq!(lines.iter().filter(|line| line.starts_with("sb-")).count(), 1, "{}", lines.join("\n"));
    assert!(lines[23].contains("filter: video"), "{}", lines[23]);
    press(&mut model, KeyCode::Esc);
    assert_eq!(model.count(), 39);
    // Help over everything; a key closes it.
    press(&mut model, KeyCode::Char('?'));
    assert!(shown(&model, 80, 24).join("\n").contains("Rates are of the last 10 seconds"));
    assert_eq!(press(&mut model, KeyCode::Char('x')), Flow::Continue);
    assert!(!model.help);
    assert_eq!(press(&mut model, KeyCode::Char('q')), Flow::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(model.update(Duration::ZERO, Message::Key(interrupt)), Flow::Quit);
}

#[test]
fn what_was_lost_is_said_and_everything_kept_is_bounded() {
    let mut model = model();
    let event = model.events[0].clone();
    for _ in 0..1_000 {
        model.update(Duration::from_secs(5), Message::Item(Item::Event(event.clone())));
    }
    assert_eq!(model.events.len(), 500);
    model.update(Duration::from_secs(5), Message::Item(Item::Dropped(17)));
    assert!(shown(&model, 80, 24).join("\n").contains("live (17 not shown"));
    // A controller that begins anew has fewer requests than before: no rate is made of that.
    model.update(Duration::from_secs(6), Message::Looked(snapshot(20)));
    assert_eq!(model.rates(), super::super::model::Rates::default());
    for second in 7..100 {
        model.update(Duration::from_secs(second), Message::Looked(snapshot(20 + second)));
    }
    assert!((model.rates().requests - 1.0).abs() < 0.01, "{:?}", model.rates());
}

#[test]
fn a_very_small_terminal_does_not_break_it() {
    for (width, height) in [(1, 1), (20, 5), (80, 3), (300, 100)] {
        let mut model = model();
        shown(&model, width, height);
        model.help = true;
        shown(&model, width, height);
    }
}
