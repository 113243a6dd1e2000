//! Requests: warm reuse, refusals, failures during a request.

use super::*;

const MOMENT: Duration = Duration::from_millis(10);

#[test]
fn a_request_waits_for_a_cold_start_and_the_next_finds_the_sandbox_warm() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.request(1);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Start { .. }));
    bench.now = bench.now.after(SECOND);
    bench.succeed(node, id, &command);
    let (request, target) = bench.sent()[0];
    assert_eq!((request, target.start), (RequestId(1), StartKind::Cold));
    let phases: Vec<_> = target.phases.iter().map(|phase| (phase.name.as_str(), phase.took)).collect();
    assert_eq!(phases, [("queue", Duration::ZERO), ("cold", SECOND)]);
    assert_eq!(target.deadline, Duration::from_secs(29));
    bench.answered(1);
    bench.clear();
    bench.request(2);
    let (_, target) = bench.sent()[0];
    assert_eq!(target.start, StartKind::Warm);
    assert_eq!(Some(target.sandbox), command.sandbox());
}

#[test]
fn the_most_recently_used_sandbox_serves() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let first = bench.warm(node);
    bench.now = bench.now.after(MOMENT);
    let second = bench.warm(node);
    bench.now = bench.now.after(MOMENT);
    bench.request(1);
    assert_eq!(bench.sent()[0].1.sandbox, second);
    bench.request(2);
    assert_eq!(bench.sent()[1].1.sandbox, first);
    bench.now = bench.now.after(MOMENT);
    bench.answered(1);
    bench.now = bench.now.after(MOMENT);
    bench.answered(2);
    bench.clear();
    bench.request(3);
    assert_eq!(bench.sent()[0].1.sandbox, first);
}

#[test]
fn a_wish_for_a_sandbox_is_granted_warm_or_from_dedup() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let asleep = bench.dedup(node, &[]);
    let warm = bench.warm(node);
    let later = bench.warm(node);
    bench.now = bench.now.after(SECOND);
    bench.request_with(1, "f", Some(warm), 30);
    assert_eq!(bench.sent()[0].1.sandbox, warm);
    bench.answered(1);
    bench.clear();
    bench.request_with(2, "f", Some(asleep), 30);
    assert!(bench.sent().is_empty(), "{later} is free, but not what was asked for");
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Restore { sandbox, .. } if sandbox == asleep));
    bench.now = bench.now.after(MOMENT);
    bench.succeed(node, id, &command);
    let (_, target) = bench.sent()[0];
    assert_eq!((target.sandbox, target.start), (asleep, StartKind::Restore));
}

#[test]
fn a_wish_that_cannot_be_granted_is_only_a_wish() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let warm = bench.warm(node);
    let nobody = SandboxId::of(9, 9);
    bench.request_with(1, "f", nobody, 30);
    assert_eq!(bench.sent()[0].1.sandbox, warm);
}

#[test]
fn refusals_say_why() {
    let (mut bench, _node) = Bench::with_node(Settings { queue_max: 2, ..Settings::default() });
    bench.request_with(1, "nobody", None, 30);
    bench.request(2);
    bench.request(3);
    bench.request(4);
    let expected = [(RequestId(1), &Refusal::UnknownFunction), (RequestId(4), &Refusal::QueueFull)];
    assert_eq!(bench.refused(), expected);
    bench.clear();
    bench.wait(Duration::from_secs(30));
    let late = Refusal::Deadline { sent: false };
    assert_eq!(bench.refused(), [(RequestId(2), &late), (RequestId(3), &late)]);
    bench.clear();
    bench.tell(Event::Stop);
    bench.request(5);
    assert_eq!(bench.refused(), [(RequestId(5), &Refusal::Stopping)]);
}

#[test]
fn a_crash_is_the_callers_answer_and_the_end_of_the_sandbox() {
    for kind in [FailureKind::Crashed, FailureKind::OutOfMemory] {
        let (mut bench, node) = Bench::with_node(Settings::default());
        let sandbox = bench.warm(node);
        bench.request(1);
        bench.end(1, RequestEnd::Failed(crash(kind)));
        assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Failed(crash(kind)))]);
        let (id, command) = bench.command();
        assert!(matches!(command, Command::Purge { sandbox: purged } if purged == sandbox));
        bench.done(node, id, Err(crash(FailureKind::NotFound)));
        assert!(bench.driver.sandboxes.is_empty());
    }
}

#[test]
fn a_sandbox_that_is_gone_before_the_answer_answers_with_its_reason_once() {
    for end in [RequestEnd::Failed(crash(FailureKind::Crashed)), RequestEnd::Lost] {
        let (mut bench, node) = Bench::with_node(Settings::default());
        let sandbox = bench.warm(node);
        bench.request(1);
        bench.tell(Event::Gone { connection: node, sandbox, why: crash(FailureKind::OutOfMemory) });
        assert!(bench.refused().is_empty(), "whether it has seen the request is still to be told");
        bench.end(1, end);
        assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Failed(crash(FailureKind::OutOfMemory)))]);
        assert!(bench.driver.sandboxes.is_empty() && bench.driver.requests.is_empty());
    }
}

#[test]
fn a_request_that_its_sandbox_never_saw_goes_elsewhere_though_the_end_is_heard_of_first() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(node);
    bench.request(1);
    bench.clear();
    bench.tell(Event::Gone { connection: node, sandbox, why: crash(FailureKind::Crashed) });
    bench.end(1, RequestEnd::Failed(crash(FailureKind::NotFound)));
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Start { .. }), "{command:?}");
    bench.succeed(node, id, &command);
    let (sent, target) = bench.sent()[0];
    assert_eq!(sent, RequestId(1));
    assert_ne!(target.sandbox, sandbox);
    // What became of the first one is forgotten: the second has a reason of its own.
    bench.end(1, RequestEnd::Failed(crash(FailureKind::OutOfMemory)));
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Failed(crash(FailureKind::OutOfMemory)))]);
}

#[test]
fn a_request_whose_sandbox_is_gone_waits_no_longer_than_its_deadline() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(node);
    bench.request_with(1, "f", None, 2);
    bench.tell(Event::Gone { connection: node, sandbox, why: crash(FailureKind::Crashed) });
    bench.wait(2 * SECOND);
    bench.beat(node, Inventory::default());
    bench.wait(2 * SECOND);
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Deadline { sent: true })]);
}

#[test]
fn a_request_that_was_not_run_goes_elsewhere_but_not_for_ever() {
    let (mut bench, node) = Bench::with_node(Settings { attempts_max: 2, ..Settings::default() });
    let first = bench.warm(node);
    bench.request(1);
    bench.clear();
    bench.end(1, RequestEnd::Failed(crash(FailureKind::NotFound)));
    assert!(bench.refused().is_empty());
    let (id, command) = bench.command();
    assert_ne!(command.sandbox(), Some(first));
    bench.succeed(node, id, &command);
    assert_eq!(bench.sent()[0].0, RequestId(1));
    bench.end(1, RequestEnd::Failed(crash(FailureKind::NotFound)));
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Failed(crash(FailureKind::NotFound)))]);
}

#[test]
fn a_request_that_may_have_had_effects_is_never_sent_twice() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.warm(node);
    bench.request(1);
    bench.end(1, RequestEnd::Lost);
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::NodeLost("n1".parse().unwrap()))]);
    assert_eq!(bench.sent().len(), 1);
}

#[test]
fn a_sandbox_that_does_not_answer_in_time_is_purged() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.warm(node);
    bench.request_with(1, "f", None, 2);
    bench.wait(2 * SECOND);
    assert!(bench.refused().is_empty(), "the agent may still say so itself");
    bench.beat(node, Inventory::default());
    bench.wait(2 * SECOND);
    assert_eq!(bench.refused(), [(RequestId(1), &Refusal::Deadline { sent: true })]);
    assert!(matches!(bench.command().1, Command::Purge { .. }));
}

#[test]
fn a_withdrawn_request_is_not_sent() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.request(1);
    bench.tell(Event::Abandoned { request: RequestId(1) });
    let (id, command) = bench.command();
    bench.succeed(node, id, &command);
    assert!(bench.sent().is_empty() && bench.refused().is_empty());
    bench.request(2);
    bench.tell(Event::Abandoned { request: RequestId(2) });
    assert!(bench.driver.has_request(RequestId(2)), "it was sent: its end must be told");
}
