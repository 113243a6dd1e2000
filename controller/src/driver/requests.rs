//! A request's way: into the queue, to a sandbox, answered or refused exactly once.

use std::time::Duration;

use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{FunctionName, SandboxId},
    sandbox::StartKind,
    trace::Cause,
};

use super::{
    Action, Driver, PurgeReason, Refusal, RequestEnd, RequestId, Target,
    state::{Function, Life, Request, Stage, Timer, wait_phases},
};
use crate::{
    now::Now,
    policy::{Arrivals, IdleTimes},
};

impl Function {
    pub(super) fn new(spec: medes_proto::function::FunctionSpec, revision: u64) -> Self {
        Self {
            spec,
            revision,
            queue: std::collections::VecDeque::new(),
            arrivals: Arrivals::default(),
            cold_starts: 0,
            restores: 0,
            clones: 0,
            fresh: Default::default(),
            cold_start: Default::default(),
            clone: Default::default(),
            restore: Default::default(),
            unpark: Default::default(),
            moving: Default::default(),
            warm_start: Default::default(),
            execution: Default::default(),
            idle_times: IdleTimes::default(),
            reuses: IdleTimes::default(),
            prewarm_at: None,
            last_asked: None,
            init_after: None,
            warm_bytes: Default::default(),
            dedup_bytes: Default::default(),
        }
    }
}

impl Driver {
    pub(super) fn requested(
        &mut self,
        now: Now,
        id: RequestId,
        name: FunctionName,
        prefer: Option<SandboxId>,
        deadline: Duration,
        out: &mut Vec<Action>,
    ) {
        let refuse = |out: &mut Vec<Action>, why| out.push(Action::Refuse { request: id, why });
        if self.stopping {
            return refuse(out, Refusal::Stopping);
        }
        let Some(function) = self.functions.get_mut(&name) else {
            return refuse(out, Refusal::UnknownFunction);
        };
        function.arrivals.count(now.since_origin());
        function.last_asked = Some(now);
        if function.queue.len() >= self.settings.queue_max {
            return refuse(out, Refusal::QueueFull);
        }
        function.queue.push_back(id);
        let deadline = now.after(deadline);
        let stage = Stage::Queued { waits_for: None, cold: false };
        let function = name.clone();
        let request =
            Request { function, arrived: now, deadline, attempts: 0, stage, start: None, ended: None };
        self.requests.insert(id, request);
        self.arm(deadline, Timer::Request(id));
        self.waiting.insert(name.clone());
        self.dirty.insert(name);
        if let Some(wish) = prefer {
            self.prefer(now, id, wish, out);
        }
    }

    /// Sends a queued request to a sandbox that has room. The caller has taken it out of the queue.
    pub(super) fn send(&mut self, now: Now, id: RequestId, sandbox_id: SandboxId, out: &mut Vec<Action>) {
        let event = self.next_event();
        let (Some(request), Some(sandbox)) =
            (self.requests.get_mut(&id), self.sandboxes.get_mut(&sandbox_id))
        else {
            return;
        };
        let Some(node) = self.nodes.get(&sandbox.node) else { return };
        let address = node.address.clone();
        request.stage = Stage::Sent { sandbox: sandbox_id };
        let (start, phases) = wait_phases(request, sandbox, now);
        request.start = Some(start);
        let idle = sandbox.open.is_empty().then(|| now.since(sandbox.last_used));
        sandbox.open.insert(id);
        sandbox.last_used = now;
        sandbox.quiet = false;
        sandbox.uses += 1;
        sandbox.clock = node.clock;
        if let Some(function) = self.functions.get_mut(&sandbox.function) {
            function.idle_times.begin(request.arrived.since_origin());
            idle.filter(|_| start == StartKind::Warm && sandbox.uses > 1)
                .into_iter()
                .for_each(|idle| function.reuses.count(idle));
        }
        let target = Target {
            sandbox: sandbox_id,
            function: sandbox.function.clone(),
            node: sandbox.node.clone(),
            address,
            start,
            phases,
            deadline: request.deadline.since(now),
            event,
        };
        out.push(Action::Send { request: id, target });
    }

    pub(super) fn request_ended(&mut self, now: Now, id: RequestId, end: RequestEnd, out: &mut Vec<Action>) {
        // One that was refused meanwhile (its node was given up, its time was over) is not known any more.
        let Some(request) = self.requests.get(&id) else { return };
        let Stage::Sent { sandbox } = request.stage else { return };
        self.release(now, id, sandbox);
        match end {
            RequestEnd::Answered { took } => {
                if let Some(request) = self.requests.remove(&id)
                    && let Some(function) = self.functions.get_mut(&request.function)
                {
                    function.execution.add_time(took);
                    if request.start == Some(StartKind::Warm) {
                        function.warm_start.add_time(now.since(request.arrived).saturating_sub(took));
                    }
                }
            }
            RequestEnd::Failed(failure) => self.request_failed(now, id, sandbox, failure, out),
            RequestEnd::NotSent => {
                self.hold(now, sandbox);
                self.put_back(now, id, failure_not_sent(), out);
            }
            RequestEnd::Lost => {
                let ended = self.requests.remove(&id).and_then(|request| request.ended);
                let node = self.sandboxes.get(&sandbox).map(|sandbox| sandbox.node.clone());
                let why = match node {
                    Some(node) => Refusal::NodeLost(node),
                    None => Refusal::Failed(ended.unwrap_or_else(failure_not_sent)),
                };
                out.push(Action::Refuse { request: id, why });
                // It may still be at work on the request.
                self.purge(now, sandbox, PurgeReason::Broken, None, out);
            }
        }
        self.touch(now, sandbox, out);
    }

    fn request_failed(
        &mut self,
        now: Now,
        id: RequestId,
        sandbox: SandboxId,
        failure: Failure,
        out: &mut Vec<Action>,
    ) {
        match failure.kind {
            // The agent has not run it.
            FailureKind::Busy | FailureKind::ShuttingDown => {
                self.hold(now, sandbox);
                return self.put_back(now, id, failure, out);
            }
            FailureKind::NotFound => {
                self.remove_sandbox(sandbox, Cause::Reported, None, out);
                return self.put_back(now, id, failure, out);
            }
            FailureKind::Deadline => {
                out.push(Action::Refuse { request: id, why: Refusal::Deadline { sent: true } });
                // It does not know that nobody waits any more, and may never end.
                self.purge(now, sandbox, PurgeReason::Broken, None, out);
            }
            FailureKind::Invalid | FailureKind::Unsupported => {
                out.push(Action::Refuse { request: id, why: Refusal::Failed(failure) });
            }
            _ => {
                // Its end, seen from outside, says more than a broken connection.
                let ended = self.requests.get_mut(&id).and_then(|request| request.ended.take());
                out.push(Action::Refuse { request: id, why: Refusal::Failed(ended.unwrap_or(failure)) });
                self.purge(now, sandbox, PurgeReason::Broken, None, out);
            }
        }
        self.requests.remove(&id);
    }

    /// A sandbox has ended. What was sent to it stays open: one that it never saw is for another sandbox, and its own answer says so.
    pub(super) fn leave_open(&mut self, sandbox: SandboxId, why: &Failure) {
        let Some(sandbox) = self.sandboxes.get_mut(&sandbox) else { return };
        for id in std::mem::take(&mut sandbox.open) {
            if let Some(request) = self.requests.get_mut(&id) {
                request.ended = Some(why.clone());
            }
        }
    }

    /// A sandbox that should have had room did not, or cannot be reached: not used until a report clears it.
    fn hold(&mut self, now: Now, id: SandboxId) {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        sandbox.stray = sandbox.requests_max;
        let until = now.after(self.settings.avoid);
        if let Some(node) = self.nodes.get_mut(&sandbox.node) {
            node.avoid_until = Some(until);
        }
        self.arm(until, Timer::Nodes);
    }

    /// Back to the head of the queue, unless it has been there too often.
    fn put_back(&mut self, now: Now, id: RequestId, why: Failure, out: &mut Vec<Action>) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.attempts += 1;
        let refusal = if self.stopping {
            Some(Refusal::Stopping)
        } else if !self.functions.contains_key(&request.function) {
            Some(Refusal::UnknownFunction)
        } else if request.attempts >= self.settings.attempts_max {
            Some(Refusal::Failed(why))
        } else if request.deadline <= now {
            Some(Refusal::Deadline { sent: false })
        } else {
            None
        };
        if let Some(why) = refusal {
            self.requests.remove(&id);
            return out.push(Action::Refuse { request: id, why });
        }
        request.stage = Stage::Queued { waits_for: None, cold: false };
        request.ended = None;
        let name = request.function.clone();
        if let Some(function) = self.functions.get_mut(&name) {
            function.queue.push_front(id);
        }
        // Its timer may have become the "sent" one.
        let deadline = self.requests.get(&id).map_or(now, |request| request.deadline);
        self.arm(deadline, Timer::Request(id));
        self.waiting.insert(name.clone());
        self.dirty.insert(name);
    }

    fn release(&mut self, now: Now, request: RequestId, sandbox: SandboxId) {
        if let Some(sandbox) = self.sandboxes.get_mut(&sandbox) {
            sandbox.open.remove(&request);
            sandbox.last_used = now;
            if let Some(function) = self.functions.get_mut(&sandbox.function) {
                function.idle_times.end(now.since_origin());
            }
        }
    }

    pub(super) fn abandoned(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(&id) else { return };
        if matches!(request.stage, Stage::Queued { .. }) {
            self.unqueue(id);
            self.requests.remove(&id);
        }
    }

    /// Takes a request out of its function's queue.
    pub(super) fn unqueue(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(&id) else { return };
        if let Some(function) = self.functions.get_mut(&request.function) {
            function.queue.retain(|&queued| queued != id);
            if function.queue.is_empty() {
                self.waiting.remove(&request.function);
            }
        }
    }

    pub(super) fn request_overdue(&mut self, now: Now, id: RequestId, out: &mut Vec<Action>) {
        let Some(request) = self.requests.get(&id) else { return };
        match request.stage {
            Stage::Queued { .. } if request.deadline <= now => {
                self.unqueue(id);
                self.requests.remove(&id);
                out.push(Action::Refuse { request: id, why: Refusal::Deadline { sent: false } });
            }
            Stage::Queued { .. } => {}
            Stage::Sent { sandbox } => {
                // The agent gets a moment to say so itself: it knows more.
                let limit = request.deadline.after(self.settings.answer_slack);
                if now < limit {
                    return self.arm(limit, Timer::Request(id));
                }
                self.release(now, id, sandbox);
                self.requests.remove(&id);
                out.push(Action::Refuse { request: id, why: Refusal::Deadline { sent: true } });
                self.purge(now, sandbox, PurgeReason::Broken, None, out);
                self.touch(now, sandbox, out);
            }
        }
    }

    /// A cold start failed for a reason that is the function's own: those who would have been served by it hear it.
    pub(super) fn fail_waiting(&mut self, name: &FunctionName, why: &Failure, out: &mut Vec<Action>) {
        let Some(function) = self.functions.get_mut(name) else { return };
        let served = usize::try_from(function.spec.requests_max).unwrap_or(1).min(function.queue.len());
        for id in function.queue.drain(..served) {
            self.requests.remove(&id);
            out.push(Action::Refuse { request: id, why: Refusal::Failed(why.clone()) });
        }
        if function.queue.is_empty() {
            self.waiting.remove(name);
        }
    }

    /// A start failed for a reason that is not the function's: the first in the queue has used up an attempt.
    pub(super) fn count_attempt(
        &mut self,
        now: Now,
        name: &FunctionName,
        why: Failure,
        out: &mut Vec<Action>,
    ) {
        let Some(function) = self.functions.get_mut(name) else { return };
        if let Some(id) = function.queue.pop_front() {
            self.put_back(now, id, why, out);
        }
        if self.functions.get(name).is_some_and(|function| function.queue.is_empty()) {
            self.waiting.remove(name);
        }
    }

    /// A start that a queued request may have waited for has ended, well or not.
    pub(super) fn stop_waiting_for(
        &mut self,
        name: &FunctionName,
        ended: SandboxId,
        failed: Option<StartKind>,
    ) {
        let Some(function) = self.functions.get(name) else { return };
        let mut owed = failed.is_some_and(|start| start != StartKind::Cold);
        for id in &function.queue {
            let Some(request) = self.requests.get_mut(id) else { continue };
            if let Stage::Queued { waits_for, cold } = &mut request.stage {
                if *waits_for == Some(ended) {
                    *waits_for = None;
                    if failed.is_some() {
                        (*cold, owed) = (true, false);
                    }
                } else if owed && !*cold && waits_for.is_none() {
                    (*cold, owed) = (true, false);
                }
            }
        }
    }

    /// Whether a queued request is reserved for a sandbox that is being made ready for it.
    pub(super) fn reserved_for(&self, id: RequestId) -> Option<SandboxId> {
        match self.requests.get(&id)?.stage {
            Stage::Queued { waits_for, .. } => waits_for.filter(|sandbox| {
                self.sandboxes.get(sandbox).is_some_and(|sandbox| sandbox.life == Life::Restoring)
            }),
            Stage::Sent { .. } => None,
        }
    }
}

fn failure_not_sent() -> Failure {
    super::failure(FailureKind::Internal, "the sandbox's node could not be reached")
}
