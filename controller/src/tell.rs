//! Decisions, as log lines and counters. The driver decides, this file only speaks.

use metrics::{counter, histogram};

use crate::driver::Decision;

/// Logs and counts one decision.
pub(crate) fn tell(decision: &Decision) {
    match decision {
        Decision::NodeAttached(node) => {
            counter!("medes_nodes_attached_total").increment(1);
            tracing::info!(%node, "node attached");
        }
        Decision::NodeAway(node) => tracing::warn!(%node, "node's stream broke"),
        Decision::NodeLost { node, sandboxes } => {
            counter!("medes_nodes_lost_total").increment(1);
            tracing::warn!(%node, sandboxes, "node lost");
        }
        Decision::Starting { sandbox, function, node, start } => {
            counter!("medes_starts_total", "start" => start.word(), "function" => function.to_string())
                .increment(1);
            tracing::debug!(%sandbox, %function, %node, start = start.word(), "starting");
        }
        Decision::Started { sandbox, start, took } => {
            histogram!("medes_start_seconds", "start" => start.word()).record(took.as_secs_f64());
            tracing::debug!(%sandbox, start = start.word(), ?took, "started");
        }
        Decision::StartFailed { sandbox, start, why } => {
            counter!("medes_start_failures_total", "start" => start.word()).increment(1);
            tracing::warn!(%sandbox, start = start.word(), kind = ?why.kind, "start failed: {why}");
        }
        Decision::Deduplicated { sandbox, private_bytes, stored_bytes } => {
            counter!("medes_dedups_total").increment(1);
            counter!("medes_dedup_private_bytes_total").increment(*private_bytes);
            counter!("medes_dedup_stored_bytes_total").increment(*stored_bytes);
            tracing::info!(%sandbox, private_bytes, stored_bytes, "deduplicated");
        }
        Decision::DedupFailed { sandbox, why, pause } => {
            counter!("medes_dedup_failures_total").increment(1);
            tracing::warn!(%sandbox, kind = ?why.kind, ?pause, "dedup failed, stays warm: {why}");
        }
        Decision::BaseMade { snapshot, sandbox } => {
            counter!("medes_bases_made_total").increment(1);
            tracing::info!(%snapshot, %sandbox, "base made");
        }
        Decision::BaseFailed { sandbox, why } => {
            counter!("medes_base_failures_total").increment(1);
            tracing::warn!(%sandbox, kind = ?why.kind, "base not made: {why}");
        }
        Decision::BaseDropped(snapshot) => {
            counter!("medes_bases_dropped_total").increment(1);
            tracing::info!(%snapshot, "base dropped");
        }
        Decision::Purging { sandbox, why } => {
            counter!("medes_purges_total", "reason" => why.word()).increment(1);
            tracing::debug!(%sandbox, reason = why.word(), "purging");
        }
        Decision::SandboxGone { sandbox, why } => {
            counter!("medes_sandboxes_gone_total").increment(1);
            tracing::warn!(%sandbox, kind = ?why.kind, "sandbox ended by itself: {why}");
        }
        Decision::CommandOverdue { command, node } => {
            counter!("medes_commands_overdue_total").increment(1);
            tracing::warn!(command = command.0, %node, "command not answered in time");
        }
    }
}
