//! `medes`: what a person types. Parses the command line, runs one verb, turns the outcome into an exit code.
//!
//! Every verb but `up`, `cert`, `doctor`, `support-bundle` and `completions` is one call to the controller's Control service.
//! A verb prints a table or a sentence, or with `--json` one JSON value; it never prints half an answer.

mod accounting;
mod args;
mod cert;
mod client;
mod completions;
mod doctor;
mod error;
mod explain;
mod function;
mod heat;
mod human;
mod invoke;
mod load;
mod logs;
mod node;
mod nodes;
mod operate;
mod output;
mod place;
mod policy;
mod ps;
mod support;
mod tenant;
mod token;
mod top;
mod trace;
mod up;
mod view;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{
    args::{Cli, Verb},
    client::Client,
    error::{CliError, EXIT_USAGE, Ended},
    output::Output,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(wrong) => {
            // Help and version come this way too, and are no mistake. A closed pipe is nobody's either.
            let wanted = !wrong.use_stderr();
            return match wrong.print() {
                Ok(()) | Err(_) if wanted => ExitCode::SUCCESS,
                Ok(()) | Err(_) => ExitCode::from(EXIT_USAGE),
            };
        }
    };
    // `up` has said its one JSON line when it fails later; its errors are for people.
    let json_errors = cli.json && !matches!(cli.verb, Verb::Up(_));
    let output = Output::new(cli.json);
    // One thread: children of `up` ask to die with the thread that started them, which must be this one.
    let outcome = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(Box::pin(run(cli, &output))),
        Err(source) => Err(CliError::Runtime { source }),
    };
    match outcome {
        Ok(ended) => ended.into(),
        Err(error) => {
            if json_errors {
                output.error(&error);
            } else {
                eprint!("{}", error.for_people());
            }
            error.exit_code()
        }
    }
}

async fn run(cli: Cli, output: &Output) -> Result<Ended, CliError> {
    let (controller, identity) = (cli.controller, cli.identity);
    let connect = || Client::connect(controller.clone(), identity.as_deref());
    match cli.verb {
        Verb::Up(args) => return up::run(args, output).await,
        Verb::Doctor(args) => return doctor::run(args, output).await,
        Verb::Cert(args) => cert::run(args, output)?,
        Verb::Completions(args) => completions::run(&args, output)?,
        Verb::SupportBundle(args) => Box::pin(support::run(args, connect, output)).await?,
        Verb::Function(verb) => function::run(verb, connect, output).await?,
        Verb::Invoke(args) => return invoke::run(args, connect, output).await,
        Verb::Load(args) => return Box::pin(load::run(args, &connect().await?, output)).await,
        Verb::Ps(args) => ps::run(args, &connect().await?, output).await?,
        Verb::Nodes => nodes::run(&connect().await?, output).await?,
        Verb::Accounting(args) => accounting::run(args, &connect().await?, output).await?,
        Verb::Node(verb) => node::run(verb, &connect().await?, output).await?,
        Verb::Policy(verb) => policy::run(verb, &connect().await?, output).await?,
        Verb::Start(args) => operate::start(args, &connect().await?, output).await?,
        Verb::Base(args) => operate::base(args, &connect().await?, output).await?,
        Verb::Dedup(args) => operate::dedup(args, &connect().await?, output).await?,
        Verb::Restore(args) => operate::restore(args, &connect().await?, output).await?,
        Verb::Move(args) => operate::moved(args, &connect().await?, output).await?,
        Verb::Purge(args) => operate::purge(args, &connect().await?, output).await?,
        Verb::Logs(args) => logs::run(&args, &connect().await?, output).await?,
        Verb::Trace(args) if args.replay.is_some() => trace::replay(&args, output)?,
        Verb::Trace(args) => return trace::run(args, &connect().await?, output).await,
        Verb::Tenant(verb) => return tenant::run(verb, &connect().await?, output).await,
        Verb::Token(verb) => token::run(verb, &connect().await?, output).await?,
        Verb::Heat(args) => heat::run(&args, &connect().await?, output).await?,
        Verb::Top => Box::pin(top::run(&connect().await?, output)).await?,
        Verb::Explain(args) => explain::run(&args, &connect().await?, output).await?,
    }
    Ok(Ended::Well)
}
