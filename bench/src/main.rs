//! `medes-bench`: measures Medes on real functions. Each experiment is a subcommand with a folder of its own.

mod cluster;
mod control;
mod demo;
mod gateway;
mod scratch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "medes-bench", version, about = "Measures Medes on real functions")]
struct Arguments {
    #[command(subcommand)]
    experiment: Experiment,
}

#[derive(Subcommand)]
enum Experiment {
    /// Takes each function through cold start, dedup and restore on a small cluster of this machine
    Demo(demo::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let done = match Arguments::parse().experiment {
        Experiment::Demo(options) => demo::run(options).await,
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("medes-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
