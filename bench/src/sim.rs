//! A cluster in virtual time: the real driver and policies of the controller, on arrivals that were recorded, with agents
//! that answer as long after a command as real ones were measured to take.
//!
//! ```text
//! trace ──► arrivals ─┐                       ┌─► counts, waits, memory ──► table, sim.json
//!                     ├─► world ◄─► driver ───┤
//! model (measured) ───┘   (agents, clock)     └─► what must never happen is checked
//! ```

mod agent;
pub(crate) mod outcome;
mod report;
pub(crate) mod world;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};
use clap::Args;
use medes_controller::{
    driver::Keeping,
    policy::{FixedSettings, PolicyKind, PolicySettings},
};
use medes_load::trace::Trace;
use medes_proto::units::{ByteSize, Span};
use nix::time::{ClockId, clock_gettime};

use crate::{model::Model, record::write_json};
use report::{Report, Row};
use world::{Execution, Settings, Trouble, World};

/// What to simulate.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests per function and minute, as CSV (also compressed, .zst): a column m<number> for each minute, and one with the
    /// mean duration in milliseconds (Average or avg_ms)
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// What sandboxes were measured to take and hold, as `bench calibrate` writes it; the one in the repository if absent
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
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
    /// Also so many times the functions, and so many times the nodes; several, separated by commas, are compared
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "FACTORS", value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: Vec<u32>,
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
    /// Policy `fixed` never deduplicates idle sandboxes (policy.dedup = false)
    #[arg(long)]
    no_dedup: bool,
    /// No init snapshots, and no clones: bases are made of sandboxes that have served (sandboxes.init_snapshots = false)
    #[arg(long)]
    no_init_snapshots: bool,
    /// policy.park
    #[arg(long)]
    park: bool,
    /// policy.keep_parked
    #[arg(long, default_value = "5m", value_name = "TIME")]
    keep_parked: Span,
    /// fleet.base_copies
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    base_copies: u32,
    #[command(flatten)]
    wrong: Wrong,
    /// Folder for sim.json and sim.html
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

/// What goes wrong.
#[derive(Debug, Args)]
struct Wrong {
    /// How often each node ends in a day, on average; it comes back with nothing
    #[arg(long, default_value_t = 0.0, value_name = "RATE", value_parser = rate)]
    fail_nodes: f64,
    /// Until a node that ended is there again
    #[arg(long, default_value = "1m", value_name = "TIME")]
    repair: Span,
    /// The share of nodes that are slow, from 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    slow_nodes: f64,
    /// So many times as long everything takes there
    #[arg(long, default_value_t = 4.0, value_name = "FACTOR", value_parser = factor)]
    slow_factor: f64,
    /// The share of messages between driver and agents, and of requests and answers, that are lost, from 0 to 1
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    lose_messages: f64,
}

fn number(text: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64> {
    let value: f64 = text.parse()?;
    ensure!(range.contains(&value), "not {} to {}", range.start(), range.end());
    Ok(value)
}

fn share(text: &str) -> Result<f64> {
    number(text, 0.0..=1.0)
}

fn rate(text: &str) -> Result<f64> {
    number(text, 0.0..=10_000.0)
}

fn factor(text: &str) -> Result<f64> {
    number(text, 1.0..=1_000.0)
}

impl Wrong {
    fn trouble(&self) -> Trouble {
        Trouble {
            failures_per_day: self.fail_nodes,
            repair: self.repair.0,
            slow_share: self.slow_nodes,
            slow_factor: self.slow_factor,
            lost_share: self.lose_messages,
        }
    }
}

impl Options {
    fn settings(&self, kind: PolicyKind, node_bytes: u64, scale: u32) -> Settings {
        Settings {
            nodes: self.nodes * scale,
            node_bytes,
            empty_bytes: 0,
            seed: self.seed,
            speedup: 1.0,
            lead: Duration::ZERO,
            execution: Execution::OfTrace,
            heartbeat: self.heartbeat.0,
            warm_up: self.warm_up,
            init_snapshots: !self.no_init_snapshots,
            base_copies: self.base_copies,
            policy: PolicySettings {
                kind,
                periods: FixedSettings {
                    idle: self.idle.0,
                    keep_alive: self.keep_alive.0,
                    keep_dedup: self.keep_dedup.0,
                    dedup: !self.no_dedup,
                    ..FixedSettings::default()
                },
                alpha: self.alpha,
                tail: self.tail,
                ..PolicySettings::default()
            },
            keeping: Keeping {
                idle: self.idle.0,
                park: self.park,
                keep_parked: self.keep_parked.0,
                ..Keeping::default()
            },
            trouble: self.wrong.trouble(),
        }
    }
}

/// Of this thread: what else the machine does is not counted.
fn cpu_time() -> Result<Duration> {
    let now = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("read the thread's clock")?;
    Ok(now.into())
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let mut trace = Trace::read(&options.trace)?;
    trace.cut(0, options.minutes);
    trace.repeat(options.times);
    ensure!(options.warm_up < trace.minutes(), "no minute is left after the warm-up");
    let model = Model::open(options.model.as_deref())?;
    let policies = match options.policies.is_empty() {
        true => PolicyKind::ALL.to_vec(),
        false => options.policies.clone(),
    };
    let mut report = Report::new(&trace, &model);
    for scale in &options.scale {
        let mut trace = trace.clone();
        trace.repeat(*scale);
        for (node_bytes, kind) in
            options.node_memory.iter().flat_map(|memory| policies.iter().map(|kind| (memory.0, *kind)))
        {
            let settings = options.settings(kind, node_bytes, *scale);
            eprintln!(
                "{kind}, {} nodes of {} MiB: {} functions, {} requests, {} minutes",
                settings.nodes,
                node_bytes >> 20,
                trace.functions.len(),
                trace.requests(),
                trace.minutes()
            );
            let before = cpu_time()?;
            let outcome = World::new(&trace, &model, settings).run()?;
            let took = cpu_time()?.saturating_sub(before);
            report.rows.push(Row::new((kind, settings.nodes, node_bytes), &outcome, took));
            write_json(&options.out.join("sim.json"), &report)?;
        }
    }
    let page = options.out.join("sim.html");
    std::fs::write(&page, report.page()).with_context(|| format!("write {}", page.display()))?;
    println!("{}", report.table());
    Ok(ExitCode::SUCCESS)
}
