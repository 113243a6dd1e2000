//! The command line as a whole: global options and the list of verbs. Each verb's own options are in its file.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{
    accounting::AccountingArgs,
    cert::CertArgs,
    client::Address,
    completions::CompletionsArgs,
    doctor::DoctorArgs,
    explain::ExplainArgs,
    function::FunctionVerb,
    heat::HeatArgs,
    invoke::InvokeArgs,
    load::LoadArgs,
    logs::LogsArgs,
    node::NodeVerb,
    operate::{BaseArgs, DigestArgs, MoveArgs, PurgeArgs, StartArgs},
    policy::PolicyVerb,
    ps::PsArgs,
    support::SupportArgs,
    tenant::TenantVerb,
    token::TokenVerb,
    trace::TraceArgs,
    up::UpArgs,
};

const AFTER_HELP: &str = "\
Examples:
  medes up --nodes 2                          a controller and two agents on this machine
  medes function apply html/function.toml     make a function known
  medes invoke html --data @page.json -i      ask it; say how its sandbox came to be ready
  medes ps                                    every sandbox: state, private and stored memory
  medes dedup sb-1-2                          take an idle sandbox's memory
  medes trace --kind dedup --kind start       follow decisions as they are made
  medes explain sb-1-2                        why it is where it is
  medes invoke html --json | jq .start        for programs: one JSON value

Exit codes:
  0  done
  1  the operation failed (or a function answered with HTTP status 400 or more)
  2  wrong usage
  3  the controller cannot be reached or does not answer";

/// Kernel-aware memory deduplication for serverless sandboxes.
#[derive(Debug, Parser)]
#[command(name = "medes", version, after_help = AFTER_HELP, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// The controller's address [default: that of a running `medes up`, else 127.0.0.1:7070]
    #[arg(long, global = true, env = "MEDES_CONTROLLER", value_name = "HOST:PORT")]
    pub(crate) controller: Option<Address>,

    /// Your certificate; its key (NAME-key.pem) and the cluster's ca.pem lie in the same folder
    #[arg(long, global = true, env = "MEDES_IDENTITY", value_name = "NAME.pem")]
    pub(crate) identity: Option<PathBuf>,

    /// Print one JSON value instead of text
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run a controller and agents on this machine until Ctrl-C
    Up(UpArgs),
    /// Make functions known, list them, remove them
    #[command(subcommand)]
    Function(FunctionVerb),
    /// Send one request to a function and print its answer
    Invoke(InvokeArgs),
    /// Send requests when a trace says that they are due, and say how long their answers took
    Load(LoadArgs),
    /// List sandboxes
    Ps(PsArgs),
    /// List nodes and their memory
    Nodes,
    /// Say for whom the memory of all nodes is held
    Accounting(AccountingArgs),
    /// Keep work away from a node, or let it come again
    #[command(subcommand)]
    Node(NodeVerb),
    /// Show what becomes of idle sandboxes, or have it decided in another way
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Start one more sandbox of a function
    Start(StartArgs),
    /// Make a base snapshot of a warm sandbox, which stays warm
    Base(BaseArgs),
    /// Take a warm sandbox's memory; keep what nobody else has
    Dedup(DigestArgs),
    /// Give a deduplicated sandbox its memory back
    Restore(DigestArgs),
    /// Have a deduplicated sandbox go to another node
    Move(MoveArgs),
    /// End a sandbox and forget it
    Purge(PurgeArgs),
    /// Print what a sandbox wrote to its output
    Logs(LogsArgs),
    /// Watch the cluster live on one screen
    Top,
    /// Follow decisions and state changes as they happen, until Ctrl-C
    Trace(TraceArgs),
    /// Say why a sandbox is in its state, and its history
    Explain(ExplainArgs),
    /// Show where a warm sandbox's memory is, as a heat map
    Heat(HeatArgs),
    /// List tenants, delete the key of one
    #[command(subcommand)]
    Tenant(TenantVerb),
    /// Make, list and revoke tokens of callers of the HTTP gateway
    #[command(subcommand)]
    Token(TokenVerb),
    /// Make certificates for a cluster, replace them, list them
    Cert(CertArgs),
    /// Say what this machine has and lacks to run sandboxes
    Doctor(DoctorArgs),
    /// Write what somebody who is to help needs to know into one file, without secrets
    SupportBundle(SupportArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_has_no_contradiction() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_may_come_after_the_verb() {
        let cli = parse("medes ps --function html --json --controller host:9").unwrap();
        assert!(cli.json);
        assert_eq!(cli.controller.as_ref().unwrap().to_string(), "host:9");
        assert!(matches!(&cli.verb, Verb::Ps(args) if args.function.as_ref().unwrap().as_str() == "html"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_done() {
        let lines = [
            "medes",
            "medes fly",
            "medes dedup 17",
            "medes dedup sb-0-0",
            "medes invoke Html",
            "medes invoke html --deadline soon",
            "medes invoke html --header nonsense",
            "medes invoke html --method get!",
            "medes invoke html --path ready",
            "medes function apply",
            "medes up --nodes 0",
            "medes up --memory-cap lots",
            "medes load --trace a.csv",
            "medes load --trace a.csv --map html --speedup 0",
            "medes load --trace a.csv --map html --speedup NaN",
            "medes load --trace a.csv --map a=Html",
            "medes load --trace a.csv --map html --under-way 0",
            "medes ps --controller 127.0.0.1",
            "medes ps --controller 127.0.0.1:port",
            "medes completions tcsh",
            "medes trace --kind nonsense",
            "medes trace --record a --replay b",
            "medes explain html",
            "medes heat sb-1-1 --out map.gif",
            "medes cert issue root node-1",
            "medes cert issue agent Node",
            "medes cert rotate",
            "medes policy",
            "medes policy set",
        ];
        for line in lines {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_examples_in_the_help_are_valid() {
        let examples = AFTER_HELP.lines().filter_map(|line| line.strip_prefix("  medes "));
        let mut seen = 0;
        for example in examples {
            let typed = example.split("  ").next().unwrap().split(" | ").next().unwrap();
            parse(&format!("medes {typed}")).unwrap_or_else(|error| panic!("{typed}: {error}"));
            seen += 1;
        }
        assert_eq!(seen, 8);
    }
}
