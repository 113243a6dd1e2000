//! One situation each.

use super::*;

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
fn what_was_parked_is_stored_small_once_it_has_waited_whatever_else_is_done() {
    let mut world = World::new();
    for sandbox in [1, 2, 3] {
        world.step(Step::Start(sandbox));
        world.finish(0, 0);
    }
    for sandbox in [1, 2] {
        world.step(Step::Park(sandbox));
        world.finish(0, 0);
    }
    world.apply(Event::Tick);
    assert_eq!(world.shrinking, None, "they may be wanted back at once");
    world.step(Step::Dedup(3));
    world.now += Duration::from_secs(3);
    world.apply(Event::Tick);
    assert_eq!(world.shrinking, Some(id(1)));
    world.step(Step::Restore(1));
    world.step(Step::Shrunk(false));
    assert_eq!(world.shrinking, Some(id(2)), "the next one at once");
    world.step(Step::Shrunk(true));
    assert_eq!(world.shrinking, None, "each is tried once");
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
