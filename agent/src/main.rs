//! Entry point of the agent.

use std::process::ExitCode;

use clap::Parser;
use medes_agent::{keeper, stage};

#[derive(Parser)]
#[command(name = "medes-agent", version, about)]
enum Cli {
    /// First step of a sandbox; started by the agent.
    #[command(hide = true)]
    Stage(stage::StageArgs),
    /// Cleans up when the agent is gone; started by the agent.
    #[command(hide = true)]
    Keeper,
}

fn main() -> ExitCode {
    // Both run before any thread exists, and need no runtime.
    match Cli::parse() {
        Cli::Stage(args) => stage::main(&args),
        Cli::Keeper => keeper::main(),
    }
}
