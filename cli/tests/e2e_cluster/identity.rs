//! A cluster in which everybody shows a certificate.

use std::fs;

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::until,
};

#[test]
fn whoever_has_a_certificate_does_what_its_role_may_and_others_nothing() {
    if !can_run("whoever_has_a_certificate_does_what_its_role_may_and_others_nothing") {
        return;
    }
    let cluster = Cluster::start_secured(QUIET, &[("a", &[])]);
    cluster.apply("f");
    let invoke = &["invoke", "f", "--path", "/count"];
    let answer = cluster.ask(invoke);
    assert_eq!(answer["status"], 200, "{answer}");
    // The gateway asks nobody, and the way from it to the sandbox is the same.
    assert_eq!(cluster.post("f/count").good()["count"], 2);

    cluster.cert(&["issue", "invoker", "shop"]);
    let (code, answer) = cluster.medes_as(Some("shop"), invoke);
    assert_eq!((code, &answer["status"]), (0, &200.into()), "{answer}");
    let (code, refused) = cluster.medes_as(Some("shop"), &["ps"]);
    assert_eq!((code, &refused["error"]["kind"]), (1, &"permission_denied".into()), "{refused}");
    let (code, refused) = cluster.medes_as(None, invoke);
    assert_eq!((code, &refused["error"]["kind"]), (3, &"unreachable".into()), "{refused}");
    assert_eq!(cluster.post("f/count").good()["count"], 4, "nobody else got through");
}

#[test]
fn a_token_opens_the_gateway_until_it_is_revoked() {
    if !can_run("a_token_opens_the_gateway_until_it_is_revoked") {
        return;
    }
    let cluster = Cluster::start_secured(QUIET, &[("a", &[])]);
    cluster.apply("f");
    cluster.cert(&["issue", "invoker", "shop"]);
    let (code, _) = cluster.medes_as(Some("shop"), &["token", "create", "mine"]);
    assert_eq!(code, 1, "an invoker makes no tokens");
    let made = cluster.ask(&["token", "create", "web", "--function", "f"]);
    let shown = format!("Bearer {}", made["token"].as_str().unwrap());
    let post = |headers: &[(&str, &str)]| cluster.post_with("f/count", headers, b"").unwrap();
    assert_eq!(post(&[]).status, 401);
    assert_eq!(post(&[("authorization", &shown)]).good()["count"], 1);
    let listed = cluster.ask(&["token", "list"]);
    assert_eq!((&listed[0]["name"], &listed[0]["functions"][0]), (&"web".into(), &"f".into()), "{listed}");
    assert!(!listed.to_string().contains("medes_"), "{listed}");
    cluster.ask(&["token", "revoke", "web"]);
    cluster.ask(&["token", "create", "other"]);
    assert_eq!(post(&[("authorization", &shown)]).status, 401);
}

#[test]
fn a_sandbox_is_aligned_with_a_base_that_came_over_tls() {
    if !can_run("a_sandbox_is_aligned_with_a_base_that_came_over_tls") {
        return;
    }
    let cluster = Cluster::start_secured(QUIET, &[("a", &[]), ("b", &[])]);
    cluster.apply("f");
    let base = cluster.start_on("a", "f");
    cluster.ask(&["base", &base]);
    let sandbox = cluster.start_on("b", "f");
    let before = cluster.ask(&["dedup", &sandbox, "--digest"]);
    assert!(!before["sandbox"]["bases"].as_array().unwrap().is_empty(), "{before}");
    let after = cluster.ask(&["restore", &sandbox, "--digest"]);
    assert_eq!(before["memory_digest"], after["memory_digest"]);
    assert_eq!(cluster.post_to(&sandbox, "f/count").good()["count"], 1);
}

#[test]
fn requests_go_on_while_all_certificates_are_rotated() {
    if !can_run("requests_go_on_while_all_certificates_are_rotated") {
        return;
    }
    let cluster = Cluster::start_secured(QUIET, &[("a", &[])]);
    cluster.apply("f");
    let mut count = 0;
    let mut ask = || {
        count += 1;
        assert_eq!(cluster.post("f/count").good()["count"], count);
        let answer = cluster.ask(&["invoke", "f", "--path", "/count"]);
        assert_eq!(answer["status"], 200, "{answer}");
        count += 1;
    };
    ask();
    let node = cluster.node("a");
    for name in ["controller", &*node, "anna"] {
        cluster.cert(&["rotate", name]);
    }
    until("the controller uses its new certificate", || {
        ask();
        cluster.controller_log().contains("new certificates are in use").then_some(())
    });
    // What cannot be used is told once, and changes nothing.
    fs::write(cluster.dir().join("certs/controller.pem"), "nonsense").unwrap();
    until("the controller says that it cannot use them", || {
        ask();
        cluster.controller_log().contains("cannot be used").then_some(())
    });
    ask();
}
