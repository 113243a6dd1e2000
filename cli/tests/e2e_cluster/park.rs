//! Dedup in place, by the whole cluster: idle, parked, wanted again; and from parked to a dedup image.

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
    let base = until("the first idle sandbox becomes the base", || {
        cluster.row(&first)?["base_snapshot"].as_str().map(str::to_owned)
    });
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
    until("the first idle sandbox becomes the base", || {
        cluster.row(&first)?["base_snapshot"].as_str().map(str::to_owned)
    });
    let second = cluster.start_on("a", "f");
    assert_eq!(cluster.post_to(&second, "f/count").good()["count"], 1);
    cluster.until_state(&second, "dedup");
    let back = cluster.post_to(&second, "f/count");
    assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)));
}
