//! The real program against a fake controller: what it asks, what it prints as a table and as JSON, and its
//! exit code.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on")]

mod fake;

use fake::{FakeController, json, medes, stderr, stdout};

#[test]
fn ps_shows_every_sandbox_in_100_columns() {
    let controller = FakeController::start();
    let output = controller.medes(&["ps"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let table = stdout(&output);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines.iter().all(|line| line.chars().count() <= 100), "{table}");
    for word in ["SANDBOX", "FUNCTION", "NODE", "STATE", "PRIVATE", "STORED"] {
        assert!(lines[0].contains(word), "{table}");
    }
    // By function, then by number.
    assert!(lines[1].starts_with("sb-1-1   html      node-1  running  12s  3m12s  41.2 MiB"), "{table}");
    assert!(lines[2].starts_with("sb-1-2   html      node-0  dedup"), "{table}");
    assert!(lines[2].contains("1.0 MiB") && lines[2].contains("2.5 %"), "{table}");
    assert!(lines[3].starts_with("sb-1-3   video     node-1  warm"), "{table}");
    assert!(table.contains("not dumpable"), "{table}");
}

#[test]
fn ps_as_json_has_exact_numbers_and_filters() {
    let controller = FakeController::start();
    let all = json(&controller.medes(&["ps", "--json"]));
    assert_eq!(all.as_array().unwrap().len(), 3);
    let dedup = &all[1];
    assert_eq!(dedup["sandbox"], "sb-1-2");
    assert_eq!((&dedup["state"], &dedup["node"]), (&"dedup".into(), &"node-0".into()));
    assert_eq!(dedup["stored_bytes"], 1 << 20);
    assert_eq!(dedup["bases"][0], "base-0-9");
    assert_eq!(dedup["base_snapshot"], serde_json::Value::Null);
    assert_eq!(dedup["pages"]["delta"], 1_000);
    assert_eq!(dedup["last_phases"][0]["ms"], 31.5);
    let some = json(&controller.medes(&["--json", "ps", "--function", "html", "--node", "node-1"]));
    assert_eq!(some.as_array().unwrap().len(), 1);
    assert_eq!(some[0]["sandbox"], "sb-1-1");
    let none = controller.medes(&["ps", "--node", "node-7"]);
    assert_eq!(stdout(&none), "no sandboxes\n");
}

#[test]
fn nodes_are_listed_with_memory_and_what_they_lack() {
    let controller = FakeController::start();
    let table = stdout(&controller.medes(&["nodes"]));
    assert!(
        table.contains("1.5 GiB") && table.contains("4.0 GiB") && table.contains("eBPF: no BTF"),
        "{table}"
    );
    assert!(table.contains("registry: 1280 entries, 30.0 KiB"), "{table}");
    assert!(table.find("node-0").unwrap() < table.find("node-1").unwrap(), "{table}");
    let value = json(&controller.medes(&["nodes", "--json"]));
    assert_eq!(value["nodes"][0]["cap_bytes"], 4_294_967_296_u64);
    assert_eq!(value["nodes"][0]["snapshots"][0]["snapshot"], "base-0-9");
    assert_eq!(value["registry"]["entries"], 1280);
    assert_eq!(
        (&value["nodes"][0]["standing"], &value["nodes"][0]["connected"]),
        (&"open".into(), &true.into())
    );
    assert!(table.contains("\nnode-1 is cordoned\n"), "{table}");
}

#[test]
fn memory_is_divided_among_tenants() {
    let controller = FakeController::start();
    let table = stdout(&controller.medes(&["accounting"]));
    let line = |begin: &str| table.lines().find(|line| line.starts_with(begin)).unwrap_or_default();
    assert!(line("acme").contains("82.0 MiB") && line("acme").contains("92.0 %"), "{table}");
    assert!(line("(kernel)").contains("100 MiB"), "{table}");
    let value = json(&controller.medes(&["accounting", "--by", "function", "--json"]));
    assert_eq!(value["rows"][1]["function"], "html");
    assert_eq!(value["rows"][1]["unique_bytes"], 41 << 20);
    assert_eq!(value["nodes"][0]["nobody_bytes"], 1 << 20);
}

#[test]
fn a_drain_waits_until_the_node_is_empty() {
    let controller = FakeController::start();
    let drained = json(&controller.medes(&["node", "drain", "node-0", "--json"]));
    assert_eq!((&drained["standing"], &drained["sandboxes"]), (&"draining".into(), &0.into()));
    // At the first look one was left.
    assert_eq!(controller.asked.lines(), ["node-0 3", "list nodes", "list nodes"]);
    let open = controller.medes(&["node", "uncordon", "node-0"]);
    assert_eq!(stdout(&open), "node-0 is open, with 0 sandboxes\n");
    let again = controller.medes(&["node", "cordon", "node-1"]);
    assert_eq!(stdout(&again), "node-1 is cordoned already, with 2 sandboxes\n");
    let unknown = controller.medes(&["node", "cordon", "node-9"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("cordon node-9: there is no node node-9"), "{}", stderr(&unknown));
}

#[test]
fn a_rest_waits_until_what_is_left_rests() {
    let controller = FakeController::start();
    // It had two, of which one rests.
    let rested = json(&controller.medes(&["node", "rest", "node-0", "--json"]));
    assert_eq!(
        (&rested["standing"], &rested["sandboxes"], &rested["resting"]),
        (&"resting".into(), &1.into(), &1.into())
    );
    assert_eq!(controller.asked.lines(), ["node-0 4", "list nodes"]);
    // Of the two of node-1 one never rests.
    let late = controller.medes(&["node", "rest", "node-1", "--within", "50ms"]);
    assert_eq!(late.status.code(), Some(1));
    let why = "node node-1 still has sandboxes that do not rest (1) after 50ms";
    assert!(stderr(&late).contains(why), "{}", stderr(&late));
}

#[test]
fn the_policy_is_shown_and_changed_while_the_controller_runs() {
    let controller = FakeController::start();
    assert_eq!(stdout(&controller.medes(&["policy", "show"])), "name = \"fixed\"\n");
    let set = json(&controller.medes(&["policy", "set", "name=hybrid", "idle=5s", "--dry-run", "--json"]));
    assert_eq!((&set["toml"], &set["changed"]), (&"name = \"hybrid\"\n".into(), &true.into()));
    assert_eq!(controller.asked.lines(), ["policy name=hybrid idle=5s true"]);
    let wrong = controller.medes(&["policy", "set", "magic=1"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("set the policy: configuration: unknown field"), "{}", stderr(&wrong));
}

#[test]
fn a_node_that_does_not_get_empty_in_time_is_said() {
    let controller = FakeController::start();
    // Nothing of node-1 ever ends.
    let late = controller.medes(&["node", "drain", "node-1", "--within", "50ms"]);
    assert_eq!(late.status.code(), Some(1));
    assert!(stderr(&late).contains("node node-1 still has sandboxes (2) after 50ms"), "{}", stderr(&late));
    let asked = controller.medes(&["node", "drain", "node-1", "--within", "0s"]);
    assert_eq!(asked.status.code(), Some(0), "{}", stderr(&asked));
}

#[test]
fn invoke_prints_the_body_and_nothing_else() {
    let controller = FakeController::start();
    let args = ["invoke", "html", "--data", "hello", "-H", "X-A: b", "--path", "/p?q=1", "--deadline", "3s"];
    let output = controller.medes(&args);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "hello"));
    assert_eq!(stderr(&output), "");
    assert_eq!(controller.asked.lines(), [r#"POST /p?q=1 ["x-a=b"] 5 bytes 3000 ms"#]);
}

#[test]
fn invoke_tells_timings_on_standard_error() {
    let controller = FakeController::start();
    let output = controller.medes(&["invoke", "html", "-d", "x", "-i", "--method", "put"]);
    assert_eq!(stdout(&output), "x");
    let told = stderr(&output);
    assert!(told.contains("status 200 from sb-1-2 on node-0, start restore"), "{told}");
    assert!(told.contains("queue 0.10 ms, restore 34.2 ms, function 6.1 ms"), "{told}");
    assert!(controller.asked.lines()[0].starts_with("PUT / "));
}

#[test]
fn invoke_reads_files_and_standard_input() {
    let controller = FakeController::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file").unwrap();
    let output = controller.medes(&["invoke", "html", "-d", &format!("@{}", file.path().display())]);
    assert_eq!(stdout(&output), "from a file");
    let output = medes(&["invoke", "html", "-d", "-"])
        .env("MEDES_CONTROLLER", controller.address.to_string())
        .stdin(std::fs::File::open(file.path()).unwrap())
        .output()
        .unwrap();
    assert_eq!(stdout(&output), "from a file");
    let output = controller.medes(&["invoke", "html", "-d", "@no/such/file"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("read no/such/file: No such file"), "{}", stderr(&output));
    // Nothing was sent for the file that is not there.
    assert_eq!(controller.asked.lines().len(), 2);
}

#[test]
fn invoke_as_json_carries_text_and_bytes() {
    let controller = FakeController::start();
    let value = json(&controller.medes(&["invoke", "html", "-d", "{}", "--json"]));
    assert_eq!((&value["status"], &value["body"]), (&200.into(), &"{}".into()));
    assert_eq!((&value["start"], &value["function_ms"]), (&"restore".into(), &6.1.into()));
    assert_eq!(value["total_ms"], 40.4);
    assert_eq!(value["phases"][1]["name"], "restore");
    let value = json(&controller.medes(&["invoke", "binary", "--json"]));
    assert_eq!(value["body_base64"], "//79");
    assert!(value.get("body").is_none());
}

#[test]
fn a_bad_status_is_printed_and_is_a_failure() {
    let controller = FakeController::start();
    let output = controller.medes(&["invoke", "angry", "-d", "sorry"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), "sorry"));
    assert!(stderr(&output).contains("angry answered with status 503"));
    let output = controller.medes(&["invoke", "angry", "--json"]);
    assert_eq!((output.status.code(), &json(&output)["status"]), (Some(1), &503.into()));
}

#[test]
fn a_failure_shows_the_log_that_explains_it() {
    let controller = FakeController::start();
    let output = controller.medes(&["invoke", "broken"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    let told = stderr(&output);
    assert!(
        told.starts_with("medes: invoke broken: broken ended during the request\n  | Traceback\n"),
        "{told}"
    );
    assert!(!told.contains('\u{1b}'), "a sandbox's output must not drive the terminal: {told:?}");
    let output = controller.medes(&["invoke", "broken", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let error = &json(&output)["error"];
    assert_eq!(error["kind"], "crashed");
    assert_eq!(error["log_tail"][0], "Traceback");
}

#[test]
fn operations_say_what_became_of_the_sandbox() {
    let controller = FakeController::start();
    let text = stdout(&controller.medes(&["dedup", "sb-1-2"]));
    assert!(
        text.starts_with("sb-1-2 of html is dedup: 40.0 MiB of pages, 1.0 MiB stored (2.5 %)\n"),
        "{text}"
    );
    assert!(text.contains("9000 same") && text.contains("dump 31.5 ms, dedup 88.0 ms"), "{text}");
    let text = stdout(&controller.medes(&["base", "sb-1-1"]));
    assert_eq!(text, "base-0-31 made of sb-1-1: 512 pages, 2.0 MiB\n");
    let text = stdout(&controller.medes(&["restore", "sb-1-2", "--digest"]));
    assert!(text.contains("sb-1-2 of html is warm, 41.2 MiB private"), "{text}");
    assert!(text.contains(&format!("memory digest {}", "ab".repeat(32))), "{text}");
    assert_eq!(stdout(&controller.medes(&["purge", "sb-1-2"])), "sb-1-2 purged\n");
    assert_eq!(stdout(&controller.medes(&["move", "sb-1-2", "--node", "node-1"])), "sb-1-2 moved\n");
    let text = stdout(&controller.medes(&["start", "html", "--node", "node-1"]));
    assert!(text.starts_with("sb-1-4 of html is warm"), "{text}");
    assert_eq!(
        controller.asked.lines(),
        ["purge 100000002", "move 100000002 to node-1", r#"start html on "node-1""#]
    );
}

#[test]
fn operations_as_json_have_one_shape() {
    let controller = FakeController::start();
    for verb in ["dedup", "restore", "base"] {
        let value = json(&controller.medes(&[verb, "sb-1-2", "--json"]));
        for key in ["sandbox", "snapshot", "phases", "memory_digest"] {
            assert!(value.get(key).is_some(), "{verb} has no {key}: {value}");
        }
    }
    let value = json(&controller.medes(&["dedup", "sb-1-2", "--digest", "--json"]));
    assert_eq!(value["memory_digest"], "ab".repeat(32));
    assert_eq!(value["sandbox"]["stored_bytes"], 1 << 20);
    assert_eq!(value["phases"][1]["ms"], 88.0);
    assert_eq!(json(&controller.medes(&["purge", "sb-1-2", "--json"]))["purged"], true);
}

#[test]
fn a_refused_dump_is_one_clear_sentence() {
    let controller = FakeController::start();
    let output = controller.medes(&["dedup", "sb-1-3"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "medes: dedup sb-1-3: sb-1-3 has an established TCP connection\n");
    assert_eq!(json(&controller.medes(&["dedup", "sb-1-3", "--json"]))["error"]["kind"], "dump_refused");
}

#[test]
fn logs_are_printed_without_what_drives_a_terminal() {
    let controller = FakeController::start();
    let output = controller.medes(&["logs", "sb-1-2"]);
    assert_eq!(stdout(&output), "started\n ]0;title answered\n");
    assert!(stderr(&output).contains("5 earlier lines were dropped"));
    let value = json(&controller.medes(&["logs", "sb-1-2", "--json"]));
    assert_eq!((&value["dropped"], &value["lines"][0]), (&5.into(), &"started".into()));
}

#[test]
fn functions_are_applied_listed_and_removed() {
    let controller = FakeController::start();
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "same"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        let text = format!("name = '{name}'\ncommand = ['${{MEDES_TEST_PYTHON}}']\ndir = '.'\n");
        std::fs::write(folder.path().join(name).join("function.toml"), text).unwrap();
    }
    let apply = |args: &[&str]| {
        let mut command = medes(args);
        command.env("MEDES_CONTROLLER", controller.address.to_string()).env("MEDES_TEST_PYTHON", "python3");
        command.current_dir(folder.path()).output().unwrap()
    };
    let output = apply(&["function", "apply", "one/function.toml", "same"]);
    assert_eq!(
        stdout(&output),
        "one applied, revision 4\nsame unchanged, revision 4\n",
        "{}",
        stderr(&output)
    );
    let asked = format!("apply one dir {}", folder.path().join("one").display());
    assert_eq!(controller.asked.lines()[0], asked);
    let value = json(&apply(&["function", "apply", "one", "--json"]));
    assert_eq!((&value[0]["name"], &value[0]["changed"]), (&"one".into(), &true.into()));

    let table = stdout(&controller.medes(&["function", "list"]));
    assert!(table.lines().nth(1).unwrap().starts_with("auth"), "{table}");
    let value = json(&controller.medes(&["function", "list", "--json"]));
    assert_eq!((&value[1]["name"], &value[1]["requests"]), (&"html".into(), &1234.into()));

    assert_eq!(stdout(&controller.medes(&["function", "rm", "html"])), "html removed, 3 sandboxes purged\n");
    let output = controller.medes(&["function", "rm", "gone"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).starts_with("medes: remove gone: no function gone\nhint: "),
        "{}",
        stderr(&output)
    );
}

#[test]
fn one_bad_file_keeps_all_from_being_applied() {
    let controller = FakeController::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("good.toml"), "name = 'good'\ncommand = ['x']\n").unwrap();
    std::fs::write(folder.path().join("bad.toml"), "name = 'bad'\ncommand = ['x']\nmemory = 7\n").unwrap();
    let output = medes(&["function", "apply", "good.toml", "bad.toml"])
        .env("MEDES_CONTROLLER", controller.address.to_string())
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("bad.toml:3:10: "), "{}", stderr(&output));
    assert!(controller.asked.lines().is_empty());
}

#[test]
fn a_controllers_no_is_told_as_it_was_said() {
    let controller = FakeController::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "name = 'refused'\ncommand = ['x']\n").unwrap();
    let output = controller.medes(&["function", "apply", &file.path().to_string_lossy(), "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let error = &json(&output)["error"];
    assert_eq!(error["kind"], "resource_exhausted");
    assert!(error["message"].as_str().unwrap().ends_with("too many functions"), "{error}");
}

#[test]
fn nobody_at_the_address_is_exit_code_3_with_a_hint() {
    // Bound and never accepted would wait; bound and closed is refused at once.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = medes(&["ps", "--controller", &closed]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let told = stderr(&output);
    assert!(told.starts_with(&format!("medes: cannot reach the controller at {closed}: ")), "{told}");
    assert!(told.contains("hint: start one with `medes up`"), "{told}");
    let output = medes(&["nodes", "--json", "--controller", &closed]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(json(&output)["error"]["kind"], "unreachable");
    assert_eq!(stderr(&output), "");
}

#[test]
fn something_else_at_the_address_is_exit_code_3_too() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let closer = std::thread::spawn(move || drop(listener.accept()));
    let output = medes(&["ps", "--controller", &address]).output().unwrap();
    closer.join().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
}

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_0() {
    for args in [&["fly"][..], &["dedup", "17"], &["up", "--nodes", "0"], &["ps", "--controller", "x"]] {
        let output = medes(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stdout(&output).is_empty() && !stderr(&output).is_empty(), "{args:?}");
    }
    let output = medes(&["--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(stdout(&output).contains("Exit codes:"));
    assert_eq!(medes(&["--version"]).output().unwrap().status.code(), Some(0));
}

#[test]
fn doctor_says_the_same_in_both_forms_and_by_its_exit_code() {
    let output = medes(&["doctor", "--json", "--criu", "no/such/criu"]).output().unwrap();
    let value = json(&output);
    // Whatever else this machine has, there is no such CRIU.
    assert_eq!((output.status.code(), &value["verdict"]), (Some(1), &"missing".into()));
    let criu = value["checks"].as_array().unwrap().iter().find(|check| check["name"] == "criu").unwrap();
    assert!(criu["follows"].is_string() && criu["fix"].is_string(), "{criu}");
    let output = medes(&["doctor", "--criu", "no/such/criu"]).output().unwrap();
    let table = stdout(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(table.contains("MISSING") && table.contains("no/such/criu"), "{table}");
    assert!(table.lines().all(|line| line.chars().count() <= 100), "{table}");
}

#[test]
fn completions_name_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = medes(&["completions", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("restore"), "{shell}");
    }
    let value = json(&medes(&["completions", "bash", "--json"]).output().unwrap());
    assert!(value["script"].as_str().unwrap().contains("complete"));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = medes(&["completions", "bash"]).stdout(writer).output().unwrap();
    assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
}

#[test]
fn a_trace_is_printed_recorded_and_replayed() {
    let controller = FakeController::start();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.jsonl");
    let file = path.to_str().unwrap();
    let live = controller.medes(&["trace", "--record", file]);
    // The fake's stream ends, which a controller's does only when it stops.
    assert_eq!(live.status.code(), Some(3), "{}", stderr(&live));
    let text = stdout(&live);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[0].starts_with("TIME (UTC)"), "{text}");
    assert!(lines[1].contains("dedup: idle and quiet") && lines[1].contains("not keep"), "{text}");
    assert!(lines[2].contains("warm -> deduping (decided, ev-1-41)"), "{text}");
    assert!(lines[3].contains("dedup failed (dump_refused): an established TCP connection"), "{text}");
    assert!(lines[4].contains("7 events were dropped here"), "{text}");

    let replayed = medes(&["trace", "--replay", file]).output().unwrap();
    assert_eq!((replayed.status.code(), stdout(&replayed)), (Some(0), text));
    let some = medes(&["trace", "--replay", file, "--sandbox", "sb-1-3"]).output().unwrap();
    assert_eq!(stdout(&some).lines().count(), 3, "heading, one event, and the gap");

    // As JSON it is a recording again.
    let json = medes(&["trace", "--replay", file, "--json"]).output().unwrap();
    assert_eq!(json.stdout, std::fs::read(&path).unwrap());
    // It is not written over, and a damaged one is refused after its good part.
    let again = controller.medes(&["trace", "--record", file]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
    let damaged = medes(&["trace", "--replay", file]).output().unwrap();
    assert_eq!((damaged.status.code(), stdout(&damaged).lines().count()), (Some(1), 4));
    assert!(stderr(&damaged).contains(":5: cut off in the middle"), "{}", stderr(&damaged));
}

#[test]
fn a_trace_is_filtered_by_the_controller() {
    let controller = FakeController::start();
    let args =
        ["trace", "--json", "--kind", "error", "--kind", "dedup", "--function", "html", "--node", "node-0"];
    let output = controller.medes(&args);
    let text = stdout(&output);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines[0]["format"].as_str(), lines[0]["version"].as_u64()), (Some("medes-trace"), Some(1)));
    assert_eq!((&lines[1]["kind"], &lines[1]["sandbox"]), (&"error".into(), &"sb-1-3".into()));
    assert_eq!(lines[2], serde_json::json!({"dropped": 7}));
    let asked = controller.asked.lines().join("\n");
    assert!(asked.contains("kinds: [Error, Dedup]") && asked.contains("html"), "{asked}");
}

#[test]
fn explain_says_why_and_what_was_rejected() {
    let controller = FakeController::start();
    let output = controller.medes(&["explain", "sb-1-2"]);
    let text = stdout(&output);
    assert!(text.starts_with("sb-1-2 of html on node-0 is dedup, for "), "{text}");
    for line in [
        "last change: warm -> deduping (decided, ev-1-41) at 16:03:21.000",
        "decision:    ev-1-41 (review) at 16:03:21.000",
        "  chosen:    dedup: idle and quiet, and its function has a base",
        "  rejected:  keep: idle for the idle period",
        "  looked at: idle 61.00 s",
        "its pages:   40 hot, 20 warm in 8 windows of requests; 50 written and 200 touched in the last",
        "history (the first 4 are forgotten):",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
    let value = json(&controller.medes(&["explain", "sb-1-2", "--json"]));
    assert_eq!(value["decision"]["event"], "ev-1-41");
    assert_eq!(value["history"].as_array().unwrap().len(), 3);
    assert_eq!(value["now"]["state"], "dedup");
    let warm = stdout(&controller.medes(&["explain", "sb-1-1"]));
    let woken = "its tasks:   no work for 12.00 s; 1.25 s on CPUs, woken 310 times, 302 of these by timers";
    assert!(warm.lines().any(|line| line == woken), "{warm}");
    let nobody = controller.medes(&["explain", "sb-1-9"]);
    assert_eq!(nobody.status.code(), Some(1));
}

#[test]
fn heat_is_text_json_and_a_picture() {
    let controller = FakeController::start();
    let text = stdout(&controller.medes(&["heat", "sb-1-1"]));
    assert!(text.contains(". file 8.0 KiB   o private 24.0 KiB") && text.contains("[heap]"), "{text}");
    let folder = tempfile::tempdir().unwrap();
    for (name, magic) in [("map.svg", &b"<svg "[..]), ("map.png", &b"\x89PNG"[..])] {
        let path = folder.path().join(name);
        let output = controller.medes(&["heat", "sb-1-1", "--out", path.to_str().unwrap()]);
        assert!(stdout(&output).contains("drawn into"), "{}", stderr(&output));
        assert!(std::fs::read(&path).unwrap().starts_with(magic));
    }
    let value = json(&controller.medes(&["heat", "sb-1-1", "--json"]));
    assert_eq!(
        value["mappings"][0]["ranges"][0],
        serde_json::json!({"first_page": 0, "pages": 6, "class": "private"})
    );
    let refused = controller.medes(&["heat", "sb-1-2"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("no memory of its own"), "{}", stderr(&refused));
}

#[test]
fn top_wants_a_terminal() {
    let controller = FakeController::start();
    let output = controller.medes(&["top"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`medes top` needs a terminal"), "{}", stderr(&output));
}

/// A trace of two functions, 4 and 2 requests in one minute.
fn trace() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "name,avg_ms,m1\nabc,10,4\nxyz,10,2\n").unwrap();
    file
}

#[test]
fn load_sends_what_the_trace_says_and_sums_up() {
    let (controller, trace) = (FakeController::start(), trace());
    let path = trace.path().to_str().unwrap();
    let output = controller.medes(&["load", "--trace", path, "--map", "a=html,auth", "--speedup", "600"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("6 of 6 sent"), "{}", stdout(&output));
    assert!(stdout(&output).contains("restore        6  100.0 %"), "{}", stdout(&output));
    let bodies: Vec<_> =
        controller.asked.lines().into_iter().filter(|line| line.starts_with("POST /")).collect();
    assert_eq!(bodies, vec!["POST / [] 8 bytes 60000 ms"; 6]);
}

#[test]
fn load_counts_what_fails_and_says_so() {
    let (controller, trace) = (FakeController::start(), trace());
    let path = trace.path().to_str().unwrap();
    let arguments =
        ["load", "--json", "--trace", path, "--map", "x=html", "--speedup", "600", "--data", "fail %n"];
    let output = controller.medes(&arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let value = json(&output);
    assert_eq!((&value["sent"], &value["answered"], &value["failed"]), (&2.into(), &1.into(), &1.into()));
    assert_eq!(value["failures"]["crashed"]["count"], 1);
    assert_eq!(value["by_start"]["restore"]["count"], 1);
    assert!(stderr(&output).contains("4 are left out"), "{}", stderr(&output));
}

#[test]
fn load_asks_for_functions_that_there_are() {
    let (controller, trace) = (FakeController::start(), trace());
    let path = trace.path().to_str().unwrap();
    let output = controller.medes(&["load", "--trace", path, "--map", "htlm"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("there is no function htlm"), "{}", stderr(&output));
    let none = controller.medes(&["load", "--trace", path, "--map", "html", "--from", "9"]);
    assert!(stderr(&none).contains("nothing of the trace is left"), "{}", stderr(&none));
}
