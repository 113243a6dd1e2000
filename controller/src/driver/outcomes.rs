//! What the end of a start, a restore, a dedup or a purge changes.

use std::time::Duration;

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::Success,
    ids::{NodeId, SandboxId},
    sandbox::{SandboxState, StartKind},
    trace::{Cause, DedupSummary, What},
};

use super::{
    Action, Driver, PurgeReason,
    commands::doing,
    state::{Kind, LastStart, Life, Pending, Timer},
};
use crate::now::Now;

impl Driver {
    pub(super) fn start_done(
        &mut self,
        now: Now,
        pending: &Pending,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(id) = pending.sandbox else { return };
        let start = pending.kind.start().unwrap_or(StartKind::Cold);
        let success = match result {
            Ok(success) => success,
            Err(why) => return self.start_failed(now, pending, id, start, why, out),
        };
        let took = now.since(pending.issued);
        let before = self.footprint(id);
        let reserved_bytes = pending.reserved_bytes;
        self.tell_of(id, What::Ready { start, took, phases: success.phases }, out);
        self.enter(now, id, Life::Warm, Cause::Done, out);
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
        sandbox.last_used = now;
        sandbox.quiet = false;
        sandbox.last_start = Some(LastStart { kind: start, commanded: pending.issued, ready: now });
        if let Some(report) = success.sandbox {
            sandbox.report = report;
        }
        // The dedup image and its references end with the restore.
        self.check_bases |= start != StartKind::Cold;
        let (name, private_bytes) = (sandbox.function.clone(), sandbox.report.private_bytes);
        if private_bytes == 0 {
            // Not measured yet: what was reserved stays reserved, under another name, until it is.
            sandbox.report.private_bytes = reserved_bytes;
        }
        self.drift(&pending.node, self.footprint(id).saturating_sub(before));
        if let Some(function) = self.functions.get_mut(&name) {
            if matches!(start, StartKind::Cold | StartKind::Clone) {
                function.fresh.add_time(took);
            }
            match start {
                StartKind::Cold => function.cold_start.add_time(took),
                StartKind::Clone => function.clone.add_time(took),
                StartKind::Unpark => function.unpark.add_time(took),
                _ => function.restore.add_time(took),
            }
            if private_bytes > 0 {
                function.warm_bytes.add(private_bytes as f64);
            }
        }
        self.stop_waiting_for(&name, id, None);
        match start {
            StartKind::Cold => self.make_init(now, id, out),
            // Its claim on the snapshot that it is a clone of.
            StartKind::Clone => drop(self.leases.remove(&id)),
            _ => {}
        }
    }

    fn start_failed(
        &mut self,
        now: Now,
        pending: &Pending,
        id: SandboxId,
        start: StartKind,
        why: Failure,
        out: &mut Vec<Action>,
    ) {
        self.tell_failed(id, doing(start), &why, None, out);
        let Some(sandbox) = self.sandboxes.get(&id) else { return };
        let name = sandbox.function.clone();
        let nodes_fault = is_nodes_fault(why.kind);
        if let Kind::Clone(source) = pending.kind {
            // One that did not come from its holder may come from another, or later.
            if !nodes_fault && why.kind != FailureKind::BaseLost {
                self.clone_failed(source);
            }
            self.remove_sandbox(id, Cause::Failed, None, out);
            self.stop_waiting_for(&name, id, Some(start));
        } else if start != StartKind::Cold {
            // Invariant: a failed restore never yields a running sandbox. The image is given up, unless the
            // node only had no room for it.
            if nodes_fault {
                let before = if start == StartKind::Unpark { Life::Parked } else { Life::Dedup };
                self.enter(now, id, before, Cause::Failed, out);
            } else {
                self.end_broken(now, id, why.kind, out);
            }
            self.stop_waiting_for(&name, id, Some(start));
        } else {
            self.remove_sandbox(id, Cause::Failed, None, out);
            if pending.ticket.is_none() && !nodes_fault {
                self.fail_waiting(&name, &why, out);
            } else if pending.ticket.is_none() {
                self.count_attempt(now, &name, why, out);
            }
        }
        if nodes_fault {
            self.avoid(now, &pending.node);
        }
        self.dirty.insert(name);
    }

    pub(super) fn avoid(&mut self, now: Now, node: &NodeId) {
        let until = now.after(self.settings.avoid);
        if let Some(node) = self.nodes.get_mut(node) {
            node.avoid_until = Some(until);
        }
        self.arm(until, Timer::Nodes);
    }

    /// Purges a sandbox whose agent may or may not still have it.
    pub(super) fn end_broken(&mut self, now: Now, id: SandboxId, kind: FailureKind, out: &mut Vec<Action>) {
        if kind == FailureKind::NotFound {
            self.remember_moved(now, id);
            return self.remove_sandbox(id, Cause::Failed, None, out);
        }
        self.enter(now, id, Life::Purging, Cause::Failed, out);
        self.purge(now, id, PurgeReason::Broken, None, out);
    }

    pub(super) fn dedup_done(
        &mut self,
        now: Now,
        pending: &Pending,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(id) = pending.sandbox else { return };
        // From here the report's references count.
        self.leases.remove(&id);
        self.check_bases = true;
        let before = self.footprint(id);
        match result {
            Ok(success) => {
                let parked =
                    success.sandbox.as_ref().is_some_and(|report| report.state == SandboxState::Parked);
                let life = if parked { Life::Parked } else { Life::Dedup };
                self.enter(now, id, life, Cause::Done, out);
                let Some(sandbox) = self.sandboxes.get_mut(&id) else { return };
                let private_bytes = sandbox.report.private_bytes;
                sandbox.warm_bytes = private_bytes;
                sandbox.dump_failures = 0;
                sandbox.dump_blocked_until = None;
                if let Some(report) = success.sandbox {
                    sandbox.report = report;
                }
                let stored_bytes = sandbox.report.stored_bytes;
                let (pages, bases) = (sandbox.report.pages, sandbox.report.bases.clone());
                if let Some(function) = self.functions.get_mut(&sandbox.function) {
                    // What is parked in haste is larger than it will be: a later report tells how much that is.
                    let known = function.dedup_bytes.bytes().filter(|_| parked);
                    if known.is_none_or(|known| stored_bytes <= known) {
                        function.dedup_bytes.add(stored_bytes as f64);
                    }
                }
                self.drift(&pending.node, self.footprint(id).saturating_sub(before));
                let summary = DedupSummary {
                    nodes: self.nodes_of_bases(&bases),
                    pages,
                    bases,
                    // Pages that were never touched may be zero pages of the dump and no memory, or the other way round.
                    bytes_in: pages.bytes().max(private_bytes),
                    bytes_out: stored_bytes,
                    phases: success.phases,
                };
                self.tell_of(id, What::Dedup(summary), out);
            }
            Err(why) => {
                if matches!(why.kind, FailureKind::NotFound | FailureKind::Crashed | FailureKind::OutOfMemory)
                {
                    self.tell_failed(id, "dedup", &why, None, out);
                    return self.end_broken(now, id, why.kind, out);
                }
                if why.kind == FailureKind::Cancelled {
                    // We asked for it: nothing has failed.
                    return self.enter(now, id, Life::Warm, Cause::Done, out);
                }
                let pause = self.block_dumps(now, id, &why);
                self.tell_failed(id, "dedup", &why, Some(pause), out);
                // Invariant: a failed dedup leaves the sandbox warm.
                self.enter(now, id, Life::Warm, Cause::Failed, out);
            }
        }
    }

    /// A dump failed: not again for a while, each time twice as long.
    pub(super) fn block_dumps(&mut self, now: Now, id: SandboxId, why: &Failure) -> Duration {
        let Some(sandbox) = self.sandboxes.get_mut(&id) else { return Duration::ZERO };
        let doublings = sandbox.dump_failures.min(16);
        let pause = self
            .settings
            .keeping
            .dump_pause
            .saturating_mul(1 << doublings)
            .min(self.settings.keeping.dump_pause_max);
        sandbox.dump_failures = sandbox.dump_failures.saturating_add(1);
        sandbox.dump_blocked_until = Some(now.after(pause));
        if why.kind == FailureKind::DumpRefused {
            sandbox.report.undumpable = Some(why.message.clone());
        }
        pause
    }

    pub(super) fn purge_done(
        &mut self,
        pending: &Pending,
        result: Result<Success, Failure>,
        out: &mut Vec<Action>,
    ) {
        let Some(id) = pending.sandbox else { return };
        match result {
            Ok(_) => {
                let freed = self.footprint(id);
                self.drift(&pending.node, freed.saturating_neg());
                self.remove_sandbox(id, Cause::Done, None, out);
            }
            // It ended earlier; the last report may show that already, so nothing is credited.
            Err(why) if why.kind == FailureKind::NotFound => self.remove_sandbox(id, Cause::Done, None, out),
            // Still `Purging`: told again when a report shows that it is still there.
            Err(_) => {}
        }
    }
}

/// Another node, or the same one later, may do better.
pub(super) const fn is_nodes_fault(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::NoSpace
            | FailureKind::ShuttingDown
            | FailureKind::Busy
            | FailureKind::Unsupported
            | FailureKind::Internal
            | FailureKind::Deadline
    )
}
