//! What a second dedup saves: pages taken over from the image a sandbox came back from, and hot pages kept whole.
//!
//! Four sandboxes of a function, one for each way, go away and come back in turn, with the same requests in between:
//! what the machine does otherwise falls on all four alike. What an agent does in quiet moments (arming, looking at
//! a window) is done as there and not timed.

mod report;

use std::{process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use medes_agent::{
    base,
    criu::tree,
    dedupe,
    driver::DedupOrder,
    restore,
    roads::{Roads, Warm},
    watch::{
        heat::HeatSettings,
        tracked::{Tracked, Tracking},
        writes,
    },
};
use medes_proto::{function::FunctionSpec, ids::SandboxId};

use crate::{
    experiment::{self, Became, Subjects},
    functions::{Candidate, Function},
    station::{Station, ask::ask},
};
use report::{Cycle, Report, Row, Way};

const USUAL: [&str; 3] = ["html", "linalg", "feature"];

/// How often to measure, and on what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each sandbox goes away and comes back
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Requests between coming back and going away
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    requests: u32,
    #[command(flatten)]
    subjects: Subjects,
}

/// Call it before any thread exists.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    experiment::run(
        &options.subjects,
        &USUAL,
        Report::new(),
        async |station: &mut Station, candidates, report| measure(station, candidates, options, report).await,
    )
}

async fn measure(
    station: &mut Station,
    candidates: Vec<Candidate>,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    let one = async |station: &mut Station, function: &Function| {
        let spec = FunctionSpec::from_toml(&function.toml).context("read its function file")?;
        measure_one(station, Arc::new(spec), Row::new(function.name.clone()), options).await
    };
    experiment::each(station, candidates, one, |_, became| {
        match became {
            Became::Measured(row) => report.rows.push(row),
            Became::Skipped(_) => {}
            Became::Failed(error) => return Err(error),
        }
        Ok(())
    })
    .await
}

/// A sandbox that always goes the same way.
struct Traveller {
    id: SandboxId,
    way: Way,
    warm: Warm,
    /// Requests sent to it.
    asked: u64,
}

async fn measure_one(
    station: &mut Station,
    spec: Arc<FunctionSpec>,
    mut row: Row,
    options: &Options,
) -> Result<Row> {
    let (sandbox, snapshot) = station.number()?;
    let warm = station.start(sandbox, &spec).await?;
    ask(&warm.housing, 0).await?;
    base::make_base(&station.roads, sandbox, &warm, snapshot).await.context("make a base snapshot")?;
    station.remove(sandbox, &warm.housing).await?;
    let tracking = Tracking {
        reaper: station.roads.reaper.clone(),
        program: station.program.clone(),
        settings: HeatSettings::default(),
        way: writes::Way::Protection,
    };
    let mut travellers = Vec::new();
    for way in Way::ALL {
        let (id, _) = station.number()?;
        let mut warm = station.start(id, &spec).await?;
        warm.past.tracked = way.keeps_hot().then(|| Arc::new(Tracked::new(tracking.clone())));
        travellers.push(Traveller { id, way, warm, asked: 0 });
    }
    // The first cycles bring the earlier image, and enough windows to know what is hot.
    let first = HeatSettings::default().windows_min + 1;
    for round in 0..first + options.rounds {
        travellers.rotate_left(1);
        let mut back = Vec::new();
        for traveller in travellers {
            let (traveller, cycle) = there_and_back(&station.roads, traveller, options.requests).await?;
            if round >= first {
                row.add(traveller.way, &cycle);
            }
            back.push(traveller);
        }
        travellers = back;
    }
    for Traveller { id, warm, .. } in travellers {
        station.remove(id, &warm.housing).await?;
    }
    eprintln!("    {} rounds in each of {} ways", options.rounds, Way::ALL.len());
    Ok(row)
}

async fn there_and_back(
    roads: &Roads,
    mut traveller: Traveller,
    requests: u32,
) -> Result<(Traveller, Cycle)> {
    let warm = &mut traveller.warm;
    if let Some(tracked) = &warm.past.tracked {
        tracked.look(&tree::members(warm.tree.pid())?, None).await;
    }
    let mut before = None;
    for _request in 0..requests {
        traveller.asked += 1;
        if let Some(tracked) = &warm.past.tracked {
            tracked.note_request();
        }
        before = Some(ask(&warm.housing, traveller.asked).await?);
    }
    if !traveller.way.takes_over() {
        warm.past.earlier = None;
    }
    let Traveller { id, way, warm, asked } = traveller;
    let began = Instant::now();
    let gone = dedupe::dedup(roads, id, warm, DedupOrder::default()).await;
    let (stored, deduped) = gone.map_err(|not| not.error).context("dedup")?;
    let dedup_ms = began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    let came = restore::restore(roads, stored, false).await;
    let (warm, _) = came.map_err(|not| not.error).context("restore")?;
    let restore_ms = began.elapsed().as_secs_f64() * 1e3;
    let after = ask(&warm.housing, asked).await?;
    ensure!(before.is_some_and(|before| before.continues_in(&after)), "another process answers");
    Ok((Traveller { id, way, warm, asked }, Cycle { dedup_ms, restore_ms, deduped }))
}
