//! The same comparison on a real cluster: real sandboxes under a cap of memory, real requests that come when a trace says.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use medes_controller::policy::FixedSettings;
use medes_load::{made_up, trace::Trace};
use medes_proto::{sandbox::StartKind, units::ByteSize};

use crate::paper::{
    Options,
    csv::{Csv, row},
    section::{Drawing, Section, Sheet, Verdict},
};
use crate::{
    functions::{self, Candidate as Program, Function},
    plot::{Line, Plot},
    replay::{self, First, Plan, Real},
    show::{mib, ms},
};

const NODES: u32 = 2;
/// Small enough that not everything can stay warm.
const NODE_MEMORY: ByteSize = ByteSize(384 << 20);
const FUNCTIONS: usize = 12;
const MINUTES: (usize, usize) = (6, 60);
/// Periods of policies are so many times shorter, too.
const SPEEDUP: f64 = 10.0;
/// Functions of the trace run these in turn: small ones, for two agents share two cores with the load.
const PROGRAMS: [&str; 3] = ["html", "auth", "linalg"];
const CDF_POINTS: usize = 200;

/// Name, `policy.name`, whether idle sandboxes are deduplicated, whether there are init snapshots, whether sandboxes are parked.
const COMPARED: [(&str, &str, bool, bool, bool); 5] = [
    ("keep-alive", "fixed", false, false, false),
    ("hybrid", "hybrid", false, false, false),
    ("medes-memory", "medes-memory", true, false, false),
    ("keep-alive, clones", "fixed", false, true, false),
    ("marginal, clones, park", "marginal", true, true, true),
];

/// Each policy on a cluster of its own, one after the other.
pub(super) fn run(options: &Options, section: &mut Section, files: &mut Vec<(String, Csv)>) -> Result<()> {
    let programs = programs(options)?;
    let trace = trace(options)?;
    let medes = options.places.program("medes")?;
    fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    section.say(format!(
        "Real runs: `medes up` with {NODES} agents of {} each on this machine, requests through the gateway, {} requests of {} functions, {} minutes of the trace played \
         {SPEEDUP} times as fast with the periods of policies as much shorter (idle, keep-alive, keep-dedup). Functions run {} in turn; requests take what these take. \
         Latency is from when a request was due.",
        mib(NODE_MEMORY.0 as f64),
        trace.requests(),
        trace.functions.len(),
        trace.minutes(),
        PROGRAMS.join(", "),
    ));
    section.warn("In the real runs starts take as long as ever while everything else is played faster: a start costs more of an idle period than it would at real speed.");
    let mut runs = Vec::new();
    for compared in COMPARED {
        let (name, _, _, init_snapshots, _) = compared;
        eprintln!("    real: {name}");
        let plan = Plan {
            medes: &medes,
            nodes: NODES,
            node_memory: NODE_MEMORY,
            config: &config(compared),
            first: if init_snapshots { First::Quiet } else { First::Nothing },
            seed: options.seed,
            speedup: SPEEDUP,
            log: &options.out.join("cluster.log"),
        };
        let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
        match runtime.block_on(replay::run(&plan, &trace, &programs)) {
            Ok(real) => runs.push((name, real)),
            Err(error) => section.warn(format!("real run, {name}: {error:#}")),
        }
    }
    files.push(("real.csv".into(), raw(&runs)));
    files.push(("real_minutes.csv".into(), minutes(&runs)));
    files.push(("real_cdf.csv".into(), cdf(&runs)));
    tell(section, &runs);
    Ok(())
}

fn programs(options: &Options) -> Result<Vec<Function>> {
    let names: Vec<String> = PROGRAMS.iter().map(|name| (*name).to_owned()).collect();
    let mut programs = Vec::new();
    for candidate in functions::find(&options.places.functions_dir, &names)? {
        match candidate {
            Program::Ready(function) => programs.push(function),
            Program::Skipped { name, reason } => bail!("{name} cannot run here: {reason}"),
        }
    }
    Ok(programs)
}

/// Of a file those functions that are asked for most; otherwise a made-up one.
fn trace(options: &Options) -> Result<Trace> {
    let minutes = options.by_size(MINUTES.0, MINUTES.1);
    let mut trace = match &options.trace {
        Some(path) => Trace::read(path)?,
        None => made_up::trace(FUNCTIONS as u32, options.from + minutes, options.seed),
    };
    trace.cut(options.from, Some(minutes));
    // The last of those: the most asked would never be idle, and two cores could not serve them.
    trace.most_asked(10 * FUNCTIONS);
    let keep: Vec<_> = trace.functions.into_iter().rev().take(FUNCTIONS).collect();
    Ok(Trace { functions: keep })
}

fn config((_, policy, dedup, init_snapshots, park): (&str, &str, bool, bool, bool)) -> String {
    let fixed = FixedSettings::default();
    let played = |period: Duration| {
        medes_proto::units::Span(Duration::from_millis(period.div_f64(SPEEDUP).as_millis() as u64))
    };
    format!(
        "[sandboxes]\ninit_snapshots = {init_snapshots}\n[fleet]\nbase_copies = 1\n[policy]\nname = \"{policy}\"\ndedup = {dedup}\npark = {park}\n\
         idle = \"{}\"\nkeep_alive = \"{}\"\nkeep_dedup = \"{}\"\n",
        played(fixed.idle),
        played(fixed.keep_alive),
        played(fixed.keep_dedup),
    )
}

const KINDS: [StartKind; 5] =
    [StartKind::Warm, StartKind::Unpark, StartKind::Restore, StartKind::Clone, StartKind::Cold];

fn mean(bytes: &[u64]) -> f64 {
    bytes.iter().map(|bytes| *bytes as f64).sum::<f64>() / bytes.len() as f64
}

fn raw(runs: &[(&str, Real)]) -> Csv {
    let mut csv = Csv::new(&[
        "policy",
        "answered",
        "failed",
        "late",
        "warm",
        "unpark",
        "restore",
        "clone",
        "cold",
        "answer_p50_ms",
        "answer_p99_ms",
        "answer_p999_ms",
        "answer_max_ms",
        "memory_mean_bytes",
    ]);
    for (name, real) in runs {
        let (tally, all) = (&real.tally, real.tally.all());
        let [warm, unpark, restore, clone, cold] = KINDS.map(|kind| tally.of(kind));
        csv.push(row![
            *name,
            tally.answers(),
            tally.failure_count(),
            tally.late,
            warm,
            unpark,
            restore,
            clone,
            cold,
            all.p50_ms,
            all.p99_ms,
            all.p999_ms,
            all.max_ms,
            mean(&real.bytes),
        ]);
    }
    csv
}

fn minutes(runs: &[(&str, Real)]) -> Csv {
    let mut csv = Csv::new(&["policy", "minute", "memory_bytes"]);
    for (name, real) in runs {
        for (minute, bytes) in (1_usize..).zip(&real.bytes) {
            csv.push(row![*name, minute, *bytes]);
        }
    }
    csv
}

fn cdf(runs: &[(&str, Real)]) -> Csv {
    let mut csv = Csv::new(&["policy", "fraction", "answer_ms"]);
    for (name, real) in runs {
        for (part, ms) in real.tally.distribution(CDF_POINTS) {
            csv.push(row![*name, part, ms]);
        }
    }
    csv
}

fn tell(section: &mut Section, runs: &[(&str, Real)]) {
    let head = [
        "policy",
        "answered",
        "failed",
        "warm",
        "unpark",
        "restore",
        "clone",
        "cold",
        "p50",
        "p99",
        "p99.9",
        "memory, mean",
    ];
    let mut sheet = Sheet::new("Real runs on this machine", &head);
    for (name, real) in runs {
        let (tally, all) = (&real.tally, real.tally.all());
        let counts =
            [tally.answers(), tally.failure_count()].into_iter().chain(KINDS.map(|kind| tally.of(kind)));
        let mut cells = vec![(*name).to_owned()];
        cells.extend(counts.map(|count| count.to_string()));
        cells.extend([all.p50_ms, all.p99_ms, all.p999_ms].map(ms));
        cells.push(mib(mean(&real.bytes)));
        sheet.push(cells);
        for (kind, failures) in &tally.failures {
            section.warn(format!(
                "real run, {name}: {} requests failed ({kind}); the first said: {}",
                failures.count, failures.first
            ));
        }
    }
    section.sheets.push(sheet);
    let cdf = runs.iter().map(|(name, real)| {
        let points =
            real.tally.distribution(CDF_POINTS).into_iter().map(|(part, ms)| (ms.log10(), part)).collect();
        Line { name: (*name).into(), points }
    });
    section.drawings.push(Drawing::Lines(Plot {
        title: "Real runs: end-to-end latency".into(),
        x: "log10 of milliseconds".into(),
        y: "fraction of requests".into(),
        lines: cdf.collect(),
    }));
    let find = |name: &str| runs.iter().find(|(one, _)| *one == name).map(|(_, real)| real);
    for (ours, other) in [
        ("medes-memory", "keep-alive"),
        ("medes-memory", "hybrid"),
        ("marginal, clones, park", "keep-alive, clones"),
        ("marginal, clones, park", "keep-alive"),
    ] {
        let (Some(a), Some(b)) = (find(ours), find(other)) else { continue };
        let what = |what: &str| format!("real run, {what}: {ours} against {other}");
        let fresh = |real: &Real| (real.tally.of(StartKind::Cold) + real.tally.of(StartKind::Clone)) as f64;
        let (pa, pb) = (a.tally.all(), b.tally.all());
        let count = |value: f64| format!("{value:.0}");
        section.verdicts.push(Verdict::less(
            what("new sandboxes, cold and cloned"),
            (fresh(a), fresh(b)),
            count,
        ));
        section.verdicts.push(Verdict::less(what("answers, p99"), (pa.p99_ms, pb.p99_ms), ms));
        section.verdicts.push(Verdict::less(what("mean memory"), (mean(&a.bytes), mean(&b.bytes)), mib));
    }
}
