//! Memory of a cluster over time where start-ups may be only so much slower than warm ones (the paper's P1).

use anyhow::Result;

use super::{
    Options,
    csv::{Csv, row},
    leave::Found,
    published,
    section::{Drawing, Section, Sheet, Verdict},
    workload::{ADAPTIVE, Candidate, KEEP_ALIVE, OURS, P1, Workload},
};
use crate::{
    plot::{Line, Plot},
    sim::outcome::Outcome,
};

/// The paper's three, and ours; with the paper's names.
const COMPARED: [(Candidate, &str); 4] =
    [(KEEP_ALIVE, "fixed"), (ADAPTIVE, "adaptive"), (P1, "Medes"), (OURS, "")];
/// The paper's bound on how much slower starts may be on average.
const ALPHA: f64 = 2.5;

/// Bytes at the end of each minute, in a few numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Held {
    mean: f64,
    median: f64,
    p10: f64,
    p90: f64,
}

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("Memory over time under the latency objective", "Fig 9");
    let mut csv = Csv::new(&["workload", "policy", "minute", "memory_bytes"]);
    for workload in [Workload::at_scale(options)?, Workload::as_the_paper(options)?] {
        section.say(workload.about.clone());
        let mut runs = Vec::new();
        for (candidate, paper) in COMPARED {
            match workload.run(&candidate, 1.0, |settings| settings.policy.alpha = ALPHA) {
                Ok(outcome) => runs.push((candidate, paper, outcome)),
                Err(error) => section.warn(format!("{}, {}: {error:#}", workload.name, candidate.name)),
            }
        }
        for (candidate, _, outcome) in &runs {
            for (minute, bytes) in (1_usize..).zip(&outcome.bytes) {
                csv.push(row![workload.name, candidate.name, minute, *bytes]);
            }
        }
        tell(section, workload.name, &runs);
    }
    files.push(("minutes.csv".into(), csv));
    section.say(format!(
        "The largest pool. medes-latency is the paper's P1 with alpha {ALPHA}: as little memory as keeps starts on average within {ALPHA} times a warm one. What a node holds: sandboxes \
         as the kernel counts them, images, base snapshots, copies of those of other nodes. At the end of each minute, all nodes together."
    ));
    section.warn("The paper subtracts 10 MB for each dedup sandbox, and 45 MB for each in transition in runs of Medes only. Here everything counts, for all alike.");
    Ok(())
}

impl Held {
    fn of(bytes: &[u64]) -> Self {
        let mut sorted = bytes.to_vec();
        sorted.sort_unstable();
        // The smallest that so many are not above.
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).map_or(f64::NAN, |bytes| *bytes as f64)
        };
        let sum: f64 = bytes.iter().map(|bytes| *bytes as f64).sum();
        Self { mean: sum / bytes.len() as f64, median: at(50), p10: at(10), p90: at(90) }
    }
}

fn gib(bytes: f64) -> String {
    format!("{:.2} GiB", bytes / f64::from(1 << 30))
}

/// The mean memory under a policy.
fn mean_of(runs: &[(Candidate, &str, Outcome)]) -> impl Fn(&str) -> f64 {
    |name| {
        let run = runs.iter().find(|(candidate, ..)| candidate.name == name);
        run.map_or(f64::NAN, |(.., outcome)| Held::of(&outcome.bytes).mean)
    }
}

fn tell(section: &mut Section, workload: &str, runs: &[(Candidate, &str, Outcome)]) {
    let head = [
        "policy",
        "mean",
        "of keep-alive",
        "paper, of fixed",
        "median",
        "p10",
        "p90",
        "paper, GB",
        "cold",
        "paper, cold",
        "p99.9",
    ];
    let mut sheet = Sheet::new(format!("Memory of all nodes, {workload}"), &head);
    let mean = mean_of(runs);
    let dash =
        |value: f64, digits: usize| if value.is_nan() { "-".into() } else { format!("{value:.digits$}") };
    for (candidate, paper, outcome) in runs {
        let held = Held::of(&outcome.bytes);
        let theirs = |of: &str| published::value("Fig 9", &format!("memory, {of}"), "mean");
        sheet.push([
            candidate.name.to_owned(),
            gib(held.mean),
            dash(held.mean / mean(KEEP_ALIVE.name), 2),
            dash(theirs(paper) / theirs("fixed"), 2),
            gib(held.median),
            gib(held.p10),
            gib(held.p90),
            dash(theirs(paper), 1),
            outcome.cold.to_string(),
            dash(published::value("Fig 9", "cold starts", paper), 0),
            crate::show::ms(outcome.answers.percentiles().p999_ms),
        ]);
    }
    section.sheets.push(sheet);
    section.drawings.push(over_time(workload, runs));
    verdicts(section, workload, runs);
}

fn over_time(workload: &str, runs: &[(Candidate, &str, Outcome)]) -> Drawing {
    let lines = runs.iter().map(|(candidate, _, outcome)| {
        let points = (1_u32..)
            .zip(&outcome.bytes)
            .map(|(minute, bytes)| (f64::from(minute), *bytes as f64 / f64::from(1 << 30)));
        Line { name: candidate.name.into(), points: points.collect() }
    });
    Drawing::Lines(Plot {
        title: format!("Memory of all nodes, {workload}"),
        x: "minutes".into(),
        y: "GiB".into(),
        lines: lines.collect(),
    })
}

fn verdicts(section: &mut Section, workload: &str, runs: &[(Candidate, &str, Outcome)]) {
    let mean = mean_of(runs);
    let cold = |name: &str| {
        runs.iter().find(|(one, ..)| one.name == name).map_or(f64::NAN, |(.., outcome)| outcome.cold as f64)
    };
    for ours in [P1, OURS] {
        for other in [KEEP_ALIVE, ADAPTIVE] {
            let against = format!("{} against {} ({workload})", ours.name, other.name);
            section.verdicts.push(Verdict::less(
                format!("mean memory: {against}"),
                (mean(ours.name), mean(other.name)),
                gib,
            ));
            section.verdicts.push(Verdict::less(
                format!("cold starts under the latency objective: {against}"),
                (cold(ours.name), cold(other.name)),
                |value| format!("{value:.0}"),
            ));
        }
    }
    let saved = 1.0 - mean(P1.name) / mean(KEEP_ALIVE.name);
    let paper = published::value("Fig 9", "less memory than fixed", "mean");
    let what = format!("memory that medes-latency saves of keep-alive's, against the paper's ({workload})");
    section.verdicts.push(Verdict::more(what, (saved, paper), crate::show::percent));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_in_a_few_numbers() {
        let bytes: Vec<u64> = (1..=10).rev().collect();
        assert_eq!(Held::of(&bytes), Held { mean: 5.5, median: 5.0, p10: 1.0, p90: 9.0 });
        assert!(Held::of(&[]).mean.is_nan());
    }
}
