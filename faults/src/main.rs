//! `medes-faults`: breaks a cluster of real programs in every way it knows, and says what came of it.
//!
//! A cell of the matrix is an act (dedup, restore, a request...), often a step of it, and a fault. Controller and agents are on hosts of their
//! own, functions are real, requests go through the gateway. `cell` says what must hold, `matrix` which cells there are.
//!
//! | room | idea |
//! |---|---|
//! | `hosts`, `between` | wires that can be cut, slowed down, and lied on |
//! | `cluster`, `program`, `desk`, `http` | the programs, and the public ways to speak to them |
//! | `cell`, `matrix` | what is tried, and what must hold |
//! | `subject`, `strike`, `run`, `crowd` | one cell, carried out |
//! | `judge`, `census`, `leftovers`, `report` | what came of it |
//! | `lanes` | many cells |
//! | `soak`, `counts` | no fault, for long: nothing grows |

mod between;
mod cell;
mod census;
mod cluster;
mod counts;
mod crowd;
mod desk;
mod hosts;
mod http;
mod judge;
mod lanes;
mod leftovers;
mod matrix;
mod places;
mod program;
mod report;
mod run;
mod soak;
mod strike;
mod subject;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::{matrix::Extent, places::Places};

#[derive(Parser)]
#[command(name = "medes-faults", version, about = "Breaks a cluster, and says what came of it")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Every fault at every step, as a table
    Matrix(Matrix),
    /// Mixed load for long: nothing grows, and no answer is wrong
    Soak(Soak),
}

#[derive(Args)]
struct Matrix {
    #[command(flatten)]
    places: Places,
    /// A handful of cells
    #[arg(long, conflicts_with = "long")]
    short: bool,
    /// Also what takes long: cuts of ten seconds at every step, and of a minute
    #[arg(long)]
    long: bool,
    /// Only cells whose name has all of these words
    #[arg(long, value_name = "WORDS")]
    only: Option<String>,
    /// Clusters side by side
    #[arg(long, default_value_t = 3)]
    lanes: u8,
    /// Only names the cells
    #[arg(long)]
    list: bool,
}

#[derive(Args)]
struct Soak {
    #[command(flatten)]
    places: Places,
    /// How long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    minutes: u32,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Matrix(options) => run_matrix(&options),
        Verb::Soak(options) => run_soak(&options),
    };
    done.unwrap_or_else(|error| {
        eprintln!("medes-faults: {error:#}");
        ExitCode::FAILURE
    })
}

fn run_soak(options: &Soak) -> Result<ExitCode> {
    if let Some(lack) = options.places.lack() {
        println!("SKIPPED the soak: {lack}");
        return Ok(ExitCode::SUCCESS);
    }
    hosts::leave()?;
    let good = soak::run(&options.places, options.minutes)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_matrix(options: &Matrix) -> Result<ExitCode> {
    let extent = match (options.short, options.long) {
        (true, _) => Extent::Short,
        (_, true) => Extent::Long,
        _ => Extent::Usual,
    };
    let mut cells = matrix::cells(extent);
    if let Some(words) = &options.only {
        cells.retain(|cell| words.split_whitespace().all(|word| cell.name().contains(word)));
    }
    if options.list {
        cells.iter().for_each(|cell| println!("{}", cell.name()));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(lack) = options.places.lack() {
        println!("SKIPPED faults: {lack}");
        return Ok(ExitCode::SUCCESS);
    }
    hosts::leave()?;
    lanes::forget_logs(&options.places.out);
    let begun = Instant::now();
    let all = lanes::run(&options.places, &cells, options.lanes, |outcome| println!("{}", outcome.line()))?;
    println!("{}", report::table(&all));
    report::write(&all, &options.places.out).context("write what came of it")?;
    let skipped = all.iter().filter(|one| one.skipped.is_some()).count();
    let failed = all.iter().filter(|one| !one.is_good()).count();
    let took = begun.elapsed().as_secs();
    println!(
        "{} cells: {failed} failed, {skipped} skipped ({took} s); {}",
        all.len(),
        options.places.out.display()
    );
    println!(
        "CLOCK_REALTIME has no namespace: it cannot jump here without jumping for the whole machine, so it was not tried."
    );
    Ok(if failed == 0 && !all.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
