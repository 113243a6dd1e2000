//! A controller and two agents on two hosts of the lab: a base on one, and a sandbox of the other that is put away and
//! comes back by the base's pages, read by RDMA.
//!
//! `run FOLDER` in one host's network namespace, with the programs in `MEDES_BIN_DIR` and the function's files in
//! `FOLDER`; the other host is the namespace `B`. Without arguments there is no lab: nothing is tested, and it says so.

#[path = "../e2e_cluster/http.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the end-to-end tests, which need more of it")]
mod http;
#[path = "../e2e_cluster/program.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "shared with the end-to-end tests, which need more of it")]
mod program;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::program::{Program, path_of};

const CONTROL: &str = "10.0.0.1:7070";
const GATEWAY: &str = "10.0.0.1:8080";
/// Where the reader counts.
const METRICS: &str = "10.0.0.2:9464";
/// Times that a sandbox is put away and comes back until its pages came by RDMA: the first ones do not wait for that.
const TURNS_MAX: usize = 6;
/// The machine is emulated.
const PATIENCE: Duration = Duration::from_secs(120);

/// Nothing happens by itself.
const QUIET: &str = "
[fleet]
heartbeat = '1s'
settle = '0ms'
base_copies = 1
[sandboxes]
init_snapshots = false
[policy]
idle = '1h'
keep_alive = '2h'
keep_dedup = '2h'
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["run", folder] => run(Path::new(folder)),
        _ => println!("SKIPPED a cluster over RDMA: `cargo xtask lab` runs it"),
    }
    ExitCode::SUCCESS
}

fn run(folder: &Path) {
    let begun = Instant::now();
    let mut cluster = Cluster::start(folder);
    cluster.ask(&["function", "apply", &cluster.function_file()]);
    let base = cluster.start_on("a");
    cluster.ask(&["base", &base]);
    let sandbox = cluster.start_on("b");
    cluster.done("a_base_on_one_host_and_a_sandbox_on_the_other", begun);

    let begun = Instant::now();
    let turns = until_by_rdma(&cluster, &sandbox);
    println!("    after {turns} turns: {:?}", cluster.remote_pages());
    cluster.done("a_sandbox_comes_back_by_pages_that_are_read_by_rdma", begun);

    let begun = Instant::now();
    let count = cluster.count(&sandbox).1;
    cluster.ask(&["dedup", &sandbox]);
    cluster.holder.kill();
    // Its pages are nowhere any more: a cold start, said so, and no wrong byte.
    assert_eq!(cluster.count(&sandbox), ("cold".into(), 1), "it had counted {count}");
    cluster.done("a_holder_that_is_killed_costs_a_cold_start", begun);
    println!("test result: ok. {} passed; 0 failed", cluster.passed);
}

/// Puts the sandbox away and takes it back, comparing all of its memory, until base pages have come by RDMA.
fn until_by_rdma(cluster: &Cluster, sandbox: &str) -> usize {
    let mut count = 0;
    for turn in 1..=TURNS_MAX {
        let before = cluster.remote_pages();
        count += 1;
        assert_eq!(cluster.count(sandbox).1, count);
        let stopped = cluster.ask(&["dedup", sandbox, "--digest"]);
        let restored = cluster.ask(&["restore", sandbox, "--digest"]);
        assert!(
            stopped["memory_digest"].is_string() && stopped["memory_digest"] == restored["memory_digest"]
        );
        count += 1;
        assert_eq!(cluster.count(sandbox), ("warm".into(), count), "it goes on where it was");
        let after = cluster.remote_pages();
        assert!(after.0 + after.1 > before.0 + before.1, "no page of the other host was needed");
        if after.1 > 0 {
            return turn;
        }
    }
    panic!("no page came by RDMA in {TURNS_MAX} turns: {:?}", cluster.remote_pages());
}

struct Cluster {
    // Dropped in this order.
    _reader: Program,
    holder: Program,
    _controller: Program,
    folder: PathBuf,
    passed: usize,
}

impl Cluster {
    fn start(folder: &Path) -> Self {
        let file = |name: &str| folder.join(name).to_str().expect("a path").to_owned();
        fs::write(file("controller.toml"), QUIET).expect("room");
        let (config, state) = (file("controller.toml"), file("controller"));
        let args = ["--control", CONTROL, "--gateway", GATEWAY, "--plaintext", "--state-dir", &state];
        let args = [&args[..], &["--config", &config]].concat();
        let log = folder.join("controller.log");
        let mut controller = Program::start(&path_of("medes-controller"), &args, &log, Stdio::piped());
        controller.first_line();
        let agent = |name: &str, address: &str, more: &[&str]| {
            let (program, state) = (path_of("medes-agent"), file(name));
            let network = format!("--net=/run/netns/{}", name.to_uppercase());
            let args =
                [&*network, program.to_str().expect("a path"), "--node", name, "--controller", CONTROL];
            let listen = format!("{address}:0");
            let own = ["--state-dir", &state, "--listen", &listen, "--plaintext"];
            let log = folder.join(format!("{name}.log"));
            Program::start(Path::new("nsenter"), &[&args[..], &own, more].concat(), &log, Stdio::null())
        };
        let holder = agent("a", "10.0.0.1", &[]);
        // Nothing of the other host is kept: every restore reads it again.
        let forgetful = ["--replica-memory", "0B", "--page-memory", "0B", "--metrics", METRICS];
        let reader = agent("b", "10.0.0.2", &forgetful);
        let cluster =
            Self { _reader: reader, holder, _controller: controller, folder: folder.to_owned(), passed: 0 };
        let until = Instant::now() + PATIENCE;
        while cluster.ask(&["nodes"])["nodes"].as_array().is_none_or(|nodes| nodes.len() < 2) {
            assert!(Instant::now() < until, "the agents do not come");
            std::thread::sleep(Duration::from_millis(200));
        }
        cluster
    }

    fn function_file(&self) -> String {
        let (path, folder) = (self.folder.join("f.toml"), self.folder.display());
        let lines = "command = ['/usr/bin/python3', 'function.py']\nmemory = '128MiB'";
        fs::write(&path, format!("name = 'f'\ndir = '{folder}'\n{lines}\n")).expect("room");
        path.to_str().expect("a path").into()
    }

    /// `medes --json` with these arguments: what it printed.
    #[track_caller]
    fn ask(&self, args: &[&str]) -> Value {
        let output =
            Command::new(path_of("medes")).args(args).args(["--json", "--controller", CONTROL]).output();
        let output = output.expect("medes starts");
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {output:?}"))
    }

    #[track_caller]
    fn start_on(&self, node: &str) -> String {
        let done = self.ask(&["start", "f", "--node", node]);
        done["sandbox"]["sandbox"].as_str().expect("a name").into()
    }

    /// Has the sandbox count: how it came to be ready, and the count.
    #[track_caller]
    fn count(&self, sandbox: &str) -> (String, u64) {
        let headers = [("x-medes-prefer-sandbox", sandbox)];
        let reply = http::request(GATEWAY, "POST", "/invoke/f/count", &headers, b"").expect("an answer");
        (reply.start().into(), reply.good()["count"].as_u64().expect("a number"))
    }

    /// Pages that the reader has got of the other host: over TCP, by RDMA.
    fn remote_pages(&self) -> (u64, u64) {
        let mut stream = TcpStream::connect(METRICS).expect("metrics");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("told");
        let by = |by: &str| {
            let start = format!("medes_remote_pages_total{{by=\"{by}\"}} ");
            let line = text.lines().find_map(|line| line.strip_prefix(&start));
            line.map_or(0, |number| number.parse().expect("a number"))
        };
        (by("tcp"), by("rdma"))
    }

    fn done(&mut self, test: &str, begun: Instant) {
        println!("test {test} ... ok ({} ms)", begun.elapsed().as_millis());
        self.passed += 1;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // What happened, for the one who reads the failure.
        for name in ["controller", "a", "b"] {
            let text = fs::read_to_string(self.folder.join(format!("{name}.log"))).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            println!("-- {name}");
            lines.iter().skip(lines.len().saturating_sub(40)).for_each(|line| println!("{line}"));
        }
    }
}
