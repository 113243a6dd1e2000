//! Requests: from their arrival to their one answer.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use medes_controller::{
    driver::{Event, RequestEnd, RequestId},
    now::Now,
};
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::SandboxId,
    sandbox::{SandboxState, StartKind},
};

use super::{Deed, Execution, What, World};

/// What the way to a warm sandbox and back takes.
const WARM_START: Duration = Duration::from_millis(1);

/// How long a caller waits.
const DEADLINE: Duration = Duration::from_secs(600);

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(super) struct Caller {
    function: u32,
    arrived: Now,
    counts: bool,
    /// How often it was sent.
    pub(super) attempt: u32,
    sent: Option<Sent>,
}

/// His request is in a sandbox.
#[derive(Debug, Clone, Copy)]
struct Sent {
    sandbox: SandboxId,
    start: StartKind,
    wait: Duration,
    /// In the sandbox.
    took: Duration,
}

/// What becomes of a request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Answered,
    /// It never left.
    NotSent,
    /// It left, and nothing came back.
    Lost,
    /// The agent does not take it.
    Refused(FailureKind),
}

impl World<'_> {
    pub(super) fn arrives(&mut self, function: u32) -> Result<()> {
        self.counter += 1;
        let request = RequestId(self.counter);
        let uncounted = self.schedule.minute() * self.settings.warm_up as u32;
        let counts = self.now.since(self.begins()) >= uncounted;
        let caller = Caller { function, arrived: self.now, counts, attempt: 0, sent: None };
        self.callers.insert(request, caller);
        let function = self.names[function as usize].clone();
        self.tell(Event::Requested { request, function, prefer: None, deadline: DEADLINE })
    }

    /// The driver sends a request to a sandbox.
    pub(super) fn sent(&mut self, request: RequestId, sandbox: SandboxId, start: StartKind) -> Result<()> {
        let lost = (self.is_lost(), self.is_lost());
        let caller = self.callers.get_mut(&request).context("a request that nobody made was sent")?;
        ensure!(caller.sent.is_none(), "{request:?} was sent twice");
        caller.attempt += 1;
        let (attempt, function, wait) = (caller.attempt, caller.function, self.now.since(caller.arrived));
        let mut sent = Sent { sandbox, start, wait, took: WARM_START };
        let end = match self.door(request, sandbox, function)? {
            _ if lost.0 => End::NotSent,
            Err(end) => end,
            Ok(agent) => {
                sent.took = self.enters(agent, request, sandbox);
                if lost.1 { End::Lost } else { End::Answered }
            }
        };
        if let Some(caller) = self.callers.get_mut(&request) {
            caller.sent = Some(sent);
        }
        self.plan(sent.took + WARM_START, What::Ends { request, attempt, end });
        Ok(())
    }

    /// Whether the sandbox takes a request. Where nothing goes wrong it always does.
    fn door(
        &self,
        request: RequestId,
        sandbox: SandboxId,
        function: u32,
    ) -> Result<std::result::Result<usize, End>> {
        let home = self.homes.get(&sandbox).copied();
        let held = home.and_then(|agent| self.agents[agent].sandboxes.get(&sandbox));
        let end = match (home, held) {
            (Some(agent), Some(held)) => {
                ensure!(held.function == function, "{request:?} went to a sandbox of another function");
                if held.state == SandboxState::Warm && held.command.is_none() && held.open.is_empty() {
                    return Ok(Ok(agent));
                }
                End::Refused(FailureKind::Busy)
            }
            _ => End::Refused(FailureKind::NotFound),
        };
        if !self.settings.trouble.happens() {
            bail!("{request:?} went to {sandbox}, which is not there, not warm or not free");
        }
        Ok(Err(end))
    }

    /// How long it will take in there.
    fn enters(&mut self, agent: usize, request: RequestId, sandbox: SandboxId) -> Duration {
        let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) else { return Duration::ZERO };
        held.open.push(request);
        held.idle_since = None;
        held.served += 1;
        let (function, ready_by) = (held.function, held.ready_by.take());
        let model = self.model.of(function);
        let start = match ready_by {
            Some(StartKind::Cold) => Some(&model.cold),
            Some(StartKind::Clone) => model.clone.as_ref(),
            Some(StartKind::Restore) => Some(&model.restore),
            Some(StartKind::Unpark) => Some(&model.unpark),
            _ => None,
        };
        let first = start.map_or(Duration::ZERO, |start| start.first_ms.draw(&mut self.dice));
        let itself = match self.settings.execution {
            Execution::OfTrace => self.trace.functions[function as usize].execution,
            Execution::OfModel => model.request_ms.draw(&mut self.dice),
        };
        (first + itself).mul_f64(self.agents[agent].slowness)
    }

    pub(super) fn ends(&mut self, request: RequestId, attempt: u32, end: End) -> Result<()> {
        // One that was refused meanwhile has had its answer; one that was sent again waits for another.
        let Some(caller) = self.callers.get_mut(&request).filter(|caller| caller.attempt == attempt) else {
            return Ok(());
        };
        let Some(sent) = caller.sent.take() else { return Ok(()) };
        self.leave(request, sent.sandbox);
        let end = match end {
            End::Answered => {
                let caller = self.callers.remove(&request).context("it was there")?;
                if caller.counts {
                    self.outcome.count(caller.function, sent.start, sent.wait, sent.took);
                }
                RequestEnd::Answered { took: sent.took }
            }
            End::NotSent => RequestEnd::NotSent,
            End::Lost => RequestEnd::Lost,
            End::Refused(kind) => RequestEnd::Failed(Failure::new(kind, "it is not there or not free")),
        };
        self.tell(Event::Ended { request, end })
    }

    /// Its sandbox has ended under it.
    pub(super) fn cut_off(&mut self, request: RequestId) -> Result<()> {
        let Some(caller) = self.callers.get_mut(&request) else { return Ok(()) };
        caller.sent = None;
        self.tell(Event::Ended { request, end: RequestEnd::Lost })
    }

    pub(super) fn refused(&mut self, request: RequestId) -> Result<()> {
        let caller = self.callers.remove(&request).context("a request was answered twice")?;
        if let Some(sent) = caller.sent {
            self.leave(request, sent.sandbox);
        }
        self.outcome.refused += u64::from(caller.counts);
        Ok(())
    }

    /// A request leaves its sandbox.
    fn leave(&mut self, request: RequestId, sandbox: SandboxId) {
        let Some(&agent) = self.homes.get(&sandbox) else { return };
        let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) else { return };
        let before = held.open.len();
        held.open.retain(|inside| *inside != request);
        if before > 0 && held.open.is_empty() {
            self.rest(agent, sandbox);
        }
    }

    /// A sandbox has nothing to do from now on.
    pub(super) fn rest(&mut self, agent: usize, sandbox: SandboxId) {
        let since = self.now;
        if let Some(held) = self.agents[agent].sandboxes.get_mut(&sandbox) {
            held.idle_since = Some(since);
        }
        self.agent_does(agent, self.settings.keeping.idle, Deed::Looks(sandbox, since));
    }
}
