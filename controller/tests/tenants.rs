//! Tenants and their keys, with fake agents over loopback: who is told which, and what is left when one is deleted.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use medes_proto::{
    fleet::{AgentMessage, HeldKey, Hello},
    wire::{self, fleet_client::FleetClient},
};
use support::{Agent, Cluster, until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, transport::Channel};

fn function(name: &str, tenant: &str) -> String {
    format!("name = '{name}'\ncommand = ['x']\ntenant = '{tenant}'")
}

async fn list(cluster: &Cluster) -> Vec<wire::TenantRow> {
    cluster.tenants().await.list(wire::ListTenantsRequest {}).await.unwrap().into_inner().tenants
}

async fn delete(cluster: &Cluster, tenant: &str) -> Result<wire::DeleteTenantReply, tonic::Status> {
    let request = wire::DeleteTenantRequest { tenant: tenant.into() };
    Ok(cluster.tenants().await.delete(request).await?.into_inner())
}

async fn start_on(cluster: &mut Cluster, function: &str, node: &str) {
    let request = wire::StartSandboxRequest { function: function.into(), node: node.into(), cold: true };
    support::succeeded(cluster.control.start_sandbox(request).await);
}

fn tenants(keys: &[HeldKey]) -> Vec<&str> {
    keys.iter().map(|held| held.tenant.as_str()).collect()
}

#[tokio::test]
async fn agents_are_told_the_keys_of_their_tenants_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), &[]).await;
    for (name, tenant) in [("f", "a"), ("g", "b"), ("h", "c")] {
        cluster.apply(&function(name, tenant)).await;
    }
    let one = Agent::start("n1", cluster.controller.control).await;
    let two = Agent::start("n2", cluster.controller.control).await;
    cluster.until_nodes(2).await;
    start_on(&mut cluster, "f", "n1").await;
    start_on(&mut cluster, "g", "n2").await;
    // A start is answered after its key was told, on the same stream.
    assert_eq!((tenants(&one.told()), tenants(&two.told())), (vec!["a"], vec!["b"]));
    assert_ne!(one.keys()[0].id, two.keys()[0].id);

    let told = async || {
        let rows = list(&cluster).await;
        (rows.iter().map(|row| row.nodes.len()).sum::<usize>() == 2).then_some(rows)
    };
    let rows = until("the list knows what nodes know", told).await;
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            let nodes: Vec<_> =
                row.nodes.iter().map(|node| (&*node.node, node.key_id == row.key_id)).collect();
            (&*row.tenant, row.functions.join(" "), nodes)
        })
        .collect();
    assert_eq!(
        rows,
        [
            ("a", "f".to_owned(), vec![("n1", true)]),
            ("b", "g".to_owned(), vec![("n2", true)]),
            ("c", "h".to_owned(), vec![])
        ]
    );
}

#[tokio::test]
async fn a_key_is_deleted_when_no_function_needs_it_and_the_next_one_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), &[]).await;
    cluster.apply(&function("f", "a")).await;
    cluster.apply(&function("e", "a")).await;
    let agent = Agent::start("n1", cluster.controller.control).await;
    cluster.until_nodes(1).await;
    start_on(&mut cluster, "f", "n1").await;
    let old = agent.keys().remove(0);

    let refused = delete(&cluster, "a").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("e, f"), "{refused}");
    assert_eq!(delete(&cluster, "nobody").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(delete(&cluster, "No!").await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(agent.keys(), std::slice::from_ref(&old));

    for name in ["e", "f"] {
        cluster.control.remove_function(wire::RemoveFunctionRequest { name: name.into() }).await.unwrap();
    }
    let done = delete(&cluster, "a").await.unwrap();
    assert_eq!((done.key_id, done.nodes.len()), (old.id.0, 1));
    assert_eq!((&*done.nodes[0].node, &*done.nodes[0].failure), ("n1", ""));
    assert!(agent.keys().is_empty(), "it has confirmed");
    assert!(list(&cluster).await.is_empty());
    assert_eq!(delete(&cluster, "a").await.unwrap_err().code(), Code::NotFound);

    cluster.apply(&function("f", "a")).await;
    start_on(&mut cluster, "f", "n1").await;
    let new = agent.keys().remove(0);
    assert_ne!(new.id, old.id);
    assert_eq!(list(&cluster).await[0].key_id, new.id.0);
}

#[tokio::test]
async fn a_node_that_cannot_be_reached_is_named_and_hears_of_it_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    // Long enough that the node is not given up meanwhile.
    let mut cluster = Cluster::start(folder.path(), &["fleet.heartbeats_missed_max=100"]).await;
    cluster.apply(&function("f", "a")).await;
    let agent = Agent::start("n1", cluster.controller.control).await;
    cluster.until_nodes(1).await;
    start_on(&mut cluster, "f", "n1").await;
    agent.kill().await;
    cluster.control.remove_function(wire::RemoveFunctionRequest { name: "f".into() }).await.unwrap();
    let done = delete(&cluster, "a").await.unwrap();
    assert_eq!(done.nodes.len(), 1);
    assert!(!done.nodes[0].failure.is_empty(), "{done:?}");
    // Of a deleted key nobody is told anything, whatever he says he has.
    let back = Agent::start("n1", cluster.controller.control).await;
    let welcomed = async || back.welcome();
    assert!(until("a welcome", welcomed).await.keys.is_empty());
}

/// Says Hello as agents said it before tenants had keys of their own; what it hears.
async fn attach_as_before(
    cluster: &Cluster,
) -> Result<(mpsc::Sender<wire::AgentMessage>, tonic::Streaming<wire::ControllerMessage>), tonic::Status> {
    let inventory = medes_proto::fleet::Inventory::default();
    let (node, address) = ("old".parse().unwrap(), "127.0.0.1:1".into());
    let hello = Hello { node, incarnation: 1, version: "0".into(), address, inventory, lacks: Vec::new() };
    let mut message = wire::AgentMessage::from(AgentMessage::Hello(hello));
    if let Some(wire::agent_message::Message::Hello(hello)) = &mut message.message {
        hello.keys_by_tenant = false;
    }
    let (sender, messages) = mpsc::channel(8);
    sender.send(message).await.unwrap();
    let channel = Channel::from_shared(format!("http://{}", cluster.controller.control)).unwrap();
    let mut fleet = FleetClient::new(channel.connect().await.unwrap());
    Ok((sender, fleet.attach(ReceiverStream::new(messages)).await?.into_inner()))
}

#[tokio::test]
async fn an_agent_of_an_earlier_version_hears_what_it_knows_as_long_as_there_is_that() {
    use wire::controller_message::Message;
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(folder.path(), &[]).await;
    let refused = attach_as_before(&cluster).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "a new store has no domain key: {refused}");
    assert!(cluster.controller.stop().await);

    // As an earlier version left it.
    let database = redb::Database::open(folder.path().join("controller.redb")).unwrap();
    let write = database.begin_write().unwrap();
    let secrets = redb::TableDefinition::<&str, &[u8]>::new("secrets");
    write.open_table(secrets).unwrap().insert("domain key", &[7; 32][..]).unwrap();
    write.commit().unwrap();
    drop(database);
    let mut cluster = Cluster::start(folder.path(), &["fleet.settle=0s"]).await;
    cluster.apply(&function("f", "a")).await;
    let (_hello, mut said) = attach_as_before(&cluster).await.unwrap();
    let Some(Message::Welcome(welcome)) = said.message().await.unwrap().unwrap().message else {
        panic!("not a welcome")
    };
    assert_eq!(welcome.domain_key[..], [7; 32]);
    let mut control = cluster.control.clone();
    let start = wire::StartSandboxRequest { function: "f".into(), node: "old".into(), cold: true };
    let next = tokio::select! {
        next = said.message() => next.unwrap().unwrap().message,
        started = control.start_sandbox(start) => panic!("nobody has done so: {started:?}"),
    };
    assert!(matches!(next, Some(Message::Command(_))), "no message that it does not know: {next:?}");
}
