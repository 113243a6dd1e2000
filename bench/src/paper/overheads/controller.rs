//! A controller that knows of many sandboxes, and nothing else: how much memory that takes.

use std::fs;

use anyhow::{Context, Result, ensure};
use medes_controller::{
    driver::{ConnectionId, Driver, Event, Settings},
    now::Now,
    policy::PolicySettings,
};
use medes_proto::{
    fleet::{Hello, Inventory, NodeMemory},
    function::FunctionSpec,
    ids::{FunctionName, SandboxId},
    sandbox::{SandboxReport, SandboxState},
};

/// Sandboxes of one node, well within what a message may hold.
const PER_NODE: usize = 1_000;
const FUNCTIONS: usize = 10;
const NODE_BYTES: u64 = 64 << 30;
const SANDBOX_BYTES: u64 = 2 << 20;

/// Bytes that this process grows by for each of so many sandboxes.
pub(super) fn bytes_of_a_sandbox(count: usize) -> Result<f64> {
    let names: Vec<FunctionName> = (0..FUNCTIONS)
        .map(|number| format!("f{number}").parse())
        .collect::<Result<_, _>>()
        .context("name functions")?;
    let specs = names.iter().map(|name| {
        let spec = FunctionSpec::from_toml(&format!("name = '{name}'\ncommand = ['x']"));
        spec.map(|spec| (spec, 1)).context("make a function")
    });
    let specs: Vec<_> = specs.collect::<Result<_>>()?;
    let settings = Settings { nodes_max: count.div_ceil(PER_NODE), ..Settings::default() };
    let mut driver = Driver::new(Now::START, settings, PolicySettings::default().build(), specs);
    let before = resident()?;
    let mut actions = Vec::new();
    for node in 0..count.div_ceil(PER_NODE) {
        let hello = hello(node, PER_NODE.min(count - node * PER_NODE), &names)?;
        let connection = ConnectionId(node as u64 + 1);
        driver.apply(Now::START, Event::Attached { connection, hello: Box::new(hello) }, &mut actions);
        actions = Vec::new();
    }
    let after = resident()?;
    let known: usize = names.iter().map(|name| driver.sandboxes_of(name)).sum();
    ensure!(known == count, "the driver knows of {known} sandboxes and was told of {count}");
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

fn hello(node: usize, count: usize, names: &[FunctionName]) -> Result<Hello> {
    let sandbox = |number: usize| {
        let id = u32::try_from(node * PER_NODE + number + 1).ok().and_then(|number| SandboxId::of(1, number));
        let id = id.context("too many sandboxes")?;
        let report = SandboxReport::new(id, names[number % names.len()].clone(), 1, SandboxState::Dedup);
        Ok(SandboxReport { stored_bytes: SANDBOX_BYTES, ..report })
    };
    let inventory = Inventory {
        memory: NodeMemory {
            used_bytes: count as u64 * SANDBOX_BYTES,
            cap_bytes: NODE_BYTES,
            ..NodeMemory::default()
        },
        sandboxes: (0..count).map(sandbox).collect::<Result<_>>()?,
        snapshots: Vec::new(),
        keys: Vec::new(),
    };
    Ok(Hello {
        node: format!("n{node}").parse().context("name a node")?,
        incarnation: 1,
        version: env!("CARGO_PKG_VERSION").into(),
        address: format!("n{node}:1"),
        inventory,
        lacks: Vec::new(),
    })
}

/// Memory of this process that is there.
fn resident() -> Result<u64> {
    let text = fs::read_to_string("/proc/self/status").context("read this process's memory")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no such field")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().context("read a size")?;
    Ok(kilobytes * 1024)
}
