//! `cargo xtask deploy`: builds, and hands over to `medes-deploy`, which needs no cargo.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::build;
use crate::command::Call;
use crate::repo::Repo;

/// What to deploy.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Passed on to `medes-deploy`: `--hosts FILE`, `--dry-run`, `status`, `rollback`, `remove`; `--binaries DIR`
    /// takes programs that are built already
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Verbs that copy nothing.
const WITHOUT_PROGRAMS: [&str; 5] = ["status", "rollback", "remove", "help", "--help"];

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    let mut args = options.rest.clone();
    let given = |name: &str| args.iter().any(|arg| arg == name || arg.starts_with(&format!("{name}=")));
    let copies = !args.iter().any(|arg| WITHOUT_PROGRAMS.contains(&&**arg));
    if copies && !given("--binaries") {
        println!("== build (release)");
        build::binaries(repo, true, build::Rdma::IfItCan)?;
        args.extend(["--binaries".into(), repo.binaries(true).to_string_lossy().into_owned()]);
    }
    let criu = repo.installed("criu");
    if copies && !args.iter().any(|arg| arg.starts_with("--criu")) && criu.join("usr/sbin/criu").is_file() {
        args.extend(["--criu".into(), criu.to_string_lossy().into_owned()]);
    }
    // Whichever profile is built: this program only copies.
    let built = [true, false].map(|release| repo.binaries(release).join("medes-deploy"));
    let program = match built.into_iter().find(|program| program.is_file()) {
        Some(program) => program,
        None => {
            build::binaries(repo, false, build::Rdma::IfItCan)?;
            repo.binaries(false).join("medes-deploy")
        }
    };
    let call = Call::new(program.to_string_lossy()).args(args);
    let status = call.command().status().with_context(|| format!("start {call}"))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
