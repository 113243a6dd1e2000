//! What the agent counts: the ends of long work, and what the node holds at each heartbeat.

use ::metrics::{counter, gauge, histogram};
use medes_proto::{
    fleet::Inventory,
    sandbox::{Phase, SandboxState},
};

use crate::watch::{Counts, Lost, Sight, writes::Way};

/// Long work has ended: well, with these phases, or not.
pub(crate) fn operation(operation: &'static str, phases: Option<&[Phase]>) {
    let result = if phases.is_some() { "done" } else { "failed" };
    counter!("medes_operations_total", "operation" => operation, "result" => result).increment(1);
    for phase in phases.unwrap_or_default() {
        histogram!("medes_phase_seconds", "operation" => operation, "phase" => phase.name.clone())
            .record(phase.took.as_secs_f64());
    }
}

/// So many pages were taken of a warm sandbox that goes on.
pub(crate) fn trimmed(pages: u64) {
    counter!("medes_trimmed_pages_total").increment(pages);
}

/// Something that the agent before left is here now, or lost.
pub(crate) fn taken_over(what: &'static str) {
    counter!("medes_taken_over_total", "what" => what).increment(1);
}

/// A window of a sandbox has ended in which so many pages were written, and so many touched in any way.
pub(crate) fn window(written: u64, touched: u64) {
    counter!("medes_watch_windows_total").increment(1);
    counter!("medes_watch_written_pages_total").increment(written);
    counter!("medes_watch_touched_pages_total").increment(touched);
}

/// Pages of other nodes have come, by TCP or RDMA.
pub(crate) fn remote_pages(by: &'static str, pages: usize) {
    counter!("medes_remote_pages_total", "by" => by).increment(pages as u64);
}

/// A read by RDMA was late or broke, and was asked over TCP.
pub(crate) fn fallback(reason: &'static str) {
    counter!("medes_rdma_fallbacks_total", "reason" => reason).increment(1);
}

/// How this node sees who works and what is written.
pub(crate) fn sight(work: Sight, writes: Option<Way>) {
    gauge!("medes_watch_sight", "of" => "work", "by" => work.to_string()).set(1.0);
    let by = writes.map_or_else(|| "nothing".to_owned(), |way| way.to_string());
    gauge!("medes_watch_sight", "of" => "writes", "by" => by).set(1.0);
}

/// The writes of a process are tracked from now on, or cannot be.
pub(crate) fn armed(armed: bool) {
    counter!("medes_watch_armed_total", "result" => if armed { "done" } else { "failed" }).increment(1);
}

/// What the kernel programs have seen of a sandbox since they were last asked.
pub(crate) fn events(before: &Counts, now: &Counts) {
    for (kind, before, now) in [
        ("wake", before.wakes, now.wakes),
        ("timer_wake", before.timer_wakes, now.timer_wakes),
        ("switch", before.switches, now.switches),
        ("fork", before.forks, now.forks),
        ("exit", before.exits, now.exits),
        ("fault", before.faults, now.faults),
    ] {
        counter!("medes_watch_events_total", "kind" => kind).increment(now.saturating_sub(before));
    }
}

/// What did not fit into the tables and rings of the kernel programs so far.
pub(crate) fn lost(lost: &Lost) {
    let Lost { faults, tasks, members, odd } = *lost;
    for (what, count) in [("fault", faults), ("task", tasks), ("member", members), ("odd", odd)] {
        counter!("medes_watch_lost_total", "what" => what).absolute(count);
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
    const STATES: [SandboxState; 7] = [
        SandboxState::Starting,
        SandboxState::Warm,
        SandboxState::Running,
        SandboxState::Deduping,
        SandboxState::Dedup,
        SandboxState::Restoring,
        SandboxState::Parked,
    ];
    for state in STATES {
        let count = inventory.sandboxes.iter().filter(|report| report.state == state).count();
        gauge!("medes_node_sandboxes", "state" => state.word()).set(count as f64);
    }
    gauge!("medes_node_snapshots").set(inventory.snapshots.len() as f64);
}
