//! `cargo xtask VERB`: set up, build, test, show and measure Medes. One file per verb.
//!
//! Small on purpose: it has to compile before anything else can happen on a fresh machine.

mod bench;
mod build;
mod command;
mod demo;
mod deploy;
mod dist;
mod lab;
mod repo;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::repo::Repo;

/// Set up, build, test, show and measure Medes.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Check what this machine lacks and install it
    Setup(setup::Options),
    /// Build the binaries
    Build(build::Options),
    /// Build the kernel programs alone, to see their compiler's messages
    Ebpf,
    /// Check and test: everything this machine can run, or one level
    Test(test::Options),
    /// Keep house rules that no compiler keeps
    Tidy,
    /// Run the RDMA tests in a virtual machine
    Lab,
    /// Show on this machine what Medes does
    Demo(demo::Options),
    /// Bring Medes to hosts over ssh: builds, then passes everything on to `medes-deploy`
    Deploy(deploy::Options),
    /// Make what is handed out: tarball, Debian package, OCI image, Kubernetes manifests, Helm chart, list of what is inside
    Dist(dist::Options),
    /// Measure: passes everything on to `medes-bench`
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let Arguments { verb } = Arguments::parse();
    let outcome = Repo::find().and_then(|repo| match verb {
        Verb::Setup(options) => setup::run(&repo, &options),
        Verb::Build(options) => build::run(&repo, &options),
        Verb::Ebpf => build::kernel_programs(&repo),
        Verb::Test(options) => test::run(&repo, &options),
        Verb::Tidy => tidy::run(&repo),
        Verb::Lab => lab::run(&repo),
        Verb::Demo(options) => demo::run(&repo, &options),
        Verb::Deploy(options) => deploy::run(&repo, &options),
        Verb::Dist(options) => dist::run(&repo, &options),
        Verb::Bench(options) => bench::run(&repo, &options),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
