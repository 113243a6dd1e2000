//! Policies that start and end sandboxes in ways the fixed one does not.

use super::*;
use crate::policy::{FunctionView, GreedyDual, Hybrid, IdleLife, Policy, Review, SandboxView, Verdict, View};

const MINUTE: Duration = Duration::from_secs(60);

/// Nobody reports in these tests, and no node is given up for it.
fn quiet() -> Settings {
    Settings { silent_max: Duration::from_secs(1_000_000), ..Settings::default() }
}

#[test]
fn a_function_with_a_pattern_is_unloaded_and_loaded_before_its_next_request() {
    let (mut bench, node) = Bench::with_node(quiet());
    bench.driver.policy = Box::new(Hybrid);
    bench.warm(node);
    for request in 1..=11 {
        if request > 1 {
            bench.wait(MINUTE * 20);
        }
        assert!(bench.commands().is_empty(), "no pattern yet");
        bench.request(request);
        bench.answered(request);
        bench.clear();
    }
    // Ten idle times of twenty minutes: from 18 minutes on a sandbox should be there.
    bench.wait(SECOND);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Purge { .. }));
    bench.done(node, id, Ok(Success::default()));
    bench.wait(MINUTE * 17);
    assert!(bench.commands().is_empty());
    bench.wait(MINUTE);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Start { .. }));
    bench.succeed(node, id, &command);
    bench.wait(MINUTE);
    assert!(bench.commands().is_empty(), "it waits for its request");
    // Behind 1.1 times 21 minutes none is expected.
    bench.wait(MINUTE * 5);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Purge { .. }));
    bench.done(node, id, Ok(Success::default()));
    bench.wait(MINUTE * 600);
    assert!(bench.commands().is_empty(), "and it is not started again");
}

#[test]
fn of_two_functions_the_one_that_is_asked_for_more_often_stays() {
    let mut bench = Bench::new(quiet(), &[function("f"), function("g")]);
    bench.driver.policy = Box::new(GreedyDual);
    let of = |number, name| report(SandboxId::of(1, number).unwrap(), name, SandboxState::Warm);
    let holding = |used| Inventory {
        memory: NodeMemory { used_bytes: used * MIB, cap_bytes: 256 * MIB, ..NodeMemory::default() },
        sandboxes: vec![of(1, "f"), of(2, "g")],
        ..Inventory::default()
    };
    let node = bench.attach("n1", 1, holding(128));
    for function in bench.driver.functions.values_mut() {
        function.fresh.add(1.0);
    }
    for request in 1..=5 {
        bench.request_with(request, "f", None, 30);
        bench.answered(request);
    }
    bench.wait(MINUTE);
    bench.request_with(6, "g", None, 30);
    bench.answered(6);
    bench.clear();
    bench.beat(node, holding(300));
    let (_, command) = bench.command();
    assert_eq!(command.sandbox(), SandboxId::of(1, 2), "though it was used last");
    let clock = bench.driver.nodes.values().next().unwrap().clock;
    assert!((clock - 1.0 / 67.108_864).abs() < 1e-9, "one use, one second, 64 MiB: {clock}");
}

/// Wants a sandbox of a function back ten minutes after the last one had to go; one of `f` is worth 1, of `g` 2.
#[derive(Debug)]
struct Regular {
    new: f64,
}

impl Policy for Regular {
    fn name(&self) -> &'static str {
        "regular"
    }

    fn first_review(&self, _life: IdleLife) -> Duration {
        MINUTE * 1_000
    }

    fn review(&self, _view: &dyn View, _function: &FunctionView<'_>, _sandbox: &SandboxView) -> Review {
        let (verdict, again) = (Verdict::Keep, MINUTE * 1_000);
        Review { verdict, because: "as the test says", rejected: Vec::new(), again, prewarm: None }
    }

    fn worth(&self, _view: &dyn View, function: &FunctionName, _sandbox: &SandboxView) -> f64 {
        if function.as_str() == "f" { 1.0 } else { 2.0 }
    }

    fn back_after(&self, _view: &dyn View, _function: &FunctionView<'_>, price: f64) -> Option<Duration> {
        assert!(price > 0.0 && price <= 2.0, "what was ended for room: {price}");
        Some(MINUTE * 10)
    }

    fn worth_of_new(&self, _view: &dyn View, _function: &FunctionView<'_>) -> Option<f64> {
        Some(self.new)
    }
}

/// A node with room for one of two functions' sandboxes, of which that of `f` has just gone.
fn short_of_room(new: f64) -> (Bench, ConnectionId) {
    let mut bench = Bench::new(quiet(), &[function("f"), function("g")]);
    bench.driver.policy = Box::new(Regular { new });
    let of = |number, name| report(SandboxId::of(1, number).unwrap(), name, SandboxState::Warm);
    let inventory = |used: u64, sandboxes| Inventory {
        memory: NodeMemory { used_bytes: used * MIB, cap_bytes: 100 * MIB, ..NodeMemory::default() },
        sandboxes,
        ..Inventory::default()
    };
    let node = bench.attach("n1", 1, inventory(90, vec![of(1, "f"), of(2, "g")]));
    bench.clear();
    bench.beat(node, inventory(128, vec![of(1, "f"), of(2, "g")]));
    let (id, command) = bench.command();
    assert_eq!(command.sandbox(), SandboxId::of(1, 1), "it is worth least");
    bench.done(node, id, Ok(Success::default()));
    bench.beat(node, inventory(64, vec![of(2, "g")]));
    bench.clear();
    (bench, node)
}

#[test]
fn who_went_for_room_is_back_when_it_is_worth_more_than_another() {
    let (mut bench, node) = short_of_room(3.0);
    bench.wait(MINUTE * 9);
    assert!(bench.commands().is_empty());
    bench.wait(MINUTE);
    let (id, command) = bench.command();
    assert!(
        matches!(command, Command::Purge { .. }) && command.sandbox() == SandboxId::of(1, 2),
        "{command:?}"
    );
    bench.done(node, id, Ok(Success::default()));
    bench.wait(SECOND);
    let (id, command) = bench.command();
    assert!(
        matches!(&command, Command::Start { function, .. } if function.name.as_str() == "f"),
        "{command:?}"
    );
    bench.succeed(node, id, &command);
}

#[test]
fn nobody_who_is_worth_more_goes_for_one_that_nobody_asks_for() {
    let (mut bench, _) = short_of_room(1.5);
    for _ in 0..3 {
        bench.wait(MINUTE * 10);
        assert!(bench.commands().is_empty());
    }
    bench.request_with(1, "f", None, 30);
    assert!(matches!(bench.command().1, Command::Purge { .. }), "for a request, anybody goes");
}

#[test]
fn who_is_ended_for_room_counts_as_not_used_for_so_long() {
    let (mut bench, node) = Bench::with_node(quiet());
    let sandbox = bench.warm(node);
    bench.request(1);
    bench.answered(1);
    bench.wait(MINUTE * 5);
    bench.clear();
    let demand = |bench: &Bench| {
        let functions = bench.driver.functions.values();
        functions.map(|function| function.reuses.demand(Duration::ZERO)).sum::<f64>()
    };
    let before = demand(&bench);
    let memory = NodeMemory { used_bytes: 300 * MIB, cap_bytes: 256 * MIB, ..NodeMemory::default() };
    let sandboxes = vec![report(sandbox, "f", SandboxState::Warm)];
    bench.beat(node, Inventory { memory, sandboxes, ..Inventory::default() });
    assert!(matches!(bench.command().1, Command::Purge { .. }));
    assert!(demand(&bench) < before, "{} of {before}", demand(&bench));
}
