//! The shell around the driver: one task that waits, calls [`Driver::apply`], and carries out what it says.
//!
//! Everybody else holds an [`Handle`]. Queues are bounded; a full one makes the sender wait, except towards agents
//! and callers: an agent that does not read its commands loses its stream.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, Success},
    ids::{CommandId, SandboxId, TenantName},
    registry::Acquire,
    trace::{About, Event as Traced, TraceKind, What},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{
    driver::{
        Action, CloseReason, ConnectionId, Driver, Event, Operation, Refusal, RequestEnd, RequestId, Target,
        Ticket, Told,
    },
    now::Now,
    places::Places,
    registry::Registry,
    tell::tell,
    trace::Hub,
};

/// Events that may wait for the driver.
const EVENTS_MAX: usize = 4_096;
/// Commands that may wait for one agent to read them.
const COMMANDS_MAX: usize = 1_024;
/// A request is sent at most `attempts_max` times and refused once; the shell reads each before the next comes.
const VERDICTS_MAX: usize = 4;

/// What the fleet's stream of one agent is told.
#[derive(Debug)]
pub(crate) enum ToAgent {
    Welcome { idle: Duration, purge: Vec<SandboxId>, tenants: Vec<TenantName> },
    IdlePeriod(Duration),
    TellKeys(Vec<TenantName>),
    ForgetKeys(Vec<TenantName>),
    Command { id: CommandId, command: Command },
    Close(CloseReason),
}

/// What a request's task is told.
#[derive(Debug)]
pub(crate) enum ToRequest {
    Send(Target),
    Refuse(Refusal),
}

type Look = Box<dyn FnOnce(&Driver, Now) + Send>;

enum Message {
    Event(Event),
    Attach {
        event: Event,
        connection: ConnectionId,
        agent: mpsc::Sender<ToAgent>,
    },
    Request {
        function: medes_proto::ids::FunctionName,
        prefer: Option<SandboxId>,
        deadline: Duration,
        opened: oneshot::Sender<OpenRequest>,
    },
    Ask {
        what: Question,
        answer: oneshot::Sender<Result<Success, Failure>>,
    },
    Look(Look),
}

enum Question {
    Operation(Operation),
    Acquire(Acquire),
}

/// A request that the driver knows: its number and what it is told.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) id: RequestId,
    pub(crate) verdicts: mpsc::Receiver<ToRequest>,
}

/// The driver is gone: the controller is stopping.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller is stopping")]
pub struct Stopped;

impl From<Stopped> for Failure {
    fn from(stopped: Stopped) -> Self {
        Failure::from_error(FailureKind::ShuttingDown, &stopped)
    }
}

impl From<Stopped> for tonic::Status {
    fn from(stopped: Stopped) -> Self {
        tonic::Status::unavailable(stopped.to_string())
    }
}

/// A way to the driver. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(mpsc::Sender<Message>);

/// Room for one thing to tell the driver.
pub(crate) struct Turn<'h>(mpsc::Permit<'h, Message>);

impl Turn<'_> {
    pub(crate) fn tell(self, event: Event) {
        self.0.send(Message::Event(event));
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Message(..)")
    }
}

impl Handle {
    async fn send(&self, message: Message) -> Result<(), Stopped> {
        self.0.send(message).await.map_err(|_closed| Stopped)
    }

    /// Tells the driver something. Cancel-safe: either it was told or it was not.
    pub(crate) async fn tell(&self, event: Event) -> Result<(), Stopped> {
        self.send(Message::Event(event)).await
    }

    /// Waits until the driver can be told something: what is sent then is sent in one step, however impatient the caller is.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Stopped> {
        self.0.reserve().await.map(Turn).map_err(|_closed| Stopped)
    }

    /// Tells the driver of a new stream and gives it the way back.
    pub(crate) async fn attach(
        &self,
        connection: ConnectionId,
        hello: medes_proto::fleet::Hello,
    ) -> Result<mpsc::Receiver<ToAgent>, Stopped> {
        let (agent, commands) = mpsc::channel(COMMANDS_MAX);
        let event = Event::Attached { connection, hello: Box::new(hello) };
        self.send(Message::Attach { event, connection, agent }).await?;
        Ok(commands)
    }

    /// Opens a request. The caller must follow its verdicts to the end, or say [`Event::Abandoned`].
    pub(crate) async fn request(
        &self,
        function: medes_proto::ids::FunctionName,
        prefer: Option<SandboxId>,
        deadline: Duration,
    ) -> Result<OpenRequest, Stopped> {
        let (opened, request) = oneshot::channel();
        self.send(Message::Request { function, prefer, deadline, opened }).await?;
        request.await.map_err(|_closed| Stopped)
    }

    pub(crate) async fn ended(&self, request: RequestId, end: RequestEnd) -> Result<(), Stopped> {
        self.tell(Event::Ended { request, end }).await
    }

    async fn ask(&self, what: Question) -> Result<Result<Success, Failure>, Stopped> {
        let (answer, result) = oneshot::channel();
        self.send(Message::Ask { what, answer }).await?;
        result.await.map_err(|_closed| Stopped)
    }

    /// Has something done to a sandbox and waits for the end of it. The driver bounds the wait. If the caller goes
    /// away, the operation goes on.
    pub async fn operate(&self, operation: Operation) -> Result<Result<Success, Failure>, Stopped> {
        self.ask(Question::Operation(operation)).await
    }

    /// Claims snapshots for a dedup image.
    pub async fn acquire(&self, acquire: Acquire) -> Result<Result<Success, Failure>, Stopped> {
        self.ask(Question::Acquire(acquire)).await
    }

    /// Looks at the driver between two events.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Driver, Now) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (answer, result) = oneshot::channel();
        let look = move |driver: &Driver, now| drop(answer.send(look(driver, now)));
        self.send(Message::Look(Box::new(look))).await?;
        result.await.map_err(|_closed| Stopped)
    }
}

/// What the shell needs besides the driver.
pub(crate) struct Shell {
    pub(crate) driver: Driver,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) places: Arc<Places>,
    pub(crate) hub: Arc<Hub>,
    /// For deletion sweeps of the registry.
    pub(crate) tracker: TaskTracker,
    pub(crate) stop: CancellationToken,
}

struct Running {
    shell: Shell,
    started: std::time::Instant,
    agents: BTreeMap<ConnectionId, mpsc::Sender<ToAgent>>,
    requests: BTreeMap<RequestId, mpsc::Sender<ToRequest>>,
    tickets: BTreeMap<Ticket, oneshot::Sender<Result<Success, Failure>>>,
    counter: u64,
    actions: Vec<Action>,
}

/// Starts the shell's task. It ends when `stop` is cancelled, and then refuses everything.
pub(crate) fn start(shell: Shell) -> Handle {
    let (sender, messages) = mpsc::channel(EVENTS_MAX);
    let tracker = shell.tracker.clone();
    let running = Running {
        shell,
        started: std::time::Instant::now(),
        agents: BTreeMap::new(),
        requests: BTreeMap::new(),
        tickets: BTreeMap::new(),
        counter: 0,
        actions: Vec::new(),
    };
    tracker.spawn(running.run(messages));
    Handle(sender)
}

impl Running {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let stop = self.shell.stop.clone();
        loop {
            let wake = self.shell.driver.wake_at().map(|at| at.since(self.now()));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                message = messages.recv() => match message {
                    Some(message) => self.take(message),
                    None => break,
                },
                () = tokio::time::sleep(wake.unwrap_or(Duration::MAX)), if wake.is_some() => {
                    self.apply(Event::Tick);
                }
            }
        }
    }

    fn now(&self) -> Now {
        Now::START.after(self.started.elapsed())
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Event(event) => {
                if let Event::Detached { connection } = event {
                    self.agents.remove(&connection);
                }
                let about = match event {
                    Event::Ended { request, .. } | Event::Abandoned { request } => Some(request),
                    _ => None,
                };
                self.apply(event);
                // Once the driver has forgotten a request there is nothing more to say about it.
                if let Some(request) = about.filter(|&request| !self.shell.driver.has_request(request)) {
                    self.requests.remove(&request);
                }
            }
            Message::Attach { event, connection, agent } => {
                self.agents.insert(connection, agent);
                self.apply(event);
            }
            Message::Request { function, prefer, deadline, opened } => {
                let request = RequestId(self.number());
                let (sender, verdicts) = mpsc::channel(VERDICTS_MAX);
                // A caller that left before the driver even heard of it needs no answer.
                if opened.send(OpenRequest { id: request, verdicts }).is_ok() {
                    self.requests.insert(request, sender);
                    self.apply(Event::Requested { request, function, prefer, deadline });
                }
            }
            Message::Ask { what, answer } => {
                let ticket = Ticket(self.number());
                self.tickets.insert(ticket, answer);
                self.apply(match what {
                    Question::Operation(operation) => Event::Asked { ticket, operation },
                    Question::Acquire(acquire) => Event::Acquire { ticket, acquire },
                });
            }
            Message::Look(look) => look(&self.shell.driver, self.now()),
        }
    }

    fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn apply(&mut self, event: Event) {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        self.shell.driver.apply(now, event, &mut actions);
        let mut broken = Vec::new();
        for action in actions.drain(..) {
            self.perform(action, &mut broken);
        }
        self.actions = actions;
        for connection in broken {
            if self.agents.remove(&connection).is_some() {
                tracing::warn!(?connection, "an agent does not read its commands; its stream is closed");
                self.apply(Event::Detached { connection });
            }
        }
    }

    fn perform(&mut self, action: Action, broken: &mut Vec<ConnectionId>) {
        let mut to_agent = |agents: &BTreeMap<ConnectionId, mpsc::Sender<ToAgent>>, connection, message| {
            if agents.get(&connection).is_none_or(|agent| agent.try_send(message).is_err()) {
                broken.push(connection);
            }
        };
        match action {
            Action::Welcome { connection, idle, purge, tenants } => {
                to_agent(&self.agents, connection, ToAgent::Welcome { idle, purge, tenants });
            }
            Action::TellKeys { connection, tenants } => {
                to_agent(&self.agents, connection, ToAgent::TellKeys(tenants));
            }
            Action::ForgetKeys { connection, tenants } => {
                to_agent(&self.agents, connection, ToAgent::ForgetKeys(tenants));
            }
            Action::IdlePeriod { connection, idle } => {
                to_agent(&self.agents, connection, ToAgent::IdlePeriod(idle));
            }
            Action::Command { connection, id, command } => {
                to_agent(&self.agents, connection, ToAgent::Command { id, command });
            }
            Action::Close { connection, why } => {
                if let Some(agent) = self.agents.remove(&connection) {
                    // If its queue is full, dropping the sender ends the stream as well.
                    drop(agent.try_send(ToAgent::Close(why)));
                }
            }
            Action::Send { request, target } => {
                if self.shell.hub.is_wanted(TraceKind::Request) {
                    self.publish(sent(&target));
                }
                self.to_request(request, ToRequest::Send(target));
            }
            Action::Refuse { request, why } => {
                self.to_request(request, ToRequest::Refuse(why));
                self.requests.remove(&request);
            }
            Action::Answer { ticket, result } => {
                if let Some(waiter) = self.tickets.remove(&ticket) {
                    // Who asked may have gone.
                    drop(waiter.send(*result));
                }
            }
            Action::ExpectSnapshot(id) => self.shell.places.expect(id),
            Action::PlaceSnapshot { snapshot, holders } => self.shell.places.place(snapshot, holders),
            Action::HideSnapshot(id) => self.shell.places.hide(id),
            Action::ForgetSnapshot(id) => {
                self.shell.places.forget(id);
                let registry = Arc::clone(&self.shell.registry);
                self.shell.tracker.spawn_blocking(move || registry.forget(id));
            }
            Action::Tell(told) => {
                tell(&told);
                self.publish(*told);
            }
        }
    }

    fn publish(&self, Told { id, about, what }: Told) {
        let since_epoch = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let unix_micros = u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX);
        self.shell.hub.publish(Traced { id, unix_micros, about, what });
    }

    fn to_request(&self, request: RequestId, message: ToRequest) {
        if let Some(sender) = self.requests.get(&request) {
            // Its task reads every verdict before the driver can give the next; if it is gone, so is its caller.
            drop(sender.try_send(message));
        }
    }
}

/// That a request has been sent, without anything of the request.
fn sent(target: &Target) -> Told {
    let about = About {
        node: Some(target.node.clone()),
        sandbox: Some(target.sandbox),
        function: Some(target.function.clone()),
    };
    let what = What::Request { start: target.start, phases: target.phases.clone() };
    Told { id: target.event, about, what }
}
