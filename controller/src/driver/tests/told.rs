//! What the driver tells: every change of state is told once, with the decision behind it, and decisions with
//! what was rejected.

use medes_proto::trace::{Cause, Choice, EventId, StateChange, TraceKind};

use super::*;

impl Bench {
    fn told(&self) -> Vec<&Told> {
        let told = self.actions.iter().filter_map(|action| match action {
            Action::Tell(told) => Some(&**told),
            _ => None,
        });
        told.collect()
    }

    fn changes(&self) -> Vec<(EventId, StateChange)> {
        let changes = self.told().into_iter().filter_map(|told| match told.what {
            What::State(change) => Some((told.id, change)),
            _ => None,
        });
        changes.collect()
    }

    fn choice(&self, kind: TraceKind) -> (EventId, Choice) {
        let mut choices = self.told().into_iter().filter_map(|told| match &told.what {
            What::Review(choice) | What::Start(choice) | What::Eviction(choice)
                if told.what.kind() == kind =>
            {
                Some((told.id, choice.clone()))
            }
            _ => None,
        });
        choices.next_back().expect("a choice")
    }
}

fn rejected<'a>(choice: &'a Choice, name: &str) -> &'a str {
    let option = choice.rejected.iter().find(|option| option.name == name);
    &option.unwrap_or_else(|| panic!("{name} is not rejected in {choice:?}")).reason
}

#[test]
fn a_life_is_told_in_order_with_the_decision_behind_each_change() {
    let (mut bench, connection) = Bench::with_node(Settings::default());
    let (_, snapshot) = bench.base(connection);
    bench.request(1);
    bench.answered(1);
    bench.clear();
    let sandbox = bench.dedup(connection, &[snapshot]);
    // `dedup` throws away what was told; from here on all is looked at.
    bench.request_with(2, "f", Some(sandbox), 30);
    let (id, command) = bench.command();
    bench.succeed(connection, id, &command);
    let (decision, start) = bench.choice(TraceKind::Start);
    assert_eq!(start.chosen.name, format!("restore {sandbox}"));
    assert_eq!(rejected(&start, "cold"), "a restore comes before a cold start");
    assert!(start.rejected.iter().any(|option| option.name == "warm"), "{start:?}");
    let states: Vec<_> = bench.changes().iter().map(|(_, c)| (c.from, c.to, c.cause, c.decision)).collect();
    use SandboxState::{Dedup, Restoring, Warm};
    assert_eq!(
        states,
        [
            (Some(Dedup), Some(Restoring), Cause::Decided, Some(decision)),
            (Some(Restoring), Some(Warm), Cause::Done, Some(decision)),
        ]
    );
    let ids: Vec<_> = bench.told().iter().map(|told| told.id).collect();
    assert!(ids.is_sorted() && bench.told().iter().all(|told| told.about.sandbox == Some(sandbox)));
}

#[test]
fn a_dedup_is_summed_up_with_classes_bases_and_their_nodes() {
    let (mut bench, connection) = Bench::with_node(Settings::default());
    let (_, snapshot) = bench.base(connection);
    let sandbox = bench.warm(connection);
    bench.ask(Operation::Dedup { sandbox, digest_memory: false });
    let (id, _) = bench.command();
    let mut after = report(sandbox, "f", SandboxState::Dedup);
    after.bases = vec![snapshot];
    after.pages.same = 20_000;
    let phases = vec![medes_proto::sandbox::Phase::new("dump", SECOND)];
    bench.done(connection, id, Ok(Success { sandbox: Some(after), phases, ..Success::default() }));
    let what = bench.told().into_iter().find_map(|told| match &told.what {
        What::Dedup(summary) => Some(summary.clone()),
        _ => None,
    });
    let summary = what.unwrap();
    assert_eq!((summary.pages.same, &summary.bases[..], summary.phases.len()), (20_000, &[snapshot][..], 1));
    assert_eq!(summary.nodes, ["n1".parse().unwrap()]);
    assert_eq!((summary.bytes_in, summary.bytes_out), (20_000 * 4096, 4 * MIB));
    let asked = bench.told()[0];
    assert_eq!(asked.what, What::Asked { operation: "dedup".into() });
    assert!(bench.changes().iter().all(|(_, change)| change.decision == Some(asked.id)));
}

#[test]
fn a_review_is_told_with_its_inputs_and_a_kept_sandbox_only_once_for_each_reason() {
    let (mut bench, connection) =
        Bench::with_node(Settings { silent_max: SECOND * 3_600, ..Settings::default() });
    let sandbox = bench.warm(connection);
    for _ in 0..3 {
        bench.wait(Duration::from_secs(61));
    }
    let reviews = |bench: &Bench| bench.told().iter().filter(|t| t.what.kind() == TraceKind::Review).count();
    assert_eq!(reviews(&bench), 1, "{:?}", bench.told());
    let (_, kept) = bench.choice(TraceKind::Review);
    assert_eq!((&*kept.chosen.name, &*kept.chosen.reason), ("keep", "its agent still sees work in it"));
    bench.clear();
    bench.tell(Event::Idle { connection, sandbox, idle: Duration::from_secs(61) });
    let (id, made) = bench.choice(TraceKind::Review);
    assert_eq!((&*made.chosen.name, &*made.chosen.reason), ("base", "its function has no base"));
    assert_eq!(rejected(&made, "dedup"), "there is nothing to refer to");
    assert_eq!((made.value("quiet"), made.value("function_bases")), (Some(1), Some(0)));
    assert_eq!(made.value("idle_limit_ms"), Some(60_000));
    assert!(bench.driver.sandboxes[&sandbox].decided == Some(id), "what follows is because of it");
}

#[test]
fn an_eviction_says_who_stays_and_why() {
    let (mut bench, connection) = Bench::with_node(Settings::default());
    let old = bench.warm(connection);
    bench.wait(SECOND);
    let young = bench.warm(connection);
    let inventory = Inventory {
        memory: NodeMemory { cap_bytes: 128 * MIB, used_bytes: 160 * MIB, ..NodeMemory::default() },
        sandboxes: vec![report(old, "f", SandboxState::Warm), report(young, "f", SandboxState::Warm)],
        ..Inventory::default()
    };
    bench.beat(connection, inventory);
    let (id, eviction) = bench.choice(TraceKind::Eviction);
    assert_eq!(eviction.chosen.name, format!("end {old}"));
    assert_eq!(rejected(&eviction, &format!("end {young}")), "it is worth more to the policy");
    assert_eq!(eviction.value("node_cap_bytes"), Some(128 * MIB));
    let purges = bench.told().iter().filter(|told| matches!(told.what, What::Purge { .. })).count();
    assert_eq!(purges, 0, "an eviction is told as an eviction");
    let (command, _) = bench.command();
    bench.done(connection, command, Ok(Success::default()));
    let (_, gone) = bench.changes().pop().unwrap();
    assert_eq!((gone.to, gone.cause, gone.decision), (None, Cause::Done, Some(id)));
}
