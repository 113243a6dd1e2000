//! `medes-supervise`: keeps one program running where no init system does.
//!
//! It opens the program's listening sockets and keeps them while the program is replaced, so an upgrade turns nobody
//! away. SIGHUP: end the program, become the version that is current now, start its program. SIGTERM: end the
//! program, then itself. One thread, no runtime: it must cost nothing and never be in the way.

mod child;
mod enter;
mod life;
mod log;
mod sockets;
mod state;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

/// Keeps one program running.
#[derive(Parser)]
#[command(name = "medes-supervise", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a service until SIGTERM
    Run(RunArgs),
    /// Give up all capabilities but these, and become a program; started by `run`
    #[command(hide = true)]
    Enter(enter::EnterArgs),
}

/// Which service, and where its files go.
#[derive(Args, Clone, Debug)]
struct RunArgs {
    /// The service's description, in the folder `service` of a version; the way to it may be a link that changes
    #[arg(long, value_name = "FILE")]
    service: PathBuf,
    /// Its name: NAME.pid, NAME.state and NAME.log are its files
    #[arg(long)]
    name: String,
    /// The folder for them
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().verb {
        Verb::Run(args) => life::run(&args),
        Verb::Enter(args) => enter::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("medes-supervise: {error:#}");
            ExitCode::FAILURE
        }
    }
}
