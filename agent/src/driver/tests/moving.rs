//! Sandboxes that go to another node and come from one.

use super::*;

/// The node that they go to and come from.
fn other() -> NodeId {
    "n2".parse().unwrap()
}

impl World {
    pub(super) fn offer(&mut self, sandbox: u8) {
        self.command(Command::Offer { sandbox: id(sandbox), to: other() });
    }

    pub(super) fn take(&mut self, sandbox: u8) {
        let function = Box::new(FunctionSpec::from_toml(FUNCTION).unwrap());
        let (sandbox, address) = (id(sandbox), "n2:1".into());
        self.command(Command::Take { sandbox, function, revision: 1, from: other(), address });
    }

    pub(super) fn taken(&mut self, sandbox: SandboxId, good: bool) {
        self.gone.remove(&sandbox);
        let result = if good { Ok(Taken::default()) } else { Err(failure()) };
        self.apply(Event::Taken { sandbox, result });
        self.leave(sandbox);
    }

    /// The other node asks for one: to read it, or to have it.
    pub(super) fn claim(&mut self, sandbox: u8, give_up: bool) {
        let (ticket, sandbox) = (Ticket(self.next), id(sandbox));
        self.next += 1;
        self.at_the_door.insert(ticket, sandbox);
        self.claims.insert(ticket, give_up);
        let offered = OfferedSandbox { sandbox, to: other() };
        self.apply(Event::OfferAsked { offered, give_up, ticket });
    }

    /// It gets what it asked for.
    pub(super) fn claimed(&mut self, sandbox: SandboxId, all: bool) {
        assert!(!self.alive.contains(&sandbox), "what goes is an image alone");
        let worked_on = |(other, work): &(SandboxId, Work)| *other == sandbox && *work != Work::Remove;
        assert!(!self.work.iter().any(worked_on), "it goes while it is worked on");
        assert!(all || !self.gone.contains(&sandbox), "it has gone");
        if all {
            self.gone.insert(sandbox);
        }
    }
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
    let third = OfferedSandbox { sandbox: id(1), to: "n3".parse().unwrap() };
    let mut actions = Vec::new();
    let claim = Event::OfferAsked { offered: third, give_up: true, ticket: Ticket(2_000) };
    world.driver.apply(world.now, claim, &mut actions);
    assert!(matches!(actions[..], [Action::Refuse { .. }]), "it is offered to another node: {actions:?}");
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
