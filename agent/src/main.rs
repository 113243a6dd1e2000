//! Entry point of the agent.

use std::process::ExitCode;

use clap::Parser;
use medes_agent::{config::Config, heap, inject, keeper, run, sandbox, stage};
use nix::sys::prctl;

/// The agent of one Medes node: runs sandboxes, takes their memory away while they are idle, gives it back
#[derive(Parser)]
#[command(
    name = "medes-agent",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(flatten)]
    config: Option<Config>,
    #[command(subcommand)]
    helper: Option<Helper>,
}

/// What the agent starts itself as.
#[derive(clap::Subcommand)]
enum Helper {
    /// First step of a sandbox; started by the agent
    #[command(hide = true)]
    Stage(stage::StageArgs),
    /// Cleans up when the agent is gone; started by the agent
    #[command(hide = true)]
    Keeper,
    /// Stops processes and has them make system calls; started by the agent
    #[command(hide = true)]
    Inject,
}

fn main() -> ExitCode {
    let Cli { config, helper } = Cli::parse();
    // What these have in memory is sandboxes': no core dump may have it, wherever the host sends them. A stage becomes its function, with a limit
    // of its own.
    if !matches!(helper, Some(Helper::Stage(_)))
        && let Err(error) = prctl::set_dumpable(false)
    {
        eprintln!("medes-agent: keep memory out of core dumps: {error}");
        return ExitCode::FAILURE;
    }
    match (helper, config) {
        // These run before any thread exists, and need no runtime.
        (Some(Helper::Stage(args)), _) => stage::main(&args),
        (Some(Helper::Keeper), _) => keeper::main(),
        (Some(Helper::Inject), _) => inject::main(),
        (None, Some(config)) => agent(config),
        (None, None) => ExitCode::FAILURE,
    }
}

fn agent(config: Config) -> ExitCode {
    run::start_logging();
    heap::configure();
    let ran = || {
        // Before the mounts change: where this service's namespace ends with that, a program on a mount of its own has no name any more.
        let program = std::env::current_exe()?;
        let claim = sandbox::Claim::new(config.node.as_str())?;
        // Before the runtime: only threads started later follow into the mount namespace.
        claim.enter_mounts()?;
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?
            .block_on(run::run(config, claim, program))
    };
    match ran() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches, builder::Resettable};

    use super::*;

    #[test]
    fn an_agent_is_told_by_flags_and_a_helper_by_its_name() {
        // What stands in the environment of the test is not asked.
        let parsed = |more: &[&str]| {
            let command = Cli::command().mut_args(|arg| arg.env(Resettable::Reset));
            let matches = command.try_get_matches_from([&["medes-agent"], more].concat())?;
            Cli::from_arg_matches(&matches)
        };
        let told = parsed(&["--node", "n1", "--state-dir", "/x", "--heat-hot-percent", "70"]).unwrap();
        let config = told.config.expect("a node that is to be run");
        assert_eq!((config.heat().hot_percent, config.heat().check()), (70, Ok(())));
        assert!(told.helper.is_none());
        assert!(matches!(parsed(&["keeper"]).unwrap().helper, Some(Helper::Keeper)));
        assert!(parsed(&[]).is_err());
    }

    /// What the manifest for Kubernetes says, with values in place of what comes from the node.
    #[test]
    fn an_agent_understands_what_its_manifest_says() {
        let manifest = include_str!("../../dist/chart/templates/agent.yaml");
        let values = |line: &str| match line.split_once('=') {
            Some(("--memory-cap", _)) => "--memory-cap=8GiB".to_owned(),
            _ => line
                .replace("$(NODE)", "n")
                .replace("$(ADDRESS)", "10.0.0.1")
                .replace("{{ .Release.Namespace }}", "medes")
                .split("{{")
                .next()
                .map(|line| if line.ends_with([':', '=']) { format!("{line}7000") } else { line.to_owned() })
                .unwrap_or_default(),
        };
        let lines = manifest.lines().filter_map(|line| line.trim().strip_prefix("- --"));
        let arguments: Vec<_> = lines.map(|line| values(&format!("--{line}"))).collect();
        assert!(arguments.len() > 5, "{arguments:?}");
        let command = Cli::command().mut_args(|arg| arg.env(Resettable::Reset));
        let matches = command.try_get_matches_from([vec!["medes-agent".to_owned()], arguments].concat());
        let told = Cli::from_arg_matches(&matches.unwrap()).unwrap().config.unwrap();
        assert_eq!((told.controller.as_str(), told.pages_port), ("medes-controller.medes.svc:7070", 7000));
    }
}
