//! What agents do with what they are told, and what they tell: now and then it fails, or nobody hears of it.

use medes_proto::registry::Acquire;

use super::*;

impl World {
    pub(super) fn commanded(&mut self, connection: ConnectionId, id: CommandId, command: Command) {
        let agent = self.agent_of(connection).expect("a command on a stream that is open");
        self.has_key(agent, &command);
        if let Command::CancelPark { sandbox } = command {
            // About a command under way, not a second one.
            assert!(
                self.under_way.contains_key(&(connection, sandbox)),
                "{sandbox} is called back from nothing"
            );
            self.saw("called back");
        } else if let Some(sandbox) = command.sandbox() {
            let other = self.under_way.insert((connection, sandbox), id);
            assert_eq!(other, None, "{sandbox}: one command at a time");
        }
        if let Command::DropSnapshot { snapshot } = command {
            // A copy may go while others hold it.
            let held_by = |other: &Agent| other.snapshots.contains_key(&snapshot);
            let last = self.agents.iter().filter(|other| held_by(other)).count() <= 1;
            for agent in self.agents.iter().filter(|_| last) {
                for (id, held) in &agent.sandboxes {
                    assert!(!held.bases.contains(&snapshot), "{snapshot} is dropped, {id} refers to it");
                }
            }
            self.saw(if last { "base dropped" } else { "copy dropped" });
        }
        let agent = &mut self.agents[agent];
        if matches!(command, Command::Start { .. } | Command::Restore { .. }) {
            agent.starting.insert(id);
            let will_use = agent.ledger + agent.starting.len() as u64 * WARM;
            let tail = self.log.len().saturating_sub(60);
            assert!(
                will_use <= CAP,
                "a start over the cap: {} MiB\n{}",
                will_use / MIB,
                self.log[tail..].join("\n")
            );
        }
        agent.inbox.push_back((id, command));
    }

    /// The node's stream ends; what the agent has yet to answer it can no longer answer here.
    pub(super) fn cut(&mut self, agent: usize) {
        let known: BTreeMap<SnapshotId, Snapshot> =
            self.agents.iter().flat_map(|agent| agent.snapshots.clone()).collect();
        let agent = &mut self.agents[agent];
        if let Some(connection) = agent.connection.take() {
            self.under_way.retain(|&(on, _), _| on != connection);
        }
        agent.starting.clear();
        agent.acquiring = None;
        // Half of the commands had arrived before, and are carried out without anybody hearing of it.
        let arrived = agent.inbox.len() / 2;
        let commands: Vec<_> = agent.inbox.drain(..).take(arrived).collect();
        for (_, command) in commands {
            match command {
                Command::Start { sandbox, function, revision, .. } => {
                    let function = function.name.to_string();
                    let state = SandboxState::Warm;
                    let held = Held {
                        function,
                        revision,
                        state,
                        bases: Vec::new(),
                        source_of: None,
                        open: 0,
                        served: false,
                    };
                    agent.sandboxes.insert(sandbox, held);
                }
                Command::Purge { sandbox } => drop(agent.sandboxes.remove(&sandbox)),
                Command::DropSnapshot { snapshot } => drop(agent.snapshots.remove(&snapshot)),
                Command::Replicate { place } => {
                    if let Some(copy) = known.get(&place.snapshot).cloned() {
                        agent.snapshots.insert(place.snapshot, copy);
                    }
                }
                _ => {}
            }
        }
        for held in agent.sandboxes.values_mut() {
            held.state = match held.state {
                SandboxState::Deduping => SandboxState::Warm,
                SandboxState::Restoring => SandboxState::Dedup,
                other => other,
            };
        }
    }

    pub(super) fn end_sandbox(&mut self, agent: usize, id: SandboxId) {
        self.agents[agent].sandboxes.remove(&id);
    }

    pub(super) fn attach(&mut self, at: usize) {
        self.bench.connections += 1;
        let connection = ConnectionId(self.bench.connections);
        let fresh = self.dice.one_in(3) || self.agents[at].incarnation == 0;
        self.cut(at);
        if fresh {
            let incarnation = self.agents[at].incarnation + 1;
            self.agents[at] = Agent { incarnation, ..Agent::default() };
        }
        let agent = &mut self.agents[at];
        agent.connection = Some(connection);
        (agent.ledger, agent.unheard) = (agent.used(), 0);
        let hello = Hello {
            node: format!("n{at}").parse().unwrap(),
            incarnation: agent.incarnation,
            version: "1".into(),
            address: format!("n{at}:1"),
            inventory: agent.inventory(),
            lacks: Vec::new(),
        };
        self.tell(Event::Attached { connection, hello: Box::new(hello) });
    }

    pub(super) fn beat(&mut self, at: usize) {
        let agent = &mut self.agents[at];
        let Some(connection) = agent.connection else { return };
        (agent.ledger, agent.unheard) = (agent.used(), 0);
        let inventory = Box::new(agent.inventory());
        self.tell(Event::Reported { connection, inventory });
    }

    /// An agent takes its next command and, most of the time, ends it.
    pub(super) fn work(&mut self, at: usize) {
        if let Some((id, sandbox, bases, ticket)) = self.agents[at].acquiring.take() {
            return self.deduped(at, id, sandbox, bases, ticket);
        }
        let Some((id, command)) = self.agents[at].inbox.pop_front() else { return };
        if self.dice.one_in(40) {
            // Never answered: the driver must notice by itself.
            return self.saw("forgotten");
        }
        if let Command::Take { sandbox, ref from, .. } = command {
            return self.take(at, id, sandbox, from.as_str(), &command);
        }
        // Whatever is done to a sandbox withdraws it.
        if let Some(sandbox) = command.sandbox() {
            self.agents[at].offers.remove(&sandbox);
        }
        let fails = self.dice.one_in(6);
        let refers = self.dice.below(3);
        let known = |id| self.agents.iter().find_map(|agent| agent.snapshots.get(&id).cloned());
        let source = match &command {
            Command::Start { clone_of: Some(place), .. } | Command::Replicate { place } => {
                known(place.snapshot)
            }
            _ => None,
        };
        let agent = &mut self.agents[at];
        let state =
            command.sandbox().and_then(|sandbox| agent.sandboxes.get(&sandbox)).map(|held| held.state);
        let result = match (&command, state) {
            (Command::Start { clone_of: Some(_), .. }, _) if fails || source.is_none() => {
                *self.seen.entry("not cloned").or_default() += 1;
                Err([FailureKind::Corrupt, FailureKind::NoSpace, FailureKind::BaseLost][refers])
            }
            (Command::Start { .. }, _) if fails => {
                let kinds = [FailureKind::NeverReady, FailureKind::NoSpace, FailureKind::OutOfMemory];
                Err(kinds[refers])
            }
            (Command::Start { sandbox, function, revision, clone_of }, None) => {
                if clone_of.is_some() {
                    let (of, init) = source.unwrap();
                    assert_eq!(of, function.name.as_str(), "{sandbox} is a clone of another function");
                    assert_eq!(init, Some(InitState { revision: *revision, clonable: true }), "{sandbox}");
                    *self.seen.entry("cloned").or_default() += 1;
                }
                let held = Held {
                    function: function.name.to_string(),
                    revision: *revision,
                    state: SandboxState::Warm,
                    bases: Vec::new(),
                    source_of: None,
                    open: 0,
                    served: false,
                };
                agent.sandboxes.insert(*sandbox, held);
                Ok(())
            }
            (Command::Purge { sandbox }, Some(_)) => {
                agent.sandboxes.remove(sandbox);
                Ok(())
            }
            (Command::Replicate { .. }, _) if fails || source.is_none() => Err(FailureKind::BaseLost),
            (Command::Replicate { place }, _) => {
                agent.snapshots.insert(place.snapshot, source.unwrap());
                *self.seen.entry("base copied").or_default() += 1;
                Ok(())
            }
            (Command::DropSnapshot { snapshot }, _) => {
                agent.snapshots.remove(snapshot).map(drop).ok_or(FailureKind::NotFound)
            }
            (_, None) => Err(FailureKind::NotFound),
            (Command::Dedup { .. }, Some(SandboxState::Parked)) if fails => {
                agent.sandboxes.remove(&command.sandbox().unwrap());
                Err(FailureKind::Crashed)
            }
            (Command::Dedup { .. } | Command::MakeBase { .. }, Some(SandboxState::Warm)) if fails => {
                Err([FailureKind::DumpRefused, FailureKind::DedupFailed, FailureKind::NoSpace][refers])
            }
            (Command::CancelPark { .. }, _) => Ok(()),
            (Command::Offer { .. }, Some(SandboxState::Dedup)) if fails => Err(FailureKind::Internal),
            (Command::Offer { sandbox, to }, Some(SandboxState::Dedup)) => {
                agent.offers.insert(*sandbox, to.to_string());
                Ok(())
            }
            (Command::Park { .. }, Some(SandboxState::Warm)) if fails => {
                Err([FailureKind::DedupFailed, FailureKind::Cancelled, FailureKind::DumpRefused][refers])
            }
            (Command::Park { sandbox, .. }, Some(SandboxState::Warm)) => {
                let held = agent.sandboxes.get_mut(sandbox).unwrap();
                assert_eq!(held.open, 0, "{sandbox} is parked while it serves");
                held.state = SandboxState::Parked;
                Ok(())
            }
            (Command::Restore { sandbox, .. }, Some(SandboxState::Parked)) => {
                agent.sandboxes.get_mut(sandbox).unwrap().state = SandboxState::Warm;
                Ok(())
            }
            (Command::Dedup { sandbox, .. }, Some(SandboxState::Warm | SandboxState::Parked)) => {
                let held = agent.sandboxes.get_mut(sandbox).unwrap();
                assert_eq!(held.open, 0, "{sandbox} is dumped while it serves");
                held.state = SandboxState::Deduping;
                let sandbox = *sandbox;
                return self.acquire(at, id, sandbox, refers);
            }
            (Command::MakeBase { sandbox, snapshot, init }, Some(SandboxState::Warm)) => {
                let held = agent.sandboxes.get_mut(sandbox).unwrap();
                assert_eq!(held.open, 0, "{sandbox} is copied while it serves");
                let init = init.then_some(InitState { revision: held.revision, clonable: refers > 0 });
                if init.is_some() {
                    assert!(!held.served, "{sandbox} has served, and others are made of it");
                    *self.seen.entry("init snapshot").or_default() += 1;
                } else {
                    held.source_of = Some(*snapshot);
                }
                agent.snapshots.insert(*snapshot, (held.function.clone(), init));
                Ok(())
            }
            (Command::Restore { sandbox, .. }, Some(SandboxState::Dedup)) if fails => {
                if refers > 0 {
                    agent.sandboxes.remove(sandbox);
                }
                Err([FailureKind::NoSpace, FailureKind::Corrupt, FailureKind::BaseLost][refers])
            }
            (Command::Restore { sandbox, .. }, Some(SandboxState::Dedup)) => {
                let held = agent.sandboxes.get_mut(sandbox).unwrap();
                held.state = SandboxState::Warm;
                held.bases.clear();
                Ok(())
            }
            _ => Err(FailureKind::Busy),
        };
        self.done(at, id, &command, result);
    }

    /// A node takes a sandbox over, if it is offered to it. The other one gives it up before this one has it.
    pub(super) fn take(
        &mut self,
        at: usize,
        id: CommandId,
        sandbox: SandboxId,
        from: &str,
        command: &Command,
    ) {
        let from = (0..NODES).find(|other| format!("n{other}") == from).expect("a node");
        let to_me = |to: &String| *to == format!("n{at}");
        let offered = self.agents[from].offers.get(&sandbox).is_some_and(to_me);
        let there = self.agents[from].sandboxes.get(&sandbox);
        let there = there.is_some_and(|held| held.state == SandboxState::Dedup);
        let fails = self.dice.one_in(4) || !offered || !there;
        if fails {
            self.saw("not taken");
            let kinds = [FailureKind::Corrupt, FailureKind::Internal, FailureKind::NoSpace];
            let kind = kinds[self.dice.below(3)];
            return self.done(at, id, command, Err(kind));
        }
        self.agents[from].offers.remove(&sandbox);
        let held = self.agents[from].sandboxes.remove(&sandbox).expect("who offers it has it");
        assert_eq!((held.state, held.open), (SandboxState::Dedup, 0), "{sandbox} is only an image");
        self.agents[at].sandboxes.insert(sandbox, held);
        if self.dice.one_in(3) {
            // It is done with it, and nobody hears so.
            self.under_way.retain(|_, other| *other != id);
            self.agents[at].unheard += STORED;
            return self.saw("taken in silence");
        }
        self.saw("taken");
        self.done(at, id, command, Ok(()));
    }

    pub(super) fn acquire(&mut self, at: usize, id: CommandId, sandbox: SandboxId, refers: usize) {
        let placed: Vec<_> = self.placed.iter().copied().collect();
        let bases: BTreeSet<_> = (0..refers).filter_map(|_| self.dice.pick(&placed)).collect();
        let bases: Vec<_> = bases.into_iter().collect();
        self.bench.tickets += 1;
        let ticket = Ticket(self.bench.tickets);
        self.agents[at].acquiring = Some((id, sandbox, bases.clone(), ticket));
        self.tell(Event::Acquire { ticket, acquire: Acquire { sandbox, snapshots: bases } });
    }

    pub(super) fn deduped(
        &mut self,
        at: usize,
        id: CommandId,
        sandbox: SandboxId,
        bases: Vec<SnapshotId>,
        ticket: Ticket,
    ) {
        let granted = self.acquired[&ticket];
        let Some(held) = self.agents[at].sandboxes.get_mut(&sandbox) else { return };
        let command = Command::Dedup { sandbox, digest_memory: false, base: None };
        if !granted {
            held.state = SandboxState::Warm;
            return self.done(at, id, &command, Err(FailureKind::DedupFailed));
        }
        (held.state, held.bases) = (SandboxState::Dedup, bases);
        self.saw("deduplicated");
        self.done(at, id, &command, Ok(()));
    }

    pub(super) fn done(
        &mut self,
        at: usize,
        id: CommandId,
        command: &Command,
        result: Result<(), FailureKind>,
    ) {
        let agent = &mut self.agents[at];
        let Some(connection) = agent.connection else { return };
        agent.starting.remove(&id);
        let result = match result {
            Err(kind) => Err(crash(kind)),
            Ok(()) => {
                let sandbox = command.sandbox().filter(|sandbox| agent.sandboxes.contains_key(sandbox));
                let about = match command {
                    Command::MakeBase { snapshot, .. } => Some(*snapshot),
                    Command::Replicate { place } => Some(place.snapshot),
                    _ => None,
                };
                let report = |snapshot| {
                    let (name, init) = agent.snapshots.get(&snapshot)?;
                    let function = name.parse().unwrap();
                    Some(SnapshotReport { function, init: *init, ..snapshot_report(snapshot) })
                };
                let snapshot = about.and_then(report);
                agent.ledger = agent.used().saturating_sub(agent.unheard);
                let sandbox = sandbox.map(|sandbox| agent.report(sandbox));
                Ok(Success { sandbox, snapshot, ..Success::default() })
            }
        };
        if let Some(sandbox) = command.sandbox() {
            // Overdue ones were given up before; another command may be under way by now.
            if self.under_way.get(&(connection, sandbox)) == Some(&id) {
                self.under_way.remove(&(connection, sandbox));
            }
        }
        self.saw(if result.is_ok() { "done" } else { "not done" });
        self.tell(Event::Done { connection, command: id, result: Box::new(result) });
    }

    pub(super) fn idle(&mut self, at: usize) {
        let Some(connection) = self.agents[at].connection else { return };
        let all: Vec<_> = self.agents[at].sandboxes.keys().copied().collect();
        if let Some(sandbox) = self.dice.pick(&all) {
            self.tell(Event::Idle { connection, sandbox, idle: Duration::from_secs(1) });
        }
    }

    pub(super) fn gone(&mut self, at: usize) {
        let Some(connection) = self.agents[at].connection else { return };
        let all: Vec<_> = self.agents[at].sandboxes.keys().copied().collect();
        if let Some(sandbox) = self.dice.pick(&all) {
            self.end_sandbox(at, sandbox);
            self.agents[at].ledger = self.agents[at].used().saturating_sub(self.agents[at].unheard);
            let why = crash(FailureKind::Crashed);
            self.tell(Event::Gone { connection, sandbox, why });
        }
    }
}
