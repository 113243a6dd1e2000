//! Sandboxes in dedup that go to another node: because somebody says so, a node is drained, or a request wants one.

use serde_json::json;

use crate::cluster::{Cluster, QUIET, can_run};
use crate::program::until;

/// A sandbox with state in dedup on node a; what it says of itself.
fn put_away(cluster: &Cluster) -> (String, serde_json::Value) {
    cluster.apply("f");
    let base = cluster.start_on("a", "f");
    cluster.ask(&["base", &base]);
    let sandbox = cluster.start_on("a", "f");
    cluster.post_to(&sandbox, "f/family").good();
    cluster.post_to(&sandbox, "f/ballast?mib=8").good();
    let look = cluster.post_to(&sandbox, "f/look").good();
    cluster.ask(&["purge", &base]);
    (sandbox, look)
}

fn digest(answer: &serde_json::Value) -> String {
    answer["memory_digest"].as_str().unwrap().to_owned()
}

#[test]
fn a_sandbox_moves_and_is_what_it_was() {
    if !can_run("a_sandbox_moves_and_is_what_it_was") {
        return;
    }
    // With certificates: an agent gives a sandbox to the node it was told to, and to nobody else.
    let cluster = Cluster::start_secured(QUIET, &[("a", &[]), ("b", &[])]);
    let (sandbox, before) = put_away(&cluster);
    let refused = cluster.refused(&["move", &sandbox]);
    assert!(refused.to_string().contains("not dedup"), "{refused}");
    let memory = digest(&cluster.ask(&["dedup", "--digest", &sandbox]));
    cluster.ask(&["move", &sandbox, "--node", &cluster.node("b")]);
    assert_eq!(cluster.row(&sandbox).unwrap()["node"], json!(cluster.node("b")));
    assert_eq!(cluster.state(&sandbox), "dedup");
    let restored = cluster.ask(&["restore", "--digest", &sandbox]);
    assert_eq!(digest(&restored), memory, "every byte of it");
    let after = cluster.post_to(&sandbox, "f/look");
    assert_eq!((after.start(), after.node()), ("warm", &*cluster.node("b")), "{after:?}");
    let after = after.good();
    for name in ["tcp", "unix", "pid"] {
        assert_eq!(after[name], before[name], "{name}");
    }
    // Files: one that is open, one with a name, one that has none any more. Each look writes to them.
    for name in ["kept", "path", "unlinked"] {
        let was = before[name].as_str().unwrap();
        assert!(after[name].as_str().unwrap().starts_with(was), "{name}: {before} {after}");
    }
    let why = cluster.ask(&["explain", &sandbox]).to_string();
    assert!(why.contains("somebody asked for it") && why.contains("move to"), "{why}");
    // And back again, another way: its node is kept from work, and a request names it.
    cluster.ask(&["dedup", &sandbox]);
    cluster.ask(&["node", "cordon", &cluster.node("b")]);
    let back = cluster.post_to(&sandbox, "f/look");
    assert_eq!(back.good()["pid"], before["pid"]);
    assert_eq!((back.start(), back.sandbox(), back.node()), ("restore", &*sandbox, &*cluster.node("a")));
    assert_eq!(cluster.ask(&["ps"]).as_array().unwrap().len(), 1, "one sandbox in all");
}

#[test]
fn what_a_drained_node_has_in_dedup_goes_elsewhere() {
    if !can_run("what_a_drained_node_has_in_dedup_goes_elsewhere") {
        return;
    }
    let config = QUIET.replace("base_copies = 1", "base_copies = 2");
    let mut cluster = Cluster::start(&config, &[("a", &[]), ("b", &[])]);
    let (sandbox, before) = put_away(&cluster);
    cluster.ask(&["dedup", &sandbox]);
    cluster.ask(&["node", "drain", &cluster.node("a")]);
    let there = || (cluster.row(&sandbox)?["node"] == json!(cluster.node("b"))).then_some(());
    until("it has gone to the other node", there);
    // What it is made of was copied as well: its old node is not needed any more.
    until("its base is on the other node", || {
        let nodes = cluster.ask(&["nodes"])["nodes"].as_array()?.clone();
        let b = nodes.iter().find(|node| node["node"] == json!(cluster.node("b")))?;
        b["snapshots"].as_array().is_some_and(|held| !held.is_empty()).then_some(())
    });
    cluster.kill_agent("a");
    let after = cluster.post("f/look");
    assert_eq!((after.start(), after.sandbox()), ("restore", &*sandbox), "{after:?}");
    assert_eq!(after.good()["pid"], before["pid"]);
}

#[test]
fn a_sandbox_that_was_to_go_to_a_dead_node_stays_where_it_is() {
    if !can_run("a_sandbox_that_was_to_go_to_a_dead_node_stays_where_it_is") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &[])]);
    let (sandbox, _) = put_away(&cluster);
    cluster.ask(&["dedup", &sandbox]);
    cluster.kill_agent("b");
    let refused = cluster.refused(&["move", &sandbox, "--node", &cluster.node("b")]);
    assert!(!refused.to_string().is_empty());
    assert_eq!(cluster.row(&sandbox).unwrap()["node"], json!(cluster.node("a")));
    let after = until("it is restored where it was", || {
        let reply = cluster.post_to(&sandbox, "f/look");
        (reply.sandbox() == sandbox).then_some(reply)
    });
    assert_eq!(after.node(), cluster.node("a"));
}
