//! `medes nodes`: every node, its memory as the kernel counts it, and what it cannot do.

use std::time::Duration;

use medes_proto::{
    WireError,
    fleet::{NodeMemory, SnapshotReport},
    standing::Standing,
    wire,
};
use serde::Serialize;

use crate::{
    client::Client,
    error::CliError,
    human,
    output::{Output, Sheet},
    view::SnapshotView,
};

/// Every node, and the registry.
#[derive(Serialize)]
pub(crate) struct NodesView {
    nodes: Vec<NodeView>,
    registry: RegistryView,
}

#[derive(Serialize)]
struct NodeView {
    node: String,
    address: String,
    version: String,
    cap_bytes: u64,
    used_bytes: u64,
    base_bytes: u64,
    image_bytes: u64,
    agent_bytes: u64,
    silent_ms: u64,
    sandboxes: u32,
    snapshots: Vec<SnapshotView>,
    lacks: Vec<String>,
    standing: &'static str,
    connected: bool,
    incarnation: u64,
    requests: u32,
    resting: u32,
}

#[derive(Serialize)]
struct RegistryView {
    entries: u64,
    bytes: u64,
}

impl TryFrom<wire::NodeRow> for NodeView {
    type Error = WireError;

    fn try_from(row: wire::NodeRow) -> Result<Self, WireError> {
        let wire::NodeRow {
            node,
            address,
            version,
            memory,
            silent_ms,
            sandboxes,
            snapshots,
            lacks,
            standing,
            connected,
            incarnation,
            requests,
            resting,
        } = row;
        let standing = Standing::from_wire(standing, "nodes.standing")?.word();
        let NodeMemory { cap_bytes, used_bytes, base_bytes, image_bytes, agent_bytes } =
            memory.unwrap_or_default().into();
        let snapshot = |raw| Ok(SnapshotView::from(&SnapshotReport::try_from(raw)?));
        let snapshots = snapshots.into_iter().map(snapshot).collect::<Result<_, WireError>>()?;
        Ok(Self {
            node,
            address,
            version,
            cap_bytes,
            used_bytes,
            base_bytes,
            image_bytes,
            agent_bytes,
            silent_ms,
            sandboxes,
            snapshots,
            lacks,
            standing,
            connected,
            incarnation,
            requests,
            resting,
        })
    }
}

pub(crate) async fn run(client: &Client, output: &Output) -> Result<(), CliError> {
    let view = view(client).await?;
    output.answer(&view, || table(&view))
}

/// Asks the controller.
pub(crate) async fn view(client: &Client) -> Result<NodesView, CliError> {
    let wire::ListNodesReply { nodes, registry_entries, registry_bytes } = client.list_nodes().await?;
    let mut nodes = nodes
        .into_iter()
        .map(NodeView::try_from)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| CliError::Reply { doing: "list nodes".into(), source })?;
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    Ok(NodesView { nodes, registry: RegistryView { entries: registry_entries, bytes: registry_bytes } })
}

fn table(view: &NodesView) -> String {
    let mut sheet = Sheet::new(&[
        "NODE",
        "ADDRESS",
        ">USED",
        ">CAP",
        ">BASES",
        ">IMAGES",
        ">AGENT",
        ">SANDBOXES",
        ">SEEN",
        "LACKS",
    ]);
    for node in &view.nodes {
        sheet.row(vec![
            node.node.clone(),
            node.address.clone(),
            human::bytes(node.used_bytes),
            human::bytes_or_dash(node.cap_bytes),
            human::bytes_or_dash(node.base_bytes),
            human::bytes_or_dash(node.image_bytes),
            human::bytes_or_dash(node.agent_bytes),
            node.sandboxes.to_string(),
            human::age(Duration::from_millis(node.silent_ms)),
            node.lacks.join("; "),
        ]);
    }
    let kept = view.nodes.iter().filter(|node| node.standing != Standing::Open.word());
    let kept: String = kept.map(|node| format!("{} is {}\n", node.node, node.standing)).collect();
    let entries = human::count(view.registry.entries, "entry", "entries");
    format!("{}{kept}registry: {entries}, {}\n", sheet.text("no nodes"), human::bytes(view.registry.bytes))
}
