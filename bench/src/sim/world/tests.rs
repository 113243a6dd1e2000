//! Small clusters of which it is known what must come of them.

use medes_controller::{
    driver::Keeping,
    policy::{PolicyKind, PolicySettings},
};
use medes_load::trace::TraceFunction;

use super::*;
use crate::model::tests::{model, plain};

/// One request of each function in every minute but the last ten.
fn trace(functions: usize, minutes: usize) -> Trace {
    let mut counts = vec![1; minutes];
    counts.extend([0; 10]);
    let execution = Duration::from_millis(20);
    let function = |number| TraceFunction { name: format!("{number}"), execution, counts: counts.clone() };
    Trace { functions: (0..functions).map(function).collect() }
}

fn settings(kind: PolicyKind, node_bytes: u64) -> Settings {
    Settings {
        nodes: 2,
        node_bytes,
        empty_bytes: 0,
        seed: 3,
        speedup: 1.0,
        lead: Duration::ZERO,
        execution: Execution::OfTrace,
        heartbeat: Duration::from_secs(5),
        warm_up: 0,
        init_snapshots: false,
        base_copies: 1,
        policy: PolicySettings { kind, ..PolicySettings::default() },
        keeping: Keeping::default(),
        trouble: Trouble::default(),
    }
}

fn run(functions: usize, minutes: usize, settings: Settings) -> Outcome {
    World::new(&trace(functions, minutes), &model(), settings).run().unwrap()
}

#[test]
fn with_room_for_all_only_the_first_request_of_each_is_cold() {
    let outcome = run(5, 30, settings(PolicyKind::NeverUnload, 1 << 30));
    assert_eq!((outcome.requests(), outcome.cold, outcome.refused), (150, 5, 0));
    assert_eq!(outcome.bytes.last(), Some(&(5 * 9_000_000)));
    assert_eq!(outcome.over_bytes_max, 0);
    // A cold start takes 60 ms, a request 20, and the way there and back 1 each.
    assert_eq!((outcome.waits.percentiles().max_ms, outcome.answers.percentiles().p50_ms), (60.0, 20.0));
}

#[test]
fn the_same_seed_gives_the_same_cluster() {
    let with = |seed| {
        let trouble = Trouble { failures_per_day: 20.0, lost_share: 0.001, ..Trouble::default() };
        let settings = Settings { seed, trouble, ..settings(PolicyKind::Fixed, 60_000_000) };
        let outcome = run(20, 30, settings);
        (outcome.cold, outcome.restored, outcome.warm, outcome.events, outcome.bytes)
    };
    assert_eq!(with(1), with(1));
    assert_ne!(with(1), with(2));
}

#[test]
fn idle_sandboxes_are_deduplicated_and_come_back() {
    let outcome = run(5, 60, settings(PolicyKind::Fixed, 1 << 30));
    assert!(outcome.bases >= 5 && outcome.dedups > 0 && outcome.restored > 0, "{outcome:?}");
    assert_eq!((outcome.requests(), outcome.inits, outcome.cloned), (300, 0, 0));
}

#[test]
fn new_sandboxes_are_clones_once_there_is_an_init_snapshot() {
    let mut keeping = settings(PolicyKind::Fixed, 1 << 30);
    keeping.init_snapshots = true;
    keeping.policy.periods.keep_alive = Duration::from_secs(30);
    let outcome = run(5, 60, keeping);
    assert_eq!((outcome.cold, outcome.inits, outcome.bases), (5, 5, 0), "one of each is enough");
    assert!(outcome.cloned > 100, "{outcome:?}");
    assert_eq!(outcome.requests(), 300);
}

#[test]
fn parked_sandboxes_are_back_at_once_and_later_deduplicated() {
    let mut parking = settings(PolicyKind::Fixed, 1 << 30);
    parking.init_snapshots = true;
    parking.keeping.park = true;
    parking.keeping.idle = Duration::from_secs(10);
    parking.policy.periods.idle = Duration::from_secs(10);
    let outcome = run(5, 60, parking);
    assert!(outcome.parks > 100 && outcome.unparked > 100 && outcome.dedups >= 5, "{outcome:?}");
    assert!(outcome.answers.percentiles().p50_ms < 40.0, "an unpark is 1 ms, and 10 in the request");
    assert_eq!(outcome.requests(), 300);
}

#[test]
fn a_base_is_copied_and_outlives_the_node_it_was_made_on() {
    let mut copying = settings(PolicyKind::Fixed, 1 << 30);
    (copying.init_snapshots, copying.base_copies) = (true, 2);
    let outcome = run(3, 30, copying);
    assert_eq!(outcome.copies, 3);
    copying.trouble.failures_per_day = 50.0;
    let outcome = run(3, 60, copying);
    assert!(outcome.failures > 2 && outcome.copies > 3, "{outcome:?}");
    assert_eq!(outcome.requests() + outcome.refused, 180);
}

#[test]
fn every_policy_keeps_nodes_within_their_memory() {
    for kind in PolicyKind::ALL {
        for park in [false, true] {
            let mut settings = settings(kind, 60_000_000);
            (settings.init_snapshots, settings.keeping.park) = (park, park);
            let outcome = run(20, 30, settings);
            assert_eq!(outcome.requests() + outcome.refused, 600, "{kind}");
            assert!(outcome.purges > 0, "{kind}: not all fit");
            // A base, and what is only known at the next report.
            assert!(outcome.over_bytes_max <= 18_000_000, "{kind}: {}", outcome.over_bytes_max);
        }
    }
}

#[test]
fn whatever_goes_wrong_every_request_has_one_answer() {
    let mut seen = Outcome::default();
    for (seed, kind) in (0..).zip(PolicyKind::ALL.into_iter().cycle().take(14)) {
        let trouble =
            Trouble { failures_per_day: 100.0, slow_share: 0.5, lost_share: 0.02, ..Trouble::default() };
        let mut settings = Settings { seed, nodes: 3, trouble, ..settings(kind, 60_000_000) };
        (settings.init_snapshots, settings.base_copies) = (seed % 2 == 0, 2);
        settings.keeping.park = seed % 3 == 0;
        let outcome = run(20, 30, settings);
        assert_eq!(outcome.requests() + outcome.refused, 600, "{kind}, seed {seed}");
        seen.refused += outcome.refused;
        seen.failures += outcome.failures;
        seen.lost += outcome.lost;
        seen.copies += outcome.copies;
        seen.cloned += outcome.cloned;
        seen.parks += outcome.parks;
    }
    let Outcome { refused, failures, lost, copies, cloned, parks, .. } = seen;
    // A simulation in which nothing goes wrong proves nothing.
    assert!(failures > 20 && lost > 200 && refused > 20, "{failures} {lost} {refused}");
    assert!(copies > 10 && cloned > 10 && parks > 10, "{copies} {cloned} {parks}");
}

#[test]
fn everything_takes_longer_on_a_slow_node() {
    let mut slow = settings(PolicyKind::NeverUnload, 1 << 30);
    (slow.nodes, slow.trouble.slow_share, slow.trouble.slow_factor) = (1, 1.0, 3.0);
    let outcome = run(1, 10, slow);
    assert_eq!((outcome.waits.percentiles().max_ms, outcome.answers.percentiles().p50_ms), (180.0, 60.0));
}

#[test]
fn requests_may_take_as_long_as_those_that_were_measured() {
    let mut own = settings(PolicyKind::NeverUnload, 1 << 30);
    own.execution = Execution::OfModel;
    let trace = trace(1, 10);
    let mut model = model();
    model.functions[0] =
        crate::model::FunctionModel { request_ms: crate::model::Samples::of([7.0]), ..plain() };
    let outcome = World::new(&trace, &model, own).run().unwrap();
    assert_eq!(outcome.answers.percentiles().p50_ms, 7.0);
}
