//! Cold starts and latency by policy: at three pools of memory in simulated clusters, and on a real one of this machine.

mod live;

use anyhow::Result;
use medes_load::tally::Percentiles;

use super::{
    Options,
    csv::{Csv, row},
    leave::Found,
    published,
    section::{Drawing, Section, Sheet, Verdict},
    workload::{ADAPTIVE, CANDIDATES, Candidate, KEEP_ALIVE, OURS, P2, POOLS, Workload, paper_name},
};
use crate::{
    plot::{Line, Plot},
    show::ms,
    sim::outcome::Outcome,
};

const CDF_POINTS: usize = 200;
/// Functions that a table can show.
const BY_FUNCTION_MAX: usize = 10;

/// One simulation.
struct Run {
    workload: &'static str,
    candidate: Candidate,
    pool: &'static str,
    outcome: Outcome,
}

pub(super) fn run(options: &Options, found: &mut Found) -> Result<()> {
    let Found { section, files } = found;
    *section = Section::new("Cold starts and latency by policy", "Figs 7, 10 and 11");
    about(section);
    let (mut runs, mut functions) = (Vec::new(), functions_csv());
    for workload in [Workload::at_scale(options)?, Workload::as_the_paper(options)?] {
        section.say(workload.about.clone());
        let first = runs.len();
        for (pool, part) in POOLS {
            for candidate in CANDIDATES {
                match workload.run(&candidate, part, |_| ()) {
                    Ok(outcome) => runs.push(Run { workload: workload.name, candidate, pool, outcome }),
                    Err(error) => {
                        section.warn(format!("{}, {}, {pool}: {error:#}", workload.name, candidate.name));
                    }
                }
            }
        }
        of_functions(&mut functions, &runs[first..], &workload);
        tell(section, &runs[first..], &workload);
    }
    files.push(("runs.csv".into(), of_runs(&runs)));
    files.push(("functions.csv".into(), functions));
    files.push(("cdf.csv".into(), cdf(&runs)));
    live::run(options, section, files)
}

fn about(section: &mut Section) {
    section.say(
        "The controller's own driver and policies in virtual time. Latency is from a request's arrival to its answer, with all it waited: for a start, for memory, for a free \
         sandbox. Percentiles are those of all requests, at 50, 99 and 99.9; none was chosen afterwards. keep-alive: ten minutes, no dedup (the paper's fixed); hybrid: the histogram \
         policy (stands for its adaptive); medes-memory and medes-latency: the paper's P2 and P1. Those called clones start new sandboxes from init snapshots, whichever policy they have.",
    );
    section.warn(
        "The paper's 99.9th percentiles were drawn by a script that looks for percentiles at which Medes wins, without time in queues, and with start-ups above ten seconds \
         left out. They stand here as published; ours are not made that way.",
    );
    section.warn("In a simulation sandboxes of one node do not slow each other down, and the controller takes no time. The traces are not those of the paper, which were not published.");
}

fn percentiles(run: &Run) -> Percentiles {
    run.outcome.answers.percentiles()
}

fn of_runs(runs: &[Run]) -> Csv {
    let mut csv = Csv::new(&[
        "workload",
        "pool",
        "policy",
        "requests",
        "cold",
        "cloned",
        "restored",
        "unparked",
        "warm",
        "refused",
        "answer_p50_ms",
        "answer_p99_ms",
        "answer_p999_ms",
        "answer_max_ms",
        "wait_mean_ms",
        "wait_p99_ms",
        "wait_p999_ms",
        "memory_mean_bytes",
        "memory_max_bytes",
        "sandboxes_max",
        "dedups",
        "parks",
    ]);
    for run in runs {
        let Run { workload, candidate, pool, outcome } = run;
        let (answers, waits) = (percentiles(run), outcome.waits.percentiles());
        let sum: u64 = outcome.bytes.iter().sum();
        csv.push(row![
            *workload,
            *pool,
            candidate.name,
            outcome.requests(),
            outcome.cold,
            outcome.cloned,
            outcome.restored,
            outcome.unparked,
            outcome.warm,
            outcome.refused,
            answers.p50_ms,
            answers.p99_ms,
            answers.p999_ms,
            answers.max_ms,
            waits.mean_ms,
            waits.p99_ms,
            waits.p999_ms,
            sum / outcome.bytes.len().max(1) as u64,
            outcome.bytes.iter().copied().max().unwrap_or(0),
            outcome.sandboxes_max,
            outcome.dedups,
            outcome.parks,
        ]);
    }
    csv
}

fn functions_csv() -> Csv {
    Csv::new(&[
        "workload",
        "pool",
        "policy",
        "number",
        "function",
        "requests",
        "cold",
        "answer_p50_ms",
        "answer_p99_ms",
        "answer_p999_ms",
    ])
}

fn of_functions(csv: &mut Csv, runs: &[Run], workload: &Workload) {
    for Run { candidate, pool, outcome, .. } in runs {
        for (number, of) in &outcome.functions {
            let answers = of.answers.percentiles();
            csv.push(row![
                workload.name,
                *pool,
                candidate.name,
                *number,
                workload.function(*number),
                answers.count,
                of.cold,
                answers.p50_ms,
                answers.p99_ms,
                answers.p999_ms,
            ]);
        }
    }
}

fn cdf(runs: &[Run]) -> Csv {
    let mut csv = Csv::new(&["workload", "pool", "policy", "fraction", "answer_ms"]);
    for Run { workload, candidate, pool, outcome } in runs {
        for (part, ms) in outcome.answers.distribution(CDF_POINTS) {
            csv.push(row![*workload, *pool, candidate.name, part, ms]);
        }
    }
    csv
}

fn tell(section: &mut Section, runs: &[Run], workload: &Workload) {
    let head = [
        "policy",
        "pool",
        "cold",
        "cloned",
        "restored",
        "unparked",
        "refused",
        "p50",
        "p99",
        "p99.9",
        "wait, mean",
        "wait, p99.9",
        "paper, cold",
        "of fixed",
        "paper, of fixed",
    ];
    let mut sheet = Sheet::new(format!("All requests of all functions, {}", workload.name), &head);
    for run in runs {
        let Run { candidate, pool, outcome, .. } = run;
        let answers = percentiles(run);
        let paper = |name| published::value("Fig 10", &format!("cold starts, {pool}"), name);
        let theirs = paper_name(candidate).map_or(f64::NAN, paper);
        let fixed = runs.iter().find(|other| other.pool == *pool && other.candidate.name == KEEP_ALIVE.name);
        let of_fixed = fixed.map_or(f64::NAN, |fixed| outcome.cold as f64 / fixed.outcome.cold as f64);
        let part = |value: f64| if value.is_nan() { "-".into() } else { format!("{value:.2}") };
        let mut cells = vec![candidate.name.to_owned(), (*pool).to_owned()];
        let counts = [outcome.cold, outcome.cloned, outcome.restored, outcome.unparked, outcome.refused];
        cells.extend(counts.map(|count| count.to_string()));
        let waits = outcome.waits.percentiles();
        cells.extend([answers.p50_ms, answers.p99_ms, answers.p999_ms, waits.mean_ms, waits.p999_ms].map(ms));
        cells.push(if theirs.is_nan() { "-".into() } else { format!("{theirs:.0}") });
        cells.extend([part(of_fixed), part(theirs / paper("fixed"))]);
        sheet.push(cells);
    }
    section.sheets.push(sheet);
    // Of a thousand functions the file has them.
    if workload.trace.functions.len() <= BY_FUNCTION_MAX {
        by_function(section, runs, workload);
    }
    drawings(section, runs, workload.name);
    for (pool, _) in POOLS {
        verdicts(section, runs, (workload.name, pool));
    }
}

/// The paper's figure 7: every function in the largest pool, for the policies that it compares, and ours.
fn by_function(section: &mut Section, runs: &[Run], workload: &Workload) {
    let shown: Vec<&Run> = runs
        .iter()
        .filter(|run| {
            run.pool == POOLS[0].0
                && (paper_name(&run.candidate).is_some() || run.candidate.name == OURS.name)
        })
        .collect();
    let head = ["function", "policy", "requests", "cold", "p99.9", "paper, cold", "paper, 99.9p"];
    let mut sheet = Sheet::new(format!("By function, largest pool, {}", workload.name), &head);
    for number in 0..workload.trace.functions.len() as u32 {
        for run in &shown {
            let Some(of) = run.outcome.functions.get(&number) else { continue };
            let (function, answers) = (workload.function(number), of.answers.percentiles());
            let paper = |what: &str| {
                let name = paper_name(&run.candidate).unwrap_or_default();
                let value = published::value("Fig 7", &format!("{what}, {name}"), function);
                if value.is_nan() { "-".into() } else { format!("{value:.0}") }
            };
            sheet.push([
                format!("{function} ({number})"),
                run.candidate.name.into(),
                answers.count.to_string(),
                of.cold.to_string(),
                ms(answers.p999_ms),
                paper("cold starts"),
                paper("99.9p"),
            ]);
        }
    }
    section.sheets.push(sheet);
}

fn drawings(section: &mut Section, runs: &[Run], workload: &str) {
    let largest = runs.iter().filter(|run| run.pool == POOLS[0].0);
    let cdf = largest.map(|run| {
        let points = run.outcome.answers.distribution(CDF_POINTS);
        Line {
            name: run.candidate.name.into(),
            points: points.into_iter().map(|(part, ms)| (ms.log10(), part)).collect(),
        }
    });
    let cdf = Plot {
        title: format!("End-to-end latency, largest pool, {workload}"),
        x: "log10 of milliseconds".into(),
        y: "fraction of requests".into(),
        lines: cdf.collect(),
    };
    section.drawings.push(Drawing::Lines(cdf));
    let by_pool = |title: &str, y: &str, value: &dyn Fn(&Run) -> f64| {
        let line = |candidate: &Candidate| {
            let point = |(pool, part): &(&str, f64)| {
                let run =
                    runs.iter().find(|run| run.pool == *pool && run.candidate.name == candidate.name)?;
                Some((*part, value(run)))
            };
            Line { name: candidate.name.into(), points: POOLS.iter().rev().filter_map(point).collect() }
        };
        let lines = CANDIDATES.iter().map(line).collect();
        let title = format!("{title}, {workload}");
        Drawing::Lines(Plot { title, x: "part of the largest pool".into(), y: y.into(), lines })
    };
    section.drawings.push(by_pool("Cold starts by pool", "requests", &|run| run.outcome.cold as f64));
    section.drawings.push(by_pool("99.9th percentile by pool", "ms", &|run| percentiles(run).p999_ms));
}

/// The paper's policy and ours against each other one that does not dedup.
fn verdicts(section: &mut Section, runs: &[Run], (workload, pool): (&str, &str)) {
    let find = |name: &str| runs.iter().find(|run| run.pool == pool && run.candidate.name == name);
    let pairs = [
        (P2, KEEP_ALIVE.name),
        (P2, ADAPTIVE.name),
        (OURS, "keep-alive, clones"),
        (OURS, "hybrid, clones"),
        (OURS, KEEP_ALIVE.name),
        (OURS, ADAPTIVE.name),
        (OURS, P2.name),
    ];
    for (ours, other) in pairs {
        let (Some(a), Some(b)) = (find(ours.name), find(other)) else {
            section.warn(format!("{pool}: {} and {other} could not be compared", ours.name));
            continue;
        };
        let what = |what: &str| format!("{workload}, {pool} pool, {what}: {} against {other}", ours.name);
        let count = |value: f64| format!("{value:.0}");
        let mut push = |verdict| section.verdicts.push(verdict);
        let (pa, pb) = (percentiles(a), percentiles(b));
        push(Verdict::less(what("cold starts"), (a.outcome.cold as f64, b.outcome.cold as f64), count));
        push(Verdict::less(
            what("new sandboxes, cold and cloned"),
            ((a.outcome.cold + a.outcome.cloned) as f64, (b.outcome.cold + b.outcome.cloned) as f64),
            count,
        ));
        let waits = |run: &Run| run.outcome.waits.percentiles().mean_ms;
        push(Verdict::less(what("mean wait"), (waits(a), waits(b)), ms));
        push(Verdict::less(what("answers, p99"), (pa.p99_ms, pb.p99_ms), ms));
        push(Verdict::less(what("answers, p99.9"), (pa.p999_ms, pb.p999_ms), ms));
    }
    if let (Some(medes), Some(fixed)) = (find(P2.name), find(KEEP_ALIVE.name)) {
        let paper = |name| published::value("Fig 10", &format!("cold starts, {pool}"), name);
        let ours = medes.outcome.cold as f64 / fixed.outcome.cold as f64;
        let what =
            format!("{pool} pool: cold starts of medes-memory by those of keep-alive, against the paper's");
        section.verdicts.push(Verdict::less(what, (ours, paper("Medes") / paper("fixed")), |value| {
            format!("{value:.2}")
        }));
    }
}
