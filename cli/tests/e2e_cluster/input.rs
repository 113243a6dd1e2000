//! What a caller or a function can do wrong.

use crate::cluster::{Cluster, QUIET, can_run};

#[test]
fn a_malformed_function_file_is_refused_with_the_field() {
    if !can_run("a_malformed_function_file_is_refused_with_the_field") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[]);
    // By its name, or by its place in the file where that says more.
    const CASES: [(&str, &str); 5] = [
        ("memory = 'much'", "bad.toml:4:10"),
        ("prot = 1", "prot"),
        ("port = 70000", "bad.toml:4:8"),
        ("requests_max = 0", "requests_max"),
        ("[ready]\npath = 'no slash'", "ready.path"),
    ];
    for (lines, field) in CASES {
        let file = cluster.function_file("bad", &[], lines);
        let error = cluster.refused(&["function", "apply", &file]);
        assert_eq!(error["kind"], "function_file", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(field) && message.contains("bad.toml"), "{lines}: {message}");
    }
    assert_eq!(cluster.ask(&["function", "list"]), serde_json::json!([]));
}

#[test]
fn a_request_that_cannot_be_served_is_refused_at_the_door() {
    if !can_run("a_request_that_cannot_be_served_is_refused_at_the_door") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[])]);
    let unknown = cluster.post("nobody/count");
    assert_eq!((unknown.status, &unknown.json()["kind"]), (404, &"unknown_function".into()));
    assert_eq!(cluster.post("no..body/count").status, 404);
    assert_eq!(cluster.refused(&["invoke", "nobody"])["kind"], "not_found");

    cluster.apply("f");
    let large = vec![b'x'; (6 << 20) + 1];
    let oversized = cluster.post_with("f/count", &[], &large).unwrap();
    assert_eq!((oversized.status, &oversized.json()["kind"]), (413, &"invalid".into()));
    let nonsense = cluster.post_with("f/count", &[("x-medes-deadline-ms", "soon")], b"").unwrap();
    assert_eq!(nonsense.status, 400);
    // Nothing was started for any of them, and one of the largest size goes through.
    assert_eq!(cluster.ask(&["ps"]), serde_json::json!([]));
    assert_eq!(cluster.post_with("f/count", &[], &large[1..]).unwrap().good()["count"], 1);
}

#[test]
fn a_function_that_opens_no_port_is_a_502_with_its_last_words() {
    if !can_run("a_function_that_opens_no_port_is_a_502_with_its_last_words") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[])]);
    cluster.ask(&["function", "apply", &cluster.function_file("f", &["never"], "[ready]\ntimeout = '1s'")]);
    let reply = cluster.post("f/count");
    let body = reply.json();
    assert_eq!((reply.status, &body["kind"]), (502, &"never_ready".into()), "{body}");
    assert_eq!(body["log_tail"], serde_json::json!(["no port today"]));
    assert_eq!(cluster.processes(), [0; 0]);
    let error = cluster.refused(&["invoke", "f"]);
    assert_eq!((&error["kind"], &error["log_tail"][0]), (&"never_ready".into(), &"no port today".into()));
}

#[test]
fn a_command_that_is_not_there_is_a_502_that_names_it() {
    if !can_run("a_command_that_is_not_there_is_a_502_that_names_it") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[])]);
    let file = cluster.function_file("f", &[], "");
    let text = std::fs::read_to_string(&file).unwrap().replace("/usr/bin/python3", "/usr/bin/no-python");
    std::fs::write(&file, text).unwrap();
    cluster.ask(&["function", "apply", &file]);
    let reply = cluster.post("f/count");
    let body = reply.json();
    assert_eq!((reply.status, &body["kind"]), (502, &"command_not_found".into()), "{body}");
    assert!(body["error"].as_str().unwrap().contains("no-python"), "{body}");
}

#[test]
fn a_sandbox_that_ends_during_a_request_is_a_502_with_the_reason() {
    if !can_run("a_sandbox_that_ends_during_a_request_is_a_502_with_the_reason") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[])]);
    cluster.apply("f");
    for (path, kind) in [("f/crash", "crashed"), ("f/exhaust", "out_of_memory")] {
        let sandbox = cluster.post("f/count").sandbox().to_owned();
        let reply = cluster.post(path);
        let body = reply.json();
        assert_eq!((reply.status, &body["kind"]), (502, &kind.into()), "{body}");
        assert!(body["error"].as_str().unwrap().contains(&sandbox), "{body}");
        assert!(body["log_tail"].to_string().contains("function is up"), "{body}");
        cluster.until_state(&sandbox, "gone");
        // The next caller gets a fresh one.
        let next = cluster.post("f/count");
        assert_eq!((next.start(), &next.good()["count"]), ("cold", &1.into()));
    }
}
