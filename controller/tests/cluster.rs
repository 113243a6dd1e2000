//! A controller with fake agents over loopback: requests, failures, restart, registry.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use medes_controller::server::{Controller, Place};
use medes_proto::{
    failure::FailureKind,
    limits,
    sandbox::SandboxState,
    trace::{Event, Explanation, Item, TraceKind},
    wire::{self, control_client::ControlClient, tokens_client::TokensClient},
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use support::{Agent, Cluster, LONG, caller, failed, succeeded, until};
use tokio_stream::StreamExt;

const FUNCTION: &str = "name = 'f'\ncommand = ['x']";

async fn one_node(changes: &[&str]) -> (tempfile::TempDir, Cluster, Agent) {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(folder.path(), changes).await;
    cluster.apply(FUNCTION).await;
    let agent = Agent::start("n1", cluster.controller.control).await;
    cluster.until_nodes(1).await;
    (folder, cluster, agent)
}

#[tokio::test]
async fn the_first_call_is_cold_the_second_warm_and_the_function_sees_what_was_sent() {
    let (_folder, cluster, _agent) = one_node(&[]).await;
    let request = hyper::Request::put("/invoke/f/deep/er?a=1&b=%20")
        .header("x-mine", "yes")
        .header("te", "trailers")
        .header("connection", "keep-alive, x-hop")
        .header("x-hop", "no")
        .body(Full::from("body"));
    let first = cluster.send(request.unwrap()).await;
    assert_eq!((first.status, &first.body[..]), (201, &b"body"[..]));
    assert_eq!(first.header("x-saw-method"), "PUT");
    assert_eq!(first.header("x-saw-path"), "/deep/er?a=1&b=%20");
    assert_eq!(first.header("x-saw-x-mine"), "yes");
    for gone in
        ["x-saw-te", "x-saw-connection", "x-saw-x-hop", "x-saw-host", "x-saw-content-length", "connection"]
    {
        assert!(!first.headers.contains_key(gone), "{gone}");
    }
    assert_eq!(first.header("x-medes-start"), "cold");
    assert_eq!(first.header("x-medes-node"), "n1");
    let phases: Vec<_> =
        first.header("x-medes-phases").split(',').map(|phase| phase.split_once('=').unwrap()).collect();
    assert_eq!(phases.iter().map(|phase| phase.0).collect::<Vec<_>>(), ["queue", "cold", "function"]);
    assert_eq!(phases[2].1, "12.0");
    let second = cluster.call("/invoke/f").await;
    assert_eq!(second.header("x-medes-start"), "warm");
    assert_eq!(second.header("x-medes-sandbox"), first.header("x-medes-sandbox"));
    assert_eq!(second.header("x-saw-path"), "/");
    assert_eq!(cluster.call("/invoke/f/").await.header("x-saw-path"), "/");
    let health = cluster.send(hyper::Request::get("/healthz").body(Full::default()).unwrap()).await;
    assert_eq!(health.status, 200);
}

#[tokio::test]
async fn memory_is_divided_and_who_does_not_answer_is_named() {
    let (_folder, mut cluster, agent) = one_node(&[]).await;
    cluster.call("/invoke/f").await;
    let ask = || wire::AccountingRequest {};
    let told = cluster.control.accounting(ask()).await.unwrap().into_inner();
    let [row] = &told.rows[..] else { panic!("{told:?}") };
    assert_eq!((&*row.tenant, &*row.function, row.warm, row.process_bytes), ("default", "f", 1, 1_000));
    let [node] = &told.nodes[..] else { panic!("{told:?}") };
    assert_eq!((node.counted_bytes, node.held_bytes, node.nobody_bytes), (1_010, 1_000, 10));
    drop(agent);
    let told = until("its node is silent", async || {
        let told = cluster.control.clone().accounting(ask()).await.unwrap().into_inner();
        told.nodes.first().is_none_or(|node| !node.failure.is_empty()).then_some(told)
    })
    .await;
    assert_eq!(told.rows, []);
}

#[tokio::test]
async fn the_same_over_grpc() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    let request = wire::InvokeFunctionRequest {
        function: "f".into(),
        method: "POST".into(),
        path: "/x".into(),
        headers: Vec::new(),
        body: "hello".into(),
        deadline_ms: 0,
    };
    let reply = cluster.control.invoke_function(request.clone()).await.unwrap().into_inner();
    let Some(wire::invoke_function_reply::Result::Answer(answer)) = reply.result else { panic!("{reply:?}") };
    assert_eq!(answer.http.unwrap().body, "hello");
    assert_eq!(answer.start, wire::StartKind::Cold as i32);
    let request = wire::InvokeFunctionRequest { function: "g".into(), ..request };
    let status = cluster.control.invoke_function(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::NotFound);
    let rows =
        cluster.control.list_functions(wire::ListFunctionsRequest {}).await.unwrap().into_inner().functions;
    assert_eq!((rows[0].requests, rows[0].cold_starts, rows[0].warm), (1, 1, 1));
}

#[tokio::test]
async fn a_dedup_sandbox_is_restored_for_the_next_call() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    let sandbox = cluster.start_sandbox("f").await.id;
    let deduped = cluster.dedup(sandbox).await;
    assert_eq!(&deduped.memory_digest[..], [9; 32]);
    assert_eq!(cluster.sandboxes().await[0].state, SandboxState::Dedup);
    let warm = cluster.start_sandbox("f").await.id;
    let prefer = hyper::Request::post("/invoke/f").header("x-medes-prefer-sandbox", sandbox.to_string());
    let answer = cluster.send(prefer.body(Full::default()).unwrap()).await;
    assert_eq!(answer.header("x-medes-start"), "restore");
    assert_eq!(answer.header("x-medes-sandbox"), sandbox.to_string());
    assert!(answer.header("x-medes-phases").contains(",restore="));
    assert_ne!(warm, sandbox);
}

#[tokio::test]
async fn a_failed_restore_is_followed_by_a_cold_start() {
    let (_folder, mut cluster, agent) = one_node(&[]).await;
    let sandbox = cluster.start_sandbox("f").await.id;
    cluster.dedup(sandbox).await;
    agent.faults().restores_fail.store(1, Ordering::SeqCst);
    let answer = cluster.call("/invoke/f").await;
    assert_eq!((answer.status, answer.header("x-medes-start")), (201, "cold"));
    assert_ne!(answer.header("x-medes-sandbox"), sandbox.to_string());
    let gone = async || (!cluster.sandboxes().await.iter().any(|row| row.id == sandbox)).then_some(());
    until("the broken sandbox to be purged", gone).await;
}

#[tokio::test]
async fn a_crash_is_a_502_with_its_reason_and_the_next_call_gets_another_sandbox() {
    let (_folder, cluster, _agent) = one_node(&[]).await;
    let first = cluster.call("/invoke/f").await;
    let crash = cluster.call("/invoke/f/crash").await;
    assert_eq!((crash.status, crash.kind().as_str()), (502, "crashed"));
    assert_eq!(crash.json()["error"], "signal 11");
    assert_eq!(crash.json()["log_tail"][0], "segmentation fault");
    let next = cluster.call("/invoke/f").await;
    assert_eq!((next.status, next.header("x-medes-start")), (201, "cold"));
    assert_ne!(next.header("x-medes-sandbox"), first.header("x-medes-sandbox"));
}

#[tokio::test]
async fn a_function_that_never_gets_ready_says_why() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    cluster.apply("name = 'broken'\ncommand = ['x']").await;
    let answer = cluster.call("/invoke/broken").await;
    assert_eq!((answer.status, answer.kind().as_str()), (502, "never_ready"));
    assert_eq!(answer.json()["log_tail"][0], "no module named nothing");
}

#[tokio::test]
async fn an_agent_that_dies_during_a_request_is_a_502_and_the_next_call_goes_elsewhere() {
    let (_folder, cluster, dying) = one_node(&[]).await;
    let gateway = cluster.controller.gateway;
    let hangs = hyper::Request::post("/invoke/f/hang").body(Full::default()).unwrap();
    let call = tokio::task::JoinSet::from_iter([caller(gateway, hangs)]);
    let seen = async || (dying.faults().requests.load(Ordering::SeqCst) == 1).then_some(());
    until("the request to reach the sandbox", seen).await;
    let other = Agent::start("n2", cluster.controller.control).await;
    cluster.until_nodes(2).await;
    dying.kill().await;
    let answer = call.join_all().await.remove(0);
    assert_eq!((answer.status, answer.kind().as_str()), (502, "node_lost"));
    let next = cluster.call("/invoke/f").await;
    assert_eq!((next.status, next.header("x-medes-node")), (201, "n2"));
    assert_eq!(other.faults().requests.load(Ordering::SeqCst), 1, "the lost request was not run again");
    cluster.until_nodes(1).await;
}

#[tokio::test]
async fn functions_and_sandboxes_survive_a_restart_of_the_controller() {
    let (folder, mut cluster, agent) = one_node(&[]).await;
    let first = cluster.call("/invoke/f").await;
    cluster.apply("name = 'gone'\ncommand = ['x']").await;
    let unwanted = cluster.start_sandbox("gone").await.id;
    let knows = async || Some(agent.keys()).filter(|keys| !keys.is_empty());
    let keys = until("the key of its one tenant", knows).await;
    let control = cluster.controller.control;
    assert!(cluster.controller.stop().await);

    // While it is down its store loses a function, as if that had been removed at the last moment.
    let opened = medes_controller::store::Store::open(folder.path()).unwrap();
    assert!(opened.store.remove(&"gone".parse().unwrap()).unwrap());
    drop(opened);
    let cluster = Cluster::start_on(folder.path(), &[], control).await;
    // At once: it waits for the nodes that are about to connect.
    let next = cluster.call("/invoke/f").await;
    assert_eq!((next.status, next.header("x-medes-start")), (201, "warm"));
    assert_eq!(next.header("x-medes-sandbox"), first.header("x-medes-sandbox"));
    let welcomed = async || agent.welcome().filter(|welcome| welcome.incarnation == 3);
    let welcome = until("the third controller's welcome", welcomed).await;
    let told: Vec<_> = welcome.keys.iter().map(|told| (told.tenant.clone(), told.key.id())).collect();
    assert_eq!(told, keys.into_iter().map(|held| (held.tenant, held.id)).collect::<Vec<_>>());
    assert_eq!(welcome.purge, [unwanted]);
    assert!(!agent.sandboxes().iter().any(|report| report.id == unwanted));
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_at_the_door() {
    let (_folder, cluster, agent) = one_node(&["requests.body_max=1KiB", "requests.deadline_max=1m"]).await;
    let send = async |request: hyper::http::request::Builder, body: Vec<u8>| {
        cluster.send(request.body(Full::from(body)).unwrap()).await
    };
    let large = send(hyper::Request::post("/invoke/f"), vec![0; 1025]).await;
    assert_eq!(large.status, 413);
    let most = send(hyper::Request::post("/invoke/f"), vec![0; 1024]).await;
    assert_eq!(most.status, 201);
    for name in ["nobody", "NOT-A-NAME", "%2e%2e"] {
        let unknown = cluster.call(&format!("/invoke/{name}")).await;
        assert_eq!((unknown.status, unknown.kind().as_str()), (404, "unknown_function"), "{name}");
    }
    for (name, value) in [
        ("x-medes-deadline-ms", "soon"),
        ("x-medes-deadline-ms", "0"),
        ("x-medes-deadline-ms", "60001"),
        ("x-medes-prefer-sandbox", "17"),
    ] {
        let bad = send(hyper::Request::post("/invoke/f").header(name, value), Vec::new()).await;
        assert_eq!(bad.status, 400, "{name}: {value}");
    }
    let mut many = hyper::Request::post("/invoke/f");
    for number in 0..=limits::HEADERS_MAX {
        many = many.header(format!("x-{number}"), "1");
    }
    assert!([400, 431].contains(&send(many, Vec::new()).await.status));
    assert_eq!(agent.faults().requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_full_queue_is_a_429_and_a_passed_deadline_a_504() {
    let (_folder, cluster, agent) = one_node(&["requests.queue_max=1"]).await;
    agent.faults().starts_hang.store(true, Ordering::SeqCst);
    let gateway = cluster.controller.gateway;
    let waits = hyper::Request::post("/invoke/f").header("x-medes-deadline-ms", "1500");
    let waits = tokio::task::JoinSet::from_iter([caller(gateway, waits.body(Full::default()).unwrap())]);
    let starting = async || cluster.sandboxes().await.first().map(|report| report.state);
    assert_eq!(until("a start", starting).await, SandboxState::Starting);
    let full = cluster.call("/invoke/f").await;
    assert_eq!((full.status, full.header("retry-after"), full.kind().as_str()), (429, "1", "queue_full"));
    let late = waits.join_all().await.remove(0);
    assert_eq!((late.status, late.kind().as_str()), (504, "deadline"));
}

#[tokio::test]
async fn a_function_that_does_not_answer_in_time_is_a_504_and_loses_its_sandbox() {
    let (_folder, cluster, agent) = one_node(&[]).await;
    let request = hyper::Request::post("/invoke/f/hang").header("x-medes-deadline-ms", "200");
    let late = cluster.send(request.body(Full::default()).unwrap()).await;
    assert_eq!((late.status, late.kind().as_str()), (504, "deadline"));
    until("the purge", async || agent.sandboxes().is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_controller_is_ready_while_a_node_takes_work() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    let get = |path: &str| hyper::Request::get(path).body(Full::default()).unwrap();
    assert_eq!(cluster.send(get("/readyz")).await.status, 200);
    let node = cluster.nodes().await.remove(0).node;
    let stands = |node: &str, standing: wire::Standing| wire::SetStandingRequest {
        node: node.into(),
        standing: standing.into(),
    };
    let reply = cluster.control.set_standing(stands(&node, wire::Standing::Draining)).await.unwrap();
    assert!(reply.into_inner().changed);
    let unready = cluster.send(get("/readyz")).await;
    assert_eq!((unready.status, &unready.body[..]), (503, &b"no node takes work\n"[..]));
    assert_eq!(cluster.send(get("/healthz")).await.status, 200);
    assert_eq!(cluster.nodes().await[0].standing(), wire::Standing::Draining);
    let unknown = cluster.control.set_standing(stands("nobody", wire::Standing::Cordoned)).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let nonsense = wire::SetStandingRequest { node: node.clone(), standing: 9 };
    let nonsense = cluster.control.set_standing(nonsense).await.unwrap_err();
    assert_eq!(nonsense.code(), tonic::Code::InvalidArgument);
    cluster.control.set_standing(stands(&node, wire::Standing::Open)).await.unwrap();
    assert_eq!(cluster.send(get("/readyz")).await.status, 200);
}

#[tokio::test]
async fn a_policy_set_while_it_runs_decides_over_those_that_are_idle_already() {
    let (_folder, mut cluster, agent) = one_node(&["policy.keep_alive=1h", "policy.dedup=false"]).await;
    cluster.start_sandbox("f").await;
    let set = |changes: &[&str], dry_run| wire::SetPolicyRequest {
        changes: changes.iter().map(|change| (*change).into()).collect(),
        dry_run,
    };
    let wrong = cluster.control.set_policy(set(&["keep_alive=100ms", "alpha=0"], false)).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    assert!(wrong.message().contains("policy.alpha"), "{wrong}");
    let would = cluster.control.set_policy(set(&["keep_alive=100ms"], true)).await.unwrap().into_inner();
    assert!(would.changed && would.toml.contains("keep_alive = \"100ms\""), "{would:?}");
    let shown = cluster.control.get_policy(wire::GetPolicyRequest {}).await.unwrap().into_inner();
    assert!(shown.toml.contains("keep_alive = \"1h\""), "{shown:?}");
    assert_eq!(cluster.sandboxes().await.len(), 1, "nothing was changed so far");
    let done = cluster.control.set_policy(set(&["keep_alive=100ms"], false)).await.unwrap().into_inner();
    assert!(done.changed);
    until("the end of what is idle", async || cluster.sandboxes().await.is_empty().then_some(())).await;
    let again = cluster.control.set_policy(set(&["keep_alive=100ms"], false)).await.unwrap().into_inner();
    assert!(!again.changed);
    cluster.control.set_policy(set(&["idle=7s"], false)).await.unwrap();
    let told = async || (agent.welcome().unwrap().idle == Duration::from_secs(7)).then_some(());
    until("the agent to hear of the new idle period", told).await;
}

#[tokio::test]
async fn stopping_answers_what_is_open() {
    let (_folder, cluster, agent) = one_node(&[]).await;
    let gateway = cluster.controller.gateway;
    let hangs = hyper::Request::post("/invoke/f/hang").body(Full::default()).unwrap();
    let call = tokio::task::JoinSet::from_iter([caller(gateway, hangs)]);
    let seen = async || (agent.faults().requests.load(Ordering::SeqCst) == 1).then_some(());
    until("the request to reach the sandbox", seen).await;
    let clean = tokio::time::timeout(LONG, cluster.controller.stop()).await.unwrap();
    assert!(!clean, "a request was cut off, and that is said");
    let answer = call.join_all().await.remove(0);
    assert_eq!((answer.status, answer.kind().as_str()), (503, "stopping"));
}

#[tokio::test]
async fn operations_answer_with_what_they_did_or_why_not() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    let sandbox = cluster.start_sandbox("f").await.id;
    let request = wire::SandboxRequest { sandbox: sandbox.get(), digest_memory: false };
    let why = failed(cluster.control.restore_sandbox(request).await);
    assert_eq!(why.kind, FailureKind::Busy);
    let base = succeeded(cluster.control.make_base(request).await);
    assert_eq!(base.snapshot.unwrap().pages, 8);
    cluster.dedup(sandbox).await;
    let restored = succeeded(cluster.control.restore_sandbox(request).await);
    assert_eq!(restored.sandbox.unwrap().state, wire::SandboxState::Warm as i32);
    let logs = cluster.control.sandbox_logs(request).await.unwrap().into_inner();
    assert_eq!((logs.lines[0].as_str(), logs.dropped), (format!("hello from {sandbox}").as_str(), 3));
    succeeded(cluster.control.purge_sandbox(request).await);
    assert!(cluster.sandboxes().await.is_empty());
    assert_eq!(cluster.control.sandbox_logs(request).await.unwrap_err().code(), tonic::Code::NotFound);
    let bad = wire::ApplyFunctionRequest { toml: "name = 'A'".into() };
    let status = cluster.control.apply_function(bad).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let remove = |name: &str| wire::RemoveFunctionRequest { name: name.into() };
    cluster.control.remove_function(remove("f")).await.unwrap();
    assert_eq!(cluster.control.remove_function(remove("f")).await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(cluster.call("/invoke/f").await.status, 404);
}

#[tokio::test]
async fn lookups_find_what_was_registered_while_it_can_be_read() {
    let (_folder, mut cluster, agent) = one_node(&[]).await;
    let sandbox = cluster.start_sandbox("f").await.id;
    let request = wire::SandboxRequest { sandbox: sandbox.get(), digest_memory: false };
    let snapshot = succeeded(cluster.control.make_base(request).await).snapshot.unwrap().snapshot;
    let mut registry = cluster.registry().await;
    let batch = |snapshot, first_page| wire::RegisterBatch {
        snapshot,
        first_page,
        hashes: vec![1 << 60, 2 << 60, 3 << 60],
        lengths: vec![2, 1].into(),
    };
    let batches = tokio_stream::iter([batch(snapshot, 0), batch(snapshot, 2)]);
    let registered = registry.register(batches).await.unwrap().into_inner();
    assert_eq!((registered.entries_added, registered.entries_refused), (6, 0));
    let unknown = registry.register(tokio_stream::iter([batch(77, 0)])).await.unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::NotFound);

    let lookup = || wire::LookupBatch {
        sandbox: sandbox.get(),
        hashes: vec![1 << 60, 2 << 60, 9 << 60],
        lengths: vec![2, 1].into(),
    };
    let mut replies = registry.lookup(tokio_stream::iter([lookup(), lookup()])).await.unwrap().into_inner();
    for _batch in 0..2 {
        let reply = replies.next().await.unwrap().unwrap();
        assert_eq!(reply.counts, vec![2, 0]);
        assert_eq!((reply.pages, reply.votes), (vec![0, 2], vec![2, 2].into()));
        assert_eq!((reply.places.len(), reply.places[0].node.as_str()), (1, "n1"));
    }
    let acquire = |id| wire::AcquireRequest { sandbox: sandbox.get(), snapshots: vec![id] };
    registry.acquire(acquire(snapshot)).await.unwrap();
    assert_eq!(registry.acquire(acquire(77)).await.unwrap_err().code(), tonic::Code::NotFound);

    agent.kill().await;
    cluster.until_nodes(0).await;
    let mut replies = registry.lookup(tokio_stream::iter([lookup()])).await.unwrap().into_inner();
    let reply = replies.next().await.unwrap().unwrap();
    assert_eq!((reply.counts, reply.places.len()), (vec![0, 0].into(), 0));
}

#[tokio::test]
async fn a_stream_that_makes_no_sense_is_ended() {
    let (_folder, cluster, _agent) = one_node(&[]).await;
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{}", cluster.controller.control)).unwrap();
    let mut fleet = wire::fleet_client::FleetClient::new(channel.connect().await.unwrap());
    let gone = wire::agent_message::Message::Gone(wire::Gone { sandbox: 1, why: None });
    let no_hello = wire::AgentMessage { message: Some(gone) };
    let status = fleet.attach(tokio_stream::iter([no_hello])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let hello = wire::Hello { node: "../n".into(), memory: Some(Default::default()), ..Default::default() };
    let bad_name = wire::AgentMessage { message: Some(wire::agent_message::Message::Hello(hello)) };
    let status = fleet.attach(tokio_stream::iter([bad_name])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(cluster.nodes().await.len(), 1);
}

#[tokio::test]
async fn a_caller_that_hangs_up_while_it_waits_is_forgotten() {
    let (_folder, cluster, agent) = one_node(&[]).await;
    agent.faults().starts_hang.store(true, Ordering::SeqCst);
    let gateway = cluster.controller.gateway;
    let call = caller(gateway, hyper::Request::post("/invoke/f").body(Full::from(Bytes::new())).unwrap());
    // The call is dropped as soon as the start that it causes is seen.
    let starting = until("a start", async || cluster.sandboxes().await.first().map(|report| report.state));
    tokio::select! {
        _ = call => panic!("no answer is possible"),
        state = starting => assert_eq!(state, SandboxState::Starting),
    }
    let clean = tokio::time::timeout(LONG, cluster.controller.stop()).await.unwrap();
    assert!(clean, "nothing was left to wait for");
}

#[tokio::test]
async fn ports_that_are_taken_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let place = Place {
        web: None,
        state_dir: folder.path().into(),
        control: address,
        gateway: "127.0.0.1:0".parse().unwrap(),
        page: None,
        spans: None,
        security: medes_identity::security::Security::Plaintext,
    };
    let config = medes_controller::config::Config::read("", &[]).unwrap();
    let error = Controller::start(place, config).await.unwrap_err();
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn an_idle_sandbox_becomes_base_and_the_next_one_dedup_by_themselves() {
    let (_folder, mut cluster, agent) = one_node(&["policy.idle=100ms"]).await;
    let sandbox = cluster.start_sandbox("f").await.id;
    agent.say_idle(sandbox, Duration::from_millis(100));
    let based = async || cluster.sandboxes().await[0].base_snapshot;
    until("the base", based).await;
    let dedup = async || {
        agent.say_idle(sandbox, Duration::from_millis(100));
        (cluster.sandboxes().await[0].state == SandboxState::Dedup).then_some(())
    };
    until("the dedup", dedup).await;
    assert_eq!(cluster.call("/invoke/f").await.header("x-medes-start"), "restore");
}

/// Follows the trace until `wanted` has come; returns all until then.
async fn follow(
    items: &mut tonic::Streaming<wire::TraceItem>,
    wanted: impl Fn(&Event) -> bool,
) -> Vec<Event> {
    let mut events = Vec::new();
    let found = tokio::time::timeout(LONG, async {
        while let Some(item) = items.message().await.unwrap() {
            match Item::try_from(item).unwrap() {
                Item::Event(event) => {
                    let last = wanted(&event);
                    events.push(*event);
                    if last {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("the trace has ended");
    });
    found.await.expect("the event");
    events
}

async fn subscribe(cluster: &Cluster, filter: wire::TraceFilter) -> tonic::Streaming<wire::TraceItem> {
    let mut items = cluster.control.clone().trace(filter).await.unwrap().into_inner();
    let first = Item::try_from(items.message().await.unwrap().unwrap()).unwrap();
    assert_eq!(first, Item::Begin);
    items
}

#[tokio::test]
async fn the_trace_tells_a_sandboxs_life_and_explain_names_the_decision() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    let mut all = subscribe(&cluster, wire::TraceFilter::default()).await;
    let kinds = vec![TraceKind::Dedup.into(), TraceKind::Request.into()];
    let mut some = subscribe(&cluster, wire::TraceFilter { kinds, ..Default::default() }).await;
    let mut none = subscribe(&cluster, wire::TraceFilter { node: "n9".into(), ..Default::default() }).await;

    let sandbox = cluster.start_sandbox("f").await.id;
    cluster.dedup(sandbox).await;
    let reply = cluster.call("/invoke/f/secret?path=1").await;
    assert_eq!(reply.header("x-medes-start"), "restore");

    let events = follow(&mut all, |event| event.what.kind() == TraceKind::Request).await;
    let told: Vec<_> = events.iter().map(|event| event.what.kind().word()).collect();
    assert_eq!(
        told,
        [
            "start", "state", "ready", "state", "asked", "state", "state", "dedup", "start", "state",
            "ready", "state", "request"
        ]
    );
    assert!(events.iter().all(|event| event.about.sandbox == Some(sandbox)));
    assert!(events.iter().all(|event| event.about.function.as_ref().unwrap().as_str() == "f"));
    assert!(!format!("{events:?}").contains("secret"), "nothing of a request is told");
    let some = follow(&mut some, |event| event.what.kind() == TraceKind::Request).await;
    assert_eq!(some.len(), 2, "{some:?}");

    let warm = async || (cluster.sandboxes().await[0].state == SandboxState::Warm).then_some(());
    until("the request's end is known", warm).await;
    let explained = cluster.control.explain(wire::ExplainRequest { sandbox: sandbox.get() }).await.unwrap();
    let explained = Explanation::try_from(explained.into_inner()).unwrap();
    let (now, node) = explained.now.unwrap();
    assert_eq!((now.state, node.as_str()), (SandboxState::Warm, "n1"));
    let decision = explained.decision.unwrap();
    assert_eq!(decision.id, events[8].id);
    assert_eq!(explained.change.unwrap().id, events[11].id);
    assert_eq!(explained.history, events[..12]);
    let nobody = cluster.control.explain(wire::ExplainRequest { sandbox: 99 }).await.unwrap_err();
    assert_eq!(nobody.code(), tonic::Code::NotFound);

    // The controller's end is the end of every stream, also of one that nothing ever came on.
    assert!(cluster.controller.stop().await);
    assert!(none.message().await.unwrap().is_none());
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_told_what_it_missed_and_blocks_nobody() {
    let (_folder, mut cluster, _agent) = one_node(&[]).await;
    cluster.apply("name = 'broken'\ncommand = ['x']").await;
    // A reader with a small window: what the controller and both ends of the connection keep for it is soon full.
    let endpoint = tonic::transport::Channel::from_shared(format!("http://{}", cluster.controller.control));
    let channel = endpoint.unwrap().initial_stream_window_size(65_535).connect().await.unwrap();
    let mut reader = ControlClient::new(channel);
    let mut slow = reader.trace(wire::TraceFilter::default()).await.unwrap().into_inner();
    assert!(slow.message().await.unwrap().is_some(), "it begins");
    const STARTS: u64 = 1_500;
    for _ in 0..STARTS {
        let request =
            wire::StartSandboxRequest { function: "broken".into(), node: String::new(), cold: false };
        failed(cluster.control.start_sandbox(request).await);
    }
    // For each: the decision, the new sandbox, the failure, and that it is gone.
    let (mut came, mut missed) = (0_u64, 0_u64);
    tokio::time::timeout(LONG, async {
        while came + missed < 4 * STARTS {
            match Item::try_from(slow.message().await.unwrap().unwrap()).unwrap() {
                Item::Event(_) => came += 1,
                Item::Dropped(count) => missed += count,
                Item::Begin => panic!("it begins once"),
            }
        }
    })
    .await
    .expect("every event was shown or counted");
    assert!(came > 0 && missed > 0, "{came} came, {missed} were missed");
}

/// A collector of spans that hands on what it is sent.
struct Collector(tokio::sync::mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test]
async fn spans_reach_a_collector_and_say_nothing_of_the_machine() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut sent) = tokio::sync::mpsc::channel(64);
    let service = TraceServiceServer::new(Collector(sender));
    let streams = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(streams);
    tokio_util::task::TaskTracker::new().spawn(server);

    let folder = tempfile::tempdir().unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let mut cluster = Cluster::start_with(folder.path(), &[], any, Some(endpoint)).await;
    cluster.apply(FUNCTION).await;
    let _agent = Agent::start("n1", cluster.controller.control).await;
    cluster.until_nodes(1).await;
    assert_eq!(cluster.call("/invoke/f").await.status, 201);
    // The end brings what waits for its batch.
    cluster.controller.stop().await;
    let request = tokio::time::timeout(LONG, sent.recv()).await.unwrap().unwrap();
    let resource = request.resource_spans[0].resource.clone().unwrap();
    let keys: Vec<_> = resource.attributes.into_iter().map(|one| one.key).collect();
    assert_eq!(keys, ["service.name"]);
    let spans: Vec<_> =
        request.resource_spans.into_iter().flat_map(|it| it.scope_spans).flat_map(|it| it.spans).collect();
    let cold = spans.iter().find(|span| span.name == "cold").expect("a start");
    assert!(cold.end_time_unix_nano >= cold.start_time_unix_nano && cold.parent_span_id.is_empty());
    assert!(cold.attributes.iter().any(|one| one.key == "medes.function"));
    let request = spans.iter().find(|span| span.name == "request").expect("a request");
    let steps: Vec<_> =
        spans.iter().filter(|span| span.parent_span_id == request.span_id).map(|it| &it.name[..]).collect();
    assert_eq!(steps, ["queue", "cold"]);
}

#[tokio::test]
async fn with_tokens_a_caller_shows_one_that_is_for_its_function() {
    let (folder, mut cluster, _agent) = one_node(&[]).await;
    cluster.apply("name = 'g'\ncommand = ['x']").await;
    let call = async |cluster: &Cluster, path: &str, token: &str| {
        let request = hyper::Request::post(path).header("authorization", format!("Bearer {token}"));
        cluster.send(request.body(Full::default()).unwrap()).await
    };
    // While there is none, what is shown is the function's.
    let open = call(&cluster, "/invoke/f", "mine").await;
    assert_eq!((open.status, open.header("x-saw-authorization")), (201, "Bearer mine"));

    let channel = tonic::transport::Channel::from_shared(format!("http://{}", cluster.controller.control));
    let tokens = TokensClient::new(channel.unwrap().connect().await.unwrap());
    let create = async |name: &str, functions: &[&str]| {
        let functions = functions.iter().map(|&name| name.into()).collect();
        let request = wire::CreateTokenRequest { name: name.into(), functions, operator: false };
        let reply = tokens.clone().create(request).await;
        reply.map(|reply| reply.into_inner().token).map_err(|status| status.code())
    };
    let [all, only_g] = [create("all", &[]).await.unwrap(), create("only-g", &["g"]).await.unwrap()];
    assert_eq!(create("all", &[]).await, Err(tonic::Code::AlreadyExists));
    assert_eq!(create("All", &[]).await, Err(tonic::Code::InvalidArgument));
    assert_eq!(create("one", &["No"]).await, Err(tonic::Code::InvalidArgument));

    let denied = cluster.call("/invoke/f").await;
    assert_eq!((denied.status, denied.header("www-authenticate")), (401, "Bearer"));
    assert_eq!(call(&cluster, "/invoke/f", "mine").await.status, 401);
    let admitted = call(&cluster, "/invoke/f", &all).await;
    assert_eq!(admitted.status, 201);
    assert!(!admitted.headers.contains_key("x-saw-authorization"), "a function does not see tokens");
    assert_eq!(call(&cluster, "/invoke/f", &only_g).await.status, 403);
    assert_eq!(call(&cluster, "/invoke/g", &only_g).await.status, 201);
    // Health is nobody's secret.
    let health = cluster.send(hyper::Request::get("/healthz").body(Full::default()).unwrap()).await;
    assert_eq!(health.status, 200);

    let revoke = async |name: &str| {
        tokens.clone().revoke(wire::RevokeTokenRequest { name: name.into() }).await.map(drop)
    };
    revoke("all").await.unwrap();
    assert_eq!(revoke("all").await.unwrap_err().code(), tonic::Code::NotFound);
    assert_eq!(call(&cluster, "/invoke/f", &all).await.status, 401);
    cluster.controller.stop().await;

    let cluster = Cluster::start(folder.path(), &[]).await;
    let again = call(&cluster, "/invoke/f", &only_g).await;
    assert_eq!((again.status, again.kind()), (403, "permission_denied".into()), "after a restart");
    assert_eq!(call(&cluster, "/invoke/f", &all).await.status, 401);
}
