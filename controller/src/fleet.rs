//! The Fleet service: one stream for each agent, wire on one side, events and commands on the other.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{Stream, StreamExt, stream};
use medes_dedup::key::DomainKey;
use medes_identity::guard::speaks_as;
use medes_proto::{
    fleet::{AgentMessage, ControllerMessage, EngineSettings, Hello, Welcome},
    wire::{self, fleet_server::Fleet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    driver::{CloseReason, ConnectionId, Event},
    shell::{Handle, ToAgent},
};

/// From the stream's opening to its Hello.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// What every agent is told first.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) incarnation: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) domain_key: DomainKey,
    pub(crate) engine: EngineSettings,
}

/// The service.
#[derive(Debug)]
pub(crate) struct FleetService {
    driver: Handle,
    greeting: Arc<Greeting>,
    connections: AtomicU64,
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl FleetService {
    pub(crate) fn new(
        driver: Handle,
        greeting: Greeting,
        tracker: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self { driver, greeting: Arc::new(greeting), connections: AtomicU64::new(0), tracker, stop }
    }
}

type Commands = Pin<Box<dyn Stream<Item = Result<wire::ControllerMessage, Status>> + Send>>;

#[tonic::async_trait]
impl Fleet for FleetService {
    type AttachStream = Commands;

    async fn attach(
        &self,
        request: Request<Streaming<wire::AgentMessage>>,
    ) -> Result<Response<Commands>, Status> {
        let (metadata, extensions, mut messages) = request.into_parts();
        let hello = tokio::time::timeout(HELLO_MAX, read_hello(&mut messages))
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no Hello within 10 s"))??;
        speaks_as(&Request::from_parts(metadata, extensions, ()), &hello.node)?;
        let node = hello.node.clone();
        let connection = ConnectionId(self.connections.fetch_add(1, Ordering::Relaxed) + 1);
        let commands = self.driver.attach(connection, hello).await?;
        let (driver, stop) = (self.driver.clone(), self.stop.clone());
        // From here on the driver knows the connection, so it must also hear of its end.
        self.tracker.spawn(async move {
            let why = tokio::select! {
                why = forward(&driver, connection, &mut messages) => why,
                () = stop.cancelled() => None,
            };
            if let Some(status) = why {
                tracing::warn!(%node, "stream ends: {status}");
            }
            drop(driver.tell(Event::Detached { connection }).await);
        });
        Ok(Response::new(to_wire(Arc::clone(&self.greeting), commands, self.stop.clone())))
    }
}

async fn read_hello(messages: &mut Streaming<wire::AgentMessage>) -> Result<Hello, Status> {
    let first =
        messages.message().await?.ok_or_else(|| Status::invalid_argument("the stream ended before Hello"))?;
    match AgentMessage::try_from(first)? {
        AgentMessage::Hello(hello) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message is not Hello")),
    }
}

/// Passes messages on until the stream ends. A message that makes no sense ends it, too: what else would be wrong?
async fn forward(
    driver: &Handle,
    connection: ConnectionId,
    messages: &mut Streaming<wire::AgentMessage>,
) -> Option<Status> {
    loop {
        let message = match messages.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return None,
            Err(status) => return Some(status),
        };
        let event = match AgentMessage::try_from(message) {
            Ok(message) => event(connection, message),
            Err(error) => return Some(error.into()),
        };
        let Some(event) = event else { return Some(Status::invalid_argument("a second Hello")) };
        if driver.tell(event).await.is_err() {
            return None;
        }
    }
}

fn event(connection: ConnectionId, message: AgentMessage) -> Option<Event> {
    Some(match message {
        AgentMessage::Hello(_) => return None,
        AgentMessage::Heartbeat(inventory) => Event::Reported { connection, inventory: Box::new(inventory) },
        AgentMessage::Done { command, result } => Event::Done { connection, command, result },
        AgentMessage::Idle { sandbox, idle } => Event::Idle { connection, sandbox, idle },
        AgentMessage::Gone { sandbox, why } => Event::Gone { connection, sandbox, why },
    })
}

fn to_wire(
    greeting: Arc<Greeting>,
    commands: tokio::sync::mpsc::Receiver<ToAgent>,
    stop: CancellationToken,
) -> Commands {
    // Ends after the first error, when the driver lets go of the connection, and when the controller stops.
    let messages = stream::unfold(Some((greeting, commands)), |state| async move {
        let (greeting, mut commands) = state?;
        match commands.recv().await? {
            ToAgent::Close(why) => Some((Err(closed(why)), None)),
            ToAgent::Command { id, command } => {
                Some((Ok(ControllerMessage::Command { id, command }.into()), Some((greeting, commands))))
            }
            ToAgent::IdlePeriod(idle) => {
                Some((Ok(ControllerMessage::IdlePeriod(idle).into()), Some((greeting, commands))))
            }
            ToAgent::Welcome { idle, purge } => {
                let welcome = Welcome {
                    incarnation: greeting.incarnation,
                    heartbeat: greeting.heartbeat,
                    idle,
                    domain_key: greeting.domain_key.clone(),
                    engine: greeting.engine,
                    purge,
                };
                Some((Ok(ControllerMessage::Welcome(welcome).into()), Some((greeting, commands))))
            }
        }
    });
    Box::pin(messages.take_until(stop.cancelled_owned()))
}

fn closed(why: CloseReason) -> Status {
    match why {
        CloseReason::Replaced => Status::aborted(why.to_string()),
        CloseReason::Silent => Status::deadline_exceeded(why.to_string()),
        CloseReason::TooManyNodes => Status::resource_exhausted(why.to_string()),
    }
}
