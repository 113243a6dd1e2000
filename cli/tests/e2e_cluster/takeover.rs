//! What an agent leaves to the next one on its node.

use serde_json::json;

use crate::cluster::{Cluster, QUIET, can_run};
use crate::program::until;

const WAITS: &[&str] = &["--takeover", "60"];

/// A sandbox with state, made small by a base, in dedup on node a; the base, what it says of itself and what its memory was.
fn put_away(cluster: &Cluster) -> (String, String, serde_json::Value, serde_json::Value) {
    cluster.apply("f");
    let base = cluster.start_on("a", "f");
    cluster.ask(&["base", &base]);
    let snapshot = cluster.row(&base).unwrap()["base_snapshot"].as_str().unwrap().to_owned();
    let sandbox = cluster.start_on("a", "f");
    cluster.post_to(&sandbox, "f/family").good();
    let look = cluster.post_to(&sandbox, "f/look").good();
    let memory = cluster.ask(&["dedup", "--digest", &sandbox])["memory_digest"].clone();
    (sandbox, snapshot, look, memory)
}

/// It is in dedup, with the base it had, and comes back as what it was.
fn comes_back(
    cluster: &Cluster,
    (sandbox, base): (&str, &str),
    look: &serde_json::Value,
    memory: &serde_json::Value,
) {
    let row = cluster.row(sandbox).unwrap();
    assert_eq!((&row["state"], &row["bases"]), (&json!("dedup"), &json!([base])), "{row}");
    let restored = cluster.ask(&["restore", "--digest", sandbox]);
    assert_eq!(restored["memory_digest"], *memory, "every byte of it");
    let after = cluster.post_to(sandbox, "f/look").good();
    for name in ["tcp", "unix", "pid"] {
        assert_eq!(after[name], look[name], "{name}");
    }
    for name in ["kept", "path", "unlinked"] {
        assert!(after[name].as_str().unwrap().starts_with(look[name].as_str().unwrap()), "{name}: {after}");
    }
}

/// Ends the agent of node a, and waits until the controller knows another one there.
fn replace(cluster: &mut Cluster, end: fn(&mut Cluster, &str)) {
    let node = cluster.node("a");
    let life = |cluster: &Cluster| {
        let rows = cluster.ask(&["nodes"]);
        let row = rows["nodes"].as_array()?.iter().find(|row| row["node"] == node.as_str())?.clone();
        (row["connected"] == true).then(|| row["incarnation"].clone())
    };
    let before = life(cluster);
    end(cluster, "a");
    cluster.start_agent("a", WAITS);
    until("another agent is known", || life(cluster).filter(|now| Some(now) != before.as_ref()));
}

#[test]
fn what_is_in_dedup_outlives_a_killed_agent_once() {
    if !can_run("what_is_in_dedup_outlives_a_killed_agent_once") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", WAITS)]);
    let (sandbox, base, look, memory) = put_away(&cluster);
    let warm = cluster.processes();
    assert_eq!(warm.len(), 1, "that of the base");
    replace(&mut cluster, Cluster::kill_agent);
    assert!(cluster.processes().is_empty(), "what had processes is gone");
    assert_eq!(cluster.ask(&["ps"]).as_array().unwrap().len(), 1);
    comes_back(&cluster, (&sandbox, &base), &look, &memory);
    // Put away again, it is made with the same base; and outlives this agent as well.
    let memory = cluster.ask(&["dedup", "--digest", &sandbox])["memory_digest"].clone();
    let look = json!({ "tcp": look["tcp"], "unix": look["unix"], "pid": look["pid"], "kept": "", "path": "", "unlinked": "" });
    replace(&mut cluster, Cluster::kill_agent);
    comes_back(&cluster, (&sandbox, &base), &look, &memory);
    // It is warm. Its image was used, so this time nothing comes back: two of one image would be two of one sandbox.
    replace(&mut cluster, Cluster::kill_agent);
    assert_eq!(cluster.state(&sandbox), "gone");
    let another = cluster.start_on("a", "f");
    let deduped = cluster.ask(&["dedup", &another]);
    assert_eq!(deduped["sandbox"]["bases"], json!([base]), "the base is still there: {deduped}");
}

#[test]
fn an_agent_that_is_told_to_stop_leaves_the_same() {
    if !can_run("an_agent_that_is_told_to_stop_leaves_the_same") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", WAITS), ("b", &[])]);
    let (sandbox, base, look, memory) = put_away(&cluster);
    // Another node's sandbox needs the base too.
    let away = cluster.start_on("b", "f");
    assert_eq!(cluster.post_to(&away, "f/count").good()["count"], 1);
    let deduped = cluster.ask(&["dedup", &away]);
    assert_eq!(deduped["sandbox"]["bases"], json!([base]), "{deduped}");
    replace(&mut cluster, Cluster::stop_agent);
    comes_back(&cluster, (&sandbox, &base), &look, &memory);
    let back = cluster.post_to(&away, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)));
}

#[test]
fn what_nobody_comes_for_goes() {
    if !can_run("what_nobody_comes_for_goes") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &["--takeover", "3"])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    cluster.ask(&["dedup", &sandbox]);
    let node = cluster.node("a");
    assert!(!keepers(&node).is_empty(), "it waits");
    cluster.kill_agent("a");
    until("the keeper has ended", || keepers(&node).is_empty().then_some(()));
    assert!(cluster.left_by("a").is_empty(), "{:?}", cluster.left_by("a"));
    cluster.start_agent("a", &[]);
    cluster.all_attached();
    assert_eq!(cluster.state(&sandbox), "gone");
    assert!(keepers(&node).is_empty(), "this one leaves nothing");
}

/// Sockets at which keepers of this node wait for its next agent.
fn keepers(node: &str) -> Vec<String> {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let name = format!("@medes-keeper-{node}");
    sockets.lines().filter(|line| line.ends_with(&name)).map(Into::into).collect()
}
