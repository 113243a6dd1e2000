//! What an experiment asks of the controller: gRPC calls with deadlines, failures turned into errors.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use medes_proto::{
    ids::SandboxId,
    limits::MESSAGE_BYTES_MAX,
    wire::{
        self, FailureKind, NodeRow, OperationReply, OperationSuccess, SandboxReport, SandboxRequest,
        SandboxRow, SnapshotReport, control_client::ControlClient, operation_reply,
    },
};
use tokio::time::{Instant, sleep};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use crate::gateway::Phase;

const CONNECT_MAX: Duration = Duration::from_secs(10);
const LIST_MAX: Duration = Duration::from_secs(10);
/// Covers a cold start or a dump of the largest function on a busy machine.
const OPERATION_MAX: Duration = Duration::from_secs(180);
/// Several heartbeats.
const FRESH_MAX: Duration = Duration::from_secs(30);
/// Covers a start of the largest function and the copy of its memory.
const INIT_MAX: Duration = Duration::from_secs(180);
/// How long after an operation the memory it gave back is surely counted as free.
const SETTLE: Duration = Duration::from_millis(250);
const POLL: Duration = Duration::from_millis(50);

/// A client of the controller.
#[derive(Debug)]
pub(crate) struct Control {
    client: ControlClient<Channel>,
}

/// Nodes and sandboxes at about the same time.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) nodes: Vec<NodeRow>,
    pub(crate) sandboxes: Vec<SandboxRow>,
}

/// An operation that went well.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) report: SandboxReport,
    pub(crate) phases: Vec<Phase>,
    /// Empty unless it was asked for.
    pub(crate) memory_digest: Vec<u8>,
    /// From the call to its answer, as the caller sees it.
    pub(crate) wall_ms: f64,
}

impl Control {
    /// Connects to `host:port`.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .with_context(|| format!("{address} is not an address"))?
            .connect_timeout(CONNECT_MAX)
            .connect()
            .await
            .with_context(|| format!("connect to the controller at {address}"))?;
        let client = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { client })
    }

    /// Makes a function known. `toml` is a resolved function file.
    pub(crate) async fn apply(&mut self, toml: String) -> Result<()> {
        let request = within(LIST_MAX, wire::ApplyFunctionRequest { toml });
        self.client.apply_function(request).await.map_err(said).context("apply the function")?;
        Ok(())
    }

    /// Forgets a function and purges its sandboxes.
    pub(crate) async fn remove(&mut self, name: &str) -> Result<()> {
        let request = within(OPERATION_MAX, wire::RemoveFunctionRequest { name: name.to_owned() });
        self.client.remove_function(request).await.map_err(said).context("remove the function")?;
        Ok(())
    }

    /// Starts a sandbox on a node, from nothing or as the controller thinks best, and waits until it is ready.
    pub(crate) async fn start(
        &mut self,
        function: &str,
        node: &str,
        cold: bool,
    ) -> Result<(SandboxId, Done)> {
        let request =
            wire::StartSandboxRequest { function: function.to_owned(), node: node.to_owned(), cold };
        let started = Instant::now();
        let reply = self.client.start_sandbox(within(OPERATION_MAX, request)).await;
        let done = finish(reply, started).with_context(|| format!("start a sandbox on {node}"))?;
        Ok((SandboxId::from_wire(done.report.sandbox, "sandbox")?, done))
    }

    /// Waits until the function's init snapshot is there; the node that holds it, and its bytes.
    pub(crate) async fn wait_for_init(&mut self, function: &str) -> Result<(String, u64)> {
        let asked = Instant::now();
        loop {
            for row in self.view().await?.nodes {
                let of_it =
                    |snapshot: &&SnapshotReport| snapshot.function == function && snapshot.init.is_some();
                if let Some(snapshot) = row.snapshots.iter().find(of_it) {
                    return Ok((row.node, snapshot.bytes));
                }
            }
            if asked.elapsed() > INIT_MAX {
                bail!("{function} has no init snapshot after {} s", INIT_MAX.as_secs());
            }
            sleep(POLL).await;
        }
    }

    /// Turns a warm sandbox into a dedup image.
    pub(crate) async fn dedup(&mut self, sandbox: SandboxId, digest_memory: bool) -> Result<Done> {
        let request = SandboxRequest { sandbox: sandbox.get(), digest_memory };
        let started = Instant::now();
        let reply = self.client.dedup_sandbox(within(OPERATION_MAX, request)).await;
        finish(reply, started).with_context(|| format!("dedup {sandbox}"))
    }

    /// Turns a dedup image into a warm sandbox.
    pub(crate) async fn restore(&mut self, sandbox: SandboxId, digest_memory: bool) -> Result<Done> {
        let request = SandboxRequest { sandbox: sandbox.get(), digest_memory };
        let started = Instant::now();
        let reply = self.client.restore_sandbox(within(OPERATION_MAX, request)).await;
        finish(reply, started).with_context(|| format!("restore {sandbox}"))
    }

    /// Makes a base snapshot of a warm sandbox, whatever it has served.
    pub(crate) async fn make_base(&mut self, sandbox: SandboxId) -> Result<Done> {
        let request = SandboxRequest { sandbox: sandbox.get(), digest_memory: false };
        let started = Instant::now();
        let reply = self.client.make_base(within(OPERATION_MAX, request)).await;
        finish(reply, started).with_context(|| format!("make a base of {sandbox}"))
    }

    /// Ends a sandbox and lets all go that is kept of it.
    pub(crate) async fn purge(&mut self, sandbox: SandboxId) -> Result<()> {
        let request = SandboxRequest { sandbox: sandbox.get(), digest_memory: false };
        let reply = self.client.purge_sandbox(within(OPERATION_MAX, request)).await.map_err(said);
        reply.and_then(|reply| success(reply.into_inner())).with_context(|| format!("purge {sandbox}"))?;
        Ok(())
    }

    /// Nodes and sandboxes as the controller has them now.
    pub(crate) async fn view(&mut self) -> Result<View> {
        let nodes = self.client.list_nodes(within(LIST_MAX, wire::ListNodesRequest {})).await;
        let nodes = nodes.map_err(said).context("list nodes")?.into_inner().nodes;
        let sandboxes = self.client.list_sandboxes(within(LIST_MAX, wire::ListSandboxesRequest {})).await;
        let sandboxes = sandboxes.map_err(said).context("list sandboxes")?.into_inner().sandboxes;
        Ok(View { nodes, sandboxes })
    }

    /// Nodes and sandboxes as heartbeats tell that left after this call. Memory is reported with heartbeats only,
    /// so a figure right after an operation may be one from before it.
    pub(crate) async fn fresh_view(&mut self) -> Result<View> {
        let asked = Instant::now();
        loop {
            sleep(POLL).await;
            let view = self.view().await?;
            let age = asked.elapsed().saturating_sub(SETTLE);
            if view.nodes.iter().all(|node| Duration::from_millis(node.silent_ms) < age) {
                return Ok(view);
            }
            if asked.elapsed() > FRESH_MAX {
                bail!("no heartbeat of every node within {} s", FRESH_MAX.as_secs());
            }
        }
    }

    /// Waits until `count` nodes have said hello.
    pub(crate) async fn wait_for_nodes(&mut self, count: usize) -> Result<Vec<NodeRow>> {
        let asked = Instant::now();
        loop {
            let nodes = self.view().await?.nodes;
            if nodes.len() >= count {
                return Ok(nodes);
            }
            if asked.elapsed() > FRESH_MAX {
                bail!("{} of {count} nodes came within {} s", nodes.len(), FRESH_MAX.as_secs());
            }
            sleep(POLL).await;
        }
    }
}

/// A call with a deadline, which the controller is told too.
fn within<T>(limit: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

/// A refusal in words; the status itself prints its metadata too, which helps nobody.
#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn said(status: tonic::Status) -> anyhow::Error {
    anyhow!("the controller says {:?}: {}", status.code(), status.message())
}

fn finish(reply: Result<tonic::Response<OperationReply>, tonic::Status>, started: Instant) -> Result<Done> {
    let wall_ms = started.elapsed().as_secs_f64() * 1e3;
    let success = success(reply.map_err(said)?.into_inner())?;
    Ok(Done {
        report: success.sandbox.context("the answer has no sandbox")?,
        phases: success.phases.into_iter().map(phase).collect(),
        memory_digest: success.memory_digest.to_vec(),
        wall_ms,
    })
}

fn phase(phase: wire::Phase) -> Phase {
    Phase { name: phase.name, ms: Duration::from_micros(phase.micros).as_secs_f64() * 1e3 }
}

fn success(reply: OperationReply) -> Result<OperationSuccess> {
    match reply.result.context("the answer is empty")? {
        operation_reply::Result::Success(success) => Ok(success),
        operation_reply::Result::Failure(failure) => {
            let kind = FailureKind::try_from(failure.kind).map_or("unknown", |kind| kind.as_str_name());
            let log: String = failure.log_tail.iter().map(|line| format!("\n    {line}")).collect();
            bail!("{kind}: {}{log}", failure.message)
        }
    }
}
