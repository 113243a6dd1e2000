//! A controller in memory, on a real loopback socket: answers the verbs with made-up rows, and remembers
//! what it was asked.
#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on")]

use std::{
    net::SocketAddr,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
};

use medes_proto::{
    failure::FailureKind,
    heat::PageClass,
    ids::SandboxId,
    sandbox::{SandboxState, StartKind},
    trace::{
        About, Alternative, Cause, Choice, Event, EventId, Explanation, Filter, Item, StateChange, Trouble,
        What,
    },
    wire::{
        self, control_server::Control, control_server::ControlServer, invoke_function_reply, operation_reply,
    },
};
use tokio::sync::oneshot;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// A function file whose owner hides something in it, twice.
const FUNCTION: &str =
    "name = 'NAME'\ncommand = ['serve', '--key=PLANTED-ARGUMENT']\n[env]\nAPI = 'PLANTED-VALUE'\n";

type Reply<T> = Result<Response<T>, Status>;

/// What the fake was asked, one line per call.
#[derive(Debug, Default, Clone)]
pub(crate) struct Asked(Arc<Mutex<Vec<String>>>);

impl Asked {
    fn note(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// A fake that runs until it is dropped.
pub(crate) struct FakeController {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Asked,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl FakeController {
    pub(crate) fn start() -> Self {
        let asked = Asked::default();
        let service =
            ControlServer::new(Fake { asked: asked.clone(), held: 2.into(), drained: false.into() });
        let (stop, stopped) = oneshot::channel();
        let (listening, address) = std::sync::mpsc::sync_channel(1);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
                listening.send(incoming.local_addr().unwrap()).unwrap();
                let stopped = async { drop(stopped.await) };
                Server::builder()
                    .add_service(service)
                    .serve_with_incoming_shutdown(incoming, stopped)
                    .await
                    .unwrap();
            });
        });
        Self { address: address.recv().unwrap(), asked, stop: Some(stop), thread: Some(thread) }
    }

    /// `medes ARGS`, told where this fake is.
    pub(crate) fn medes(&self, args: &[&str]) -> Output {
        medes(args).env("MEDES_CONTROLLER", self.address.to_string()).output().unwrap()
    }
}

impl Drop for FakeController {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The real program, with no word from the machine it runs on.
pub(crate) fn medes(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medes"));
    command.args(args).env_remove("MEDES_CONTROLLER").env("MEDES_RUNTIME_DIR", nowhere());
    command
}

/// A runtime folder in which nothing was ever announced.
fn nowhere() -> &'static Path {
    Path::new(concat!(env!("CARGO_TARGET_TMPDIR"), "/nowhere"))
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one JSON value on standard output.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {:?}, stderr {:?}", stdout(output), stderr(output));
    })
}

struct Fake {
    asked: Asked,
    /// Sandboxes of node-0.
    held: AtomicU32,
    drained: AtomicBool,
}

fn id(counter: u64) -> u64 {
    1 << 32 | counter
}

fn phase(name: &str, micros: u64) -> wire::Phase {
    wire::Phase { name: name.into(), micros }
}

fn sandbox(counter: u64, function: &str, state: SandboxState) -> wire::SandboxReport {
    wire::SandboxReport {
        sandbox: id(counter),
        function: function.into(),
        function_revision: 3,
        state: state.into(),
        state_age_ms: 12_400,
        age_ms: 192_000,
        private_bytes: 43_201_331,
        requests: 7,
        heat: Some(wire::WriteHeat {
            windows: 8,
            hot_pages: 40,
            warm_pages: 20,
            written_pages: 50,
            touched_pages: 200,
        }),
        activity: Some(wire::Activity {
            cpu_ms: 1_250,
            quiet_ms: 12_000,
            wakes: Some(310),
            timer_wakes: Some(302),
        }),
        ..Default::default()
    }
}

fn deduplicated(counter: u64) -> wire::SandboxReport {
    wire::SandboxReport {
        private_bytes: 0,
        stored_bytes: 1 << 20,
        bases: vec![9],
        pages: Some(wire::PageClasses {
            zero: 60,
            same: 9_000,
            delta: 1_000,
            whole: 180,
            ..Default::default()
        }),
        last_phases: vec![phase("dump", 31_500), phase("dedup", 88_000)],
        activity: None,
        ..sandbox(counter, "html", SandboxState::Dedup)
    }
}

fn failure(kind: FailureKind, message: &str, log_tail: &[&str]) -> wire::Failure {
    let log_tail = log_tail.iter().map(|line| (*line).into()).collect();
    wire::Failure { kind: kind.into(), message: message.into(), log_tail }
}

fn operation(result: operation_reply::Result) -> Reply<wire::OperationReply> {
    Ok(Response::new(wire::OperationReply { result: Some(result) }))
}

fn success(sandbox: wire::SandboxReport, digest: bool) -> operation_reply::Result {
    operation_reply::Result::Success(wire::OperationSuccess {
        phases: sandbox.last_phases.clone(),
        sandbox: Some(sandbox),
        snapshot: None,
        memory_digest: if digest { vec![0xab; 32].into() } else { Vec::new().into() },
    })
}

#[tonic::async_trait]
impl Control for Fake {
    async fn apply_function(
        &self,
        request: Request<wire::ApplyFunctionRequest>,
    ) -> Reply<wire::ApplyFunctionReply> {
        let spec = medes_proto::function::FunctionSpec::from_toml(&request.into_inner().toml)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.asked.note(format!("apply {} dir {}", spec.name, spec.dir.display()));
        if spec.name.as_str() == "refused" {
            return Err(Status::resource_exhausted("too many functions"));
        }
        let changed = spec.name.as_str() != "same";
        Ok(Response::new(wire::ApplyFunctionReply { name: spec.name.into(), revision: 4, changed }))
    }

    async fn list_functions(
        &self,
        _request: Request<wire::ListFunctionsRequest>,
    ) -> Reply<wire::ListFunctionsReply> {
        let row = |name: &str, warm| wire::FunctionRow {
            name: name.into(),
            revision: 3,
            tenant: "default".into(),
            toml: FUNCTION.replace("NAME", name),
            warm,
            requests: 1234,
            ..Default::default()
        };
        Ok(Response::new(wire::ListFunctionsReply { functions: vec![row("html", 2), row("auth", 1)] }))
    }

    async fn remove_function(
        &self,
        request: Request<wire::RemoveFunctionRequest>,
    ) -> Reply<wire::RemoveFunctionReply> {
        match request.into_inner().name.as_str() {
            "html" => Ok(Response::new(wire::RemoveFunctionReply { sandboxes_purged: 3 })),
            name => Err(Status::not_found(format!("no function {name}"))),
        }
    }

    async fn invoke_function(
        &self,
        request: Request<wire::InvokeFunctionRequest>,
    ) -> Reply<wire::InvokeFunctionReply> {
        use invoke_function_reply::Result as Outcome;
        let wire::InvokeFunctionRequest { function, method, path, headers, body, deadline_ms } =
            request.into_inner();
        let headers: Vec<_> =
            headers.iter().map(|h| format!("{}={}", h.name, String::from_utf8_lossy(&h.value))).collect();
        self.asked.note(format!("{method} {path} {headers:?} {} bytes {deadline_ms} ms", body.len()));
        let result = if function == "broken" || body == "fail 1" {
            let log = ["Traceback", "\u{1b}[31mKeyError: 'x'"];
            Outcome::Failure(failure(FailureKind::Crashed, "broken ended during the request", &log))
        } else {
            let status = if function == "angry" { 503 } else { 200 };
            let answer = if function == "binary" { vec![0xff, 0xfe, 0xfd].into() } else { body };
            Outcome::Answer(wire::InvokeFunctionAnswer {
                http: Some(wire::HttpAnswer { status, headers: Vec::new(), body: answer, micros: 6_100 }),
                start: StartKind::Restore.into(),
                sandbox: id(2),
                node: "node-0".into(),
                phases: vec![phase("queue", 100), phase("restore", 34_200), phase("function", 6_100)],
            })
        };
        Ok(Response::new(wire::InvokeFunctionReply { result: Some(result) }))
    }

    async fn list_sandboxes(
        &self,
        _request: Request<wire::ListSandboxesRequest>,
    ) -> Reply<wire::ListSandboxesReply> {
        let mut video = sandbox(3, "video", SandboxState::Warm);
        video.undumpable = "an established TCP connection on port 8080 cannot be dumped".into();
        let row = |report, node: &str| wire::SandboxRow { report: Some(report), node: node.into() };
        let sandboxes = vec![
            row(video, "node-1"),
            row(deduplicated(2), "node-0"),
            row(sandbox(1, "html", SandboxState::Running), "node-1"),
        ];
        Ok(Response::new(wire::ListSandboxesReply { sandboxes }))
    }

    async fn list_nodes(&self, _request: Request<wire::ListNodesRequest>) -> Reply<wire::ListNodesReply> {
        self.asked.note("list nodes".into());
        if self.drained.load(Ordering::SeqCst) {
            // One of its sandboxes ends between any two looks.
            let _none_left =
                self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| held.checked_sub(1));
        }
        let row = |number: u32| wire::NodeRow {
            node: format!("node-{number}"),
            address: "127.0.0.1:40001".into(),
            version: "0.1.0".into(),
            memory: Some(wire::NodeMemory { cap_bytes: 4 << 30, used_bytes: 3 << 29, ..Default::default() }),
            silent_ms: 400,
            sandboxes: if number == 0 { self.held.load(Ordering::SeqCst) } else { 2 },
            requests: 0,
            resting: 1,
            snapshots: vec![wire::SnapshotReport {
                snapshot: 9,
                function: "html".into(),
                pages: 256,
                bytes: 1 << 20,
                init: None,
            }],
            lacks: vec!["eBPF: no BTF".into()],
            standing: if number == 1 { wire::Standing::Cordoned } else { wire::Standing::Open }.into(),
            connected: true,
            incarnation: 7,
        };
        let nodes = vec![row(1), row(0)];
        Ok(Response::new(wire::ListNodesReply { nodes, registry_entries: 1280, registry_bytes: 30_720 }))
    }

    async fn accounting(&self, _request: Request<wire::AccountingRequest>) -> Reply<wire::AccountingReply> {
        let rows = ["html", "auth"].map(|function| wire::AccountRow {
            tenant: "acme".into(),
            function: function.into(),
            warm: 1,
            dedup: 1,
            process_bytes: 40 << 20,
            stored_bytes: 1 << 20,
            shared_bytes: 5 << 20,
            ..Default::default()
        });
        let node = wire::NodeSum {
            node: "node-0".into(),
            counted_bytes: 100 << 20,
            held_bytes: 92 << 20,
            agent_bytes: 7 << 20,
            nobody_bytes: 1 << 20,
            failure: String::new(),
        };
        Ok(Response::new(wire::AccountingReply { rows: rows.into(), nodes: vec![node] }))
    }

    async fn set_standing(
        &self,
        request: Request<wire::SetStandingRequest>,
    ) -> Reply<wire::SetStandingReply> {
        let wire::SetStandingRequest { node, standing } = request.into_inner();
        self.asked.note(format!("{node} {standing}"));
        if node == "node-9" {
            return Err(Status::not_found("there is no node node-9"));
        }
        let leaves = [wire::Standing::Draining, wire::Standing::Resting].map(i32::from);
        self.drained.store(leaves.contains(&standing), Ordering::SeqCst);
        Ok(Response::new(wire::SetStandingReply { changed: node == "node-0" }))
    }

    async fn get_policy(&self, _request: Request<wire::GetPolicyRequest>) -> Reply<wire::PolicyReply> {
        Ok(Response::new(wire::PolicyReply { toml: "name = \"fixed\"\n".into(), changed: false }))
    }

    async fn set_policy(&self, request: Request<wire::SetPolicyRequest>) -> Reply<wire::PolicyReply> {
        let wire::SetPolicyRequest { changes, dry_run } = request.into_inner();
        self.asked.note(format!("policy {} {dry_run}", changes.join(" ")));
        if changes.iter().any(|change| change.starts_with("magic")) {
            return Err(Status::invalid_argument("configuration: unknown field `magic`"));
        }
        Ok(Response::new(wire::PolicyReply { toml: "name = \"hybrid\"\n".into(), changed: true }))
    }

    async fn start_sandbox(
        &self,
        request: Request<wire::StartSandboxRequest>,
    ) -> Reply<wire::OperationReply> {
        let wire::StartSandboxRequest { function, node, .. } = request.into_inner();
        self.asked.note(format!("start {function} on {node:?}"));
        operation(success(sandbox(4, &function, SandboxState::Warm), false))
    }

    async fn make_base(&self, _request: Request<wire::SandboxRequest>) -> Reply<wire::OperationReply> {
        let snapshot = wire::SnapshotReport {
            snapshot: 0x1f,
            function: "html".into(),
            pages: 512,
            bytes: 2 << 20,
            init: None,
        };
        operation(operation_reply::Result::Success(wire::OperationSuccess {
            sandbox: Some(sandbox(1, "html", SandboxState::Warm)),
            snapshot: Some(snapshot),
            ..Default::default()
        }))
    }

    async fn dedup_sandbox(&self, request: Request<wire::SandboxRequest>) -> Reply<wire::OperationReply> {
        let wire::SandboxRequest { sandbox, digest_memory } = request.into_inner();
        if sandbox == id(3) {
            let why = "sb-1-3 has an established TCP connection";
            return operation(operation_reply::Result::Failure(failure(FailureKind::DumpRefused, why, &[])));
        }
        operation(success(deduplicated(2), digest_memory))
    }

    async fn restore_sandbox(&self, request: Request<wire::SandboxRequest>) -> Reply<wire::OperationReply> {
        let digest = request.into_inner().digest_memory;
        operation(success(sandbox(2, "html", SandboxState::Warm), digest))
    }

    async fn move_sandbox(&self, request: Request<wire::MoveSandboxRequest>) -> Reply<wire::OperationReply> {
        let wire::MoveSandboxRequest { sandbox, node } = request.into_inner();
        self.asked.note(format!("move {sandbox:x} to {node}"));
        operation(operation_reply::Result::Success(wire::OperationSuccess::default()))
    }

    async fn purge_sandbox(&self, request: Request<wire::SandboxRequest>) -> Reply<wire::OperationReply> {
        self.asked.note(format!("purge {:x}", request.into_inner().sandbox));
        operation(operation_reply::Result::Success(wire::OperationSuccess::default()))
    }

    async fn sandbox_logs(&self, _request: Request<wire::SandboxRequest>) -> Reply<wire::LogsReply> {
        let lines = vec!["started".into(), "\u{1b}]0;title\u{7}answered".into()];
        Ok(Response::new(wire::LogsReply { lines, dropped: 5 }))
    }

    type TraceStream = futures::stream::BoxStream<'static, Result<wire::TraceItem, Status>>;

    /// Three events and a gap, then the stream ends.
    async fn trace(&self, request: Request<wire::TraceFilter>) -> Reply<Self::TraceStream> {
        let filter = Filter::try_from(request.into_inner())?;
        self.asked.note(format!("trace {filter:?}"));
        let wanted = events().into_iter().filter(|event| filter.wants(&event.about, event.what.kind()));
        let mut items = vec![Item::Begin];
        items.extend(wanted.map(|event| Item::Event(Box::new(event))));
        items.push(Item::Dropped(7));
        Ok(Response::new(Box::pin(futures::stream::iter(items.into_iter().map(|item| Ok(item.into()))))))
    }

    async fn explain(&self, request: Request<wire::ExplainRequest>) -> Reply<wire::ExplainReply> {
        let sandbox_id = request.into_inner().sandbox;
        if sandbox_id == id(1) {
            let now = sandbox(1, "html", SandboxState::Warm).try_into().unwrap();
            let now = Some((now, "node-1".parse().unwrap()));
            let nothing = Explanation {
                now,
                change: None,
                decision: None,
                review: None,
                history: Vec::new(),
                forgotten: 0,
            };
            return Ok(Response::new(nothing.into()));
        }
        if sandbox_id != id(2) {
            return Err(Status::not_found("nothing is known about it"));
        }
        let events = events();
        let explanation = Explanation {
            now: Some((deduplicated(2).try_into().unwrap(), "node-0".parse().unwrap())),
            change: Some(events[1].clone()),
            decision: Some(events[0].clone()),
            review: Some(events[0].clone()),
            history: events,
            forgotten: 4,
        };
        Ok(Response::new(explanation.into()))
    }

    async fn heat(&self, request: Request<wire::HeatRequest>) -> Reply<wire::HeatReply> {
        let sandbox = request.into_inner().sandbox;
        if sandbox == id(2) {
            return Err(Status::failed_precondition("sb-1-2 has no memory of its own right now"));
        }
        let range = |first, pages, class: PageClass| wire::HeatRange { first, pages, class: class.into() };
        let ranges = vec![range(0, 6, PageClass::Private), range(8, 2, PageClass::File)];
        let mapping = wire::HeatMapping { pid: 7, start: 0x7000, pages: 16, name: "[heap]".into(), ranges };
        let (source, mappings) = ("procfs".into(), vec![mapping]);
        Ok(Response::new(wire::HeatReply { sandbox, source, mappings, truncated: false }))
    }
}

/// A review, a change of state because of it, and something else that failed.
fn events() -> Vec<Event> {
    let mut choice = Choice::of(Alternative::new("dedup", "idle and quiet, and its function has a base"));
    choice.reject(Alternative::new("keep", "idle for the idle period"));
    choice.fact("idle_ms", 61_000);
    let event = |number: u64, sandbox, what| {
        let about = About {
            node: Some("node-0".parse().unwrap()),
            sandbox: SandboxId::new(id(sandbox)),
            function: Some("html".parse().unwrap()),
        };
        Event { id: EventId::new(id(number)).unwrap(), unix_micros: 57_801_000_000 + number, about, what }
    };
    let change = StateChange {
        from: Some(SandboxState::Warm),
        to: Some(SandboxState::Deduping),
        cause: Cause::Decided,
        decision: EventId::new(id(41)),
    };
    let trouble = Trouble {
        doing: "dedup".into(),
        kind: FailureKind::DumpRefused,
        message: "an established TCP connection".into(),
        pause: None,
    };
    vec![
        event(41, 2, What::Review(choice)),
        event(42, 2, What::State(change)),
        event(43, 3, What::Error(trouble)),
    ]
}
