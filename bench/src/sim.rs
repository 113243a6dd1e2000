//! A cluster in virtual time: the real driver and policies of the controller, on arrivals that were recorded, with agents
//! that answer as long after a command as real ones were measured to take.
//!
//! ```text
//! trace ──► arrivals ─┐                       ┌─► counts, waits, memory ──► table, sim.json
//!                     ├─► world ◄─► driver ───┤
//! costs (measured) ───┘   (agents, clock)     └─► what must never happen is checked
//! ```

mod agent;
mod costs;
mod outcome;
mod report;
mod trace;
mod world;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use medes_controller::policy::{FixedSettings, PolicyKind, PolicySettings};
use medes_proto::units::{ByteSize, Span};

use crate::record::write_json;
use costs::Costs;
use report::{Report, Row};
use trace::Trace;
use world::{Settings, World};

/// What to simulate.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests per function and minute, as CSV (also compressed, .zst): a column m<number> for each minute, and one with the
    /// mean duration in milliseconds (Average or avg_ms)
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// What starts, dedups and restores of each function were measured to take: restore.json of `bench restore`
    #[arg(long, value_name = "FILE")]
    costs: PathBuf,
    /// Policies to compare, separated by commas; all of them if absent
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    policies: Vec<PolicyKind>,
    /// Nodes
    #[arg(long, default_value_t = 19, value_parser = clap::value_parser!(u32).range(1..=1000))]
    nodes: u32,
    /// Memory a node may use; several sizes, separated by commas, are compared
    #[arg(long, value_delimiter = ',', default_value = "2GiB", value_name = "SIZES")]
    node_memory: Vec<ByteSize>,
    /// Only the first minutes of the trace
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<usize>,
    /// Minutes at the start whose requests warm up the histograms, and are not counted
    #[arg(long, default_value_t = 0, value_name = "MINUTES")]
    warm_up: usize,
    /// Every function so many times, each with arrivals of its own
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// For the arrivals within a minute
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often agents report
    #[arg(long, default_value = "30s", value_name = "TIME")]
    heartbeat: Span,
    /// policy.idle
    #[arg(long, default_value = "1m", value_name = "TIME")]
    idle: Span,
    /// policy.keep_alive
    #[arg(long, default_value = "10m", value_name = "TIME")]
    keep_alive: Span,
    /// policy.keep_dedup
    #[arg(long, default_value = "15m", value_name = "TIME")]
    keep_dedup: Span,
    /// policy.tail
    #[arg(long, default_value_t = 1.0)]
    tail: f64,
    /// policy.alpha
    #[arg(long, default_value_t = 2.5)]
    alpha: f64,
    /// Idle sandboxes are never deduplicated
    #[arg(long)]
    no_dedup: bool,
    /// Folder for sim.json and sim.html
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let mut trace = Trace::read(&options.trace)?;
    trace.cut(options.minutes);
    trace.repeat(options.times);
    ensure!(options.warm_up < trace.minutes(), "no minute is left after the warm-up");
    let costs = Costs::read(&options.costs)?;
    let policies = match options.policies.is_empty() {
        true => PolicyKind::ALL.to_vec(),
        false => options.policies.clone(),
    };
    let mut report = Report::new(&trace, options);
    let pools = options.node_memory.iter().flat_map(|memory| policies.iter().map(|kind| (memory.0, *kind)));
    for (node_bytes, kind) in pools {
        eprintln!(
            "{kind}, {} nodes of {} MiB: {} functions, {} requests, {} minutes",
            options.nodes,
            node_bytes >> 20,
            trace.functions.len(),
            trace.requests(),
            trace.minutes()
        );
        let settings = Settings {
            nodes: options.nodes,
            node_bytes,
            seed: options.seed,
            heartbeat: options.heartbeat.0,
            warm_up: options.warm_up,
            policy: PolicySettings {
                kind,
                periods: FixedSettings {
                    idle: options.idle.0,
                    keep_alive: options.keep_alive.0,
                    keep_dedup: options.keep_dedup.0,
                    dedup: !options.no_dedup,
                    ..FixedSettings::default()
                },
                alpha: options.alpha,
                tail: options.tail,
                ..PolicySettings::default()
            },
        };
        let start = Instant::now();
        let outcome = World::new(&trace, &costs, settings).run()?;
        report.rows.push(Row::new((kind, node_bytes), &outcome, start.elapsed()));
        write_json(&options.out.join("sim.json"), &report)?;
    }
    let page = options.out.join("sim.html");
    std::fs::write(&page, report.page()).with_context(|| format!("write {}", page.display()))?;
    println!("{}", report.table());
    Ok(ExitCode::SUCCESS)
}
