//! What `bench restore` leaves: restore.json for programs, tables for people, and what the design asks for.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use medes_proto::sandbox::PageClasses;
use serde::Serialize;

use super::round::{Round, Timed};
use crate::{
    experiment,
    record::{Record, Target},
    show::{mib, ms, percent, times},
    station::threads,
    stats::Spread,
};

/// Everything that was found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
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

/// A way to a first answer, over all rounds. Times are in milliseconds.
#[derive(Debug, Serialize)]
pub(super) struct Way {
    #[serde(flatten)]
    total: Spread,
    /// Its steps, by median.
    phases: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: String,
    p50: f64,
}

/// What was measured. Ratios are of medians; page bytes are those CRIU dumped.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    rounds: usize,
    cold: Way,
    criu: Way,
    criu_exec: Way,
    restore: Way,
    warm: Spread,
    restore_to_criu: f64,
    restore_to_criu_exec: f64,
    restore_to_cold: f64,
    dump_to_files: Spread,
    dedup: Way,
    dedup_mb_s: f64,
    page_bytes: Spread,
    stored_bytes: Spread,
    stored_fraction: Spread,
    /// Of the first round; all three of the same pages.
    same_pages: Option<SamePages>,
    /// Of the first round.
    pages: BTreeMap<&'static str, u64>,
    answers_match: bool,
}

/// Fractions of the page bytes.
#[derive(Debug, Clone, Copy, Serialize)]
struct SamePages {
    stored_fraction: f64,
    zstd_fraction: f64,
    paper_fraction: f64,
}

impl Way {
    fn of<'r>(rounds: impl Iterator<Item = &'r Timed>) -> Self {
        let rounds: Vec<&Timed> = rounds.collect();
        // Every round of a way has the same steps in the same order.
        let steps = rounds.first().map_or(0, |first| first.phases.len());
        let step = |at: usize| {
            let each = rounds.iter().filter_map(|timed| timed.phases.get(at));
            let name = each.clone().next().map_or_else(String::new, |phase| phase.name.clone());
            Step { name, p50: Spread::of(each.map(|phase| phase.took.as_secs_f64() * 1e3)).p50 }
        };
        let phases = (0..steps).map(step).collect();
        Self { total: Spread::of(rounds.iter().map(|timed| timed.ms)), phases }
    }

    /// The median of one step; 0 if there is none of this name.
    fn step(&self, name: &str) -> f64 {
        self.phases.iter().find(|step| step.name == name).map_or(0.0, |step| step.p50)
    }
}

impl Figures {
    fn of(rounds: &[Round]) -> Self {
        let spread = |figure: fn(&Round) -> f64| Spread::of(rounds.iter().map(figure));
        let way = |way: fn(&Round) -> &Timed| Way::of(rounds.iter().map(way));
        let cold = way(|round| &round.cold);
        let criu = way(|round| &round.criu);
        let criu_exec = way(|round| &round.criu_exec);
        let restore = way(|round| &round.restore);
        let same_pages = rounds.iter().find_map(|round| {
            let of_pages = |bytes: u64| bytes as f64 / round.page_bytes().max(1) as f64;
            let compared = round.compared?;
            Some(SamePages {
                stored_fraction: round.stored_fraction(),
                zstd_fraction: of_pages(compared.zstd_bytes),
                paper_fraction: of_pages(compared.paper_bytes),
            })
        });
        let to = |other: &Way| restore.total.p50 / other.total.p50;
        Self {
            rounds: rounds.len(),
            restore_to_criu: to(&criu),
            restore_to_criu_exec: to(&criu_exec),
            restore_to_cold: to(&cold),
            cold,
            criu,
            criu_exec,
            restore,
            warm: spread(|round| round.warm_ms),
            dump_to_files: spread(|round| round.dump_to_files_ms),
            dedup: way(|round| &round.dedup),
            dedup_mb_s: spread(|round| round.page_bytes() as f64 / 1e3 / round.dedup.ms).p50,
            page_bytes: spread(|round| round.page_bytes() as f64),
            stored_bytes: spread(|round| round.stored_bytes as f64),
            stored_fraction: spread(Round::stored_fraction),
            same_pages,
            pages: rounds.first().map(|round| by_kind(round.pages)).unwrap_or_default(),
            answers_match: rounds.iter().all(|round| round.answers_match),
        }
    }
}

fn by_kind(pages: PageClasses) -> BTreeMap<&'static str, u64> {
    BTreeMap::from(pages.by_class())
}

impl Row {
    pub(super) fn measured(function: String, rounds: &[Round]) -> Self {
        Self::Measured { function, figures: Box::new(Figures::of(rounds)) }
    }

    pub(super) const fn outcome(&self) -> &'static str {
        match self {
            Self::Measured { .. } => "measured",
            Self::Skipped { .. } => "skipped",
            Self::Failed { .. } => "FAILED",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Measured { function, .. }
            | Self::Skipped { function, .. }
            | Self::Failed { function, .. } => function,
        }
    }
}

impl Report {
    /// An empty report about this machine.
    pub(super) fn new() -> Self {
        Self {
            record: Record::here(<Self as experiment::Report>::NAME),
            rows: Vec::new(),
            targets: Vec::new(),
        }
    }

    fn figures(&self) -> impl Iterator<Item = &Figures> {
        self.rows.iter().filter_map(|row| match row {
            Row::Measured { figures, .. } => Some(&**figures),
            Row::Skipped { .. } | Row::Failed { .. } => None,
        })
    }

    fn step_names(&self) -> Vec<&str> {
        let steps = self.figures().next().map_or(&[][..], |figures| &figures.restore.phases);
        steps.iter().map(|step| step.name.as_str()).collect()
    }

    /// A line for each function: its cells, or why there are none.
    fn table(&self, header: &[&str], cells: impl Fn(&Figures) -> Vec<String>) -> Table {
        let mut table = Table::new();
        let header = header.iter().map(|name| name.to_uppercase());
        table.load_style(NOTHING).set_header([String::from("FUNCTION")].into_iter().chain(header));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for row in &self.rows {
            let cells = match row {
                Row::Measured { figures, .. } => cells(figures),
                Row::Skipped { .. } | Row::Failed { .. } => vec![row.outcome().to_owned()],
            };
            table.add_row([row.name().to_owned()].into_iter().chain(cells));
        }
        table
    }
}

impl experiment::Report for Report {
    const NAME: &str = "restore";

    /// Holds the figures against what the design asks for.
    fn judge(&mut self) {
        if self.figures().next().is_none() {
            return;
        }
        let sum = |figure: fn(&Figures) -> f64| self.figures().map(figure).sum::<f64>();
        let pages = sum(|figures| figures.page_bytes.p50);
        let stored = sum(|figures| figures.stored_bytes.p50) / pages * 100.0;
        // Wall time of all threads: more than the processor time that was used, so the value is not flattered.
        let core_ms = sum(|figures| figures.dedup.total.p50) * threads().get() as f64;
        let first_dedup = pages / 1e3 / core_ms;
        self.targets = vec![
            Target::at_most(
                "stored bytes, independent sandboxes, one base each, all functions",
                8.0,
                stored,
                "%",
            ),
            Target::at_least(
                "first dedup of a warm sandbox, per core, all functions",
                250.0,
                first_dedup,
                "MB/s",
            ),
        ];
    }

    /// For people: the ways to a first answer, the steps of the restore, what is stored, the targets.
    fn tables(&self) -> String {
        let mut text = format!(
            "Time to the first answer: median (lowest to highest)\n{}\n\n\
             Steps of the Medes restore: medians\n{}\n\n\
             Dedup: what is stored of the pages\n{}\n",
            self.table(&["WARM", "COLD", "CRIU", "CRIU+EXEC", "RESTORE", "/CRIU", "/COLD", "ANSWERS"], ways),
            self.table(&self.step_names(), |figures| {
                figures.restore.phases.iter().map(|step| ms(step.p50)).collect()
            }),
            self.table(
                &[
                    "PAGES",
                    "STORED",
                    "",
                    "SAME PAGES: MEDES",
                    "ZSTD -1",
                    "PAPER",
                    "TIME",
                    "DUMP",
                    "TO FILES",
                    "MB/S"
                ],
                stored
            ),
        );
        for target in &self.targets {
            text = format!("{text}\n{}", target.line());
        }
        text
    }

    /// Whether every answer was the right one, and nothing failed. A missed target is no failure.
    fn is_good(&self) -> bool {
        let good = |row: &Row| match row {
            Row::Measured { figures, .. } => figures.answers_match,
            Row::Skipped { .. } => true,
            Row::Failed { .. } => false,
        };
        !self.rows.is_empty() && self.rows.iter().all(good)
    }
}

fn ways(figures: &Figures) -> Vec<String> {
    let range = |spread: &Spread| format!("{} ({:.0}-{:.0})", ms(spread.p50), spread.min, spread.max);
    vec![
        ms(figures.warm.p50),
        range(&figures.cold.total),
        range(&figures.criu.total),
        range(&figures.criu_exec.total),
        range(&figures.restore.total),
        times(figures.restore_to_criu),
        times(figures.restore_to_cold),
        if figures.answers_match { "same" } else { "DIFFER" }.to_owned(),
    ]
}

fn stored(figures: &Figures) -> Vec<String> {
    let same = |fraction: fn(SamePages) -> f64| {
        figures.same_pages.map_or_else(String::new, |pages| percent(fraction(pages)))
    };
    vec![
        mib(figures.page_bytes.p50),
        mib(figures.stored_bytes.p50),
        percent(figures.stored_fraction.p50),
        same(|pages| pages.stored_fraction),
        same(|pages| pages.zstd_fraction),
        same(|pages| pages.paper_fraction),
        ms(figures.dedup.total.p50),
        ms(figures.dedup.step("dump")),
        ms(figures.dump_to_files.p50),
        format!("{:.0}", figures.dedup_mb_s),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use medes_proto::sandbox::Phase;

    use super::{super::compare::Compared, *};
    use crate::experiment::Report as _;

    fn way(ms: f64) -> Timed {
        let took = |part: f64| Duration::from_secs_f64(ms * part / 1e3);
        Timed { ms, phases: vec![Phase::new("open", took(0.25)), Phase::new("criu", took(0.75))] }
    }

    /// 1000 pages, of which a tenth is stored.
    fn round(scale: f64) -> Round {
        Round {
            cold: way(1000.0 * scale),
            warm_ms: 2.0 * scale,
            criu: way(100.0 * scale),
            criu_exec: way(120.0 * scale),
            dump_to_files_ms: 30.0 * scale,
            dedup: way(40.96 * scale),
            restore: way(150.0 * scale),
            pages: PageClasses { zero: 100, same: 200, delta: 300, whole: 400, ..PageClasses::default() },
            stored_bytes: 409_600,
            compared: Some(Compared { zstd_bytes: 1_024_000, paper_bytes: 2_048_000 }),
            answers_match: true,
        }
    }

    fn report(rounds: &[Round]) -> Report {
        let rows = vec![
            Row::measured("html".into(), rounds),
            Row::Skipped { function: "model-serve".into(), reason: "no torch".into() },
        ];
        let mut report = Report { rows, ..Report::new() };
        report.judge();
        report
    }

    #[test]
    fn rounds_become_medians_and_ratios() {
        let report = report(&[round(1.0), round(3.0), round(2.0)]);
        let figures = report.figures().next().unwrap();
        assert_eq!(figures.restore.total, Spread { p50: 300.0, min: 150.0, max: 450.0 });
        assert_eq!((figures.restore_to_criu, figures.restore_to_cold), (1.5, 0.15));
        assert_eq!(figures.restore_to_criu_exec, 1.25);
        assert_eq!(figures.stored_fraction.p50, 0.1);
        let same = figures.same_pages.unwrap();
        assert_eq!((same.stored_fraction, same.zstd_fraction, same.paper_fraction), (0.1, 0.25, 0.5));
        let [open, criu] = &figures.restore.phases[..] else { panic!("{:?}", figures.restore) };
        assert_eq!((open.name.as_str(), criu.name.as_str()), ("open", "criu"));
        assert!((open.p50 - 75.0).abs() < 1e-6 && (criu.p50 - 225.0).abs() < 1e-6);
        // 4.096 MB in 81.92 ms.
        assert!((figures.dedup_mb_s - 50.0).abs() < 1e-9, "{}", figures.dedup_mb_s);
    }

    #[test]
    fn the_file_has_the_agreed_keys_and_missed_targets_stay() {
        let value = serde_json::to_value(report(&[round(1.0)])).unwrap();
        let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["command", "commit", "cpu", "kernel", "name", "rows", "targets"]);
        assert_eq!(value["rows"][0]["cold"]["p50"], 1000.0);
        assert_eq!(value["rows"][1]["outcome"], "skipped");
        let stored = &value["targets"][0];
        assert_eq!(
            (&stored["target"], &stored["value"], &stored["met"]),
            (&8.0.into(), &10.0.into(), &false.into())
        );
    }

    #[test]
    fn a_wrong_answer_or_a_failure_makes_the_run_bad() {
        assert!(report(&[round(1.0)]).is_good());
        assert!(!report(&[round(1.0), Round { answers_match: false, ..round(1.0) }]).is_good());
        let mut failed = report(&[round(1.0)]);
        failed.rows.push(Row::Failed { function: "auth".into(), reason: "crashed".into() });
        assert!(!failed.is_good());
        let mut empty = Report::new();
        empty.judge();
        assert!(!empty.is_good() && empty.targets.is_empty(), "nothing was measured");
    }

    #[test]
    fn people_see_every_function_and_every_target() {
        let text = report(&[round(1.0), round(3.0), round(2.0)]).tables();
        for cell in [
            "300 ms (150-450)",
            "TO FILES",
            "60 ms",
            "1.50x",
            "OPEN",
            "3.9 MiB",
            "10.0 %",
            "25.0 %",
            "50.0 %",
            "MISSED",
            "skipped",
        ] {
            assert!(text.contains(cell), "{cell} in\n{text}");
        }
    }
}
