//! What every test starts with: a node of its own, and functions to run on it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use medes_agent::reaper::Reaper;
use medes_agent::sandbox::{
    Host, HostConfig, Housing, LaunchSpec, Request, RequestError, Response, SandboxId, Tree,
    enter_private_mounts,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
/// The interpreter of the system: in every sandbox with the host's root.
pub(crate) const PYTHON: &str = "/usr/bin/python3";

/// Runs an async test on a node. The node is torn down by its keeper when the process ends.
pub(crate) fn on_node<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F) {
    enter_private_mounts().expect("private mounts");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime");
    runtime.block_on(async {
        let host = start_node(&format!("test-{}", std::process::id())).await;
        test(host).await;
    });
}

pub(crate) async fn start_node(name: &str) -> Host {
    let tasks = TaskTracker::new();
    let reaper = Reaper::start(&tasks, CancellationToken::new()).expect("reaper");
    Host::start(config(name), reaper, tasks).await.expect("node")
}

pub(crate) fn config(name: &str) -> HostConfig {
    HostConfig {
        node: name.to_owned(),
        run_dir: PathBuf::from(format!("/run/medes-{name}")),
        run_bytes_max: 64 << 20,
        program: PathBuf::from(env!("CARGO_BIN_EXE_medes-agent")),
        takeover: Duration::ZERO,
        in_scope: false,
    }
}

/// Folder with the function's program; it stays visible in the sandbox wherever the checkout lies.
pub(crate) fn function_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel_sandbox")
}

/// The test function as a sandbox.
pub(crate) fn function() -> LaunchSpec {
    let program = function_dir().join("function.py");
    let command = vec![PYTHON.to_owned(), program.display().to_string()];
    LaunchSpec {
        mounts: vec![function_dir()],
        ready_timeout: LIMIT,
        ..LaunchSpec::new("probe", command, 8080)
    }
}

/// A sandbox that runs this Python program and nothing else.
pub(crate) fn python(code: &str) -> LaunchSpec {
    let command = vec![PYTHON.to_owned(), "-u".to_owned(), "-c".to_owned(), code.to_owned()];
    LaunchSpec { ready_timeout: LIMIT, ..LaunchSpec::new("probe", command, 8080) }
}

pub(crate) async fn house(host: &Host, id: &str, spec: &LaunchSpec) -> Housing {
    let id = SandboxId::new(id).expect("id");
    Housing::create(host, &id, spec).await.unwrap_or_else(|error| panic!("create {id}: {error}: {error:?}"))
}

pub(crate) async fn launch(host: &Host, id: &str, spec: &LaunchSpec) -> (Housing, Tree) {
    let housing = house(host, id, spec).await;
    let tree = housing.launch().await.unwrap_or_else(|error| panic!("launch {id}: {error}: {error:?}"));
    (housing, tree)
}

/// A request that has the function run code.
pub(crate) fn run(code: &str) -> Request {
    let mut request = Request::get("/", LIMIT, 1 << 20);
    request.method = hyper::Method::POST;
    request.body = code.to_owned().into();
    request
}

pub(crate) async fn try_run(housing: &Housing, code: &str) -> Result<Response, RequestError> {
    housing.request(run(code)).await
}

/// Runs code in the function and gives its result.
pub(crate) async fn result(housing: &Housing, code: &str) -> String {
    let response = try_run(housing, code).await.unwrap_or_else(|error| panic!("{code}: {error}: {error:?}"));
    let text = String::from_utf8(response.body.to_vec()).expect("text");
    assert!(response.status.is_success(), "{code}: {text}");
    text
}

/// Whether code in the function fails with this word in the error.
pub(crate) async fn refused(housing: &Housing, code: &str, word: &str) {
    let response = try_run(housing, code).await.unwrap_or_else(|error| panic!("{code}: {error}: {error:?}"));
    let text = String::from_utf8(response.body.to_vec()).expect("text");
    assert!(!response.status.is_success(), "{code} worked: {text}");
    assert!(text.contains(word), "{code} failed otherwise: {text}");
}

/// Looks again until it is so, or fails at the deadline.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All directories of control groups with this in their name.
pub(crate) fn cgroups_named(part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name().to_string_lossy().contains(part) {
                    found.push(entry.path());
                }
                todo.push(entry.path());
            }
        }
    }
    found
}
