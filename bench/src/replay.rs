//! A trace on a real cluster of this machine: requests when they are due, memory at the end of each minute of the trace.

use std::{future::pending, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use medes_load::{
    open_loop::{self, Failed, Progress, Target},
    schedule::Schedule,
    tally::Tally,
    trace::Trace,
};
use medes_proto::{function::FunctionSpec, ids::FunctionName, sandbox::StartKind, units::ByteSize};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    cluster::{self, Cluster},
    control::Control,
    functions::Function,
    gateway,
    processes::{self, Process},
};

/// What two cores can do with at a time.
const UNDER_WAY_MAX: usize = 64;
/// Longer than a start of the largest function takes on a busy machine, and its dump.
const SETTLE_MAX: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(200);
/// Quiet for so long: all is done that follows from a function being new.
const QUIET: Duration = Duration::from_secs(5);

/// What is asked of a cluster, and how it is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'p> {
    /// The program `medes`.
    pub(crate) medes: &'p Path,
    pub(crate) nodes: u32,
    /// Memory of each.
    pub(crate) node_memory: ByteSize,
    /// The controller's configuration file.
    pub(crate) config: &'p str,
    /// What is waited for before the first request.
    pub(crate) first: First,
    /// For the arrivals within a minute.
    pub(crate) seed: u64,
    /// So many times as fast as the trace.
    pub(crate) speedup: f64,
    /// What the cluster says goes to this file.
    pub(crate) log: &'p Path,
}

/// What is waited for when functions are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    Nothing,
    /// Each has its init snapshot, and nothing more happens.
    Snapshots,
    /// Nothing more happens: where memory is short not all have one.
    Quiet,
}

/// What a real run came to.
pub(crate) struct Real {
    pub(crate) tally: Tally,
    /// Memory of all nodes at the end of each minute of the trace.
    pub(crate) bytes: Vec<u64>,
    /// What of it was what.
    pub(crate) parts: Vec<Parts>,
    pub(crate) nodes: u32,
    /// Of one node before anything was started.
    pub(crate) empty_bytes: u64,
    /// Between the moment at which functions were new and the first minute.
    pub(crate) lead: Duration,
    /// For how long requests came.
    pub(crate) length: Duration,
    /// Controller and agents, before the first request and after the last answer.
    pub(crate) processes: (Vec<Process>, Vec<Process>),
}

/// Memory of all nodes, as agents tell it apart.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    /// Agents and their helpers, with all that they keep in their own memory.
    pub(crate) agents: u64,
    /// Of that: base snapshots.
    pub(crate) bases: u64,
    /// Of that: dedup images.
    pub(crate) images: u64,
}

struct Gateway<'g>(&'g str);

impl Target for Gateway<'_> {
    async fn ask(&self, function: &FunctionName, number: u64) -> Result<StartKind, Failed> {
        let body = format!("{{\"n\": {number}}}");
        let answer = gateway::invoke(self.0, function.as_str(), None, body).await;
        let failed = |error: anyhow::Error| Failed { kind: "failed".into(), message: format!("{error:#}") };
        let answer = answer.map_err(failed)?;
        StartKind::from_word(&answer.start)
            .ok_or_else(|| failed(anyhow::anyhow!("no kind of start is called {:?}", answer.start)))
    }
}

pub(crate) async fn run(plan: &Plan<'_>, trace: &Trace, programs: &[Function]) -> Result<Real> {
    let (cap, work) = (plan.node_memory.to_string(), async |cluster: &Cluster| {
        measure(cluster, plan, trace, programs).await.context("run the trace")
    });
    cluster::on_one((plan.medes, plan.log), (plan.nodes, plan.config), &["--memory-cap", &cap], work).await
}

async fn measure(cluster: &Cluster, plan: &Plan<'_>, trace: &Trace, programs: &[Function]) -> Result<Real> {
    let mut control = Control::connect(&cluster.addresses.control).await?;
    control.wait_for_nodes(plan.nodes as usize).await?;
    let empty_bytes = used(&mut control).await? / u64::from(plan.nodes);
    let began = Instant::now();
    let mut targets = Vec::new();
    for (number, program) in (0..trace.functions.len()).zip(programs.iter().cycle()) {
        let name: FunctionName = format!("f{number}").parse().context("name a function")?;
        let spec = FunctionSpec::from_toml(&program.toml).context("read its function file")?;
        control.apply(FunctionSpec { name: name.clone(), ..spec }.to_toml()).await?;
        targets.push(Some(name));
    }
    match plan.first {
        First::Nothing => {}
        First::Snapshots => settle(&mut control, trace.functions.len()).await?,
        First::Quiet => settle(&mut control, 0).await?,
    }
    let dues = Schedule::new(trace, plan.seed, plan.speedup).all();
    let length = Duration::from_secs(60).mul_f64(trace.minutes() as f64 / plan.speedup);
    eprintln!("{} requests in {} s", dues.len(), length.as_secs());
    let lead = began.elapsed();
    let minute = Schedule::new(trace, plan.seed, plan.speedup).minute();
    let gateway = Gateway(&cluster.addresses.gateway);
    let tell = |progress: &Progress<'_>| {
        if progress.elapsed.as_secs().is_multiple_of(30) {
            let failed = progress.tally.failure_count();
            eprintln!("    {:>4} s, {} left, {failed} failed", progress.elapsed.as_secs(), progress.left);
        }
    };
    let before = processes::of(cluster.pid())?;
    let load = open_loop::run(&dues, &targets, &gateway, UNDER_WAY_MAX, pending(), tell);
    let (tally, seen) = tokio::join!(load, watch(&mut control, trace.minutes(), minute));
    let (bytes, parts) = seen?;
    let processes = (before, processes::of(cluster.pid())?);
    Ok(Real { tally, bytes, parts, nodes: plan.nodes, empty_bytes, lead, length, processes })
}

/// Waits until there are so many snapshots and nothing more happens.
async fn settle(control: &mut Control, functions: usize) -> Result<()> {
    let began = Instant::now();
    let (mut quiet_since, mut before) = (Instant::now(), 0);
    while quiet_since.elapsed() < QUIET {
        let view = control.view().await?;
        let snapshots: usize = view.nodes.iter().map(|node| node.snapshots.len()).sum();
        if snapshots < functions || snapshots != before {
            (quiet_since, before) = (Instant::now(), snapshots);
        }
        if began.elapsed() > SETTLE_MAX {
            bail!(
                "{snapshots} of {functions} functions have an init snapshot after {} s",
                SETTLE_MAX.as_secs()
            );
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Memory of all nodes at the end of each minute.
async fn watch(control: &mut Control, minutes: usize, minute: Duration) -> Result<(Vec<u64>, Vec<Parts>)> {
    let (began, mut bytes, mut parts) = (Instant::now(), Vec::new(), Vec::new());
    for number in 1..=minutes as u32 {
        sleep_until(began + minute * number).await;
        let nodes = control.view().await?.nodes;
        let memory = || nodes.iter().filter_map(|node| node.memory.as_ref());
        bytes.push(memory().map(|memory| memory.used_bytes).sum());
        parts.push(Parts {
            agents: memory().map(|memory| memory.agent_bytes).sum(),
            bases: memory().map(|memory| memory.base_bytes).sum(),
            images: memory().map(|memory| memory.image_bytes).sum(),
        });
    }
    Ok((bytes, parts))
}

/// As the last heartbeats have it.
async fn used(control: &mut Control) -> Result<u64> {
    let nodes = control.view().await?.nodes;
    Ok(nodes.iter().filter_map(|node| node.memory.as_ref()).map(|memory| memory.used_bytes).sum())
}
