//! Sandboxes in dedup and parked ones that outlive their agent.

use super::*;

impl World {
    /// What the next agent is to have is said after each piece of work, if it is in dedup then.
    pub(super) fn leave(&mut self, sandbox: SandboxId) {
        if self.driver.resting(sandbox).is_some() {
            self.left.insert(sandbox);
        }
    }

    pub(super) fn put_away(&mut self, sandbox: SandboxId, result: Result<Deduped, DedupFailed>) {
        self.apply(Event::Deduped { sandbox, result });
        self.leave(sandbox);
    }

    /// And taken back before anything is done with it.
    pub(super) fn take_back(&mut self, actions: &[Action]) {
        for action in actions {
            if let Action::Restore { sandbox, .. }
            | Action::Remove { sandbox }
            | Action::Dedup { sandbox, .. } = action
            {
                self.left.remove(sandbox);
            }
        }
    }

    /// The agent is gone, and another one takes over what it left.
    pub(super) fn crash(&mut self) {
        for sandbox in &self.left {
            let runs = self.alive.contains(sandbox) && !self.parked.contains(sandbox);
            assert!(!runs, "a second life of {sandbox}, which runs");
            assert!(!self.gone.contains(sandbox), "a second life of {sandbox}, which another node has");
        }
        let before = std::mem::replace(self, Self::new());
        (self.now, self.next) = (before.now, before.next);
        for id in before.snapshots {
            let report =
                SnapshotReport { id, function: "f".parse().unwrap(), pages: 1, bytes: 4096, init: None };
            self.snapshots.push(id);
            self.apply(Event::TakenInBase(report));
        }
        for sandbox in before.left {
            let spec = Box::new(FunctionSpec::from_toml(FUNCTION).unwrap());
            let (taken, age) = (Taken { requests: 3, ..Taken::default() }, Duration::from_secs(5));
            let is_parked = before.parked.contains(&sandbox);
            if is_parked {
                self.alive.insert(sandbox);
                self.parked.insert(sandbox);
            }
            self.apply(Event::TakenIn { sandbox, spec, revision: 7, taken, age, is_parked });
            self.leave(sandbox);
            assert!(self.left.contains(&sandbox));
        }
    }
}

#[test]
fn what_rests_in_dedup_is_taken_over_and_nothing_else() {
    let mut world = World::new();
    world.command(Command::Replicate { place: elsewhere(1) });
    world.step(Step::Replicated(true));
    for sandbox in 1..4 {
        world.step(Step::Start(sandbox));
        world.finish(0, 0);
    }
    world.step(Step::Dedup(1));
    world.finish(0, 0);
    world.step(Step::Park(2));
    world.finish(0, 0);
    world.step(Step::Crash);
    let reports = |world: &World| world.driver.sandboxes(world.now, |_| Default::default());
    let [report, parked] = &reports(&world)[..] else { panic!("two, the third one ran") };
    assert_eq!((report.id, report.state, report.requests), (id(1), SandboxState::Dedup, 3));
    assert_eq!((parked.id, parked.state), (id(2), SandboxState::Parked));
    assert_eq!((report.function_revision, report.state_age), (7, Duration::from_secs(5)));
    assert_eq!(world.driver.snapshots().len(), 1);
    // From here on it is like any other.
    world.step(Step::Restore(1));
    assert_eq!(world.left.iter().collect::<Vec<_>>(), [&id(2)], "its image is being used");
    world.step(Step::Crash);
    assert_eq!(reports(&world).len(), 1, "half a restore is no sandbox");
    world.step(Step::Restore(2));
    world.finish(0, 0);
    world.step(Step::Ask(2));
    world.step(Step::Crash);
    assert!(reports(&world).is_empty(), "it ran");
}
