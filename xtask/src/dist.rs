//! `cargo xtask dist`: builds, and hands over to `medes-dist`, which makes what is handed out.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::build::{self, Rdma};
use crate::command::Call;
use crate::repo::Repo;

/// What to hand out.
#[derive(Args)]
pub(crate) struct Options {
    /// Programs of this profile
    #[arg(long, default_value = "release")]
    profile: String,
    /// Take programs that are built already
    #[arg(long)]
    skip_build: bool,
    /// Where artifacts are put [default: target/dist]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only say what would be built and made
    #[arg(long)]
    dry_run: bool,
}

const MAKER: &str = "medes-dist";

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    let build = build::call(repo, &options.profile, Rdma::IfItCan).args(["--bin", MAKER]);
    if options.dry_run {
        println!("{build}");
    } else if !options.skip_build {
        println!("== build ({})", options.profile);
        build.run()?;
    }
    let programs = repo.binaries_of(&options.profile);
    let out = options.out.clone().unwrap_or_else(|| repo.installed("dist"));
    let mut call = Call::new(programs.join(MAKER).to_string_lossy()).arg("--root").path(repo.root());
    call = call.arg("--binaries").path(&programs).arg("--out").path(&out);
    if build::rdma_lacks().is_none() {
        call = call.args(["--features", build::RDMA_FEATURES]);
    }
    let criu = repo.installed("criu");
    if criu.join("usr/sbin/criu").is_file() {
        call = call.arg("--criu").path(&criu);
    }
    if options.dry_run {
        println!("{call}");
        return Ok(ExitCode::SUCCESS);
    }
    call.run()?;
    Ok(ExitCode::SUCCESS)
}
