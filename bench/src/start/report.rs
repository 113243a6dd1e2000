//! What `bench start` leaves: start.json for programs, tables for people, and what the design asks for.

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_agent::sandbox::Usage;
use medes_proto::sandbox::Phase;
use serde::Serialize;

use super::{Measured, at_once};
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
struct Way {
    count: usize,
    p50: f64,
    p95: f64,
    p99: f64,
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
struct Memory {
    anonymous: u64,
    kernel: u64,
    shared: u64,
}

impl From<Usage> for Memory {
    fn from(usage: Usage) -> Self {
        Self { anonymous: usage.anon_bytes, kernel: usage.kernel_bytes, shared: usage.shmem_bytes }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    cold: Way,
    /// A clone of the init snapshot, with all its memory before it runs.
    clone: Way,
    /// The same, with its memory as it is touched.
    clone_late: Way,
    restore: Way,
    restore_late: Way,
    unpark: Way,
    /// With a tenth of its pages resident while it is parked.
    unpark_resident: Way,
    /// Warm, without what it does not touch.
    trimmed: Way,
    /// The request after each step of taking that.
    after_trim_step: Way,
    trimmed_memory: Memory,
    trimmed_stored_bytes: u64,
    /// Many in the same moment; none where memory has no room for two.
    unpark_at_once: Way,
    warm_at_once: Way,
    /// So many.
    at_once: usize,
    warm: Way,
    first_park: Way,
    park_again: Way,
    /// Steps of the last park.
    park_phases_ms: Vec<(String, f64)>,
    /// Steps of the last clone.
    clone_phases_ms: Vec<(String, f64)>,
    clone_late_phases_ms: Vec<(String, f64)>,
    /// After the first answer.
    clone_memory: Memory,
    clone_late_memory: Memory,
    warm_memory: Memory,
    parked_memory: Memory,
    parked_resident_memory: Memory,
    /// Milliseconds that the median answer comes sooner, for each MiB that stays.
    resident_ms_per_mib: f64,
    /// What is kept for it while it is parked, and as an image.
    parked_stored_bytes: u64,
    dedup_stored_bytes: u64,
    /// Parks and unparks, each followed by the right answer.
    cycles: u32,
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
            unpark_resident,
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
            clone_phases_ms: last_steps(&measured.clone_phases),
            clone_late_phases_ms: last_steps(&measured.clone_late_phases),
            clone_memory: measured.clone_memory.into(),
            clone_late_memory: measured.clone_late_memory.into(),
            warm_memory: warm.into(),
            parked_memory: parked.into(),
            parked_resident_memory: resident.into(),
            resident_ms_per_mib: (unpark.p50 - unpark_resident.p50) / stays_mib,
            parked_stored_bytes: measured.parked_bytes,
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
        let worst = |value: &dyn Fn(&Figures) -> f64| {
            self.figures().map(|(_, figures)| value(figures)).fold(f64::NAN, f64::max)
        };
        let unpark = worst(&|figures| figures.unpark.p99 - figures.warm.p50);
        let parked = worst(&|figures| {
            let Memory { anonymous, kernel, shared } = figures.parked_memory;
            (anonymous + kernel + shared) as f64 / f64::from(1 << 20)
        });
        let clone = |figures: &Figures| figures.clone_late.p50.min(figures.clone.p50) / figures.cold.p50;
        self.targets = vec![
            Target::at_most(
                "clone to first answer, of a cold start, p50 of the better way, worst function",
                0.15,
                worst(&clone),
                "x",
            ),
            Target::at_most(
                "unpark to first answer beyond the warm request, p99, worst function",
                40.0,
                unpark,
                "ms",
            ),
            Target::at_most(
                "unpark beyond the warm request with a tenth resident, p50, worst function",
                3.0,
                worst(&|figures| figures.unpark_resident.p50 - figures.warm.p50),
                "ms",
            ),
            Target::at_most(
                "unparks of many in one moment, p99 of the p99 of one alone, worst function",
                10.0,
                worst(&|figures| figures.unpark_at_once.p99 / figures.unpark.p99),
                "x",
            ),
            Target::at_most(
                "memory of a parked sandbox besides what is stored, worst function",
                1.0,
                parked,
                "MiB",
            ),
        ];
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
        ]);
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
            "as an image",
            "cycles",
        ]);
        for (function, figures) in self.figures() {
            let Figures { cold, clone, restore, unpark, warm, first_park, park_again, .. } = figures;
            times.add_row([
                function.to_owned(),
                ms(cold.p50),
                ms(clone.p50),
                ms(figures.clone_late.p50),
                ms(restore.p50),
                ms(figures.restore_late.p50),
                ms(unpark.p50),
                ms(unpark.p95),
                ms(unpark.p99),
                ms(figures.unpark_resident.p50),
                ms(warm.p50),
                ms(figures.trimmed.p50),
                ms(first_park.p50),
                ms(park_again.p50),
            ]);
            let held = |memory: Memory| mib((memory.anonymous + memory.kernel + memory.shared) as f64);
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
                mib(figures.dedup_stored_bytes as f64),
                figures.cycles.to_string(),
            ]);
        }
        format!(
            "Time to the first answer, median of {} (a way that is gone once: that one)\n{times}\n\nMemory\n{sizes}\n\nMany in one moment, until the answer of each\n{many}\n\n{}",
            self.rounds,
            self.judged(),
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
