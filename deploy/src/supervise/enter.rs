//! The last step before a program starts: rights that it does not need are given up for good.

use std::{os::unix::process::CommandExt as _, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use caps::{CapSet, Capability, CapsHashSet};
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What to keep and what to become.
#[derive(Args, Debug)]
pub(crate) struct EnterArgs {
    /// The capabilities to keep
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    keep: Vec<Capability>,
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &EnterArgs) -> Result<()> {
    let keep: CapsHashSet = args.keep.iter().copied().collect();
    for capability in caps::all().into_iter().filter(|capability| !keep.contains(capability)) {
        // One that this process has not, or this kernel does not know, is given up already.
        if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
            caps::drop(None, CapSet::Bounding, capability)
                .with_context(|| format!("give up {capability}"))?;
        }
    }
    // The set that a program of root starts with is the bounding set; nothing else may add to it.
    caps::clear(None, CapSet::Inheritable).context("give up what could be inherited")?;
    if let Ok((_soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Where that is refused, fewer sandboxes fit.
        let _refused = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let failed = Command::new(&args.program).args(&args.args).exec();
    Err(failed).with_context(|| format!("start {}", args.program.display()))
}
