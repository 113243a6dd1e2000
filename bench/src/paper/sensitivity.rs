//! What the paper's numbers depend on: chunk size, chunks in a page and ASLR for what is stored; periods and bases for cold starts.

mod storing;

use std::time::Duration;

use anyhow::{Context, Result};
use medes_dedup::paper;

use super::{
    Options,
    csv::{Csv, row},
    dumped::{self, Kind},
    leave::Found,
    published,
    section::{Drawing, Section, Sheet, Verdict},
    workload::{Candidate, KEEP_ALIVE, P2, Workload},
};
use crate::{
    engine::{
        dump::Dump,
        ours::{self, Base, Level},
    },
    functions::Function,
    plot::{Line, Plot},
    show::percent,
    sim::{outcome::Outcome, world::Settings},
    station::Station,
};
use storing::Rule;

const CHUNK_BYTES: [usize; 3] = [32, 64, 128];
const CHUNKS: [usize; 3] = [5, 10, 20];
/// Requests of the base and of the target, no two the same.
const REQUESTS: u64 = 6;
/// The paper's functions for this.
const REPRESENTATIVE: [&str; 3] = ["linalg", "feature", "model-train"];
const MINUTES: [u64; 4] = [5, 10, 15, 20];
const DEDUPS_PER_BASE: [u32; 4] = [10, 20, 40, 80];
/// Where memory is short periods matter: the smallest of the three pools.
const POOL: f64 = 0.5;

/// A target stored against another sandbox of its function.
struct Stored {
    function: String,
    kind: Kind,
    rule: String,
    plain_bytes: u64,
    stored_bytes: u64,
    /// Of one thread: choosing, coding, proving.
    seconds: f64,
}

/// A simulation with one number changed.
struct Swept {
    what: &'static str,
    value: String,
    candidate: Candidate,
    outcome: Outcome,
}

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("Sensitivity", "Figs 12 to 16");
    let workload = Workload::at_scale(options)?;
    about(section, &workload);
    let mut stored = Vec::new();
    let measure = async |station: &mut Station, function: &Function| {
        let mut all = Vec::new();
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.shared_data) {
            let base = dumped::dump(station, function, kind, 1..REQUESTS + 1).await?;
            let target = dumped::dump(station, function, kind, 1001..1001 + REQUESTS).await?;
            all.extend(store(&function.name, kind, &base, &target)?);
        }
        Ok(all)
    };
    let done = options.on_station(section, measure, |_, _, all| stored.extend(all));
    files.push(("stored.csv".into(), of_stored(&stored)));
    tell_stored(section, &stored);
    let swept = sweeps(section, &workload);
    files.push(("periods.csv".into(), of_swept(&swept)));
    tell_swept(section, &swept);
    done
}

fn about(section: &mut Section, workload: &Workload) {
    section.say(
        "Stored: a sandbox of each function after six requests against another one of its function, by the paper's rule (the first chunks of a page whose last two bytes match a \
         pattern, the base page with most of them, one light delta for the page, else the raw page), with its chunk size and number of chunks varied; every page is rebuilt and \
         compared. Beside it what ours stores of the same, whose chunks are 64 B and cannot be changed: it hardly looks at chunks.",
    );
    section.say(format!(
        "Cold starts: simulated, one number changed at a time, in half of the largest pool. {} The paper used {}.",
        workload.about,
        REPRESENTATIVE.join(", ")
    ));
    section.warn(
        "The paper measures chunk size, chunks per page and ASLR by cold starts of its cluster; here by what is stored, which is what they change. Its pattern is not printed: ours hits one of 32 \
         random chunks.",
    );
}

fn store(function: &str, kind: Kind, base: &Dump, target: &Dump) -> Result<Vec<Stored>> {
    let prepared = Base::new(base)?;
    let plain_bytes = target.bytes.len() as u64;
    let row = |rule: String, stored: &ours::Stored, seconds: f64| Stored {
        function: function.into(),
        kind,
        rule,
        plain_bytes,
        stored_bytes: stored.bytes(),
        seconds,
    };
    let mut all = Vec::new();
    for rule in rules() {
        let (choices, choosing) = crate::engine::clock::timed(|| rule.choices(target, &prepared));
        let stored = ours::store_chosen(target, &prepared, paper::encode_rules(), &choices)?;
        ours::prove(&stored, target, &prepared).with_context(|| format!("{function}, {rule:?}"))?;
        all.push(row(name(rule), &stored, choosing + stored.code));
    }
    for (name, level) in [("ours, fast", Level::Fast), ("ours, small", Level::Small)] {
        let stored = ours::store(target, &prepared, level)?;
        ours::prove(&stored, target, &prepared).with_context(|| format!("{function}, {name}"))?;
        all.push(row(name.into(), &stored, stored.align + stored.code));
    }
    Ok(all)
}

/// Each once: the paper's own is in both rows.
fn rules() -> Vec<Rule> {
    let sizes = CHUNK_BYTES.map(|chunk_bytes| Rule { chunk_bytes, ..Rule::PAPER });
    let counts = CHUNKS.map(|chunks| Rule { chunks, ..Rule::PAPER });
    let mut rules = sizes.to_vec();
    rules.extend(counts.into_iter().filter(|rule| *rule != Rule::PAPER));
    rules
}

fn name(rule: Rule) -> String {
    format!("paper, {} chunks of {} B", rule.chunks, rule.chunk_bytes)
}

fn of_stored(stored: &[Stored]) -> Csv {
    let mut csv = Csv::new(&["function", "aslr", "rule", "plain_bytes", "stored_bytes", "seconds"]);
    for Stored { function, kind, rule, plain_bytes, stored_bytes, seconds } in stored {
        csv.push(row![function, kind.aslr_word(), rule, *plain_bytes, *stored_bytes, *seconds]);
    }
    csv
}

/// Megabytes that the paper saves of a sandbox by this rule.
fn published_saving(rule: &str) -> f64 {
    let of = |wanted: Rule, what: &str, value: usize| {
        let figure = if what == "chunk size" { "Fig 13" } else { "Fig 14" };
        (rule == name(wanted))
            .then(|| published::value(figure, &format!("saved per sandbox, {what}"), &value.to_string()))
    };
    let sizes = CHUNK_BYTES
        .iter()
        .find_map(|size| of(Rule { chunk_bytes: *size, ..Rule::PAPER }, "chunk size", *size));
    let counts = || {
        CHUNKS.iter().find_map(|count| of(Rule { chunks: *count, ..Rule::PAPER }, "chunks per page", *count))
    };
    sizes.or_else(counts).unwrap_or(f64::NAN)
}

fn tell_stored(section: &mut Section, stored: &[Stored]) {
    let mut rules: Vec<&str> = Vec::new();
    for one in stored {
        if !rules.contains(&one.rule.as_str()) {
            rules.push(&one.rule);
        }
    }
    let fraction = |rule: &str, aslr: bool| {
        let some = stored.iter().filter(|one| one.rule == rule && one.kind.aslr == aslr);
        let sum = some.fold((0, 0), |sum, one| (sum.0 + one.stored_bytes, sum.1 + one.plain_bytes));
        sum.0 as f64 / sum.1 as f64
    };
    let mut sheet = Sheet::new(
        "Stored, of the bytes of all functions together; saved by the paper in MB per sandbox",
        &["rule", "ASLR off", "ASLR on", "paper, saved"],
    );
    for rule in &rules {
        let paper = published_saving(rule);
        let paper = if paper.is_nan() { "-".into() } else { format!("{paper} MB") };
        sheet.push([
            (*rule).to_owned(),
            percent(fraction(rule, false)),
            percent(fraction(rule, true)),
            paper,
        ]);
    }
    section.sheets.push(sheet);
    let paper = name(Rule::PAPER);
    for aslr in [false, true] {
        let word = if aslr { "on" } else { "off" };
        for ours in ["ours, fast", "ours, small"] {
            let pair = (fraction(ours, aslr), fraction(&paper, aslr));
            section.verdicts.push(Verdict::less(
                format!("stored, ASLR {word}: {ours} against the paper's rule"),
                pair,
                percent,
            ));
        }
    }
    let kept = |rule: &str| (1.0 - fraction(rule, true)) / (1.0 - fraction(rule, false));
    let theirs = published::value("Fig 16", "saved per sandbox, ASLR", "on")
        / published::value("Fig 16", "saved per sandbox, ASLR", "off");
    for rule in [paper.as_str(), "ours, fast"] {
        section.verdicts.push(Verdict::more(
            format!("part of the saving that ASLR leaves: {rule}, against the paper's"),
            (kept(rule), theirs),
            percent,
        ));
    }
}

type Change = Box<dyn Fn(&mut Settings)>;

/// Each number, its values, and whom it is changed for.
fn plans() -> Vec<(&'static str, String, Candidate, Change)> {
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let mut plans: Vec<(&'static str, String, Candidate, Change)> = Vec::new();
    for count in MINUTES {
        let change = move |settings: &mut Settings| settings.policy.periods.keep_alive = minutes(count);
        plans.push(("keep-alive", format!("{count} min"), KEEP_ALIVE, Box::new(change)));
    }
    plans.push(("keep-alive", "Medes".into(), P2, Box::new(|_| ())));
    plans.push(("keep-dedup", "none".into(), P2, Box::new(|settings| settings.policy.periods.dedup = false)));
    for count in MINUTES {
        let change = move |settings: &mut Settings| settings.policy.periods.keep_dedup = minutes(count);
        plans.push(("keep-dedup", format!("{count} min"), P2, Box::new(change)));
    }
    for count in DEDUPS_PER_BASE {
        let change = move |settings: &mut Settings| settings.policy.periods.dedups_per_base = count;
        plans.push(("T, dedups per base", count.to_string(), P2, Box::new(change)));
    }
    plans
}

fn sweeps(section: &mut Section, workload: &Workload) -> Vec<Swept> {
    let mut swept = Vec::new();
    for (what, value, candidate, change) in plans() {
        match workload.run(&candidate, POOL, change) {
            Ok(outcome) => swept.push(Swept { what, value, candidate, outcome }),
            Err(error) => section.warn(format!("{what} {value}: {error:#}")),
        }
    }
    swept
}

fn of_swept(swept: &[Swept]) -> Csv {
    let mut csv =
        Csv::new(&["number", "value", "policy", "cold", "restored", "answer_p999_ms", "memory_mean_bytes"]);
    for Swept { what, value, candidate, outcome } in swept {
        let mean = outcome.bytes.iter().sum::<u64>() / outcome.bytes.len().max(1) as u64;
        let tail = outcome.answers.percentiles().p999_ms;
        csv.push(row![*what, value, candidate.name, outcome.cold, outcome.restored, tail, mean]);
    }
    csv
}

fn tell_swept(section: &mut Section, swept: &[Swept]) {
    let mut sheet =
        Sheet::new("Cold starts", &["number", "value", "policy", "cold", "restored", "p99.9", "paper, cold"]);
    for Swept { what, value, candidate, outcome } in swept {
        let figure = if *what == "keep-alive" { "Fig 12" } else { "Fig 15" };
        let paper = published::value(figure, &format!("cold starts, {what}"), value);
        sheet.push([
            (*what).to_owned(),
            value.clone(),
            candidate.name.into(),
            outcome.cold.to_string(),
            outcome.restored.to_string(),
            crate::show::ms(outcome.answers.percentiles().p999_ms),
            if paper.is_nan() { "-".into() } else { format!("{paper:.0}") },
        ]);
    }
    section.sheets.push(sheet);
    let of = |what: &'static str| swept.iter().filter(move |one| one.what == what);
    let line = |what: &'static str| {
        let number = |one: &Swept| one.value.trim_end_matches(" min").parse::<f64>().unwrap_or(f64::NAN);
        Line {
            name: what.into(),
            points: of(what).map(|one| (number(one), one.outcome.cold as f64)).collect(),
        }
    };
    section.drawings.push(Drawing::Lines(Plot {
        title: "Cold starts by keep-alive (keep-alive alone) and keep-dedup (medes-memory)".into(),
        x: "minutes".into(),
        y: "cold starts".into(),
        lines: vec![line("keep-alive"), line("keep-dedup")],
    }));
    // The baseline at its best, whatever its period.
    let best = of("keep-alive").filter(|one| one.value != "Medes").map(|one| one.outcome.cold).min();
    let medes = of("keep-alive").find(|one| one.value == "Medes").map(|one| one.outcome.cold);
    if let (Some(best), Some(medes)) = (best, medes) {
        let what = "cold starts of medes-memory at its defaults, against keep-alive at its best period";
        section
            .verdicts
            .push(Verdict::less(what, (medes as f64, best as f64), |value| format!("{value:.0}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_is_tried_once() {
        let names: std::collections::BTreeSet<String> = rules().into_iter().map(name).collect();
        assert_eq!((names.len(), rules().len()), (5, 5));
        assert!(names.contains("paper, 5 chunks of 64 B"));
    }

    #[test]
    fn rules_find_what_the_paper_saved_by_them() {
        assert_eq!(published_saving(&name(Rule::PAPER)), 28.8);
        assert_eq!(published_saving("paper, 20 chunks of 64 B"), 32.54);
        assert!(
            published_saving("paper, 5 chunks of 32 B").is_nan() && published_saving("ours, fast").is_nan()
        );
    }

    #[test]
    fn every_number_is_swept() {
        let count = |wanted| plans().iter().filter(|(what, ..)| *what == wanted).count();
        assert_eq!((count("keep-alive"), count("keep-dedup"), count("T, dedups per base")), (5, 5, 4));
    }
}
