//! Init snapshots and clones.

use super::*;

fn on() -> Settings {
    Settings { init_snapshots: true, silent_max: 3600 * SECOND, ..Settings::default() }
}

/// The first request of `f` has a sandbox started, whose state is kept before it is served.
fn first(bench: &mut Bench, node: ConnectionId) -> (SandboxId, SnapshotId) {
    bench.request(1);
    let (id, start) = bench.command();
    assert!(matches!(start, Command::Start { clone_of: None, .. }), "there is nothing to clone yet");
    bench.wait(SECOND);
    bench.succeed(node, id, &start);
    assert!(bench.sent().is_empty(), "a request would be in what others are made of");
    let (id, make) = bench.command();
    let Command::MakeBase { sandbox, snapshot, init: true } = make else { panic!("{make:?}") };
    assert_eq!(Some(sandbox), start.sandbox());
    bench.succeed(node, id, &make);
    assert_eq!(bench.sent()[0].1.start, StartKind::Cold);
    bench.clear();
    (sandbox, snapshot)
}

fn source(command: &Command) -> Option<SnapshotId> {
    match command {
        Command::Start { clone_of, .. } => clone_of.as_ref().map(|place| place.snapshot),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_first_start_is_kept_and_the_next_ones_are_clones_of_it() {
    let (mut bench, node) = Bench::with_node(on());
    let (_, snapshot) = first(&mut bench, node);
    for request in 2..=3 {
        bench.request(request);
        let (id, start) = bench.command();
        assert_eq!(source(&start), Some(snapshot));
        assert_eq!(bench.driver.leases[&start.sandbox().unwrap()].len(), 1, "it must not be dropped now");
        bench.wait(SECOND);
        bench.succeed(node, id, &start);
        assert_eq!(bench.sent().last().unwrap().1.start, StartKind::Clone);
        assert!(bench.commands().is_empty(), "one init snapshot is enough");
    }
    assert!(bench.driver.leases.is_empty());
    let rows = bench.driver.function_rows();
    assert_eq!((rows[0].cold_starts, rows[0].clones, rows[0].bases), (1, 2, 1));
}

#[test]
fn a_function_that_is_applied_is_started_for_its_snapshot() {
    let (mut bench, node) = Bench::with_node(on());
    bench.tell(Event::Applied { function: Box::new(function("new")), revision: 1 });
    bench.wait(SECOND);
    let (id, start) = bench.command();
    let Command::Start { sandbox, clone_of: None, .. } = start else { panic!("{start:?}") };
    let warm = Success { sandbox: Some(report(sandbox, "new", SandboxState::Warm)), ..Success::default() };
    bench.done(node, id, Ok(warm));
    assert!(matches!(bench.command().1, Command::MakeBase { init: true, .. }));

    let mut cold = function("cold");
    cold.start = medes_proto::function::StartMode::Cold;
    bench.tell(Event::Applied { function: Box::new(cold), revision: 1 });
    bench.wait(SECOND);
    assert!(bench.commands().is_empty(), "nobody would be a clone of it");
}

#[test]
fn a_clone_that_fails_is_followed_by_a_cold_start_and_by_no_other_clone() {
    let (mut bench, node) = Bench::with_node(on());
    first(&mut bench, node);
    bench.request(2);
    let (id, start) = bench.command();
    assert!(source(&start).is_some());
    bench.done(node, id, Err(crash(FailureKind::Corrupt)));
    let (id, start) = bench.command();
    assert_eq!(source(&start), None);
    bench.wait(SECOND);
    bench.succeed(node, id, &start);
    assert_eq!(bench.sent()[0].1.start, StartKind::Cold);
    assert!(bench.refused().is_empty());
    bench.request(3);
    assert_eq!(source(&bench.command().1), None);
}

#[test]
fn a_clone_that_found_no_room_says_nothing_of_its_snapshot() {
    let mut bench = Bench::new(on(), &[function("f")]);
    let node = bench.attach("n1", 1, Inventory::default());
    bench.clear();
    let (_, snapshot) = first(&mut bench, node);
    let other = bench.attach("n2", 1, Inventory::default());
    bench.clear();
    bench.request(2);
    let (id, start) = bench.command();
    assert_eq!(source(&start), Some(snapshot));
    bench.done(node, id, Err(crash(FailureKind::NoSpace)));
    let (id, start) = bench.command();
    assert_eq!(source(&start), None, "the caller has waited enough for clones");
    bench.succeed(other, id, &start);
    bench.request(3);
    assert_eq!(source(&bench.command().1), Some(snapshot));
}

#[test]
fn a_function_that_refuses_clones_gets_none_but_its_base_holds_no_request() {
    let mut spec = function("f");
    spec.start = medes_proto::function::StartMode::Cold;
    let mut bench = Bench::new(on(), &[spec]);
    let node = bench.attach("n1", 1, Inventory::default());
    bench.clear();
    first(&mut bench, node);
    bench.request(2);
    assert_eq!(source(&bench.command().1), None);
}

#[test]
fn a_program_that_cannot_be_cloned_is_started_from_nothing() {
    let (mut bench, node) = Bench::with_node(on());
    bench.request(1);
    let (id, start) = bench.command();
    bench.succeed(node, id, &start);
    let (id, make) = bench.command();
    let Command::MakeBase { snapshot, .. } = make else { panic!("{make:?}") };
    let init = Some(InitState { revision: 1, clonable: false });
    let success = Success {
        sandbox: Some(report(make.sandbox().unwrap(), "f", SandboxState::Warm)),
        snapshot: Some(SnapshotReport { init, ..snapshot_report(snapshot) }),
        ..Success::default()
    };
    bench.done(node, id, Ok(success));
    bench.request(2);
    let (id, start) = bench.command();
    assert_eq!(source(&start), None);
    bench.succeed(node, id, &start);
    assert!(bench.commands().is_empty(), "and it is not asked again");
}

#[test]
fn what_did_not_come_about_is_not_tried_again_at_once() {
    let keeping = Keeping { dump_pause: 2 * SECOND, ..Keeping::default() };
    let (mut bench, node) = Bench::with_node(Settings { keeping, ..on() });
    bench.request(1);
    let (id, start) = bench.command();
    bench.succeed(node, id, &start);
    let (id, _) = bench.command();
    bench.done(node, id, Err(crash(FailureKind::DumpRefused)));
    assert_eq!(bench.sent().len(), 1, "the sandbox is warm all the same");
    bench.request(2);
    let (id, start) = bench.command();
    bench.succeed(node, id, &start);
    assert!(bench.commands().is_empty());
    bench.wait(2 * SECOND);
    bench.request(3);
    let (id, start) = bench.command();
    bench.succeed(node, id, &start);
    assert!(matches!(bench.command().1, Command::MakeBase { init: true, .. }));
}

#[test]
fn a_new_text_has_a_new_snapshot_and_the_old_one_goes() {
    let (mut bench, node) = Bench::with_node(on());
    let (_, old) = first(&mut bench, node);
    bench.tell(Event::Applied { function: Box::new(function("f")), revision: 2 });
    let dropped = bench.commands().into_iter().find_map(|(_, command)| match command {
        Command::DropSnapshot { snapshot } => Some(snapshot),
        _ => None,
    });
    assert_eq!(dropped, Some(old));
    bench.clear();
    bench.wait(SECOND);
    bench.request(2);
    let start = bench.commands().into_iter().find(|(_, command)| matches!(command, Command::Start { .. }));
    assert_eq!(start.and_then(|(_, start)| source(&start)), None);
}

#[test]
fn no_policy_makes_a_base_of_a_sandbox_that_has_served() {
    let (mut bench, node) = Bench::with_node(on());
    bench.driver.policy =
        Box::new(Fixed(FixedSettings { dedup: true, dedups_per_base: 1, ..FixedSettings::default() }));
    bench.request(1);
    let (id, start) = bench.command();
    bench.succeed(node, id, &start);
    let (id, _) = bench.command();
    bench.done(node, id, Err(crash(FailureKind::DumpRefused)));
    bench.answered(1);
    let sandbox = start.sandbox().unwrap();
    bench.driver.sandboxes.get_mut(&sandbox).unwrap().dump_blocked_until = None;
    bench.wait(60 * SECOND);
    bench.commands();
    bench.driver.sandboxes.get_mut(&sandbox).unwrap().review_at = None;
    bench.tell(Event::Idle { connection: node, sandbox, idle: 60 * SECOND });
    assert!(matches!(bench.command().1, Command::Dedup { .. }), "without a base, as there is none");
}

#[test]
fn a_full_node_lets_the_snapshot_go_that_was_asked_for_longest_ago() {
    let (mut bench, node) = Bench::with_node(on());
    let (sandbox, snapshot) = first(&mut bench, node);
    bench.answered(1);
    let full = |used| Inventory {
        memory: NodeMemory { used_bytes: used * MIB, cap_bytes: 1000 * MIB, ..NodeMemory::default() },
        sandboxes: vec![report(sandbox, "f", SandboxState::Warm)],
        snapshots: vec![SnapshotReport {
            init: Some(InitState { revision: 1, clonable: true }),
            ..snapshot_report(snapshot)
        }],
        ..Inventory::default()
    };
    bench.beat(node, full(890));
    assert!(bench.commands().is_empty());
    bench.beat(node, full(910));
    let dropped = |(_, command): &(_, Command)| matches!(command, Command::DropSnapshot { .. });
    assert!(bench.commands().iter().any(dropped));
}

#[test]
fn a_base_that_a_dedup_under_way_was_given_stays() {
    for park in [false, true] {
        let settings = Settings { keeping: Keeping { park, ..Keeping::default() }, ..on() };
        let (mut bench, node) = Bench::with_node(settings);
        let (sandbox, snapshot) = first(&mut bench, node);
        bench.answered(1);
        bench.wait(60 * SECOND);
        bench.tell(Event::Idle { connection: node, sandbox, idle: 60 * SECOND });
        let (id, dedup) = bench.command();
        let base = match &dedup {
            Command::Dedup { base, .. } | Command::Park { base, .. } => base.as_ref(),
            other => panic!("{other:?}"),
        };
        assert_eq!(base.map(|place| place.snapshot), Some(snapshot));
        // Its agent claims it when it knows what the image refers to. The node fills up before.
        bench.beat(node, held_full(sandbox, snapshot));
        assert!(bench.commands().is_empty(), "{dedup:?}");
        bench.done(node, id, Err(crash(FailureKind::DumpRefused)));
        bench.wait(60 * SECOND);
        bench.beat(node, held_full(sandbox, snapshot));
        let dropped = |(_, command): &(_, Command)| matches!(command, Command::DropSnapshot { .. });
        assert!(bench.commands().iter().any(dropped), "nothing came of it");
    }
}

fn held_full(sandbox: SandboxId, snapshot: SnapshotId) -> Inventory {
    Inventory {
        memory: NodeMemory { used_bytes: 910 * MIB, cap_bytes: 1000 * MIB, ..NodeMemory::default() },
        sandboxes: vec![report(sandbox, "f", SandboxState::Warm)],
        snapshots: vec![SnapshotReport {
            init: Some(InitState { revision: 1, clonable: true }),
            ..snapshot_report(snapshot)
        }],
        ..Inventory::default()
    }
}

#[test]
fn init_snapshots_of_a_node_have_their_part_of_its_memory_and_no_more() {
    // A sandbox has 64 MiB, and their part of a node of 1,000 MiB is 120.
    for (held, is_made) in [(56, true), (57, false)] {
        let (mut bench, node) = Bench::with_node(on());
        let (sandbox, snapshot) = first(&mut bench, node);
        bench.answered(1);
        let memory = NodeMemory { used_bytes: 200 * MIB, cap_bytes: 1000 * MIB, ..NodeMemory::default() };
        bench.beat(node, Inventory { memory, ..held_full(sandbox, snapshot) });
        bench.driver.snapshots.get_mut(&snapshot).unwrap().report.bytes = held * MIB;
        bench.clear();
        bench.tell(Event::Applied { function: Box::new(function("new")), revision: 1 });
        bench.wait(SECOND);
        let (id, start) = bench.command();
        let warm = report(start.sandbox().unwrap(), "new", SandboxState::Warm);
        bench.done(node, id, Ok(Success { sandbox: Some(warm), ..Success::default() }));
        let made = |(_, command): &(_, Command)| matches!(command, Command::MakeBase { init: true, .. });
        assert_eq!(bench.commands().iter().any(made), is_made, "{held} MiB are held");
    }
}

#[test]
fn none_is_made_where_somebody_was_ended_for_room_lately() {
    for (seconds, is_made) in [(590, false), (600, true)] {
        let (mut bench, node) = Bench::with_node(on());
        let now = bench.now;
        bench.driver.nodes.values_mut().for_each(|node| node.price.pay(now, 1.0));
        bench.wait(seconds * SECOND);
        bench.tell(Event::Applied { function: Box::new(function("new")), revision: 1 });
        bench.wait(Duration::ZERO);
        let (id, start) = bench.command();
        let warm = report(start.sandbox().unwrap(), "new", SandboxState::Warm);
        bench.done(node, id, Ok(Success { sandbox: Some(warm), ..Success::default() }));
        let made = |(_, command): &(_, Command)| matches!(command, Command::MakeBase { init: true, .. });
        assert_eq!(bench.commands().iter().any(made), is_made, "after {seconds} s");
    }
}

#[test]
fn a_policy_sees_what_new_sandboxes_took_however_they_were_made() {
    let (mut bench, node) = Bench::with_node(on());
    first(&mut bench, node);
    let seen = |bench: &Bench| {
        let view = bench.driver.function_view(&"f".parse().unwrap()).unwrap();
        view.cold_start.unwrap()
    };
    assert_eq!(seen(&bench), SECOND);
    bench.request(2);
    let (id, start) = bench.command();
    assert!(source(&start).is_some());
    bench.wait(SECOND / 5);
    bench.succeed(node, id, &start);
    // An eighth of the way from 1 s to 0.2 s: the snapshot may be gone when the next one is wanted.
    assert_eq!(seen(&bench), SECOND * 9 / 10);
}
