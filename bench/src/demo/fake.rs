//! A controller and its gateway in memory, with one thing wrong with them if a test wants that.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use medes_proto::{
    ids::SandboxId,
    wire::{
        self, FailureKind, NodeMemory, NodeRow, OperationReply, OperationSuccess, SandboxReport,
        SandboxRequest, SandboxRow, control_server, operation_reply,
    },
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    None,
    /// The function answers something else after a restore.
    Answers,
    /// The function lost its state in a restore.
    State,
    /// Memory hashes to something else after a restore.
    Memory,
    /// Requests go to whichever sandbox, not the one asked for.
    Routing,
    /// The sandbox cannot be dumped.
    Refused,
}

const PRIVATE_BYTES: u64 = 30 << 20;
const STORED_BYTES: u64 = 2 << 20;

#[derive(Debug, Default)]
struct Sandbox {
    node: String,
    served: u64,
    dedup: bool,
    restored: bool,
}

/// The whole cluster.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    trouble: Trouble,
    sandboxes: Arc<Mutex<BTreeMap<u64, Sandbox>>>,
}

impl Fake {
    pub(super) fn new(trouble: Trouble) -> Self {
        Self { trouble, sandboxes: Arc::default() }
    }

    /// Serves the controller for ever.
    pub(super) async fn control(&self, incoming: TcpIncoming) {
        let service = control_server::ControlServer::new(self.clone());
        Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
    }

    /// Serves the gateway for ever.
    pub(super) async fn gateway(&self, listener: TcpListener) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            self.answer(stream).await;
        }
    }

    async fn answer(&self, mut stream: TcpStream) {
        let mut asked = Vec::new();
        while !asked.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
        }
        let asked = String::from_utf8(asked).unwrap();
        let (head, body) = asked.split_once("\r\n\r\n").unwrap();
        let wanted = head.lines().find_map(|line| line.strip_prefix("x-medes-prefer-sandbox: ")).unwrap();
        let mut id = wanted.parse::<SandboxId>().unwrap().get();
        let n = serde_json::from_str::<Value>(body).unwrap()["n"].as_u64().unwrap();
        let (start, answer) = {
            let mut sandboxes = self.sandboxes.lock().unwrap();
            if self.trouble == Trouble::Routing {
                id = *sandboxes.keys().next().unwrap();
            }
            let sandbox = sandboxes.get_mut(&id).unwrap();
            let start = if sandbox.dedup { "restore" } else { "warm" };
            sandbox.wake(self.trouble);
            sandbox.served += 1;
            let wrong = u64::from(self.trouble == Trouble::Answers && sandbox.restored);
            (
                start,
                json!({"seed": id, "served": sandbox.served, "n": n, "result": n * id + wrong}).to_string(),
            )
        };
        let id = SandboxId::new(id).unwrap();
        let text = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nx-medes-start: {start}\r\nx-medes-sandbox: {id}\r\n\
             x-medes-node: a\r\nx-medes-phases: queue=0.1,{start}=3.5,function=1.0\r\n\r\n{answer}",
            answer.len()
        );
        stream.write_all(text.as_bytes()).await.unwrap();
    }

    fn report(&self, id: u64) -> SandboxReport {
        let sandboxes = self.sandboxes.lock().unwrap();
        let [private_bytes, stored_bytes] =
            if sandboxes[&id].dedup { [0, STORED_BYTES] } else { [PRIVATE_BYTES, 0] };
        SandboxReport { sandbox: id, private_bytes, stored_bytes, ..Default::default() }
    }

    fn success(&self, id: u64, memory_digest: Vec<u8>) -> Response<OperationReply> {
        let success = OperationSuccess {
            sandbox: Some(self.report(id)),
            memory_digest: memory_digest.into(),
            ..Default::default()
        };
        Response::new(OperationReply { result: Some(operation_reply::Result::Success(success)) })
    }
}

impl Sandbox {
    fn wake(&mut self, trouble: Trouble) {
        if self.dedup {
            self.dedup = false;
            self.restored = true;
            if trouble == Trouble::State {
                self.served = 0;
            }
        }
    }
}

type Reply<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl control_server::Control for Fake {
    async fn start_sandbox(&self, request: Request<wire::StartSandboxRequest>) -> Reply<OperationReply> {
        let id = {
            let mut sandboxes = self.sandboxes.lock().unwrap();
            let id = sandboxes.len() as u64 + 1;
            sandboxes.insert(id, Sandbox { node: request.into_inner().node, ..Default::default() });
            id
        };
        Ok(self.success(id, Vec::new()))
    }

    async fn make_base(&self, _: Request<SandboxRequest>) -> Reply<OperationReply> {
        Err(Status::unimplemented("the demo makes no base by hand"))
    }

    async fn dedup_sandbox(&self, request: Request<SandboxRequest>) -> Reply<OperationReply> {
        if self.trouble == Trouble::Refused {
            let failure = wire::Failure {
                kind: FailureKind::DumpRefused.into(),
                message: "it has an open connection".into(),
                log_tail: Vec::new(),
            };
            return Ok(Response::new(OperationReply {
                result: Some(operation_reply::Result::Failure(failure)),
            }));
        }
        let SandboxRequest { sandbox, digest_memory } = request.into_inner();
        self.sandboxes.lock().unwrap().get_mut(&sandbox).unwrap().dedup = true;
        Ok(self.success(sandbox, vec![1; if digest_memory { 32 } else { 0 }]))
    }

    async fn restore_sandbox(&self, request: Request<SandboxRequest>) -> Reply<OperationReply> {
        let id = request.into_inner().sandbox;
        self.sandboxes.lock().unwrap().get_mut(&id).unwrap().wake(self.trouble);
        let byte = if self.trouble == Trouble::Memory { 2 } else { 1 };
        Ok(self.success(id, vec![byte; 32]))
    }

    async fn list_nodes(&self, _: Request<wire::ListNodesRequest>) -> Reply<wire::ListNodesReply> {
        let sandboxes = self.sandboxes.lock().unwrap();
        let row = |node: &str| {
            let here = sandboxes.values().filter(|sandbox| sandbox.node == node);
            let used_bytes = here.map(|s| if s.dedup { STORED_BYTES } else { PRIVATE_BYTES }).sum();
            let memory = Some(NodeMemory { used_bytes, ..Default::default() });
            let (function, init) = ("html".to_owned(), Some(wire::InitState { revision: 1, clonable: true }));
            let snapshots = vec![wire::SnapshotReport { function, init, ..Default::default() }];
            NodeRow { node: node.to_owned(), memory, snapshots, ..Default::default() }
        };
        Ok(Response::new(wire::ListNodesReply { nodes: vec![row("b"), row("a")], ..Default::default() }))
    }

    async fn list_sandboxes(
        &self,
        _: Request<wire::ListSandboxesRequest>,
    ) -> Reply<wire::ListSandboxesReply> {
        let ids: Vec<_> = self.sandboxes.lock().unwrap().keys().copied().collect();
        let row = |id| SandboxRow { report: Some(self.report(id)), node: String::new() };
        Ok(Response::new(wire::ListSandboxesReply { sandboxes: ids.into_iter().map(row).collect() }))
    }

    async fn apply_function(
        &self,
        _: Request<wire::ApplyFunctionRequest>,
    ) -> Reply<wire::ApplyFunctionReply> {
        Ok(Response::new(wire::ApplyFunctionReply::default()))
    }

    async fn remove_function(
        &self,
        _: Request<wire::RemoveFunctionRequest>,
    ) -> Reply<wire::RemoveFunctionReply> {
        let mut sandboxes = self.sandboxes.lock().unwrap();
        let sandboxes_purged = u32::try_from(sandboxes.len()).unwrap();
        sandboxes.clear();
        Ok(Response::new(wire::RemoveFunctionReply { sandboxes_purged }))
    }

    async fn set_standing(&self, _: Request<wire::SetStandingRequest>) -> Reply<wire::SetStandingReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn get_policy(&self, _: Request<wire::GetPolicyRequest>) -> Reply<wire::PolicyReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn set_policy(&self, _: Request<wire::SetPolicyRequest>) -> Reply<wire::PolicyReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn list_functions(
        &self,
        _: Request<wire::ListFunctionsRequest>,
    ) -> Reply<wire::ListFunctionsReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn invoke_function(
        &self,
        _: Request<wire::InvokeFunctionRequest>,
    ) -> Reply<wire::InvokeFunctionReply> {
        Err(Status::unimplemented("the demo uses the gateway"))
    }

    async fn move_sandbox(&self, _: Request<wire::MoveSandboxRequest>) -> Reply<OperationReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn purge_sandbox(&self, _: Request<SandboxRequest>) -> Reply<OperationReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    type TraceStream = futures::stream::Empty<Result<wire::TraceItem, Status>>;

    async fn trace(&self, _: Request<wire::TraceFilter>) -> Reply<Self::TraceStream> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn explain(&self, _: Request<wire::ExplainRequest>) -> Reply<wire::ExplainReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn heat(&self, _: Request<wire::HeatRequest>) -> Reply<wire::HeatReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn accounting(&self, _: Request<wire::AccountingRequest>) -> Reply<wire::AccountingReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }

    async fn sandbox_logs(&self, _: Request<SandboxRequest>) -> Reply<wire::LogsReply> {
        Err(Status::unimplemented("the demo does not ask this"))
    }
}
