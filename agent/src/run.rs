//! Puts a node together and runs it until it is told to stop.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use medes_identity::{access::Service, guard::Guard, identity::Role, security::Security};
use medes_metrics::{health::Health, list::Of, spans::Exporter};
use medes_proto::{limits::MESSAGE_BYTES_MAX, node::PageAccess, wire::node_server::NodeServer};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Channel, Endpoint, Server};

use crate::{
    bases::{Bases, rdma, serve::PageServer},
    config::Config,
    criu::{Criu, Pool},
    earlier::Room,
    faults::Faults,
    link, metrics,
    node::{Identity, Node, Tools},
    pager::Pager,
    reaper::Reaper,
    registry::Registry,
    roads::Roads,
    sandbox::{self, Claim, Host, HostConfig},
    service::NodeService,
    watch::{Diagnostics, Options, Watch, tracked::Tracking, writes::Way},
};

/// A read from another node, or a call to the registry, that takes longer has failed.
const READ_DEADLINE: Duration = Duration::from_secs(20);
/// How long tasks may take to end when the node does.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// What the link may tell the node before the node has listened.
const LINK_MAX: usize = 256;
/// Threads that bring missing pages: one for each processor, but not fewer and not more than these.
const PAGER_THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// Runs the agent; returns when SIGTERM or SIGINT came and everything is gone but, after SIGTERM, what is left to the next agent.
pub async fn run(config: Config, claim: Claim, program: PathBuf) -> Result<()> {
    config.heat().check().context("understand --heat-...")?;
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let security = security(&config, &tasks, &stop)?;
    let spans = config.spans.as_deref().map(|url| Exporter::start("medes-agent", url));
    let spans = spans.transpose().context("understand --spans")?.map(Arc::new);
    let health = serve_metrics(&config, &tasks, &stop).await?;
    // The reaper outlives everything whose processes it waits for.
    let reaper_stop = CancellationToken::new();
    let reaper_tasks = TaskTracker::new();
    let reaper = Reaper::start(&reaper_tasks, reaper_stop.clone()).context("start the reaper")?;
    let host_config = host_config(&config, program);
    // Whatever may fail, before what the agent before left is this one's.
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen on {}", config.listen))?;
    let host = Host::start_claimed(host_config, claim, &reaper, &tasks).await;
    let host = Arc::new(host.context("set the node up")?);
    let address = listener.local_addr().context("learn the port")?.to_string();
    let channel = channel(&config.controller, &security)?;
    let bases = Arc::new(bases(&config, &security));
    let access = serve_pages(&config, &bases, (&tasks, &stop), security.clone()).await?;
    let mut lacks = Vec::new();
    let watch = watch(&config, &mut lacks);
    let tracking = tracking(&config, (&host, &reaper), &mut lacks);
    metrics::sight(watch.sight(), tracking.as_ref().map(|tracking| tracking.way));
    let pager = pager(&host, &reaper).map_err(|error| lacks.push(format!("parking: {error}"))).ok();
    let faults = Arc::new(faults(&config));
    let (helpers, bases_there) = ((&*host, &reaper, pager.as_ref()), (&bases, faults.clone()));
    let roads = roads(&config, helpers, &tasks, &stop, bases_there, channel.clone()).await;
    let roads = roads.map_err(|error| lacks.push(format!("CRIU: {error:#}"))).ok().map(Arc::new);
    lacks.iter().for_each(|lack| tracing::warn!(lack, "this node cannot do everything"));
    let identity = Identity {
        node: config.node.clone(),
        incarnation: incarnation(),
        address: address.clone(),
        cap_bytes: config.memory_cap.0,
        lacks,
        threads: config.threads(),
    };
    let tools = Tools {
        host: host.clone(),
        roads,
        pager,
        bases: bases.clone(),
        tasks: tasks.clone(),
        spans: spans.clone(),
        faults,
    };
    let (node, handle, inbox) = Node::new(identity, Arc::new(tools), (watch, tracking));
    let mut node = node.with_warm(config.trim, config.fill_above);
    node.take_in().await;
    let (from_link, link_inbox) = mpsc::channel(LINK_MAX);
    handle.answer(&health);
    tasks.spawn(link::run(channel, from_link, stop.clone()));
    tasks.spawn(serve(NodeService::new(bases, access, handle), (listener, security), stop.clone()));
    tasks.spawn(until_told(host.as_ref().clone(), stop.clone()));
    tracing::info!(node = %config.node, address, controller = config.controller, "agent is up");
    node.run(inbox, link_inbox, stop).await;
    wind_up(&tasks, spans).await;
    reaper_stop.cancel();
    reaper_tasks.close();
    reaper_tasks.wait().await;
    Ok(())
}

fn host_config(config: &Config, program: PathBuf) -> HostConfig {
    HostConfig {
        node: config.node.to_string(),
        run_dir: config.state_dir.join("run"),
        run_bytes_max: config.scratch.0,
        program,
        takeover: Duration::from_secs(config.takeover.into()),
        in_scope: config.systemd_scope,
    }
}

/// Waits for tasks that have been told to end, and then for the spans that they left.
async fn wind_up(tasks: &TaskTracker, spans: Option<Arc<Exporter>>) {
    tasks.close();
    if tokio::time::timeout(STOP_DEADLINE, tasks.wait()).await.is_err() {
        tracing::warn!(left = tasks.len(), deadline = ?STOP_DEADLINE, "tasks did not end in time");
    }
    if let Some(spans) = spans {
        spans.shut().await;
    }
}

/// How this node speaks with others; its certificates are kept fresh until `stop`.
fn security(config: &Config, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Security> {
    let identity = config.identity.as_deref();
    let security = Security::choose(identity, config.plaintext, &[config.listen], SystemTime::now())?;
    security.must_be(Role::Agent, Some(config.node.as_str()))?;
    if let Security::Mutual(credentials) = &security {
        tasks.spawn(credentials.clone().keep_fresh(stop.clone()));
    }
    Ok(security)
}

/// Serves metrics and health until `stop`, if they are wanted.
async fn serve_metrics(config: &Config, tasks: &TaskTracker, stop: &CancellationToken) -> Result<Health> {
    let health = Health::default();
    if let Some(address) = config.metrics {
        let served = medes_metrics::serve(Of::Agent, (address, &health), tasks, stop.clone()).await;
        let address = served.context("serve metrics")?;
        tracing::info!(%address, "metrics are served");
    }
    Ok(health)
}

/// Serves other nodes and the controller until `stop`.
async fn serve(service: NodeService, (listener, security): (TcpListener, Security), stop: CancellationToken) {
    let service = NodeServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let incoming = security.incoming(listener, Service::Node);
    let server = Server::builder().layer(Guard).add_service(service);
    let serving = server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    if let Err(error) = serving.await {
        tracing::error!(error = &error as &dyn std::error::Error, "the Node service ended");
    }
}

/// Who works, by the best way there is.
fn watch(config: &Config, lacks: &mut Vec<String>) -> Watch {
    let diagnostics = if config.watch_log { Diagnostics::On } else { Diagnostics::Off };
    let (watch, no_ebpf) = Watch::start(Options { diagnostics, ..Options::default() });
    lacks.extend(no_ebpf.map(|error| format!("eBPF, so sandboxes are watched by procfs: {}", chain(&error))));
    tracing::info!(sight = %watch.sight(), "watching sandboxes");
    watch
}

/// What is written, by the best way there is.
fn tracking(config: &Config, (host, reaper): (&Host, &Reaper), lacks: &mut Vec<String>) -> Option<Tracking> {
    if !config.track_writes {
        return None;
    }
    let Some(way) = Way::find() else {
        lacks.push("write protection and soft-dirty bits, so no page is known to be hot".into());
        return None;
    };
    if way != Way::Protection {
        lacks.push(format!("asynchronous write protection, so writes are tracked by {way}"));
    }
    let program = host.program().to_owned();
    Some(Tracking { reaper: reaper.clone(), program, settings: config.heat(), way })
}

/// What base pages are read from: this node, and others.
fn bases(config: &Config, security: &Security) -> Bases {
    let bases = Bases::new(config.node.clone(), READ_DEADLINE, config.budgets()).secured(security.clone());
    if config.rdma.check(security).is_ok() { bases.by_rdma() } else { bases }
}

/// Starts the service that other nodes read this one's base pages by.
async fn serve_pages(
    config: &Config,
    bases: &Bases,
    (tasks, stop): (&TaskTracker, &CancellationToken),
    security: Security,
) -> Result<PageAccess> {
    let rdma = config.rdma.check(&security);
    let listen = SocketAddr::new(config.listen.ip(), config.pages_port);
    let started =
        PageServer::start_secured(bases.local.clone(), (listen, security), tasks, stop.clone()).await;
    let access = started.with_context(|| format!("listen on {listen} for readers of pages"))?.access();
    let listen = config.rdma_listen.unwrap_or_else(|| SocketAddr::new(config.listen.ip(), 0));
    match rdma.and_then(|()| rdma::listen(listen, access.token, tasks, stop.clone())) {
        Ok((exposer, address)) => {
            bases.local.expose_by(exposer);
            tracing::info!(%address, "base pages are read by RDMA too");
            Ok(PageAccess { rdma: Some(address), ..access })
        }
        Err(reason) => {
            tracing::info!(reason = chain(&reason), "base pages are read over TCP only");
            Ok(access)
        }
    }
}

fn channel(controller: &str, security: &Security) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{controller}"))
        .with_context(|| format!("understand the controller's address {controller:?}"))?;
    let endpoint =
        endpoint.connect_timeout(Duration::from_secs(5)).http2_keep_alive_interval(Duration::from_secs(5));
    Ok(security.channel_lazy(&endpoint, Service::Control, None))
}

/// What tests ask for; told loudly, since it must be nobody else.
fn faults(config: &Config) -> Faults {
    if config.fault.is_some() || config.fault_file.is_some() {
        tracing::warn!("started for tests: this node fails when it is told to");
    }
    Faults::new(config.fault, config.fault_times).told_by(config.fault_file.clone())
}

/// Starts what parks sandboxes.
fn pager(host: &Host, reaper: &Reaper) -> io::Result<Pager> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = processors.clamp(*PAGER_THREADS.start(), *PAGER_THREADS.end());
    Pager::start(threads, host.guard(), (reaper.clone(), host.program().to_owned()))
}

/// Finds and tries CRIU, and starts the workers that wait for restores.
async fn roads(
    config: &Config,
    (host, reaper, pager): (&Host, &Reaper, Option<&Pager>),
    tasks: &TaskTracker,
    stop: &CancellationToken,
    (bases, faults): (&Arc<Bases>, Arc<Faults>),
    channel: Channel,
) -> Result<Roads> {
    let criu = Criu::find(config.criu.as_deref())?;
    criu.check(reaper, host.run_dir()).await?;
    let workers = config.restore_workers.get();
    let pool = Pool::start(criu.clone(), reaper.clone(), workers, tasks, stop.clone(), sandbox::seat);
    let registry = Registry::new(channel, READ_DEADLINE);
    let mut roads = Roads::new((criu, pool), reaper.clone(), bases.clone(), registry, faults);
    (roads.hot_pages, roads.earlier) = (config.hot_pages, Room::new(config.earlier_memory.0));
    roads.bring_back(config.restore, pager);
    Ok(roads)
}

/// Cancels `stop` at the first signal, or when the keeper dies: without one, a killed agent would leave
/// sandboxes behind.
async fn until_told(host: Host, stop: CancellationToken) {
    let (terminate, interrupt) = match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(terminate), Ok(interrupt)) => (terminate, interrupt),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "cannot listen for signals");
            return stop.cancel();
        }
    };
    let (mut terminate, mut interrupt) = (terminate, interrupt);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = interrupt.recv() => {
            tracing::info!("interrupted: there is to be no next agent");
            host.leave_nothing();
        }
        status = host.keeper_died() => tracing::error!(%status, "the keeper died; shutting down in order"),
        () = stop.cancelled() => {}
    }
    stop.cancel();
}

/// Tells one life of this agent from another.
fn incarnation() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library's hasher is seeded by the operating system's random source.
    RandomState::new().hash_one(std::process::id()) | 1
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Where this program writes: standard error, filtered by `MEDES_LOG` (default: info).
pub fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MEDES_LOG")
        .unwrap_or_else(|_unset_or_wrong| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
}
