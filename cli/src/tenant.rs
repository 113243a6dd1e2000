//! `medes tenant list|delete`: whose functions there are, and the end of what was kept under a tenant's key.

use std::time::{Duration, SystemTime};

use medes_dedup::key::KeyId;
use medes_proto::{ids::TenantName, wire};
use serde::Serialize;

use crate::{
    client::{Client, OPERATION, QUICK},
    error::{CliError, Ended},
    human,
    output::{Output, Sheet},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TenantVerb {
    /// List tenants: their functions, which key each has, and the nodes that know it
    List,
    /// Delete a tenant's key, and with it all that was made under it
    ///
    /// Only of a tenant without functions. Every node forgets the key and drops what it still holds of the tenant. A tenant that comes again
    /// has another key.
    Delete {
        /// Its name
        name: TenantName,
        /// Yes, for good
        #[arg(long)]
        yes: bool,
    },
}

/// Times are seconds since 1970. Keys are named, never shown.
#[derive(Serialize)]
struct TenantView {
    tenant: String,
    functions: Vec<String>,
    key: String,
    created: u64,
    nodes: Vec<NodeView>,
}

#[derive(Serialize)]
struct NodeView {
    node: String,
    key: String,
}

#[derive(Serialize)]
struct DeletedView {
    tenant: String,
    key: String,
    forgotten_by: Vec<ForgottenView>,
    unreachable: Vec<UnreachableView>,
}

#[derive(Serialize)]
struct ForgottenView {
    node: String,
    sandboxes: u32,
    snapshots: u32,
}

#[derive(Serialize)]
struct UnreachableView {
    node: String,
    why: String,
}

pub(crate) async fn run(verb: TenantVerb, client: &Client, output: &Output) -> Result<Ended, CliError> {
    let mut tenants = client.tenants();
    match verb {
        TenantVerb::List => {
            let ask = wire::ListTenantsRequest {};
            let reply = client.call("list tenants", QUICK, async |_| tenants.list(ask).await).await?;
            list(reply.tenants, output)?;
            Ok(Ended::Well)
        }
        TenantVerb::Delete { name, yes: false } => Err(CliError::Unconfirmed { tenant: name }),
        TenantVerb::Delete { name, yes: true } => {
            let request = wire::DeleteTenantRequest { tenant: name.to_string() };
            let doing = format!("delete tenant {name}");
            let reply = client.call(&doing, OPERATION, async |_| tenants.delete(request).await).await?;
            deleted(name, reply, output)
        }
    }
}

fn key(id: u64) -> String {
    KeyId(id).to_string()
}

fn list(rows: Vec<wire::TenantRow>, output: &Output) -> Result<(), CliError> {
    let now = SystemTime::now();
    let node = |wire::TenantNode { node, key_id }| NodeView { node, key: key(key_id) };
    let views = rows.into_iter().map(|row| {
        let wire::TenantRow { tenant, functions, key_id, created_s, nodes } = row;
        let nodes = nodes.into_iter().map(node).collect();
        TenantView { tenant, functions, key: key(key_id), created: created_s, nodes }
    });
    let views: Vec<_> = views.collect();
    output.answer(&views, || {
        let mut sheet = Sheet::new(&["TENANT", "FUNCTIONS", "KEY", ">AGE", "NODES"]);
        for view in &views {
            let created = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(view.created));
            let age = created.and_then(|created| now.duration_since(created).ok()).unwrap_or_default();
            let nodes: Vec<&str> = view.nodes.iter().map(|node| &*node.node).collect();
            sheet.row(vec![
                view.tenant.clone(),
                view.functions.join(" "),
                view.key.clone(),
                human::age(age),
                nodes.join(" "),
            ]);
        }
        sheet.text("no tenants")
    })
}

/// Good only if every node has confirmed: who did not may still have the key.
fn deleted(
    name: TenantName,
    wire::DeleteTenantReply { key_id, nodes }: wire::DeleteTenantReply,
    output: &Output,
) -> Result<Ended, CliError> {
    let (confirmed, silent): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|node| node.failure.is_empty());
    let forgotten_by = confirmed.into_iter().map(|node| {
        let wire::ForgottenOn { node, sandboxes, snapshots, failure: _ } = node;
        ForgottenView { node, sandboxes, snapshots }
    });
    let unreachable = silent.into_iter().map(|node| UnreachableView { node: node.node, why: node.failure });
    let view = DeletedView {
        tenant: name.into(),
        key: key(key_id),
        forgotten_by: forgotten_by.collect(),
        unreachable: unreachable.collect(),
    };
    output.answer(&view, || {
        let by = human::count(view.forgotten_by.len() as u64, "node", "nodes");
        let mut text = format!("key {} of tenant {} deleted, forgotten by {by}\n", view.key, view.tenant);
        for UnreachableView { node, why } in &view.unreachable {
            text.push_str(&format!("{node} has not confirmed, and forgets it when it comes back: {why}\n"));
        }
        text
    })?;
    Ok(if view.unreachable.is_empty() { Ended::Well } else { Ended::Badly })
}
