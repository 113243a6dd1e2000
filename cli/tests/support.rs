//! `medes support-bundle` against a fake controller: what is in it, and what is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on")]

mod fake;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
};

use fake::{FakeController, json, medes, stderr, stdout};

/// A token as the controller makes them.
const TOKEN: &str = "medes_web_00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn unpacked(file: &Path) -> BTreeMap<String, String> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(fs::File::open(file).unwrap()));
    let files = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (name.strip_prefix("medes-support/").unwrap().to_owned(), text)
    });
    files.collect()
}

/// Answers so many requests, each with what it was asked for.
fn metrics(requests: usize) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serve = move || {
        for stream in listener.incoming().take(requests) {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            let asked = String::from_utf8(head).unwrap();
            let path = asked.split(' ').nth(1).unwrap();
            write!(stream, "HTTP/1.0 200 OK\r\n\r\nasked for {path}\n").unwrap();
        }
    };
    (address, thread::spawn(serve))
}

#[test]
fn what_helps_is_in_it_and_no_secret_is() {
    let controller = FakeController::start();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let log = format!(
        "started\nauthorization: Bearer {TOKEN}\ncall with {TOKEN}\nDB_PASSWORD=PLANTED-PASSWORD rest\n\
         -----BEGIN PRIVATE KEY-----\nPLANTEDKEY\n-----END PRIVATE KEY-----\nended\n"
    );
    fs::write(path("agent.log"), log).unwrap();
    fs::write(path("agent.env"), "MEDES_NODE=node-0\nCLOUD_SECRET=\"PLANTED-SECRET\"\n").unwrap();
    let (address, served) = metrics(2);
    let (out, address) = (path("bundle.tar.gz"), address.to_string());
    let (log, config, gone) = (path("agent.log"), path("agent.env"), path("gone.log"));
    let output = controller.medes(&[
        "--json",
        "support-bundle",
        "--out",
        &out,
        "--log",
        &log,
        "--log",
        &gone,
        "--config",
        &config,
        "--metrics",
        &address,
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    served.join().unwrap();
    assert_eq!(fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o600);
    let files = unpacked(Path::new(&out));
    for (name, text) in &files {
        for secret in ["PLANTED", "00112233", "Bearer medes"] {
            assert!(!text.contains(secret), "{secret} in {name}: {text}");
        }
    }
    let value = |name: &str| serde_json::from_str::<serde_json::Value>(&files[name]).unwrap();
    assert_eq!(value("machine.json")["medes"], env!("CARGO_PKG_VERSION"));
    assert!(value("doctor.json").as_array().unwrap().iter().any(|check| check["name"] == "kernel"));
    assert_eq!(value("nodes.json")["nodes"][0]["node"], "node-0");
    assert_eq!(value("sandboxes.json").as_array().unwrap().len(), 3);
    assert!(files["policy.toml"].contains("fixed"));
    let function = value("functions.json")[0]["toml"].as_str().unwrap().to_owned();
    assert!(function.contains("\"serve\"") && function.contains("API"), "names stay: {function}");
    assert_eq!(value("explain/sb-1-2.json")["sandbox"], "sb-1-2");
    assert!(!value("explain/sb-1-2.json")["history"].as_array().unwrap().is_empty());
    assert!(
        files["logs/0-agent.log"].starts_with("started\n") && files["logs/0-agent.log"].ends_with("ended\n")
    );
    assert!(files["config/0-agent.env"].contains("MEDES_NODE=node-0\n"));
    let name = address.replace(':', "_");
    assert_eq!(files[&format!("metrics/{name}.txt")], "asked for /metrics\n");
    assert_eq!(files[&format!("readyz/{name}.txt")], "asked for /readyz\n");
    // What could not be had is told there and here.
    let said = json(&output);
    assert_eq!(said["parts"].as_array().unwrap().len(), files.len());
    let missing: Vec<_> = said["missing"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
    assert!(missing.contains(&"logs/1-gone.log".into()), "{missing:?}");
    assert_eq!(value("index.json")["missing"], said["missing"]);
}

#[test]
fn without_a_controller_there_is_still_what_this_machine_knows() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("bundle.tar.gz").display().to_string();
    let output = medes(&["support-bundle", "--controller", "127.0.0.1:1", "--out", &out]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(
        stdout(&output).contains("not in it: cluster (cannot reach the controller"),
        "{}",
        stdout(&output)
    );
    assert!(unpacked(Path::new(&out)).contains_key("doctor.json"));
}
