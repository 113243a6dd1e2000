//! Requests that flow all the time: a few callers, each with one request after the other.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, ChildStdin, Stdio},
};

use crate::lab::{Lab, until};

const CALLERS: &str = r#"
import http.client, json, sys, threading, os
gateway, path, token, record = sys.argv[1:5]
stop = threading.Event()
lock = threading.Lock()
counts = {"good": 0, "bad": [], "starts": {}}
def call():
    connection = http.client.HTTPConnection(gateway, timeout=100)
    try:
        connection.request("POST", path, body=b"", headers={"authorization": "Bearer " + token})
        answer = connection.getresponse()
        body = answer.read()
        return answer.status, answer.getheader("x-medes-start"), body
    finally:
        connection.close()
def caller():
    while not stop.is_set():
        try:
            status, start, body = call()
            bad = None if status == 200 else "%d %s" % (status, body[:200])
        except Exception as error:
            start, bad = None, repr(error)
        with lock:
            if bad:
                counts["bad"].append(bad)
            else:
                counts["good"] += 1
                counts["starts"][start] = counts["starts"].get(start, 0) + 1
            with open(record + ".new", "w") as file:
                json.dump(counts, file)
            os.rename(record + ".new", record)
        stop.wait(0.05)
threads = [threading.Thread(target=caller) for _ in range(3)]
for thread in threads: thread.start()
sys.stdin.read()
stop.set()
for thread in threads: thread.join()
print("done", flush=True)
"#;

const ONE: &str = r#"
import http.client, sys
gateway, path, token, sandbox = sys.argv[1:5]
connection = http.client.HTTPConnection(gateway, timeout=100)
headers = {"authorization": "Bearer " + token, "x-medes-prefer-sandbox": sandbox}
connection.request("POST", path, body=b"", headers=headers)
answer = connection.getresponse()
print(answer.read().decode())
sys.exit(answer.status != 200)
"#;

/// One request that is meant for this sandbox, and its answer.
#[track_caller]
pub(crate) fn call(lab: &Lab, (gateway, path): (&str, &str), token: &str, sandbox: &str) -> String {
    let output = lab.command("python3").args(["-c", ONE, gateway, path, token, sandbox]).output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{answer}{}", String::from_utf8_lossy(&output.stderr));
    answer
}

/// Callers at work.
pub(crate) struct Traffic {
    child: Child,
    stdin: Option<ChildStdin>,
    record: PathBuf,
}

impl Traffic {
    /// Starts to call a function through a gateway.
    pub(crate) fn start(lab: &Lab, gateway: &str, path: &str, token: &str) -> Self {
        let script = lab.file("callers.py", CALLERS);
        let record = lab.file("callers.json", "");
        let mut command = lab.command("python3");
        command.arg(script).args([gateway, path, token]).arg(&record);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin, record }
    }

    fn counts(&self) -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(&self.record).unwrap_or_default()).unwrap_or_default()
    }

    /// Requests that were answered well.
    pub(crate) fn good(&self) -> u64 {
        self.counts()["good"].as_u64().unwrap_or(0)
    }

    /// Waits until some more are answered.
    pub(crate) fn some_more(&self) {
        let before = self.good();
        until("requests are answered", || self.good() > before + 5);
    }

    /// Lets the last requests end. All were answered well.
    #[track_caller]
    pub(crate) fn all_good(mut self) -> u64 {
        drop(self.stdin.take());
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
        let counts = self.counts();
        assert_eq!(counts["bad"], serde_json::json!([]), "{counts}");
        println!("callers: {counts}");
        counts["good"].as_u64().unwrap()
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        // It has ended by itself unless the test has failed.
        let _ended = (self.child.kill(), self.child.wait());
    }
}
