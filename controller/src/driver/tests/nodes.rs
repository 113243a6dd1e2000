//! Nodes: attach, heartbeat, silence, restart, contradiction.

use super::*;

fn holding(sandboxes: Vec<SandboxReport>) -> Inventory {
    Inventory { sandboxes, ..Inventory::default() }
}

fn purged_by_welcome(bench: &Bench) -> Vec<SandboxId> {
    let mut welcomes = bench.actions.iter().filter_map(|action| match action {
        Action::Welcome { purge, .. } => Some(purge.clone()),
        _ => None,
    });
    welcomes.next_back().unwrap()
}

#[test]
fn the_welcome_comes_first_and_names_what_nobody_wants() {
    let mut bench = Bench::new(Settings::default(), &[function("f")]);
    let id = |n| SandboxId::of(1, n).unwrap();
    let mut old = report(id(3), "f", SandboxState::Warm);
    old.function_revision = 0;
    let known = report(id(1), "f", SandboxState::Dedup);
    bench.attach("n1", 1, holding(vec![known, report(id(2), "gone", SandboxState::Warm), old]));
    assert!(matches!(bench.actions[0], Action::Welcome { .. }));
    assert_eq!(purged_by_welcome(&bench), [id(2)]);
    assert!(matches!(bench.command().1, Command::Purge { sandbox } if sandbox == id(3)));
    bench.request(1);
    assert!(matches!(bench.command().1, Command::Restore { sandbox, .. } if sandbox == id(1)));
}

#[test]
fn a_silent_node_is_lost_and_its_requests_are_answered() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.warm(node);
    let other = bench.attach("n2", 1, Inventory::default());
    bench.request(1);
    bench.clear();
    bench.wait(2 * SECOND);
    bench.beat(other, Inventory::default());
    assert!(bench.refused().is_empty());
    bench.wait(SECOND);
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::NodeLost("n1".parse().unwrap()))]);
    assert!(
        bench.actions.iter().any(|a| matches!(a, Action::Close { connection, .. } if *connection == node))
    );
    bench.clear();
    bench.request(2);
    let goes_to = bench.actions.iter().find_map(|action| match action {
        Action::Command { connection, .. } => Some(*connection),
        _ => None,
    });
    assert_eq!(goes_to, Some(other));
}

#[test]
fn a_controller_that_stood_still_blames_no_node() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.warm(node);
    bench.request(1);
    bench.clear();
    // Its own timers were due long ago: it was stopped, and what the node said meanwhile is not read yet.
    bench.wait(10 * SECOND);
    assert!(bench.refused().is_empty() && bench.driver.is_reachable(&"n1".parse().unwrap()));
    // Who says nothing from then on is given up as ever.
    bench.wait(3 * SECOND);
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::NodeLost("n1".parse().unwrap()))]);
}

#[test]
fn a_broken_stream_leaves_the_node_time_to_come_back() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(node);
    bench.request(1);
    bench.tell(Event::Detached { connection: node });
    bench.request(2);
    assert_eq!(bench.sent().len(), 1, "nothing is sent to a node that is away");
    let mut running = report(sandbox, "f", SandboxState::Running);
    running.open_requests = 1;
    let again = bench.attach("n1", 1, holding(vec![running]));
    assert!(bench.refused().is_empty());
    bench.answered(1);
    assert_eq!(bench.sent().len(), 2);
    assert_eq!(bench.sent()[1].1.sandbox, sandbox);
    bench.beat(again, holding(vec![report(sandbox, "f", SandboxState::Warm)]));
}

#[test]
fn a_restarted_agent_has_lost_everything() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.warm(node);
    let (_, base) = bench.base(node);
    bench.request(1);
    bench.clear();
    bench.attach("n1", 2, Inventory::default());
    assert_eq!(bench.refused().len(), 1);
    assert!(bench.actions.iter().any(|a| matches!(a, Action::ForgetSnapshot(id) if *id == base)));
    assert!(bench.driver.sandboxes.is_empty());
}

#[test]
fn a_second_hello_replaces_the_first_stream() {
    let (mut bench, old) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(old);
    let ticket = bench.ask(Operation::Dedup { sandbox, digest_memory: false });
    let (id, _) = bench.command();
    let new = bench.attach("n1", 1, holding(vec![report(sandbox, "f", SandboxState::Deduping)]));
    assert!(bench.answer_to(ticket).unwrap().is_err());
    let replaced = |a: &Action| matches!(a, Action::Close { connection, why: CloseReason::Replaced } if *connection == old);
    assert!(bench.actions.iter().any(replaced));
    // What the old stream still says means nothing.
    bench.done(old, id, Ok(Success::default()));
    bench.tell(Event::Detached { connection: old });
    assert!(bench.driver.is_reachable(&"n1".parse().unwrap()));
    bench.beat(new, holding(vec![report(sandbox, "f", SandboxState::Dedup)]));
    assert_eq!(bench.driver.sandboxes[&sandbox].life, state::Life::Dedup);
}

#[test]
fn one_report_that_crossed_a_command_is_not_believed_two_are() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(node);
    bench.beat(node, holding(Vec::new()));
    assert!(bench.driver.sandboxes.contains_key(&sandbox));
    bench.beat(node, holding(vec![report(sandbox, "f", SandboxState::Warm)]));
    bench.beat(node, holding(Vec::new()));
    assert!(bench.driver.sandboxes.contains_key(&sandbox));
    bench.beat(node, holding(Vec::new()));
    assert!(!bench.driver.sandboxes.contains_key(&sandbox));
}

#[test]
fn snapshots_of_a_node_that_is_away_are_hidden_and_come_back_with_it() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let (_, base) = bench.base(node);
    bench.tell(Event::Detached { connection: node });
    assert!(bench.actions.iter().any(|a| matches!(a, Action::HideSnapshot(id) if *id == base)));
    bench.wait(5 * SECOND);
    assert!(bench.driver.nodes.is_empty());
    assert!(!bench.actions.iter().any(|a| matches!(a, Action::ForgetSnapshot(_))));
    bench.clear();
    let inventory = Inventory { snapshots: vec![snapshot_report(base)], ..Inventory::default() };
    let node = bench.attach("n1", 1, inventory);
    assert!(
        bench
            .actions
            .iter()
            .any(|a| matches!(a, Action::PlaceSnapshot { snapshot, .. } if *snapshot == base))
    );
    bench.tell(Event::Detached { connection: node });
    bench.wait(5 * SECOND);
    bench.clear();
    bench.wait(Duration::from_secs(600));
    assert!(bench.actions.iter().any(|a| matches!(a, Action::ForgetSnapshot(id) if *id == base)));
    assert!(bench.driver.snapshots.is_empty());
}

#[test]
fn references_of_a_node_that_was_only_cut_off_are_remembered() {
    let mut bench = Bench::new(Settings::default(), &[function("f"), function("g")]);
    let holder = bench.attach("n1", 1, Inventory::default());
    let (source, base) = bench.base(holder);
    let mut refers = report(SandboxId::of(7, 1).unwrap(), "g", SandboxState::Dedup);
    refers.bases = vec![base];
    let other = bench.attach("n2", 1, holding(vec![refers.clone()]));
    bench.tell(Event::Detached { connection: other });
    let held = Inventory {
        sandboxes: vec![report(source, "f", SandboxState::Warm)],
        snapshots: vec![snapshot_report(base)],
        ..Inventory::default()
    };
    for _second in 0..5 {
        bench.now = bench.now.after(SECOND);
        bench.beat(holder, held.clone());
    }
    assert!(!bench.driver.sandboxes.contains_key(&refers.id));
    bench.clear();
    bench.tell(Event::Removed { function: "f".parse().unwrap() });
    let drops = |bench: &mut Bench| {
        bench.commands().iter().filter(|(_, c)| matches!(c, Command::DropSnapshot { .. })).count()
    };
    assert_eq!(drops(&mut bench), 0);
    bench.attach("n2", 1, holding(vec![refers]));
    assert_eq!(drops(&mut bench), 0);
    bench.attach("n2", 2, Inventory::default());
    assert_eq!(drops(&mut bench), 1);
}

#[test]
fn a_command_that_is_not_answered_ends() {
    let (mut bench, node) = Bench::with_node(Settings { attempts_max: 1, ..Settings::default() });
    bench.request_with(1, "f", None, 600);
    bench.command();
    for _second in 0..41 {
        bench.now = bench.now.after(SECOND);
        bench.beat(node, Inventory::default());
    }
    assert!(matches!(bench.refused()[..], [(_, Refusal::Failed(why))] if why.kind == FailureKind::Deadline));
    assert!(bench.actions.iter().any(|a| matches!(a, Action::Tell(told) if overdue(told))));
}

#[test]
fn a_sandbox_still_busy_with_a_request_nobody_here_knows_is_left_alone() {
    let mut bench = Bench::new(Settings::default(), &[function("f")]);
    let id = SandboxId::of(1, 1).unwrap();
    let mut running = report(id, "f", SandboxState::Running);
    running.open_requests = 1;
    let node = bench.attach("n1", 1, holding(vec![running]));
    bench.clear();
    bench.request(1);
    assert!(bench.sent().is_empty());
    assert!(matches!(bench.command().1, Command::Start { .. }));
    bench.beat(node, holding(vec![report(id, "f", SandboxState::Warm)]));
    assert_eq!(bench.sent()[0].1.sandbox, id, "its agent says that it has ended");
}

#[test]
fn a_sandbox_that_said_busy_is_not_asked_again_before_its_next_report() {
    let (mut bench, node) = Bench::with_node(Settings { avoid: Duration::ZERO, ..Settings::default() });
    let sandbox = bench.warm(node);
    bench.request(1);
    bench.end(1, RequestEnd::Failed(crash(FailureKind::Busy)));
    assert_eq!(bench.sent().len(), 1);
    assert!(matches!(bench.command().1, Command::Start { .. }));
    bench.beat(node, holding(vec![report(sandbox, "f", SandboxState::Warm)]));
    assert_eq!(bench.sent().len(), 2);
}
