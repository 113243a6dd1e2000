//! When a warm sandbox is trimmed, how much of it, and what happens to who comes meanwhile.

use super::*;

/// One that has answered a request.
fn used() -> World {
    let mut world = World::new();
    world.step(Step::Start(1));
    world.finish(0, 0);
    request(&mut world);
    world
}

fn request(world: &mut World) {
    world.step(Step::Ask(1));
    let sandbox = world.inside.pop().expect("let in");
    world.apply(Event::RequestEnded { sandbox, answered: true });
}

/// Some time later: how many pages may be taken of it, if any.
fn later(world: &mut World, wait: Duration) -> Option<usize> {
    world.now += wait;
    let mut actions = Vec::new();
    world.driver.apply(world.now, Event::Tick, &mut actions);
    actions.into_iter().find_map(|action| match action {
        Action::Trim { pages_max, .. } => {
            world.work.push((id(1), Work::Trim));
            Some(pages_max)
        }
        _ => None,
    })
}

fn ended(world: &mut World, taken_pages: u64, missed_pages: u64, has_more: bool) {
    world.work.clear();
    let trimmed = Trimmed { taken_pages, missed_pages, has_more, stored_bytes: 5, ..Trimmed::default() };
    world.apply(Event::Trimmed { sandbox: id(1), result: Ok(trimmed) });
}

const SOON: Duration = Duration::from_millis(250);
const NEXT: Duration = Duration::from_secs(3);

#[test]
fn nobody_is_trimmed_who_was_not_used_since_or_where_it_is_not_wanted() {
    let mut world = World::new();
    world.step(Step::Start(1));
    world.finish(0, 0);
    assert_eq!(later(&mut world, NEXT), None, "it has not shown what it touches");
    request(&mut world);
    assert_eq!(later(&mut world, Duration::from_millis(50)), None, "the next request may be on its way");
    assert!(later(&mut world, SOON).is_some());
    ended(&mut world, 0, 0, true);
    assert_eq!(later(&mut world, NEXT), None, "not without a request in between");
    request(&mut world);
    assert!(later(&mut world, NEXT).is_some());

    let mut world = used();
    world.driver.trims = false;
    assert_eq!(later(&mut world, NEXT), None);
}

#[test]
fn steps_grow_while_nothing_is_missed_and_shrink_and_wait_when_it_is() {
    let mut world = used();
    let first = later(&mut world, NEXT).unwrap();
    ended(&mut world, 0, 0, true);
    let mut step = |missed, wait| {
        request(&mut world);
        let pages_max = later(&mut world, wait);
        pages_max.inspect(|pages_max| ended(&mut world, *pages_max as u64, missed, true))
    };
    assert_eq!(step(0, NEXT), Some(first), "nothing was taken yet");
    assert_eq!(step(0, NEXT), Some(first));
    assert_eq!(step(0, NEXT), Some(2 * first), "the last one was right");
    assert_eq!(step(2 * first as u64, NEXT), Some(4 * first));
    assert_eq!(step(0, NEXT), None, "half of the last one was missed: it waits");
    assert_eq!(step(2 * first as u64, 3 * NEXT), Some(2 * first));
    for _ in 0..20 {
        step(u64::MAX, 3 * NEXT);
    }
    assert_eq!(step(u64::MAX, 3 * NEXT), Some(8192), "counts that stand still are no misses");
}

#[test]
fn when_nothing_is_cold_it_rests() {
    let mut world = used();
    assert!(later(&mut world, NEXT).is_some());
    ended(&mut world, 0, 0, false);
    request(&mut world);
    assert_eq!(later(&mut world, 5 * NEXT), None);
    assert!(later(&mut world, Duration::from_secs(60)).is_some());
    let report = &world.driver.sandboxes(world.now, |_| Default::default())[0];
    assert_eq!((report.state, report.stored_bytes), (SandboxState::Warm, 5), "what is kept for it counts");
}

#[test]
fn who_comes_meanwhile_calls_it_off_and_is_let_in_at_its_end() {
    for how in 0..3 {
        let mut world = used();
        assert!(later(&mut world, NEXT).is_some());
        let mut actions = Vec::new();
        let ticket = Ticket(77);
        world.at_the_door.insert(ticket, id(1));
        world.driver.apply(world.now, Event::RequestAsked { sandbox: id(1), ticket }, &mut actions);
        assert!(matches!(actions[..], [Action::CancelPark { .. }]), "{actions:?}");
        world.step(Step::Park(1));
        world.finish(0, how);
        if how == 2 {
            assert_eq!(world.work, [(id(1), Work::Remove)], "it was lost, and both hear of it");
        } else {
            assert_eq!(world.inside, [id(1)], "the request came first");
        }
        assert!(world.at_the_door.is_empty() && world.unanswered.is_empty());
    }
}

#[test]
fn one_that_cannot_be_trimmed_is_left_alone() {
    let mut world = used();
    assert!(later(&mut world, NEXT).is_some());
    world.work.clear();
    let failure = Failure::new(FailureKind::DumpRefused, "it forks");
    world.apply(Event::Trimmed { sandbox: id(1), result: Err(DedupFailed { failure, lost: false }) });
    request(&mut world);
    assert_eq!(later(&mut world, Duration::from_secs(3600)), None);
    world.step(Step::Park(1));
    assert_eq!(world.work, [(id(1), Work::Park)], "but it can be parked, for all that is known");
}

#[test]
fn a_purge_waits_for_the_end_of_the_step_as_well() {
    let mut world = used();
    assert!(later(&mut world, NEXT).is_some());
    world.step(Step::Unwanted(1));
    world.step(Step::Purge(1));
    assert_eq!(world.work, [(id(1), Work::Trim)]);
    world.finish(0, 0);
    assert_eq!(world.work, [(id(1), Work::Remove)]);
    world.finish(0, 0);
    assert!(world.unanswered.is_empty() && world.driver.sandboxes.is_empty());
}
