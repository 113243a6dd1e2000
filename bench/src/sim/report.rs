//! What the policies came to, side by side.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_controller::policy::PolicyKind;
use serde::Serialize;

use super::{Options, outcome::Outcome, trace::Trace};
use crate::{record::Record, show};

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    functions: usize,
    minutes: usize,
    requests: u64,
    nodes: u32,
    node_bytes: u64,
    pub(super) rows: Vec<Row>,
}

/// One policy.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    policy: &'static str,
    cold: u64,
    restored: u64,
    warm: u64,
    refused: u64,
    cold_fraction: f64,
    wait_ms_mean: f64,
    wait_ms_p50: f64,
    wait_ms_p99: f64,
    wait_ms_p999: f64,
    slowdown_p99: f64,
    memory_bytes_mean: f64,
    memory_bytes_max: u64,
    over_bytes_max: u64,
    sandboxes_max: usize,
    dedups: u64,
    restores: u64,
    bases: u64,
    purges: u64,
    events: u64,
    seconds: f64,
}

impl Report {
    pub(super) fn new(trace: &Trace, options: &Options) -> Self {
        Self {
            record: Record::here("sim"),
            functions: trace.functions.len(),
            minutes: trace.minutes(),
            requests: trace.requests(),
            nodes: options.nodes,
            node_bytes: options.node_memory.0,
            rows: Vec::new(),
        }
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "POLICY",
            "COLD",
            "RESTORED",
            "REFUSED",
            "WAIT MEAN",
            "P99",
            "P99.9",
            "MEMORY MEAN",
            "MAX",
            "DEDUPS",
            "EVENTS/S",
        ]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.rows {
            let cells = [
                row.policy.to_owned(),
                format!("{} ({})", row.cold, show::percent(row.cold_fraction)),
                row.restored.to_string(),
                row.refused.to_string(),
                show::ms(row.wait_ms_mean),
                show::ms(row.wait_ms_p99),
                show::ms(row.wait_ms_p999),
                show::mib(row.memory_bytes_mean),
                show::mib(row.memory_bytes_max as f64),
                row.dedups.to_string(),
                format!("{:.0}", row.events as f64 / row.seconds),
            ];
            table.add_row(cells);
        }
        table.to_string()
    }
}

impl Row {
    pub(super) fn new(kind: PolicyKind, outcome: &Outcome, took: Duration) -> Self {
        let mut waits = outcome.waits.clone();
        waits.sort_unstable_by(f32::total_cmp);
        let mut slowdowns = outcome.slowdowns.clone();
        slowdowns.sort_unstable_by(f32::total_cmp);
        let ms = |share| quantile(&waits, share) * 1e3;
        let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        Self {
            policy: kind.word(),
            cold: outcome.cold,
            restored: outcome.restored,
            warm: outcome.warm,
            refused: outcome.refused,
            cold_fraction: mean(outcome.cold as f64, outcome.requests() as usize),
            wait_ms_mean: mean(waits.iter().map(|wait| f64::from(*wait)).sum(), waits.len()) * 1e3,
            wait_ms_p50: ms(0.5),
            wait_ms_p99: ms(0.99),
            wait_ms_p999: ms(0.999),
            slowdown_p99: quantile(&slowdowns, 0.99),
            memory_bytes_mean: mean(
                outcome.bytes.iter().map(|bytes| *bytes as f64).sum(),
                outcome.bytes.len(),
            ),
            memory_bytes_max: outcome.bytes.iter().copied().max().unwrap_or(0),
            over_bytes_max: outcome.over_bytes_max,
            sandboxes_max: outcome.sandboxes_max,
            dedups: outcome.dedups,
            restores: outcome.restores,
            bases: outcome.bases,
            purges: outcome.purges,
            events: outcome.events,
            seconds: took.as_secs_f64(),
        }
    }
}

/// The value that this share of the sorted values does not exceed; 0 when there is none.
fn quantile(sorted: &[f32], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.max(1) - 1).copied().map_or(0.0, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_there() {
        let hundred: Vec<f32> = (1..=100).map(|n| n as f32).collect();
        assert_eq!((quantile(&hundred, 0.5), quantile(&hundred, 0.99)), (50.0, 99.0));
        assert_eq!((quantile(&hundred, 0.999), quantile(&[], 0.5)), (100.0, 0.0));
    }
}
