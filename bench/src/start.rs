//! Every way to a first answer by state: cold, cloned, restored from a dedup image, unparked, warm; and what each state holds.
//!
//! The node is in this process, made of the agent's own library. Pages come back from real recipes against a base of the same
//! function. Each answer is checked to be the next one of the same process.

mod at_once;
mod report;
mod targets;
mod trimmed;

use std::{process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use medes_agent::{
    base, clone, dedupe,
    driver::DedupOrder,
    launch_spec::launch_spec,
    pager::{Counts, Pager},
    park::{self, ParkOrder},
    restore,
    roads::Warm,
    sandbox::Usage,
};
use medes_dedup::page::SnapshotId;
use medes_proto::{function::FunctionSpec, ids::SandboxId, registry::SnapshotPlace, sandbox::Phase};
use tokio_util::sync::CancellationToken;

use crate::{
    experiment::{self, Became, Subjects},
    functions::{self, Candidate, Function},
    station::{
        Station,
        ask::{Reply, ask},
    },
};
use report::{Report, Row};

/// Parks and unparks of which no answer is timed: so often memory must come back.
const CYCLES: u32 = 20;
/// The first ones teach it what is touched.
const TAUGHT: u32 = 2;
/// Of its pages so many may stay, the second time.
const RESIDENT_PERCENT: u32 = 10;
/// The request whose times are compared, the same for every way.
const COMPARED: u64 = 1_000_007;
const QUICK_ROUNDS: u32 = 5;
const QUICK_AT_ONCE: u32 = 8;

/// What to measure, how often, and where to leave it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each way is gone
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// So many are wanted in the same moment, as far as memory has room for them; none for 0
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=1000))]
    at_once: u32,
    /// Few rounds, to see that it works
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    subjects: Subjects,
}

/// What one function brought. Times are in milliseconds.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) cold: Vec<f64>,
    pub(crate) warm: Vec<f64>,
    pub(crate) unpark: Vec<f64>,
    /// The warm request of that same sandbox, right after.
    unpark_warm: Vec<f64>,
    /// The same before it was stored small.
    unpark_soon: Vec<f64>,
    unpark_soon_warm: Vec<f64>,
    /// Pages that each of them gave back and had to wait for.
    unpark_pages: Vec<Counts>,
    /// While some of what is touched had stayed, and the warm request after that.
    unpark_resident: Vec<f64>,
    unpark_resident_warm: Vec<f64>,
    resident_memory: Usage,
    /// Of a warm one of which everything cold was taken, and while it was being taken.
    trimmed: Vec<f64>,
    after_step: Vec<f64>,
    trimmed_memory: Usage,
    trimmed_bytes: u64,
    /// Of many that are wanted in the same moment.
    unpark_at_once: Vec<f64>,
    warm_at_once: Vec<f64>,
    pub(crate) restore: Vec<f64>,
    /// Steps of each restore whose memory comes back whole, before its answer.
    pub(crate) restore_phases: Vec<Vec<Phase>>,
    /// While its memory comes as it is touched.
    restore_late: Vec<f64>,
    pub(crate) clone: Vec<f64>,
    clone_late: Vec<f64>,
    /// After its first answer, as the kernel counts it.
    clone_memory: Usage,
    clone_late_memory: Usage,
    pub(crate) clone_phases: Vec<Vec<Phase>>,
    clone_late_phases: Vec<Vec<Phase>>,
    first_park: Vec<f64>,
    park: Vec<f64>,
    park_phases: Vec<Vec<Phase>>,
    /// Storing it small afterwards.
    shrink: Vec<f64>,
    /// As the kernel counts the sandbox: warm, and parked.
    memory: Option<(Usage, Usage)>,
    parked_bytes: u64,
    /// Before it was stored small.
    parked_soon_bytes: u64,
    dedup_bytes: u64,
    cycles: u32,
}

/// Call it before any thread exists.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (rounds, many) = match options.quick {
        true => (QUICK_ROUNDS, options.at_once.min(QUICK_AT_ONCE)),
        false => (options.rounds, options.at_once),
    };
    let measure = async |station: &mut Station, candidates, report: &mut Report| {
        let pager = station.pager()?;
        measure(station, &pager, candidates, (rounds, many), report).await
    };
    experiment::run(&options.subjects, &functions::with_kinds(), Report::new(rounds), measure)
}

async fn measure(
    station: &mut Station,
    pager: &Pager,
    candidates: Vec<Candidate>,
    often: (u32, u32),
    report: &mut Report,
) -> Result<()> {
    let one =
        async |station: &mut Station, function: &Function| measure_one(station, pager, function, often).await;
    experiment::each(station, candidates, one, |function, became| {
        report.rows.push(match became {
            Became::Measured(done) => Row::measured(function, &done),
            Became::Skipped(reason) => Row::Skipped { function, reason },
            Became::Failed(error) => Row::Failed { function, reason: format!("{error:#}") },
        });
        Ok(())
    })
    .await
}

/// Everything about one function, each way gone `rounds` times, and unparks of `many` at once.
pub(crate) async fn measure_one(
    station: &mut Station,
    pager: &Pager,
    function: &Function,
    (rounds, many): (u32, u32),
) -> Result<Measured> {
    let spec = Arc::new(FunctionSpec::from_toml(&function.toml).context("read its function file")?);
    let mut measured = Measured::default();
    let (sandbox, snapshot) = station.number()?;
    let warm = station.start(sandbox, &spec).await?;
    let init = base::make_init(&station.roads, sandbox, &warm, (snapshot, 1)).await;
    let (init, _) = init.context("make an init snapshot")?;
    station.remove(sandbox, &warm.housing).await?;
    for round in 1..=rounds {
        let put_away = by_dedup(station, &spec, pager, &mut measured);
        put_away.await.with_context(|| format!("cold start, dedup and restore, round {round}"))?;
    }
    for round in 1..=rounds {
        for late in [false, true] {
            station.be_late(late.then_some(pager))?;
            let cloned = by_cloning(station, &spec, (init.id, late), &mut measured);
            cloned.await.with_context(|| format!("clone, round {round}"))?;
        }
    }
    station.be_late(None)?;
    for percent in [0, RESIDENT_PERCENT] {
        let parking = by_parking(station, pager, (&spec, init.id), (rounds, percent), &mut measured);
        parking.await.with_context(|| format!("park and unpark, {percent} percent stay"))?;
    }
    let trimming = trimmed::measure(station, pager, &spec, rounds, &mut measured);
    trimming.await.context("trim")?;
    let at_once = at_once::measure(station, pager, &spec, (init.id, many), &mut measured);
    at_once.await.with_context(|| format!("{many} at once"))?;
    Ok(measured)
}

/// Times a request, and checks that it is the next one of the same process.
async fn timed(warm: &Warm, began: Instant, last: &mut Option<Reply>) -> Result<f64> {
    let reply = ask(&warm.housing, COMPARED).await?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    ensure!(last.as_ref().is_none_or(|last| last.continues_in(&reply)), "an answer of another process");
    *last = Some(reply);
    Ok(took)
}

/// One more sandbox of the init snapshot, until its first answer.
async fn by_cloning(
    station: &mut Station,
    spec: &Arc<FunctionSpec>,
    (of, late): (SnapshotId, bool),
    measured: &mut Measured,
) -> Result<()> {
    let (began, mut last) = (Instant::now(), None);
    let (sandbox, warm, phases) = clone_one(station, spec, of).await?;
    let took = timed(&warm, began, &mut last).await?;
    let (times, memory, steps) = match late {
        true => (&mut measured.clone_late, &mut measured.clone_late_memory, &mut measured.clone_late_phases),
        false => (&mut measured.clone, &mut measured.clone_memory, &mut measured.clone_phases),
    };
    times.push(took);
    *memory = warm.housing.usage();
    steps.push(phases);
    timed(&warm, Instant::now(), &mut last).await?;
    station.remove(sandbox, &warm.housing).await
}

/// One more sandbox of the init snapshot, and how long each step took.
async fn clone_one(
    station: &mut Station,
    spec: &Arc<FunctionSpec>,
    of: SnapshotId,
) -> Result<(SandboxId, Warm, Vec<Phase>)> {
    let (sandbox, _) = station.number()?;
    let node = station.roads.bases.node().clone();
    let launch = launch_spec(spec, sandbox, &node);
    let place = SnapshotPlace { snapshot: of, node, address: String::new() };
    let cloned =
        clone::clone(&station.roads, (&station.host, &launch), (sandbox, spec.clone()), &place).await;
    let (warm, phases) = cloned.map_err(|not| not.error).context("clone")?;
    Ok((sandbox, warm, phases))
}

/// A new sandbox: cold, warm, then away into an image and back, both ways.
async fn by_dedup(
    station: &mut Station,
    spec: &Arc<FunctionSpec>,
    pager: &Pager,
    measured: &mut Measured,
) -> Result<()> {
    let (sandbox, _) = station.number()?;
    let mut last = None;
    let began = Instant::now();
    let warm = station.start(sandbox, spec).await?;
    measured.cold.push(timed(&warm, began, &mut last).await?);
    timed(&warm, Instant::now(), &mut last).await?;
    measured.warm.push(timed(&warm, Instant::now(), &mut last).await?);
    let mut warm = warm;
    for late in [false, true] {
        let stored = dedupe::dedup(&station.roads, sandbox, warm, DedupOrder::default()).await;
        let (stored, deduped) = match stored {
            Ok(done) => done,
            Err(not) => return Err(not.error).context("dedup"),
        };
        measured.dedup_bytes = deduped.stored_bytes;
        station.be_late(late.then_some(pager))?;
        let began = Instant::now();
        let restored = restore::restore(&station.roads, stored, false).await;
        let (back, restored) = restored.map_err(|not| not.error).context("restore")?;
        warm = back;
        let times = if late { &mut measured.restore_late } else { &mut measured.restore };
        times.push(timed(&warm, began, &mut last).await?);
        if !late {
            measured.restore_phases.push(restored.phases);
        }
        station.be_late(None)?;
    }
    station.remove(sandbox, &warm.housing).await
}

/// One sandbox that stays where it is, a clone as most are, parked again and again. Every other time it is wanted back before it was stored small.
async fn by_parking(
    station: &mut Station,
    pager: &Pager,
    (spec, init): (&Arc<FunctionSpec>, SnapshotId),
    (rounds, resident_percent): (u32, u32),
    measured: &mut Measured,
) -> Result<()> {
    let mut last = None;
    let (sandbox, mut warm, _) = clone_one(station, spec, init).await?;
    timed(&warm, Instant::now(), &mut last).await?;
    timed(&warm, Instant::now(), &mut last).await?;
    let (running, never) = (warm.housing.usage(), CancellationToken::new());
    for round in 0..2 * rounds.max(CYCLES) + TAUGHT {
        let began = Instant::now();
        let order = ParkOrder { base: None, resident_percent };
        let parked = park::park(&station.roads, pager, sandbox, warm, (order, &never)).await;
        let deduped = match parked {
            Ok((parked, deduped)) => {
                warm = parked;
                deduped
            }
            Err(not) => return Err(not.error).with_context(|| format!("park, round {round}")),
        };
        let took = began.elapsed().as_secs_f64() * 1e3;
        if resident_percent == 0 {
            let park = if round == 0 { &mut measured.first_park } else { &mut measured.park };
            park.push(took);
            measured.park_phases.push(deduped.phases);
            measured.parked_soon_bytes = deduped.stored_bytes;
            measured.memory = Some((running, warm.housing.usage()));
        } else {
            measured.resident_memory = warm.housing.usage();
        }
        let is_soon = round % 2 == 1;
        if !is_soon {
            let began = Instant::now();
            let bytes = station.shrink_parked(&warm).await?;
            measured.shrink.push(began.elapsed().as_secs_f64() * 1e3);
            if resident_percent == 0 {
                measured.parked_bytes = bytes.unwrap_or(measured.parked_soon_bytes);
            }
        }
        let paged = warm.paged.clone().context("it is parked")?;
        let before = paged.counts();
        let began = Instant::now();
        paged.unpark().await.context("unpark it")?;
        let took = timed(&warm, began, &mut last).await?;
        let brought = paged.counts() - before;
        let after = timed(&warm, Instant::now(), &mut last).await?;
        if round >= TAUGHT {
            let ways = match (resident_percent, is_soon) {
                (0, false) => Some((&mut measured.unpark, &mut measured.unpark_warm)),
                (0, true) => Some((&mut measured.unpark_soon, &mut measured.unpark_soon_warm)),
                (_, false) => Some((&mut measured.unpark_resident, &mut measured.unpark_resident_warm)),
                (_, true) => None,
            };
            if let Some((unpark, warm_after)) = ways {
                unpark.push(took);
                warm_after.push(after);
            }
            if resident_percent == 0 && !is_soon {
                measured.unpark_pages.push(brought);
            }
        }
        measured.cycles += 1;
    }
    station.remove(sandbox, &warm.housing).await
}
