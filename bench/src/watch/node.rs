//! A node in this process with nothing but sandboxes: no roads, no controller.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use medes_agent::{
    launch_spec::launch_spec,
    reaper::Reaper,
    sandbox::{self, Host, HostConfig, Housing, Request, Tree},
};
use medes_proto::{
    function::FunctionSpec,
    ids::{NodeId, SandboxId},
};
use nix::mount::{MntFlags, umount2};
use serde_json::json;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::report::Burst;
use crate::scratch::Scratch;

const RUN_BYTES_MAX: u64 = 1 << 30;
const STOP_MAX: Duration = Duration::from_secs(15);
/// Covers the largest function on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A node.
pub(super) struct Node {
    host: Host,
    name: NodeId,
    pub(super) reaper: Reaper,
    /// The agent's program, which is also the helper that tracking needs.
    pub(super) program: PathBuf,
    scratch: Scratch,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A warm sandbox.
pub(super) struct Sandbox {
    pub(super) housing: Housing,
    pub(super) tree: Tree,
}

impl Node {
    pub(super) async fn open(program: PathBuf) -> Result<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let reaper = Reaper::start(&tasks, stop.clone()).context("start the reaper")?;
        let name: NodeId = format!("bench-{}", std::process::id()).parse().context("name the node")?;
        let scratch = Scratch::make()?;
        let config = HostConfig {
            node: name.to_string(),
            run_dir: scratch.path().join("run"),
            run_bytes_max: RUN_BYTES_MAX,
            program: program.clone(),
        };
        let host = Host::start(config, reaper.clone(), tasks.clone()).await.context("set a node up")?;
        Ok(Self { host, name, reaper, program, scratch, stop, tasks })
    }

    /// A cold start, until the function says it is ready.
    pub(super) async fn start(&self, number: u32, spec: FunctionSpec) -> Result<Sandbox> {
        let sandbox = SandboxId::of(1, number).context("numbers start at one")?;
        let id = sandbox::SandboxId::new(sandbox.to_string())?;
        let spec = launch_spec(&spec, sandbox, &self.name);
        let housing = Housing::create(&self.host, &id, &spec).await.context("house a sandbox")?;
        let tree = housing.launch().await.context("start a sandbox")?;
        Ok(Sandbox { housing, tree })
    }

    /// Ends the node. What it leaves behind after an error goes with this process.
    pub(super) async fn close(self) -> Result<()> {
        let run_dir = self.host.run_dir().to_owned();
        self.stop.cancel();
        drop(self.host);
        self.tasks.close();
        if tokio::time::timeout(STOP_MAX, self.tasks.wait()).await.is_err() {
            eprintln!("{} tasks did not end within {} s", self.tasks.len(), STOP_MAX.as_secs());
        }
        umount2(&run_dir, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", run_dir.display()))?;
        self.scratch.remove()
    }
}

impl Sandbox {
    /// Requests one after the other.
    pub(super) async fn burst(&self, requests: u32) -> Result<Burst> {
        let mut request_ms = Vec::with_capacity(requests as usize);
        let began = Instant::now();
        for n in 1..=u64::from(requests) {
            let asked = Instant::now();
            let mut request = Request::get("/", ANSWER_MAX, ANSWER_BYTES_MAX);
            request.method = hyper::Method::POST;
            request.body = json!({ "n": n }).to_string().into();
            let response = self.housing.request(request).await?;
            ensure!(response.status.is_success(), "the function answered {}", response.status);
            request_ms.push(asked.elapsed().as_secs_f64() * 1e3);
        }
        Ok(Burst { seconds: began.elapsed().as_secs_f64(), request_ms })
    }

    pub(super) async fn remove(self) -> Result<()> {
        self.housing.remove().await.context("remove the sandbox")
    }
}
