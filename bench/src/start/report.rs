//! What `bench start` leaves: start.json for programs, tables for people, and what the design asks for.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_agent::{pager::Counts, sandbox::Usage};
use medes_proto::sandbox::Phase;
use serde::Serialize;

use super::{Measured, at_once, targets};
use crate::{
    experiment,
    record::{Record, Target},
    show::{mib, ms},
};

/// Everything that was found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    rounds: u32,
    pub(super) rows: Vec<Row>,
    targets: Vec<Target>,
}

/// One function.
#[derive(Debug, Serialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub(super) enum Row {
    Measured {
        function: String,
        #[serde(flatten)]
        figures: Box<Figures>,
    },
    Skipped {
        function: String,
        reason: String,
    },
    Failed {
        function: String,
        reason: String,
    },
}

/// Times to the first answer, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Way {
    count: usize,
    pub(super) p50: f64,
    p95: f64,
    pub(super) p99: f64,
    max: f64,
}

impl Way {
    fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        // The smallest that so many are not above.
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
        };
        Self { count: sorted.len(), p50: at(50), p95: at(95), p99: at(99), max: at(100) }
    }
}

/// Memory of a sandbox as the kernel counts it, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Memory {
    pub(super) anonymous: u64,
    kernel: u64,
    shared: u64,
}

impl Memory {
    pub(super) const fn bytes(self) -> u64 {
        self.anonymous + self.kernel + self.shared
    }
}

impl From<Usage> for Memory {
    fn from(usage: Usage) -> Self {
        Self { anonymous: usage.anon_bytes, kernel: usage.kernel_bytes, shared: usage.shmem_bytes }
    }
}

/// Pages of an unpark until its answer, medians.
#[derive(Debug, Serialize)]
struct Brought {
    /// Given back before they were missed.
    pushed: f64,
    /// That it had to wait for, and those of them that were not expected.
    missed: f64,
    unforeseen: f64,
    /// New ones of zeros that it had to wait for.
    zeros: f64,
}

impl Brought {
    fn of(all: &[Counts]) -> Self {
        let median = |pages: fn(&Counts) -> u64| {
            Way::of(&all.iter().map(|one| pages(one) as f64).collect::<Vec<_>>()).p50
        };
        Self {
            pushed: median(|one| one.pushed),
            missed: median(|one| one.missed),
            unforeseen: median(|one| one.unforeseen),
            zeros: median(|one| one.zeros),
        }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) cold: Way,
    /// A clone of the init snapshot, with all its memory before it runs.
    pub(super) clone: Way,
    /// The same, with its memory as it is touched.
    pub(super) clone_late: Way,
    restore: Way,
    restore_late: Way,
    pub(super) unpark: Way,
    /// By so much longer than the warm request right after.
    pub(super) unpark_beyond: Way,
    /// The same of one that was not stored small yet.
    unpark_soon: Way,
    unpark_soon_beyond: Way,
    unpark_pages: Brought,
    /// With a tenth of its pages resident while it is parked.
    unpark_resident: Way,
    pub(super) unpark_resident_beyond: Way,
    /// Warm, without what it does not touch.
    trimmed: Way,
    /// The request after each step of taking that.
    after_trim_step: Way,
    trimmed_memory: Memory,
    trimmed_stored_bytes: u64,
    /// Many in the same moment; none where memory has no room for two.
    pub(super) unpark_at_once: Way,
    warm_at_once: Way,
    /// So many.
    at_once: usize,
    warm: Way,
    pub(super) first_park: Way,
    pub(super) park_again: Way,
    /// Steps of the last park.
    park_phases_ms: Vec<(String, f64)>,
    /// Storing it small, once it has waited.
    shrink: Way,
    /// Steps of the last clone.
    clone_phases_ms: Vec<(String, f64)>,
    clone_late_phases_ms: Vec<(String, f64)>,
    /// After the first answer.
    clone_memory: Memory,
    clone_late_memory: Memory,
    pub(super) warm_memory: Memory,
    pub(super) parked_memory: Memory,
    parked_resident_memory: Memory,
    /// Milliseconds that the median answer comes sooner, for each MiB that stays.
    resident_ms_per_mib: f64,
    /// What is kept for it while it is parked, and as an image.
    parked_stored_bytes: u64,
    /// The same before it was stored small.
    parked_soon_stored_bytes: u64,
    dedup_stored_bytes: u64,
    /// Parks and unparks, each followed by the right answer.
    cycles: u32,
}

/// One by one, the time beyond.
fn beyond(times: &[f64], warm: &[f64]) -> Way {
    Way::of(&times.iter().zip(warm).map(|(time, warm)| time - warm).collect::<Vec<_>>())
}

fn steps(phases: &[Phase]) -> Vec<(String, f64)> {
    phases.iter().map(|phase| (phase.name.clone(), phase.took.as_secs_f64() * 1e3)).collect()
}

fn last_steps(all: &[Vec<Phase>]) -> Vec<(String, f64)> {
    all.last().map_or_else(Vec::new, |last| steps(last))
}

impl Row {
    pub(super) fn measured(function: String, measured: &Measured) -> Self {
        let (warm, parked) = measured.memory.unwrap_or_default();
        let last = measured.park_phases.last().cloned().unwrap_or_default();
        let resident = measured.resident_memory;
        let stays_mib =
            resident.anon_bytes.saturating_sub(parked.anon_bytes).max(1) as f64 / f64::from(1 << 20);
        let (unpark, unpark_resident) = (Way::of(&measured.unpark), Way::of(&measured.unpark_resident));
        let figures = Figures {
            cold: Way::of(&measured.cold),
            clone: Way::of(&measured.clone),
            clone_late: Way::of(&measured.clone_late),
            restore: Way::of(&measured.restore),
            restore_late: Way::of(&measured.restore_late),
            unpark,
            unpark_beyond: beyond(&measured.unpark, &measured.unpark_warm),
            unpark_soon: Way::of(&measured.unpark_soon),
            unpark_soon_beyond: beyond(&measured.unpark_soon, &measured.unpark_soon_warm),
            unpark_pages: Brought::of(&measured.unpark_pages),
            unpark_resident,
            unpark_resident_beyond: beyond(&measured.unpark_resident, &measured.unpark_resident_warm),
            trimmed: Way::of(&measured.trimmed),
            after_trim_step: Way::of(&measured.after_step),
            trimmed_memory: measured.trimmed_memory.into(),
            trimmed_stored_bytes: measured.trimmed_bytes,
            unpark_at_once: Way::of(&measured.unpark_at_once),
            warm_at_once: Way::of(&measured.warm_at_once),
            at_once: measured.unpark_at_once.len() / at_once::MEASURED as usize,
            warm: Way::of(&measured.warm),
            first_park: Way::of(&measured.first_park),
            park_again: Way::of(&measured.park),
            park_phases_ms: steps(&last),
            shrink: Way::of(&measured.shrink),
            clone_phases_ms: last_steps(&measured.clone_phases),
            clone_late_phases_ms: last_steps(&measured.clone_late_phases),
            clone_memory: measured.clone_memory.into(),
            clone_late_memory: measured.clone_late_memory.into(),
            warm_memory: warm.into(),
            parked_memory: parked.into(),
            parked_resident_memory: resident.into(),
            resident_ms_per_mib: (unpark.p50 - unpark_resident.p50) / stays_mib,
            parked_stored_bytes: measured.parked_bytes,
            parked_soon_stored_bytes: measured.parked_soon_bytes,
            dedup_stored_bytes: measured.dedup_bytes,
            cycles: measured.cycles,
        };
        Self::Measured { function, figures: Box::new(figures) }
    }
}

impl Report {
    pub(super) fn new(rounds: u32) -> Self {
        Self { record: Record::here("start"), rounds, rows: Vec::new(), targets: Vec::new() }
    }

    fn judged(&self) -> String {
        self.targets.iter().map(Target::line).collect::<Vec<_>>().join("\n")
    }

    /// What it costs to be parked, beside a warm request.
    fn beyond(&self) -> Table {
        let heads = [
            "function",
            "p50",
            "p99",
            "soon, p50",
            "1/10 stays, p50",
            "pages pushed",
            "missed",
            "unforeseen",
            "zeros",
        ];
        let mut beyond = table(&heads);
        for (function, figures) in self.figures() {
            let Figures { unpark_beyond: all, unpark_soon_beyond: soon, .. } = figures;
            let Figures { unpark_resident_beyond: resident, unpark_pages: pages, .. } = figures;
            let mut row = vec![function.to_owned()];
            row.extend([all.p50, all.p99, soon.p50, resident.p50].map(ms));
            row.extend(
                [pages.pushed, pages.missed, pages.unforeseen, pages.zeros]
                    .map(|pages| format!("{pages:.0}")),
            );
            beyond.add_row(row);
        }
        beyond
    }

    /// Many in one moment.
    fn at_once(&self) -> Table {
        let mut many = table(&["function", "at once", "unpark", "p99", "warm", "p99", "unpark of warm, p99"]);
        for (function, figures) in self.figures().filter(|(_, figures)| figures.at_once > 0) {
            let Figures { unpark_at_once: unpark, warm_at_once: warm, at_once, .. } = figures;
            many.add_row([
                function.to_owned(),
                at_once.to_string(),
                ms(unpark.p50),
                ms(unpark.p99),
                ms(warm.p50),
                ms(warm.p99),
                format!("{:.2}", unpark.p99 / warm.p99),
            ]);
        }
        many
    }

    /// What it holds in each state.
    fn sizes(&self) -> Table {
        let mut sizes = table(&[
            "function",
            "warm",
            "trimmed",
            "stored",
            "clone",
            "late",
            "parked",
            "of it kernel",
            "stored",
            "at first",
            "as an image",
            "cycles",
        ]);
        for (function, figures) in self.figures() {
            let held = |memory: Memory| mib(memory.bytes() as f64);
            sizes.add_row([
                function.to_owned(),
                held(figures.warm_memory),
                held(figures.trimmed_memory),
                mib(figures.trimmed_stored_bytes as f64),
                held(figures.clone_memory),
                held(figures.clone_late_memory),
                held(figures.parked_memory),
                mib(figures.parked_memory.kernel as f64),
                mib(figures.parked_stored_bytes as f64),
                mib(figures.parked_soon_stored_bytes as f64),
                mib(figures.dedup_stored_bytes as f64),
                figures.cycles.to_string(),
            ]);
        }
        sizes
    }

    fn figures(&self) -> impl Iterator<Item = (&str, &Figures)> {
        self.rows.iter().filter_map(|row| match row {
            Row::Measured { function, figures } => Some((function.as_str(), &**figures)),
            Row::Skipped { .. } | Row::Failed { .. } => None,
        })
    }
}

impl experiment::Report for Report {
    const NAME: &str = "start";

    fn judge(&mut self) {
        self.targets = targets::of(&self.figures().collect::<Vec<_>>());
    }

    /// Whether everything that could run did.
    fn is_good(&self) -> bool {
        !self.rows.iter().any(|row| matches!(row, Row::Failed { .. }))
    }

    fn tables(&self) -> String {
        let mut times = table(&[
            "function",
            "cold",
            "clone",
            "late",
            "restore",
            "late",
            "unpark",
            "p95",
            "p99",
            "1/10 stays",
            "warm",
            "trimmed",
            "first park",
            "again",
            "then small",
        ]);
        for (function, figures) in self.figures() {
            times.add_row([
                function.to_owned(),
                ms(figures.cold.p50),
                ms(figures.clone.p50),
                ms(figures.clone_late.p50),
                ms(figures.restore.p50),
                ms(figures.restore_late.p50),
                ms(figures.unpark.p50),
                ms(figures.unpark.p95),
                ms(figures.unpark.p99),
                ms(figures.unpark_resident.p50),
                ms(figures.warm.p50),
                ms(figures.trimmed.p50),
                ms(figures.first_park.p50),
                ms(figures.park_again.p50),
                ms(figures.shrink.p50),
            ]);
        }
        format!(
            "Time to the first answer, median of {} (a way that is gone once: that one)\n{times}\n\nUnpark beyond the warm request, and pages until its answer\n{beyond}\n\nMemory\n{sizes}\n\nMany in one moment, until the answer of each\n{many}\n\n{}",
            self.rounds,
            self.judged(),
            sizes = self.sizes(),
            beyond = self.beyond(),
            many = self.at_once(),
        )
    }
}

fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(heads);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let times: Vec<f64> = (1..=30).map(f64::from).collect();
        let way = Way::of(&times);
        assert_eq!((way.count, way.p50, way.p95, way.p99, way.max), (30, 15.0, 29.0, 30.0, 30.0));
        assert!(Way::of(&[]).p50.is_nan());
    }
}
