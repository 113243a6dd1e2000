//! `cargo xtask test [LEVEL]`: everything that this machine can check, and a summary at the end.
//!
//! Everything is built once, in the dev profile: it is optimised enough for tests that move pages
//! (see the workspace manifest), clippy shares its dependencies' metadata, and the binaries that
//! the end-to-end tests start are the same build. A release build would double the time on two
//! cores and only the demo and the measurements need it.

mod faults;
mod runner;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use self::runner::Runner;
use self::tally::Tally;
use crate::command::Call;
use crate::repo::Repo;
use crate::{build, lab, setup, tidy};

/// What to test.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this level
    #[arg(value_enum, default_value_t = Level::All)]
    level: Level,
    /// Take the machine as it is
    #[arg(long)]
    no_setup: bool,
    /// How long the soak takes
    #[arg(long, default_value_t = 10)]
    minutes: u32,
    /// For `faults` and `soak`: passed on to `medes-faults`
    #[arg(last = true)]
    rest: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Level {
    /// Format, lints, house rules
    Tidy,
    /// No root, no kernel feature, no card
    Pure,
    /// Real kernel features: eBPF, CRIU, cgroups, namespaces
    Kernel,
    /// The binaries and the example functions
    E2e,
    /// RDMA, in a virtual machine
    Lab,
    /// Everything that can break, at every step of everything: a table. Not part of `all`; `-- --long`, `-- --only WORDS`
    Faults,
    /// Mixed load for `--minutes`: nothing grows, no answer is wrong. Not part of `all`
    Soak,
    /// All of these but faults and soak
    All,
}

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    let wanted = |level| options.level == Level::All || options.level == level;
    if matches!(options.level, Level::Faults | Level::Soak) {
        return faults::run(repo, options);
    }
    if !options.no_setup && (wanted(Level::Kernel) || wanted(Level::E2e) || wanted(Level::Lab)) {
        let start = Instant::now();
        setup::ensure(repo)?;
        println!("== setup ({} s)", start.elapsed().as_secs());
    }
    let runner = Runner::choose(repo);
    let mut levels = Vec::new();
    for (level, name) in [
        (Level::Tidy, "tidy"),
        (Level::Pure, "pure"),
        (Level::Kernel, "kernel"),
        (Level::E2e, "e2e"),
        (Level::Lab, "lab"),
    ] {
        if !wanted(level) {
            continue;
        }
        println!("== {name}");
        let start = Instant::now();
        let tally = match level {
            Level::Tidy => checks(repo)?,
            Level::Pure => runner.pure()?,
            Level::Kernel => runner.kernel()?,
            Level::Lab => in_the_lab(repo)?,
            Level::E2e | Level::Faults | Level::Soak | Level::All => end_to_end(repo, &runner)?,
        };
        let seconds = start.elapsed().as_secs();
        println!("== {name}: {tally} ({seconds} s)");
        levels.push((name, tally, seconds));
    }
    Ok(summary(&levels))
}

/// What needs no test: each check counts as one.
fn checks(repo: &Repo) -> Result<Tally> {
    let mut tally = Tally::default();
    let format = Call::cargo(repo).args(["fmt", "--all", "--check"]);
    let lints = Call::cargo(repo).args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    let mut calls = vec![("format", format), ("lints", lints)];
    if build::rdma_lacks().is_none() {
        let lints = Call::cargo(repo).args(["clippy", "--workspace", "--features", build::RDMA_FEATURES]);
        let targets = lints.arg("--lib").args(lab::TESTS.iter().flat_map(|test| ["--test", *test]));
        calls.push(("lints of RDMA", targets.args(["--", "-D", "warnings"])));
    }
    for (name, call) in calls {
        println!("-- {name}: {call}");
        tally.count(name, call.run_through(|line| println!("{line}"))?);
    }
    println!("-- the agent's own memory copies");
    tally.count("the agent must not link aya-ebpf", !links_kernel_library(repo)?);
    println!("-- house rules: cargo xtask tidy");
    let complaints = tidy::complaints(repo)?;
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    tally.count("house rules", complaints.is_empty());
    Ok(tally)
}

/// `aya-ebpf` exports `memcpy`, which would take the place of libc's and halve the speed of page
/// copies. Only the kernel's side may depend on it.
fn links_kernel_library(repo: &Repo) -> Result<bool> {
    let tree =
        Call::cargo(repo).args(["tree", "--package", "medes-agent", "--edges", "normal", "--prefix", "none"]);
    let tree = tree.output().with_context(|| format!("run {tree}"))?;
    Ok(tree.lines().any(|line| line.starts_with("aya-ebpf ")))
}

fn end_to_end(repo: &Repo, runner: &Runner<'_>) -> Result<Tally> {
    // The tests start programs of other packages too; cargo builds only a package's own for them.
    let mut tally = Tally::default();
    if let Err(error) = build::for_tests(repo) {
        println!("{error:#}");
        tally.count("build the binaries", false);
        return Ok(tally);
    }
    tally.add(runner.end_to_end()?);
    tally.add(runner.functions()?);
    Ok(tally)
}

/// In a virtual machine, where there is an emulator.
fn in_the_lab(repo: &Repo) -> Result<Tally> {
    let mut tally = Tally::default();
    if let Some(lack) = lab::lacks() {
        let skip = format!("SKIPPED the lab: {lack}");
        println!("{skip}");
        tally.read(&skip);
        return Ok(tally);
    }
    let mut boot = || {
        tally = Tally::default();
        lab::tests(repo, |line| {
            println!("{line}");
            tally.read(line);
        })
    };
    let mut end = boot()?;
    if end == lab::End::FellOver {
        println!("-- the kernel of the virtual machine fell over; once more");
        end = boot()?;
    }
    Ok(tally.finish("the lab", end == lab::End::Good))
}

fn summary(levels: &[(&str, Tally, u64)]) -> ExitCode {
    println!("== summary");
    let mut all = Tally::default();
    for (name, tally, seconds) in levels {
        println!("{name:<7} {tally} ({seconds} s)");
        tally.failures().for_each(|failure| println!("    FAILED {failure}"));
        tally.skips().for_each(|skip| println!("    SKIPPED {skip}"));
        all.add(tally.clone());
    }
    // Alone on a line: whoever reads the log by machine looks for this.
    println!("{all}");
    if all.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
