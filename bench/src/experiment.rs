//! An experiment on a node in this process: what it is told, and its way from the command line to a report on disk.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::{
    functions::{self, Candidate, Function, Places},
    record::write_json,
    station::{self, Station},
};

/// On what, and where to leave the figures.
#[derive(Debug, Args)]
pub(crate) struct Subjects {
    /// Only these functions, by name and separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    functions: Vec<String>,
    /// Folder for the report
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    places: Places,
}

/// What an experiment found out.
pub(crate) trait Report: Serialize {
    /// Name of the experiment, and of its file.
    const NAME: &str;

    /// Holds what was measured against what the design asks for.
    fn judge(&mut self);

    /// For people; empty if nothing was measured.
    fn tables(&self) -> String;

    /// Whether everything that was compared was equal.
    fn is_good(&self) -> bool {
        true
    }
}

/// Runs an experiment. Call it before any thread exists. `usual`: the functions if none is named; empty: all.
pub(crate) fn run<R: Report>(
    subjects: &Subjects,
    usual: &[&str],
    mut report: R,
    measure: impl AsyncFnOnce(&mut Station, Vec<Candidate>, &mut R) -> Result<()>,
) -> Result<ExitCode> {
    let Subjects { functions, out, places } = subjects;
    let usual: Vec<String> = usual.iter().map(|name| (*name).to_owned()).collect();
    let wanted = if functions.is_empty() { &usual } else { functions };
    let candidates = functions::find(&places.functions_dir, wanted)?;
    let agent = places.program("medes-agent")?;
    std::fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    warn_of_debug_build(R::NAME);
    let measured =
        station::at(agent, async |station: &mut Station| measure(station, candidates, &mut report).await);
    report.judge();
    // What was measured is kept, even if the end was a bad one.
    write_json(&out.join(R::NAME).with_extension("json"), &report)?;
    println!("{}", report.tables());
    measured?;
    Ok(if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of one function.
#[derive(Debug)]
pub(crate) enum Became<T> {
    Measured(T),
    /// This machine cannot run it; the reason.
    Skipped(String),
    Failed(anyhow::Error),
}

/// Measures one function after the other on a node, and has each told what became of it.
pub(crate) async fn each<T>(
    station: &mut Station,
    candidates: Vec<Candidate>,
    mut measure: impl AsyncFnMut(&mut Station, &Function) -> Result<T>,
    mut tell: impl FnMut(String, Became<T>) -> Result<()>,
) -> Result<()> {
    let count = candidates.len();
    for (at, candidate) in candidates.into_iter().enumerate() {
        let function = candidate.name().to_owned();
        eprintln!("[{}/{count}] {function}", at + 1);
        let became = match candidate {
            Candidate::Skipped { reason, .. } => Became::Skipped(reason),
            Candidate::Ready(ready) => match measure(station, &ready).await {
                Ok(measured) => Became::Measured(measured),
                Err(error) => Became::Failed(error),
            },
        };
        match &became {
            Became::Measured(_) => {}
            Became::Skipped(reason) => eprintln!("    skipped: {reason}"),
            Became::Failed(error) => eprintln!("    failed: {error:#}"),
        }
        // A failed function may leave a sandbox; the next one must not find its memory taken.
        station.clear().await?;
        tell(function, became)?;
    }
    Ok(())
}

/// Somebody may mean to measure.
pub(crate) fn warn_of_debug_build(name: &str) {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its times say little; use `cargo xtask bench {name}`");
    }
}
