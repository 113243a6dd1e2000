//! Clones: a function is started once, and what it was then is what its next sandboxes begin with.

use serde_json::{Value, json};

use crate::cluster::{Cluster, QUIET, can_run};
use crate::program::until;

fn cluster(nodes: &[(&str, &[&str])]) -> Cluster {
    Cluster::start(&QUIET.replace("init_snapshots = false", "init_snapshots = true"), nodes)
}

/// Applies the function and waits until its init snapshot is there; the node that holds it.
fn apply(cluster: &Cluster, lines: &str) -> String {
    cluster.ask(&["function", "apply", &cluster.function_file("f", &[], lines)]);
    until("the function has an init snapshot", || holder(cluster))
}

fn holder(cluster: &Cluster) -> Option<String> {
    let nodes = cluster.ask(&["nodes"])["nodes"].as_array()?.clone();
    let holds = |node: &&Value| node["snapshots"].as_array().is_some_and(|held| !held.is_empty());
    nodes.iter().find(holds).map(|node| node["node"].as_str().unwrap_or_default().to_owned())
}

/// Ends all sandboxes there are.
fn purge(cluster: &Cluster) {
    for row in cluster.ask(&["ps"]).as_array().unwrap() {
        cluster.ask(&["purge", row["sandbox"].as_str().unwrap()]);
    }
}

#[test]
fn the_next_sandboxes_begin_where_the_first_one_did() {
    if !can_run("the_next_sandboxes_begin_where_the_first_one_did") {
        return;
    }
    let cluster = cluster(&[("a", &[]), ("b", &[])]);
    let holder = apply(&cluster, "memory = '256MiB'\nstart = 'clone'");
    // The one that was started for it serves like any other, and what it is told is its own.
    let first = cluster.post("f/count");
    assert_eq!((first.start(), &first.good()["count"]), ("warm", &json!(1)), "{first:?}");
    purge(&cluster);
    let clone = cluster.post("f/count");
    assert_eq!(
        (clone.start(), clone.node(), &clone.good()["count"]),
        ("clone", &*holder, &json!(1)),
        "no request is in it: {clone:?}"
    );
    // Where the snapshot is not, it is fetched.
    purge(&cluster);
    cluster.ask(&["node", "cordon", &holder]);
    let away = cluster.post("f/count");
    assert_eq!((away.start(), &away.good()["count"]), ("clone", &json!(1)), "{away:?}");
    assert_ne!(away.node(), holder);
    // It is put away with the snapshot as its base, and comes back as it was.
    let dedup = cluster.ask(&["dedup", "--digest", away.sandbox()]);
    assert!(dedup["sandbox"]["stored_bytes"].as_u64().unwrap() < 2 << 20, "{dedup}");
    let back = cluster.post("f/count");
    assert_eq!((back.start(), back.sandbox(), &back.good()["count"]), ("restore", away.sandbox(), &json!(2)));

    let row = &cluster.ask(&["function", "list"])[0];
    assert_eq!((&row["cold_starts"], &row["clones"], &row["restores"]), (&json!(1), &json!(2), &json!(1)));
    let why = cluster.ask(&["explain", away.sandbox()]).to_string();
    assert!(why.contains("clone of base-") && why.contains("a clone comes before a cold start"), "{why}");
}

#[test]
fn sandboxes_whose_memory_comes_late_are_what_they_were() {
    if !can_run("sandboxes_whose_memory_comes_late_are_what_they_were") {
        return;
    }
    let late = ["--restore", "late"];
    let cluster = cluster(&[("a", &late), ("b", &late)]);
    let holder = apply(&cluster, "memory = '256MiB'\nstart = 'clone'");
    purge(&cluster);
    let clone = cluster.post("f/count");
    assert_eq!((clone.start(), clone.node(), &clone.good()["count"]), ("clone", &*holder, &json!(1)));
    let row = cluster.row(clone.sandbox()).unwrap();
    assert_eq!(
        row["bases"].as_array().map(Vec::len),
        Some(1),
        "what it has not touched is the base's: {row}"
    );
    cluster.post_to(clone.sandbox(), "f/family").good();
    cluster.post_to(clone.sandbox(), "f/ballast?mib=8").good();
    let mut expected = cluster.post_to(clone.sandbox(), "f/look").good();
    for cycle in 1..=2 {
        cluster.ask(&["dedup", clone.sandbox()]);
        let back = cluster.post_to(clone.sandbox(), "f/look");
        assert_eq!(back.start(), "restore", "{back:?}");
        let found = back.good();
        for name in ["tcp", "unix", "path", "pid"] {
            let grown = name == "path";
            assert!(grown || found[name] == expected[name], "cycle {cycle}, {name}: {found} {expected}");
        }
        let asked = |look: &Value| look["threads"][0].as_u64().unwrap();
        assert_eq!(asked(&found), asked(&expected) + 1, "its threads go on counting");
        expected = found;
    }
    // A purge in the middle of it leaves nothing.
    purge(&cluster);
    assert_eq!(cluster.processes().len(), 0);
}

#[test]
fn without_its_snapshot_a_function_starts_from_nothing_and_has_one_again() {
    if !can_run("without_its_snapshot_a_function_starts_from_nothing_and_has_one_again") {
        return;
    }
    let mut cluster = cluster(&[("a", &[]), ("b", &[])]);
    let first = apply(&cluster, "start = 'clone'");
    let name = if first == cluster.node("a") { "a" } else { "b" };
    cluster.kill_agent(name);
    let reply = cluster.post("f/count");
    assert_eq!((reply.start(), &reply.good()["count"]), ("cold", &json!(1)), "{reply:?}");
    let second = until("there is a snapshot again", || holder(&cluster).filter(|node| *node != first));
    until("what was on the other node is given up", || {
        let rows = cluster.ask(&["ps"]);
        rows.as_array()?.iter().all(|row| row["node"] == json!(second)).then_some(())
    });
    purge(&cluster);
    let clone = cluster.post("f/count");
    assert_eq!((clone.start(), clone.node()), ("clone", &*second), "{clone:?}");
    // Another text of it is another program.
    cluster.ask(&[
        "function",
        "apply",
        &cluster.function_file("f", &[], "memory = '128MiB'\nstart = 'clone'"),
    ]);
    until("the new text has a sandbox", || {
        let rows = cluster.ask(&["ps"]);
        let rows = rows.as_array()?;
        (rows.len() == 1 && rows[0]["revision"] == json!(2) && rows[0]["state"] == json!("warm"))
            .then_some(())
    });
    until("the old snapshot has gone", || {
        let held = cluster.ask(&["nodes"]).to_string().matches("\"snapshot\"").count();
        (held <= 1).then_some(())
    });
}

#[test]
fn a_program_that_says_nothing_of_clones_is_never_one() {
    if !can_run("a_program_that_says_nothing_of_clones_is_never_one") {
        return;
    }
    let cluster = cluster(&[("a", &[])]);
    apply(&cluster, "");
    purge(&cluster);
    let reply = cluster.post("f/count");
    assert_eq!((reply.start(), &reply.good()["count"]), ("cold", &json!(1)), "{reply:?}");
}
