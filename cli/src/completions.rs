//! `medes completions`: a completion script for a shell.

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde::Serialize;

use crate::{args::Cli, error::CliError, output::Output};

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Serialize)]
struct CompletionsView {
    shell: String,
    script: String,
}

pub(crate) fn run(args: &CompletionsArgs, output: &Output) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "medes", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let view = CompletionsView { shell: args.shell.to_string(), script };
    output.answer(&view, || view.script.clone())
}
