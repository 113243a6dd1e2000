//! What watching costs: warm requests with nobody watching, with the kernel programs, and with writes tracked.
//!
//! One sandbox per function, three ways in turn, many short bursts of requests: what the machine does otherwise falls
//! on all three alike. Tracking is armed once before each burst, as an agent does once per idle period.

mod node;
mod report;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use clap::Args;
use medes_agent::{
    sandbox::enter_private_mounts,
    watch::{CostCount, Group, Key, Wants, Watch, now_ns, writes::Writes},
};
use medes_proto::function::FunctionSpec;

use crate::{
    functions::{self, Candidate, Places},
    record::write_json,
};
use node::{Node, Sandbox};
use report::{Burst, EventCost, Report, Row, Way};

/// What to measure, how often, and where to leave it.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// These functions, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES", default_value = "linalg,feature")]
    functions: Vec<String>,
    /// Bursts of requests, each in all three ways
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    bursts: u32,
    /// Requests of one burst
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    /// Folder for watch.json
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// Call it before any thread exists.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let candidates = functions::find(&options.places.functions_dir, &options.functions)?;
    let agent = options.places.program("medes-agent")?;
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its times say little; use `cargo xtask bench watch`");
    }
    enter_private_mounts()?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let mut report = Report::new();
    let measured = runtime.block_on(async {
        let node = Node::open(agent).await?;
        let measured = measure(&node, candidates, options, &mut report).await;
        // The first error is the one to tell.
        let closed = node.close().await;
        measured.and(closed)
    });
    report.judge();
    // What was measured is kept, even if the end was a bad one.
    write_json(&options.out.join("watch.json"), &report)?;
    println!("{}", report.tables());
    measured?;
    Ok(ExitCode::SUCCESS)
}

async fn measure(
    node: &Node,
    candidates: Vec<Candidate>,
    options: &Options,
    report: &mut Report,
) -> Result<()> {
    for (at, candidate) in candidates.into_iter().enumerate() {
        let name = candidate.name().to_owned();
        eprintln!("{name}");
        match candidate {
            Candidate::Skipped { reason, .. } => eprintln!("    skipped: {reason}"),
            Candidate::Ready(function) => {
                let spec = FunctionSpec::from_toml(&function.toml).context("read its function file")?;
                let sandbox = node.start(u32::try_from(at + 1)?, spec).await?;
                let row = measure_one(node, &sandbox, name, options).await;
                sandbox.remove().await?;
                report.rows.push(row?);
            }
        }
    }
    Ok(())
}

async fn measure_one(node: &Node, sandbox: &Sandbox, name: String, options: &Options) -> Result<Row> {
    let mut row = Row::new(name);
    // Until its caches and heaps have found their size.
    sandbox.burst(options.requests).await?;
    for burst in 0..options.bursts {
        let mut order = Way::ALL;
        order.rotate_left(burst as usize % Way::ALL.len());
        for way in order {
            let measured = match way {
                Way::Off => sandbox.burst(options.requests).await?,
                Way::Ebpf => {
                    let (watch, _key) = watch(sandbox)?;
                    let measured = sandbox.burst(options.requests).await?;
                    drop(watch);
                    measured
                }
                Way::Writes => tracked(node, sandbox, options.requests, &mut row).await?,
            };
            row.add(way, measured);
        }
    }
    eprintln!("    {}", row.line());
    // Last, and apart: counting the programs' time costs time itself.
    row.events = count_events(sandbox, options.requests).await?;
    Ok(row)
}

/// What each kernel program costs per event, faults included, over one burst.
async fn count_events(sandbox: &Sandbox, requests: u32) -> Result<Vec<EventCost>> {
    let (mut watch, key) = watch(sandbox)?;
    watch.want_faults(key, Wants { events: true, heat: true }).context("ask for faults")?;
    let count = CostCount::begin().context("count the cost of programs")?;
    sandbox.burst(requests).await?;
    drop(count);
    let costs = watch.costs().into_iter().filter(|cost| cost.runs > 0);
    Ok(costs.map(EventCost::from).collect())
}

/// The kernel programs, with this sandbox in their table.
fn watch(sandbox: &Sandbox) -> Result<(Watch, Key)> {
    let mut watch =
        Watch::ebpf(medes_agent::watch::Options::default()).context("load the kernel programs")?;
    let cgroup = sandbox.housing.cgroup();
    let group = Group { cgroup_id: cgroup.id(), procs: cgroup.main_dir().join("cgroup.procs") };
    let key = watch.add(group, now_ns()).context("watch the sandbox")?;
    Ok((watch, key))
}

/// A burst with writes tracked, armed once before it.
async fn tracked(node: &Node, sandbox: &Sandbox, requests: u32, row: &mut Row) -> Result<Burst> {
    let begun = Instant::now();
    let writes = Writes::begin(&node.reaper, &node.program, sandbox.tree.pid()).await?;
    row.begin_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    row.stopped_ms.push(writes.stopped().as_secs_f64() * 1e3);
    let begun = Instant::now();
    let armed = writes.take()?;
    row.first_take_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    row.private_pages.push(armed.pages() as f64);
    let measured = sandbox.burst(requests).await?;
    let begun = Instant::now();
    let written = writes.take()?;
    row.take_ms.push(begun.elapsed().as_secs_f64() * 1e3);
    row.written_pages.push(written.pages() as f64);
    Ok(measured)
}
