//! `cargo xtask demo`: sets up, builds, and hands over to `medes-bench demo`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::repo::Repo;
use crate::{bench, build, setup};

/// What to show.
#[derive(Args)]
pub(crate) struct Options {
    /// Only these functions
    #[arg(long, value_name = "A,B")]
    functions: Option<String>,
    /// Where to leave the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<String>,
    /// Use the binaries that are built already, and what is installed already
    #[arg(long)]
    no_build: bool,
    /// Passed on to `medes-bench demo`
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    if !options.no_build {
        setup::ensure_sandboxes(repo)?;
        println!("== build (release)");
        build::binaries(repo, true, build::Rdma::No)?;
    }
    let mut args = vec!["demo".to_owned()];
    for (name, value) in [("--functions", &options.functions), ("--json", &options.json)] {
        if let Some(value) = value {
            args.extend([name.to_owned(), value.clone()]);
        }
    }
    args.extend(options.rest.iter().cloned());
    bench::hand_over(repo, &args)
}
