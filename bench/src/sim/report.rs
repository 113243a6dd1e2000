//! What the policies came to, side by side.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_controller::policy::PolicyKind;
use medes_load::trace::Trace;
use serde::Serialize;

use super::outcome::Outcome;
use crate::{
    model::{Machine, Model},
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
    /// Where the times and sizes were measured that are played back.
    model: Machine,
    pub(super) rows: Vec<Row>,
}

/// One policy.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    policy: &'static str,
    nodes: u32,
    /// Memory of each node.
    node_bytes: u64,
    cold: u64,
    cloned: u64,
    restored: u64,
    unparked: u64,
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
    parks: u64,
    restores: u64,
    unparks: u64,
    bases: u64,
    inits: u64,
    copies: u64,
    purges: u64,
    node_failures: u64,
    lost_messages: u64,
    events: u64,
    /// Of the one thread that simulates, on a processor.
    cpu_seconds: f64,
}

impl Report {
    pub(super) fn new(trace: &Trace, model: &Model) -> Self {
        Self {
            record: Record::here("sim"),
            functions: trace.functions.len(),
            minutes: trace.minutes(),
            requests: trace.requests(),
            model: model.machine.clone(),
            rows: Vec::new(),
        }
    }

    pub(super) fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header([
            "NODES",
            "POLICY",
            "COLD",
            "CLONED",
            "RESTORED",
            "UNPARKED",
            "REFUSED",
            "WAIT MEAN",
            "P99",
            "P99.9",
            "MEMORY MEAN",
            "MAX",
            "DEDUPS",
            "CPU",
            "EVENTS/S",
        ]);
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.rows {
            let cells = [
                format!("{} of {}", row.nodes, show::mib(row.node_bytes as f64)),
                row.policy.to_owned(),
                format!("{} ({})", row.cold, show::percent(row.cold_fraction)),
                row.cloned.to_string(),
                row.restored.to_string(),
                row.unparked.to_string(),
                row.refused.to_string(),
                show::ms(row.wait_ms_mean),
                show::ms(row.wait_ms_p99),
                show::ms(row.wait_ms_p999),
                show::mib(row.memory_bytes_mean),
                show::mib(row.memory_bytes_max as f64),
                row.dedups.to_string(),
                format!("{:.0} s", row.cpu_seconds),
                format!("{:.0}", row.events as f64 / row.cpu_seconds),
            ];
            table.add_row(cells);
        }
        table.to_string()
    }

    /// The same for a browser, with plots.
    pub(super) fn page(&self) -> String {
        let title = "Policies compared in a simulated cluster";
        let about = format!(
            "{} functions, {} requests in {} minutes. The controller's own driver and policies in virtual time; what \
             starts, dedups and images take was measured on real sandboxes ({}, commit {}). {}",
            self.functions,
            self.requests,
            self.minutes,
            self.model.cpu,
            self.model.commit,
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
    pub(super) fn new(
        (kind, nodes, node_bytes): (PolicyKind, u32, u64),
        outcome: &Outcome,
        took: Duration,
    ) -> Self {
        let waits = outcome.waits.percentiles();
        let mut slowdowns = outcome.slowdowns.clone();
        slowdowns.sort_unstable();
        let p99 = (slowdowns.len() * 99).div_ceil(100).saturating_sub(1);
        let mean = |sum: f64, count: usize| if count == 0 { 0.0 } else { sum / count as f64 };
        let memory: f64 = outcome.bytes.iter().map(|bytes| *bytes as f64).sum();
        Self {
            policy: kind.word(),
            nodes,
            node_bytes,
            cold: outcome.cold,
            cloned: outcome.cloned,
            restored: outcome.restored,
            unparked: outcome.unparked,
            warm: outcome.warm,
            refused: outcome.refused,
            cold_fraction: mean(outcome.cold as f64, outcome.requests() as usize),
            wait_ms_mean: waits.mean_ms,
            wait_ms_p50: waits.p50_ms,
            wait_ms_p99: waits.p99_ms,
            wait_ms_p999: waits.p999_ms,
            slowdown_p99: slowdowns.get(p99).map_or(0.0, |thousandths| f64::from(*thousandths) / 1e3),
            memory_bytes_mean: mean(memory, outcome.bytes.len()),
            memory_bytes_max: outcome.bytes.iter().copied().max().unwrap_or(0),
            memory_bytes: outcome.bytes.iter().copied().step_by(SERIES_MINUTES).collect(),
            over_bytes_max: outcome.over_bytes_max,
            sandboxes_max: outcome.sandboxes_max,
            dedups: outcome.dedups,
            parks: outcome.parks,
            restores: outcome.restores,
            unparks: outcome.unparks,
            bases: outcome.bases,
            inits: outcome.inits,
            copies: outcome.copies,
            purges: outcome.purges,
            node_failures: outcome.failures,
            lost_messages: outcome.lost,
            events: outcome.events,
            cpu_seconds: took.as_secs_f64(),
        }
    }
}
