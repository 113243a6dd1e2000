//! What the driver has decided, for logs and counters: it decides, `tell` speaks.

use std::time::Duration;

use medes_proto::{
    failure::Failure,
    ids::{CommandId, FunctionName, NodeId, SandboxId, SnapshotId},
    sandbox::StartKind,
};

/// Something decided, for logs and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A node is there.
    NodeAttached(NodeId),
    /// A node's stream broke; it has some time to come back.
    NodeAway(NodeId),
    /// A node is given up with all it held.
    NodeLost {
        /// Which.
        node: NodeId,
        /// Sandboxes that went with it.
        sandboxes: usize,
    },
    /// A sandbox is to be started, and how.
    Starting {
        /// Which.
        sandbox: SandboxId,
        /// Of which function.
        function: FunctionName,
        /// Where.
        node: NodeId,
        /// Cold or restore.
        start: StartKind,
    },
    /// A start ended well.
    Started {
        /// Which.
        sandbox: SandboxId,
        /// Cold or restore.
        start: StartKind,
        /// From command to answer.
        took: Duration,
    },
    /// A cold start or a restore ended badly. A failed restore is followed by a cold start.
    StartFailed {
        /// Which.
        sandbox: SandboxId,
        /// Cold or restore.
        start: StartKind,
        /// Why.
        why: Failure,
    },
    /// A sandbox's memory has been taken.
    Deduplicated {
        /// Which.
        sandbox: SandboxId,
        /// Before.
        private_bytes: u64,
        /// After.
        stored_bytes: u64,
    },
    /// It could not be; it stays warm.
    DedupFailed {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        why: Failure,
        /// Before it is tried again.
        pause: Duration,
    },
    /// A snapshot is there.
    BaseMade {
        /// Which.
        snapshot: SnapshotId,
        /// Of which sandbox.
        sandbox: SandboxId,
    },
    /// A snapshot could not be made.
    BaseFailed {
        /// Of which sandbox.
        sandbox: SandboxId,
        /// Why.
        why: Failure,
    },
    /// A snapshot that nobody needs is dropped.
    BaseDropped(SnapshotId),
    /// A sandbox is to end.
    Purging {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        why: PurgeReason,
    },
    /// A sandbox ended by itself.
    SandboxGone {
        /// Which.
        sandbox: SandboxId,
        /// Why.
        why: Failure,
    },
    /// A command was not answered in time.
    CommandOverdue {
        /// Which.
        command: CommandId,
        /// Where.
        node: NodeId,
    },
}

/// Why a sandbox is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PurgeReason {
    /// Idle for longer than the policy keeps it.
    Policy,
    /// Its memory is needed.
    Evicted,
    /// Its function is gone or has changed.
    Unwanted,
    /// It failed, or nobody knows what state it is in.
    Broken,
    /// Somebody asked for it.
    Asked,
}

impl PurgeReason {
    /// The word in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Evicted => "evicted",
            Self::Unwanted => "unwanted",
            Self::Broken => "broken",
            Self::Asked => "asked",
        }
    }
}
