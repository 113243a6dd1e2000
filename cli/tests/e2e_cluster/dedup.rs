//! There and back: what a sandbox takes along, what keeps it warm, and a step of the road that fails.

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::until,
};

#[test]
fn processes_threads_files_and_sockets_come_back_with_their_state() {
    if !can_run("processes_threads_files_and_sockets_come_back_with_their_state") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[])]);
    cluster.apply("f");
    let base = cluster.start_on("a", "f");
    cluster.ask(&["base", &base]);
    let sandbox = cluster.start_on("a", "f");
    for path in ["f/family", "f/count", "f/count"] {
        cluster.post_to(&sandbox, path).good();
    }
    let before = cluster.post_to(&sandbox, "f/look").good();
    assert_eq!(before["threads"], json!([1, 1, 1]));
    assert_eq!((&before["kept"], &before["unlinked"]), (&json!("kept, more"), &json!("unlinked, more")));

    let running = cluster.processes();
    let stopped = cluster.ask(&["dedup", &sandbox, "--digest"]);
    assert_eq!(cluster.state(&sandbox), "dedup");
    // Three processes of it are gone, the other sandbox's one is there.
    assert_eq!((running.len(), cluster.processes().len()), (4, 1));
    let row = cluster.row(&sandbox).unwrap();
    assert_eq!(row["private_bytes"], 0, "{row}");
    assert!(
        row["pages"]["same"].as_u64().unwrap() > 0 && !row["bases"].as_array().unwrap().is_empty(),
        "{row}"
    );

    let restored = cluster.ask(&["restore", &sandbox, "--digest"]);
    assert!(stopped["memory_digest"].is_string() && stopped["memory_digest"] == restored["memory_digest"]);
    let after = cluster.post_to(&sandbox, "f/look").good();
    assert_eq!((&after["pid"], &after["count"]), (&before["pid"], &json!(2)));
    let process =
        |look: &Value, at: usize| (look["processes"][at][0].clone(), look["processes"][at][1].clone());
    for at in [0, 1] {
        let (pid, asked) = process(&before, at);
        assert_eq!((process(&after, at), asked), ((pid, json!(2)), json!(1)));
    }
    assert_eq!(after["threads"], json!([2, 2, 2]));
    assert_eq!((&after["kept"], &after["path"]), (&json!("kept, moremore"), &json!("kept, moremore")));
    assert_eq!(after["unlinked"], "unlinked, moremore");
    assert_eq!((&after["tcp"], &after["unix"]), (&json!("!"), &json!("!")));
    assert_eq!(cluster.post_to(&sandbox, "f/drain").good()["pipe"], "still in the pipe");

    // A second time, now by a request.
    cluster.ask(&["dedup", &sandbox]);
    let again = cluster.post_to(&sandbox, "f/look");
    assert_eq!((again.start(), &again.good()["threads"]), ("restore", &json!([3, 3, 3])));
    assert_eq!(cluster.row(&sandbox).unwrap()["starts_from_dedup"], 2);
}

#[test]
fn an_established_connection_keeps_a_sandbox_warm_and_is_not_tried_again_at_once() {
    if !can_run("an_established_connection_keeps_a_sandbox_warm_and_is_not_tried_again_at_once") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '300ms'");
    let cluster = Cluster::start(&config, &[("a", &[])]);
    cluster.apply("f");
    let [connected, other] = [(); 2].map(|()| cluster.start_on("a", "f"));
    cluster.post_to(&connected, "f/connect").good();
    let marked = until("it is marked", || cluster.row(&connected)?["undumpable"].as_str().map(str::to_owned));
    assert!(marked.to_ascii_lowercase().contains("connect"), "{marked}");
    assert_eq!(cluster.state(&connected), "warm");

    // It is idle again, before the other one is. When that one has been taken, this one was passed over.
    assert_eq!(cluster.post_to(&connected, "f/count").good()["count"], 1);
    cluster.post_to(&other, "f/count").good();
    until("the other one is a base or taken", || {
        let row = cluster.row(&other)?;
        (row["state"] == "dedup" || row["base_snapshot"].is_string()).then_some(())
    });
    let third = cluster.start_on("a", "f");
    cluster.until_state(&third, "dedup");
    let log = cluster.controller_log();
    let tries = log.lines().filter(|line| line.contains(&connected) && line.contains("DumpRefused")).count();
    assert_eq!(tries, 1, "{log}");

    // A person may try at any time, and is told why not.
    let error = cluster.refused(&["dedup", &connected]);
    assert_eq!(error["kind"], "dump_refused", "{error}");
    assert_eq!(cluster.post_to(&connected, "f/disconnect").start(), "warm");
    // The request for the other one may have come here, if that one was being made a base.
    let before = cluster.post_to(&connected, "f/count").good()["count"].as_u64().unwrap();
    cluster.ask(&["dedup", &connected]);
    let back = cluster.post_to(&connected, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(before + 1)));
}

#[test]
fn a_dedup_that_fails_at_any_step_leaves_the_sandbox_warm() {
    if !can_run("a_dedup_that_fails_at_any_step_leaves_the_sandbox_warm") {
        return;
    }
    const STEPS: [&str; 7] = ["preflight", "dump", "lookup", "read-bases", "encode", "seal", "acquire"];
    let flags = STEPS.map(|step| ["--fault", step, "--fault-times", "1"]);
    let nodes: Vec<_> = STEPS.iter().zip(&flags).map(|(step, flags)| (*step, &flags[..])).collect();
    let cluster = Cluster::start(QUIET, &nodes);
    cluster.apply("f");
    for step in STEPS {
        let sandbox = cluster.start_on(step, "f");
        cluster.post_to(&sandbox, "f/count").good();
        let error = cluster.refused(&["dedup", &sandbox]);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("fault injected") && message.contains(&sandbox), "{step}: {error}");
        assert_eq!(cluster.state(&sandbox), "warm", "{step}");
        let reply = cluster.post_to(&sandbox, "f/count");
        assert_eq!((reply.start(), &reply.good()["count"]), ("warm", &json!(2)), "{step}");
        // The next try goes through.
        cluster.ask(&["dedup", &sandbox]);
        let reply = cluster.post_to(&sandbox, "f/count");
        assert_eq!((reply.start(), &reply.good()["count"]), ("restore", &json!(3)), "{step}");
        cluster.ask(&["purge", &sandbox]);
    }
    assert_eq!(cluster.processes(), [0; 0]);
}

#[test]
fn a_restore_that_fails_at_any_step_becomes_a_cold_start() {
    if !can_run("a_restore_that_fails_at_any_step_becomes_a_cold_start") {
        return;
    }
    const STEPS: [&str; 5] = ["open", "read-back", "rebuild", "criu-restore", "resume"];
    let flags = STEPS.map(|step| ["--fault", step, "--fault-times", "1"]);
    let nodes: Vec<_> = STEPS.iter().zip(&flags).map(|(step, flags)| (*step, &flags[..])).collect();
    let cluster = Cluster::start(QUIET, &nodes);
    cluster.apply("f");
    for step in STEPS {
        let sandbox = cluster.start_on(step, "f");
        cluster.post_to(&sandbox, "f/count").good();
        cluster.ask(&["dedup", &sandbox]);
        let reply = cluster.post_to(&sandbox, "f/count");
        assert_eq!((reply.start(), &reply.good()["count"]), ("cold", &json!(1)), "{step}");
        cluster.until_state(&sandbox, "gone");
        cluster.ask(&["purge", reply.sandbox()]);
    }
    assert_eq!(cluster.processes(), [0; 0]);
    assert_eq!(cluster.controller_log().matches("restore failed").count(), STEPS.len());
}

#[test]
fn a_full_scratch_folder_leaves_the_sandbox_warm() {
    if !can_run("a_full_scratch_folder_leaves_the_sandbox_warm") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("small", &["--scratch", "24MiB"]), ("large", &[])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("small", "f");
    cluster.post_to(&sandbox, "f/ballast?mib=48").good();
    let error = cluster.refused(&["dedup", &sandbox]);
    assert_eq!(error["kind"], "no_space", "{error}");
    assert_eq!(cluster.state(&sandbox), "warm");
    assert_eq!(cluster.post_to(&sandbox, "f/count").start(), "warm");
    // What did not fit was removed: a small one fits.
    let small = cluster.start_on("small", "f");
    cluster.ask(&["dedup", &small]);
    assert_eq!(cluster.post_to(&small, "f/count").start(), "restore");
}
