//! `cargo xtask bench NAME`: builds, and hands over to `medes-bench`.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::Call;
use crate::repo::Repo;
use crate::{build, setup};

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Name of the benchmark and its arguments, as `medes-bench --help` lists them
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "NAME")]
    args: Vec<String>,
}

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    setup::ensure(repo)?;
    println!("== build (release)");
    build::binaries(repo, true, build::Rdma::No)?;
    hand_over(repo, &options.args)
}

/// Becomes `medes-bench`: signals from the terminal then reach it alone, and its exit code is ours.
pub(crate) fn hand_over(repo: &Repo, args: &[String]) -> Result<ExitCode> {
    let program = repo.binaries(true).join("medes-bench");
    let call = Call::new(program.to_string_lossy()).args(args.iter().cloned()).envs(repo.environment(true));
    let error = call.command().exec();
    Err(error).with_context(|| format!("start {call}"))
}
