//! Copies of bases on other nodes.

use super::*;
use medes_proto::registry::Acquire;

/// A base on n1 that a sandbox of n2 is about to refer to.
struct Story {
    bench: Bench,
    first: ConnectionId,
    second: ConnectionId,
    base: SnapshotId,
    sandbox: SandboxId,
}

impl Story {
    fn begin(settings: Settings) -> Self {
        let (mut bench, first) = Bench::with_node(settings);
        let second = bench.attach("n2", 1, Inventory::default());
        let (_, base) = bench.base(first);
        let sandbox = bench.warm(second);
        bench.clear();
        bench.tell(Event::Acquire {
            ticket: Ticket(100),
            acquire: Acquire { sandbox, snapshots: vec![base] },
        });
        Self { bench, first, second, base, sandbox }
    }

    /// The copy that was begun comes about on this node.
    fn copied(&mut self, on: ConnectionId) {
        let (id, command) = self.bench.command();
        let Command::Replicate { place } = &command else { panic!("{command:?}") };
        assert_eq!(place.snapshot, self.base);
        let snapshot = Some(snapshot_report(self.base));
        self.bench.done(on, id, Ok(Success { snapshot, ..Success::default() }));
    }

    /// Who holds it, whom readers are sent to first, as was last said.
    fn holders(&self) -> Vec<String> {
        let placed = self.bench.actions.iter().rev().find_map(|action| match action {
            Action::PlaceSnapshot { snapshot, holders } if *snapshot == self.base => Some(holders),
            _ => None,
        });
        placed.into_iter().flatten().map(|place| place.node.to_string()).collect()
    }

    fn held(memory: NodeMemory, snapshots: &[SnapshotId]) -> Inventory {
        let snapshots = snapshots.iter().copied().map(snapshot_report).collect();
        Inventory { memory, snapshots, ..Inventory::default() }
    }

    fn is_hidden(&self) -> bool {
        let base = self.base;
        self.bench.actions.iter().any(
            |action| matches!(action, Action::HideSnapshot(id) | Action::ForgetSnapshot(id) if *id == base),
        )
    }
}

#[test]
fn a_base_that_an_image_refers_to_is_copied_to_another_node() {
    let mut story = Story::begin(Settings::default());
    story.copied(story.second);
    assert_eq!(story.holders(), ["n1", "n2"]);
    // The node that has it is told to read there.
    let place = story.bench.driver.base_for(story.sandbox).unwrap();
    assert_eq!((place.snapshot, place.node.to_string()), (story.base, "n2".into()));
    assert!(story.bench.commands().is_empty(), "two are enough");
    let rows = story.bench.driver.node_rows(story.bench.now);
    assert!(rows.iter().all(|row| row.snapshots.len() == 1), "both show it");
}

#[test]
fn nothing_is_copied_before_an_image_refers_to_it_nor_where_one_holder_is_enough() {
    let (mut bench, node) = Bench::with_node(Settings::default());
    bench.attach("n2", 1, Inventory::default());
    bench.base(node);
    assert!(bench.commands().is_empty());
    let mut story = Story::begin(Settings { base_copies: 1, ..Settings::default() });
    assert!(story.bench.commands().is_empty());
}

#[test]
fn when_the_holder_goes_a_copy_takes_its_place_and_another_is_made() {
    let mut story = Story::begin(Settings::default());
    story.copied(story.second);
    let third = story.bench.attach("n3", 1, Inventory::default());
    story.bench.clear();
    story.bench.tell(Event::Detached { connection: story.first });
    assert_eq!(story.holders(), ["n2"]);
    assert!(!story.is_hidden(), "it could be read all the time");
    let (id, command) = story.bench.command();
    assert!(
        matches!(&command, Command::Replicate { place } if place.node.to_string() == "n2"),
        "{command:?}"
    );
    let snapshot = Some(snapshot_report(story.base));
    story.bench.done(third, id, Ok(Success { snapshot, ..Success::default() }));
    assert_eq!(story.holders(), ["n2", "n3"]);
    // It was only cut off: now there are three, and nobody minds.
    story.bench.attach("n1", 1, Story::held(NodeMemory::default(), &[story.base]));
    assert_eq!(story.holders(), ["n2", "n1", "n3"]);
    assert!(story.bench.commands().is_empty());
}

#[test]
fn a_holder_that_started_again_has_nothing_and_gets_a_copy() {
    let mut story = Story::begin(Settings::default());
    story.copied(story.second);
    story.bench.clear();
    let again = story.bench.attach("n1", 2, Inventory::default());
    assert!(!story.is_hidden());
    story.copied(again);
    assert_eq!(story.holders(), ["n2", "n1"]);
}

#[test]
fn a_base_that_was_away_is_back_with_any_copy_of_it() {
    let mut story = Story::begin(Settings::default());
    let (_, lost) = story.bench.command();
    assert!(matches!(lost, Command::Replicate { .. }));
    // The copy was made, but nobody heard of it before its node and then the holder went.
    story.bench.tell(Event::Detached { connection: story.second });
    story.bench.tell(Event::Detached { connection: story.first });
    assert!(story.is_hidden());
    story.bench.clear();
    story.bench.attach("n2", 1, Story::held(NodeMemory::default(), &[story.base]));
    assert_eq!(story.holders(), ["n2"]);
}

#[test]
fn copies_go_before_the_last_one_does() {
    let mut story = Story::begin(Settings::default());
    story.copied(story.second);
    story.bench.clear();
    story.bench.tell(Event::Removed { function: "f".parse().unwrap() });
    let purges = story.bench.commands();
    assert_eq!(purges.len(), 2, "{purges:?}");
    for (id, purge) in purges {
        let on_second = purge.sandbox() == Some(story.sandbox);
        let connection = if on_second { story.second } else { story.first };
        story.bench.succeed(connection, id, &purge);
    }
    let drops = |bench: &mut Bench| -> Vec<_> {
        let all = bench.commands().into_iter();
        all.filter(|(_, command)| matches!(command, Command::DropSnapshot { .. })).map(|(id, _)| id).collect()
    };
    let [copy] = drops(&mut story.bench)[..] else { panic!("the copy first") };
    assert!(story.is_hidden());
    story.bench.done(story.second, copy, Ok(Success::default()));
    let [last] = drops(&mut story.bench)[..] else { panic!("then the last one") };
    story.bench.done(story.first, last, Ok(Success::default()));
    assert!(story.bench.driver.snapshots.is_empty());
}

#[test]
fn a_copy_is_not_made_where_there_is_no_room_and_goes_where_there_is_none_left() {
    let full = |used| NodeMemory { cap_bytes: 1_000_000, used_bytes: used, ..NodeMemory::default() };
    let mut story = Story::begin(Settings { base_copies: 1, ..Settings::default() });
    story.bench.driver.settings.base_copies = 2;
    story.bench.clear();
    let third = story.bench.attach("n3", 1, Story::held(full(600_000), &[]));
    story.bench.tell(Event::Detached { connection: story.second });
    story.bench.driver.want_copies(std::iter::once(story.base));
    story.bench.tell(Event::Tick);
    assert!(story.bench.commands().is_empty(), "409,600 bytes more would fill it");
    // It is not looked for room at each report.
    story.bench.beat(third, Story::held(full(100_000), &[]));
    assert!(story.bench.commands().is_empty());
    for _second in 0..30 {
        story.bench.now = story.bench.now.after(SECOND);
        story.bench.beat(story.first, Story::held(NodeMemory::default(), &[story.base]));
        story.bench.beat(third, Story::held(full(100_000), &[]));
    }
    story.copied(third);
    assert_eq!(story.holders(), ["n1", "n3"]);
    story.bench.clear();
    story.bench.beat(third, Story::held(full(950_000), &[story.base]));
    let (id, command) = story.bench.command();
    assert!(matches!(command, Command::DropSnapshot { .. }), "{command:?}");
    story.bench.done(third, id, Ok(Success::default()));
    assert_eq!(story.holders(), ["n1"]);
    // Not at once again, although there would be room.
    story.bench.beat(third, Story::held(full(100_000), &[]));
    assert!(story.bench.commands().is_empty());
}

#[test]
fn a_node_that_is_drained_is_no_holder_to_count_on() {
    let mut story = Story::begin(Settings::default());
    story.copied(story.second);
    let third = story.bench.attach("n3", 1, Inventory::default());
    story.bench.clear();
    story.bench.tell(Event::Stands { node: "n1".parse().unwrap(), standing: Standing::Draining });
    let copies: Vec<_> = story.bench.commands();
    let copy = copies.iter().find(|(_, command)| matches!(command, Command::Replicate { .. }));
    let &(id, _) = copy.expect("a third one");
    let snapshot = Some(snapshot_report(story.base));
    story.bench.done(third, id, Ok(Success { snapshot, ..Success::default() }));
    assert_eq!(story.holders(), ["n1", "n2", "n3"]);
}

#[test]
fn after_a_restart_of_the_controller_what_images_refer_to_is_copied() {
    let mut bench = Bench::new(Settings::default(), &[function("f")]);
    let base = SnapshotId::new(7 << 32 | 1).unwrap();
    let mut image = report(SandboxId::of(7, 1).unwrap(), "f", SandboxState::Dedup);
    image.bases = vec![base];
    let inventory = Inventory { sandboxes: vec![image], ..Inventory::default() };
    bench.attach("n2", 1, inventory);
    assert!(bench.commands().is_empty(), "nobody knows where it is");
    bench.attach("n1", 1, Story::held(NodeMemory::default(), &[base]));
    let copies = bench.commands();
    let places = copies.iter().filter_map(|(_, command)| match command {
        Command::Replicate { place } => Some((place.snapshot, place.node.to_string())),
        _ => None,
    });
    assert_eq!(places.collect::<Vec<_>>(), [(base, "n1".into())]);
}

#[test]
fn a_copy_that_does_not_come_about_is_tried_again_later() {
    let mut story = Story::begin(Settings::default());
    let (id, _) = story.bench.command();
    story.bench.done(story.second, id, Err(crash(FailureKind::BaseLost)));
    assert!(story.bench.commands().is_empty());
    for _second in 0..40 {
        story.bench.now = story.bench.now.after(SECOND);
        story.bench.beat(story.first, Story::held(NodeMemory::default(), &[story.base]));
        story.bench.beat(story.second, Story::held(NodeMemory::default(), &[]));
    }
    story.copied(story.second);
    assert_eq!(story.holders(), ["n1", "n2"]);
}
