//! A controller that asks for certificates: who gets in, what each may call, whose word counts.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use medes_controller::{
    agents::{Agents, InvokeError},
    config::Config,
    server::{Controller, Place, StartError},
};
use medes_identity::{
    access::Service, authority::LIFETIME, credentials::Look, folder::Folder, identity::Role,
    security::Security,
};
use medes_proto::{
    fleet::{AgentMessage, Hello, Inventory},
    ids::SandboxId,
    wire::{self, control_client::ControlClient, fleet_client::FleetClient, registry_client::RegistryClient},
};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

struct Stage {
    dir: tempfile::TempDir,
    folder: Folder,
    controller: Controller,
    security: Security,
}

impl Stage {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("certs"));
        folder.init(&"main".parse().unwrap(), SystemTime::now()).unwrap();
        let security = issue(&dir, &folder, Role::Controller, "controller");
        let any = "127.0.0.1:0".parse().unwrap();
        let place = Place {
            web: None,
            state_dir: dir.path().join("state"),
            control: any,
            gateway: any,
            page: Some(any),
            spans: None,
            security: security.clone(),
        };
        let config = Config::read("", &["stop.grace=200ms".into()]).unwrap();
        let controller = Controller::start(place, config).await.unwrap();
        Self { dir, folder, controller, security }
    }

    fn issue(&self, role: Role, name: &str) -> Security {
        issue(&self.dir, &self.folder, role, name)
    }

    async fn dial(&self, security: &Security) -> Result<Channel, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.controller.control)).unwrap();
        security.channel(&endpoint.connect_timeout(Duration::from_secs(5)), Service::Control, None).await
    }
}

fn file(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(format!("certs/{name}.pem"))
}

fn issue(dir: &tempfile::TempDir, folder: &Folder, role: Role, name: &str) -> Security {
    folder.issue(role, &name.parse().unwrap(), LIFETIME, SystemTime::now()).unwrap();
    Security::choose(Some(&file(dir, name)), false, &[], SystemTime::now()).unwrap()
}

async fn list_nodes(channel: Channel) -> Result<usize, Status> {
    let reply = ControlClient::new(channel).list_nodes(wire::ListNodesRequest {}).await?;
    Ok(reply.into_inner().nodes.len())
}

async fn invoke(channel: Channel) -> Result<(), Status> {
    let request = wire::InvokeFunctionRequest {
        function: "none".into(),
        method: "GET".into(),
        path: "/".into(),
        ..Default::default()
    };
    ControlClient::new(channel).invoke_function(request).await.map(drop)
}

fn hello(node: &str) -> Hello {
    Hello {
        node: node.parse().unwrap(),
        incarnation: 7,
        version: "test".into(),
        address: "127.0.0.1:1".into(),
        inventory: Inventory::default(),
        lacks: vec![],
    }
}

/// The status of the answer to a GET of the page.
async fn look(stage: &Stage, path: &str) -> u16 {
    let stream = tokio::net::TcpStream::connect(stage.controller.page.unwrap()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    let request = hyper::Request::get(path).header("host", "127.0.0.1").header("connection", "close");
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let (answer, _closed) =
        tokio::join!(sender.send_request(request), tokio::time::timeout(Duration::from_secs(1), connection));
    answer.unwrap().status().as_u16()
}

#[tokio::test]
async fn with_certificates_the_page_asks_for_a_token_and_is_for_its_own_machine() {
    let stage = Stage::start().await;
    // Whoever may ask at the control port shows a certificate there: here nobody comes in without a token, even on the same machine.
    for (path, status) in [("/", 200), ("/data/cluster", 401), ("/data/sandbox/sb-1-1", 401)] {
        assert_eq!(look(&stage, path).await, status, "{path}");
    }
    let any = "127.0.0.1:0".parse().unwrap();
    let place = Place {
        web: None,
        state_dir: stage.dir.path().join("other"),
        control: any,
        gateway: any,
        page: Some("0.0.0.0:0".parse().unwrap()),
        spans: None,
        security: stage.security.clone(),
    };
    let refused = Controller::start(place, Config::read("", &[]).unwrap()).await.unwrap_err();
    assert!(matches!(refused, StartError::PageInTheOpen(_)), "{refused}");
}

/// Attaches as a node; the code of the refusal, if there is one. The stream is given back open.
async fn attach(channel: Channel, node: &str) -> Result<tonic::Streaming<wire::ControllerMessage>, Code> {
    let first = wire::AgentMessage::from(AgentMessage::Hello(hello(node)));
    let messages = futures::StreamExt::chain(tokio_stream::once(first), futures::stream::pending());
    let stream = FleetClient::new(channel).attach(messages).await.map_err(|status| status.code())?;
    let mut stream = stream.into_inner();
    stream.message().await.map_err(|status| status.code())?.expect("a welcome");
    Ok(stream)
}

#[tokio::test]
async fn each_role_may_call_what_is_its_own() {
    let stage = Stage::start().await;
    let operator = stage.dial(&stage.issue(Role::Operator, "anna")).await.unwrap();
    let invoker = stage.dial(&stage.issue(Role::Invoker, "shop")).await.unwrap();
    let agent = stage.dial(&stage.issue(Role::Agent, "node-1")).await.unwrap();
    let code = |result: Result<(), Status>| result.unwrap_err().code();
    let list = async |channel: &Channel| list_nodes(channel.clone()).await.map(drop);

    assert_eq!(list_nodes(operator.clone()).await.unwrap(), 0);
    assert_eq!(code(list(&invoker).await), Code::PermissionDenied);
    assert_eq!(code(list(&agent).await), Code::PermissionDenied);
    // There is no such function: whoever hears that was let through.
    assert_eq!(code(invoke(operator.clone()).await), Code::NotFound);
    assert_eq!(code(invoke(invoker.clone()).await), Code::NotFound);
    assert_eq!(code(invoke(agent).await), Code::PermissionDenied);

    let acquire = wire::AcquireRequest { sandbox: 1, snapshots: vec![1] };
    let acquired = RegistryClient::new(operator.clone()).acquire(acquire).await;
    assert_eq!(code(acquired.map(drop)), Code::PermissionDenied);
    assert_eq!(attach(operator, "node-1").await.err(), Some(Code::PermissionDenied));
    assert_eq!(attach(invoker, "node-1").await.err(), Some(Code::PermissionDenied));
    assert!(stage.controller.stop().await);
}

#[tokio::test]
async fn an_agent_speaks_as_its_own_node_only() {
    let stage = Stage::start().await;
    let agent = stage.dial(&stage.issue(Role::Agent, "node-1")).await.unwrap();
    let operator = stage.dial(&stage.issue(Role::Operator, "anna")).await.unwrap();
    assert_eq!(attach(agent.clone(), "node-2").await.err(), Some(Code::PermissionDenied));
    assert_eq!(list_nodes(operator.clone()).await.unwrap(), 0);
    let _open = attach(agent, "node-1").await.unwrap();
    assert_eq!(list_nodes(operator).await.unwrap(), 1);
    stage.controller.stop().await;
}

#[tokio::test]
async fn strangers_are_not_let_in() {
    let stage = Stage::start().await;
    // Whether the connection or the first call fails is a matter of timing; nothing is heard either way.
    let hears = async |security: &Security| match stage.dial(security).await {
        Ok(channel) => list_nodes(channel).await.is_ok(),
        Err(_) => false,
    };
    assert!(!hears(&Security::Plaintext).await);

    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::new(dir.path().join("certs"));
    folder.init(&"main".parse().unwrap(), SystemTime::now()).unwrap();
    let stranger = issue(&dir, &folder, Role::Operator, "anna");
    assert!(stage.dial(&stranger).await.is_err(), "its authority does not know the controller");
    // It takes the controller for its own, and is still nobody's.
    let both = [&stage.dir, &dir].map(|dir| std::fs::read_to_string(file(dir, "ca")).unwrap()).concat();
    std::fs::write(file(&dir, "ca"), both).unwrap();
    let file = file(&dir, "anna");
    let stranger = Security::choose(Some(&file), false, &[], SystemTime::now()).unwrap();
    assert!(!hears(&stranger).await);
    assert!(hears(&stage.issue(Role::Operator, "anna")).await);
    stage.controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_certificates_are_rotated() {
    let stage = Stage::start().await;
    let security = stage.issue(Role::Operator, "anna");
    let done = AtomicBool::new(false);
    let rotate = async {
        for _round in 0..10 {
            for (name, security) in [("controller", &stage.security), ("anna", &security)] {
                stage.folder.rotate(&name.parse().unwrap(), LIFETIME, SystemTime::now()).unwrap();
                let Security::Mutual(credentials) = security else { panic!("not secured") };
                // The controller's own look may have come first.
                assert!(matches!(credentials.look(SystemTime::now()), Look::Renewed | Look::Same));
            }
            tokio::task::yield_now().await;
        }
        done.store(true, Ordering::Release);
    };
    let kept = stage.dial(&security).await.unwrap();
    let call = async {
        let mut calls = 0;
        while !done.load(Ordering::Acquire) || calls < 2 {
            assert_eq!(list_nodes(kept.clone()).await.unwrap(), 0, "an open connection");
            let new = stage.dial(&security).await.unwrap();
            assert_eq!(list_nodes(new).await.unwrap(), 0, "a new connection");
            calls += 1;
        }
    };
    tokio::join!(rotate, call);
    stage.controller.stop().await;
}

#[tokio::test]
async fn an_agent_at_the_address_of_another_one_is_asked_nothing() {
    let stage = Stage::start().await;
    let agent = stage.issue(Role::Agent, "node-1");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let door = tokio_util::task::TaskTracker::new().spawn(async move {
        let mut open = Vec::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            open.push(agent.accept(stream, Service::Node).await);
        }
    });
    let agents = Agents::new(stage.security.clone());
    let sandbox = SandboxId::of(1, 1).unwrap();
    let [itself, another] = ["node-1", "node-2"].map(|name| name.parse().unwrap());
    let refused = agents.logs((&another, &address), sandbox).await;
    assert!(matches!(refused, Err(InvokeError::NotSent { .. })), "{refused:?}");
    // It says nothing more, so the right one is asked and waited for.
    let asked =
        tokio::time::timeout(Duration::from_millis(500), agents.logs((&itself, &address), sandbox)).await;
    assert!(asked.is_err(), "{asked:?}");
    door.abort();
}
