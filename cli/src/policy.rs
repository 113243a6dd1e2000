//! `medes policy show|set`: what becomes of idle sandboxes.

use medes_proto::wire;
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    output::Output,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum PolicyVerb {
    /// Show what becomes of idle sandboxes, as the section `policy` of the controller's configuration
    Show,
    /// Decide in another way from now on, also over sandboxes that are idle already
    ///
    /// All lines or, if one is wrong, none. It holds until the controller is started again: then its configuration counts.
    Set {
        /// Such as name=medes-latency alpha=3 idle=30s park=true
        #[arg(value_name = "KEY=VALUE", required = true)]
        changes: Vec<String>,
        /// Only show what would be
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Serialize)]
struct PolicyView {
    toml: String,
    changed: bool,
}

pub(crate) async fn run(verb: PolicyVerb, client: &Client, output: &Output) -> Result<(), CliError> {
    let reply = match verb {
        PolicyVerb::Show => show(client).await?,
        PolicyVerb::Set { changes, dry_run } => {
            let ask = wire::SetPolicyRequest { changes, dry_run };
            client.call("set the policy", QUICK, async |mut control| control.set_policy(ask).await).await?
        }
    };
    let wire::PolicyReply { toml, changed } = reply;
    output.answer(&PolicyView { toml: toml.clone(), changed }, || toml)
}

async fn show(client: &Client) -> Result<wire::PolicyReply, CliError> {
    let ask = wire::GetPolicyRequest {};
    client.call("show the policy", QUICK, async |mut control| control.get_policy(ask).await).await
}

/// The policy, as its section of the configuration.
pub(crate) async fn toml(client: &Client) -> Result<String, CliError> {
    Ok(show(client).await?.toml)
}
