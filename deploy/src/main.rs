//! `medes-deploy`: Medes on hosts, without cargo. `cargo xtask deploy` builds and hands over to it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use medes_deploy::{
    hosts::Cluster,
    roll::Pace,
    verbs::{self, HostStatus, Hosts, Options},
};

/// Brings Medes to hosts over ssh, upgrades it there while requests flow, and removes it
#[derive(Parser)]
#[command(name = "medes-deploy", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    deploy: DeployArgs,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Args)]
struct Common {
    /// The cluster; see deploy/README.md
    #[arg(long, value_name = "FILE", default_value = "hosts.toml")]
    hosts: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args)]
struct DeployArgs {
    /// The folder with the programs [default: that of this program]
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// A private CRIU to copy with them, as `cargo xtask setup` makes one [default: one that was handed out with this
    /// program, unless --binaries names others]
    #[arg(long, value_name = "DIR")]
    criu: Option<PathBuf>,
    #[command(flatten)]
    pace: PaceArgs,
    /// Go on where `medes doctor` says that something does not work
    #[arg(long)]
    accept_missing: bool,
}

#[derive(Args)]
struct PaceArgs {
    /// Agents that may be away at the same time
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    max_unavailable: u16,
    /// Seconds a service may take to be healthy
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait: u64,
    /// Seconds the requests of an agent may take to end before it is replaced
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    drain_within: u64,
}

#[derive(Subcommand)]
enum Verb {
    /// Say what runs on each host, and whether it should
    Status {
        #[command(flatten)]
        common: Common,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring every host back to the version before
    Rollback {
        #[command(flatten)]
        common: Common,
        #[command(flatten)]
        pace: PaceArgs,
    },
    /// End all services and remove all files, functions included
    Remove {
        #[command(flatten)]
        common: Common,
        /// Yes, remove it. Without this it is only said what would go
        #[arg(long)]
        yes: bool,
        /// Leave the folder `state`: functions and keys of the controller
        #[arg(long)]
        keep_state: bool,
    },
}

impl PaceArgs {
    fn pace(&self) -> Pace {
        Pace {
            unavailable_max: self.max_unavailable.into(),
            wait: Duration::from_secs(self.wait),
            drain_within: Duration::from_secs(self.drain_within),
        }
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let say = |host: &str, what: &str| eprintln!("[{host}] {what}");
    let common = match &arguments.verb {
        None => &arguments.common,
        Some(Verb::Status { common, .. } | Verb::Rollback { common, .. } | Verb::Remove { common, .. }) => {
            common
        }
    };
    let cluster = Cluster::read(&common.hosts)?;
    let hosts = Hosts::of(&cluster)?;
    let session = hosts.session(&cluster, &say);
    match &arguments.verb {
        None => {
            let deploy = &arguments.deploy;
            let (binaries, criu) = match &deploy.binaries {
                Some(folder) => (folder.clone(), None),
                None => {
                    let own = own_folder()?;
                    let criu = criu_beside(&own);
                    (own, criu)
                }
            };
            let options = Options {
                binaries,
                criu: deploy.criu.clone().or(criu),
                pace: deploy.pace.pace(),
                dry_run: common.dry_run,
                accept_missing: deploy.accept_missing,
            };
            verbs::deploy(&session, &options)?;
            say("all", if common.dry_run { "nothing was done" } else { "done" });
        }
        Some(Verb::Status { json, .. }) => {
            let status = verbs::status(&session)?;
            print!("{}", if *json { json_lines(&status)? } else { text(&status) });
            let healthy = status.iter().all(|host| host.healthy);
            return Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Some(Verb::Rollback { common, pace }) => {
            verbs::rollback(&session, pace.pace(), common.dry_run)?;
            say("all", if common.dry_run { "nothing was done" } else { "done" });
        }
        Some(Verb::Remove { common, yes, keep_state }) => {
            let dry_run = common.dry_run || !yes;
            verbs::remove(&session, *keep_state, dry_run)?;
            say("all", if dry_run { "nothing was done; --yes does it" } else { "done" });
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn own_folder() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe().context("find this program")?;
    Ok(me.parent().context("this program lies nowhere")?.to_owned())
}

/// The CRIU that a tarball or a package has for programs in `bin`.
fn criu_beside(bin: &Path) -> Option<PathBuf> {
    let folders = ["criu", "lib/medes/criu"].map(|folder| bin.with_file_name(folder));
    folders.into_iter().find(|folder| folder.join("usr/sbin/criu").is_file())
}

fn json_lines(status: &[HostStatus]) -> anyhow::Result<String> {
    Ok(serde_json::to_string(status)? + "\n")
}

fn text(status: &[HostStatus]) -> String {
    let mut text = String::new();
    for host in status {
        let word = if host.healthy { "healthy" } else { "NOT HEALTHY" };
        let current = host.current.as_deref().unwrap_or("nothing");
        text += &format!("{}: {word}, {current}\n", host.host);
        for (service, version) in &host.running {
            text += &format!("    {service}: {}\n", version.as_deref().unwrap_or("does not run"));
        }
        if let Some(node) = &host.node {
            let there = if node.connected { "connected" } else { "away" };
            text += &format!(
                "    node {}: {there}, {}, {} sandboxes\n",
                node.name, node.standing, node.sandboxes
            );
        }
        if let Some(previous) = &host.previous {
            text += &format!("    before: {previous}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn a_criu_that_came_along_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        assert_eq!(criu_beside(&bin), None);
        let criu = folder.path().join("lib/medes/criu");
        std::fs::create_dir_all(criu.join("usr/sbin")).unwrap();
        std::fs::write(criu.join("usr/sbin/criu"), "").unwrap();
        assert_eq!(criu_beside(&bin), Some(criu));
    }

    #[test]
    fn the_command_line_has_no_contradiction() {
        Arguments::command().debug_assert();
        for line in [
            "medes-deploy --hosts h --dry-run",
            "medes-deploy status --hosts h --json",
            "medes-deploy remove --yes",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
        for line in ["medes-deploy fly", "medes-deploy --max-unavailable 0", "medes-deploy status --criu x"] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
