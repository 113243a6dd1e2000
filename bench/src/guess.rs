//! Whether one tenant can find out what another one has in memory: it holds a guess, has it deduplicated and restored, and looks at how
//! much was stored and how long that took. On a cluster of this machine, through its public interfaces.
//!
//! The other tenant's sandbox is a base, and in dedup: its pages are where every dedup looks for the same ones. The same is done by
//! another function of the tenant itself, which must see the difference.

mod report;
mod round;
mod statistic;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use clap::Args;
use medes_load::dice::Dice;
use medes_proto::{function::FunctionSpec, ids::SandboxId};

use crate::{
    cluster::{self, Cluster},
    control::Control,
    experiment,
    functions::{self, Candidate, Places},
    record::write_json,
};
use report::{Asked, Guesses, Report};
use round::{hold, round};
use statistic::shuffle;

/// Nothing happens but what is asked for.
const CONFIG: &str = "[sandboxes]\ninit_snapshots = false\n[fleet]\nbase_copies = 1\n[policy]\nname = \"fixed\"\nidle = \"6h\"\n\
                      keep_alive = \"6h\"\nkeep_dedup = \"6h\"\n";
/// Whose function is whose tenant's.
const FUNCTIONS: [(&str, &str); 3] = [("secret", "victim"), ("other", "attacker"), ("own", "victim")];

/// How often, and where to leave the figures.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Right and wrong guesses of each
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(8..=1_000))]
    rounds: u32,
    /// Memory that is guessed
    #[arg(long, default_value_t = 4, value_name = "MIB", value_parser = clap::value_parser!(u32).range(1..=64))]
    mib: u32,
    /// For the order, and for what is guessed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Folder for guess.json
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    experiment::warn_of_debug_build("guess");
    let mut spec = match functions::guess(&options.places)? {
        Candidate::Ready(function) => {
            FunctionSpec::from_toml(&function.toml).context("read its function file")?
        }
        Candidate::Skipped { name, reason } => bail!("{name} cannot run here: {reason}"),
    };
    spec.env.insert("GUESS_MIB".into(), options.mib.to_string());
    spec.memory_bytes += u64::from(options.mib) << 20;
    std::fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let (medes, log) = (options.places.program("medes")?, options.out.join("cluster.log"));
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let work = async |cluster: &Cluster| measure(cluster, options, &spec).await;
    let (other, own) = runtime.block_on(cluster::on_one((&medes, &log), (1, CONFIG), &[], work))?;
    let asked = Asked { rounds: options.rounds, mib: options.mib, seed: options.seed };
    let report = Report::new(asked, &other, &own);
    write_json(&options.out.join("guess.json"), &report)?;
    println!("{}", report.text());
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Guesses of another tenant, and of the same.
async fn measure(cluster: &Cluster, options: &Options, spec: &FunctionSpec) -> Result<(Guesses, Guesses)> {
    let at = &cluster.addresses;
    let mut control = Control::connect(&at.control).await?;
    let nodes = control.wait_for_nodes(1).await?;
    let node = nodes.first().context("there is no node")?.node.clone();
    let mut dice = Dice(options.seed);
    // Numbers of guesses; functions take those below 2^31, and 0 means nothing.
    let mut fresh = move || u64::from(1 + dice.below((1 << 31) - 2));
    let secret = fresh();
    for (name, tenant) in FUNCTIONS {
        let spec = FunctionSpec {
            name: name.parse().context("name a function")?,
            tenant: tenant.parse().context("name a tenant")?,
            ..spec.clone()
        };
        control.apply(spec.to_toml()).await?;
        // Each has a base and a sandbox in dedup, as everywhere. One of them holds the secret, the others something else.
        let number = if name == "secret" { secret } else { fresh() };
        let source: SandboxId = control.start(name, &node, true).await?.0;
        hold(at, name, source, number).await?;
        control.make_base(source).await.with_context(|| format!("make a base of {name}"))?;
        control.dedup(source, false).await.with_context(|| format!("put the source of {name} away"))?;
    }
    let (mut other, mut own) = (Guesses::default(), Guesses::default());
    let mut order = Dice(options.seed.wrapping_add(1));
    for number in 1..=options.rounds {
        let mut turns = [("other", true), ("other", false), ("own", true), ("own", false)];
        shuffle(&mut turns, &mut order);
        for (function, right) in turns {
            let guess = if right { secret } else { fresh() };
            let shown = round(&mut control, at, (function, &node), guess).await;
            let shown = shown.with_context(|| format!("round {number} of {function}"))?;
            let guesses = if function == "other" { &mut other } else { &mut own };
            if right { &mut guesses.right } else { &mut guesses.wrong }.push(shown);
        }
        eprintln!("    {number} of {} rounds", options.rounds);
    }
    Ok((other, own))
}
