//! Memory as the kernel counts it, looked at once per heartbeat.

use std::collections::BTreeMap;

use medes_proto::{
    fleet::{NodeMemory, Success},
    ids::SandboxId,
};

use super::{Body, Node, Tools};
use crate::{driver::Measures, roads::blocking};

/// The last look.
#[derive(Debug, Default)]
pub(super) struct Measured {
    node: NodeMemory,
    private_bytes: BTreeMap<SandboxId, u64>,
}

impl Measured {
    pub(super) fn new(cap_bytes: u64) -> Self {
        Self { node: NodeMemory { cap_bytes, ..NodeMemory::default() }, ..Self::default() }
    }

    pub(super) const fn node(&self) -> NodeMemory {
        self.node
    }

    pub(super) fn private_bytes(&self, sandbox: SandboxId) -> u64 {
        self.private_bytes.get(&sandbox).copied().unwrap_or(0)
    }

    /// The sandbox is gone.
    pub(super) fn forget(&mut self, sandbox: SandboxId) {
        self.private_bytes.remove(&sandbox);
    }

    /// Looks again. A sandbox that is being worked on keeps its last figure.
    pub(super) async fn refresh(
        &mut self,
        tools: &Tools,
        bodies: &BTreeMap<SandboxId, Body>,
        image_bytes: u64,
    ) {
        let warm: Vec<_> = bodies
            .iter()
            .filter_map(|(&id, body)| match body {
                Body::Warm(warm, _) | Body::Parked(warm, _) => Some((id, warm.housing.cgroup().clone())),
                Body::Stored(_) | Body::Ruin(_) => None,
            })
            .collect();
        let host = tools.host.clone();
        let (sandboxes, node, agent) = blocking(move || {
            let sandboxes: Vec<_> =
                warm.into_iter().map(|(id, cgroup)| (id, cgroup.usage().anon_bytes)).collect();
            (sandboxes, host.usage(), host.cgroup().agent_usage())
        })
        .await;
        self.private_bytes
            .retain(|id, _| matches!(bodies.get(id), Some(Body::Warm(..) | Body::Parked(..)) | None));
        self.private_bytes.extend(sandboxes);
        self.node.used_bytes = node.held_bytes();
        self.node.agent_bytes = agent.held_bytes();
        self.node.base_bytes = tools.bases.bytes();
        self.node.image_bytes = image_bytes;
    }
}

impl Node {
    /// As of the last looks.
    pub(super) fn measures(&self, sandbox: SandboxId) -> Measures {
        Measures {
            private_bytes: self.measured.private_bytes(sandbox),
            heat: self.pace.heat(sandbox),
            activity: self.watching.activity(sandbox),
        }
    }

    /// The driver knows no memory: what the sandbox has right now is looked up here.
    pub(super) fn with_memory(&self, mut success: Success) -> Success {
        if let Some(report) = &mut success.sandbox
            && let Some(Body::Warm(warm, _) | Body::Parked(warm, _)) = self.bodies.get(&report.id)
        {
            let private_bytes = warm.housing.usage().anon_bytes;
            Measures { private_bytes, ..self.measures(report.id) }.fill(report);
        }
        success
    }
}
