//! Starts: how many, where, and what a failed one leads to; eviction.

use super::*;

fn memory(used_mib: u64, cap_mib: u64) -> NodeMemory {
    NodeMemory { used_bytes: used_mib * MIB, cap_bytes: cap_mib * MIB, ..NodeMemory::default() }
}

fn holding(used_mib: u64, cap_mib: u64, sandboxes: Vec<SandboxReport>) -> Inventory {
    Inventory { memory: memory(used_mib, cap_mib), sandboxes, ..Inventory::default() }
}

#[test]
fn as_many_starts_as_requests_wait_and_no_more() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    for id in 1..=3 {
        bench.request(id);
    }
    let starts = bench.commands();
    assert_eq!(starts.len(), 3);
    bench.wait(SECOND);
    assert!(bench.commands().is_empty());
    for (id, command) in &starts {
        bench.succeed(node, *id, command);
    }
    assert_eq!(bench.sent().len(), 3);
}

#[test]
fn a_sandbox_for_several_requests_is_started_once_for_them() {
    let mut spec = function("f");
    spec.requests_max = 4;
    let mut bench = Bench::new(Settings::default(), &[spec]);
    let node = bench.attach("n1", 1, Inventory::default());
    bench.clear();
    for id in 1..=5 {
        bench.request(id);
    }
    let starts = bench.commands();
    assert_eq!(starts.len(), 2);
    bench.succeed(node, starts[0].0, &starts[0].1);
    assert_eq!(bench.sent().len(), 4);
    assert!(bench.sent().iter().all(|(_, target)| Some(target.sandbox) == starts[0].1.sandbox()));
}

#[test]
fn starts_per_node_and_sandboxes_per_function_are_bounded() {
    let settings = Settings { node_starts_max: 2, function_sandboxes_max: Some(3), ..Settings::default() };
    let (mut bench, node) = Bench::with_node(settings);
    for id in 1..=5 {
        bench.request(id);
    }
    let first = bench.commands();
    assert_eq!(first.len(), 2);
    for (id, command) in &first {
        bench.succeed(node, *id, command);
    }
    assert_eq!(bench.commands().len(), 1, "a third, and that is all this function may have");
    bench.answered(1);
    assert_eq!(bench.sent().len(), 3, "the next request gets the free sandbox");
}

#[test]
fn dedup_comes_before_cold() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let asleep = bench.dedup(node, &[]);
    bench.request(1);
    bench.request(2);
    let commands = bench.commands();
    assert!(matches!(commands[0].1, Command::Restore { sandbox, .. } if sandbox == asleep));
    assert!(matches!(commands[1].1, Command::Start { .. }));
}

#[test]
fn a_failed_restore_ends_in_a_cold_start_though_other_images_are_there() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.dedup(node, &[]);
    let latest = bench.dedup(node, &[]);
    bench.request(1);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Restore { sandbox, .. } if sandbox == latest));
    bench.done(node, id, Err(crash(FailureKind::Corrupt)));
    let commands = bench.commands();
    assert!(matches!(commands[0].1, Command::Purge { sandbox } if sandbox == latest), "{commands:?}");
    let (id, start) = &commands[1];
    assert!(matches!(start, Command::Start { .. }), "{commands:?}");
    assert!(bench.actions.iter().any(|action| matches!(
        action,
        Action::Tell(told) if matches!(&told.what, What::Error(trouble) if trouble.doing == "restore" && trouble.kind == FailureKind::Corrupt)
    )));
    bench.now = bench.now.after(SECOND);
    bench.succeed(node, *id, start);
    assert_eq!(bench.sent()[0].1.start, StartKind::Cold);
}

#[test]
fn a_node_without_room_for_a_restore_keeps_the_image() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let asleep = bench.dedup(node, &[]);
    bench.request(1);
    let (id, _) = bench.command();
    bench.done(node, id, Err(crash(FailureKind::NoSpace)));
    assert!(bench.commands().is_empty(), "the node is avoided for a moment");
    assert_eq!(bench.driver.sandboxes[&asleep].life, state::Life::Dedup);
    bench.beat(node, holding(0, 0, vec![report(asleep, "f", SandboxState::Dedup)]));
    for _second in 0..5 {
        bench.wait(SECOND);
        bench.beat(node, holding(0, 0, vec![report(asleep, "f", SandboxState::Dedup)]));
    }
    assert!(matches!(bench.command().1, Command::Start { .. }), "then the caller gets its cold start");
}

#[test]
fn a_broken_function_answers_each_request_after_one_start() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.request(1);
    bench.request(2);
    let starts = bench.commands();
    bench.done(node, starts[0].0, Err(crash(FailureKind::NeverReady)));
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Failed(crash(FailureKind::NeverReady)))]);
    bench.done(node, starts[1].0, Err(crash(FailureKind::CommandNotFound)));
    assert_eq!(bench.refused().len(), 2);
    assert!(bench.commands().is_empty());
    assert!(bench.driver.sandboxes.is_empty());
}

#[test]
fn a_start_that_fails_for_the_nodes_reasons_is_tried_on_another_node() {
    let (mut bench, first) = Bench::with_node(Settings::default());
    bench.request(1);
    let (id, _) = bench.command();
    let second = bench.attach("n2", 1, Inventory::default());
    bench.clear();
    bench.done(first, id, Err(crash(FailureKind::NoSpace)));
    let on_second = bench.actions.iter().any(|action| {
        matches!(action, Action::Command { connection, command: Command::Start { .. }, .. } if *connection == second)
    });
    assert!(on_second, "{:?}", bench.actions);
    assert!(bench.refused().is_empty());
}

#[test]
fn a_cold_start_goes_to_the_node_with_least_memory_used() {
    let mut bench = Bench::new(Settings::default(), &[function("f")]);
    bench.attach("n1", 1, holding(500, 2_000, Vec::new()));
    let idle = bench.attach("n2", 1, holding(400, 2_000, Vec::new()));
    bench.clear();
    let connections = |bench: &Bench| {
        let commands = bench.actions.iter().filter_map(|action| match action {
            Action::Command { connection, .. } => Some(connection.0),
            _ => None,
        });
        commands.collect::<Vec<_>>()
    };
    for id in 1..=4 {
        bench.request(id);
    }
    // 64 MiB are reserved by each: 400, 464, 528 against 500.
    assert_eq!(connections(&bench), [idle.0, idle.0, 1, idle.0]);
}

#[test]
fn memory_is_made_by_purging_the_least_recently_used_and_sources_of_bases_last() {
    let mut bench = Bench::new(Settings::default(), &[function("f"), function("g")]);
    let id = |n| SandboxId::of(1, n).unwrap();
    let aged = |n, seconds| {
        let mut report = report(id(n), "g", SandboxState::Warm);
        report.state_age = Duration::from_secs(seconds);
        report
    };
    let mut source = aged(1, 90);
    source.base_snapshot = SnapshotId::new(1);
    let mut running = aged(4, 80);
    (running.state, running.open_requests) = (SandboxState::Running, 1);
    let node = bench.attach("n1", 1, holding(256, 256, vec![source, aged(2, 10), aged(3, 20), running]));
    bench.clear();
    bench.request_with(1, "f", None, 30);
    let (command, purge) = bench.command();
    assert!(matches!(purge, Command::Purge { sandbox } if sandbox == id(3)), "{purge:?}");
    bench.wait(Duration::from_millis(100));
    assert!(bench.commands().is_empty(), "one purge is enough");
    bench.succeed(node, command, &purge);
    assert!(matches!(bench.command().1, Command::Start { .. }));
}

#[test]
fn nothing_is_purged_when_that_would_not_be_enough() {
    let mut bench = Bench::new(Settings::default(), &[function("f")]);
    let small = report(SandboxId::of(1, 1).unwrap(), "f", SandboxState::Dedup);
    bench.attach("n1", 1, holding(256, 256, vec![small]));
    bench.clear();
    bench.request(1);
    assert!(bench.commands().is_empty());
    bench.wait(Duration::from_secs(2));
    assert!(bench.commands().is_empty());
}

#[test]
fn a_report_over_the_cap_evicts() {
    let mut bench = Bench::new(Settings::default(), &[function("f")]);
    let reports: Vec<_> =
        (1..=3).map(|n| report(SandboxId::of(1, n).unwrap(), "f", SandboxState::Warm)).collect();
    let node = bench.attach("n1", 1, holding(100, 256, reports.clone()));
    bench.clear();
    bench.beat(node, holding(300, 256, reports));
    assert_eq!(bench.commands().len(), 1);
}

#[test]
fn after_a_restart_cold_starts_wait_until_nodes_had_time_to_connect() {
    let settings = Settings { settle: SECOND, incarnation: 2, ..Settings::default() };
    let mut bench = Bench::new(settings, &[function("f")]);
    bench.attach("n1", 1, Inventory::default());
    bench.clear();
    bench.request(1);
    assert!(bench.commands().is_empty());
    let known = report(SandboxId::of(1, 1).unwrap(), "f", SandboxState::Warm);
    bench.attach("n2", 7, holding(64, 0, vec![known]));
    assert_eq!(bench.sent()[0].1.sandbox, SandboxId::of(1, 1).unwrap());
    bench.request(2);
    assert!(bench.commands().is_empty());
    bench.wait(SECOND);
    assert!(matches!(bench.command().1, Command::Start { .. }));
}

#[test]
fn a_changed_function_is_served_by_new_sandboxes_only() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let (idle, busy) = (bench.warm(node), bench.warm(node));
    bench.request_with(1, "f", Some(busy), 30);
    bench.clear();
    bench.tell(Event::Applied { function: Box::new(function("f")), revision: 2 });
    let (_, command) = bench.command();
    assert!(matches!(command, Command::Purge { sandbox } if sandbox == idle));
    bench.request(2);
    assert!(matches!(bench.command().1, Command::Start { revision: 2, .. }));
    bench.answered(1);
    let (_, command) = bench.command();
    assert!(matches!(command, Command::Purge { sandbox } if sandbox == busy));
    assert!(bench.sent().is_empty());
}

#[test]
fn a_removed_function_leaves_nothing_behind() {
    let (mut bench, node) =
        Bench::with_node(Settings { function_sandboxes_max: Some(1), ..Settings::default() });
    bench.warm(node);
    bench.request(1);
    bench.request(2);
    bench.clear();
    bench.tell(Event::Removed { function: "f".parse().unwrap() });
    assert_eq!(bench.refused(), [(RequestId(2), &Refusal::UnknownFunction)]);
    bench.answered(1);
    let (id, command) = bench.command();
    bench.succeed(node, id, &command);
    assert!(bench.driver.sandboxes.is_empty() && bench.driver.by_function.is_empty());
}

/// A warm sandbox that is being parked, and a request that calls it back.
fn called_back() -> (Bench, ConnectionId, SandboxId, CommandId) {
    let (mut bench, node) = Bench::with_node(Settings {
        keeping: Keeping { park: true, ..Keeping::default() },
        ..Settings::default()
    });
    let sandbox = bench.warm(node);
    assert!(bench.driver.park(bench.now, sandbox, &mut bench.actions));
    let (park, command) = bench.command();
    assert!(matches!(command, Command::Park { .. }));
    bench.clear();
    bench.request(1);
    let (cancel, command) = bench.command();
    assert!(matches!(command, Command::CancelPark { sandbox: wanted } if wanted == sandbox), "{command:?}");
    bench.clear();
    // Its answer says nothing, and nothing else is started for the same request meanwhile.
    bench.done(node, cancel, Ok(Success::default()));
    bench.wait(SECOND);
    assert!(bench.commands().is_empty() && bench.sent().is_empty());
    (bench, node, sandbox, park)
}

#[test]
fn a_request_calls_back_a_sandbox_that_is_being_parked() {
    let (mut bench, node, sandbox, park) = called_back();
    bench.done(node, park, Err(crash(FailureKind::Cancelled)));
    assert!(matches!(bench.sent()[..], [(RequestId(1), target)] if target.sandbox == sandbox));
    let held = &bench.driver.sandboxes[&sandbox];
    assert_eq!((held.dump_blocked_until, held.dump_failures), (None, 0), "we asked for it");
}

#[test]
fn one_that_was_called_back_too_late_is_unparked() {
    let (mut bench, node, sandbox, park) = called_back();
    let parked = Success { sandbox: Some(report(sandbox, "f", SandboxState::Parked)), ..Success::default() };
    bench.done(node, park, Ok(parked));
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Restore { .. }), "{command:?}");
    bench.succeed(node, id, &command);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn a_second_request_does_not_wait_for_the_sandbox_that_the_first_one_called_back() {
    let (mut bench, ..) = called_back();
    bench.request(2);
    let (_, command) = bench.command();
    assert!(matches!(command, Command::Start { .. }), "{command:?}");
}

#[test]
fn what_is_left_of_a_parked_sandbox_says_nothing_of_what_it_takes() {
    let (mut bench, node) = Bench::with_node(Settings {
        keeping: Keeping { park: true, ..Keeping::default() },
        ..Settings::default()
    });
    let sandbox = bench.warm(node);
    let warm_bytes = bench.driver.sandboxes[&sandbox].report.private_bytes;
    assert!(bench.driver.park(bench.now, sandbox, &mut bench.actions));
    let (park, _) = bench.command();
    let parked = SandboxReport {
        private_bytes: MIB / 4,
        stored_bytes: 2 * MIB,
        ..report(sandbox, "f", SandboxState::Parked)
    };
    bench.done(node, park, Ok(Success { sandbox: Some(parked), ..Success::default() }));
    let view = bench.driver.sandboxes[&sandbox].view(bench.now).unwrap();
    assert_eq!((view.private_bytes, view.stored_bytes), (warm_bytes, 2 * MIB + MIB / 4));
}
