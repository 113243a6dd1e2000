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
    keyring::Keyring,
    shell::{Handle, ToAgent},
};

/// From the stream's opening to its Hello.
const HELLO_MAX: Duration = Duration::from_secs(10);

/// What every agent is told first.
#[derive(Debug, Clone)]
pub(crate) struct Greeting {
    pub(crate) incarnation: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) engine: EngineSettings,
    /// Keys are looked up at the moment they are sent: none goes out that was deleted before.
    pub(crate) keyring: Arc<Keyring>,
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
        let (hello, speech) = tokio::time::timeout(HELLO_MAX, read_hello(&mut messages))
            .await
            .map_err(|_elapsed| Status::deadline_exceeded("no Hello within 10 s"))??;
        speaks_as(&Request::from_parts(metadata, extensions, ()), &hello.node)?;
        let speech = speech.with(&self.greeting.keyring)?;
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
        Ok(Response::new(to_wire((Arc::clone(&self.greeting), speech), commands, self.stop.clone())))
    }
}

/// How keys are told to an agent.
#[derive(Debug, Clone)]
enum Speech {
    /// Tenant by tenant.
    ByTenant,
    /// It is of an earlier version, and derives all of them from this one, as the controller did when it was of that version.
    Derived(Option<DomainKey>),
}

impl Speech {
    fn of(hello: &wire::Hello) -> Self {
        if hello.keys_by_tenant { Self::ByTenant } else { Self::Derived(None) }
    }

    /// With what there is to tell.
    fn with(self, keyring: &Keyring) -> Result<Self, Status> {
        match self {
            Self::ByTenant => Ok(self),
            Self::Derived(_) => match keyring.domain_key() {
                Some(key) => Ok(Self::Derived(Some(key))),
                None => Err(Status::failed_precondition(
                    "this agent is too old: it derives tenants' keys from one that is no more",
                )),
            },
        }
    }
}

async fn read_hello(messages: &mut Streaming<wire::AgentMessage>) -> Result<(Hello, Speech), Status> {
    let first =
        messages.message().await?.ok_or_else(|| Status::invalid_argument("the stream ended before Hello"))?;
    let speech = match &first.message {
        Some(wire::agent_message::Message::Hello(hello)) => Speech::of(hello),
        _ => Speech::ByTenant,
    };
    match AgentMessage::try_from(first)? {
        AgentMessage::Hello(hello) => Ok((hello, speech)),
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
    (greeting, speech): (Arc<Greeting>, Speech),
    commands: tokio::sync::mpsc::Receiver<ToAgent>,
    stop: CancellationToken,
) -> Commands {
    // Ends after the first error, when the driver lets go of the connection, and when the controller stops.
    let messages = stream::unfold(Some((greeting, speech, commands)), |state| async move {
        let (greeting, speech, mut commands) = state?;
        loop {
            let message = match commands.recv().await? {
                ToAgent::Close(why) => return Some((Err(closed(why)), None)),
                said => said_to_agent(&greeting, &speech, said),
            };
            if let Some(message) = message {
                return Some((Ok(message.into()), Some((greeting, speech, commands))));
            }
        }
    });
    Box::pin(messages.take_until(stop.cancelled_owned()))
}

/// `None`: this agent would not understand it, and need not.
fn said_to_agent(greeting: &Greeting, speech: &Speech, said: ToAgent) -> Option<ControllerMessage> {
    let by_tenant = matches!(speech, Speech::ByTenant);
    Some(match said {
        ToAgent::Close(_) => return None,
        ToAgent::Command { id, command } => ControllerMessage::Command { id, command },
        ToAgent::IdlePeriod(idle) => ControllerMessage::IdlePeriod(idle),
        ToAgent::TellKeys(_) | ToAgent::ForgetKeys(_) if !by_tenant => return None,
        ToAgent::TellKeys(tenants) => ControllerMessage::TenantKeys(greeting.keyring.of(tenants)),
        ToAgent::ForgetKeys(tenants) => ControllerMessage::ForgetKeys(tenants),
        ToAgent::Welcome { idle, purge, tenants } => ControllerMessage::Welcome(Welcome {
            incarnation: greeting.incarnation,
            heartbeat: greeting.heartbeat,
            idle,
            keys: greeting.keyring.of(tenants),
            domain_key: match speech {
                Speech::ByTenant => None,
                Speech::Derived(key) => key.clone(),
            },
            engine: greeting.engine,
            purge,
        }),
    })
}

fn closed(why: CloseReason) -> Status {
    match why {
        CloseReason::Replaced => Status::aborted(why.to_string()),
        CloseReason::Silent => Status::deadline_exceeded(why.to_string()),
        CloseReason::TooManyNodes => Status::resource_exhausted(why.to_string()),
    }
}
