//! Random lives of many sandboxes: whatever comes in whatever order, nothing is lost and nothing happens twice.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use proptest::{prelude::*, sample::Index};

const FUNCTION: &str = "name = 'f'\ncommand = ['x']\nrequests_max = 2";

/// What the shell would have under way, answered in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Launch,
    Dedup,
    Park,
    MakeBase(SnapshotId),
    Restore,
    Take,
    Remove,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Start(u8),
    Dedup(u8),
    Park(u8),
    MakeBase(u8),
    Restore(u8),
    Purge(u8),
    CancelPark(u8),
    Unwanted(u8),
    DropSnapshot(Index),
    Replicate(u8),
    /// A snapshot was copied, or not.
    Replicated(bool),
    Offer(u8),
    Take(u8),
    /// The other node asks for one: to read it, or to have it.
    Claim(u8, bool),
    Ask(u8),
    EndRequest(Index),
    Exit(u8),
    /// An image was made smaller, or not.
    Shrunk(bool),
    /// Ends one piece of work: well, badly, or so badly that the sandbox is lost.
    Finish(Index, u8),
    Wait(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let sandbox = 1..6u8;
    prop_oneof![
        3 => sandbox.clone().prop_map(Step::Start),
        3 => sandbox.clone().prop_map(Step::Dedup),
        3 => sandbox.clone().prop_map(Step::Park),
        1 => sandbox.clone().prop_map(Step::CancelPark),
        1 => sandbox.clone().prop_map(Step::MakeBase),
        3 => sandbox.clone().prop_map(Step::Restore),
        1 => sandbox.clone().prop_map(Step::Purge),
        1 => sandbox.clone().prop_map(Step::Unwanted),
        1 => any::<Index>().prop_map(Step::DropSnapshot),
        1 => sandbox.clone().prop_map(Step::Replicate),
        1 => any::<bool>().prop_map(Step::Replicated),
        2 => sandbox.clone().prop_map(Step::Offer),
        2 => sandbox.clone().prop_map(Step::Take),
        2 => (sandbox.clone(), any::<bool>()).prop_map(|(sandbox, all)| Step::Claim(sandbox, all)),
        4 => sandbox.clone().prop_map(Step::Ask),
        4 => any::<Index>().prop_map(Step::EndRequest),
        1 => sandbox.prop_map(Step::Exit),
        2 => any::<bool>().prop_map(Step::Shrunk),
        8 => (any::<Index>(), 0..3u8).prop_map(|(at, how)| Step::Finish(at, how)),
        2 => any::<u16>().prop_map(Step::Wait),
    ]
}

/// The world around the driver.
struct World {
    driver: Driver,
    now: Instant,
    work: Vec<(SandboxId, Work)>,
    /// Requests inside, by sandbox.
    inside: Vec<SandboxId>,
    at_the_door: BTreeMap<Ticket, SandboxId>,
    /// Those at the door that are another node's, and whether it wants to have the sandbox.
    claims: BTreeMap<Ticket, bool>,
    /// Sandboxes that were given up and may still be here in part.
    gone: BTreeSet<SandboxId>,
    unanswered: BTreeSet<CommandId>,
    snapshots: Vec<SnapshotId>,
    /// Those that are being copied.
    copying: BTreeSet<SnapshotId>,
    /// Sandboxes with processes, as far as the shell can tell.
    alive: BTreeSet<SandboxId>,
    /// Those of them that are frozen, without memory.
    parked: BTreeSet<SandboxId>,
    /// Whose image is being made smaller.
    shrinking: Option<SandboxId>,
    next: u64,
}

fn id(number: u8) -> SandboxId {
    SandboxId::new(number.into()).unwrap()
}

fn elsewhere(number: u8) -> SnapshotPlace {
    let snapshot = SnapshotId::new(1_000_000 + u64::from(number)).unwrap();
    SnapshotPlace { snapshot, node: "n".parse().unwrap(), address: String::new() }
}

fn other() -> NodeId {
    "n2".parse().unwrap()
}

fn failure() -> Failure {
    Failure::new(FailureKind::Internal, "a test wanted it")
}

impl World {
    fn new() -> Self {
        Self {
            driver: Driver::new(4),
            now: Instant::now(),
            work: Vec::new(),
            inside: Vec::new(),
            at_the_door: BTreeMap::new(),
            claims: BTreeMap::new(),
            gone: BTreeSet::new(),
            unanswered: BTreeSet::new(),
            snapshots: Vec::new(),
            copying: BTreeSet::new(),
            alive: BTreeSet::new(),
            parked: BTreeSet::new(),
            shrinking: None,
            next: 1,
        }
    }

    fn command(&mut self, command: Command) {
        let id = CommandId(self.next);
        self.next += 1;
        self.unanswered.insert(id);
        self.apply(Event::Command { id, command });
    }

    fn apply(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.driver.apply(self.now, event, &mut actions);
        for action in actions {
            self.act(&action);
        }
        self.check();
    }

    fn begin(&mut self, sandbox: SandboxId, work: Work) {
        let busy = self.work.iter().any(|(other, _)| *other == sandbox);
        assert!(!busy, "{work:?} on {sandbox} while {:?} is under way", self.work);
        self.work.push((sandbox, work));
    }

    fn act(&mut self, action: &Action) {
        match *action {
            Action::Launch { sandbox, .. } => self.begin(sandbox, Work::Launch),
            Action::Dedup { sandbox, .. } => {
                assert!(!self.inside.contains(&sandbox), "dedup during a request");
                self.begin(sandbox, Work::Dedup);
            }
            Action::Park { sandbox, .. } => {
                assert!(!self.inside.contains(&sandbox), "parked during a request");
                assert!(!self.parked.contains(&sandbox), "parked twice");
                self.begin(sandbox, Work::Park);
            }
            Action::CancelPark { sandbox } => {
                let under_way =
                    |(other, work): &(SandboxId, Work)| *other == sandbox && *work != Work::Remove;
                assert!(self.work.iter().any(under_way), "nothing of {sandbox} to call off");
            }
            Action::MakeBase { sandbox, snapshot, .. } => {
                assert!(!self.inside.contains(&sandbox), "snapshot during a request");
                self.begin(sandbox, Work::MakeBase(snapshot));
            }
            Action::Restore { sandbox, .. } => {
                let parked = self.parked.remove(&sandbox);
                assert!(parked || !self.alive.contains(&sandbox), "a second life from one image");
                assert!(!self.gone.contains(&sandbox), "a life of what another node has");
                self.begin(sandbox, Work::Restore);
            }
            Action::Take { sandbox, .. } => {
                assert!(!self.alive.contains(&sandbox), "it runs here");
                self.begin(sandbox, Work::Take);
            }
            Action::Shrink { sandbox } => {
                assert_eq!(self.shrinking.replace(sandbox), None, "one at a time");
                let others = self.work.iter().filter(|(_, work)| *work != Work::Remove);
                assert_eq!(others.count(), 0, "only while there is nothing else to do");
                assert!(!self.alive.contains(&sandbox), "there is an image");
            }
            Action::Remove { sandbox } => self.begin(sandbox, Work::Remove),
            Action::Replicate { ref place } => {
                assert!(!self.snapshots.contains(&place.snapshot), "it is here");
                assert!(self.copying.insert(place.snapshot), "copied twice at once");
            }
            Action::DropSnapshot { snapshot } => self.snapshots.retain(|other| *other != snapshot),
            Action::Admit { ticket } => {
                let sandbox = self.at_the_door.remove(&ticket).expect("admitted once");
                if let Some(all) = self.claims.remove(&ticket) {
                    assert!(!self.alive.contains(&sandbox), "what goes is an image alone");
                    let worked_on =
                        |(other, work): &(SandboxId, Work)| *other == sandbox && *work != Work::Remove;
                    assert!(!self.work.iter().any(worked_on), "it goes while it is worked on");
                    assert!(all || !self.gone.contains(&sandbox), "it has gone");
                    if all {
                        self.gone.insert(sandbox);
                    }
                    return;
                }
                assert!(self.alive.contains(&sandbox), "admitted to a sandbox without processes");
                assert!(!self.parked.contains(&sandbox), "admitted to a frozen sandbox");
                self.inside.push(sandbox);
            }
            Action::Refuse { ticket, .. } => {
                self.at_the_door.remove(&ticket).expect("refused once");
                self.claims.remove(&ticket);
            }
            Action::Reply { command, .. } => assert!(self.unanswered.remove(&command), "answered twice"),
            Action::ReportIdle { sandbox, .. } => assert!(!self.inside.contains(&sandbox), "busy, not idle"),
            Action::ReportGone { .. } => {}
        }
    }

    fn check(&self) {
        assert!(self.at_the_door.is_empty(), "every request is answered at once");
        for report in self.driver.sandboxes(self.now, |_| Default::default()) {
            let inside = self.inside.iter().filter(|sandbox| **sandbox == report.id).count();
            assert!(inside <= 2, "more requests than the function takes");
            let working = matches!(
                report.state,
                SandboxState::Starting | SandboxState::Deduping | SandboxState::Restoring
            );
            let under_way = self.work.iter().any(|(sandbox, _)| *sandbox == report.id);
            assert!(!working || under_way, "{report:?} waits for nothing");
        }
    }

    fn finish(&mut self, at: usize, how: u8) {
        let (sandbox, work) = self.work.swap_remove(at);
        let good = how == 0;
        let failed = DedupFailed { failure: failure(), lost: how == 2 };
        match work {
            Work::Launch => {
                if good {
                    self.alive.insert(sandbox);
                }
                let result = if good { Ok(Launched::default()) } else { Err(failure()) };
                self.apply(Event::Launched { sandbox, result });
            }
            Work::Dedup | Work::Park => {
                let in_place = work == Work::Park;
                if good && !in_place || how == 2 {
                    self.alive.remove(&sandbox);
                }
                self.parked.remove(&sandbox);
                if good && in_place {
                    self.parked.insert(sandbox);
                }
                let deduped = Deduped {
                    in_place,
                    stored_bytes: 1,
                    bases: self.snapshots.clone(),
                    pages: PageClasses::default(),
                    looked_up: 0,
                    aligned_with: None,
                    phases: Vec::new(),
                    memory_digest: None,
                };
                self.apply(Event::Deduped { sandbox, result: if good { Ok(deduped) } else { Err(failed) } });
            }
            Work::MakeBase(snapshot) => {
                if how == 2 {
                    self.alive.remove(&sandbox);
                }
                let function = "f".parse().unwrap();
                let report = SnapshotReport { id: snapshot, function, pages: 1, bytes: 4096, init: None };
                if good {
                    self.snapshots.push(snapshot);
                }
                let result = if good { Ok((report, Vec::new())) } else { Err(failed) };
                self.apply(Event::BaseMade { sandbox, result });
            }
            Work::Restore => {
                if good {
                    self.alive.insert(sandbox);
                } else {
                    self.alive.remove(&sandbox);
                }
                let restored = Restored { phases: Vec::new(), memory_digest: None, in_place: false };
                self.apply(Event::Restored {
                    sandbox,
                    result: if good { Ok(restored) } else { Err(failure()) },
                });
            }
            Work::Take => {
                self.gone.remove(&sandbox);
                let result = if good { Ok(Taken::default()) } else { Err(failure()) };
                self.apply(Event::Taken { sandbox, result });
            }
            Work::Remove => {
                self.gone.remove(&sandbox);
                self.alive.remove(&sandbox);
                self.parked.remove(&sandbox);
                self.inside.retain(|other| *other != sandbox);
                self.apply(Event::Removed { sandbox });
            }
        }
    }

    /// A copy has come about, or not.
    fn replicated(&mut self, good: bool) {
        let Some(snapshot) = self.copying.pop_first() else { return };
        let report = SnapshotReport {
            id: snapshot,
            function: "f".parse().unwrap(),
            pages: 1,
            bytes: 4096,
            init: None,
        };
        if good {
            self.snapshots.push(snapshot);
        }
        let result = if good { Ok(report) } else { Err(failure()) };
        self.apply(Event::Replicated { snapshot, result });
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Start(sandbox) => {
                let function = Box::new(FunctionSpec::from_toml(FUNCTION).unwrap());
                self.command(Command::Start { sandbox: id(sandbox), function, revision: 1, clone_of: None });
            }
            Step::Dedup(sandbox) => {
                self.command(Command::Dedup { sandbox: id(sandbox), digest_memory: false, base: None });
            }
            Step::Park(sandbox) => {
                self.command(Command::Park { sandbox: id(sandbox), base: None, resident_percent: 10 });
            }
            Step::Restore(sandbox) => {
                self.command(Command::Restore { sandbox: id(sandbox), digest_memory: false });
            }
            Step::CancelPark(sandbox) => self.command(Command::CancelPark { sandbox: id(sandbox) }),
            Step::MakeBase(sandbox) => {
                let snapshot = SnapshotId::new(self.next).unwrap();
                self.command(Command::MakeBase { sandbox: id(sandbox), snapshot, init: false });
            }
            Step::Purge(sandbox) => self.command(Command::Purge { sandbox: id(sandbox) }),
            Step::Unwanted(sandbox) => self.apply(Event::Unwanted(vec![id(sandbox)])),
            Step::DropSnapshot(at) => {
                if !self.snapshots.is_empty() {
                    let snapshot = *at.get(&self.snapshots);
                    self.command(Command::DropSnapshot { snapshot });
                }
            }
            Step::Replicate(number) => self.command(Command::Replicate { place: elsewhere(number) }),
            Step::Replicated(good) => self.replicated(good),
            Step::Offer(sandbox) => self.command(Command::Offer { sandbox: id(sandbox), to: other() }),
            Step::Take(sandbox) => {
                let function = Box::new(FunctionSpec::from_toml(FUNCTION).unwrap());
                let (sandbox, address) = (id(sandbox), "n2:1".into());
                self.command(Command::Take { sandbox, function, revision: 1, from: other(), address });
            }
            Step::Claim(sandbox, give_up) => {
                let (ticket, sandbox) = (Ticket(self.next), id(sandbox));
                self.next += 1;
                self.at_the_door.insert(ticket, sandbox);
                self.claims.insert(ticket, give_up);
                let offered = OfferedSandbox { sandbox, to: other() };
                self.apply(Event::OfferAsked { offered, give_up, ticket });
            }
            Step::Ask(sandbox) => {
                let ticket = Ticket(self.next);
                self.next += 1;
                self.at_the_door.insert(ticket, id(sandbox));
                self.apply(Event::RequestAsked { sandbox: id(sandbox), ticket });
            }
            Step::EndRequest(at) => {
                if !self.inside.is_empty() {
                    let sandbox = self.inside.swap_remove(at.index(self.inside.len()));
                    self.apply(Event::RequestEnded { sandbox, answered: true });
                }
            }
            Step::Exit(sandbox) => {
                // The shell watches only sandboxes that no work has taken.
                let busy = self.work.iter().any(|(other, _)| *other == id(sandbox));
                if !busy && self.alive.remove(&id(sandbox)) {
                    self.inside.retain(|other| *other != id(sandbox));
                    self.apply(Event::Exited { sandbox: id(sandbox), why: failure() });
                }
            }
            Step::Finish(at, how) => {
                if !self.work.is_empty() {
                    self.finish(at.index(self.work.len()), how);
                }
            }
            Step::Shrunk(good) => {
                if let Some(sandbox) = self.shrinking.take() {
                    let smaller =
                        Smaller { stored_bytes: 1, bases: Vec::new(), pages: PageClasses::default() };
                    self.apply(Event::Shrunk { sandbox, smaller: good.then_some(smaller) });
                }
            }
            Step::Wait(millis) => {
                self.now += Duration::from_millis(millis.into());
                self.apply(Event::Tick);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_life_is_answered_bounded_and_lived_once(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        world.apply(Event::SmallAfter(Duration::from_secs(20)));
        for step in steps {
            world.step(step);
        }
        // When all work has ended, nobody waits any more.
        while !world.copying.is_empty() {
            world.step(Step::Replicated(true));
        }
        for _ in 0..100 {
            if world.work.is_empty() {
                break;
            }
            world.finish(0, 0);
        }
        prop_assert!(world.work.is_empty(), "work breeds work: {:?}", world.work);
        prop_assert!(world.unanswered.is_empty(), "never answered: {:?}", world.unanswered);
    }
}

#[test]
fn an_idle_sandbox_is_reported_once_per_idle_period() {
    let mut world = World::new();
    world.step(Step::Start(1));
    world.finish(0, 0);
    world.apply(Event::IdlePeriod(Duration::from_secs(60)));
    let mut reports = 0;
    for _ in 0..250 {
        world.now += Duration::from_secs(1);
        let mut actions = Vec::new();
        world.driver.apply(world.now, Event::Tick, &mut actions);
        reports += actions.iter().filter(|action| matches!(action, Action::ReportIdle { .. })).count();
    }
    assert_eq!(reports, 4);
}

#[test]
fn a_sandbox_that_works_by_itself_is_not_idle() {
    let mut world = World::new();
    world.step(Step::Start(1));
    world.finish(0, 0);
    world.apply(Event::IdlePeriod(Duration::from_secs(60)));
    let id = world.driver.sandboxes(world.now, |_| Default::default())[0].id;
    let mut idle_at = Vec::new();
    for second in 1..=200u64 {
        world.now += Duration::from_secs(1);
        let idle = Duration::from_secs(second.saturating_sub(100));
        world.apply(Event::Quiet { sandbox: id, idle });
        let mut actions = Vec::new();
        world.driver.apply(world.now, Event::Tick, &mut actions);
        if actions.iter().any(|action| matches!(action, Action::ReportIdle { .. })) {
            idle_at.push(second);
        }
    }
    assert_eq!(idle_at, [160], "sixty seconds after its own work ended");
}

#[test]
fn an_image_that_waits_is_made_smaller_once() {
    let mut world = World::new();
    for sandbox in [1, 2] {
        world.step(Step::Start(sandbox));
        world.finish(0, 0);
        world.step(Step::Dedup(sandbox));
        world.finish(0, 0);
    }
    let shrunk = |world: &mut World| {
        world.now += Duration::from_secs(31);
        world.apply(Event::Tick);
        world.shrinking
    };
    assert_eq!(shrunk(&mut world), None, "not unless asked for");
    world.apply(Event::SmallAfter(Duration::from_secs(30)));
    assert_eq!(shrunk(&mut world), Some(id(1)), "the one that waits longest");
    world.step(Step::Shrunk(true));
    assert_eq!(shrunk(&mut world), Some(id(2)));
    world.step(Step::Shrunk(false));
    assert_eq!(shrunk(&mut world), None, "each is tried once");
    // Another life has another image.
    world.step(Step::Restore(1));
    world.finish(0, 0);
    world.step(Step::Dedup(1));
    assert_eq!(shrunk(&mut world), None, "not while there is other work");
    world.finish(0, 0);
    assert_eq!(shrunk(&mut world), Some(id(1)));
}

#[test]
fn what_has_served_a_request_is_nobodys_init_state() {
    let (mut driver, now) = (Driver::new(4), Instant::now());
    let mut tell = |event| {
        let mut actions = Vec::new();
        driver.apply(now, event, &mut actions);
        actions
    };
    let make = |sandbox| {
        let (sandbox, snapshot) = (id(sandbox), SnapshotId::new(7).unwrap());
        Event::Command { id: CommandId(9), command: Command::MakeBase { sandbox, snapshot, init: true } }
    };
    for sandbox in [1, 2] {
        let function = Box::new(FunctionSpec::from_toml("name = 'f'\ncommand = ['x']").unwrap());
        let command = Command::Start { sandbox: id(sandbox), function, revision: 5, clone_of: None };
        tell(Event::Command { id: CommandId(sandbox.into()), command });
        tell(Event::Launched { sandbox: id(sandbox), result: Ok(Launched::default()) });
    }
    assert!(
        matches!(tell(make(1))[..], [Action::MakeBase { init: Some(5), .. }]),
        "of the text that it runs"
    );
    tell(Event::RequestAsked { sandbox: id(2), ticket: Ticket(1) });
    tell(Event::RequestEnded { sandbox: id(2), answered: true });
    assert!(matches!(tell(make(2))[..], [Action::Reply { result: Err(_), .. }]));
}

#[test]
fn a_sandbox_is_given_up_once_and_says_so_again() {
    let mut world = World::new();
    world.step(Step::Start(1));
    world.finish(0, 0);
    world.step(Step::Claim(1, false));
    assert!(world.gone.is_empty() && world.claims.is_empty(), "not what is warm");
    world.step(Step::Dedup(1));
    world.finish(0, 0);
    world.step(Step::Claim(1, true));
    assert!(world.gone.is_empty(), "nobody offers it");
    world.step(Step::Offer(1));
    world.step(Step::Restore(1));
    world.finish(0, 0);
    world.step(Step::Dedup(1));
    world.finish(0, 0);
    world.step(Step::Claim(1, true));
    assert!(world.gone.is_empty(), "a restore has withdrawn the offer");
    world.step(Step::Offer(1));
    world.now += Duration::from_secs(61);
    world.step(Step::Claim(1, true));
    assert!(world.gone.is_empty(), "too late");
    world.step(Step::Offer(1));
    world.step(Step::Claim(1, false));
    world.step(Step::Claim(1, true));
    assert!(world.gone.contains(&id(1)));
    assert_eq!(world.work, [(id(1), Work::Remove)]);
    world.step(Step::Claim(1, true));
    world.finish(0, 0);
    assert!(world.driver.sandboxes(world.now, |_| Default::default()).is_empty());
    let claimed = |world: &mut World| {
        let (offered, ticket) = (OfferedSandbox { sandbox: id(1), to: other() }, Ticket(1_000));
        let mut actions = Vec::new();
        world.driver.apply(world.now, Event::OfferAsked { offered, give_up: true, ticket }, &mut actions);
        matches!(actions[..], [Action::Admit { .. }])
    };
    assert!(claimed(&mut world), "who did not hear the answer asks again");
    // It comes back: what was said of its first stay means nothing now.
    world.step(Step::Take(1));
    assert!(
        world.driver.sandboxes(world.now, |_| Default::default()).is_empty(),
        "the other node's until then"
    );
    world.finish(0, 0);
    assert_eq!(world.driver.sandboxes(world.now, |_| Default::default())[0].state, SandboxState::Dedup);
    assert!(!claimed(&mut world), "it is here and not offered");
    world.step(Step::Restore(1));
    world.finish(0, 0);
}
