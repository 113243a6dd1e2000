//! `medes-dist`: makes what is handed out of programs that are built. `cargo xtask dist` builds and hands over to it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Parser;
use medes_dist::{
    release::{self, SUMS},
    sources::Sources,
    stamp::Stamp,
};

/// Makes a tarball, a Debian package, an OCI image, Kubernetes manifests, a Helm chart and a list of what is inside
#[derive(Parser)]
#[command(name = "medes-dist", version, max_term_width = 100)]
struct Arguments {
    /// The checkout
    #[arg(long, value_name = "DIR", default_value = ".")]
    root: PathBuf,
    /// The folder with the programs
    #[arg(long, value_name = "DIR")]
    binaries: PathBuf,
    /// What they were built with beyond the usual, as cargo has it
    #[arg(long, value_name = "FEATURES", default_value = "")]
    features: String,
    /// A CRIU that goes along, as `cargo xtask setup` makes one; without it nodes need one of their own
    #[arg(long, value_name = "DIR")]
    criu: Option<PathBuf>,
    /// Where artifacts are put; what an earlier run left there is replaced
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Only say what would be made
    #[arg(long)]
    dry_run: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { root, binaries: programs, features, criu, out, dry_run } = arguments;
    let stamp = Stamp::from_environment()?;
    if dry_run {
        let names = release::names(&stamp);
        names
            .iter()
            .map(|name| &**name)
            .chain([SUMS])
            .for_each(|name| println!("{}", out.join(name).display()));
        return Ok(());
    }
    if criu.is_none() {
        println!("-- no CRIU goes along: nodes whose system has none keep sandboxes warm");
    }
    let sources = Sources { root, programs, features, criu };
    let made = release::make(&sources, &stamp, &|name| println!("-- {name}"))?;
    release::put(&made, &out).with_context(|| format!("put everything in {}", out.display()))?;
    made.iter()
        .for_each(|made| println!("{:>11} bytes  {}", made.bytes.len(), out.join(&made.name).display()));
    println!("{}", out.join(SUMS).display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_has_no_contradiction() {
        Arguments::command().debug_assert();
    }
}
