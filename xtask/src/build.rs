//! `cargo xtask build` and `cargo xtask ebpf`: the binaries, and the kernel programs alone.

use std::fs;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::Call;
use crate::repo::Repo;

/// What runs in production, and what shows and measures it.
const BINARIES: [&str; 4] = ["medes", "medes-agent", "medes-controller", "medes-bench"];

/// How to build.
#[derive(Args)]
pub(crate) struct Options {
    /// Optimised, as the demo and the measurements use it
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    binaries(repo, options.release)?;
    for name in BINARIES {
        println!("{}", repo.binaries(options.release).join(name).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds all binaries in one go, so that cargo can use both cores throughout.
pub(crate) fn binaries(repo: &Repo, release: bool) -> Result<()> {
    let mut cargo = Call::cargo(repo).arg("build");
    if release {
        cargo = cargo.arg("--release");
    }
    for name in BINARIES {
        cargo = cargo.args(["--bin", name]);
    }
    cargo.run()
}

/// Checks the agent with its build script made to run again: that script compiles the kernel programs.
pub(crate) fn kernel_programs(repo: &Repo) -> Result<ExitCode> {
    look_again(repo)?;
    Call::cargo(repo).args(["check", "--package", "medes-agent", "--lib", "-vv"]).run()?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the agent's build script run at the next build, for example because a tool chain came.
pub(crate) fn look_again(repo: &Repo) -> Result<()> {
    let script = repo.path("agent/build.rs");
    let doing = || format!("touch {}", script.display());
    let file = fs::File::options().append(true).open(&script).with_context(doing)?;
    file.set_modified(SystemTime::now()).with_context(doing)
}
