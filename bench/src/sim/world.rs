//! The truth that the driver only hears of: agents, their sandboxes, callers, and the clock.
//!
//! | room | idea |
//! |---|---|
//! | `callers` | requests: from their arrival to their one answer |
//! | `orders` | a command arrives at an agent, which begins the work or refuses it |
//! | `deeds` | the work is over: what it changed, and what the driver is told |
//! | `trouble` | nodes that end or are slow, messages that are lost |
//!
//! After every event it is checked that what must never happen has not.

mod callers;
mod deeds;
mod orders;
mod settings;
#[cfg(test)]
mod tests;
mod trouble;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use medes_controller::{
    driver::{Action, CloseReason, ConnectionId, Driver, Event, RequestId},
    now::Now,
};
use medes_load::{dice::Dice, schedule::Schedule, trace::Trace};
use medes_proto::{
    failure::FailureKind,
    fleet::{Command, Hello},
    ids::{CommandId, FunctionName, SandboxId, SnapshotId},
    sandbox::SandboxState,
};

use super::{
    agent::{Agent, spec},
    outcome::Outcome,
};
use crate::model::Model;
use callers::Caller;
pub(crate) use settings::{Execution, Settings};
pub(crate) use trouble::Trouble;

#[derive(Debug)]
enum What {
    Arrives(u32),
    Minute(usize),
    /// What became of a request that was sent for the so-manieth time.
    Ends {
        request: RequestId,
        attempt: u32,
        end: callers::End,
    },
    /// Something that an agent does in this life of its.
    Does {
        agent: usize,
        life: u32,
        deed: Deed,
    },
    /// A node that had ended is there again, or one that was given up connects again.
    Comes(usize),
    Fails(usize),
    Wakes,
}

#[derive(Debug)]
enum Deed {
    Carries(CommandId, Box<Command>),
    /// Half way of a dedup: it claims its base.
    Claims(CommandId, SandboxId),
    /// A park is called off.
    Stops(CommandId, SandboxId),
    Refuses(CommandId, FailureKind),
    Beats,
    /// It looks whether a sandbox has been idle since then.
    Looks(SandboxId, Now),
}

/// A cluster.
pub(crate) struct World<'t> {
    schedule: Schedule<'t>,
    trace: &'t Trace,
    model: &'t Model,
    settings: Settings,
    names: Vec<FunctionName>,
    numbers: BTreeMap<FunctionName, u32>,
    driver: Driver,
    agents: Vec<Agent>,
    /// The agent behind each connection there ever was; the first is number one.
    connections: Vec<usize>,
    /// Where each sandbox is.
    homes: BTreeMap<SandboxId, usize>,
    /// Where each snapshot is.
    holders: BTreeMap<SnapshotId, BTreeSet<usize>>,
    /// How many images refer to each, or will when they are done.
    references: BTreeMap<SnapshotId, u32>,
    callers: BTreeMap<RequestId, Caller>,
    /// Whether the claim on a base was granted that was made just now.
    granted: Option<bool>,
    /// What work takes, and what goes wrong. Arrivals have dice of their own, so that all policies see the same.
    dice: Dice,
    now: Now,
    planned: BTreeMap<(Now, u64), What>,
    counter: u64,
    /// When the driver will be woken.
    wakes: BTreeSet<Now>,
    actions: Vec<Action>,
    outcome: Outcome,
}

impl<'t> World<'t> {
    pub(crate) fn new(trace: &'t Trace, model: &'t Model, settings: Settings) -> Self {
        let names: Vec<FunctionName> = (0..trace.functions.len())
            .map(|number| format!("f{number}").parse().unwrap_or_else(|_| unreachable!("a plain name")))
            .collect();
        let specs = (0..).zip(&names).map(|(number, name)| (spec(name, model.of(number)), 1));
        let specs = specs.filter(|_| settings.lead.is_zero());
        let driver = Driver::new(Now::START, settings.driver(), settings.policy.build(), specs);
        let mut dice = Dice(!settings.seed);
        let slow = |dice: &mut Dice| dice.part() < settings.trouble.slow_share;
        let agent = |dice: &mut Dice| {
            let slowness = if slow(dice) { settings.trouble.slow_factor } else { 1.0 };
            Agent::empty(slowness, settings.empty_bytes)
        };
        Self {
            schedule: Schedule::new(trace, settings.seed, settings.speedup),
            trace,
            model,
            numbers: names.iter().cloned().zip(0..).collect(),
            names,
            driver,
            agents: (0..settings.nodes).map(|_| agent(&mut dice)).collect(),
            connections: Vec::new(),
            homes: BTreeMap::new(),
            holders: BTreeMap::new(),
            references: BTreeMap::new(),
            callers: BTreeMap::new(),
            granted: None,
            dice,
            now: Now::START,
            planned: BTreeMap::new(),
            counter: 0,
            wakes: BTreeSet::new(),
            actions: Vec::new(),
            outcome: Outcome::default(),
            settings,
        }
    }

    /// Until the trace is over and every request is answered.
    pub(crate) fn run(self) -> Result<Outcome> {
        self.run_within(Duration::MAX)
    }

    /// The same, and an error when it takes longer than that.
    pub(crate) fn run_within(mut self, limit: Duration) -> Result<Outcome> {
        let began = Instant::now();
        for agent in 0..self.agents.len() {
            self.attach(agent)?;
            // Not all at once.
            let share = self.settings.heartbeat * agent as u32 / self.settings.nodes;
            self.agent_does(agent, share, Deed::Beats);
            self.plan_failure(agent);
        }
        self.apply_functions()?;
        self.plan(self.settings.lead, What::Minute(0));
        let end = self.begins().after(self.schedule.minute() * self.trace.minutes() as u32);
        while let Some(((at, _), what)) = self.planned.pop_first() {
            if at > end && self.callers.is_empty() {
                break;
            }
            self.now = at;
            self.happen(what)?;
            // A look at the clock costs as much as an event.
            let looks = self.counter.is_multiple_of(1024);
            ensure!(
                !looks || began.elapsed() < limit,
                "the simulation is not over after {} s",
                limit.as_secs()
            );
        }
        ensure!(self.callers.is_empty(), "{} requests were never answered", self.callers.len());
        ensure!(self.driver.open_requests() == 0, "the driver still thinks of requests");
        let over = |agent: &Agent| agent.used_bytes_max.saturating_sub(self.settings.node_bytes);
        self.outcome.over_bytes_max = self.agents.iter().map(over).max().unwrap_or(0);
        Ok(self.outcome)
    }

    /// When the trace does.
    fn begins(&self) -> Now {
        Now::START.after(self.settings.lead)
    }

    /// Functions are new, if they were not there before.
    fn apply_functions(&mut self) -> Result<()> {
        if self.settings.lead.is_zero() {
            return Ok(());
        }
        for number in 0..self.names.len() {
            let function = Box::new(spec(&self.names[number], self.model.of(number as u32)));
            self.tell(Event::Applied { function, revision: 1 })?;
        }
        Ok(())
    }

    fn plan(&mut self, after: Duration, what: What) {
        self.counter += 1;
        self.planned.insert((self.now.after(after), self.counter), what);
    }

    fn agent_does(&mut self, agent: usize, after: Duration, deed: Deed) {
        let life = self.agents[agent].life;
        self.plan(after, What::Does { agent, life, deed });
    }

    fn happen(&mut self, what: What) -> Result<()> {
        match what {
            What::Minute(minute) => self.minute(minute),
            What::Arrives(function) => self.arrives(function),
            What::Ends { request, attempt, end } => self.ends(request, attempt, end),
            What::Does { agent, life, deed } if self.agents[agent].life == life => self.deed(agent, deed),
            // It has ended meanwhile.
            What::Does { .. } => Ok(()),
            What::Comes(agent) if self.agents[agent].connection.is_none() => self.attach(agent),
            What::Comes(_) => Ok(()),
            What::Fails(agent) => self.fails(agent),
            What::Wakes => {
                self.wakes.remove(&self.now);
                self.tell(Event::Tick)
            }
        }
    }

    fn deed(&mut self, agent: usize, deed: Deed) -> Result<()> {
        match deed {
            Deed::Carries(id, command) => self.carries(agent, id, &command),
            Deed::Claims(id, sandbox) => self.claims(agent, id, sandbox),
            Deed::Stops(id, sandbox) => self.stops(agent, id, sandbox),
            Deed::Refuses(id, kind) => self.answer(agent, id, Err(kind)),
            Deed::Beats => self.beats(agent),
            Deed::Looks(sandbox, since) => self.looks(agent, sandbox, since),
        }
    }

    fn minute(&mut self, minute: usize) -> Result<()> {
        if minute > self.settings.warm_up {
            self.agents.iter_mut().for_each(|agent| agent.sweep(self.now));
            self.outcome.bytes.push(self.agents.iter().map(|agent| agent.used_bytes).sum());
        }
        if let Some(dues) = self.schedule.next_minute() {
            for due in dues {
                let after = self.begins().after(due.at).since(self.now);
                self.plan(after, What::Arrives(due.function));
            }
            self.plan(self.schedule.minute(), What::Minute(minute + 1));
        }
        Ok(())
    }

    /// An agent says Hello.
    fn attach(&mut self, agent: usize) -> Result<()> {
        self.connections.push(agent);
        let connection = ConnectionId(self.connections.len() as u64);
        let inventory = self.agents[agent].inventory(self.settings.node_bytes, &self.names, self.model);
        self.agents[agent].connection = Some(connection);
        let hello = Hello {
            node: format!("n{agent}").parse().context("name a node")?,
            incarnation: u64::from(self.agents[agent].life) + 1,
            version: env!("CARGO_PKG_VERSION").into(),
            address: format!("n{agent}:1"),
            inventory,
            lacks: Vec::new(),
        };
        self.tell(Event::Attached { connection, hello: Box::new(hello) })
    }

    fn beats(&mut self, agent: usize) -> Result<()> {
        self.agent_does(agent, self.settings.heartbeat, Deed::Beats);
        let Some(connection) = self.agents[agent].connection else { return Ok(()) };
        if self.is_lost() {
            return Ok(());
        }
        self.agents[agent].sweep(self.now);
        let inventory = self.agents[agent].inventory(self.settings.node_bytes, &self.names, self.model);
        self.tell(Event::Reported { connection, inventory: Box::new(inventory) })
    }

    fn looks(&mut self, agent: usize, sandbox: SandboxId, since: Now) -> Result<()> {
        let held = self.agents[agent].sandboxes.get(&sandbox);
        let idle =
            held.is_some_and(|held| held.idle_since == Some(since) && held.state == SandboxState::Warm);
        let Some(connection) = self.agents[agent].connection.filter(|_| idle) else { return Ok(()) };
        if self.is_lost() {
            return Ok(());
        }
        self.tell(Event::Idle { connection, sandbox, idle: self.now.since(since) })
    }

    /// The agent at the other end of a connection, unless that is an old one.
    fn agent_on(&self, connection: ConnectionId) -> Option<usize> {
        let agent = *self.connections.get(usize::try_from(connection.0).ok()?.checked_sub(1)?)?;
        (self.agents[agent].connection == Some(connection)).then_some(agent)
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
        let (here, there) = (self.callers.len(), self.driver.open_requests());
        ensure!(here == there, "{here} callers wait, and the driver knows of {there}");
        Ok(())
    }

    fn perform(&mut self, action: Action) -> Result<()> {
        match action {
            Action::Command { connection, id, command } => match self.agent_on(connection) {
                Some(agent) => self.commanded(agent, id, command)?,
                None => bail!("{command:?} goes to a stream that has ended"),
            },
            Action::Send { request, target } => self.sent(request, target.sandbox, target.start)?,
            Action::Refuse { request, .. } => self.refused(request)?,
            Action::Close { connection, why } => self.closed(connection, why)?,
            Action::Answer { result, .. } => self.granted = Some(result.is_ok()),
            Action::Welcome { connection, purge, .. } => self.welcomed(connection, &purge),
            Action::IdlePeriod { .. }
            | Action::TellKeys { .. }
            | Action::ForgetKeys { .. }
            | Action::ExpectSnapshot(_)
            | Action::PlaceSnapshot { .. }
            | Action::HideSnapshot(_)
            | Action::ForgetSnapshot(_)
            | Action::Tell(_) => {}
        }
        Ok(())
    }

    fn closed(&mut self, connection: ConnectionId, why: CloseReason) -> Result<()> {
        ensure!(self.settings.trouble.happens(), "the driver ended a stream: {why}");
        if let Some(agent) = self.agent_on(connection) {
            self.agents[agent].connection = None;
            self.plan(trouble::RECONNECT, What::Comes(agent));
        }
        Ok(())
    }

    /// The driver names sandboxes that nobody wants.
    fn welcomed(&mut self, connection: ConnectionId, purge: &[SandboxId]) {
        let Some(agent) = self.agent_on(connection) else { return };
        for sandbox in purge {
            self.remove(agent, *sandbox);
        }
    }
}
