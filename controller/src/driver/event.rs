//! What the driver is told and what it wants done: the whole of its contact with the world.

use std::{fmt, time::Duration};

use super::{decision::Told, settings::Tuning};
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Command, Hello, Inventory, Success},
    function::FunctionSpec,
    ids::{CommandId, FunctionName, NodeId, SandboxId, SnapshotId, TenantName},
    registry::{Acquire, SnapshotPlace},
    sandbox::{Phase, StartKind},
    standing::Standing,
    trace::EventId,
};

/// One stream of one agent. A node that reconnects has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// One request of one caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Somebody who waits for an answer that is not a request's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// An agent has said Hello.
    Attached {
        /// On which stream.
        connection: ConnectionId,
        /// What it said.
        hello: Box<Hello>,
    },
    /// A stream has ended.
    Detached {
        /// Which.
        connection: ConnectionId,
    },
    /// A heartbeat.
    Reported {
        /// From whom.
        connection: ConnectionId,
        /// What the node holds.
        inventory: Box<Inventory>,
    },
    /// A command has ended.
    Done {
        /// Where.
        connection: ConnectionId,
        /// Which.
        command: CommandId,
        /// How.
        result: Box<Result<Success, Failure>>,
    },
    /// A warm sandbox has nothing to do.
    Idle {
        /// Where.
        connection: ConnectionId,
        /// Which.
        sandbox: SandboxId,
        /// For how long.
        idle: Duration,
    },
    /// A sandbox has ended by itself.
    Gone {
        /// Where.
        connection: ConnectionId,
        /// Which.
        sandbox: SandboxId,
        /// Why.
        why: Failure,
    },
    /// Somebody wants a function to do something. Answered by exactly one of: [`RequestEnd::Answered`] from
    /// the shell after an [`Action::Send`], or [`Action::Refuse`].
    Requested {
        /// Which request.
        request: RequestId,
        /// Of which function.
        function: FunctionName,
        /// A sandbox the caller would like.
        prefer: Option<SandboxId>,
        /// How long the caller waits.
        deadline: Duration,
    },
    /// What became of an [`Action::Send`].
    Ended {
        /// Of which request.
        request: RequestId,
        /// What.
        end: RequestEnd,
    },
    /// A caller has gone away. Means nothing once the request has been sent.
    Abandoned {
        /// Whose request.
        request: RequestId,
    },
    /// A function is new or has changed. The store already has it.
    Applied {
        /// The function.
        function: Box<FunctionSpec>,
        /// Of its text.
        revision: u64,
    },
    /// A function is no more. The store already forgot it.
    Removed {
        /// Its name.
        function: FunctionName,
    },
    /// A tenant's key is deleted. The store already forgot it.
    TenantDeleted {
        /// Whose.
        tenant: TenantName,
    },
    /// What becomes of idle sandboxes is decided in another way from now on.
    Tuned(Box<Tuning>),
    /// A person keeps work away from a node, or lets it come again. The store already knows.
    Stands {
        /// Which.
        node: NodeId,
        /// What it is given to do.
        standing: Standing,
    },
    /// A person wants something done to a sandbox.
    Asked {
        /// Who waits; answered by exactly one [`Action::Answer`].
        ticket: Ticket,
        /// What.
        operation: Operation,
    },
    /// A dedup image wants to refer to snapshots.
    Acquire {
        /// Who waits; answered by exactly one [`Action::Answer`].
        ticket: Ticket,
        /// Which image, which snapshots.
        acquire: Acquire,
    },
    /// Time has passed; see [`super::Driver::wake_at`].
    Tick,
    /// No new work; what waits is refused.
    Stop,
}

/// What became of a request after it was sent.
#[derive(Debug, Clone)]
pub enum RequestEnd {
    /// The caller has its answer.
    Answered {
        /// Time inside the sandbox.
        took: Duration,
    },
    /// The agent says why not.
    Failed(Failure),
    /// It never left this machine: any other sandbox may have it.
    NotSent,
    /// It left and nothing came back: it may or may not have had effects.
    Lost,
}

/// What a person can ask for.
#[derive(Debug, Clone)]
pub enum Operation {
    /// One more sandbox.
    Start {
        /// Of which function.
        function: FunctionName,
        /// Where; the scheduler's choice if absent.
        node: Option<NodeId>,
        /// From nothing, also where a clone would be made.
        cold: bool,
    },
    /// A base snapshot of a warm sandbox.
    MakeBase(SandboxId),
    /// Warm to dedup.
    Dedup {
        /// Which.
        sandbox: SandboxId,
        /// Hash its memory first.
        digest_memory: bool,
    },
    /// Dedup to warm.
    Restore {
        /// Which.
        sandbox: SandboxId,
        /// Hash its memory afterwards.
        digest_memory: bool,
    },
    /// From its node to another one, in dedup.
    Move {
        /// Which.
        sandbox: SandboxId,
        /// Where; the node with room that uses the least memory if absent.
        to: Option<NodeId>,
    },
    /// The end of it.
    Purge(SandboxId),
}

/// Do this.
#[derive(Debug)]
pub enum Action {
    /// Answer a Hello. Always before any command on that stream.
    Welcome {
        /// On which stream.
        connection: ConnectionId,
        /// How long a sandbox is idle before the agent says so.
        idle: Duration,
        /// Sandboxes that nobody wants.
        purge: Vec<SandboxId>,
        /// Tenants that have something on its node: the agent is told their keys, and forgets all others.
        tenants: Vec<TenantName>,
    },
    /// Tell an agent these tenants' keys. Always before the first command on that stream that needs them.
    TellKeys {
        /// On which stream.
        connection: ConnectionId,
        /// Whose.
        tenants: Vec<TenantName>,
    },
    /// Have an agent forget these tenants' keys: they have nothing on its node.
    ForgetKeys {
        /// On which stream.
        connection: ConnectionId,
        /// Whose.
        tenants: Vec<TenantName>,
    },
    /// Tell an agent that the idle period of the Welcome is another one now.
    IdlePeriod {
        /// On which stream.
        connection: ConnectionId,
        /// The new one.
        idle: Duration,
    },
    /// Have an agent do something.
    Command {
        /// On which stream.
        connection: ConnectionId,
        /// Its number.
        id: CommandId,
        /// What.
        command: Command,
    },
    /// End a stream.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why.
        why: CloseReason,
    },
    /// Send a request to a sandbox, then say [`Event::Ended`].
    Send {
        /// Which request.
        request: RequestId,
        /// Where to.
        target: Target,
    },
    /// Answer a request with an error. If it was sent, the sandbox's answer is no longer wanted.
    Refuse {
        /// Which request.
        request: RequestId,
        /// Why.
        why: Refusal,
    },
    /// Answer a ticket.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// What came of it.
        result: Box<Result<Success, Failure>>,
    },
    /// Fingerprints of this snapshot may now be registered.
    ExpectSnapshot(SnapshotId),
    /// Lookups may now name this snapshot.
    PlaceSnapshot {
        /// Which.
        snapshot: SnapshotId,
        /// Who holds it; readers are sent to the first.
        holders: Vec<SnapshotPlace>,
    },
    /// Lookups must no longer name this snapshot, but it may come back.
    HideSnapshot(SnapshotId),
    /// Delete this snapshot from the registry.
    ForgetSnapshot(SnapshotId),
    /// Count it, log it, show it.
    Tell(Box<Told>),
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Of which function.
    pub function: FunctionName,
    /// Its node.
    pub node: NodeId,
    /// host:port of the node's Node service.
    pub address: String,
    /// How the sandbox came to be ready.
    pub start: StartKind,
    /// The wait so far: queue, then start.
    pub phases: Vec<Phase>,
    /// What is left of the caller's time.
    pub deadline: Duration,
    /// The number of the event that tells of this.
    pub event: EventId,
}

/// Why a stream is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// The same node has said Hello on another stream.
    Replaced,
    /// No heartbeat within the limit.
    Silent,
    /// The controller has as many nodes as it takes.
    TooManyNodes,
}

/// Why a request gets no answer from a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such function, or no longer.
    UnknownFunction,
    /// Too many wait already.
    QueueFull,
    /// Time is up, before or after it was sent.
    Deadline {
        /// Whether a sandbox had it.
        sent: bool,
    },
    /// Nothing could run it, or it failed.
    Failed(Failure),
    /// Its node or the way to it broke after it was sent.
    NodeLost(NodeId),
    /// The controller stops.
    Stopping,
}

impl fmt::Display for CloseReason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Replaced => "this node has connected again",
            Self::Silent => "no heartbeat within the limit",
            Self::TooManyNodes => "the controller has as many nodes as it takes",
        })
    }
}

impl Refusal {
    /// One sentence for the caller.
    pub fn message(&self) -> String {
        match self {
            Self::UnknownFunction => "no such function".into(),
            Self::QueueFull => "too many requests wait for this function".into(),
            Self::Deadline { sent: false } => "no sandbox was ready before the deadline".into(),
            Self::Deadline { sent: true } => "the function did not answer before the deadline".into(),
            Self::Failed(failure) => failure.message.clone(),
            Self::NodeLost(node) => format!("node {node} was lost during the request"),
            Self::Stopping => "the controller is stopping".into(),
        }
    }

    /// As a failure, for callers that speak gRPC.
    pub fn into_failure(self) -> Failure {
        let message = self.message();
        match self {
            Self::Failed(failure) => failure,
            Self::UnknownFunction => Failure::new(FailureKind::NotFound, message),
            Self::QueueFull => Failure::new(FailureKind::Busy, message),
            Self::Deadline { .. } => Failure::new(FailureKind::Deadline, message),
            Self::NodeLost(_) => Failure::new(FailureKind::Crashed, message),
            Self::Stopping => Failure::new(FailureKind::ShuttingDown, message),
        }
    }
}
