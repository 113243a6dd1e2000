//! What the agent counts: the ends of long work, and what the node holds at each heartbeat.

use ::metrics::{counter, gauge, histogram};
use medes_proto::{
    fleet::Inventory,
    sandbox::{Phase, SandboxState},
};

/// Long work has ended: well, with these phases, or not.
pub(crate) fn operation(operation: &'static str, phases: Option<&[Phase]>) {
    let result = if phases.is_some() { "done" } else { "failed" };
    counter!("medes_operations_total", "operation" => operation, "result" => result).increment(1);
    for phase in phases.unwrap_or_default() {
        histogram!("medes_phase_seconds", "operation" => operation, "phase" => phase.name.clone())
            .record(phase.took.as_secs_f64());
    }
}

/// What the node holds now.
#[expect(clippy::cast_precision_loss, reason = "gauges are floating point; a byte in a petabyte may be lost")]
pub(crate) fn inventory(inventory: &Inventory) {
    let memory = inventory.memory;
    for (part, bytes) in [
        ("cap", memory.cap_bytes),
        ("used", memory.used_bytes),
        ("base", memory.base_bytes),
        ("image", memory.image_bytes),
        ("agent", memory.agent_bytes),
    ] {
        gauge!("medes_node_memory_bytes", "part" => part).set(bytes as f64);
    }
    const STATES: [SandboxState; 6] = [
        SandboxState::Starting,
        SandboxState::Warm,
        SandboxState::Running,
        SandboxState::Deduping,
        SandboxState::Dedup,
        SandboxState::Restoring,
    ];
    for state in STATES {
        let count = inventory.sandboxes.iter().filter(|report| report.state == state).count();
        gauge!("medes_node_sandboxes", "state" => state.word()).set(count as f64);
    }
    gauge!("medes_node_snapshots").set(inventory.snapshots.len() as f64);
}
