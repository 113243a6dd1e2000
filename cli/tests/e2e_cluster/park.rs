//! Dedup in place, by the whole cluster: idle, parked, wanted again; and from parked to a dedup image.

use std::time::Duration;

use serde_json::json;

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::until,
};

#[test]
fn an_idle_sandbox_is_parked_and_a_request_brings_it_back() {
    if !can_run("an_idle_sandbox_is_parked_and_a_request_brings_it_back") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '500ms'\npark = true\nkeep_parked = '1h'");
    let cluster = Cluster::start(&config, &[("a", &[])]);
    cluster.apply("f");
    let first = cluster.start_on("a", "f");
    let base = cluster.until_base_of(&first);
    let second = cluster.start_on("a", "f");
    assert_eq!(cluster.post_to(&second, "f/count").good()["count"], 1);
    let private = cluster.row(&second).unwrap()["private_bytes"].as_u64().unwrap();
    cluster.until_state(&second, "parked");
    let row = cluster.row(&second).unwrap();
    assert_eq!(row["bases"], json!([base]), "{row}");
    until("the kernel's count is known", || {
        let row = cluster.row(&second)?;
        (row["private_bytes"].as_u64()? * 2 < private).then_some(())
    });
    let process = cluster.processes();
    for round in 2..6 {
        let back = cluster.post_to(&second, "f/count");
        assert_eq!((back.start(), &back.good()["count"]), ("unpark", &json!(round)));
        cluster.until_state(&second, "parked");
    }
    assert_eq!(cluster.processes(), process, "they are the same processes");
    let told = cluster.ask(&["explain", &second]);
    assert!(told.to_string().contains("park"), "{told}");
    // What was parked can become an image, which needs no process; and that comes back too.
    cluster.ask(&["dedup", &second]);
    assert_eq!(cluster.state(&second), "dedup");
    let back = cluster.post_to(&second, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(6)));
}

#[test]
fn what_is_parked_for_long_becomes_an_image() {
    if !can_run("what_is_parked_for_long_becomes_an_image") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '500ms'\npark = true\nkeep_parked = '500ms'");
    let cluster = Cluster::start(&config, &[("a", &[])]);
    cluster.apply("f");
    let first = cluster.start_on("a", "f");
    cluster.until_base_of(&first);
    let second = cluster.start_on("a", "f");
    assert_eq!(cluster.post_to(&second, "f/count").good()["count"], 1);
    cluster.until_state(&second, "dedup");
    let back = cluster.post_to(&second, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)));
}

#[test]
fn a_warm_sandbox_gives_away_what_it_does_not_touch() {
    if !can_run("a_warm_sandbox_gives_away_what_it_does_not_touch") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &["--trim"])]);
    cluster.apply("f");
    let sandbox = cluster.start_on("a", "f");
    cluster.post_to(&sandbox, "f/ballast?mib=8").good();
    let mut answered = 0;
    let mut ask = || {
        let reply = cluster.post_to(&sandbox, "f/count");
        answered += 1;
        assert_eq!((reply.start(), &reply.good()["count"]), ("warm", &json!(answered)));
    };
    ask();
    let bytes = |name: &str| cluster.row(&sandbox)?[name].as_u64();
    let before =
        until("the kernel's count is known", || bytes("private_bytes").filter(|bytes| *bytes > 8 << 20));
    // Some steps of two seconds each, and pauses while the machine has much to do.
    let mut rounds = 0;
    while bytes("private_bytes").is_none_or(|bytes| bytes * 2 > before) {
        rounds += 1;
        assert!(rounds < 240, "never: what it does not touch is taken");
        ask();
        std::thread::sleep(Duration::from_millis(500));
    }
    let row = cluster.row(&sandbox).unwrap();
    assert_eq!(row["state"], "warm", "{row}");
    assert!(row["stored_bytes"].as_u64() > Some(0), "what was taken is kept: {row}");
    // Whatever else becomes of it begins with all of it.
    cluster.ask(&["dedup", &sandbox]);
    let back = cluster.post_to(&sandbox, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(answered + 1)));
}

#[test]
fn what_an_unparked_sandbox_has_not_touched_comes_back_where_memory_is_plenty() {
    if !can_run("what_an_unparked_sandbox_has_not_touched_comes_back_where_memory_is_plenty") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '3s'\npark = true\nkeep_parked = '1h'");
    let cluster = Cluster::start(&config, &[("a", &["--fill-above", "10"])]);
    cluster.apply("f");
    let first = cluster.start_on("a", "f");
    cluster.until_base_of(&first);
    let sandbox = cluster.start_on("a", "f");
    cluster.post_to(&sandbox, "f/ballast?mib=8").good();
    cluster.until_state(&sandbox, "parked");
    let mut rounds = 0;
    while cluster.row(&sandbox).unwrap()["private_bytes"].as_u64().is_none_or(|bytes| bytes < 8 << 20) {
        rounds += 1;
        assert!(rounds < 240, "never: all of it is back");
        assert_eq!(cluster.post_to(&sandbox, "f/count").good()["count"], rounds);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(rounds > 0, "it was parked");
}
