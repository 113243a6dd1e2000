//! `medes node cordon|uncordon|drain`: keep work away from a node, and let it come again.

use std::time::Duration;

use medes_proto::{ids::NodeId, standing::Standing, units::Span, wire};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::Output,
};

/// Between two looks at what a node that is being drained still does.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum NodeVerb {
    /// Start and restore no more sandboxes on a node; those that are warm serve on
    Cordon(NodeArgs),
    /// Let work come to a node again
    Uncordon(NodeArgs),
    /// Send nothing to a node, and wait until its sandboxes have ended
    ///
    /// Requests inside them are seen to their end. Base snapshots stay until the agent ends. The node stays so, also
    /// when its agent or the controller is restarted, until `medes node uncordon`.
    Drain {
        #[command(flatten)]
        args: NodeArgs,
        /// How long to wait; 0s only asks
        #[arg(long, default_value = "15m")]
        within: Span,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct NodeArgs {
    /// The node, as `medes nodes` names it
    node: NodeId,
}

#[derive(Serialize)]
struct StandingView<'a> {
    node: &'a str,
    standing: &'static str,
    changed: bool,
    sandboxes: u32,
    requests: u32,
}

pub(crate) async fn run(verb: NodeVerb, client: &Client, output: &Output) -> Result<(), CliError> {
    let (args, standing, within) = match verb {
        NodeVerb::Cordon(args) => (args, Standing::Cordoned, None),
        NodeVerb::Uncordon(args) => (args, Standing::Open, None),
        NodeVerb::Drain { args, within } => (args, Standing::Draining, Some(within.0)),
    };
    let node = args.node.as_str();
    let doing = match standing {
        Standing::Cordoned => format!("cordon {node}"),
        Standing::Draining => format!("drain {node}"),
        Standing::Open | Standing::Unspecified => format!("uncordon {node}"),
    };
    let request = wire::SetStandingRequest { node: node.into(), standing: standing.into() };
    let reply = client.call(&doing, QUICK, async |mut control| control.set_standing(request).await).await?;
    let mut holds = holds(client, node).await?;
    if let Some(within) = within {
        let emptied = async {
            while holds != (0, 0) {
                tokio::time::sleep(LOOK).await;
                holds = self::holds(client, node).await?;
            }
            Ok::<(), CliError>(())
        };
        match tokio::time::timeout(within, emptied).await {
            Ok(emptied) => emptied?,
            Err(_elapsed) if within.is_zero() => {}
            Err(_elapsed) => {
                return Err(CliError::NotDrained { node: node.into(), sandboxes: holds.0, within });
            }
        }
    }
    let (sandboxes, requests) = holds;
    let view = StandingView { node, standing: standing.word(), changed: reply.changed, sandboxes, requests };
    output.answer(&view, || {
        let already = if view.changed { "" } else { " already" };
        let sandboxes = human::count(u64::from(sandboxes), "sandbox", "sandboxes");
        format!("{node} is {}{already}, with {sandboxes}\n", view.standing)
    })
}

/// Sandboxes of a node and requests inside them. A node that is away holds nothing.
async fn holds(client: &Client, node: &str) -> Result<(u32, u32), CliError> {
    let nodes = client.list_nodes().await?.nodes;
    let row = nodes.into_iter().find(|row| row.node == node);
    Ok(row.map_or((0, 0), |row| (row.sandboxes, row.requests)))
}
