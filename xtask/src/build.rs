//! `cargo xtask build` and `cargo xtask ebpf`: the binaries, and the kernel programs alone.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, Result};
use clap::Args;

use crate::command::{Call, on_path};
use crate::repo::Repo;

/// What runs in production, what brings it there, and what shows, measures and breaks it.
const BINARIES: [&str; 7] = [
    "medes",
    "medes-agent",
    "medes-controller",
    "medes-supervise",
    "medes-deploy",
    "medes-bench",
    "medes-faults",
];

/// How to build.
#[derive(Args)]
pub(crate) struct Options {
    /// Optimised, as the demo and the measurements use it
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(repo: &Repo, options: &Options) -> Result<ExitCode> {
    binaries(repo, options.release, Rdma::IfItCan)?;
    for name in BINARIES {
        println!("{}", repo.binaries(options.release).join(name).display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether agents are built with RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rdma {
    /// Where the binding can be built: what goes to hosts.
    IfItCan,
    /// Not for what runs on this machine alone: the binding takes a minute to build.
    No,
}

/// What turns RDMA on, in calls for the whole workspace.
pub(crate) const RDMA_FEATURES: &str = "medes-agent/rdma,medes-cli/rdma,medes-rdma/verbs";

/// Builds all binaries in one go, so that cargo can use both cores throughout.
pub(crate) fn binaries(repo: &Repo, release: bool, rdma: Rdma) -> Result<()> {
    call(repo, if release { "release" } else { "dev" }, rdma).run()
}

/// Builds all binaries for tests that start them, along with the tests themselves: what tests depend on changes the features of what both
/// depend on, so that binaries built alone would have half of it built a second time.
pub(crate) fn for_tests(repo: &Repo) -> Result<()> {
    Call::cargo(repo).args(["build", "--workspace", "--bins", "--tests"]).run()
}

/// The call that builds all binaries of a profile.
pub(crate) fn call(repo: &Repo, profile: &str, rdma: Rdma) -> Call {
    let mut cargo = Call::cargo(repo).args(["build", "--profile", profile]);
    match rdma_lacks() {
        Some(lack) if rdma == Rdma::IfItCan => println!("-- agents are built without RDMA: {lack}"),
        None if rdma == Rdma::IfItCan => cargo = cargo.args(["--features", RDMA_FEATURES]),
        _ => {}
    }
    for name in BINARIES {
        cargo = cargo.args(["--bin", name]);
    }
    cargo
}

/// Checks the agent with its build script made to run again: that script compiles the kernel programs.
pub(crate) fn kernel_programs(repo: &Repo) -> Result<ExitCode> {
    look_again(repo)?;
    Call::cargo(repo).args(["check", "--package", "medes-agent", "--lib", "-vv"]).run()?;
    Ok(ExitCode::SUCCESS)
}

/// What the RDMA binding lacks to be built here: it reads C headers through libclang, and compiles what finds rdma-core
/// at run time.
pub(crate) fn rdma_lacks() -> Option<String> {
    if on_path("cmake").is_none() {
        return Some("no cmake".to_owned());
    }
    (!has_libclang()).then(|| "no libclang".to_owned())
}

/// Where the binding itself looks.
fn has_libclang() -> bool {
    if env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    // libclang-cpp is another library.
    let is_it = |name: &str| {
        name.starts_with("libclang.so")
            || name.starts_with("libclang-") && name.contains(".so") && !name.starts_with("libclang-cpp")
    };
    let holds = |folder: PathBuf| {
        let names = folder.read_dir().into_iter().flatten().flatten();
        names.map(|entry| entry.file_name()).any(|name| is_it(&name.to_string_lossy()))
    };
    let llvm = Path::new("/usr/lib").read_dir().into_iter().flatten().flatten();
    let llvm = llvm.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("llvm"));
    llvm.map(|path| path.join("lib"))
        .chain(["/usr/lib64".into(), format!("/usr/lib/{}-linux-gnu", env::consts::ARCH).into()])
        .any(holds)
}

/// Makes the agent's build script run at the next build, for example because a tool chain came.
pub(crate) fn look_again(repo: &Repo) -> Result<()> {
    let script = repo.path("agent/build.rs");
    let doing = || format!("touch {}", script.display());
    let file = fs::File::options().append(true).open(&script).with_context(doing)?;
    file.set_modified(SystemTime::now()).with_context(doing)
}
