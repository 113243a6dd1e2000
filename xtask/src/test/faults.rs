//! `cargo xtask test faults` and `cargo xtask test soak`: builds, and hands over to `medes-faults`.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::{Level, Options};
use crate::command::Call;
use crate::repo::Repo;
use crate::{build, setup};

/// Where results go.
const OUT: &str = "target/faults";

pub(super) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    if !options.no_setup {
        setup::ensure(repo)?;
    }
    // The same build as that of all tests.
    build::binaries(repo, false, build::Rdma::No)?;
    let program = repo.binaries(false).join("medes-faults");
    let call = Call::new(program.to_string_lossy());
    let call = match options.level {
        Level::Soak => call.args(["soak", "--minutes"]).arg(options.minutes.to_string()),
        _ => call.arg("matrix"),
    };
    let call = call.arg("--out").path(&repo.path(OUT)).args(options.rest.iter().cloned());
    let call = call.envs(repo.environment(false));
    // Signals from the terminal then reach it alone, and its exit code is ours.
    let error = call.command().exec();
    Err(error).with_context(|| format!("start {call}"))
}
