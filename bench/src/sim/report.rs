//! What the policies came to, side by side.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_controller::policy::PolicyKind;
use serde::Serialize;

use super::{Options, outcome::Outcome, trace::Trace};
use crate::{
    plot::{self, Line, Plot},
    record::Record,
    show,
};

/// Minutes between two points of a line.
const SERIES_MINUTES: usize = 5;

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    functions: usize,
    minutes: usize,
    requests: u64,
    nodes: u32,
    pub(super) rows: Vec<Row>,
}

/// One policy.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    policy: &'static str,
    /// Memory of each node.
    node_bytes: u64,
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
    /// At the end of every fifth minute.
    memory_bytes: Vec<u64>,
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
            rows: Vec::new(),
        }
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "NODE",
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
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.rows {
            let cells = [
                show::mib(row.node_bytes as f64),
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

    /// The same for a browser, with plots.
    pub(super) fn page(&self) -> String {
        let title = "Policies compared in a simulated cluster";
        let about = format!(
            "{} functions, {} requests in {} minutes, {} nodes. The controller's own driver and policies in virtual time; what \
             starts, dedups and images take was measured on real sandboxes. {}",
            self.functions,
            self.requests,
            self.minutes,
            self.nodes,
            self.record.line()
        );
        let gib = |bytes: f64| bytes / f64::from(1 << 30);
        let by_pool = |title: &str, y: &str, value: &dyn Fn(&Row) -> f64| {
            let point = |row: &Row| (gib(row.node_bytes as f64), value(row));
            let lines = self.policies().map(|policy| {
                let rows = self.rows.iter().filter(|row| row.policy == policy);
                Line { name: policy.to_owned(), points: rows.map(point).collect() }
            });
            Plot { title: title.into(), x: "GiB for each node".into(), y: y.into(), lines: lines.collect() }
        };
        let mut plots = vec![
            by_pool("Cold starts", "% of requests", &|row| row.cold_fraction * 100.0),
            by_pool("Wait for a sandbox, mean", "ms", &|row| row.wait_ms_mean),
            by_pool("Wait for a sandbox, 99th percentile", "ms", &|row| row.wait_ms_p99),
            by_pool("Wait for a sandbox, 99.9th percentile", "ms", &|row| row.wait_ms_p999),
        ];
        let mut pools: Vec<u64> = self.rows.iter().map(|row| row.node_bytes).collect();
        pools.dedup();
        plots.extend(pools.into_iter().map(|pool| {
            let hours = |at: usize| (at * SERIES_MINUTES) as f64 / 60.0;
            let rows = self.rows.iter().filter(|row| row.node_bytes == pool);
            let lines = rows.map(|row| {
                let points = row.memory_bytes.iter().enumerate();
                let points = points.map(|(at, bytes)| (hours(at), gib(*bytes as f64))).collect();
                Line { name: row.policy.to_owned(), points }
            });
            Plot {
                title: format!("Memory in use, {} GiB for each node", gib(pool as f64)),
                x: "hours".into(),
                y: "GiB in the cluster".into(),
                lines: lines.collect(),
            }
        }));
        plot::page(title, &about, &plots, &self.table())
    }

    /// Each policy once, in order.
    fn policies(&self) -> impl Iterator<Item = &'static str> {
        let mut seen: Vec<&str> = Vec::new();
        let all = self.rows.iter().map(|row| row.policy);
        all.filter(move |policy| {
            !seen.contains(policy) && {
                seen.push(policy);
                true
            }
        })
    }
}

impl Row {
    pub(super) fn new((kind, node_bytes): (PolicyKind, u64), outcome: &Outcome, took: Duration) -> Self {
        let mut waits = outcome.waits.clone();
        waits.sort_unstable_by(f32::total_cmp);
        let mut slowdowns = outcome.slowdowns.clone();
        slowdowns.sort_unstable_by(f32::total_cmp);
        let ms = |share| quantile(&waits, share) * 1e3;
        let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        Self {
            policy: kind.word(),
            node_bytes,
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
            memory_bytes: outcome.bytes.iter().copied().step_by(SERIES_MINUTES).collect(),
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
