//! Requests for sandboxes: they wait at the door for the driver's word, then go in by themselves.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{HeaderMap, Method, header::HeaderName, header::HeaderValue};
use medes_dedup::key::KeyId;
use medes_metrics::health::Health;
use medes_proto::{
    account::NodeAccount,
    failure::{Failure, FailureKind},
    heat::HeatMap,
    ids::{SandboxId, TenantName},
    limits::{BODY_BYTES_MAX, HEADERS_MAX},
    moving::OfferedSandbox,
    node::{Answer, Invoke, Request},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::{Body, Dropped, Input, Node, work::Worked};
use crate::{
    account::Books,
    driver::{Event, Ticket},
    moving::send::Parcel,
    roads::blocking,
    sandbox::{self, Entrance, Log, RequestError},
    watch::tracked::Tracked,
};

/// How long after a broken connection its process may take to end, so that the answer can tell why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What is asked of a sandbox from outside.
#[derive(Debug)]
pub(crate) enum Asked {
    /// May a request go in?
    Enter { sandbox: SandboxId, answer: oneshot::Sender<Result<Entrance, Failure>> },
    /// Its log, if it is here.
    Log { sandbox: SandboxId, answer: oneshot::Sender<Option<Log>> },
    /// Another node wants to read what is offered to it.
    Parcel { offered: OfferedSandbox, answer: oneshot::Sender<Result<Parcel, Failure>> },
    /// Another node has read all of it, and wants it to be its own from now on.
    GiveUp { offered: OfferedSandbox, answer: oneshot::Sender<Result<(), Failure>> },
    /// Its first process, if it has processes now, and what is known of its writes.
    Root { sandbox: SandboxId, answer: oneshot::Sender<Option<Root>> },
    /// What is known for the accounts.
    Books { answer: oneshot::Sender<Books> },
    /// A tenant's key is deleted.
    Forget { tenant: TenantName, id: KeyId, answer: oneshot::Sender<Dropped> },
    /// What the node lacks to do its work.
    Lacks { answer: oneshot::Sender<Vec<String>> },
}

/// The first process of a sandbox, and who tracks its writes.
type Root = (nix::unistd::Pid, Option<Arc<Tracked>>);

impl Asked {
    /// Sends it away.
    pub(super) fn refuse(self, why: Failure) {
        // Nobody waits any more: then nobody needs to know.
        match self {
            Self::Enter { answer, .. } => drop(answer.send(Err(why))),
            Self::Parcel { answer, .. } => drop(answer.send(Err(why))),
            Self::GiveUp { answer, .. } => drop(answer.send(Err(why))),
            Self::Log { answer, .. } => drop(answer.send(None)),
            Self::Root { answer, .. } => drop(answer.send(None)),
            Self::Books { answer } => drop(answer),
            Self::Forget { answer, .. } => drop(answer),
            Self::Lacks { answer } => drop(answer.send(vec![why.message])),
        }
    }
}

impl Node {
    pub(super) fn asked(&mut self, asked: Asked) {
        match asked {
            Asked::Enter { sandbox, .. } => {
                let ticket = self.at_the_door(asked);
                self.apply(Event::RequestAsked { sandbox, ticket });
            }
            Asked::Parcel { ref offered, .. } => {
                let (offered, ticket) = (offered.clone(), self.at_the_door(asked));
                self.apply(Event::OfferAsked { offered, give_up: false, ticket });
            }
            Asked::GiveUp { ref offered, .. } => {
                let (offered, ticket) = (offered.clone(), self.at_the_door(asked));
                self.apply(Event::OfferAsked { offered, give_up: true, ticket });
            }
            Asked::Log { sandbox, answer } => {
                let log = self.bodies.get(&sandbox).map(|body| match body {
                    Body::Warm(warm, _) | Body::Parked(warm, _) => warm.housing.log().clone(),
                    Body::Stored(stored) => stored.housing.log().clone(),
                    Body::Ruin(housing) => housing.log().clone(),
                });
                drop(answer.send(log));
            }
            Asked::Root { sandbox, answer } => {
                let root = match self.bodies.get(&sandbox) {
                    Some(Body::Warm(warm, _)) => Some((warm.tree.pid(), warm.past.tracked.clone())),
                    Some(Body::Parked(..) | Body::Stored(_) | Body::Ruin(_)) | None => None,
                };
                if answer.send(root).is_err() {
                    tracing::debug!(%sandbox, "who wanted to look at its memory has gone");
                }
            }
            Asked::Books { answer } => drop(answer.send(self.books())),
            Asked::Forget { tenant, id, answer } => {
                let dropped = self.forget_tenant(&tenant, id);
                if answer.send(dropped).is_err() {
                    tracing::debug!(%tenant, "who wanted it to be forgotten has gone");
                }
            }
            Asked::Lacks { answer } => drop(answer.send(self.lacks())),
        }
    }

    /// Waits for the driver's word.
    fn at_the_door(&mut self, asked: Asked) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.doors.insert(ticket, asked);
        ticket
    }

    fn lacks(&self) -> Vec<String> {
        let mut lacks = Vec::new();
        if !self.welcomed {
            lacks.push("controller: not connected".into());
        }
        match &self.tools.roads {
            None => lacks.push("CRIU: there is none that works here".into()),
            Some(roads) if !roads.pool.fills() => lacks.push("CRIU: no worker has come up".into()),
            Some(_) => {}
        }
        lacks
    }

    pub(super) fn admit(&mut self, ticket: Ticket) {
        match self.doors.remove(&ticket) {
            Some(Asked::Enter { sandbox, answer }) => self.let_in(sandbox, answer),
            Some(Asked::Parcel { offered, answer }) => {
                // Who does not wait any more asks again, or not.
                drop(answer.send(self.parcel(offered.sandbox)));
            }
            Some(Asked::GiveUp { offered, answer }) => {
                tracing::info!(sandbox = %offered.sandbox, to = %offered.to, "given up: it is another node's now");
                drop(answer.send(Ok(())));
            }
            Some(
                Asked::Log { .. }
                | Asked::Root { .. }
                | Asked::Books { .. }
                | Asked::Forget { .. }
                | Asked::Lacks { .. },
            )
            | None => {}
        }
    }

    /// What goes to another node of a sandbox that is in dedup here.
    fn parcel(&self, sandbox: SandboxId) -> Result<Parcel, Failure> {
        let (Some(Body::Stored(stored)), Some(roads)) = (self.bodies.get(&sandbox), &self.tools.roads) else {
            return Err(Failure::new(FailureKind::Busy, format!("{sandbox} is being worked on")));
        };
        let engine = roads.engine(&stored.spec.tenant);
        let engine = engine.map_err(|error| Failure::from_error(FailureKind::Internal, &error))?;
        Ok(Parcel::of(stored, self.driver.record(sandbox), engine.key().clone()))
    }

    fn let_in(&mut self, sandbox: SandboxId, answer: oneshot::Sender<Result<Entrance, Failure>>) {
        let door = match self.bodies.get(&sandbox) {
            Some(Body::Warm(warm, _)) => Ok(warm.housing.entrance(&warm.tree)),
            _ => Err(Failure::new(FailureKind::Busy, format!("{sandbox} is being worked on"))),
        };
        let entered = door.is_ok();
        if self.pace.entered(sandbox) {
            self.watching.follow(sandbox, true);
        }
        if answer.send(door).is_err() || !entered {
            // It never went in: the place is free again.
            self.left(sandbox);
            self.apply(Event::RequestEnded { sandbox, answered: false });
        }
    }

    /// A request has come out.
    pub(super) fn left(&mut self, sandbox: SandboxId) {
        if self.pace.left(sandbox) {
            self.watching.follow(sandbox, false);
            self.fetch_faults();
        }
    }

    /// Hands on what was followed before it is more than fits.
    pub(super) fn fetch_faults(&mut self) {
        for (sandbox, faults) in self.watching.faults() {
            self.pace.faulted(sandbox, faults);
        }
    }
}

/// The way to ask a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct NodeHandle {
    inbox: mpsc::Sender<Input>,
    tasks: TaskTracker,
}

impl NodeHandle {
    pub(super) const fn new(inbox: mpsc::Sender<Input>, tasks: TaskTracker) -> Self {
        Self { inbox, tasks }
    }

    /// Sends a request into a sandbox.
    ///
    /// Not cancel-safe, on purpose: a request that went in is finished (or overdue) before the sandbox counts
    /// as free again, whether or not the caller still waits.
    pub async fn invoke(&self, invoke: Invoke) -> Result<Answer, Failure> {
        let node = self.clone();
        let sandbox = invoke.sandbox;
        let (tell, told) = oneshot::channel();
        self.tasks.spawn(async move {
            let result = node.go_in(invoke).await;
            // The caller may have gone away meanwhile.
            drop(tell.send(result));
        });
        told.await.unwrap_or_else(|_gone| Err(closing(sandbox)))
    }

    async fn go_in(&self, invoke: Invoke) -> Result<Answer, Failure> {
        let Invoke { sandbox, request, deadline } = invoke;
        let (answer, admitted) = oneshot::channel();
        let door = self.ask(sandbox, Asked::Enter { sandbox, answer }, admitted).await?;
        let entering = if door.is_ending() {
            // Nobody knew yet. It has not seen the request, so another one may have it.
            Err(never_saw(last_words(sandbox, &door).await))
        } else {
            to_sandbox(request, deadline)
        };
        let result = match entering {
            Ok(request) => door.request(request).await,
            Err(why) => {
                self.tell(Worked::Answered { sandbox, answered: false, overdue: None }).await;
                return Err(why);
            }
        };
        match result {
            Ok(response) => {
                self.tell(Worked::Answered { sandbox, answered: true, overdue: None }).await;
                Ok(to_caller(response))
            }
            Err(error) => {
                let failure = explain(sandbox, &door, &error).await;
                let overdue = (failure.kind == FailureKind::Deadline).then(|| failure.clone());
                self.tell(Worked::Answered { sandbox, answered: false, overdue }).await;
                Err(failure)
            }
        }
    }

    async fn tell(&self, worked: Worked) {
        if self.inbox.send(Input::Worked(Box::new(worked))).await.is_err() {
            tracing::debug!("a request ended after its node");
        }
    }

    /// What goes to another node of a sandbox that is offered to it.
    pub async fn parcel(&self, offered: OfferedSandbox) -> Result<Parcel, Failure> {
        let sandbox = offered.sandbox;
        let (answer, told) = oneshot::channel();
        self.ask(sandbox, Asked::Parcel { offered, answer }, told).await
    }

    /// Gives a sandbox up to the node that it is offered to.
    pub async fn give_up(&self, offered: OfferedSandbox) -> Result<(), Failure> {
        let sandbox = offered.sandbox;
        let (answer, told) = oneshot::channel();
        self.ask(sandbox, Asked::GiveUp { offered, answer }, told).await
    }

    async fn ask<T>(
        &self,
        sandbox: SandboxId,
        asked: Asked,
        told: oneshot::Receiver<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        self.inbox.send(Input::Asked(asked)).await.map_err(|_closed| closing(sandbox))?;
        told.await.map_err(|_closed| closing(sandbox))?
    }

    /// Answers for this node from here on.
    pub fn answer(&self, health: &Health) {
        let node = self.clone();
        health.answered_by(move || {
            let node = node.clone();
            async move { node.lacks().await }
        });
    }

    /// What the node lacks to do its work; nothing: it is ready. An answer says that its loop lives, too.
    async fn lacks(&self) -> Vec<String> {
        let (answer, told) = oneshot::channel();
        let stops = || vec!["node: it stops".to_owned()];
        match self.inbox.send(Input::Asked(Asked::Lacks { answer })).await {
            Ok(()) => told.await.unwrap_or_else(|_closed| stops()),
            Err(_closed) => stops(),
        }
    }

    /// The last lines a sandbox has written, and how many earlier ones were thrown away.
    pub async fn logs(&self, sandbox: SandboxId) -> Option<(Vec<String>, u64)> {
        let (answer, told) = oneshot::channel();
        self.inbox.send(Input::Asked(Asked::Log { sandbox, answer })).await.ok()?;
        let tail = told.await.ok()??.tail(usize::MAX);
        Some((tail.lines.into_iter().map(|line| line.text).collect(), tail.dropped))
    }
}

impl NodeHandle {
    /// Where a warm sandbox's memory is.
    pub async fn heat(&self, sandbox: SandboxId) -> Result<HeatMap, Failure> {
        let (answer, told) = oneshot::channel();
        let asked = Input::Asked(Asked::Root { sandbox, answer });
        self.inbox.send(asked).await.map_err(|_closed| closing(sandbox))?;
        let none =
            || Failure::new(FailureKind::Busy, format!("{sandbox} has no memory of its own right now"));
        let (root, tracked) = told.await.ok().flatten().ok_or_else(none)?;
        let known = match tracked {
            Some(tracked) => tracked.known().await,
            None => None,
        };
        let look = blocking(move || crate::heat::look(sandbox, root, known)).await;
        look.map_err(|error| Failure::from_error(FailureKind::Internal, &error))
    }
}

impl NodeHandle {
    /// Has the node forget a tenant whose key is deleted, and drop all it has of that tenant. Returns what that was.
    pub async fn forget_tenant(&self, tenant: TenantName, id: KeyId) -> Result<Dropped, Failure> {
        let (answer, told) = oneshot::channel();
        let asked = Input::Asked(Asked::Forget { tenant, id, answer });
        let stops = || Failure::new(FailureKind::ShuttingDown, "the node is shutting down");
        self.inbox.send(asked).await.map_err(|_closed| stops())?;
        told.await.map_err(|_closed| stops())
    }
}

impl NodeHandle {
    /// Whom the node's memory is held for.
    pub async fn account(&self) -> Result<NodeAccount, Failure> {
        let (answer, told) = oneshot::channel();
        let stops = || Failure::new(FailureKind::ShuttingDown, "the node is shutting down");
        self.inbox.send(Input::Asked(Asked::Books { answer })).await.map_err(|_closed| stops())?;
        let books = told.await.map_err(|_closed| stops())?;
        if !books.host.cgroup().limits_memory() {
            let why = "the kernel counts no memory of this node: it has no memory controller";
            return Err(Failure::new(FailureKind::Unsupported, why));
        }
        Ok(blocking(move || books.look()).await)
    }
}

fn closing(sandbox: SandboxId) -> Failure {
    Failure::new(FailureKind::ShuttingDown, format!("invoke {sandbox}: its node is shutting down"))
}

/// A sandbox that had ended before the request could go in is as good as none: whoever sent it looks for another one.
fn never_saw(failure: Failure) -> Failure {
    Failure { kind: FailureKind::NotFound, ..failure }
}

/// Why a sandbox ends that is just ending.
async fn last_words(sandbox: SandboxId, door: &Entrance) -> Failure {
    match tokio::time::timeout(LAST_WORDS, door.ended()).await {
        Ok(ended) => super::work::ended(sandbox, ended, door.log()),
        Err(_still) => Failure::new(FailureKind::Crashed, format!("{sandbox} was killed")),
    }
}

/// Why there is no answer. A broken connection often means that the process is just ending: wait for its status.
async fn explain(sandbox: SandboxId, door: &Entrance, error: &RequestError) -> Failure {
    let broken = matches!(error, RequestError::Closed { .. } | RequestError::Connect { .. });
    if broken && let Ok(ended) = tokio::time::timeout(LAST_WORDS, door.ended()).await {
        let failure = super::work::ended(sandbox, ended, door.log());
        return if matches!(error, RequestError::Connect { .. }) { never_saw(failure) } else { failure };
    }
    let kind = match error {
        RequestError::Busy { .. } => FailureKind::Busy,
        RequestError::Deadline { .. } => FailureKind::Deadline,
        RequestError::BadPath { .. } => FailureKind::Invalid,
        RequestError::Closed { .. }
        | RequestError::Connect { .. }
        | RequestError::BodyTooLarge { .. }
        | RequestError::Malformed { .. } => FailureKind::Crashed,
    };
    let mut failure = Failure::from_error(kind, error);
    failure.message = format!("invoke {sandbox}: {}", failure.message);
    failure
}

fn to_sandbox(request: Request, deadline: Duration) -> Result<sandbox::Request, Failure> {
    let invalid =
        |what: &str| Failure::new(FailureKind::Invalid, format!("the request's {what} cannot be sent"));
    let Request { method, path, headers, body } = request;
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::try_from(name).map_err(|_name| invalid("header name"))?;
        map.append(name, HeaderValue::from_maybe_shared(value).map_err(|_value| invalid("header value"))?);
    }
    let method = Method::try_from(method.as_str()).map_err(|_method| invalid("method"))?;
    Ok(sandbox::Request { method, path, headers: map, body, response_bytes_max: BODY_BYTES_MAX, deadline })
}

fn to_caller(response: sandbox::Response) -> Answer {
    let headers = response.headers.iter().take(HEADERS_MAX);
    Answer {
        status: response.status.as_u16(),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
            .collect(),
        body: response.body,
        took: Duration::from_micros(response.micros),
    }
}
