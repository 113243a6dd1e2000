//! What an agent and its controller say to each other on their one stream.

mod convert;
mod keys;

use std::time::Duration;

use crate::{
    failure::Failure,
    function::FunctionSpec,
    ids::{CommandId, FunctionName, NodeId, SandboxId, SnapshotId, TenantName},
    registry::SnapshotPlace,
    sandbox::{Phase, SandboxReport},
};
use medes_dedup::{
    fingerprint::Sampling,
    key::{DomainKey, KeyId},
};

/// Agent to controller.
#[derive(Debug, Clone)]
pub enum AgentMessage {
    /// First on every stream.
    Hello(Hello),
    /// Every heartbeat period: what the node holds now.
    Heartbeat(Inventory),
    /// A command has ended.
    Done {
        /// Which.
        command: CommandId,
        /// How.
        result: Box<Result<Success, Failure>>,
    },
    /// A warm sandbox has had nothing to do for the idle period.
    Idle {
        /// Which.
        sandbox: SandboxId,
        /// For how long.
        idle: Duration,
    },
    /// A sandbox ended without being told to.
    Gone {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        why: Failure,
    },
}

/// Who the agent is.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Its node.
    pub node: NodeId,
    /// Fresh each time the agent starts.
    pub incarnation: u64,
    /// Of the agent's program.
    pub version: String,
    /// Where its Node service listens, as host:port.
    pub address: String,
    /// What it holds.
    pub inventory: Inventory,
    /// What it cannot do, and why.
    pub lacks: Vec<String>,
}

/// What a node holds.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    /// As the kernel counts it.
    pub memory: NodeMemory,
    /// All its sandboxes.
    pub sandboxes: Vec<SandboxReport>,
    /// All its base snapshots.
    pub snapshots: Vec<SnapshotReport>,
    /// All tenants' keys that it knows.
    pub keys: Vec<HeldKey>,
}

/// A tenant's key that a node knows, as it reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    /// Whose.
    pub tenant: TenantName,
    /// Which.
    pub id: KeyId,
}

/// A tenant's key, for a node that has something of that tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantKey {
    /// Whose.
    pub tenant: TenantName,
    /// Of its fingerprints, page hashes, seals and transfers.
    pub key: DomainKey,
}

/// A node's memory, as the kernel counts it for the node's cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeMemory {
    /// What it may use.
    pub cap_bytes: u64,
    /// Anonymous, shared and kernel memory of agent and sandboxes.
    pub used_bytes: u64,
    /// Held by base snapshots.
    pub base_bytes: u64,
    /// Held by dedup images.
    pub image_bytes: u64,
    /// The agent and its helpers.
    pub agent_bytes: u64,
}

/// A base snapshot as its agent reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Which.
    pub id: SnapshotId,
    /// Taken from a sandbox of this function.
    pub function: FunctionName,
    /// Pages in it.
    pub pages: u64,
    /// Bytes it holds.
    pub bytes: u64,
    /// Its sandbox had served no request.
    pub init: Option<InitState>,
}

/// What is said of an init snapshot: one of a sandbox that was ready and had served no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InitState {
    /// Of which text of the function's file.
    pub revision: u64,
    /// New sandboxes may be made of it.
    pub clonable: bool,
}

/// What a command came to.
#[derive(Debug, Clone, Default)]
pub struct Success {
    /// The sandbox afterwards, if there is one.
    pub sandbox: Option<SandboxReport>,
    /// The snapshot made.
    pub snapshot: Option<SnapshotReport>,
    /// How long each step took.
    pub phases: Vec<Phase>,
    /// Hash over all private memory, where asked for.
    pub memory_digest: Option<[u8; 32]>,
}

/// Controller to agent.
#[derive(Debug, Clone)]
pub enum ControllerMessage {
    /// First on every stream.
    Welcome(Welcome),
    /// Do this; answer with [`AgentMessage::Done`].
    Command {
        /// Named again in the answer.
        id: CommandId,
        /// What to do.
        command: Command,
    },
    /// How long a sandbox is idle before the agent says so, from now on.
    IdlePeriod(Duration),
    /// More keys. Each comes before the first command that needs it.
    TenantKeys(Vec<TenantKey>),
    /// These tenants have nothing on this node any more.
    ForgetKeys(Vec<TenantName>),
}

/// The cluster's settings, as an agent needs them.
#[derive(Debug, Clone)]
pub struct Welcome {
    /// Rises each time the controller starts.
    pub incarnation: u64,
    /// How often the agent says what it holds.
    pub heartbeat: Duration,
    /// How long a sandbox is idle before the agent says so.
    pub idle: Duration,
    /// Of all tenants that have something on this node; it forgets every other one.
    pub keys: Vec<TenantKey>,
    /// Said to agents of an earlier version, heard by no other: what all tenants' keys were derived from.
    pub domain_key: Option<DomainKey>,
    /// How pages are deduplicated.
    pub engine: EngineSettings,
    /// Sandboxes the controller does not want.
    pub purge: Vec<SandboxId>,
}

/// How pages are fingerprinted and stored; the same on every node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineSettings {
    /// Which chunks stand for a page.
    pub sampling: Sampling,
    /// The largest delta worth keeping.
    pub delta_bytes_max: u32,
    /// Base snapshots one image may refer to.
    pub bases_max: u32,
    /// Nodes one image may read from.
    pub nodes_max: u32,
    /// Whether sandboxes are made of words of a base.
    pub level: Level,
    /// An image of level `fast` that has waited for so long is made one of level `small`; zero: never.
    pub small_after: Duration,
}

/// How much is done to store a sandbox small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Level {
    /// Each page by itself, with candidates of the registry.
    None,
    /// As words of one base, aligned once; the registry is asked about what is left.
    #[default]
    Fast,
    /// The same, aligned twice and packed harder.
    Small,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            sampling: Sampling::default(),
            delta_bytes_max: 4095,
            bases_max: 8,
            nodes_max: 3,
            level: Level::default(),
            small_after: Duration::from_secs(60),
        }
    }
}

impl EngineSettings {
    /// After which time of waiting an image is made smaller; zero: never, for want of a wish or of a smaller level.
    pub fn shrinks_after(&self) -> Duration {
        if self.level == Level::Fast { self.small_after } else { Duration::ZERO }
    }
}

/// What a controller wants done.
#[derive(Debug, Clone)]
pub enum Command {
    /// Start a sandbox.
    Start {
        /// Its number.
        sandbox: SandboxId,
        /// Of which function.
        function: Box<FunctionSpec>,
        /// Of which text of the function's file.
        revision: u64,
        /// The init snapshot that it is a clone of, and where that is; `None`: from nothing.
        clone_of: Option<SnapshotPlace>,
    },
    /// Make a base snapshot of a warm sandbox, which stays warm.
    MakeBase {
        /// From which.
        sandbox: SandboxId,
        /// Its number.
        snapshot: SnapshotId,
        /// Its function's init snapshot: refused when it has served a request.
        init: bool,
    },
    /// Take a warm sandbox's memory.
    Dedup {
        /// Whose.
        sandbox: SandboxId,
        /// Hash its memory first.
        digest_memory: bool,
        /// A base of its function and where that is, if the controller knows one.
        base: Option<SnapshotPlace>,
    },
    /// Take a warm sandbox's memory and leave its processes, frozen.
    Park {
        /// Whose.
        sandbox: SandboxId,
        /// A base of its function and where that is, if the controller knows one.
        base: Option<SnapshotPlace>,
        /// Of a hundred of its pages so many may stay: those that the next request will touch.
        resident_percent: u32,
    },
    /// End a park under way as soon as possible: the sandbox is wanted.
    CancelPark {
        /// Whose.
        sandbox: SandboxId,
    },
    /// Give it back, from a dedup image or from parked.
    Restore {
        /// Whose.
        sandbox: SandboxId,
        /// Hash its memory before it runs.
        digest_memory: bool,
    },
    /// End a sandbox and forget it.
    Purge {
        /// Which.
        sandbox: SandboxId,
    },
    /// Copy a base snapshot that another node holds, and hold it as one made here.
    Replicate {
        /// Which, and where it is.
        place: SnapshotPlace,
    },
    /// Let another node have a sandbox that is in dedup: read its image, then have this node give it up.
    Offer {
        /// Which.
        sandbox: SandboxId,
        /// Who may have it.
        to: NodeId,
    },
    /// Take over a sandbox in dedup that another node offers.
    Take {
        /// Which.
        sandbox: SandboxId,
        /// Of which function.
        function: Box<FunctionSpec>,
        /// Of which text of the function's file.
        revision: u64,
        /// Who has it.
        from: NodeId,
        /// Where that node's Node service is, as host:port.
        address: String,
    },
    /// Forget a base snapshot that nobody needs here.
    DropSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
}

impl Command {
    /// The sandbox it is about.
    pub const fn sandbox(&self) -> Option<SandboxId> {
        match self {
            Self::Start { sandbox, .. }
            | Self::MakeBase { sandbox, .. }
            | Self::Dedup { sandbox, .. }
            | Self::Park { sandbox, .. }
            | Self::CancelPark { sandbox }
            | Self::Restore { sandbox, .. }
            | Self::Offer { sandbox, .. }
            | Self::Take { sandbox, .. }
            | Self::Purge { sandbox } => Some(*sandbox),
            Self::Replicate { .. } | Self::DropSnapshot { .. } => None,
        }
    }
}
