//! Measures the model that simulations play back: what every way to a warm sandbox and away from it takes on real sandboxes, and what they
//! hold.
//!
//! The node is in this process, made of the agent's own library. A start is timed until the sandbox says that it is ready; how much longer
//! than a usual one its first request takes is told apart from that, since a simulated request has a time of its own.

mod round;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use clap::Args;
use medes_agent::{base, pager::Pager, roads::HowRestored};
use medes_proto::{function::FunctionSpec, registry::SnapshotPlace};

use crate::{
    experiment::{self, Became},
    functions::{self, Candidate, Function, Places},
    model::{FunctionModel, Model},
    record::{Record, write_json},
    station::{self, Station, ask::ask},
};
use round::{Bench, Found};

/// Bases and dedups without one: seldom needed, and slow.
const FEW: u32 = 5;
const QUICK_ROUNDS: u32 = 3;

/// What to measure, how often, and where to leave it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each way is gone
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Few rounds, to see that it works
    #[arg(long)]
    quick: bool,
    /// When restored and cloned sandboxes have their memory, as agents are told
    #[arg(long, default_value = "auto")]
    restore: HowRestored,
    /// Only these functions, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    functions: Vec<String>,
    /// The model
    #[arg(long, default_value = "target/bench/model.json", value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// Call it before any thread exists.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let candidates = functions::find(&options.places.functions_dir, &options.functions)?;
    let agent = options.places.program("medes-agent")?;
    experiment::warn_of_debug_build("calibrate");
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let record = Record::here("calibrate");
    let mut model = Model::measured(&record, Vec::new());
    station::at(agent, async |station: &mut Station| {
        let pager = station.pager()?;
        measure(station, &pager, candidates, options, &mut model).await
    })?;
    model.check()?;
    println!("{}\n\nwritten to {}", model.table(), options.out.display());
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    station: &mut Station,
    pager: &Pager,
    candidates: Vec<Candidate>,
    options: &Options,
    model: &mut Model,
) -> Result<()> {
    let one = async |station: &mut Station, function: &Function| {
        let measured = measure_one(station, pager, function, options).await;
        station.be_late(None)?;
        measured
    };
    experiment::each(station, candidates, one, |function, became| {
        match became {
            Became::Measured(measured) => model.functions.push(measured),
            Became::Skipped(_) => return Ok(()),
            Became::Failed(error) => return Err(error.context(format!("measure {function}"))),
        }
        // What was measured is kept, whatever becomes of the next one.
        write_json(&options.out, model)
    })
    .await
}

async fn measure_one(
    station: &mut Station,
    pager: &Pager,
    function: &Function,
    options: &Options,
) -> Result<FunctionModel> {
    let rounds = if options.quick { QUICK_ROUNDS } else { options.rounds };
    let spec = Arc::new(FunctionSpec::from_toml(&function.toml).context("read its function file")?);
    let mut bench = Bench { station, pager, spec, found: Found::default() };
    for round in 1..=rounds.min(FEW) {
        bench.alone().await.with_context(|| format!("dedup without a base, round {round}"))?;
    }
    bases(&mut bench, rounds.min(FEW)).await?;
    let init = init(&mut bench, rounds.min(FEW)).await?;
    bench.station.bring_back(options.restore, pager)?;
    for round in 1..=rounds {
        bench.away(&init).await.with_context(|| format!("dedup and restore, round {round}"))?;
        if !bench.clone(&init).await.with_context(|| format!("clone, round {round}"))? {
            eprintln!("    no clones are made of it");
            break;
        }
    }
    bench.station.be_late(None)?;
    bench.park(&init, rounds).await.context("park and unpark")?;
    bench.dirty(rounds).await.context("watch its writes")?;
    bench.found.model(&function.name)
}

/// Base snapshots of one sandbox that has served.
async fn bases(bench: &mut Bench<'_>, rounds: u32) -> Result<()> {
    let (sandbox, _) = bench.station.number()?;
    let warm = bench.station.start(sandbox, &bench.spec).await?;
    for n in 1..=3 {
        ask(&warm.housing, n).await?;
    }
    for _ in 0..rounds {
        let (_, snapshot) = bench.station.number()?;
        let began = std::time::Instant::now();
        let made = base::make_base(&bench.station.roads, sandbox, &warm, snapshot).await;
        let (report, _) = made.context("make a base snapshot")?;
        bench.found.base.push(round::ms(began));
        bench.found.base_bytes = report.bytes;
    }
    bench.station.remove(sandbox, &warm.housing).await?;
    // What comes next is not made of these.
    bench.station.clear().await
}

/// Init snapshots; the last one stays.
async fn init(bench: &mut Bench<'_>, rounds: u32) -> Result<SnapshotPlace> {
    let mut last = None;
    for _ in 0..rounds {
        bench.station.clear().await?;
        let (sandbox, snapshot) = bench.station.number()?;
        let warm = bench.station.start(sandbox, &bench.spec).await?;
        let began = std::time::Instant::now();
        let made = base::make_init(&bench.station.roads, sandbox, &warm, (snapshot, 1)).await;
        let (report, _) = made.context("make an init snapshot")?;
        bench.found.init.push(round::ms(began));
        bench.found.init_bytes = report.bytes;
        bench.station.remove(sandbox, &warm.housing).await?;
        last = Some(report.id);
    }
    let snapshot = last.context("a round")?;
    let node = bench.station.roads.bases.node().clone();
    Ok(SnapshotPlace { snapshot, node, address: String::new() })
}
