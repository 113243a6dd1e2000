//! What the controller does by itself: idle times, keep-dedup, the memory cap.

use std::{collections::BTreeMap, thread};

use serde_json::json;

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::until,
};

#[test]
fn idle_sandboxes_become_a_base_and_dedup_and_a_request_brings_them_back() {
    if !can_run("idle_sandboxes_become_a_base_and_dedup_and_a_request_brings_them_back") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '1s'\ndedups_per_base = 1");
    let cluster = Cluster::start(&config, &[("a", &[])]);
    cluster.apply("f");
    let first = cluster.start_on("a", "f");
    let base = cluster.until_base_of(&first);
    let second = cluster.start_on("a", "f");
    assert_eq!(cluster.post_to(&second, "f/count").good()["count"], 1);
    cluster.until_state(&second, "dedup");
    assert_eq!(cluster.row(&second).unwrap()["bases"], json!([base]));
    let back = cluster.post_to(&second, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)));
    // More of them than one base is good for make another one.
    until("all are taken and there is a second base", || {
        let nodes = cluster.ask(&["nodes"]);
        (cluster.state(&first) == "dedup").then_some(())?;
        for _missing in cluster.ask(&["ps"]).as_array()?.len()..4 {
            cluster.start_on("a", "f");
        }
        (nodes["nodes"][0]["snapshots"].as_array()?.len() == 2).then_some(())
    });
}

#[test]
fn keep_dedup_ends_a_sandbox() {
    if !can_run("keep_dedup_ends_a_sandbox") {
        return;
    }
    let cluster = Cluster::start(&QUIET.replace("keep_dedup = '2h'", "keep_dedup = '1s'"), &[("a", &[])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    cluster.ask(&["dedup", &sandbox]);
    assert_eq!(cluster.state(&sandbox), "dedup");
    cluster.until_state(&sandbox, "gone");
    assert_eq!(cluster.post("f/count").start(), "cold");
    // Nothing is kept for it.
    until("its image is gone", || (cluster.ask(&["nodes"])["nodes"][0]["image_bytes"] == 0).then_some(()));
}

#[test]
fn the_memory_cap_evicts_the_longest_idle() {
    if !can_run("the_memory_cap_evicts_the_longest_idle") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &["--memory-cap", "256MiB"])]);
    for name in ["f", "g", "h"] {
        cluster.apply(name);
    }
    let old = cluster.start_on("a", "f");
    cluster.post_to(&old, "f/ballast?mib=80").good();
    let young = cluster.start_on("a", "g");
    cluster.post_to(&young, "g/ballast?mib=80").good();
    until("the node's memory is known", || {
        (cluster.ask(&["nodes"])["nodes"][0]["used_bytes"].as_u64()? > 160 << 20).then_some(())
    });
    // There is no room for a third one.
    let reply = cluster.post("h/ballast?mib=80");
    assert_eq!((reply.status, reply.start()), (200, "cold"));
    cluster.until_state(&old, "gone");
    assert_eq!((cluster.state(&young), cluster.state(reply.sandbox())), ("warm".into(), "warm".into()));
}

#[test]
fn bursts_between_dedups_are_all_answered_once_and_no_state_is_lost() {
    if !can_run("bursts_between_dedups_are_all_answered_once_and_no_state_is_lost") {
        return;
    }
    const ROUNDS: usize = 3;
    const CALLERS: usize = 6;
    const REQUESTS: usize = 10;
    let config = QUIET.replace("idle = '1h'", "idle = '200ms'");
    let cluster = Cluster::start(&config, &[("a", &[]), ("b", &[])]);
    cluster.apply("f");
    // What each sandbox counted last.
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for round in 0..ROUNDS {
        let caller = || {
            let post = |_| {
                let reply = cluster.post("f/count");
                (reply.sandbox().to_owned(), reply.good()["count"].as_u64().unwrap())
            };
            (0..REQUESTS).map(post).collect::<Vec<_>>()
        };
        let answers: Vec<_> = thread::scope(|scope| {
            let callers: Vec<_> = (0..CALLERS).map(|_caller| scope.spawn(caller)).collect();
            callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect()
        });
        for (sandbox, count) in answers {
            let last = counts.entry(sandbox).or_default();
            *last = count.max(*last);
        }
        let answered = (round + 1) * CALLERS * REQUESTS;
        assert_eq!(counts.values().sum::<u64>(), answered as u64, "round {round}: {counts:?}");
        // So few that the next burst needs more than what is warm.
        until("all but two of them are taken", || {
            let rows = cluster.ask(&["ps"]);
            let left = rows.as_array()?.iter().filter(|row| row["state"] != "dedup").count();
            (left <= 2).then_some(())
        });
    }
    let restores = |row: &serde_json::Value| row["starts_from_dedup"].as_u64().unwrap();
    let total: u64 = cluster.ask(&["ps"]).as_array().unwrap().iter().map(restores).sum();
    assert!(total >= ROUNDS as u64 - 1, "{total} restores, {counts:?}");
}

#[test]
fn a_changed_file_is_read_again_when_the_controller_is_told_to() {
    if !can_run("a_changed_file_is_read_again_when_the_controller_is_told_to") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[]);
    let file = cluster.dir().join("controller.toml");
    let again = |text: &str| {
        std::fs::write(&file, text).unwrap();
        cluster.signal_controller(nix::sys::signal::Signal::SIGHUP);
    };
    let shown = |line: &str| {
        until(line, || cluster.ask(&["policy", "show"]).to_string().contains(line).then_some(()));
    };
    cluster.ask(&["policy", "set", "alpha=7"]);
    again(
        &QUIET
            .replace("keep_alive = '2h'", "keep_alive = '77m'")
            .replace("base_copies = 1", "base_copies = 3"),
    );
    shown("77m");
    let policy = cluster.ask(&["policy", "show"]).to_string();
    assert!(!policy.contains("alpha = 7"), "the file says what it is now: {policy}");
    until("it is told what has to wait", || cluster.controller_log().contains("fleet").then_some(()));
    // What cannot be changes nothing.
    again(&QUIET.replace("keep_alive = '2h'", "keep_alive = 'soon'"));
    until("it is told what is wrong", || {
        cluster.controller_log().contains("the old one stays").then_some(())
    });
    assert!(cluster.ask(&["policy", "show"]).to_string().contains("77m"));
    again(&QUIET.replace("keep_alive = '2h'", "keep_alive = '78m'"));
    shown("78m");
}
