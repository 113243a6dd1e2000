//! A fake agent that speaks the real protocol over loopback, a controller to speak with, and an HTTP caller.
//!
//! The fake serves paths: `/echo` answers what came, `/crash` ends its sandbox, `/hang` never answers.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use medes_controller::{
    config::Config,
    server::{Controller, Place},
};
use medes_dedup::key::DomainKey;
use medes_identity::security::Security;
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{
        AgentMessage, Command, ControllerMessage, HeldKey, Hello, Inventory, NodeMemory, SnapshotReport,
        Success, TenantKey, Welcome,
    },
    heat::PageClass,
    ids::{FunctionName, SandboxId, SnapshotId, TenantName},
    node::{Answer, Invoke, reply_to_wire},
    sandbox::{SandboxReport, SandboxState},
    wire::{
        self,
        control_client::ControlClient,
        fleet_client::FleetClient,
        node_server::{Node, NodeServer},
        registry_client::RegistryClient,
        tenants_client::TenantsClient,
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, transport::Channel};

/// Nothing here takes this long, on any machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Waits until `look` finds something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let found = tokio::time::timeout(LONG, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("not within {LONG:?}: {what}"))
}

pub(crate) struct Cluster {
    pub(crate) controller: Controller,
    pub(crate) control: ControlClient<Channel>,
}

impl Cluster {
    pub(crate) async fn start(folder: &Path, changes: &[&str]) -> Self {
        Self::start_on(folder, changes, "127.0.0.1:0".parse().unwrap()).await
    }

    pub(crate) async fn start_on(folder: &Path, changes: &[&str], control: SocketAddr) -> Self {
        Self::start_with(folder, changes, control, None).await
    }

    pub(crate) async fn start_with(
        folder: &Path,
        changes: &[&str],
        control: SocketAddr,
        spans: Option<String>,
    ) -> Self {
        let quick = [
            "fleet.heartbeat=50ms",
            "fleet.heartbeats_missed_max=20",
            "stop.grace=200ms",
            "sandboxes.init_snapshots=false",
        ];
        let changes: Vec<String> = quick.iter().chain(changes).map(|&text| text.into()).collect();
        let config = Config::read("", &changes).unwrap();
        let gateway = "127.0.0.1:0".parse().unwrap();
        let security = Security::Plaintext;
        let place = Place {
            state_dir: folder.into(),
            control,
            gateway,
            page: Some(gateway),
            spans,
            security,
            web: None,
        };
        let controller = Controller::start(place, config).await.unwrap();
        let channel = Channel::from_shared(format!("http://{}", controller.control)).unwrap();
        Self { control: ControlClient::new(channel.connect().await.unwrap()), controller }
    }

    pub(crate) async fn apply(&mut self, toml: &str) {
        self.control.apply_function(wire::ApplyFunctionRequest { toml: toml.into() }).await.unwrap();
    }

    pub(crate) async fn sandboxes(&self) -> Vec<SandboxReport> {
        let rows = self.control.clone().list_sandboxes(wire::ListSandboxesRequest {}).await.unwrap();
        rows.into_inner().sandboxes.into_iter().map(|row| row.report.unwrap().try_into().unwrap()).collect()
    }

    pub(crate) async fn nodes(&self) -> Vec<wire::NodeRow> {
        self.control.clone().list_nodes(wire::ListNodesRequest {}).await.unwrap().into_inner().nodes
    }

    pub(crate) async fn until_nodes(&self, count: usize) {
        let there = async || (self.nodes().await.len() == count).then_some(());
        until("nodes", there).await;
    }

    pub(crate) async fn tenants(&self) -> TenantsClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.controller.control)).unwrap();
        TenantsClient::new(channel.connect().await.unwrap())
    }

    pub(crate) async fn registry(&self) -> RegistryClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.controller.control)).unwrap();
        RegistryClient::new(channel.connect().await.unwrap())
    }

    pub(crate) async fn call(&self, path: &str) -> Answered {
        self.send(hyper::Request::post(path).body(Full::default()).unwrap()).await
    }

    pub(crate) async fn send(&self, request: hyper::Request<Full<Bytes>>) -> Answered {
        caller(self.controller.gateway, request).await
    }

    pub(crate) async fn start_sandbox(&mut self, function: &str) -> SandboxReport {
        let request =
            wire::StartSandboxRequest { function: function.into(), node: String::new(), cold: false };
        succeeded(self.control.start_sandbox(request).await).sandbox.unwrap().try_into().unwrap()
    }

    pub(crate) async fn dedup(&mut self, sandbox: SandboxId) -> wire::OperationSuccess {
        let request = wire::SandboxRequest { sandbox: sandbox.get(), digest_memory: true };
        succeeded(self.control.dedup_sandbox(request).await)
    }
}

pub(crate) fn succeeded(reply: Result<Response<wire::OperationReply>, Status>) -> wire::OperationSuccess {
    match reply.unwrap().into_inner().result.unwrap() {
        wire::operation_reply::Result::Success(success) => success,
        wire::operation_reply::Result::Failure(failure) => panic!("{failure:?}"),
    }
}

pub(crate) fn failed(reply: Result<Response<wire::OperationReply>, Status>) -> Failure {
    match reply.unwrap().into_inner().result.unwrap() {
        wire::operation_reply::Result::Success(success) => panic!("{success:?}"),
        wire::operation_reply::Result::Failure(failure) => failure.try_into().unwrap(),
    }
}

/// A gateway's answer, whole.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) headers: hyper::HeaderMap,
    pub(crate) body: Bytes,
}

impl Answered {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}")).to_str().unwrap()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn kind(&self) -> String {
        self.json()["kind"].as_str().unwrap().into()
    }
}

pub(crate) async fn caller(gateway: SocketAddr, mut request: hyper::Request<Full<Bytes>>) -> Answered {
    let stream = tokio::net::TcpStream::connect(gateway).await.unwrap();
    request.headers_mut().insert("host", gateway.to_string().parse().unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let exchange = async {
        let (parts, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answered { status: parts.status.as_u16(), headers: parts.headers, body }
    };
    let answered = tokio::time::timeout(LONG, async {
        tokio::pin!(exchange, connection);
        tokio::select! {
            answered = &mut exchange => answered,
            // The server may close the connection with its answer.
            _ = &mut connection => exchange.await,
        }
    });
    answered.await.expect("an answer")
}

/// What a fake agent does wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// Starts are never answered.
    pub(crate) starts_hang: AtomicBool,
    /// Restores fail with this kind; 0: they do not.
    pub(crate) restores_fail: AtomicU64,
    /// Requests seen by all sandboxes.
    pub(crate) requests: AtomicU64,
}

#[derive(Debug, Default)]
struct Held {
    sandboxes: BTreeMap<SandboxId, SandboxReport>,
    snapshots: BTreeMap<SnapshotId, SnapshotReport>,
    keys: BTreeMap<TenantName, DomainKey>,
    /// All that were ever told, in order.
    told: Vec<HeldKey>,
}

impl Held {
    fn learn(&mut self, keys: Vec<TenantKey>) {
        for TenantKey { tenant, key } in keys {
            self.told.push(HeldKey { tenant: tenant.clone(), id: key.id() });
            self.keys.insert(tenant, key);
        }
    }

    fn ids(&self) -> Vec<HeldKey> {
        let id = |(tenant, key): (&TenantName, &DomainKey)| HeldKey { tenant: tenant.clone(), id: key.id() };
        self.keys.iter().map(id).collect()
    }
}

#[derive(Debug)]
struct Inner {
    name: String,
    address: String,
    incarnation: u64,
    held: Mutex<Held>,
    faults: Faults,
    welcome: Mutex<Option<Welcome>>,
    /// Sandboxes that will be reported idle with the next heartbeat.
    idle: Mutex<Vec<(SandboxId, Duration)>>,
    stop: CancellationToken,
}

/// A fake agent, running until it is killed or dropped.
pub(crate) struct Agent {
    inner: Arc<Inner>,
    tracker: TaskTracker,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.inner.stop.cancel();
    }
}

impl Agent {
    pub(crate) async fn start(name: &str, control: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = Arc::new(Inner {
            name: name.into(),
            address: listener.local_addr().unwrap().to_string(),
            incarnation: u64::from(listener.local_addr().unwrap().port()),
            held: Mutex::default(),
            faults: Faults::default(),
            welcome: Mutex::default(),
            idle: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let tracker = TaskTracker::new();
        let service = NodeServer::from_arc(Arc::clone(&inner));
        let server = tonic::transport::Server::builder().add_service(service);
        let stop = inner.stop.clone();
        tracker.spawn(async move {
            // Dropped at once, connections and all, as if the process had died.
            tokio::select! {
                done = server.serve_with_incoming(TcpListenerStream::new(listener)) => done.unwrap(),
                () = stop.cancelled() => {}
            }
        });
        let (link, stop) = (Arc::clone(&inner), inner.stop.clone());
        tracker.spawn(async move {
            tokio::select! {
                () = keep_attached(link, control) => {}
                () = stop.cancelled() => {}
            }
        });
        Self { inner, tracker }
    }

    /// Dies without a word.
    pub(crate) async fn kill(self) {
        self.inner.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(LONG, self.tracker.wait()).await.unwrap();
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    pub(crate) fn sandboxes(&self) -> Vec<SandboxReport> {
        self.inner.held.lock().unwrap().sandboxes.values().cloned().collect()
    }

    /// Reports a sandbox idle with the next heartbeat.
    pub(crate) fn say_idle(&self, sandbox: SandboxId, idle: Duration) {
        self.inner.idle.lock().unwrap().push((sandbox, idle));
    }

    /// Which keys it knows.
    pub(crate) fn keys(&self) -> Vec<HeldKey> {
        self.inner.held.lock().unwrap().ids()
    }

    /// Whose keys it was ever told.
    pub(crate) fn told(&self) -> Vec<HeldKey> {
        self.inner.held.lock().unwrap().told.clone()
    }

    pub(crate) fn welcome(&self) -> Option<Welcome> {
        self.inner.welcome.lock().unwrap().clone()
    }
}

async fn keep_attached(agent: Arc<Inner>, control: SocketAddr) {
    loop {
        if let Err(status) = attach(&agent, control).await {
            eprintln!("fake agent {}: {status}", agent.name);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn attach(agent: &Arc<Inner>, control: SocketAddr) -> Result<(), Status> {
    let endpoint = Channel::from_shared(format!("http://{control}")).unwrap();
    let channel = endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let (sender, messages) = mpsc::channel(64);
    let hello = AgentMessage::Hello(Hello {
        node: agent.name.parse().unwrap(),
        incarnation: agent.incarnation,
        version: "fake".into(),
        address: agent.address.clone(),
        inventory: agent.inventory(),
        // What comes from a node is text, whatever it looks like.
        lacks: vec!["everything: it is a fake <img src=x onerror=\"window.pwned = 1\">".into()],
    });
    sender.send(hello.into()).await.unwrap();
    let mut commands = FleetClient::new(channel).attach(ReceiverStream::new(messages)).await?.into_inner();
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            message = commands.message() => {
                let Some(message) = message? else { return Ok(()) };
                match ControllerMessage::try_from(message).unwrap() {
                    ControllerMessage::Welcome(welcome) => {
                        let mut held = agent.held.lock().unwrap();
                        held.sandboxes.retain(|id, _| !welcome.purge.contains(id));
                        held.keys.clear();
                        held.learn(welcome.keys.clone());
                        *agent.welcome.lock().unwrap() = Some(welcome);
                    }
                    ControllerMessage::IdlePeriod(idle) => {
                        if let Some(welcome) = agent.welcome.lock().unwrap().as_mut() {
                            welcome.idle = idle;
                        }
                    }
                    ControllerMessage::TenantKeys(keys) => agent.held.lock().unwrap().learn(keys),
                    ControllerMessage::ForgetKeys(tenants) => {
                        agent.held.lock().unwrap().keys.retain(|tenant, _| !tenants.contains(tenant));
                    }
                    ControllerMessage::Command { id, command } => {
                        let Some(result) = agent.carry_out(command) else { continue };
                        let done = AgentMessage::Done { command: id, result: Box::new(result) };
                        drop(sender.send(done.into()).await);
                    }
                }
            }
            _ = beat.tick() => {
                let message = AgentMessage::Heartbeat(agent.inventory());
                drop(sender.send(message.into()).await);
                let idle = std::mem::take(&mut *agent.idle.lock().unwrap());
                for (sandbox, idle) in idle {
                    drop(sender.send(AgentMessage::Idle { sandbox, idle }.into()).await);
                }
            }
        }
    }
}

impl Inner {
    fn inventory(&self) -> Inventory {
        let held = self.held.lock().unwrap();
        Inventory {
            memory: NodeMemory { cap_bytes: 1 << 34, used_bytes: 1 << 20, ..NodeMemory::default() },
            sandboxes: held.sandboxes.values().cloned().collect(),
            snapshots: held.snapshots.values().cloned().collect(),
            keys: held.ids(),
        }
    }

    /// `None`: it is never answered.
    fn carry_out(&self, command: Command) -> Option<Result<Success, Failure>> {
        let mut held = self.held.lock().unwrap();
        let held = &mut *held;
        let gone = || Failure::new(FailureKind::NotFound, "not here");
        let state = |held: &mut Held, id, state| {
            let report = held.sandboxes.get_mut(&id).ok_or_else(gone)?;
            report.state = state;
            (report.private_bytes, report.stored_bytes) =
                if state == SandboxState::Dedup { (0, 1 << 20) } else { (32 << 20, 0) };
            Ok(Success { sandbox: Some(report.clone()), memory_digest: Some([9; 32]), ..Success::default() })
        };
        Some(match command {
            Command::Start { .. } if self.faults.starts_hang.load(Ordering::SeqCst) => return None,
            Command::Start { function, .. } if function.name.as_str() == "broken" => {
                let log = vec!["no module named nothing".to_owned()];
                Err(Failure::new(FailureKind::NeverReady, "port 8080 was never opened").with_log(log))
            }
            Command::Start { sandbox, function, revision, .. } => {
                let report = warm(sandbox, function.name, revision);
                held.sandboxes.insert(sandbox, report.clone());
                Ok(Success { sandbox: Some(report), ..Success::default() })
            }
            Command::MakeBase { sandbox, snapshot, .. } => {
                let Some(source) = held.sandboxes.get_mut(&sandbox) else { return Some(Err(gone())) };
                source.base_snapshot = Some(snapshot);
                let function = source.function.clone();
                let report = SnapshotReport { id: snapshot, function, pages: 8, bytes: 8 * 4096, init: None };
                held.snapshots.insert(snapshot, report.clone());
                let sandbox = Some(source.clone());
                Ok(Success { sandbox, snapshot: Some(report), ..Success::default() })
            }
            Command::Dedup { sandbox, .. } => state(held, sandbox, SandboxState::Dedup),
            Command::Park { sandbox, .. } => state(held, sandbox, SandboxState::Parked),
            // Parking takes no time here: there is never anything to call off.
            Command::CancelPark { .. } => Ok(Success::default()),
            Command::Restore { sandbox, .. } => match self.faults.restores_fail.load(Ordering::SeqCst) {
                0 => state(held, sandbox, SandboxState::Warm),
                _ => {
                    held.sandboxes.remove(&sandbox);
                    Err(Failure::new(FailureKind::Corrupt, "page 7 does not match its hash"))
                }
            },
            Command::Purge { sandbox } => {
                held.sandboxes.remove(&sandbox).map(|_| Success::default()).ok_or_else(gone)
            }
            Command::Offer { .. } | Command::Take { .. } => {
                Err(Failure::new(FailureKind::Unsupported, "a fake has no images"))
            }
            Command::Replicate { place } => {
                let function = "f".parse().expect("a name");
                let report =
                    SnapshotReport { id: place.snapshot, function, pages: 1, bytes: 4096, init: None };
                held.snapshots.insert(place.snapshot, report.clone());
                Ok(Success { snapshot: Some(report), ..Success::default() })
            }
            Command::DropSnapshot { snapshot } => {
                held.snapshots.remove(&snapshot).map(|_| Success::default()).ok_or_else(gone)
            }
        })
    }
}

fn warm(id: SandboxId, function: FunctionName, function_revision: u64) -> SandboxReport {
    let report = SandboxReport::new(id, function, function_revision, SandboxState::Warm);
    SandboxReport { private_bytes: 32 << 20, ..report }
}

#[tonic::async_trait]
impl Node for Inner {
    async fn page_access(
        &self,
        _request: Request<wire::PageAccessRequest>,
    ) -> Result<Response<wire::PageAccessReply>, Status> {
        Err(Status::unimplemented("a fake has no pages"))
    }

    async fn read_layout(
        &self,
        _request: Request<wire::ReadLayoutRequest>,
    ) -> Result<Response<wire::SnapshotLayout>, Status> {
        Err(Status::unimplemented("a fake has no pages"))
    }

    type ReadImageStream = futures::stream::Empty<Result<wire::ImagePart, Status>>;

    async fn read_image(
        &self,
        _request: Request<wire::ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        Err(Status::unimplemented("a fake has no images"))
    }

    async fn give_up(
        &self,
        _request: Request<wire::OfferedSandbox>,
    ) -> Result<Response<wire::GiveUpReply>, Status> {
        Err(Status::unimplemented("a fake has no images"))
    }

    async fn invoke(
        &self,
        request: Request<wire::InvokeRequest>,
    ) -> Result<Response<wire::InvokeReply>, Status> {
        let Invoke { sandbox, request, .. } = request.into_inner().try_into()?;
        let known = self.held.lock().unwrap().sandboxes.get(&sandbox).map(|report| report.state);
        let result = match known {
            None => Err(Failure::new(FailureKind::NotFound, "not here")),
            Some(SandboxState::Warm) => {
                self.faults.requests.fetch_add(1, Ordering::SeqCst);
                match request.path.as_str() {
                    "/hang" => std::future::pending().await,
                    "/crash" => {
                        self.held.lock().unwrap().sandboxes.remove(&sandbox);
                        let log = vec!["segmentation fault".to_owned()];
                        Err(Failure::new(FailureKind::Crashed, "signal 11").with_log(log))
                    }
                    _ => Ok(echo(request)),
                }
            }
            Some(state) => Err(Failure::new(FailureKind::Busy, state.word())),
        };
        Ok(Response::new(reply_to_wire(result)))
    }

    async fn forget_tenant(
        &self,
        request: Request<wire::ForgetTenantRequest>,
    ) -> Result<Response<wire::ForgetTenantReply>, Status> {
        let wire::ForgetTenantRequest { tenant, key_id } = request.into_inner();
        let mut held = self.held.lock().unwrap();
        held.keys.retain(|name, key| name.as_str() != tenant || key.id().0 != key_id);
        Ok(Response::new(wire::ForgetTenantReply { sandboxes: 0, snapshots: 0 }))
    }

    async fn heat(&self, request: Request<wire::HeatRequest>) -> Result<Response<wire::HeatReply>, Status> {
        let sandbox = request.into_inner().sandbox;
        let range = |first, pages, class: PageClass| wire::HeatRange { first, pages, class: class.into() };
        let mapping = |start, name: &str, ranges| wire::HeatMapping {
            pid: 7,
            start,
            pages: 100,
            name: name.into(),
            ranges,
        };
        let heap =
            vec![range(0, 40, PageClass::Cold), range(40, 5, PageClass::Hot), range(60, 40, PageClass::Read)];
        let library = vec![range(3, 90, PageClass::File), range(93, 3, PageClass::Private)];
        let mappings = vec![
            mapping(0x1000, "[heap]", heap),
            mapping(0x9_0000, "/lib/<script>window.pwned = 1</script>.so", library),
        ];
        Ok(Response::new(wire::HeatReply { sandbox, source: "procfs".into(), mappings, truncated: false }))
    }

    /// Of each sandbox a thousand bytes, of each snapshot its bytes, and what its kernel counts is ten bytes more.
    async fn account(&self, _: Request<wire::AccountRequest>) -> Result<Response<wire::NodeAccount>, Status> {
        let held = self.held.lock().unwrap();
        let sandboxes: Vec<_> = held
            .sandboxes
            .values()
            .map(|report| wire::SandboxHolding {
                sandbox: report.id.get(),
                tenant: "default".into(),
                function: report.function.to_string(),
                state: report.state.into(),
                anon_bytes: 1_000,
                ..Default::default()
            })
            .collect();
        let kernel =
            wire::KernelCount { anon_bytes: 1_000 * sandboxes.len() as u64 + 10, ..Default::default() };
        Ok(Response::new(wire::NodeAccount { kernel: Some(kernel), sandboxes, snapshots: Vec::new() }))
    }

    async fn logs(&self, request: Request<wire::LogsRequest>) -> Result<Response<wire::LogsReply>, Status> {
        let id = SandboxId::from_wire(request.into_inner().sandbox, "sandbox")?;
        match self.held.lock().unwrap().sandboxes.contains_key(&id) {
            true => {
                Ok(Response::new(wire::LogsReply { lines: vec![format!("hello from {id}")], dropped: 3 }))
            }
            false => Err(Status::not_found("not here")),
        }
    }
}

/// What came, as headers and body of the answer.
fn echo(request: medes_proto::node::Request) -> Answer {
    let mut headers = vec![
        ("x-saw-method".into(), Bytes::from(request.method)),
        ("x-saw-path".into(), Bytes::from(request.path)),
        ("connection".into(), Bytes::from_static(b"close")),
    ];
    headers.extend(request.headers.into_iter().map(|(name, value)| (format!("x-saw-{name}"), value)));
    Answer { status: 201, headers, body: request.body, took: Duration::from_millis(12) }
}
