//! Agents and controllers that are killed.

use std::{thread, time::Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::{PATIENCE, until},
};

/// Three missed heartbeats of `QUIET`, and time for a busy machine.
const NOTICED_WITHIN: std::time::Duration = std::time::Duration::from_secs(10);

fn attached(cluster: &Cluster) -> Vec<String> {
    let nodes = cluster.ask(&["nodes"]);
    nodes["nodes"].as_array().unwrap().iter().map(|row| row["node"].as_str().unwrap().into()).collect()
}

#[test]
fn a_killed_agent_takes_its_sandboxes_along_and_requests_go_elsewhere() {
    if !can_run("a_killed_agent_takes_its_sandboxes_along_and_requests_go_elsewhere") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &[])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    let away = cluster.start_on("a", "f");
    cluster.ask(&["dedup", &away]);
    assert_eq!(cluster.processes().len(), 1);
    cluster.kill_agent("a");
    let killed = Instant::now();
    // At once, before the controller may have noticed.
    let reply = cluster.post("f/count");
    assert_eq!((reply.start(), reply.node()), ("cold", &*cluster.node("b")), "{reply:?}");
    until("the controller notices", || (attached(&cluster) == [cluster.node("b")]).then_some(()));
    assert!(killed.elapsed() < NOTICED_WITHIN);
    assert_eq!((cluster.state(&sandbox), cluster.state(&away)), ("gone".into(), "gone".into()));
    until("its processes are gone", || (cluster.processes().len() == 1).then_some(()));
    until("nothing of it is left", || cluster.left_by("a").is_empty().then_some(()));
    // A new agent of the same name starts with nothing, and serves.
    cluster.start_agent("a", &[]);
    cluster.all_attached();
    let fresh = cluster.start_on("a", "f");
    assert_eq!(cluster.post_to(&fresh, "f/count").good()["count"], 1);
}

#[test]
fn a_request_in_a_killed_agent_is_a_clear_502() {
    if !can_run("a_request_in_a_killed_agent_is_a_clear_502") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &[])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    let reply = thread::scope(|scope| {
        let (waiting, sandbox) = (&cluster, &*sandbox);
        let request = scope.spawn(|| waiting.post_to(sandbox, "f/sleep?seconds=60"));
        until("the request is in", || (cluster.row(sandbox)?["open_requests"] == 1).then_some(()));
        // The scope holds the cluster; its agent is only a process number here.
        cluster.signal_agent("a", Signal::SIGKILL);
        request.join().unwrap()
    });
    cluster.kill_agent("a");
    let body = reply.json();
    assert_eq!((reply.status, &body["kind"]), (502, &json!("node_lost")), "{body}");
    assert!(body["error"].as_str().unwrap().contains(&cluster.node("a")), "{body}");
    // It may have had an effect: it was not tried again.
    assert_eq!(
        cluster.ask(&["ps"]).as_array().unwrap().iter().filter(|row| row["state"] == "running").count(),
        0
    );
    assert_eq!(cluster.post("f/count").node(), cluster.node("b"));
}

#[test]
fn a_killed_controller_comes_back_with_functions_and_sandboxes() {
    if !can_run("a_killed_controller_comes_back_with_functions_and_sandboxes") {
        return;
    }
    let mut cluster =
        Cluster::start(&QUIET.replace("settle = '0ms'", "settle = '1s'"), &[("a", &[]), ("b", &[])]);
    cluster.apply("f");
    let warm = cluster.start_on("a", "f");
    cluster.ask(&["base", &warm]);
    let [away, busy] = [(); 2].map(|()| cluster.start_on("b", "f"));
    cluster.post_to(&away, "f/count").good();
    cluster.ask(&["dedup", &away]);
    let bases = cluster.row(&away).unwrap()["bases"].clone();
    assert_eq!(bases.as_array().unwrap().len(), 1);
    let entries = cluster.ask(&["nodes"])["registry"]["entries"].as_u64().unwrap();
    assert!(entries > 0);

    let answer = thread::scope(|scope| {
        let (waiting, busy) = (&cluster, &*busy);
        let request =
            scope.spawn(|| waiting.post_with("f/sleep?seconds=3", &[("x-medes-prefer-sandbox", busy)], b""));
        until("the request is in", || (cluster.row(busy)?["open_requests"] == 1).then_some(()));
        cluster.signal_controller(Signal::SIGKILL);
        request.join().unwrap()
    });
    // Nobody is left to answer: the connection breaks, at once and not at a deadline.
    assert!(answer.is_err(), "{answer:?}");
    cluster.kill_controller();
    let (code, value) = cluster.medes(&["ps"]);
    assert_eq!((code, &value["error"]["kind"]), (3, &json!("unreachable")), "{value}");
    cluster.start_controller();
    cluster.all_attached();
    assert_eq!(cluster.ask(&["function", "list"])[0]["name"], "f");
    for (sandbox, state) in [(&warm, "warm"), (&away, "dedup")] {
        assert_eq!(cluster.state(sandbox), state);
    }
    assert_eq!(cluster.row(&away).unwrap()["bases"], bases);
    let back = cluster.post_to(&away, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)));
    // The one whose caller is gone finishes, and serves again.
    cluster.until_state(&busy, "warm");
    assert_eq!(cluster.post_to(&busy, "f/count").start(), "warm");
    // Numbers are not given twice, and the base serves on: other sandboxes find its pages.
    until("the registry is as it was", || {
        (cluster.ask(&["nodes"])["registry"]["entries"] == entries).then_some(())
    });
    let fresh = cluster.start_on("b", "f");
    assert!(![&warm, &away, &busy].contains(&&fresh), "{fresh}");
    cluster.ask(&["dedup", &fresh]);
    assert_eq!(cluster.row(&fresh).unwrap()["bases"], bases);
}

#[test]
fn a_controller_that_is_told_to_stop_answers_those_who_wait() {
    if !can_run("a_controller_that_is_told_to_stop_answers_those_who_wait") {
        return;
    }
    let cluster = Cluster::start(&format!("{QUIET}\n[stop]\ngrace = '200ms'"), &[("a", &[])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    let answer = thread::scope(|scope| {
        let (waiting, sandbox) = (&cluster, &*sandbox);
        let begun = Instant::now();
        let request = scope.spawn(|| waiting.post_with("f/sleep?seconds=60", &[], b""));
        until("the request is in", || (cluster.row(sandbox)?["open_requests"] == 1).then_some(()));
        cluster.signal_controller(Signal::SIGTERM);
        let answer = request.join().unwrap();
        assert!(begun.elapsed() < PATIENCE);
        answer.unwrap()
    });
    assert_eq!((answer.status, &answer.json()["kind"]), (503, &json!("stopping")), "{answer:?}");
}

#[test]
fn a_lost_base_turns_a_restore_into_a_cold_start() {
    if !can_run("a_lost_base_turns_a_restore_into_a_cold_start") {
        return;
    }
    // Without room for a copy of the base or of its pages, they are read from its node each time.
    let none = ["--replica-memory", "0B", "--page-memory", "0B"];
    let mut cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &none)]);
    cluster.apply("f");
    let source = cluster.start_on("a", "f");
    cluster.ask(&["base", &source]);
    let [first, second] = [(); 2].map(|()| cluster.start_on("b", "f"));
    for sandbox in [&first, &second] {
        cluster.post_to(sandbox, "f/count").good();
        cluster.ask(&["dedup", sandbox]);
        let row = cluster.row(sandbox).unwrap();
        assert!(
            row["pages"]["same"].as_u64().unwrap() > 0 && row["pages"]["delta"].as_u64().unwrap() > 0,
            "{row}"
        );
    }
    // While the base's node lives, its pages come from there.
    let back = cluster.post_to(&first, "f/count");
    assert_eq!(
        (back.start(), back.node(), &back.good()["count"]),
        ("restore", &*cluster.node("b"), &json!(2))
    );
    cluster.ask(&["purge", &first]);
    cluster.kill_agent("a");
    let reply = cluster.post_to(&second, "f/count");
    assert_eq!((reply.start(), &reply.good()["count"]), ("cold", &json!(1)), "{reply:?}");
    cluster.until_state(&second, "gone");
    let log = cluster.controller_log();
    assert!(log.lines().any(|line| line.contains("BaseLost") && line.contains(&second)), "{log}");
}

#[test]
fn a_copy_of_a_lost_base_brings_sandboxes_back() {
    if !can_run("a_copy_of_a_lost_base_brings_sandboxes_back") {
        return;
    }
    let mut cluster = Cluster::start(QUIET, &[("a", &[]), ("b", &[])]);
    cluster.apply("f");
    let source = cluster.start_on("a", "f");
    cluster.ask(&["base", &source]);
    let sandbox = cluster.start_on("b", "f");
    cluster.post_to(&sandbox, "f/count").good();
    cluster.ask(&["dedup", &sandbox]);
    cluster.kill_agent("a");
    let reply = cluster.post_to(&sandbox, "f/count");
    assert_eq!((reply.start(), &reply.good()["count"]), ("restore", &json!(2)), "{reply:?}");
}

#[test]
fn a_base_is_copied_to_another_node_and_its_holder_is_not_missed() {
    if !can_run("a_base_is_copied_to_another_node_and_its_holder_is_not_missed") {
        return;
    }
    // The node with the sandbox keeps no page of another one.
    let none = ["--replica-memory", "0B", "--page-memory", "0B"];
    let copied = QUIET.replace("base_copies = 1", "base_copies = 2");
    let mut cluster = Cluster::start(&copied, &[("a", &[]), ("b", &none), ("c", &[])]);
    cluster.apply("f");
    let source = cluster.start_on("a", "f");
    cluster.ask(&["base", &source]);
    let sandbox = cluster.start_on("b", "f");
    cluster.post_to(&sandbox, "f/count").good();
    // A copy would be nearest there.
    cluster.ask(&["node", "cordon", &cluster.node("b")]);
    cluster.ask(&["dedup", &sandbox]);
    let holders = |cluster: &Cluster| -> Vec<String> {
        let nodes = cluster.ask(&["nodes"])["nodes"].as_array().unwrap().clone();
        let holds = |node: &&Value| !node["snapshots"].as_array().unwrap().is_empty();
        nodes.iter().filter(holds).map(|node| node["node"].as_str().unwrap().to_owned()).collect()
    };
    let both = [cluster.node("a"), cluster.node("c")];
    until("the base is copied", || (holders(&cluster) == both).then_some(()));
    cluster.ask(&["node", "uncordon", &cluster.node("b")]);
    cluster.kill_agent("a");
    let reply = cluster.post_to(&sandbox, "f/count");
    assert_eq!(
        (reply.start(), reply.node(), &reply.good()["count"]),
        ("restore", &*cluster.node("b"), &json!(2)),
        "{reply:?}"
    );
    // And as soon as an image refers to it again, it is on two nodes again.
    cluster.ask(&["dedup", &sandbox]);
    let both = [cluster.node("b"), cluster.node("c")];
    until("the base is copied again", || (holders(&cluster) == both).then_some(()));
}
