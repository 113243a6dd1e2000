//! What `bench engine` leaves: engine.json for programs, tables for people, and what the design asks for.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::NOTHING};
use serde::Serialize;

use super::{
    dump::{Data, Origin},
    methods::{FAST, METHODS, Measured, SMALL, SMALL_GENERIC, ZSTD_ALONE},
    probe::Taken,
    speed::{ATTEMPTS, LevelSpeeds, Speeds},
};
use crate::record::{Record, Target};

/// Everything that was found, with the machine it was found on.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    record: Record,
    /// How the figures came to be, in words.
    how: [&'static str; 4],
    attempts: usize,
    pub(super) rows: Vec<Row>,
    /// Sums over the ten functions, and over the other programs.
    totals: Vec<Row>,
    /// One core, over one target of each of the ten functions.
    pub(super) speeds: Option<Speeds>,
    /// One target of each function: memory of encoding by that of the target.
    pub(super) memory: Vec<Memory>,
    pub(super) growth: Vec<Grown>,
    targets: Vec<Target>,
}

/// What the dumps of one program are stored as.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Row {
    pub(super) program: String,
    /// One of the ten functions, on which targets are judged.
    pub(super) function: bool,
    pub(super) data: Data,
    pub(super) origin: Origin,
    pub(super) plain_bytes: u64,
    /// By name of the method; fractions of what each was tried on.
    stored: BTreeMap<&'static str, f64>,
    pub(super) measured: BTreeMap<&'static str, Measured>,
}

#[derive(Debug, Serialize)]
pub(super) struct Memory {
    pub(super) program: String,
    pub(super) fast: f64,
    pub(super) small: f64,
}

/// A target of a made size.
#[derive(Debug, Serialize)]
pub(super) struct Grown {
    pub(super) level: &'static str,
    #[serde(flatten)]
    pub(super) taken: Taken,
}

impl Row {
    pub(super) const fn new(program: String, function: bool, data: Data, origin: Origin) -> Self {
        Self {
            program,
            function,
            data,
            origin,
            plain_bytes: 0,
            stored: BTreeMap::new(),
            measured: BTreeMap::new(),
        }
    }

    /// Adds what one method made of one target.
    pub(super) fn add(&mut self, method: &'static str, found: &Measured) {
        let sum = self.measured.entry(method).or_default();
        sum.add(found);
        self.stored.insert(method, sum.fraction());
    }

    fn fraction(&self, method: &str) -> f64 {
        self.stored.get(method).copied().unwrap_or(f64::NAN)
    }
}

impl Report {
    /// An empty report about this machine.
    pub(super) fn new() -> Self {
        Self {
            record: Record::here("engine"),
            how: [
                "stored: fractions of the pages' bytes, everything that is kept counted; the base is not",
                "every page was rebuilt and compared with the original",
                "speeds: one thread, the best of several attempts",
                "xdelta3: a sample of pages; zstd -9 and -19 patches and xdelta3: the first target of each base",
            ],
            attempts: ATTEMPTS,
            rows: Vec::new(),
            totals: Vec::new(),
            speeds: None,
            memory: Vec::new(),
            growth: Vec::new(),
            targets: Vec::new(),
        }
    }

    /// Sums up, and holds the sums against what the design asks for.
    pub(super) fn judge(&mut self) {
        self.totals.clear();
        for row in &self.rows {
            let like = |total: &&mut Row| {
                (total.function, total.data, total.origin) == (row.function, row.data, row.origin)
            };
            let total = match self.totals.iter_mut().find(like) {
                Some(total) => total,
                None => {
                    let name = if row.function { "ten functions" } else { "other programs" };
                    self.totals.push(Row::new(name.into(), row.function, row.data, row.origin));
                    let last = self.totals.len() - 1;
                    &mut self.totals[last]
                }
            };
            total.plain_bytes += row.plain_bytes;
            row.measured.iter().for_each(|(method, found)| total.add(method, found));
        }
        self.targets = self.judged();
    }

    fn judged(&self) -> Vec<Target> {
        let stored = |method: &str, data, origin| {
            let total = self
                .totals
                .iter()
                .find(|total| total.function && total.data == data && total.origin == origin);
            total.map_or(f64::NAN, |total| total.fraction(method) * 100.0)
        };
        let independent = |method, data| stored(method, data, Origin::Independent);
        let clones = |method, data| stored(method, data, Origin::Clones);
        let (own, shared) = (Data::Own, Data::Shared);
        let mut targets = vec![
            Target::at_most("stored, fast, independent, own data", 8.0, independent(FAST, own), "%"),
            Target::at_most("stored, fast, independent, shared data", 8.0, independent(FAST, shared), "%"),
            Target::at_most("stored, small generic, own data", 4.0, independent(SMALL_GENERIC, own), "%"),
            Target::at_most(
                "stored, small generic, shared data",
                4.0,
                independent(SMALL_GENERIC, shared),
                "%",
            ),
            Target::at_most("stored, small, independent, own data", 2.5, independent(SMALL, own), "%"),
            Target::at_most("stored, small, independent, shared data", 2.5, independent(SMALL, shared), "%"),
            Target::at_most("stored, fast, clones, own data", 1.5, clones(FAST, own), "%"),
            Target::at_most("stored, fast, clones, shared data", 1.5, clones(FAST, shared), "%"),
            Target::at_most("stored, small, clones, own data", 1.2, clones(SMALL, own), "%"),
            Target::at_most("stored, small, clones, shared data", 1.2, clones(SMALL, shared), "%"),
            Target::at_most("rows in which ours is larger than zstd -1", 0.0, self.worse_than_zstd(), ""),
            Target::at_most("recipes and tables, fast, per page", 16.0, self.overhead(FAST), "B"),
            Target::at_most("recipes and tables, small, per page", 16.0, self.overhead(SMALL), "B"),
        ];
        let speed = |figure: fn(&Speeds) -> f64| self.speeds.as_ref().map_or(f64::NAN, figure);
        let memory = |figure: fn(&Memory) -> f64| self.memory.iter().map(figure).fold(f64::NAN, f64::max);
        targets.extend([
            Target::at_least("encode, fast", 250.0, speed(|s| s.fast.encode_mb_s), "MB/s"),
            Target::at_least("encode, small", 40.0, speed(|s| s.small.encode_mb_s), "MB/s"),
            Target::at_least("decode, fast", 2000.0, speed(|s| s.fast.decode_mb_s), "MB/s"),
            Target::at_least("decode, small", 800.0, speed(|s| s.small.decode_mb_s), "MB/s"),
            Target::at_least("fingerprint", 1000.0, speed(|s| s.fingerprint_mb_s), "MB/s"),
            Target::at_most("random page, fast, warm", 3.0, speed(|s| s.fast.page_warm_us_p50), "us"),
            Target::at_most("random page, small, warm", 10.0, speed(|s| s.small.page_warm_us_p50), "us"),
            Target::at_most(
                "first page of an image, small",
                1000.0,
                speed(|s| s.small.page_cold_us_p50),
                "us",
            ),
            Target::at_most("encode memory, fast, worst function", 2.0, memory(|m| m.fast), "x"),
            Target::at_most("encode memory, small, worst function", 3.0, memory(|m| m.small), "x"),
        ]);
        targets
    }

    fn worse_than_zstd(&self) -> f64 {
        let worse = |row: &&Row| {
            let alone = row.fraction(ZSTD_ALONE);
            row.fraction(FAST) > alone || row.fraction(SMALL) > alone
        };
        self.rows.iter().filter(worse).count() as f64
    }

    /// Bytes beside coded pages, for one page.
    fn overhead(&self, method: &str) -> f64 {
        let mut sum = Measured::default();
        let totals = self.totals.iter().filter(|total| total.function);
        totals.filter_map(|total| total.measured.get(method)).for_each(|one| sum.add(one));
        sum.overhead_bytes as f64 / (sum.plain_bytes as f64 / 4096.0)
    }

    /// For people: what is stored, how fast, how it grows, the targets.
    pub(super) fn tables(&self) -> String {
        let mut text = String::new();
        for total in &self.totals {
            let data = match total.data {
                Data::Own => "each with its own data",
                Data::Shared => "data shared by all",
            };
            let origin = match total.origin {
                Origin::Independent => "independent sandboxes after requests",
                Origin::Clones => "clones of one sandbox after requests",
            };
            let like = |row: &&Row| {
                (row.function, row.data, row.origin) == (total.function, total.data, total.origin)
            };
            let rows = self.rows.iter().filter(like).chain([total]);
            text += &format!("Stored, %: {}, {origin}, {data}\n{}\n\n", total.program, stored(rows));
        }
        if let Some(speeds) = &self.speeds {
            text += &format!("One core, ten functions\n{}\n\n", fast_and_small(speeds));
        }
        if !self.growth.is_empty() {
            text += &format!("Made images: real pages, repeated with changes\n{}\n\n", growth(&self.growth));
        }
        self.targets.iter().for_each(|target| text += &format!("{}\n", target.line()));
        text
    }
}

fn table(header: impl IntoIterator<Item = String>) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn stored<'r>(rows: impl Iterator<Item = &'r Row>) -> Table {
    let heads = METHODS.iter().map(|method| method.head.to_owned());
    let mut table = table(["PROGRAM".to_owned(), "MB".to_owned()].into_iter().chain(heads));
    for row in rows {
        let cells = METHODS.iter().map(|method| match row.fraction(method.name) {
            fraction if fraction.is_nan() => "-".to_owned(),
            fraction => format!("{:.2}", fraction * 100.0),
        });
        let first = [row.program.clone(), format!("{:.0}", row.plain_bytes as f64 / 1e6)];
        table.add_row(first.into_iter().chain(cells));
    }
    table
}

fn fast_and_small(speeds: &Speeds) -> Table {
    let mut table = table(["", "FAST", "SMALL"].map(str::to_owned));
    let both = |figure: fn(&LevelSpeeds) -> f64| [figure(&speeds.fast), figure(&speeds.small)];
    for (name, [fast, small]) in [
        ("fingerprint, MB/s", [speeds.fingerprint_mb_s; 2]),
        ("index of the base, MB/s", [speeds.index_mb_s; 2]),
        ("index to base, memory", [speeds.index_to_base; 2]),
        ("align, MB/s", both(|level| level.align_mb_s)),
        ("encode, MB/s", both(|level| level.encode_mb_s)),
        ("decode, hashes checked, MB/s", both(|level| level.decode_mb_s)),
        ("open an image, ms", both(|level| level.open_ms_p50)),
        ("first page, us", both(|level| level.page_cold_us_p50)),
        ("random page, us: median", both(|level| level.page_warm_us_p50)),
        ("random page, us: 99 of 100", both(|level| level.page_warm_us_p99)),
    ] {
        table.add_row([name.to_owned(), format!("{fast:.2}"), format!("{small:.2}")]);
    }
    table
}

fn growth(rows: &[Grown]) -> Table {
    let mut table =
        table(["LEVEL", "MB", "SECONDS", "MB/S", "PEAK", "INDEX", "STORED, %"].map(str::to_owned));
    for Grown { level, taken } in rows {
        let plain = taken.plain_bytes as f64;
        table.add_row([
            (*level).to_owned(),
            format!("{:.0}", plain / 1e6),
            format!("{:.2}", taken.seconds),
            format!("{:.0}", plain / 1e6 / taken.seconds),
            format!("{:.2}x", taken.peak_bytes as f64 / plain),
            format!("{:.2}x", taken.index_bytes as f64 / plain),
            format!("{:.2}", taken.stored_bytes as f64 / plain * 100.0),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(program: &str, function: bool, data: Data, origin: Origin, stored: u64) -> Row {
        let mut row = Row::new(program.into(), function, data, origin);
        row.plain_bytes = 409_600;
        let ours = Measured {
            plain_bytes: 409_600,
            stored_bytes: stored,
            overhead_bytes: 2400,
            ..Measured::default()
        };
        row.add(FAST, &ours);
        row.add(SMALL, &Measured { stored_bytes: stored / 2, ..ours });
        row.add(ZSTD_ALONE, &Measured { stored_bytes: 40_960, ..ours });
        row
    }

    fn report() -> Report {
        let mut report = Report::new();
        report.rows = vec![
            row("html", true, Data::Own, Origin::Independent, 20_480),
            row("auth", true, Data::Own, Origin::Independent, 61_440),
            row("html", true, Data::Shared, Origin::Clones, 4096),
            row("node", false, Data::Own, Origin::Independent, 40_960),
        ];
        report.judge();
        report
    }

    fn target<'v>(value: &'v serde_json::Value, name: &str) -> &'v serde_json::Value {
        value["targets"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap()
    }

    #[test]
    fn totals_are_sums_of_what_belongs_together() {
        let report = report();
        let names: Vec<_> = report.totals.iter().map(|total| total.program.as_str()).collect();
        assert_eq!(names, ["ten functions", "ten functions", "other programs"]);
        assert_eq!(report.totals[0].fraction(FAST), 0.1);
        assert_eq!(report.totals[0].plain_bytes, 819_200);
    }

    #[test]
    fn targets_are_judged_on_the_ten_functions_and_what_is_missing_is_missed() {
        let value = serde_json::to_value(report()).unwrap();
        let fast = target(&value, "stored, fast, independent, own data");
        assert_eq!((&fast["value"], &fast["met"]), (&10.0.into(), &false.into()));
        let clones = target(&value, "stored, fast, clones, shared data");
        assert_eq!((&clones["value"], &clones["met"]), (&1.0.into(), &true.into()));
        let unknown = target(&value, "encode, fast");
        assert_eq!((&unknown["value"], &unknown["met"]), (&serde_json::Value::Null, &false.into()));
        // auth is worse than zstd alone, node is as good.
        assert_eq!(target(&value, "rows in which ours is larger than zstd -1")["value"], 1.0);
        assert_eq!(target(&value, "recipes and tables, fast, per page")["value"], 24.0);
    }

    #[test]
    fn the_file_has_the_agreed_keys() {
        let value = serde_json::to_value(report()).unwrap();
        for key in ["name", "commit", "cpu", "kernel", "command", "rows", "targets", "totals", "growth"] {
            assert!(value.get(key).is_some(), "{key}");
        }
        assert_eq!(value["rows"][0]["stored"][FAST], 0.05);
        assert_eq!(value["rows"][0]["origin"], "independent");
    }

    #[test]
    fn people_see_every_program_and_every_method() {
        let text = report().tables();
        for cell in [
            "html",
            "node",
            "ten functions",
            "other programs",
            "PATCH-19",
            "10.00",
            "MISSED",
            "shared by all",
        ] {
            assert!(text.contains(cell), "{cell} in\n{text}");
        }
    }
}
