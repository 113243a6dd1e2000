//! `medes node cordon|uncordon|drain|rest`: keep work away from a node, and let it come again.

use std::time::Duration;

use medes_proto::{ids::NodeId, standing::Standing, units::Span, wire};
use serde::Serialize;

use crate::{
    client::{Client, QUICK},
    error::CliError,
    human,
    output::Output,
};

/// Between two looks at what a node that gets no more work still does.
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
    /// Send nothing to a node, and wait until all that is left on it rests: before its agent is replaced
    ///
    /// Requests inside its sandboxes are seen to their end, and then these are parked or deduplicated; what cannot be ends. An agent with
    /// `--takeover` leaves them to the next one on the node. The node stays so until `medes node uncordon`.
    Rest {
        #[command(flatten)]
        args: NodeArgs,
        /// How long to wait; 0s only asks
        #[arg(long, default_value = "5m")]
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
    resting: u32,
    requests: u32,
}

/// What a node has at one look.
#[derive(Default)]
struct Holds {
    sandboxes: u32,
    resting: u32,
    requests: u32,
}

impl Holds {
    /// Sandboxes that a node of this standing is to lose yet.
    fn too_many(&self, standing: Standing) -> u32 {
        match standing {
            Standing::Resting => self.sandboxes.saturating_sub(self.resting),
            _ => self.sandboxes,
        }
    }
}

pub(crate) async fn run(verb: NodeVerb, client: &Client, output: &Output) -> Result<(), CliError> {
    let (verb, args, standing, within) = match verb {
        NodeVerb::Cordon(args) => ("cordon", args, Standing::Cordoned, None),
        NodeVerb::Uncordon(args) => ("uncordon", args, Standing::Open, None),
        NodeVerb::Drain { args, within } => ("drain", args, Standing::Draining, Some(within.0)),
        NodeVerb::Rest { args, within } => ("rest", args, Standing::Resting, Some(within.0)),
    };
    let node = args.node.as_str();
    let request = wire::SetStandingRequest { node: node.into(), standing: standing.into() };
    let doing = format!("{verb} {node}");
    let reply = client.call(&doing, QUICK, async |mut control| control.set_standing(request).await).await?;
    let mut holds = holds(client, node).await?;
    if let Some(within) = within {
        let settled = async {
            while (holds.too_many(standing), holds.requests) != (0, 0) {
                tokio::time::sleep(LOOK).await;
                holds = self::holds(client, node).await?;
            }
            Ok::<(), CliError>(())
        };
        match tokio::time::timeout(within, settled).await {
            Ok(settled) => settled?,
            Err(_elapsed) if within.is_zero() => {}
            Err(_elapsed) => {
                let (node, sandboxes) = (node.into(), holds.too_many(standing));
                return Err(match standing {
                    Standing::Resting => CliError::NotAtRest { node, sandboxes, within },
                    _ => CliError::NotDrained { node, sandboxes, within },
                });
            }
        }
    }
    let Holds { sandboxes, resting, requests } = holds;
    let (standing, changed) = (standing.word(), reply.changed);
    let view = StandingView { node, standing, changed, sandboxes, resting, requests };
    output.answer(&view, || {
        let already = if view.changed { "" } else { " already" };
        let sandboxes = human::count(u64::from(sandboxes), "sandbox", "sandboxes");
        format!("{node} is {}{already}, with {sandboxes}\n", view.standing)
    })
}

/// What a node has now. One that is away has nothing.
async fn holds(client: &Client, node: &str) -> Result<Holds, CliError> {
    let nodes = client.list_nodes().await?.nodes;
    let row = nodes.into_iter().find(|row| row.node == node);
    let holds =
        row.map(|row| Holds { sandboxes: row.sandboxes, resting: row.resting, requests: row.requests });
    Ok(holds.unwrap_or_default())
}
