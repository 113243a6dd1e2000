//! Both runs side by side, and by how much they differ.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_load::{tally::Percentiles, trace::Trace};
use serde::Serialize;

use crate::{
    model::{Machine, Model},
    plot::{self, Line, Plot},
    record::{Record, Target},
    replay::{Parts, Real},
    show,
    sim::outcome::Outcome,
};

/// By which they may differ.
const PERCENT_MAX: f64 = 10.0;

/// Everything that was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    /// Where the times and sizes were measured that the simulation plays back.
    model: Machine,
    functions: usize,
    requests: u64,
    minutes: usize,
    speedup: f64,
    real: Run,
    /// What the real memory was, mean: agents with all that is in their memory, and of that bases and images.
    real_agent_bytes_mean: f64,
    real_base_bytes_mean: f64,
    real_image_bytes_mean: f64,
    simulated: Run,
    failures: BTreeMap<String, u64>,
    targets: Vec<Target>,
}

/// One of the two.
#[derive(Debug, Default, Serialize)]
struct Run {
    answered: u64,
    failed: u64,
    /// Answers by how their sandbox came to be ready.
    starts: BTreeMap<&'static str, u64>,
    /// From when a request was due until its answer was there.
    answers: Percentiles,
    by_start: BTreeMap<&'static str, Percentiles>,
    memory_bytes_mean: f64,
    /// At the end of each minute of the trace.
    memory_bytes: Vec<u64>,
    /// Of sandboxes alone: without what nodes hold before anything is started.
    sandbox_bytes_mean: f64,
}

fn mean(bytes: &[u64]) -> f64 {
    bytes.iter().map(|bytes| *bytes as f64).sum::<f64>() / bytes.len().max(1) as f64
}

/// How far the simulation is off, in percent of what was real; below zero: it has less.
fn off(real: f64, simulated: f64) -> f64 {
    if real == simulated { 0.0 } else { (simulated - real) / real * 100.0 }
}

impl Run {
    fn new(answers: Percentiles, failed: u64, bytes: &[u64], empty_bytes: u64) -> Self {
        let memory_bytes_mean = mean(bytes);
        Self {
            answered: answers.count,
            failed,
            answers,
            memory_bytes_mean,
            memory_bytes: bytes.to_vec(),
            sandbox_bytes_mean: memory_bytes_mean - empty_bytes as f64,
            ..Self::default()
        }
    }

    fn starts(self, by_start: BTreeMap<&'static str, Percentiles>) -> Self {
        let starts = by_start.iter().map(|(start, times)| (*start, times.count)).collect();
        Self { starts, by_start, ..self }
    }

    fn start(&self, kind: &str) -> f64 {
        self.starts.get(kind).map_or(0.0, |count| *count as f64)
    }
}

impl Report {
    pub(super) fn new(trace: &Trace, model: &Model, speedup: f64, real: &Real, simulated: &Outcome) -> Self {
        let empty_bytes = real.empty_bytes * u64::from(real.nodes);
        let failed = real.tally.failure_count();
        let of_real = Run::new(real.tally.all(), failed, &real.bytes, empty_bytes);
        let of_real = of_real.starts(real.tally.by_start().collect());
        let answers = simulated.answers.percentiles();
        let of_sim = Run::new(answers, simulated.refused, &simulated.bytes, empty_bytes);
        let of_sim = of_sim.starts(simulated.by_start());
        let fresh = |run: &Run| run.start("cold") + run.start("clone");
        let differs = |name, real: f64, simulated: f64| {
            Target::at_most(name, PERCENT_MAX, off(real, simulated).abs(), "%")
        };
        let targets = vec![
            differs("new sandboxes (cold and clones) off by", fresh(&of_real), fresh(&of_sim)),
            differs("cold starts off by", of_real.start("cold"), of_sim.start("cold")),
            differs("memory off by, mean", of_real.memory_bytes_mean, of_sim.memory_bytes_mean),
            differs(
                "memory of sandboxes, images and bases alone off by, mean",
                of_real.sandbox_bytes_mean,
                of_sim.sandbox_bytes_mean,
            ),
        ];
        let part = |of: fn(&Parts) -> u64| mean(&real.parts.iter().map(of).collect::<Vec<_>>());
        let failures = real.tally.failures.iter().map(|(kind, all)| (kind.clone(), all.count)).collect();
        Self {
            record: Record::here("validate"),
            model: model.machine.clone(),
            functions: trace.functions.len(),
            requests: trace.requests(),
            minutes: trace.minutes(),
            speedup,
            real: of_real,
            real_agent_bytes_mean: part(|parts| parts.agents),
            real_base_bytes_mean: part(|parts| parts.bases),
            real_image_bytes_mean: part(|parts| parts.images),
            simulated: of_sim,
            failures,
            targets,
        }
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["", "REAL", "SIMULATED", "OFF BY"]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let Self { real, simulated, .. } = self;
        let mut row = |name: &str, real: f64, simulated: f64, show: &dyn Fn(f64) -> String| {
            let off = format!("{:+.1} %", off(real, simulated));
            table.add_row([name.to_owned(), show(real), show(simulated), off]);
        };
        let count = |count: f64| format!("{count:.0}");
        row("answered", real.answered as f64, simulated.answered as f64, &count);
        for kind in ["cold", "clone", "restore", "unpark", "warm"] {
            row(kind, real.start(kind), simulated.start(kind), &count);
        }
        row("failed", real.failed as f64, simulated.failed as f64, &count);
        for (name, of) in PERCENTILES {
            row(name, of(&real.answers), of(&simulated.answers), &show::ms);
        }
        for kind in real.by_start.keys() {
            let of = |run: &Run| run.by_start.get(kind).map_or(0.0, |times| times.p50_ms);
            row(&format!("answer p50, {kind}"), of(real), of(simulated), &show::ms);
        }
        row("memory, mean", real.memory_bytes_mean, simulated.memory_bytes_mean, &show::mib);
        row("of sandboxes, mean", real.sandbox_bytes_mean, simulated.sandbox_bytes_mean, &show::mib);
        table
    }

    pub(super) fn text(&self) -> String {
        let targets: Vec<String> = self.targets.iter().map(Target::line).collect();
        let parts = format!(
            "The real memory, mean: agents {}, of that bases {} and images {}",
            show::mib(self.real_agent_bytes_mean),
            show::mib(self.real_base_bytes_mean),
            show::mib(self.real_image_bytes_mean)
        );
        format!("{}\n\n{parts}\n\n{}", self.table(), targets.join("\n"))
    }

    /// For a browser, with memory over time.
    pub(super) fn page(&self) -> String {
        let about = format!(
            "{} requests of {} functions, {} minutes of a trace played {} times as fast, on a real cluster and in virtual time \
             (model measured on {}, commit {}). {}",
            self.requests,
            self.functions,
            self.minutes,
            self.speedup,
            self.model.cpu,
            self.model.commit,
            self.record.line()
        );
        let line = |name: &str, run: &Run| {
            let points = run.memory_bytes.iter().enumerate();
            let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
            let points = points.map(|(at, bytes)| ((at + 1) as f64, mib(*bytes))).collect();
            Line { name: name.into(), points }
        };
        let plot = Plot {
            title: "Memory of all nodes".into(),
            x: "minutes of the trace".into(),
            y: "MiB".into(),
            lines: vec![line("real", &self.real), line("simulated", &self.simulated)],
        };
        plot::page("A simulation held against a real run", &about, &[plot], &self.text())
    }
}

type Percentile = (&'static str, fn(&Percentiles) -> f64);

const PERCENTILES: [Percentile; 4] = [
    ("answer, mean", |times| times.mean_ms),
    ("answer, p50", |times| times.p50_ms),
    ("answer, p99", |times| times.p99_ms),
    ("answer, max", |times| times.max_ms),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_off_from_what_was_real() {
        assert_eq!((off(100.0, 90.0), off(100.0, 110.0), off(0.0, 0.0)), (-10.0, 10.0, 0.0));
        assert!(off(0.0, 1.0).is_infinite());
        let target = Target::at_most("x", PERCENT_MAX, off(0.0, 1.0).abs(), "%");
        assert!(target.line().contains("MISSED"), "{}", target.line());
    }
}
