//! `medes-bench`: measures Medes on real functions. Each experiment is a subcommand with a folder of its own.

mod calibrate;
mod cluster;
mod control;
mod demo;
mod engine;
mod experiment;
mod functions;
mod gateway;
mod guess;
mod model;
mod pages;
mod paper;
mod plot;
mod processes;
mod record;
mod replay;
mod restore;
mod reuse;
mod scratch;
mod show;
mod sim;
mod start;
mod station;
mod stats;
mod validate;
mod watch;

use std::process::ExitCode;

use anyhow::Context;
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
    /// Times every way to a first answer: cold start, plain CRIU restore, Medes restore, warm sandbox
    Restore(restore::Options),
    /// Times cold start, restore, unpark and warm requests, and what each state holds
    Start(start::Options),
    /// Times warm requests unwatched, watched by the kernel programs, and with writes tracked
    Watch(watch::Options),
    /// Times dedups of sandboxes that came back: with what has not changed taken over, with hot pages kept whole
    Reuse(reuse::Options),
    /// Stores real memory in every way there is: how small, and how fast
    Engine(engine::Options),
    /// Reads base pages from memory, over TCP and by gRPC
    Pages(pages::Options),
    /// Measures on real sandboxes what simulations play back
    Calibrate(calibrate::Options),
    /// Runs the controller's driver and policies on a recorded trace, in virtual time
    Sim(sim::Options),
    /// Runs the same requests on a real cluster and in a simulation, and says how far they are apart
    Validate(validate::Options),
    /// Whether one tenant can tell what another one has in memory, by what is stored and how long it takes
    Guess(guess::Options),
    /// The whole set of the paper's experiments, one after the other, with one report
    Paper(paper::All),
    /// How much of a sandbox another one has, by chunk size (Fig 1)
    Redundancy(paper::Options),
    /// Cold, clone, restore, unpark: how long, and what a restore is made of (Fig 8)
    Startup(paper::Options),
    /// Cold starts and latency by policy, simulated and real (Figs 7, 10, 11)
    Policies(paper::Options),
    /// Memory over time under the latency objective (Fig 9)
    Memory(paper::Options),
    /// Keep-alive, keep-dedup, chunk size, chunks per page, ASLR, bases (Figs 12 to 16)
    Sensitivity(paper::Options),
    /// KSM, zram, plain CRIU images with and without zstd, keep-alive, and ours
    Instead(paper::Options),
    /// What agents, controller and registry take
    Overheads(paper::Options),
    /// Stores one target and says what that took; started by `engine`
    #[command(hide = true)]
    EngineProbe(engine::probe::Options),
}

fn main() -> ExitCode {
    // No runtime yet: an experiment that has a node in this process must leave the mount namespace before any
    // thread exists.
    let done = match Arguments::parse().experiment {
        Experiment::Demo(options) => tokio::runtime::Runtime::new()
            .context("start the runtime")
            .and_then(|runtime| runtime.block_on(demo::run(options))),
        Experiment::Restore(options) => restore::main(&options),
        Experiment::Start(options) => start::main(&options),
        Experiment::Watch(options) => watch::main(&options),
        Experiment::Reuse(options) => reuse::main(&options),
        Experiment::Engine(options) => engine::main(&options),
        Experiment::Pages(options) => pages::main(&options),
        Experiment::Calibrate(options) => calibrate::main(&options),
        Experiment::Sim(options) => sim::main(&options),
        Experiment::Validate(options) => validate::main(&options),
        Experiment::Guess(options) => guess::main(&options),
        Experiment::Paper(options) => paper::main(&options),
        Experiment::Redundancy(options) => paper::one(&options, &paper::REDUNDANCY),
        Experiment::Startup(options) => paper::one(&options, &paper::STARTUP),
        Experiment::Policies(options) => paper::one(&options, &paper::POLICIES),
        Experiment::Memory(options) => paper::one(&options, &paper::MEMORY),
        Experiment::Sensitivity(options) => paper::one(&options, &paper::SENSITIVITY),
        Experiment::Instead(options) => paper::one(&options, &paper::INSTEAD),
        Experiment::Overheads(options) => paper::one(&options, &paper::OVERHEADS),
        Experiment::EngineProbe(options) => engine::probe::main(&options),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("medes-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
