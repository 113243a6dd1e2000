//! Nodes that people keep work away from.

use medes_proto::standing::Standing;

use super::*;
use crate::policy::{FunctionView, IdleLife, Policy, Review, SandboxView, Verdict, View};

fn stands(bench: &mut Bench, node: &str, standing: Standing) {
    bench.tell(Event::Stands { node: node.parse().unwrap(), standing });
}

/// Two nodes, one warm sandbox on the first.
fn two_nodes() -> (Bench, [ConnectionId; 2], SandboxId) {
    let (mut bench, one) = Bench::with_node(Settings::default());
    let sandbox = bench.warm(one);
    let two = bench.attach("n2", 1, Inventory::default());
    bench.clear();
    (bench, [one, two], sandbox)
}

fn commanded(bench: &Bench) -> Vec<ConnectionId> {
    let commands = bench.actions.iter().filter_map(|action| match action {
        Action::Command { connection, .. } => Some(*connection),
        _ => None,
    });
    commands.collect()
}

/// The first node gets this standing while a request is inside, which is seen to its end; the next one goes to the other node. What the first is told
/// to do then.
fn taken_out_of_service(
    bench: &mut Bench,
    [one, two]: [ConnectionId; 2],
    standing: Standing,
) -> (CommandId, Command) {
    bench.request(1);
    stands(bench, "n1", standing);
    assert!(bench.commands().is_empty(), "the request inside is seen to its end");
    bench.request(2);
    assert_eq!(commanded(bench), [two]);
    bench.clear();
    bench.answered(1);
    assert_eq!(commanded(bench), [one]);
    bench.command()
}

#[test]
fn a_cordoned_node_serves_with_what_it_has_and_starts_nothing() {
    let (mut bench, [_, two], sandbox) = two_nodes();
    stands(&mut bench, "n1", Standing::Cordoned);
    bench.request(1);
    assert_eq!(bench.sent()[0].1.sandbox, sandbox);
    bench.request(2);
    assert_eq!(commanded(&bench), [two]);
    let refused = bench.ask(Operation::Start {
        function: "f".parse().unwrap(),
        node: Some("n1".parse().unwrap()),
        cold: false,
    });
    let why = bench.answer_to(refused).unwrap().clone().unwrap_err();
    assert_eq!((why.kind, &*why.message), (FailureKind::Busy, "node n1 is cordoned"));
}

#[test]
fn a_draining_node_is_sent_nothing_and_gets_empty_as_its_requests_end() {
    let (mut bench, [one, two], sandbox) = two_nodes();
    let (id, command) = taken_out_of_service(&mut bench, [one, two], Standing::Draining);
    assert!(matches!(command, Command::Purge { sandbox: purged } if purged == sandbox));
    bench.succeed(one, id, &command);
    assert_eq!(bench.driver.node_rows(bench.now)[0].sandboxes, 0);
    assert!(bench.refused().is_empty());
}

#[test]
fn on_a_resting_node_what_is_warm_goes_to_rest_when_its_request_has_ended_and_what_rests_stays() {
    let (mut bench, [one, two], sandbox) = two_nodes();
    let (id, command) = taken_out_of_service(&mut bench, [one, two], Standing::Resting);
    assert!(matches!(command, Command::Dedup { sandbox: taken, .. } if taken == sandbox));
    bench.succeed(one, id, &command);
    let row = &bench.driver.node_rows(bench.now)[0];
    assert_eq!((row.sandboxes, row.resting), (1, 1));
    bench.clear();
    // It is not asked for, and not brought back, before the node is open again.
    bench.ask(Operation::Start { function: "f".parse().unwrap(), node: None, cold: false });
    assert!(commanded(&bench).iter().all(|connection| *connection == two), "{:?}", bench.actions);
    stands(&mut bench, "n1", Standing::Open);
    bench.clear();
    bench.request(3);
    bench.request(4);
    assert!(bench.refused().is_empty());
    let back =
        |command: &Command| matches!(command, Command::Restore { sandbox: back, .. } if *back == sandbox);
    assert!(bench.commands().iter().any(|(_, command)| back(command)), "{:?}", bench.actions);
}

/// A policy that wants every sandbox back before a request comes.
#[derive(Debug)]
struct WantsBack;

impl Policy for WantsBack {
    fn name(&self) -> &'static str {
        "wants back"
    }

    fn first_review(&self, _life: IdleLife) -> Duration {
        Duration::from_secs(1)
    }

    fn review(&self, _view: &dyn View, _function: &FunctionView<'_>, sandbox: &SandboxView) -> Review {
        let verdict = if sandbox.life == IdleLife::Dedup { Verdict::Restore } else { Verdict::Keep };
        let again = Duration::from_secs(1);
        Review { verdict, because: "as the test says", rejected: Vec::new(), again, prewarm: None }
    }
}

#[test]
fn a_policy_gets_nothing_back_on_a_node_that_is_kept_from_work() {
    for standing in [Standing::Cordoned, Standing::Resting] {
        let (mut bench, node) = Bench::with_node(Settings::default());
        bench.driver.policy = Box::new(WantsBack);
        let sandbox = bench.dedup(node, &[]);
        stands(&mut bench, "n1", standing);
        let later = |bench: &mut Bench| {
            bench.now = bench.now.after(Duration::from_secs(5));
            bench.tell(Event::Tick);
            bench.commands()
        };
        assert!(later(&mut bench).is_empty(), "{standing:?}");
        stands(&mut bench, "n1", Standing::Open);
        let commands = later(&mut bench);
        assert!(
            matches!(&commands[..], [(_, Command::Restore { sandbox: back, .. })] if *back == sandbox),
            "{commands:?}"
        );
    }
}

#[test]
fn on_a_resting_node_what_cannot_rest_ends() {
    let (mut bench, [one, _], sandbox) = two_nodes();
    stands(&mut bench, "n1", Standing::Resting);
    let (id, command) = bench.command();
    assert!(matches!(command, Command::Dedup { sandbox: taken, .. } if taken == sandbox));
    bench.clear();
    bench.done(one, id, Err(crash(FailureKind::Unsupported)));
    assert!(matches!(bench.command().1, Command::Purge { sandbox: ended } if ended == sandbox));
}

#[test]
fn what_waits_when_the_only_node_is_kept_from_work_is_served_when_it_is_open_again() {
    let (mut bench, _) = Bench::with_node(Settings::default());
    stands(&mut bench, "n1", Standing::Draining);
    bench.request(1);
    assert!(bench.commands().is_empty());
    // Its agent is restarted meanwhile: that does not open it.
    let again = bench.attach("n1", 2, Inventory::default());
    assert!(bench.commands().is_empty());
    assert_eq!(bench.driver.nodes_open(), 0);
    stands(&mut bench, "n1", Standing::Open);
    assert_eq!(commanded(&bench), [again]);
}

#[test]
fn a_dedup_sandbox_ends_with_its_node_too() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    let sandbox = bench.dedup(node, &[]);
    stands(&mut bench, "n1", Standing::Draining);
    assert!(matches!(bench.command().1, Command::Purge { sandbox: purged } if purged == sandbox));
}

#[test]
fn only_nodes_that_were_here_can_be_kept_from_work() {
    let (mut bench, _) = Bench::with_node(Settings { nodes_max: 1, ..Settings::default() });
    let [here, other] = ["n1", "n2"].map(|name| name.parse().unwrap());
    let may = |bench: &Bench, node, standing| bench.driver.may_stand(node, standing).map_err(|why| why.kind);
    assert_eq!(may(&bench, &other, Standing::Cordoned), Err(FailureKind::NotFound));
    assert_eq!(may(&bench, &other, Standing::Open), Ok(false));
    assert_eq!(may(&bench, &here, Standing::Cordoned), Ok(true));
    stands(&mut bench, "n1", Standing::Cordoned);
    assert_eq!(may(&bench, &here, Standing::Cordoned), Ok(false));
    assert_eq!(may(&bench, &here, Standing::Open), Ok(true));
}

#[test]
fn the_standings_of_an_earlier_life_hold() {
    let policy = Box::new(Fixed(FixedSettings::default()));
    let node: medes_proto::ids::NodeId = "n1".parse().unwrap();
    let driver = Driver::new(Now::START, Settings::default(), policy, [])
        .with_standings([(node.clone(), Standing::Draining)]);
    assert_eq!(driver.standing(&node), Standing::Draining);
}
