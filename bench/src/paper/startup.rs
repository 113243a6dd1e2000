//! How long until a sandbox answers, by where it comes from, and what a restore is made of.

use anyhow::Result;
use medes_proto::sandbox::Phase;

use super::{
    Options,
    csv::{Csv, row},
    leave::Found,
    published,
    section::{Drawing, Section, Sheet, Verdict},
};
use crate::{
    functions::Function,
    plot::bars::{Bar, Bars},
    show::{ms, times},
    start::{self, Measured},
    station::Station,
    stats::Spread,
};

const ROUNDS: (u32, u32) = (5, 30);

/// What the paper tells apart, by the steps of ours that do the same.
const PARTS: [(&str, &[&str]); 3] = [
    ("read base pages", &["open", "read_bases"]),
    ("compute pages", &["rebuild"]),
    ("CRIU", &["worker", "criu"]),
];

/// Medians of a function's ways, in milliseconds.
struct Row {
    function: String,
    cold: f64,
    clone: f64,
    restore: f64,
    unpark: f64,
    warm: f64,
    /// Of a restore, as the paper tells them apart.
    parts: [f64; 3],
}

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("How long until a sandbox answers", "Fig 8");
    let rounds = options.by_size(ROUNDS.0, ROUNDS.1);
    about(section, rounds);
    let mut answers = Csv::new(&["function", "way", "round", "ms"]);
    let mut steps = Csv::new(&["function", "way", "round", "step", "ms"]);
    let mut rows = Vec::new();
    let measure = async |station: &mut Station, function: &Function| {
        let pager = station.pager()?;
        start::measure_one(station, &pager, function, (rounds, 0)).await
    };
    let done = options.on_station(section, measure, |_, function, measured| {
        raw(&mut answers, &mut steps, &function, &measured);
        rows.push(Row::of(function, &measured));
    });
    files.push(("answers.csv".into(), answers));
    files.push(("steps.csv".into(), steps));
    tell(section, &rows);
    done
}

fn about(section: &mut Section, rounds: u32) {
    section.say(format!(
        "Time from the order to the last byte of the first answer, median of {rounds} rounds, each with a new sandbox: started cold; cloned from the function's init \
         snapshot; restored from a dedup image whose base is that snapshot, eagerly, as the paper did; given its memory back where it was parked (after two rounds \
         that teach what is touched). Every answer is checked to be the next one of the same process, or the first of a clone."
    ));
    section.say(
        "The paper's dedup start ends when the sandbox is ready; its requests are not in it. Ours is shown without the answer where it is held against the \
         paper's, as sum of the same three parts.",
    );
    section.warn("The base is on the same node, in memory: the paper read its pages from other nodes by RDMA. What the network adds is measured by `bench demo` and `bench pages`.");
    section.warn("The paper's cold start is Docker's and OpenWhisk's; ours makes namespaces and starts a program, so it is shorter and the ratio to it is harder to reach.");
}

fn raw(answers: &mut Csv, steps: &mut Csv, function: &str, measured: &Measured) {
    let Measured { cold, clone, restore, unpark, warm, restore_phases, clone_phases, .. } = measured;
    for (way, all) in
        [("cold", cold), ("clone", clone), ("restore", restore), ("unpark", unpark), ("warm", warm)]
    {
        for (round, ms) in all.iter().enumerate() {
            answers.push(row![function, way, round, *ms]);
        }
    }
    for (way, all) in [("restore", restore_phases), ("clone", clone_phases)] {
        for (round, phases) in all.iter().enumerate() {
            for phase in phases {
                steps.push(row![function, way, round, phase.name.as_str(), millis(phase)]);
            }
        }
    }
}

fn millis(phase: &Phase) -> f64 {
    phase.took.as_secs_f64() * 1e3
}

/// Milliseconds of some steps, median of all rounds.
fn part(rounds: &[Vec<Phase>], names: &[&str]) -> f64 {
    let sum = |phases: &Vec<Phase>| {
        phases.iter().filter(|phase| names.contains(&phase.name.as_str())).map(millis).sum()
    };
    Spread::of(rounds.iter().map(sum)).p50
}

impl Row {
    fn of(function: String, measured: &Measured) -> Self {
        let p50 = |all: &[f64]| Spread::of(all.iter().copied()).p50;
        Self {
            function,
            cold: p50(&measured.cold),
            clone: p50(&measured.clone),
            restore: p50(&measured.restore),
            unpark: p50(&measured.unpark),
            warm: p50(&measured.warm),
            parts: PARTS.map(|(_, names)| part(&measured.restore_phases, names)),
        }
    }

    fn dedup_start(&self) -> f64 {
        self.parts.iter().sum()
    }
}

fn tell(section: &mut Section, rows: &[Row]) {
    let mut sheet = Sheet::new(
        "To the first answer, median; a restore without the answer beside the paper's",
        &[
            "function",
            "cold",
            "clone",
            "restore",
            "unpark",
            "warm",
            "read bases",
            "paper",
            "compute",
            "paper",
            "CRIU",
            "paper",
            "together",
            "paper",
            "cold / that",
            "paper",
        ],
    );
    let paper = |what: &str, function: &str| published::value("Fig 8", what, function);
    for row in rows {
        let name = row.function.as_str();
        let mut cells = vec![name.to_owned()];
        cells.extend([row.cold, row.clone, row.restore, row.unpark, row.warm].map(ms));
        for ((what, _), ours) in PARTS.iter().zip(row.parts) {
            cells.extend([ms(ours), ms(paper(what, name))]);
        }
        let theirs = paper("dedup start", name);
        let ratios = (row.cold / row.dedup_start(), paper("cold start", name) / theirs);
        cells.extend([ms(row.dedup_start()), ms(theirs), times(ratios.0), times(ratios.1)]);
        sheet.push(cells);
        verdicts(section, row, (theirs, ratios));
    }
    section.sheets.push(sheet);
    let parts = PARTS.map(|(name, _)| name.to_owned()).to_vec();
    let ours = rows.iter().map(|row| Bar { name: row.function.clone(), heights: row.parts.to_vec() });
    let theirs = rows.iter().map(|row| {
        let heights = PARTS.map(|(what, _)| paper(what, &row.function)).to_vec();
        Bar { name: format!("{} (paper)", row.function), heights }
    });
    section.drawings.push(Drawing::Bars(Bars {
        title: "What a restore is made of, ours and the paper's".into(),
        y: "ms".into(),
        parts,
        bars: ours.zip(theirs).flat_map(|(ours, theirs)| [ours, theirs]).collect(),
    }));
    let ways: [Way; 4] = [
        ("cold", |row| row.cold),
        ("clone", |row| row.clone),
        ("restore", |row| row.restore),
        ("unpark", |row| row.unpark),
    ];
    let bars = rows.iter().flat_map(|row| {
        ways.iter().map(|(way, of)| Bar { name: format!("{} {way}", row.function), heights: vec![of(row)] })
    });
    section.drawings.push(Drawing::Bars(Bars {
        title: "To the first answer".into(),
        y: "ms".into(),
        parts: vec!["median".into()],
        bars: bars.collect(),
    }));
}

/// A way's name, and its time.
type Way = (&'static str, fn(&Row) -> f64);

fn verdicts(section: &mut Section, row: &Row, (theirs, ratios): (f64, (f64, f64))) {
    let name = &row.function;
    let mut push = |verdict| section.verdicts.push(verdict);
    push(Verdict::less(
        format!("{name}: restore without answer, against the paper's dedup start"),
        (row.dedup_start(), theirs),
        ms,
    ));
    push(Verdict::more(
        format!("{name}: how many times sooner than a cold start, against the paper's"),
        ratios,
        times,
    ));
    for (way, ours) in [("restore", row.restore), ("clone", row.clone), ("unpark", row.unpark)] {
        push(Verdict::less(
            format!("{name}: {way} to the first answer, against a cold start"),
            (ours, row.cold),
            ms,
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn steps_are_summed_by_what_the_paper_calls_them() {
        let phase = |name: &'static str, ms| Phase::new(name, Duration::from_millis(ms));
        let round = |extra: u64| {
            vec![phase("open", 1), phase("read_bases", 2 + extra), phase("rebuild", 9), phase("criu", 40)]
        };
        let rounds = [round(0), round(10), round(1)];
        assert_eq!(PARTS.map(|(_, names)| part(&rounds, names)), [4.0, 9.0, 40.0]);
        assert!(part(&[], &["open"]).is_nan());
    }
}
