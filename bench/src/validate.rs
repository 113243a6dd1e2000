//! Holds a simulation against a real run: the same requests at the same moments, once through `medes up` on this machine, and once in
//! virtual time, with the same policy and the times and sizes that were measured.
//!
//! Each function of the trace is deployed as a function of its own, whose program is that of one of the benchmark functions in turn.
//! Requests take as long as that program does; what the trace says of their time is not used.

mod report;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use medes_controller::{
    driver::Keeping,
    policy::{FixedSettings, PolicyKind, PolicySettings},
};
use medes_load::{made_up, trace::Trace};
use medes_proto::units::{ByteSize, Span};

use crate::{
    experiment,
    functions::{self, Candidate, Function, Places},
    model::Model,
    record::write_json,
    replay::{self, First, Plan},
    sim::world::{Execution, Settings, Trouble, World},
};
use report::Report;

/// As the controller has it by default.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What is asked of both.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The programs that functions of the trace run in turn
    #[arg(long, value_delimiter = ',', default_value = "vanilla,html,auth,linalg", value_name = "NAMES")]
    functions: Vec<String>,
    /// Arrivals, in the format of `bench sim`; made up if absent
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// How many functions a made-up trace has; of a file so many from its beginning
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=64))]
    count: u32,
    /// The first minute of the trace
    #[arg(long, default_value_t = 0, value_name = "MINUTE")]
    from: usize,
    /// How many of its minutes
    #[arg(long, default_value_t = 60, value_name = "MINUTES")]
    minutes: usize,
    /// So many times as fast; idle, keep_alive and keep_dedup are so much shorter, too
    #[arg(long, default_value_t = 10.0, value_name = "FACTOR")]
    speedup: f64,
    /// For the arrivals
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Agents
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    nodes: u32,
    /// Memory of each
    #[arg(long, default_value = "4GiB", value_name = "SIZE")]
    node_memory: ByteSize,
    /// What sandboxes take and hold; the built-in model if absent
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// policy.name
    #[arg(long, default_value = "fixed", value_name = "NAME")]
    policy: PolicyKind,
    /// policy.park
    #[arg(long)]
    park: bool,
    /// sandboxes.init_snapshots = false
    #[arg(long)]
    no_init_snapshots: bool,
    /// Folder for validate.json and validate.html
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// Periods of the trace's time, as long as they are when it is played.
struct Periods {
    idle: Duration,
    keep_alive: Duration,
    keep_dedup: Duration,
    keep_parked: Duration,
}

impl Options {
    fn periods(&self) -> Periods {
        let (fixed, keeping) = (FixedSettings::default(), Keeping::default());
        // A controller's configuration knows whole milliseconds.
        let played =
            |period: Duration| Duration::from_millis(period.div_f64(self.speedup).as_millis() as u64);
        Periods {
            idle: played(fixed.idle),
            keep_alive: played(fixed.keep_alive),
            keep_dedup: played(fixed.keep_dedup),
            keep_parked: played(keeping.keep_parked),
        }
    }

    /// What the controller is told.
    fn config(&self) -> String {
        let Periods { idle, keep_alive, keep_dedup, keep_parked } = self.periods();
        format!(
            "[sandboxes]\ninit_snapshots = {}\n[fleet]\nbase_copies = 1\n[policy]\nname = \"{}\"\npark = {}\nidle = \"{}\"\n\
             keep_alive = \"{}\"\nkeep_dedup = \"{}\"\nkeep_parked = \"{}\"\n",
            !self.no_init_snapshots,
            self.policy,
            self.park,
            Span(idle),
            Span(keep_alive),
            Span(keep_dedup),
            Span(keep_parked),
        )
    }

    /// The same for the simulation. What a node holds before anything is started, and for how long nothing is asked of it, the
    /// real run has shown.
    fn settings(&self, empty_bytes: u64, lead: Duration) -> Settings {
        let Periods { idle, keep_alive, keep_dedup, keep_parked } = self.periods();
        let periods = FixedSettings { idle, keep_alive, keep_dedup, ..FixedSettings::default() };
        Settings {
            nodes: self.nodes,
            node_bytes: self.node_memory.0,
            empty_bytes,
            seed: self.seed,
            speedup: self.speedup,
            lead,
            execution: Execution::OfModel,
            heartbeat: HEARTBEAT,
            warm_up: 0,
            init_snapshots: !self.no_init_snapshots,
            base_copies: 1,
            policy: PolicySettings { kind: self.policy, periods, ..PolicySettings::default() },
            keeping: Keeping { idle, park: self.park, keep_parked, ..Keeping::default() },
            trouble: Trouble::default(),
        }
    }

    fn trace(&self) -> Result<Trace> {
        let mut trace = match &self.trace {
            Some(path) => Trace::read(path)?,
            None => made_up::trace(self.count, self.from + self.minutes, self.seed),
        };
        trace.functions.truncate(self.count as usize);
        trace.cut(self.from, Some(self.minutes));
        ensure!(trace.requests() > 0, "there is no request in these minutes");
        Ok(trace)
    }
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    ensure!((0.1..=1_000.0).contains(&options.speedup), "a speed-up is 0.1 to 1000");
    experiment::warn_of_debug_build("validate");
    let trace = options.trace()?;
    let model = Model::open(options.model.as_deref())?.only(&options.functions)?;
    let mut programs = Vec::new();
    for candidate in functions::find(&options.places.functions_dir, &options.functions)? {
        match candidate {
            Candidate::Ready(function) => programs.push(function),
            Candidate::Skipped { name, reason } => bail!("{name} cannot run here: {reason}"),
        }
    }
    // In the order in which they were named, which the model has, too.
    let place = |function: &Function| options.functions.iter().position(|name| *name == function.name);
    programs.sort_by_key(place);
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let (medes, log) = (options.places.program("medes")?, options.out.join("cluster.log"));
    let plan = Plan {
        medes: &medes,
        nodes: options.nodes,
        node_memory: options.node_memory,
        config: &options.config(),
        first: if options.no_init_snapshots { First::Nothing } else { First::Snapshots },
        seed: options.seed,
        speedup: options.speedup,
        log: &log,
    };
    let real = runtime.block_on(replay::run(&plan, &trace, &programs))?;
    drop(runtime);
    let settings = options.settings(real.empty_bytes, real.lead);
    let simulated = World::new(&trace, &model, settings).run().context("simulate the same")?;
    let report = Report::new(&trace, &model, options.speedup, &real, &simulated);
    write_json(&options.out.join("validate.json"), &report)?;
    let page = options.out.join("validate.html");
    std::fs::write(&page, report.page()).with_context(|| format!("write {}", page.display()))?;
    println!("{}", report.text());
    Ok(ExitCode::SUCCESS)
}
