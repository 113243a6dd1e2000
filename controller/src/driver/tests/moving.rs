//! Sandboxes in dedup that go from one node to another.

use super::*;
use medes_proto::standing::Standing;

/// A sandbox in dedup on n1, and n2.
struct Story {
    bench: Bench,
    first: ConnectionId,
    second: ConnectionId,
    sandbox: SandboxId,
}

impl Story {
    fn begin() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let (mut bench, first) = Bench::with_node(settings);
        let second = bench.attach("n2", 1, Inventory::default());
        let sandbox = bench.dedup(first, &[]);
        let mut story = Self { bench, first, second, sandbox };
        story.starts_take(Duration::from_secs(3));
        story
    }

    fn starts_take(&mut self, time: Duration) {
        let function = self.bench.driver.functions.get_mut(&"f".parse().unwrap()).unwrap();
        function.cold_start = Default::default();
        function.cold_start.add_time(time);
    }

    /// Asked for, and offered.
    fn asked() -> (Self, Ticket) {
        let mut story = Self::begin();
        let ticket = story.bench.ask(Operation::Move { sandbox: story.sandbox, to: None });
        story.offered();
        (story, ticket)
    }

    /// n1 has been told to offer it to n2, and does.
    fn offered(&mut self) {
        let (id, command) = self.bench.command();
        let Command::Offer { sandbox, to } = &command else { panic!("{command:?}") };
        assert_eq!((*sandbox, to.as_str()), (self.sandbox, "n2"));
        self.bench.succeed(self.first, id, &command);
    }

    /// n2 has been told to take it.
    fn told_to_take(&mut self) -> (CommandId, Command) {
        let (id, command) = self.bench.command();
        let Command::Take { sandbox, from, address, .. } = &command else { panic!("{command:?}") };
        assert_eq!((*sandbox, from.as_str(), address.as_str()), (self.sandbox, "n1", "n1:1"));
        (id, command)
    }

    fn taken(&mut self) {
        let (id, command) = self.told_to_take();
        self.bench.succeed(self.second, id, &command);
    }

    fn node(&self) -> Option<String> {
        let rows = self.bench.driver.sandbox_rows(self.bench.now);
        rows.iter().find(|row| row.report.id == self.sandbox).map(|row| row.node.to_string())
    }

    /// What n1 says it holds.
    fn holds(sandboxes: &[SandboxId]) -> Inventory {
        let sandboxes = sandboxes.iter().map(|id| report(*id, "f", SandboxState::Dedup)).collect();
        Inventory { sandboxes, ..Inventory::default() }
    }

    fn is_restored_on(&mut self, node: ConnectionId) {
        self.bench.request(1);
        let (id, command) = self.bench.command();
        assert!(
            matches!(command, Command::Restore { sandbox, .. } if sandbox == self.sandbox),
            "{command:?}"
        );
        self.bench.succeed(node, id, &command);
        let sent = self.bench.sent();
        assert_eq!(sent.len(), 1);
        assert_eq!(sent[0].1.sandbox, self.sandbox);
    }
}

#[test]
fn it_goes_when_somebody_asks() {
    let (mut story, ticket) = Story::asked();
    assert_eq!(story.node().as_deref(), Some("n1"));
    assert!(story.bench.answer_to(ticket).is_none());
    story.taken();
    assert_eq!(story.node().as_deref(), Some("n2"));
    let answer = story.bench.answer_to(ticket).unwrap().as_ref().unwrap();
    assert_eq!(answer.sandbox.as_ref().unwrap().id, story.sandbox);
    // A report that n1 sent before is no reason for anything.
    story.bench.clear();
    story.bench.beat(story.first, Story::holds(&[story.sandbox]));
    assert!(story.bench.commands().is_empty());
    story.is_restored_on(story.second);
}

#[test]
fn nobody_uses_it_on_the_way() {
    let (mut story, _) = Story::asked();
    let take = story.told_to_take();
    story.bench.request(1);
    assert!(story.bench.commands().is_empty(), "it is coming, and will be restored");
    let refused = story.bench.ask(Operation::Restore { sandbox: story.sandbox, digest_memory: false });
    assert_eq!(story.bench.answer_to(refused).unwrap().as_ref().unwrap_err().kind, FailureKind::Busy);
    story.bench.succeed(story.second, take.0, &take.1);
    let (_, command) = story.bench.command();
    assert!(matches!(command, Command::Restore { sandbox, .. } if sandbox == story.sandbox));
}

#[test]
fn when_it_fails_it_stays() {
    for fails_at_once in [true, false] {
        let mut story = Story::begin();
        let ticket = story.bench.ask(Operation::Move { sandbox: story.sandbox, to: None });
        let failed = if fails_at_once {
            (story.first, story.bench.command().0)
        } else {
            story.offered();
            (story.second, story.told_to_take().0)
        };
        story.bench.done(failed.0, failed.1, Err(crash(FailureKind::Corrupt)));
        assert_eq!(story.bench.answer_to(ticket).unwrap().as_ref().unwrap_err().kind, FailureKind::Corrupt);
        assert_eq!(story.node().as_deref(), Some("n1"));
        story.bench.clear();
        story.is_restored_on(story.first);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let mut story = Story::begin();
    let refused = |story: &mut Story, to: &str| {
        let to = Some(to.parse().unwrap());
        let ticket = story.bench.ask(Operation::Move { sandbox: story.sandbox, to });
        assert!(story.bench.commands().is_empty());
        story.bench.answer_to(ticket).unwrap().as_ref().unwrap_err().kind
    };
    assert_eq!(refused(&mut story, "n1"), FailureKind::Busy);
    assert_eq!(refused(&mut story, "n3"), FailureKind::NotFound);
    story.bench.tell(Event::Stands { node: "n2".parse().unwrap(), standing: Standing::Cordoned });
    assert_eq!(refused(&mut story, "n2"), FailureKind::Busy);
    let nowhere = story.bench.ask(Operation::Move { sandbox: story.sandbox, to: None });
    assert_eq!(story.bench.answer_to(nowhere).unwrap().as_ref().unwrap_err().kind, FailureKind::NoSpace);
    let warm = story.bench.warm(story.first);
    let ticket = story.bench.ask(Operation::Move { sandbox: warm, to: None });
    assert_eq!(story.bench.answer_to(ticket).unwrap().as_ref().unwrap_err().kind, FailureKind::Busy);
}

#[test]
fn a_request_has_it_moved_when_its_own_node_cannot_restore_it() {
    let mut story = Story::begin();
    story.bench.tell(Event::Stands { node: "n1".parse().unwrap(), standing: Standing::Cordoned });
    story.bench.request(1);
    story.offered();
    story.taken();
    let (id, command) = story.bench.command();
    assert!(matches!(command, Command::Restore { sandbox, .. } if sandbox == story.sandbox), "{command:?}");
    story.bench.succeed(story.second, id, &command);
    assert_eq!(story.bench.sent()[0].1.node.as_str(), "n2");
}

impl Story {
    /// n1 has no room for what a restore needs.
    fn fill(&mut self) {
        let memory = NodeMemory { cap_bytes: 100 * MIB, used_bytes: 80 * MIB, ..NodeMemory::default() };
        let inventory = Inventory { memory, ..Self::holds(&[self.sandbox]) };
        self.bench.beat(self.first, inventory);
        self.bench.clear();
    }
}

#[test]
fn a_full_node_is_one_that_cannot() {
    let mut story = Story::begin();
    story.fill();
    story.bench.request(1);
    story.offered();
    story.taken();
    // Also for who names it, though a start would be sooner.
    let mut story = Story::begin();
    story.starts_take(Duration::from_millis(100));
    story.fill();
    story.bench.request_with(1, "f", Some(story.sandbox), 30);
    story.offered();
    story.taken();
}

#[test]
fn a_start_that_is_sooner_comes_before_a_move() {
    let mut story = Story::begin();
    story.starts_take(Duration::from_millis(100));
    story.bench.tell(Event::Stands { node: "n1".parse().unwrap(), standing: Standing::Cordoned });
    story.bench.request(1);
    let (_, command) = story.bench.command();
    assert!(matches!(command, Command::Start { .. }), "{command:?}");
    // Who names it wants that one.
    story.bench.request_with(2, "f", Some(story.sandbox), 30);
    story.offered();
    story.taken();
}

#[test]
fn one_that_could_not_be_moved_is_not_tried_again_at_once() {
    let mut story = Story::begin();
    story.bench.tell(Event::Stands { node: "n1".parse().unwrap(), standing: Standing::Cordoned });
    story.bench.request(1);
    story.offered();
    let (id, _) = story.told_to_take();
    story.bench.done(story.second, id, Err(crash(FailureKind::Unsupported)));
    let (_, command) = story.bench.command();
    assert!(matches!(command, Command::Start { .. }), "{command:?}");
}

#[test]
fn a_drained_node_is_left_by_all_that_find_a_place() {
    let mut story = Story::begin();
    let mut all = vec![story.sandbox];
    all.extend((0..5).map(|_| story.bench.dedup(story.first, &[])));
    story.bench.tell(Event::Stands { node: "n1".parse().unwrap(), standing: Standing::Draining });
    let mut offered = story.bench.commands();
    assert_eq!(offered.len(), 4, "not all at once");
    let mut moved = 0;
    while let Some((id, command)) = offered.pop() {
        let on = if matches!(command, Command::Offer { .. }) { story.first } else { story.second };
        moved += usize::from(matches!(command, Command::Take { .. }));
        story.bench.succeed(on, id, &command);
        offered.extend(story.bench.commands());
        assert!(offered.iter().all(|(_, c)| matches!(c, Command::Offer { .. } | Command::Take { .. })));
    }
    assert_eq!(moved, 6);
    let rows = story.bench.driver.sandbox_rows(story.bench.now);
    assert!(all.iter().all(|id| rows.iter().any(|row| row.report.id == *id && row.node.as_str() == "n2")));
}

#[test]
fn without_a_place_a_drained_one_ends() {
    let mut story = Story::begin();
    story.bench.tell(Event::Detached { connection: story.second });
    story.bench.clear();
    story.bench.tell(Event::Stands { node: "n1".parse().unwrap(), standing: Standing::Draining });
    let (_, command) = story.bench.command();
    assert!(matches!(command, Command::Purge { .. }), "{command:?}");
}

#[test]
fn who_was_cut_off_tells_where_it_is() {
    // Still where it was: the other one had not got it.
    let (mut story, ticket) = Story::asked();
    story.told_to_take();
    story.bench.tell(Event::Detached { connection: story.second });
    assert!(story.bench.answer_to(ticket).unwrap().is_err());
    story.bench.beat(story.first, Story::holds(&[story.sandbox]));
    story.is_restored_on(story.first);
    // Gone over, and nobody heard of it.
    let (mut story, _) = Story::asked();
    story.told_to_take();
    story.bench.tell(Event::Detached { connection: story.second });
    story.bench.clear();
    let second = story.bench.attach("n2", 1, Story::holds(&[story.sandbox]));
    let purges = story.bench.actions.iter().find_map(|action| match action {
        Action::Welcome { purge, .. } => Some(purge.clone()),
        _ => None,
    });
    assert_eq!(purges, Some(Vec::new()), "it is the only one");
    assert_eq!(story.node().as_deref(), Some("n2"));
    story.bench.clear();
    story.is_restored_on(second);
}

#[test]
fn a_node_that_is_lost_takes_what_it_still_had_along() {
    let (mut story, ticket) = Story::asked();
    let (id, command) = story.told_to_take();
    story.bench.attach("n1", 2, Inventory::default());
    assert!(story.bench.answer_to(ticket).unwrap().is_err());
    assert_eq!(story.node(), None);
    // It had given it up before that.
    story.bench.succeed(story.second, id, &command);
    story.bench.beat(story.second, Story::holds(&[story.sandbox]));
    assert_eq!(story.node().as_deref(), Some("n2"));
}
