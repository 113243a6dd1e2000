//! Every way to a first answer, in one run: cold start, plain `criu restore`, Medes restore, warm sandbox.
//!
//! The node is in this process, made of the agent's own library, so that what is compared differs in nothing but
//! the way back: same CRIU, same namespaces, same cgroups, same request.

mod compare;
mod report;
mod round;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use medes_proto::function::FunctionSpec;

use crate::{
    experiment::{self, Became, Subjects},
    functions::{Candidate, Function},
    station::Station,
};
use report::{Report, Row};
use round::{Round, Series};

/// How often to measure, and on what.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How often each function goes through everything, each time as a new sandbox
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    #[command(flatten)]
    subjects: Subjects,
}

/// Call it before any thread exists.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    experiment::run(
        &options.subjects,
        &[],
        Report::new(),
        async |station: &mut Station, candidates, report| {
            measure(station, candidates, options.rounds, report).await
        },
    )
}

async fn measure(
    station: &mut Station,
    candidates: Vec<Candidate>,
    rounds: u32,
    report: &mut Report,
) -> Result<()> {
    let one = async |station: &mut Station, function: &Function| measure_one(station, function, rounds).await;
    experiment::each(station, candidates, one, |function, became| {
        report.rows.push(match became {
            Became::Measured(done) => Row::measured(function, &done),
            Became::Skipped(reason) => Row::Skipped { function, reason },
            Became::Failed(error) => Row::Failed { function, reason: format!("{error:#}") },
        });
        Ok(())
    })
    .await
}

/// All rounds of one function, against one base snapshot of another sandbox.
async fn measure_one(station: &mut Station, function: &Function, rounds: u32) -> Result<Vec<Round>> {
    let spec = FunctionSpec::from_toml(&function.toml).context("read its function file")?;
    let mut series = Series::begin(station, spec).await.context("make a base snapshot")?;
    let mut done = Vec::new();
    for number in 1..=rounds {
        let round = series.round().await.with_context(|| format!("round {number}"))?;
        eprintln!("    {number:>3}: {round}");
        done.push(round);
    }
    Ok(done)
}
