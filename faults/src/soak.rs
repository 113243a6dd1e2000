//! Mixed load for a long time: sandboxes start, are cloned, parked, put away, brought back and given up all the while, and nothing may grow.
//!
//! Everything that can leak is counted every few seconds. A line through the second half of its counts says how much it grows; that
//! and its bound are printed, and more than the bound is a failure. So is a request that is not answered, or not well.

use std::{
    cell::RefCell,
    fs,
    io::Write as _,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use comfy_table::{Table, presets};
use medes_load::{
    open_loop::{self, Failed, Target},
    schedule::Schedule,
    tally::Tally,
    trace::{Trace, TraceFunction},
};
use medes_proto::{ids::FunctionName, sandbox::StartKind};

use crate::{
    cluster::{Cluster, Kind},
    counts::{self, Sample},
    desk::Desk,
    http::End,
    judge::Lives,
    leftovers,
    places::Places,
};

/// Requests a minute of each function: some are hardly ever idle, some are given up between two.
const RATES: [u32; 7] = [90, 40, 20, 10, 6, 3, 1];
/// So short that everything happens all the time.
const POLICY: [&str; 7] = [
    "park=true",
    "idle=1s",
    "keep_parked=3s",
    "keep_dedup=15s",
    "keep_alive=20s",
    "dump_pause=2s",
    "parked_resident_percent=10",
];
const SAMPLE_EVERY: Duration = Duration::from_secs(5);
const UNDER_WAY_MAX: usize = 64;
const SEED: u64 = 7;
const MEMORY: &str = "256MiB";
/// Fewer samples say nothing of a slope.
const SAMPLES_MIN: usize = 8;

/// Runs it. Whether nothing grew and no answer was wrong.
pub(crate) fn run(places: &Places, minutes: u32) -> Result<bool> {
    let mut cluster = Cluster::start(places, Kind::Usual, 0)?;
    let names = functions(&cluster)?;
    let all: Vec<&str> = ["policy", "set"].into_iter().chain(POLICY).collect();
    cluster.desk.ask(&all)?;
    println!(
        "{minutes} minutes, {} requests a minute of {} functions",
        RATES.iter().sum::<u32>(),
        RATES.len()
    );
    let (tally, samples, wrong) = load(&mut cluster, &names, minutes)?;
    let mark = cluster.desk.mark.clone();
    drop(cluster);
    let left = leftovers::of(&mark);
    left.iter().for_each(|left| println!("left behind: {left}"));
    wrong.iter().for_each(|wrong| println!("WRONG {wrong}"));
    println!("{} requests sent, {} answered, {} not", tally.sent, tally.answers(), tally.failure_count());
    for (kind, failures) in &tally.failures {
        println!("NOT ANSWERED {kind}: {failures:?}");
    }
    ensure!(samples.len() >= SAMPLES_MIN, "too short to say whether anything grows");
    write(places, &samples)?;
    let flat = tell(&samples);
    Ok(flat && wrong.is_empty() && left.is_empty() && tally.failure_count() == 0)
}

fn functions(cluster: &Cluster) -> Result<Vec<FunctionName>> {
    let named = |number: usize| -> Result<FunctionName> {
        let name = format!("soak{number}");
        // One of three cannot be cloned.
        cluster.apply(&name, if number % 3 == 2 { "cold" } else { "auto" }, MEMORY)?;
        name.parse().context("name a function")
    };
    (0..RATES.len()).map(named).collect()
}

/// Requests go to the gateway, each on a thread that may wait.
struct Gateway<'g> {
    desk: &'g Desk,
    lives: Arc<Mutex<Lives>>,
    wrong: RefCell<Vec<String>>,
}

impl Target for Gateway<'_> {
    async fn ask(&self, function: &FunctionName, _number: u64) -> Result<StartKind, Failed> {
        let (desk, path, lives) = (self.desk.clone(), format!("{function}/count"), self.lives.clone());
        let asking = tokio::task::spawn_blocking(move || {
            let asked = desk.post(&path, None);
            let wrong = lives.lock().unwrap_or_else(PoisonError::into_inner).add(&asked);
            (asked, wrong)
        });
        let failed = |kind: &str, message: String| Failed { kind: kind.into(), message };
        let (asked, wrong) = asking.await.map_err(|error| failed("panic", error.to_string()))?;
        self.wrong.borrow_mut().extend(wrong);
        match asked.end {
            End::Answered(answer) => Ok(start_kind(&answer.start)),
            End::Refused { kind, message, .. } => Err(failed(&kind, message)),
            End::Broken(why) => Err(failed("no connection", why)),
            End::Hung => Err(failed("hung", "nothing came".into())),
        }
    }
}

fn start_kind(word: &str) -> StartKind {
    let kinds = [StartKind::Warm, StartKind::Unpark, StartKind::Restore, StartKind::Clone, StartKind::Cold];
    kinds.into_iter().find(|kind| kind.word() == word).unwrap_or_default()
}

type Loaded = (Tally, Vec<Sample>, Vec<String>);

fn load(cluster: &mut Cluster, names: &[FunctionName], minutes: u32) -> Result<Loaded> {
    let functions = RATES.iter().zip(names).map(|(rate, name)| TraceFunction {
        name: name.to_string(),
        execution: Duration::ZERO,
        counts: vec![*rate; minutes as usize],
    });
    let trace = Trace { functions: functions.collect() };
    let dues = Schedule::new(&trace, SEED, 1.0).all();
    let targets: Vec<_> = names.iter().cloned().map(Some).collect();
    let whom = counts::Whom::of(cluster)?;
    let (over, told) = mpsc::sync_channel::<()>(1);
    let sampling = thread::spawn(move || {
        let (begun, mut samples) = (Instant::now(), Vec::new());
        while told.recv_timeout(SAMPLE_EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
            samples.push(whom.count(begun.elapsed()));
        }
        samples
    });
    let gateway = Gateway { desk: &cluster.desk, lives: Arc::default(), wrong: RefCell::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut told_s = 0;
    let loop_ =
        open_loop::run(&dues, &targets, &gateway, UNDER_WAY_MAX, std::future::pending(), |progress| {
            let seconds = progress.elapsed.as_secs();
            if seconds >= told_s + 30 {
                told_s = seconds;
                let (sent, failed) = (progress.tally.sent, progress.tally.failure_count());
                println!(
                    "{seconds:>5} s  {sent} sent, {failed} not answered, {} under way",
                    progress.under_way
                );
            }
        });
    let tally = runtime.context("start the runtime")?.block_on(loop_);
    drop(over);
    let samples = sampling.join().ok().context("the sampling panicked")?;
    Ok((tally, samples, gateway.wrong.into_inner()))
}

/// How much each count grows, and whether that is too much.
fn tell(samples: &[Sample]) -> bool {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["what", "mean", "grew in the second half by", "bound", ""]);
    let half = &samples[samples.len() / 2..];
    let mut flat = true;
    for what in counts::WHAT {
        let points: Vec<(f64, f64)> =
            half.iter().map(|sample| (sample.at.as_secs_f64(), sample.of(what))).collect();
        let growth = counts::growth(&points);
        let bound = what.bound(growth.mean);
        let is_flat = growth.over_all <= bound;
        flat &= is_flat;
        let word = if is_flat { "flat" } else { "GROWS" };
        let number = |value: f64| what.written(value);
        table.add_row([
            what.word().to_owned(),
            number(growth.mean),
            number(growth.over_all),
            number(bound),
            word.to_owned(),
        ]);
    }
    println!("{table}");
    flat
}

/// All counts, for machines: `soak.csv`.
fn write(places: &Places, samples: &[Sample]) -> Result<()> {
    let mut csv = Vec::new();
    let names: Vec<_> = counts::WHAT.iter().map(|what| what.word().replace(' ', "_")).collect();
    writeln!(csv, "seconds,{}", names.join(","))?;
    for sample in samples {
        let values: Vec<_> = counts::WHAT.iter().map(|&what| sample.of(what).to_string()).collect();
        writeln!(csv, "{:.1},{}", sample.at.as_secs_f64(), values.join(","))?;
    }
    fs::create_dir_all(&places.out).context("make the folder of results")?;
    fs::write(places.out.join("soak.csv"), csv).context("write soak.csv")
}
