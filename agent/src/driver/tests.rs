//! Random lives of many sandboxes: whatever comes in whatever order, nothing is lost and nothing happens twice.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use proptest::{prelude::*, sample::Index};

mod moving;
mod single;
mod takeover;
mod trim;

const FUNCTION: &str = "name = 'f'\ncommand = ['x']\nrequests_max = 2";

/// What the shell would have under way, answered in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Launch,
    Dedup,
    Park,
    Trim,
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
    /// All of them are unwanted: their tenant's key is deleted.
    UnwantedBases,
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
    /// The agent ends, and another one takes over.
    Crash,
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
        1 => Just(Step::UnwantedBases),
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
        1 => Just(Step::Crash),
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
    /// Those that the next agent is to have.
    left: BTreeSet<SandboxId>,
    next: u64,
}

fn id(number: u8) -> SandboxId {
    SandboxId::new(number.into()).unwrap()
}

fn elsewhere(number: u8) -> SnapshotPlace {
    let snapshot = SnapshotId::new(1_000_000 + u64::from(number)).unwrap();
    SnapshotPlace { snapshot, node: "n".parse().unwrap(), address: String::new() }
}

fn failure() -> Failure {
    Failure::new(FailureKind::Internal, "a test wanted it")
}

impl World {
    fn new() -> Self {
        Self {
            driver: Driver::new(4).trimming(),
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
            left: BTreeSet::new(),
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
        self.take_back(&actions);
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
            Action::Trim { sandbox, .. } => {
                assert!(!self.inside.contains(&sandbox), "trimmed during a request");
                let runs = self.alive.contains(&sandbox) && !self.parked.contains(&sandbox);
                assert!(runs && self.shrinking.is_none());
                self.begin(sandbox, Work::Trim);
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
                if !self.parked.contains(&sandbox) {
                    let others = self.work.iter().filter(|(_, work)| *work != Work::Remove);
                    assert_eq!(others.count(), 0, "only while there is nothing else to do");
                    assert!(!self.alive.contains(&sandbox), "there is an image");
                }
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
                    return self.claimed(sandbox, all);
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
        let trimmed = |sandbox: &SandboxId| self.work.contains(&(*sandbox, Work::Trim));
        assert!(self.at_the_door.values().all(trimmed), "every request is answered at once");
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
                    shrinks: true,
                };
                self.put_away(sandbox, if good { Ok(deduped) } else { Err(failed) });
            }
            Work::Trim => self.trimmed(sandbox, if good { Ok(Trimmed::default()) } else { Err(failed) }),
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
            Work::Take => self.taken(sandbox, good),
            Work::Remove => {
                self.gone.remove(&sandbox);
                self.alive.remove(&sandbox);
                self.parked.remove(&sandbox);
                self.inside.retain(|other| *other != sandbox);
                self.apply(Event::Removed { sandbox });
            }
        }
    }

    fn trimmed(&mut self, sandbox: SandboxId, result: Result<Trimmed, DedupFailed>) {
        if result.as_ref().is_err_and(|failed| failed.lost) {
            self.alive.remove(&sandbox);
        }
        self.apply(Event::Trimmed { sandbox, result });
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

    fn ask(&mut self, sandbox: u8) {
        let ticket = Ticket(self.next);
        self.next += 1;
        self.at_the_door.insert(ticket, id(sandbox));
        self.apply(Event::RequestAsked { sandbox: id(sandbox), ticket });
    }

    fn lose_all_bases(&mut self) {
        self.apply(Event::UnwantedBases(self.snapshots.clone()));
        assert!(self.snapshots.is_empty() && self.driver.snapshots().is_empty());
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
            Step::UnwantedBases => self.lose_all_bases(),
            Step::DropSnapshot(at) => {
                if !self.snapshots.is_empty() {
                    let snapshot = *at.get(&self.snapshots);
                    self.command(Command::DropSnapshot { snapshot });
                }
            }
            Step::Replicate(number) => self.command(Command::Replicate { place: elsewhere(number) }),
            Step::Replicated(good) => self.replicated(good),
            Step::Offer(sandbox) => self.offer(sandbox),
            Step::Take(sandbox) => self.take(sandbox),
            Step::Claim(sandbox, give_up) => self.claim(sandbox, give_up),
            Step::Ask(sandbox) => self.ask(sandbox),
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
            Step::Crash => self.crash(),
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
