//! `medes logs`: the last lines a sandbox wrote.

use medes_proto::{ids::SandboxId, wire};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::{Output, plain},
};

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// The sandbox, as `medes ps` names it
    sandbox: SandboxId,
}

#[derive(Serialize)]
struct LogsView {
    sandbox: String,
    lines: Vec<String>,
    dropped: u64,
}

pub(crate) async fn run(args: &LogsArgs, client: &Client, output: &Output) -> Result<(), CliError> {
    let doing = format!("logs of {}", args.sandbox);
    let request = wire::SandboxRequest { sandbox: args.sandbox.get(), digest_memory: false };
    let reply = client.call(&doing, QUICK, async |mut control| control.sandbox_logs(request).await);
    let wire::LogsReply { lines, dropped } = reply.await?;
    if dropped > 0 && !output.json() {
        let lines = human::count(dropped, "earlier line was", "earlier lines were");
        eprintln!("medes: {lines} dropped, the log is bounded");
    }
    let view = LogsView { sandbox: args.sandbox.to_string(), lines, dropped };
    output.answer(&view, || view.lines.iter().map(|line| plain(line) + "\n").collect())
}
