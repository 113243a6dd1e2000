//! One request from the way in to its answer: what HTTP gateway and gRPC control have in common.

use std::{sync::Arc, time::Duration};

use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{FunctionName, NodeId, SandboxId},
    node::{Answer, Request},
    sandbox::{Phase, StartKind},
};
use metrics::{counter, histogram};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use crate::{
    agents::{Agents, InvokeError},
    config::RequestSettings,
    driver::{Event, Refusal, RequestEnd, Target},
    latencies::Latencies,
    shell::{Handle, OpenRequest, Stopped, ToRequest},
};

/// What a caller wants.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) function: FunctionName,
    pub(crate) prefer: Option<SandboxId>,
    /// `None`: the default.
    pub(crate) deadline: Option<Duration>,
    pub(crate) request: Request,
}

/// What a caller gets.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    pub(crate) start: StartKind,
    pub(crate) sandbox: SandboxId,
    pub(crate) node: NodeId,
    /// Queue, start if there was one, function.
    pub(crate) phases: Vec<Phase>,
}

/// Takes requests to sandboxes.
#[derive(Debug)]
pub(crate) struct Invoker {
    driver: Handle,
    agents: Arc<Agents>,
    settings: RequestSettings,
    latencies: Arc<Latencies>,
    /// Requests that may be open, each with its body in memory.
    open: Arc<Semaphore>,
    tracker: TaskTracker,
}

impl Invoker {
    pub(crate) fn new(
        driver: Handle,
        agents: Arc<Agents>,
        settings: RequestSettings,
        tracker: TaskTracker,
    ) -> Self {
        let open = Arc::new(Semaphore::new(settings.open_max));
        Self { driver, agents, settings, latencies: Arc::default(), open, tracker }
    }

    pub(crate) const fn settings(&self) -> &RequestSettings {
        &self.settings
    }

    /// How long answers took.
    pub(crate) fn latencies(&self) -> &Arc<Latencies> {
        &self.latencies
    }

    /// Nodes that are connected and take work.
    pub(crate) async fn nodes_open(&self) -> Result<usize, Stopped> {
        self.driver.look(|driver, _| driver.nodes_open()).await
    }

    /// Serves one call. If the caller goes away: a queued request is withdrawn, a sent one is seen to its end,
    /// since the driver must learn how it ended.
    pub(crate) async fn call(&self, call: Call) -> Result<Answered, Refusal> {
        let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() else {
            return Err(Refusal::QueueFull);
        };
        let deadline = call.deadline.unwrap_or(self.settings.deadline).min(self.settings.deadline_max);
        let open = self.driver.request(call.function, call.prefer, deadline).await;
        let open = open.map_err(|_stopped| Refusal::Stopping)?;
        let (answer, answered) = oneshot::channel();
        let work =
            Work { driver: self.driver.clone(), agents: Arc::clone(&self.agents), request: call.request };
        self.tracker.spawn(async move {
            let _permit = permit;
            work.follow(open, answer).await;
        });
        let result = answered.await.unwrap_or(Err(Refusal::Stopping));
        let outcome = result.as_ref().map_or("refused", |answered| answered.start.word());
        counter!("medes_requests_total", "outcome" => outcome).increment(1);
        if let Ok(answered) = &result {
            let total: Duration = answered.phases.iter().map(|phase| phase.took).sum();
            self.latencies.keep(answered.start, total);
            histogram!("medes_request_seconds", "start" => outcome).record(total.as_secs_f64());
        }
        result
    }
}

struct Work {
    driver: Handle,
    agents: Arc<Agents>,
    request: Request,
}

impl Work {
    /// Follows the driver's verdicts until the request is answered.
    async fn follow(self, mut open: OpenRequest, mut answer: oneshot::Sender<Result<Answered, Refusal>>) {
        let mut verdict = tokio::select! {
            verdict = open.verdicts.recv() => verdict,
            () = answer.closed() => {
                // If the driver has sent it meanwhile, this means nothing to it, and the verdict is here.
                if self.driver.tell(Event::Abandoned { request: open.id }).await.is_err() {
                    return;
                }
                open.verdicts.recv().await
            }
        };
        loop {
            let target = match verdict {
                Some(ToRequest::Send(target)) => target,
                Some(ToRequest::Refuse(why)) => return drop(answer.send(Err(why))),
                // The driver stops, or the request was withdrawn.
                None => return drop(answer.send(Err(Refusal::Stopping))),
            };
            let invoke = self.agents.invoke(
                (&target.node, &target.address),
                target.sandbox,
                self.request.clone(),
                target.deadline,
            );
            let end = tokio::select! {
                result = invoke => match result {
                    Ok(reply) => {
                        let took = reply.took;
                        // The answer first: what the driver does next is not the caller's business.
                        drop(answer.send(Ok(answered(target, reply))));
                        drop(self.driver.ended(open.id, RequestEnd::Answered { took }).await);
                        return;
                    }
                    Err(error) => end_of(error),
                },
                // Its node is given up, or its time is over.
                next = open.verdicts.recv() => {
                    verdict = next;
                    continue;
                }
            };
            if self.driver.ended(open.id, end).await.is_err() {
                return drop(answer.send(Err(Refusal::Stopping)));
            }
            verdict = open.verdicts.recv().await;
        }
    }
}

fn answered(target: Target, answer: Answer) -> Answered {
    let Target { sandbox, node, start, mut phases, .. } = target;
    phases.push(Phase::new("function", answer.took));
    Answered { answer, start, sandbox, node, phases }
}

fn end_of(error: InvokeError) -> RequestEnd {
    match error {
        InvokeError::Failed(failure) => RequestEnd::Failed(failure),
        InvokeError::NotSent { .. } => {
            tracing::warn!("request goes elsewhere: {}", Failure::from_error(FailureKind::Internal, &error));
            RequestEnd::NotSent
        }
        InvokeError::Lost { .. } => {
            tracing::warn!("request lost: {}", Failure::from_error(FailureKind::Internal, &error));
            RequestEnd::Lost
        }
        InvokeError::Nonsense { .. } => {
            RequestEnd::Failed(Failure::from_error(FailureKind::Internal, &error))
        }
    }
}
