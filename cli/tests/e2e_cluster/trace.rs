//! Every decision visible live: the trace of a real dedup and restore, why a sandbox is where it is, its heat map.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, sync_channel},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, QUIET, can_run},
    program::{PATIENCE, until},
};

/// `medes trace --json ARGS` in another process, and its lines.
struct Trace {
    child: Child,
    lines: Receiver<Value>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Trace {
    /// When it returns, nothing that happens from then on is missed.
    fn start(cluster: &Cluster, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_medes"))
            .args(["trace", "--json", "--controller", cluster.control()])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = sync_channel(10_000);
        let forward = move |out: BufReader<ChildStdout>| {
            for line in out.lines() {
                if sender.send(serde_json::from_str(&line.unwrap()).unwrap()).is_err() {
                    return;
                }
            }
        };
        let reader = Some(thread::spawn(move || forward(out)));
        let trace = Self { child, lines, reader };
        assert_eq!(trace.next()["format"], "medes-trace");
        trace
    }

    fn next(&self) -> Value {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(why @ (RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected)) => panic!("{why}"),
        }
    }

    /// All lines up to the first that is wanted.
    fn until(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let mut lines = Vec::new();
        loop {
            lines.push(self.next());
            if wanted(&lines[lines.len() - 1]) {
                return lines;
            }
        }
    }

    /// Ctrl-C: it ends by itself, and well.
    fn interrupt(mut self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        self.reader.take().unwrap().join().unwrap();
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // After a failed assertion it is still there.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// `kind` of an event, and of a change of state also where it leads.
fn step(event: &Value) -> String {
    match event["kind"].as_str().unwrap() {
        "state" => format!("-> {}", event["to"].as_str().unwrap_or("gone")),
        kind => kind.to_owned(),
    }
}

#[test]
fn a_dedup_and_a_restore_are_seen_in_order_and_explained() {
    if !can_run("a_dedup_and_a_restore_are_seen_in_order_and_explained") {
        return;
    }
    let cluster = Cluster::start(QUIET, &[("a", &[])]);
    cluster.apply("f");
    let source = cluster.start_on("a", "f");
    let base = cluster.ask(&["base", &source])["snapshot"]["snapshot"].clone();
    let sandbox = cluster.start_on("a", "f");

    let trace = Trace::start(&cluster, &["--sandbox", &sandbox]);
    let (recording, file) = (cluster.dir().join("trace.jsonl"), cluster.dir().join("trace.jsonl"));
    let recorder = Trace::start(&cluster, &["--kind", "dedup", "--record", recording.to_str().unwrap()]);
    cluster.ask(&["dedup", &sandbox]);
    let events = trace.until(|event| event["kind"] == "dedup");
    let steps: Vec<_> = events.iter().map(step).collect();
    assert_eq!(steps, ["asked", "-> deduping", "-> dedup", "dedup"], "{events:?}");
    assert!(events.iter().all(|event| event["sandbox"] == *sandbox && event["function"] == "f"));
    assert_eq!(events[2]["decision"], events[0]["event"]);
    let dedup = &events[3];
    let row = cluster.row(&sandbox).unwrap();
    for class in ["zero", "same", "delta", "whole"] {
        assert_eq!(dedup["pages"][class], row["pages"][class], "{class}");
    }
    assert!(dedup["pages"]["same"].as_u64().unwrap() > 0, "{dedup}");
    assert_eq!((&dedup["bases"], &dedup["nodes"]), (&json!([base]), &json!([cluster.node("a")])));
    assert_eq!(dedup["bytes_out"], row["stored_bytes"]);
    assert!(dedup["bytes_in"].as_u64() > dedup["bytes_out"].as_u64(), "{dedup}");
    let phases: Vec<_> =
        dedup["phases"].as_array().unwrap().iter().map(|phase| phase["name"].clone()).collect();
    assert!(phases.starts_with(&[json!("dump")]) && phases.contains(&json!("encode")), "{phases:?}");

    // It has no tasks that the kernel could tell of.
    assert_eq!(row["activity"], json!(null), "{row}");

    // A request brings it back; why is said, and nothing of the request.
    let reply = cluster.post_with("f/count?secret=1", &[("x-medes-prefer-sandbox", &sandbox)], b"hidden");
    assert_eq!(reply.unwrap().start(), "restore");
    let events = trace.until(|event| event["kind"] == "request");
    let steps: Vec<_> = events.iter().map(step).collect();
    assert_eq!(steps, ["start", "-> restoring", "ready", "-> warm", "request"], "{events:?}");
    let start = &events[0];
    assert_eq!(start["chosen"]["name"], format!("restore {sandbox}"));
    assert!(start["rejected"].as_array().unwrap().iter().any(|option| option["name"] == "cold"), "{start}");
    assert!(
        events[2]["phases"].as_array().unwrap().iter().any(|phase| phase["name"] == "rebuild"),
        "{}",
        events[2]
    );
    let told = format!("{events:?}");
    assert!(!told.contains("secret") && !told.contains("hidden"), "{told}");

    cluster.until_state(&sandbox, "warm");
    // The request has woken it; without kernel programs nobody sees that.
    until("what its tasks did is told", || {
        let seen = &cluster.row(&sandbox)?["activity"];
        let told = seen["wakes"].as_u64().is_none_or(|wakes| wakes > 0);
        (told && seen["cpu_ms"].is_u64()).then_some(())
    });
    let explained = cluster.ask(&["explain", &sandbox]);
    assert_eq!(explained["decision"]["event"], start["event"]);
    assert_eq!((&explained["now"]["state"], &explained["change"]["to"]), (&json!("warm"), &json!("warm")));
    assert!(explained["history"].as_array().unwrap().iter().any(|event| event["kind"] == "dedup"));

    // Its memory, page by page.
    let heat = cluster.ask(&["heat", &sandbox]);
    let pages = |class: &str| {
        let all = heat["pages"].as_array().unwrap();
        all.iter().filter(|row| row["class"] == class).map(|row| row["pages"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(
        heat["mappings"].as_array().unwrap().iter().any(|mapping| mapping["name"] == "[stack]"),
        "{heat}"
    );
    assert!(
        ["private", "hot", "warm", "cold"].into_iter().map(pages).sum::<u64>() > 200,
        "{}",
        heat["pages"]
    );
    assert_eq!(cluster.medes(&["heat", "sb-9-9"]).0, 1);

    trace.interrupt();
    recorder.until(|event| event["kind"] == "dedup");
    recorder.interrupt();
    let recorded = std::fs::read_to_string(file).unwrap();
    assert_eq!(recorded.lines().count(), 2, "{recorded}");
    assert!(recorded.contains(&sandbox));
}

#[test]
fn what_the_policy_does_by_itself_is_told_with_its_reasons() {
    if !can_run("what_the_policy_does_by_itself_is_told_with_its_reasons") {
        return;
    }
    let config = QUIET.replace("idle = '1h'", "idle = '500ms'");
    let cluster = Cluster::start(&config, &[("a", &[])]);
    let trace = Trace::start(&cluster, &[]);
    cluster.apply("f");
    let first = cluster.start_on("a", "f");
    let of =
        |sandbox: &str, kind: &str, event: &Value| event["sandbox"] == *sandbox && event["kind"] == *kind;
    let events = trace.until(|event| of(&first, "base", event));
    let base = events.iter().rfind(|event| of(&first, "review", event)).unwrap();
    assert_eq!(
        (&base["chosen"]["name"], &base["chosen"]["reason"]),
        (&json!("base"), &json!("its function has no base"))
    );
    assert!(events.iter().any(|event| of(&first, "idle", event)), "its agent saw no work in it");
    let second = cluster.start_on("a", "f");
    let events = trace.until(|event| of(&second, "dedup", event));
    let review = events.iter().rfind(|event| of(&second, "review", event)).unwrap();
    assert_eq!(review["chosen"]["name"], "dedup");
    let fact = |name: &str| {
        let facts = review["facts"].as_array().unwrap();
        facts.iter().find(|fact| fact["name"] == name).unwrap()["value"].as_u64().unwrap()
    };
    assert!(fact("idle_ms") >= fact("idle_limit_ms") && fact("function_bases") == 1, "{review}");
    assert_eq!(cluster.ask(&["explain", &second])["decision"]["event"], review["event"]);
    trace.interrupt();
}
