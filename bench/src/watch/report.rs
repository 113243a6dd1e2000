//! What `bench watch` leaves: watch.json for programs, tables for people, and what the design asks for.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_agent::watch::Cost;
use serde::Serialize;

use crate::{
    experiment,
    record::{Record, Target},
    show::ms,
    stats::Spread,
};

/// How a sandbox is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all.
    Off,
    /// By the kernel programs.
    Ebpf,
    /// Its writes are tracked, armed once before each burst.
    Writes,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Off, Self::Ebpf, Self::Writes];
}

/// Requests one after the other.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) seconds: f64,
    pub(super) request_ms: Vec<f64>,
}

/// One kernel program while one burst ran.
#[derive(Debug, Serialize)]
pub(super) struct EventCost {
    program: String,
    events: u64,
    ns_per_event: f64,
}

impl From<Cost> for EventCost {
    fn from(cost: Cost) -> Self {
        let ns_per_event = cost.time.as_nanos() as f64 / cost.runs.max(1) as f64;
        Self { program: cost.program, events: cost.runs, ns_per_event }
    }
}

/// One way, over all bursts.
#[derive(Debug, Default, Serialize)]
struct Measured {
    #[serde(skip)]
    bursts: Vec<f64>,
    #[serde(skip)]
    request_ms: Vec<f64>,
    requests: usize,
    /// Of the bursts.
    requests_per_second: Option<Spread>,
    p50_ms: f64,
    p99_ms: f64,
}

impl Measured {
    fn add(&mut self, burst: Burst) {
        self.bursts.push(burst.request_ms.len() as f64 / burst.seconds);
        self.request_ms.extend(burst.request_ms);
    }

    fn judge(&mut self) {
        self.requests = self.request_ms.len();
        self.requests_per_second = Some(Spread::of(self.bursts.iter().copied()));
        self.request_ms.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            let place = (self.requests * percent).div_ceil(100).saturating_sub(1);
            self.request_ms.get(place).copied().unwrap_or(f64::NAN)
        };
        (self.p50_ms, self.p99_ms) = (at(50), at(99));
    }
}

/// One function. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    function: String,
    off: Measured,
    ebpf: Measured,
    writes: Measured,
    /// Median over pairs of neighbouring bursts: how many percent of throughput the kernel programs cost.
    ebpf_throughput_percent: f64,
    /// Of the medians of all requests: how many percent longer a request takes while writes are tracked.
    writes_p50_percent: f64,
    begin: Option<Spread>,
    stopped: Option<Spread>,
    first_take: Option<Spread>,
    take: Option<Spread>,
    private_pages_of_sandbox: Option<Spread>,
    written_pages_per_burst: Option<Spread>,
    pub(super) events: Vec<EventCost>,
    #[serde(skip)]
    pub(super) begin_ms: Vec<f64>,
    #[serde(skip)]
    pub(super) stopped_ms: Vec<f64>,
    #[serde(skip)]
    pub(super) first_take_ms: Vec<f64>,
    #[serde(skip)]
    pub(super) take_ms: Vec<f64>,
    #[serde(skip)]
    pub(super) private_pages: Vec<f64>,
    #[serde(skip)]
    pub(super) written_pages: Vec<f64>,
}

impl Row {
    pub(super) fn new(function: String) -> Self {
        Self {
            function,
            off: Measured::default(),
            ebpf: Measured::default(),
            writes: Measured::default(),
            ebpf_throughput_percent: f64::NAN,
            writes_p50_percent: f64::NAN,
            begin: None,
            stopped: None,
            first_take: None,
            take: None,
            private_pages_of_sandbox: None,
            written_pages_per_burst: None,
            events: Vec::new(),
            begin_ms: Vec::new(),
            stopped_ms: Vec::new(),
            first_take_ms: Vec::new(),
            take_ms: Vec::new(),
            private_pages: Vec::new(),
            written_pages: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, way: Way, burst: Burst) {
        match way {
            Way::Off => self.off.add(burst),
            Way::Ebpf => self.ebpf.add(burst),
            Way::Writes => self.writes.add(burst),
        }
    }

    /// How far it has come.
    pub(super) fn line(&self) -> String {
        format!("{} requests in each of three ways", self.off.request_ms.len())
    }

    fn judge(&mut self) {
        for way in [&mut self.off, &mut self.ebpf, &mut self.writes] {
            way.judge();
        }
        let pairs = self.off.bursts.iter().zip(&self.ebpf.bursts);
        self.ebpf_throughput_percent = Spread::of(pairs.map(|(off, ebpf)| (1.0 - ebpf / off) * 100.0)).p50;
        self.writes_p50_percent = (self.writes.p50_ms / self.off.p50_ms - 1.0) * 100.0;
        let spread = |values: &Vec<f64>| Some(Spread::of(values.iter().copied()));
        self.begin = spread(&self.begin_ms);
        self.stopped = spread(&self.stopped_ms);
        self.first_take = spread(&self.first_take_ms);
        self.take = spread(&self.take_ms);
        self.private_pages_of_sandbox = spread(&self.private_pages);
        self.written_pages_per_burst = spread(&self.written_pages);
    }
}

/// Everything that was found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    pub(super) rows: Vec<Row>,
    targets: Vec<Target>,
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            record: Record::here(<Self as experiment::Report>::NAME),
            rows: Vec::new(),
            targets: Vec::new(),
        }
    }
}

impl experiment::Report for Report {
    const NAME: &str = "watch";

    /// Holds what was measured against what the design asks for: the worst function counts.
    fn judge(&mut self) {
        self.rows.iter_mut().for_each(Row::judge);
        let worst = |value: fn(&Row) -> f64| {
            let values = self.rows.iter().map(value);
            values
                .reduce(|a, b| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) })
                .unwrap_or(f64::NAN)
        };
        self.targets = vec![
            Target::at_most(
                "throughput lost to the kernel programs",
                1.0,
                worst(|row| row.ebpf_throughput_percent),
                "%",
            ),
            Target::at_most("p50 with writes tracked", 5.0, worst(|row| row.writes_p50_percent), "% more"),
        ];
    }

    /// For people.
    fn tables(&self) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_header(["FUNCTION", "WAY", "REQUESTS/S", "P50", "P99"]);
        for row in &self.rows {
            for (way, it) in [("off", &row.off), ("ebpf", &row.ebpf), ("writes", &row.writes)] {
                let rate = it.requests_per_second.map_or(f64::NAN, |spread| spread.p50);
                let name = row.function.clone();
                table.add_row([name, way.to_owned(), format!("{rate:.1}"), ms(it.p50_ms), ms(it.p99_ms)]);
            }
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = format!("{table}\n");
        for row in &self.rows {
            let p50 = |spread: Option<Spread>| spread.map_or(f64::NAN, |spread| spread.p50);
            text += &format!(
                "\n{}: begin {:.2} ms (stood still {:.2} ms), first take {:.2} ms, take {:.2} ms; {:.0} pages, {:.0} written per burst",
                row.function,
                p50(row.begin),
                p50(row.stopped),
                p50(row.first_take),
                p50(row.take),
                p50(row.private_pages_of_sandbox),
                p50(row.written_pages_per_burst),
            );
            for event in &row.events {
                text += &format!(
                    "\n    {:<22} {:>8} events, {:>5.0} ns each",
                    event.program, event.events, event.ns_per_event
                );
            }
        }
        for target in &self.targets {
            text += &format!("\n{}", target.line());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::Report as _;

    fn burst(ms: f64) -> Burst {
        Burst { seconds: ms * 10.0 / 1e3, request_ms: vec![ms; 10] }
    }

    #[test]
    fn ways_are_compared_burst_by_burst() {
        let mut row = Row::new("f".into());
        for ms in [1.0, 2.0, 4.0] {
            row.add(Way::Off, burst(ms));
            row.add(Way::Ebpf, burst(ms * 1.25));
            row.add(Way::Writes, burst(ms * 1.04));
        }
        let mut report = Report::new();
        report.rows.push(row);
        report.judge();
        let row = &report.rows[0];
        assert!((row.ebpf_throughput_percent - 20.0).abs() < 1e-9, "{row:?}");
        assert!((row.writes_p50_percent - 4.0).abs() < 1e-9, "{row:?}");
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!((&value["targets"][0]["met"], &value["targets"][1]["met"]), (&false.into(), &true.into()));
        assert!(report.tables().contains("MISSED throughput"));
    }
}
