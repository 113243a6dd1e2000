//! Sandboxes that make it hard to put them away: they hurt nobody, and are put away all the same.

use serde_json::json;

use crate::cluster::{Cluster, QUIET, can_run};

/// Idle sandboxes are parked at once.
fn parking(agents: &[(&str, &[&str])]) -> Cluster {
    let config = QUIET.replace("idle = '1h'", "idle = '500ms'\npark = true\nkeep_parked = '1h'");
    Cluster::start(&config, agents)
}

/// The kernel lets a process have 65,530 (`vm.max_map_count`).
#[test]
fn sixty_thousand_mappings_are_put_away_and_come_back() {
    if !can_run("sixty_thousand_mappings_are_put_away_and_come_back") {
        return;
    }
    let cluster = parking(&[("a", &[])]);
    cluster.apply("f");
    cluster.apply("g");
    let sandbox = cluster.start_on("a", "f");
    let other = cluster.start_on("a", "g");
    let made = cluster.post_to(&sandbox, "f/splinter?mappings=60000").good();
    assert_eq!(made["refused"], 0, "{made}");
    assert!(made["mappings"].as_u64().unwrap() > 60_000, "{made}");
    let whole = |start: &str| {
        let back = cluster.post_to(&sandbox, "f/splinters");
        assert_eq!((back.start(), &back.good()["wrong"]), (start, &json!(0)));
    };
    cluster.until_state(&sandbox, "parked");
    assert_eq!(cluster.post_to(&other, "g/count").good()["count"], 1);
    whole("unpark");
    let open = cluster.post_to(&sandbox, "f/descriptors").good();
    assert!(open.to_string().contains("socket") && !open.to_string().contains("userfaultfd"), "{open}");
    cluster.until_state(&sandbox, "parked");
    cluster.ask(&["dedup", &sandbox]);
    assert_eq!(cluster.post_to(&other, "g/count").good()["count"], 2);
    whole("restore");
}

/// The calls that parking has a sandbox make are not subject to its own filters.
#[test]
fn a_filter_of_its_own_keeps_no_sandbox_from_being_put_away() {
    if !can_run("a_filter_of_its_own_keeps_no_sandbox_from_being_put_away") {
        return;
    }
    let cluster = parking(&[("a", &[])]);
    cluster.apply("f");
    for by in ["end", "refuse"] {
        let sandbox = cluster.start_on("a", "f");
        assert_eq!(cluster.post_to(&sandbox, &format!("f/shield?by={by}")).good()["set"], 0);
        cluster.until_state(&sandbox, "parked");
        let back = cluster.post_to(&sandbox, "f/count");
        assert_eq!((back.start(), &back.good()["count"]), ("unpark", &json!(1)), "{by}");
        cluster.until_state(&sandbox, "parked");
        cluster.ask(&["dedup", &sandbox]);
        let back = cluster.post_to(&sandbox, "f/count");
        assert_eq!((back.start(), &back.good()["count"]), ("restore", &json!(2)), "{by}");
    }
}
