//! What watching costs: warm requests with nobody watching, with the kernel programs as an agent has them, with every fault
//! followed, and with writes tracked.
//!
//! One sandbox per function, all ways in turn, many short bursts of requests: what the machine does otherwise falls
//! on all alike. An agent follows the faults of the first request after a look, and arms the tracking at each look: here each
//! burst is one such period.

mod report;

use std::{process::ExitCode, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use clap::Args;
use medes_agent::{
    roads::Warm,
    watch::{CostCount, Group, Key, Wants, Watch, now_ns, writes::Writes},
};
use medes_proto::function::FunctionSpec;

use crate::{
    experiment::{self, Subjects},
    functions::Candidate,
    station::{Station, ask::ask},
};
use report::{Burst, EventCost, Report, Row, Way};

/// The functions the design has a target for.
const USUAL: [&str; 2] = ["linalg", "feature"];

/// How often to measure, and on what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Bursts of requests, each in all ways
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    bursts: u32,
    /// Requests of one burst
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
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
    for candidate in candidates {
        let name = candidate.name().to_owned();
        eprintln!("{name}");
        match candidate {
            Candidate::Skipped { reason, .. } => eprintln!("    skipped: {reason}"),
            Candidate::Ready(function) => {
                let spec = FunctionSpec::from_toml(&function.toml).context("read its function file")?;
                let (sandbox, _) = station.number()?;
                let warm = station.start(sandbox, &Arc::new(spec)).await?;
                let row = measure_one(station, &warm, name, options).await;
                station.remove(sandbox, &warm.housing).await?;
                report.rows.push(row?);
            }
        }
    }
    Ok(())
}

async fn measure_one(station: &Station, warm: &Warm, name: String, options: &Options) -> Result<Row> {
    let mut row = Row::new(name);
    // Until its caches and heaps have found their size.
    burst(warm, options.requests).await?;
    for round in 0..options.bursts {
        let mut order = Way::ALL;
        order.rotate_left(round as usize % Way::ALL.len());
        // Forward and back, so that no way has always the same one before it.
        if round % 2 == 1 {
            order.reverse();
        }
        for way in order {
            let measured = match way {
                Way::Off => {
                    settle(warm).await?;
                    burst(warm, options.requests).await?
                }
                Way::Ebpf | Way::Faults => {
                    let (mut watch, key) = watch(warm)?;
                    let (measured, switched) = watched(&mut watch, key, warm, options.requests, way).await?;
                    row.switched_ms.extend(switched);
                    measured
                }
                Way::Writes => tracked(station, warm, options.requests, &mut row).await?,
            };
            row.add(way, measured);
        }
    }
    eprintln!("    {}", row.line());
    // Last, and apart: counting the programs' time costs time itself.
    (row.ebpf_cost.cpu_percent, row.ebpf_cost.events) =
        count_events(warm, options.requests, Way::Ebpf).await?;
    (row.faults_cost.cpu_percent, row.faults_cost.events) =
        count_events(warm, options.requests, Way::Faults).await?;
    Ok(row)
}

/// A burst of requests under the kernel programs; and how long it took to say that faults are wanted, and no more. An agent
/// says so between requests, as here: that time is not a request's.
async fn watched(
    watch: &mut Watch,
    key: Key,
    warm: &Warm,
    requests: u32,
    way: Way,
) -> Result<(Burst, Vec<f64>)> {
    let (events, heat) = (true, way == Way::Faults);
    settle(warm).await?;
    let begun = Instant::now();
    watch.want_faults(key, Wants { events, heat }).context("ask for faults")?;
    let mut switched_ms = vec![begun.elapsed().as_secs_f64() * 1e3];
    let first = burst(warm, 1).await?;
    if way == Way::Ebpf {
        let begun = Instant::now();
        watch.want_faults(key, Wants::default()).context("ask for no more faults")?;
        switched_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        watch.faults(usize::MAX);
    }
    let mut all = burst(warm, requests.saturating_sub(1)).await?;
    all.seconds += first.seconds;
    all.request_ms.extend(first.request_ms);
    Ok((all, switched_ms))
}

/// What the kernel programs cost over one burst: percent of its time on one CPU, and each per event.
async fn count_events(warm: &Warm, requests: u32, way: Way) -> Result<(f64, Vec<EventCost>)> {
    let (mut watch, key) = watch(warm)?;
    let count = CostCount::begin().context("count the cost of programs")?;
    let (measured, _) = watched(&mut watch, key, warm, requests, way).await?;
    drop(count);
    let costs: Vec<_> = watch.costs().into_iter().filter(|cost| cost.runs > 0).collect();
    let seconds: f64 = costs.iter().map(|cost| cost.time.as_secs_f64()).sum();
    Ok((seconds / measured.seconds * 100.0, costs.into_iter().map(EventCost::from).collect()))
}

/// The kernel programs, with this sandbox in their table.
fn watch(warm: &Warm) -> Result<(Watch, Key)> {
    let mut watch =
        Watch::ebpf(medes_agent::watch::Options::default()).context("load the kernel programs")?;
    watch.load_faults().context("load the kernel programs for faults")?;
    let cgroup = warm.housing.cgroup();
    let group = Group { cgroup_id: cgroup.id(), procs: cgroup.main_dir().join("cgroup.procs") };
    let key = watch.add(group, now_ns()).context("watch the sandbox")?;
    Ok((watch, key))
}

/// A burst with writes tracked, armed once before it.
async fn tracked(station: &Station, warm: &Warm, requests: u32, row: &mut Row) -> Result<Burst> {
    settle(warm).await?;
    let begun = Instant::now();
    let writes = Writes::begin(&station.roads.reaper, &station.program, warm.tree.pid()).await?;
    row.begin_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    row.stopped_ms.push(writes.stopped().as_secs_f64() * 1e3);
    let begun = Instant::now();
    let armed = writes.take()?;
    row.first_take_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    row.private_pages.push(armed.pages() as f64);
    // No request to settle here: it would be the one that pays for the arming.
    let measured = burst(warm, requests).await?;
    let begun = Instant::now();
    let written = writes.take()?;
    row.take_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    row.written_pages.push(written.pages() as f64);
    Ok(measured)
}

/// A request that does not count: programs have just been loaded, and those of the burst before are being freed.
async fn settle(warm: &Warm) -> Result<()> {
    burst(warm, 1).await.map(drop)
}

/// Requests one after the other.
async fn burst(warm: &Warm, requests: u32) -> Result<Burst> {
    let mut request_ms = Vec::with_capacity(requests as usize);
    let began = Instant::now();
    for n in 1..=u64::from(requests) {
        let asked = Instant::now();
        ask(&warm.housing, n).await?;
        request_ms.push(asked.elapsed().as_secs_f64() * 1e3);
    }
    Ok(Burst { seconds: began.elapsed().as_secs_f64(), request_ms })
}
