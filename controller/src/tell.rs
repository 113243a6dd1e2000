//! What the driver tells, as log lines and counters. The driver decides, this file only speaks.

use medes_proto::trace::{NodeChange, What};
use metrics::{counter, histogram};

use crate::driver::Told;

/// Logs and counts one event.
pub(crate) fn tell(told: &Told) {
    count(told);
    log(told);
}

fn count(told: &Told) {
    counter!("medes_trace_events_total", "kind" => told.what.kind().word()).increment(1);
    match &told.what {
        What::Node { change: NodeChange::Attached, .. } => {
            counter!("medes_nodes_attached_total").increment(1);
        }
        What::Node { change: NodeChange::Lost, .. } => counter!("medes_nodes_lost_total").increment(1),
        What::Start(choice) => {
            let chosen = choice.chosen.name.split(' ').next();
            if chosen == Some("call") {
                return counter!("medes_parks_called_back_total").increment(1);
            }
            let start =
                ["cold", "unpark", "clone"].into_iter().find(|way| chosen == Some(way)).unwrap_or("restore");
            let function = told.about.function.as_ref().map(ToString::to_string).unwrap_or_default();
            counter!("medes_starts_total", "start" => start, "function" => function).increment(1);
        }
        What::Ready { start, took, .. } => {
            histogram!("medes_start_seconds", "start" => start.word()).record(took.as_secs_f64());
        }
        What::Dedup(summary) => {
            counter!("medes_dedups_total").increment(1);
            counter!("medes_dedup_in_bytes_total").increment(summary.bytes_in);
            counter!("medes_dedup_stored_bytes_total").increment(summary.bytes_out);
            let seconds = summary.phases.iter().map(|phase| phase.took.as_secs_f64()).sum::<f64>();
            histogram!("medes_dedup_seconds").record(seconds);
            let pages = summary.pages;
            for (class, pages) in pages.by_class() {
                counter!("medes_dedup_pages_total", "class" => class).increment(pages);
            }
        }
        What::Base(change) if change.made => counter!("medes_bases_made_total").increment(1),
        What::Base(_) => counter!("medes_bases_dropped_total").increment(1),
        What::Error(trouble) => {
            counter!("medes_errors_total", "doing" => trouble.doing.clone()).increment(1);
        }
        What::Purge { reason } => counter!("medes_purges_total", "reason" => reason.clone()).increment(1),
        What::Eviction(_) => counter!("medes_purges_total", "reason" => "evicted").increment(1),
        What::Move(_) => counter!("medes_moves_total").increment(1),
        What::State(_)
        | What::Idle { .. }
        | What::Review(_)
        | What::Node { .. }
        | What::Request { .. }
        | What::Asked { .. } => {}
    }
}

fn log(told: &Told) {
    let Told { id, about, what } = told;
    let sandbox = about.sandbox.map(tracing::field::display);
    let node = about.node.as_ref().map(tracing::field::display);
    match what {
        What::Node { change: NodeChange::Attached, .. } => tracing::info!(node, "node attached"),
        What::Node { change: NodeChange::Lost, sandboxes } => tracing::warn!(node, sandboxes, "node lost"),
        What::Node { change: NodeChange::Cordoned, .. } => tracing::info!(node, "node cordoned"),
        What::Node { change: NodeChange::Draining, .. } => tracing::info!(node, "node draining"),
        What::Node { change: NodeChange::Resting, .. } => tracing::info!(node, "node being put to rest"),
        What::Node { change: NodeChange::Opened, .. } => tracing::info!(node, "node open again"),
        What::Node { .. } => tracing::warn!(node, "node's stream broke"),
        What::Dedup(summary) => {
            let (bytes_in, bytes_out) = (summary.bytes_in, summary.bytes_out);
            tracing::info!(sandbox, bytes_in, bytes_out, "deduplicated");
        }
        What::Base(change) => {
            let (snapshot, made) = (change.snapshot, change.made);
            tracing::info!(%snapshot, sandbox, made, "base");
        }
        What::Error(trouble) => {
            let (doing, kind, pause) = (&trouble.doing, trouble.kind, trouble.pause);
            tracing::warn!(sandbox, node, doing, ?kind, ?pause, "{doing} failed: {}", trouble.message);
        }
        What::Start(choice) => tracing::debug!(%id, sandbox, chosen = choice.chosen.name, "starting"),
        What::Ready { start, took, .. } => tracing::debug!(sandbox, start = start.word(), ?took, "ready"),
        What::Purge { reason } => tracing::debug!(%id, sandbox, reason, "purging"),
        What::Eviction(_) => tracing::debug!(%id, sandbox, "evicting"),
        What::Move(choice) => tracing::debug!(%id, sandbox, chosen = choice.chosen.name, "moving"),
        What::State(_) | What::Idle { .. } | What::Review(_) | What::Request { .. } | What::Asked { .. } => {}
    }
}
