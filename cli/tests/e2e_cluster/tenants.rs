//! Tenants' keys: on the nodes that need them and on no other, until they are deleted.

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::until,
};

const WAITS: &[&str] = &["--takeover", "60"];

fn apply(cluster: &Cluster, name: &str, tenant: &str) {
    let lines = format!("memory = '256MiB'\ntenant = '{tenant}'");
    cluster.ask(&["function", "apply", &cluster.function_file(name, &[], &lines)]);
}

fn row(cluster: &Cluster, tenant: &str) -> Option<Value> {
    let rows = cluster.ask(&["tenant", "list"]);
    rows.as_array().unwrap().iter().find(|row| row["tenant"] == tenant).cloned()
}

/// Nodes that say they know a tenant's key, and which.
fn known_on(cluster: &Cluster, tenant: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let nodes = row(cluster, tenant).map(|row| row["nodes"].clone()).unwrap_or(json!([]));
    nodes.as_array().unwrap().iter().map(|node| (text(&node["node"]), text(&node["key"]))).collect()
}

#[track_caller]
fn until_known_on(cluster: &Cluster, tenant: &str, nodes: &[&str]) -> String {
    let key = row(cluster, tenant).unwrap()["key"].as_str().unwrap().to_owned();
    let wanted: Vec<_> = nodes.iter().map(|name| (cluster.node(name), key.clone())).collect();
    until(&format!("{tenant}'s key is on {nodes:?}"), || (known_on(cluster, tenant) == wanted).then_some(()));
    key
}

#[test]
fn tenants_have_users_of_their_own() {
    if !can_run("tenants_have_users_of_their_own") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &[])]);
    for (function, tenant) in [("f", "acme"), ("g", "shop"), ("h", "acme")] {
        apply(&cluster, function, tenant);
    }
    let who = |sandbox: &str, function: &str| {
        let said = cluster.post_to(sandbox, &format!("{function}/who")).good();
        assert_eq!(said["reads"], json!(false), "{said}");
        let users = said["users"].as_array().unwrap().clone();
        assert!(users.iter().all(|user| *user == users[0]), "{said}");
        users[0].as_u64().unwrap()
    };
    let (one, other) = (cluster.start_on("a", "f"), cluster.start_on("a", "g"));
    let (acme, shop) = (who(&one, "f"), who(&other, "g"));
    assert!(acme != shop && [acme, shop].iter().all(|user| user >> 24 == 0x70), "{acme:x} {shop:x}");
    assert_eq!(who(&cluster.start_on("b", "h"), "h"), acme, "on every node the same");
    cluster.ask(&["dedup", &one]);
    cluster.ask(&["move", &one, "--node", &cluster.node("b")]);
    cluster.ask(&["restore", &one]);
    assert_eq!(who(&one, "f"), acme);
}

#[test]
fn a_tenants_key_is_where_it_is_needed_and_can_be_deleted() {
    if !can_run("a_tenants_key_is_where_it_is_needed_and_can_be_deleted") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &[])]);
    apply(&cluster, "f", "acme");
    apply(&cluster, "g", "shop");
    let (one, other) = (cluster.start_on("a", "f"), cluster.start_on("b", "g"));
    cluster.ask(&["base", &one]);
    let of_acme = until_known_on(&cluster, "acme", &["a"]);
    let of_shop = until_known_on(&cluster, "shop", &["b"]);
    assert_ne!(of_acme, of_shop);

    // It goes along with what is made under it.
    cluster.ask(&["dedup", &other]);
    cluster.ask(&["move", &other, "--node", &cluster.node("a")]);
    until_known_on(&cluster, "shop", &["a"]);
    cluster.ask(&["restore", &other]);
    cluster.post_to(&other, "g/count").good();

    let error = cluster.refused(&["tenant", "delete", "acme"]);
    assert_eq!(error["kind"], "unconfirmed", "{error}");
    let error = cluster.refused(&["tenant", "delete", "acme", "--yes"]);
    assert_eq!(error["kind"], "failed_precondition", "{error}");
    assert!(error["message"].as_str().unwrap().contains("remove them first: f"), "{error}");
    until_known_on(&cluster, "acme", &["a"]);

    cluster.ask(&["function", "rm", "f"]);
    let deleted = cluster.ask(&["tenant", "delete", "acme", "--yes"]);
    assert_eq!((&deleted["key"], &deleted["unreachable"]), (&json!(of_acme), &json!([])), "{deleted}");
    assert_eq!(deleted["forgotten_by"].as_array().unwrap().len(), 2, "{deleted}");
    assert!(row(&cluster, "acme").is_none());
    until("its base is gone from the node", || {
        let nodes = cluster.ask(&["nodes"])["nodes"].clone();
        nodes.as_array()?.iter().all(|node| node["snapshots"] == json!([])).then_some(())
    });
    until_known_on(&cluster, "shop", &["a"]);

    apply(&cluster, "f", "acme");
    let one = cluster.start_on("b", "f");
    assert_ne!(
        until_known_on(&cluster, "acme", &["b"]),
        of_acme,
        "what was made under the old key is nobody's"
    );
    cluster.ask(&["dedup", &one]);
    cluster.ask(&["restore", &one]);
    cluster.post_to(&one, "f/count").good();
}

#[test]
fn what_a_deleted_tenant_left_with_a_node_that_was_away_goes_when_it_is_back() {
    if !can_run("what_a_deleted_tenant_left_with_a_node_that_was_away_goes_when_it_is_back") {
        return;
    }
    // Long enough that the node is away, not given up.
    let config = QUIET.replace("heartbeat =", "heartbeats_missed_max = 500\nheartbeat =");
    let mut cluster = Cluster::start(&config, &[("a", WAITS), ("b", &[])]);
    apply(&cluster, "f", "acme");
    let source = cluster.start_on("a", "f");
    cluster.ask(&["base", &source]);
    let sandbox = cluster.start_on("a", "f");
    cluster.ask(&["dedup", &sandbox]);
    let old = until_known_on(&cluster, "acme", &["a"]);
    let snapshots = |cluster: &Cluster| {
        let nodes = cluster.ask(&["nodes"])["nodes"].clone();
        nodes
            .as_array()
            .unwrap()
            .iter()
            .map(|node| node["snapshots"].as_array().unwrap().len())
            .sum::<usize>()
    };
    assert_eq!(snapshots(&cluster), 1);

    // Its agent leaves both to the next one, which has never been told any key.
    cluster.kill_agent("a");
    cluster.ask(&["function", "rm", "f"]);
    let (code, deleted) = cluster.medes(&["tenant", "delete", "acme", "--yes"]);
    assert_eq!((code, &deleted["unreachable"][0]["node"]), (1, &json!(cluster.node("a"))), "{deleted}");
    apply(&cluster, "f", "acme");
    cluster.start_agent("a", WAITS);
    let node = cluster.node("a");
    until("the next agent is there", || {
        let nodes = cluster.ask(&["nodes"])["nodes"].clone();
        nodes.as_array()?.iter().any(|row| row["node"] == *node && row["connected"] == true).then_some(())
    });
    let another = cluster.start_on("a", "f");
    assert_ne!(until_known_on(&cluster, "acme", &["a"]), old);
    until("what was made under the old key is gone", || {
        (snapshots(&cluster) == 0 && cluster.state(&sandbox) == "gone").then_some(())
    });
    let deduped = cluster.ask(&["dedup", &another]);
    assert_eq!(deduped["sandbox"]["bases"], json!([]), "made with nothing from before: {deduped}");
    cluster.ask(&["restore", &another]);
    cluster.post_to(&another, "f/count").good();
}
