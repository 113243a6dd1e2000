//! The truth that the driver only hears of: agents, their sandboxes, callers, and the clock.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use medes_controller::{
    driver::{self, Action, ConnectionId, Driver, Event, RequestEnd, RequestId},
    now::Now,
    policy::PolicySettings,
};
use medes_proto::{
    fleet::{Command, Hello, Inventory, NodeMemory, SnapshotReport, Success},
    ids::{CommandId, FunctionName, SandboxId, SnapshotId},
    sandbox::{SandboxReport, SandboxState},
};

use super::{
    agent::{Agent, Held, spec},
    costs::{Cost, Costs},
    outcome::Outcome,
    trace::Trace,
};
use crate::dice::Dice;

const MINUTE: Duration = Duration::from_secs(60);
const PAGE_BYTES: u64 = 4096;

/// What the way to a warm sandbox and back takes.
const WARM_START: Duration = Duration::from_millis(1);

/// The driver's settings here never ask for it.
const NOT_HERE: &str = "parks and copies of bases are not simulated";

/// What a purge takes.
const PURGE: Duration = Duration::from_millis(10);
/// A move to another node: what it takes besides the bytes, and bytes in a second.
const MOVE: Duration = Duration::from_millis(50);
const MOVE_BYTES_PER_SECOND: f64 = 200e6;

/// How long a caller waits.
const DEADLINE: Duration = Duration::from_secs(600);

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) nodes: u32,
    pub(super) node_bytes: u64,
    pub(super) seed: u64,
    pub(super) heartbeat: Duration,
    /// Minutes that are not counted.
    pub(super) warm_up: usize,
    pub(super) policy: PolicySettings,
}

#[derive(Debug)]
struct Caller {
    function: u32,
    arrived: Now,
    counts: bool,
    sandbox: Option<SandboxId>,
}

#[derive(Debug)]
enum What {
    Arrives(u32),
    Minute(usize),
    Ends(RequestId),
    Does {
        agent: usize,
        id: CommandId,
        command: Box<Command>,
    },
    Beats(usize),
    /// An agent looks whether a sandbox has been idle since then.
    Looks {
        agent: usize,
        sandbox: SandboxId,
        since: Now,
    },
    Wakes,
}

/// A cluster.
pub(super) struct World<'t> {
    trace: &'t Trace,
    costs: &'t Costs,
    settings: Settings,
    names: Vec<FunctionName>,
    numbers: BTreeMap<FunctionName, u32>,
    driver: Driver,
    agents: Vec<Agent>,
    /// Where each sandbox is.
    homes: BTreeMap<SandboxId, usize>,
    callers: BTreeMap<RequestId, Caller>,
    dice: Dice,
    now: Now,
    planned: BTreeMap<(Now, u64), What>,
    counter: u64,
    /// When the driver will be woken.
    wakes: BTreeSet<Now>,
    actions: Vec<Action>,
    outcome: Outcome,
}

/// Connections are numbered like nodes, from one.
const fn agent_of(connection: ConnectionId) -> usize {
    connection.0 as usize - 1
}

const fn connection_of(agent: usize) -> ConnectionId {
    ConnectionId(agent as u64 + 1)
}

impl<'t> World<'t> {
    pub(super) fn new(trace: &'t Trace, costs: &'t Costs, settings: Settings) -> Self {
        let names: Vec<FunctionName> = (0..trace.functions.len())
            .map(|number| format!("f{number}").parse().unwrap_or_else(|_| unreachable!("a plain name")))
            .collect();
        let specs = (0..).zip(&names).map(|(number, name)| (spec(name, costs.of(number)), 1));
        let driver_settings = driver::Settings {
            // Nobody falls silent here.
            silent_max: settings.heartbeat * 1_000,
            nodes_max: settings.nodes as usize,
            // Nodes do not fail here, so copies would only be a cost.
            base_copies: 1,
            ..driver::Settings::default()
        };
        let driver = Driver::new(Now::START, driver_settings, settings.policy.build(), specs);
        Self {
            trace,
            costs,
            settings,
            numbers: names.iter().cloned().zip(0..).collect(),
            names,
            driver,
            agents: (0..settings.nodes).map(|_| Agent::default()).collect(),
            homes: BTreeMap::new(),
            callers: BTreeMap::new(),
            dice: Dice(settings.seed),
            now: Now::START,
            planned: BTreeMap::new(),
            counter: 0,
            wakes: BTreeSet::new(),
            actions: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    /// Until the trace is over and every request is answered.
    pub(super) fn run(mut self) -> Result<Outcome> {
        for agent in 0..self.agents.len() {
            let hello = Hello {
                node: format!("n{agent}").parse().context("name a node")?,
                incarnation: 1,
                version: env!("CARGO_PKG_VERSION").into(),
                address: format!("n{agent}:1"),
                inventory: self.inventory(agent),
                lacks: Vec::new(),
            };
            self.tell(Event::Attached { connection: connection_of(agent), hello: Box::new(hello) })?;
            // Not all at once.
            let share = self.settings.heartbeat * agent as u32 / self.settings.nodes;
            self.plan(share, What::Beats(agent));
        }
        self.plan(Duration::ZERO, What::Minute(0));
        let end = Now::START.after(MINUTE * self.trace.minutes() as u32);
        while let Some(((at, _), what)) = self.planned.pop_first() {
            if at > end && self.callers.is_empty() {
                break;
            }
            self.now = at;
            self.happen(what)?;
        }
        ensure!(self.callers.is_empty(), "{} requests were never answered", self.callers.len());
        ensure!(self.driver.open_requests() == 0, "the driver still thinks of requests");
        Ok(self.outcome)
    }

    fn plan(&mut self, after: Duration, what: What) {
        self.counter += 1;
        self.planned.insert((self.now.after(after), self.counter), what);
    }

    fn happen(&mut self, what: What) -> Result<()> {
        match what {
            What::Minute(minute) => self.minute(minute),
            What::Arrives(function) => self.arrives(function)?,
            What::Ends(request) => self.ends(request)?,
            What::Does { agent, id, command } => self.does(agent, id, &command)?,
            What::Beats(agent) => {
                let inventory = Box::new(self.inventory(agent));
                self.tell(Event::Reported { connection: connection_of(agent), inventory })?;
                self.plan(self.settings.heartbeat, What::Beats(agent));
            }
            What::Looks { agent, sandbox, since } => {
                let held = self.agents[agent].sandboxes.get(&sandbox);
                let idle =
                    held.filter(|held| held.idle_since == Some(since) && held.state == SandboxState::Warm);
                if idle.is_some() {
                    let idle = self.now.since(since);
                    self.tell(Event::Idle { connection: connection_of(agent), sandbox, idle })?;
                }
            }
            What::Wakes => {
                self.wakes.remove(&self.now);
                self.tell(Event::Tick)?;
            }
        }
        Ok(())
    }

    fn minute(&mut self, minute: usize) {
        if minute > self.settings.warm_up {
            self.outcome.bytes.push(self.agents.iter().map(|agent| agent.used_bytes).sum());
        }
        if minute < self.trace.minutes() {
            for (after, function) in self.trace.arrivals(minute, &mut self.dice) {
                self.plan(after, What::Arrives(function));
            }
            self.plan(MINUTE, What::Minute(minute + 1));
        }
    }

    fn counts(&self) -> bool {
        self.now.since(Now::START) >= MINUTE * self.settings.warm_up as u32
    }

    fn arrives(&mut self, function: u32) -> Result<()> {
        self.counter += 1;
        let request = RequestId(self.counter);
        let caller = Caller { function, arrived: self.now, counts: self.counts(), sandbox: None };
        self.callers.insert(request, caller);
        let function = self.names[function as usize].clone();
        self.tell(Event::Requested { request, function, prefer: None, deadline: DEADLINE })
    }

    fn ends(&mut self, request: RequestId) -> Result<()> {
        // One that was refused meanwhile has had its answer.
        let Some(Caller { function, sandbox: Some(sandbox), .. }) = self.callers.remove(&request) else {
            return Ok(());
        };
        self.leave(sandbox);
        let took = self.trace.functions[function as usize].execution;
        self.tell(Event::Ended { request, end: RequestEnd::Answered { took } })
    }

    /// A request leaves its sandbox.
    fn leave(&mut self, sandbox: SandboxId) {
        let Some(&agent) = self.homes.get(&sandbox) else { return };
        let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) else { return };
        held.open = held.open.saturating_sub(1);
        if held.open == 0 {
            self.rest(agent, sandbox);
        }
    }

    /// A sandbox has nothing to do from now on.
    fn rest(&mut self, agent: usize, sandbox: SandboxId) {
        let since = self.now;
        if let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) {
            held.idle_since = Some(since);
        }
        self.plan(self.settings.policy.periods.idle, What::Looks { agent, sandbox, since });
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        self.outcome.events += 1;
        let mut actions = std::mem::take(&mut self.actions);
        self.driver.apply(self.now, event, &mut actions);
        for action in actions.drain(..) {
            self.perform(action)?;
        }
        self.actions = actions;
        if let Some(at) = self.driver.wake_at() {
            let at = at.max(self.now);
            if self.wakes.first().is_none_or(|first| at < *first) && self.wakes.insert(at) {
                self.plan(at.since(self.now), What::Wakes);
            }
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Command { connection, id, command } => {
                self.commanded(agent_of(connection), id, command)?;
            }
            Action::Send { request, target } => {
                let (wait, function, counts) = {
                    let caller =
                        self.callers.get_mut(&request).context("a request that nobody made was sent")?;
                    ensure!(caller.sandbox.is_none(), "{request:?} was sent twice");
                    caller.sandbox = Some(target.sandbox);
                    (self.now.since(caller.arrived), caller.function, caller.counts)
                };
                let agent = *self.homes.get(&target.sandbox).context("a request went to no sandbox")?;
                let held = self.agents[agent].sandboxes.get_mut(&target.sandbox);
                let held = held.context("a request went to a sandbox that is gone")?;
                ensure!(held.state == SandboxState::Warm, "{request:?} went to a sandbox that is not warm");
                held.open += 1;
                held.idle_since = None;
                let execution = self.trace.functions[function as usize].execution;
                if counts {
                    self.outcome.count(target.start, wait, execution);
                }
                self.plan(WARM_START + execution, What::Ends(request));
            }
            Action::Refuse { request, .. } => {
                let caller = self.callers.remove(&request).context("a request was answered twice")?;
                if let Some(sandbox) = caller.sandbox {
                    self.leave(sandbox);
                }
                self.outcome.refused += u64::from(caller.counts);
            }
            Action::Close { why, .. } => anyhow::bail!("the driver ended a stream: {why}"),
            Action::Welcome { .. }
            | Action::IdlePeriod { .. }
            | Action::Answer { .. }
            | Action::ExpectSnapshot(_)
            | Action::PlaceSnapshot { .. }
            | Action::HideSnapshot(_)
            | Action::ForgetSnapshot(_)
            | Action::Tell(_) => {}
        }
        Ok(())
    }

    /// A command arrives; its end is planned.
    fn commanded(&mut self, agent: usize, id: CommandId, command: Command) -> Result<()> {
        let state = |world: &mut Self, sandbox, from, to| -> Result<u32> {
            let held = world.agents[agent].sandboxes.get_mut(&sandbox).context("no such sandbox")?;
            ensure!(held.state == from && held.open == 0, "{sandbox} is not as {command:?} needs it");
            held.state = to;
            Ok(held.function)
        };
        let takes = match &command {
            Command::Start { sandbox, function, revision, clone_of: None } => {
                let number = *self.numbers.get(&function.name).context("a function nobody has")?;
                let held = Held {
                    function: number,
                    revision: *revision,
                    state: SandboxState::Starting,
                    bases: Vec::new(),
                    stored_bytes: 0,
                    source_of: None,
                    idle_since: None,
                    open: 0,
                };
                self.agents[agent].sandboxes.insert(*sandbox, held);
                self.homes.insert(*sandbox, agent);
                self.outcome.sandboxes_max = self.outcome.sandboxes_max.max(self.homes.len());
                let cost = self.costs.of(number);
                let (bytes, cold) = (cost.warm_bytes, cost.cold);
                self.grow(agent, bytes);
                cold
            }
            Command::MakeBase { sandbox, .. } => {
                let function = state(self, *sandbox, SandboxState::Warm, SandboxState::Warm)?;
                self.costs.of(function).dedup
            }
            Command::Dedup { sandbox, .. } => {
                let function = state(self, *sandbox, SandboxState::Warm, SandboxState::Deduping)?;
                self.costs.of(function).dedup
            }
            Command::Restore { sandbox, .. } => {
                let function = state(self, *sandbox, SandboxState::Dedup, SandboxState::Restoring)?;
                let cost = self.costs.of(function);
                let (bytes, restore) = (cost.warm_bytes, cost.restore);
                self.grow(agent, bytes);
                restore
            }
            Command::Purge { .. } | Command::DropSnapshot { .. } => PURGE,
            Command::Offer { .. } => Duration::from_millis(1),
            Command::Take { sandbox, .. } => {
                let home = self.homes.get(sandbox).context("no such sandbox")?;
                let bytes = self.agents[*home].sandboxes[sandbox].stored_bytes;
                MOVE + Duration::from_secs_f64(bytes as f64 / MOVE_BYTES_PER_SECOND)
            }
            Command::Start { .. }
            | Command::Park { .. }
            | Command::CancelPark { .. }
            | Command::Replicate { .. } => {
                anyhow::bail!("{NOT_HERE}")
            }
        };
        self.plan(takes, What::Does { agent, id, command: Box::new(command) });
        Ok(())
    }

    /// A command has been carried out.
    fn does(&mut self, agent: usize, id: CommandId, command: &Command) -> Result<()> {
        let mut success = Success::default();
        match command {
            Command::Start { sandbox, .. } => self.becomes(agent, *sandbox, SandboxState::Warm)?,
            Command::MakeBase { sandbox, snapshot, .. } => {
                let held = self.agents[agent].sandboxes.get_mut(sandbox).context("no such sandbox")?;
                held.source_of = Some(*snapshot);
                let function = held.function;
                self.agents[agent].snapshots.insert(*snapshot, function);
                self.grow(agent, self.costs.of(function).warm_bytes);
                success.snapshot = Some(self.snapshot(*snapshot, function));
                self.outcome.bases += 1;
                self.rest(agent, *sandbox);
            }
            Command::Dedup { sandbox, base, .. } => {
                self.becomes(agent, *sandbox, SandboxState::Dedup)?;
                let function = self.agents[agent].sandboxes[sandbox].function;
                let Cost { warm_bytes, stored_bytes, alone_bytes, .. } = *self.costs.of(function);
                let stored_bytes = if base.is_some() { stored_bytes } else { alone_bytes };
                if let Some(held) = self.agents[agent].sandboxes.get_mut(sandbox) {
                    held.bases = base.iter().map(|place| place.snapshot).collect();
                    held.stored_bytes = stored_bytes;
                }
                self.shrink(agent, warm_bytes.saturating_sub(stored_bytes));
                self.outcome.dedups += 1;
            }
            Command::Restore { sandbox, .. } => {
                self.becomes(agent, *sandbox, SandboxState::Warm)?;
                let held = self.agents[agent].sandboxes.get_mut(sandbox).context("no such sandbox")?;
                held.bases.clear();
                let stored_bytes = std::mem::take(&mut held.stored_bytes);
                self.shrink(agent, stored_bytes);
                self.outcome.restores += 1;
            }
            Command::Purge { sandbox } => {
                let held = self.agents[agent].sandboxes.remove(sandbox).context("no such sandbox")?;
                ensure!(held.open == 0, "{sandbox} was purged while it served");
                self.homes.remove(sandbox);
                let warm = self.costs.of(held.function).warm_bytes;
                self.shrink(agent, if held.state == SandboxState::Dedup { held.stored_bytes } else { warm });
                self.outcome.purges += 1;
            }
            Command::Offer { .. } => {}
            Command::Take { sandbox, .. } => {
                let from = self.homes.insert(*sandbox, agent).context("no such sandbox")?;
                let held = self.agents[from].sandboxes.remove(sandbox).context("no such sandbox")?;
                ensure!(held.state == SandboxState::Dedup, "{sandbox} moves, and is not in dedup");
                self.shrink(from, held.stored_bytes);
                self.grow(agent, held.stored_bytes);
                self.agents[agent].sandboxes.insert(*sandbox, held);
            }
            Command::Park { .. } | Command::CancelPark { .. } | Command::Replicate { .. } => {
                anyhow::bail!("{NOT_HERE}")
            }
            Command::DropSnapshot { snapshot } => {
                let mut all = self.agents.iter().flat_map(|agent| agent.sandboxes.values());
                ensure!(!all.any(|held| held.bases.contains(snapshot)), "{snapshot} was dropped in use");
                let function = self.agents[agent].snapshots.remove(snapshot).context("no such snapshot")?;
                self.shrink(agent, self.costs.of(function).warm_bytes);
            }
        }
        if !matches!(command, Command::Purge { .. }) {
            success.sandbox = command.sandbox().map(|sandbox| self.report(agent, sandbox));
        }
        let result = Box::new(Ok(success));
        self.tell(Event::Done { connection: connection_of(agent), command: id, result })
    }

    fn becomes(&mut self, agent: usize, sandbox: SandboxId, state: SandboxState) -> Result<()> {
        let held = self.agents[agent].sandboxes.get_mut(&sandbox).context("no such sandbox")?;
        held.state = state;
        if state == SandboxState::Warm {
            self.rest(agent, sandbox);
        }
        Ok(())
    }

    fn grow(&mut self, agent: usize, bytes: u64) {
        let agent = &mut self.agents[agent];
        agent.used_bytes += bytes;
        let over = agent.used_bytes.saturating_sub(self.settings.node_bytes);
        self.outcome.over_bytes_max = self.outcome.over_bytes_max.max(over);
    }

    fn shrink(&mut self, agent: usize, bytes: u64) {
        let agent = &mut self.agents[agent];
        agent.used_bytes = agent.used_bytes.saturating_sub(bytes);
    }

    fn snapshot(&self, id: SnapshotId, function: u32) -> SnapshotReport {
        let bytes = self.costs.of(function).warm_bytes;
        SnapshotReport {
            id,
            function: self.names[function as usize].clone(),
            pages: bytes / PAGE_BYTES,
            bytes,
            init: None,
        }
    }

    fn report(&self, agent: usize, sandbox: SandboxId) -> SandboxReport {
        let held = &self.agents[agent].sandboxes[&sandbox];
        let cost = self.costs.of(held.function);
        let function = self.names[held.function as usize].clone();
        SandboxReport {
            private_bytes: if held.state == SandboxState::Dedup { 0 } else { cost.warm_bytes },
            stored_bytes: held.stored_bytes,
            bases: held.bases.clone(),
            base_snapshot: held.source_of,
            open_requests: held.open,
            ..SandboxReport::new(sandbox, function, held.revision, held.state)
        }
    }

    fn inventory(&self, agent: usize) -> Inventory {
        let Agent { sandboxes, snapshots, used_bytes } = &self.agents[agent];
        let cap_bytes = self.settings.node_bytes;
        Inventory {
            memory: NodeMemory { used_bytes: *used_bytes, cap_bytes, ..NodeMemory::default() },
            sandboxes: sandboxes.keys().map(|id| self.report(agent, *id)).collect(),
            snapshots: snapshots.iter().map(|(id, function)| self.snapshot(*id, *function)).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::costs::tests::costs, *};
    use crate::sim::trace::TraceFunction;
    use medes_controller::policy::PolicyKind;

    /// One request of each function in every minute but the last ten.
    fn trace(functions: usize, minutes: usize) -> Trace {
        let mut counts = vec![1; minutes];
        counts.extend([0; 10]);
        let function = TraceFunction { execution: Duration::from_millis(20), counts };
        Trace { functions: vec![function; functions] }
    }

    fn settings(kind: PolicyKind, node_bytes: u64) -> Settings {
        let policy = PolicySettings { kind, ..PolicySettings::default() };
        let heartbeat = Duration::from_secs(5);
        Settings { nodes: 2, node_bytes, seed: 3, heartbeat, warm_up: 0, policy }
    }

    #[test]
    fn with_room_for_all_only_the_first_request_of_each_is_cold() {
        let outcome =
            World::new(&trace(5, 30), &costs(), settings(PolicyKind::NeverUnload, 1 << 30)).run().unwrap();
        assert_eq!((outcome.requests(), outcome.cold, outcome.refused), (150, 5, 0));
        assert_eq!(outcome.bytes.last(), Some(&(5 * 9_000_000)));
        assert_eq!(outcome.over_bytes_max, 0);
    }

    #[test]
    fn the_same_seed_gives_the_same_cluster() {
        let run = |seed| {
            let settings = Settings { seed, ..settings(PolicyKind::Fixed, 60_000_000) };
            let outcome = World::new(&trace(20, 30), &costs(), settings).run().unwrap();
            (outcome.cold, outcome.restored, outcome.warm, outcome.events, outcome.bytes)
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn idle_sandboxes_are_deduplicated_and_come_back() {
        let outcome =
            World::new(&trace(5, 60), &costs(), settings(PolicyKind::Fixed, 1 << 30)).run().unwrap();
        assert!(outcome.bases >= 5 && outcome.dedups > 0 && outcome.restored > 0, "{outcome:?}");
        assert_eq!(outcome.requests(), 300);
    }

    #[test]
    fn every_policy_keeps_nodes_within_their_memory() {
        for kind in PolicyKind::ALL {
            let outcome = World::new(&trace(20, 30), &costs(), settings(kind, 60_000_000)).run().unwrap();
            assert_eq!(outcome.requests() + outcome.refused, 600, "{kind}");
            assert!(outcome.purges > 0, "{kind}: not all fit");
            // A base, and what is only known at the next report.
            assert!(outcome.over_bytes_max <= 18_000_000, "{kind}: {}", outcome.over_bytes_max);
        }
    }
}
