//! Idle sandboxes, base snapshots, leases and references.

use super::*;
use medes_proto::registry::Acquire;

fn idle(bench: &mut Bench, connection: ConnectionId, sandbox: SandboxId, seconds: u64) {
    let idle = Duration::from_secs(seconds);
    bench.tell(Event::Idle { connection, sandbox, idle });
}

fn beat_with(bench: &mut Bench, node: ConnectionId, reports: &[SandboxReport], snapshots: &[SnapshotId]) {
    let snapshots = snapshots.iter().copied().map(snapshot_report).collect();
    let sandboxes = reports.to_vec();
    bench.beat(node, Inventory { sandboxes, snapshots, ..Inventory::default() });
}

/// Lets time pass while the node goes on reporting the same.
fn pass(
    bench: &mut Bench,
    node: ConnectionId,
    seconds: u64,
    reports: &[SandboxReport],
    bases: &[SnapshotId],
) {
    for _second in 0..seconds {
        bench.now = bench.now.after(SECOND);
        beat_with(bench, node, reports, bases);
    }
}

#[test]
fn the_first_idle_sandbox_becomes_base_and_then_dedup_like_the_others() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let (first, second) = (bench.warm(node), bench.warm(node));
    let warm = [report(first, "f", SandboxState::Warm), report(second, "f", SandboxState::Warm)];
    pass(&mut bench, node, 60, &warm, &[]);
    idle(&mut bench, node, first, 60);
    idle(&mut bench, node, second, 60);
    let (id, command) = bench.command();
    let Command::MakeBase { sandbox, snapshot, init: false } = command else { panic!("{command:?}") };
    assert_eq!(sandbox, first);
    assert!(bench.actions.iter().any(|a| matches!(a, Action::ExpectSnapshot(id) if *id == snapshot)));
    bench.succeed(node, id, &command);
    assert!(
        bench
            .actions
            .iter()
            .any(|a| matches!(a, Action::PlaceSnapshot { snapshot: placed, .. } if *placed == snapshot))
    );
    bench.clear();
    pass(&mut bench, node, 6, &warm, &[snapshot]);
    let commands = bench.commands();
    let dedups: BTreeSet<_> = commands.iter().filter_map(|(_, command)| command.sandbox()).collect();
    assert!(commands.iter().all(|(_, command)| matches!(command, Command::Dedup { .. })), "{commands:?}");
    assert_eq!(dedups, BTreeSet::from([first, second]));
}

#[test]
fn a_dedup_is_told_the_base_of_its_function_that_is_nearest() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let other = bench.attach("n2", 1, Inventory::default());
    let (_, far) = bench.base(other);
    let sandbox = bench.warm(node);
    let named = |bench: &mut Bench| {
        bench.clear();
        bench.driver.base_for(sandbox).map(|place| (place.snapshot, place.node.to_string()))
    };
    assert_eq!(named(&mut bench), Some((far, "n2".into())));
    let (_, near) = bench.base(node);
    assert_eq!(named(&mut bench), Some((near, "n1".into())));
    for snapshot in bench.driver.snapshots.values_mut() {
        snapshot.life = state::SnapshotLife::Dropping;
    }
    assert_eq!(named(&mut bench), None, "what goes away is not named");
}

#[test]
fn warm_sandboxes_end_after_keep_alive_and_dedup_ones_after_keep_dedup() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let (warm, asleep) = (bench.warm(node), bench.dedup(node, &[]));
    let reports = [report(warm, "f", SandboxState::Warm), report(asleep, "f", SandboxState::Dedup)];
    pass(&mut bench, node, 599, &reports, &[]);
    assert!(bench.commands().is_empty());
    pass(&mut bench, node, 1, &reports, &[]);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Purge { sandbox } if sandbox == warm));
    bench.succeed(node, id, &command);
    pass(&mut bench, node, 299, &reports[1..], &[]);
    assert!(bench.commands().is_empty());
    pass(&mut bench, node, 1, &reports[1..], &[]);
    assert!(matches!(bench.command().1, Command::Purge { sandbox } if sandbox == asleep));
}

#[test]
fn a_sandbox_that_cannot_be_dumped_is_left_alone_longer_each_time() {
    let keeping = Keeping { dump_pause: Duration::from_secs(100), ..Keeping::default() };
    let settings = Settings { keeping, ..Settings::default() };
    let (mut bench, node) = Bench::with_node(settings);
    let (source, base) = bench.base(node);
    let sandbox = bench.warm(node);
    let warm = [report(sandbox, "f", SandboxState::Warm), report(source, "f", SandboxState::Warm)];
    bench.request_with(1, "f", Some(source), 10_000);
    pass(&mut bench, node, 60, &warm, &[base]);
    bench.clear();
    for pause in [100, 200] {
        idle(&mut bench, node, sandbox, 60);
        let (id, command) = bench.command();
        assert!(matches!(command, Command::Dedup { .. }));
        bench.done(node, id, Err(crash(FailureKind::DumpRefused)));
        assert_eq!(bench.driver.sandboxes[&sandbox].life, state::Life::Warm);
        pass(&mut bench, node, pause - 1, &warm, &[base]);
        idle(&mut bench, node, sandbox, 200);
        assert!(bench.commands().is_empty(), "not within {pause} s");
        pass(&mut bench, node, 1, &warm, &[base]);
    }
}

#[test]
fn an_idle_report_that_is_out_of_date_means_nothing() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(node);
    pass(&mut bench, node, 60, &[report(sandbox, "f", SandboxState::Warm)], &[]);
    bench.request(1);
    idle(&mut bench, node, sandbox, 60);
    bench.answered(1);
    idle(&mut bench, node, sandbox, 60);
    assert!(bench.commands().is_empty());
}

#[test]
fn a_base_is_dropped_only_when_its_function_is_gone_and_nobody_refers_to_it() {
    let mut bench = Bench::new(Settings::default(), &[function("f"), function("g")]);
    let node = bench.attach("n1", 1, Inventory::default());
    let (source, base) = bench.base(node);
    // A sandbox of another function refers to it; another is about to.
    let other = |n, state| report(SandboxId::of(7, n).unwrap(), "g", state);
    let mut refers = other(1, SandboxState::Dedup);
    refers.bases = vec![base];
    let claims = other(2, SandboxState::Deduping);
    beat_with(
        &mut bench,
        node,
        &[report(source, "f", SandboxState::Warm), refers.clone(), claims.clone()],
        &[base],
    );
    bench.clear();
    let acquire = Acquire { sandbox: claims.id, snapshots: vec![base] };
    bench.tell(Event::Acquire { ticket: Ticket(100), acquire });
    assert!(matches!(bench.answer_to(Ticket(100)), Some(Ok(_))));
    bench.tell(Event::Removed { function: "f".parse().unwrap() });
    let (id, purge) = bench.command();
    assert!(matches!(purge, Command::Purge { sandbox } if sandbox == source));
    bench.succeed(node, id, &purge);
    assert!(bench.commands().is_empty());
    // The first reference goes, the lease stays.
    let mut restored = refers.clone();
    (restored.state, restored.bases) = (SandboxState::Warm, Vec::new());
    beat_with(&mut bench, node, &[restored.clone(), claims.clone()], &[base]);
    beat_with(&mut bench, node, &[restored.clone(), claims.clone()], &[base]);
    assert!(bench.commands().is_empty());
    // The dedup it was for failed: it is warm again and refers to nothing.
    let warm_again = other(2, SandboxState::Warm);
    beat_with(&mut bench, node, &[restored, warm_again], &[base]);
    let (id, drop) = bench.command();
    assert!(matches!(drop, Command::DropSnapshot { snapshot } if snapshot == base));
    assert!(bench.actions.iter().any(|a| matches!(a, Action::HideSnapshot(id) if *id == base)));
    let late = Acquire { sandbox: claims.id, snapshots: vec![base] };
    bench.tell(Event::Acquire { ticket: Ticket(101), acquire: late });
    assert!(matches!(bench.answer_to(Ticket(101)), Some(Err(_))));
    bench.done(node, id, Ok(Success::default()));
    assert!(bench.actions.iter().any(|a| matches!(a, Action::ForgetSnapshot(id) if *id == base)));
    assert!(bench.driver.snapshots.is_empty());
}

#[test]
fn a_lease_ends_with_the_report_that_shows_the_reference() {
    let mut bench = Bench::new(Settings::default(), &[function("f"), function("g")]);
    let node = bench.attach("n1", 1, Inventory::default());
    let (_, base) = bench.base(node);
    let sandbox = bench.warm(node);
    let ticket = bench.ask(Operation::Dedup { sandbox, digest_memory: true });
    let (id, _) = bench.command();
    bench.tell(Event::Acquire { ticket: Ticket(100), acquire: Acquire { sandbox, snapshots: vec![base] } });
    assert_eq!(bench.driver.referenced(), BTreeSet::from([base]));
    let mut after = report(sandbox, "f", SandboxState::Dedup);
    after.bases = vec![base];
    let success = Success { sandbox: Some(after), memory_digest: Some([7; 32]), ..Success::default() };
    bench.done(node, id, Ok(success));
    assert!(bench.driver.leases.is_empty());
    assert_eq!(bench.driver.referenced(), BTreeSet::from([base]));
    assert_eq!(bench.answer_to(ticket).unwrap().as_ref().unwrap().memory_digest, Some([7; 32]));
}

#[test]
fn a_base_that_could_not_be_made_is_forgotten() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(node);
    bench.ask(Operation::MakeBase(sandbox));
    let (id, _) = bench.command();
    bench.done(node, id, Err(crash(FailureKind::NoSpace)));
    assert!(bench.actions.iter().any(|a| matches!(a, Action::ForgetSnapshot(_))));
    assert!(bench.driver.snapshots.is_empty());
    bench.request(1);
    assert_eq!(bench.sent().len(), 1, "it is warm as before");
}

#[test]
fn operations_that_make_no_sense_now_are_refused_at_once() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let (warm, asleep) = (bench.warm(node), bench.dedup(node, &[]));
    let nobody = SandboxId::of(9, 9).unwrap();
    let cases = [
        (Operation::Dedup { sandbox: asleep, digest_memory: false }, FailureKind::Busy),
        (Operation::Restore { sandbox: warm, digest_memory: false }, FailureKind::Busy),
        (Operation::MakeBase(asleep), FailureKind::Busy),
        (Operation::Purge(nobody), FailureKind::NotFound),
        (Operation::Start { function: "g".parse().unwrap(), node: None, cold: false }, FailureKind::NotFound),
        (
            Operation::Start {
                function: "f".parse().unwrap(),
                node: Some("n9".parse().unwrap()),
                cold: false,
            },
            FailureKind::NotFound,
        ),
    ];
    for (operation, kind) in cases {
        let ticket = bench.ask(operation.clone());
        let answer = bench.answer_to(ticket).expect("an answer at once").as_ref();
        assert_eq!(answer.unwrap_err().kind, kind, "{operation:?}");
    }
    bench.ask(Operation::Purge(warm));
    let twice = bench.ask(Operation::Purge(warm));
    assert_eq!(bench.answer_to(twice).unwrap().as_ref().unwrap_err().kind, FailureKind::Busy);
}
