//! What `bench watch` leaves: watch.json for programs, tables for people, and what the design asks for.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_agent::watch;
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
    /// By the kernel programs, as an agent does it: with the faults of the first request of each burst.
    Ebpf,
    /// The same with the faults of all requests, and the heat of each page.
    Faults,
    /// Its writes are tracked, armed once before each burst.
    Writes,
}

impl Way {
    pub(super) const ALL: [Self; 4] = [Self::Off, Self::Ebpf, Self::Faults, Self::Writes];
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

impl From<watch::Cost> for EventCost {
    fn from(cost: watch::Cost) -> Self {
        let ns_per_event = cost.time.as_nanos() as f64 / cost.runs.max(1) as f64;
        Self { program: cost.program, events: cost.runs, ns_per_event }
    }
}

/// What kernel programs cost.
#[derive(Debug, Default, Serialize)]
pub(super) struct Cost {
    /// Median over pairs of neighbouring bursts: how many percent of throughput.
    throughput_percent: f64,
    /// Between these two it is in 19 of 20 cases.
    throughput_percent_between: [f64; 2],
    /// By the kernel's own account: time in the programs for the time of requests, on one CPU.
    pub(super) cpu_percent: f64,
    pub(super) events: Vec<EventCost>,
}

/// One way, over all bursts.
#[derive(Debug, Default, Serialize)]
struct Measured {
    #[serde(skip)]
    bursts: Vec<f64>,
    /// The median request of each burst.
    #[serde(skip)]
    burst_p50_ms: Vec<f64>,
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
        self.burst_p50_ms.push(Spread::of(burst.request_ms.iter().copied()).p50);
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
    faults: Measured,
    writes: Measured,
    /// What the kernel programs cost as an agent has them.
    pub(super) ebpf_cost: Cost,
    /// The same with all faults followed.
    pub(super) faults_cost: Cost,
    /// Of the medians of all requests: how many percent longer a request takes while writes are tracked.
    writes_p50_percent: f64,
    /// The same burst by burst, between these two in 19 of 20 cases: what the machine does for minutes is not in it.
    writes_p50_percent_between: [f64; 2],
    /// To attach the programs for faults, or to take them off.
    switched: Option<Spread>,
    begin: Option<Spread>,
    stopped: Option<Spread>,
    first_take: Option<Spread>,
    take: Option<Spread>,
    private_pages_of_sandbox: Option<Spread>,
    written_pages_per_burst: Option<Spread>,
    #[serde(skip)]
    pub(super) switched_ms: Vec<f64>,
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
            faults: Measured::default(),
            writes: Measured::default(),
            ebpf_cost: Cost::default(),
            faults_cost: Cost::default(),
            writes_p50_percent: f64::NAN,
            writes_p50_percent_between: [f64::NAN; 2],
            switched: None,
            begin: None,
            stopped: None,
            first_take: None,
            take: None,
            private_pages_of_sandbox: None,
            written_pages_per_burst: None,
            switched_ms: Vec::new(),
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
            Way::Faults => self.faults.add(burst),
            Way::Writes => self.writes.add(burst),
        }
    }

    /// How far it has come.
    pub(super) fn line(&self) -> String {
        format!("{} requests in each way", self.off.request_ms.len())
    }

    fn judge(&mut self) {
        for way in [&mut self.off, &mut self.ebpf, &mut self.faults, &mut self.writes] {
            way.judge();
        }
        for (cost, way) in [(&mut self.ebpf_cost, &self.ebpf), (&mut self.faults_cost, &self.faults)] {
            let pairs = self.off.bursts.iter().zip(&way.bursts);
            let percent: Vec<f64> = pairs.map(|(off, way)| (1.0 - way / off) * 100.0).collect();
            cost.throughput_percent = Spread::of(percent.iter().copied()).p50;
            cost.throughput_percent_between = between(percent);
        }
        self.writes_p50_percent = (self.writes.p50_ms / self.off.p50_ms - 1.0) * 100.0;
        let pairs = self.off.burst_p50_ms.iter().zip(&self.writes.burst_p50_ms);
        self.writes_p50_percent_between =
            between(pairs.map(|(off, way)| (way / off - 1.0) * 100.0).collect());
        let spread = |values: &Vec<f64>| Some(Spread::of(values.iter().copied()));
        self.switched = spread(&self.switched_ms);
        self.begin = spread(&self.begin_ms);
        self.stopped = spread(&self.stopped_ms);
        self.first_take = spread(&self.first_take_ms);
        self.take = spread(&self.take_ms);
        self.private_pages_of_sandbox = spread(&self.private_pages);
        self.written_pages_per_burst = spread(&self.written_pages);
    }
}

/// Where the median of what these are a sample of is, in 19 of 20 cases: by order alone, whatever their distribution.
fn between(mut values: Vec<f64>) -> [f64; 2] {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    // Half the values, less 1.96 standard deviations of a binomial count.
    let below = (count / 2.0 - 0.98 * count.sqrt()).floor().max(0.0) as usize;
    let above = values.len().saturating_sub(below + 1);
    [below, above].map(|at| values.get(at).copied().unwrap_or(f64::NAN))
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
                worst(|row| row.ebpf_cost.throughput_percent),
                "%",
            ),
            Target::at_most(
                "time in the kernel programs, of that of requests",
                1.0,
                worst(|row| row.ebpf_cost.cpu_percent),
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
            let ways =
                [("off", &row.off), ("ebpf", &row.ebpf), ("faults", &row.faults), ("writes", &row.writes)];
            for (way, it) in ways {
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
                "\n{}: attach or detach for faults {:.3} ms; writes: begin {:.2} ms (stood still {:.2} ms), first take {:.2} ms, take {:.2} ms; {:.0} pages, {:.0} written per burst",
                row.function,
                p50(row.switched),
                p50(row.begin),
                p50(row.stopped),
                p50(row.first_take),
                p50(row.take),
                p50(row.private_pages_of_sandbox),
                p50(row.written_pages_per_burst),
            );
            let [low, high] = row.writes_p50_percent_between;
            let longer = row.writes_p50_percent;
            text += &format!(
                "\n  writes: p50 {longer:.1} % longer (burst by burst between {low:.1} and {high:.1})"
            );
            for (way, cost) in [("ebpf", &row.ebpf_cost), ("faults", &row.faults_cost)] {
                let [low, high] = cost.throughput_percent_between;
                let (lost, cpu) = (cost.throughput_percent, cost.cpu_percent);
                text += &format!(
                    "\n  {way}: throughput lost {lost:.1} % (between {low:.1} and {high:.1}), {cpu:.2} % of the time in programs"
                );
                for event in &cost.events {
                    text += &format!(
                        "\n    {:<22} {:>8} events, {:>5.0} ns each",
                        event.program, event.events, event.ns_per_event
                    );
                }
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
            row.add(Way::Faults, burst(ms * 2.0));
            row.add(Way::Writes, burst(ms * 1.04));
        }
        row.ebpf_cost.cpu_percent = 0.2;
        let mut report = Report::new();
        report.rows.push(row);
        report.judge();
        let row = &report.rows[0];
        assert!((row.ebpf_cost.throughput_percent - 20.0).abs() < 1e-9, "{row:?}");
        assert!((row.faults_cost.throughput_percent - 50.0).abs() < 1e-9, "{row:?}");
        assert!((row.writes_p50_percent - 4.0).abs() < 1e-9, "{row:?}");
        assert!(row.writes_p50_percent_between.iter().all(|one| (one - 4.0).abs() < 1e-9), "{row:?}");
        let value = serde_json::to_value(&report).unwrap();
        let met: Vec<_> = value["targets"].as_array().unwrap().iter().map(|one| &one["met"]).collect();
        assert_eq!(met, [&serde_json::Value::from(false), &true.into(), &true.into()]);
        assert!(report.tables().contains("MISSED throughput"));
    }

    #[test]
    fn the_median_is_between_values_that_are_close_to_the_middle() {
        let [low, high] = between((0..100).map(f64::from).collect());
        assert_eq!((low, high), (40.0, 59.0));
        assert!(between(Vec::new())[0].is_nan());
        assert_eq!(between(vec![3.0, 1.0]), [1.0, 3.0]);
    }
}
