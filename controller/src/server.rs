//! The whole controller in one process: opens the store, listens, runs until told to stop.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use medes_identity::{access::Service, guard::Guard, security::Security, web::WebCertificate};
use medes_proto::{
    limits,
    wire::{
        control_server::ControlServer, fleet_server::FleetServer, registry_server::RegistryServer,
        tenants_server::TenantsServer, tokens_server::TokensServer,
    },
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    agents::Agents,
    config::{Config, Document},
    control::ControlService,
    door::Door,
    driver::{Driver, Event, Settings},
    fleet::{FleetService, Greeting},
    gateway::{self, Gateway},
    invoke::Invoker,
    keyring::Keyring,
    now::Now,
    page::{Page, Sources},
    places::Places,
    registry::{Registry, Table},
    registry_service::RegistryService,
    shell::{self, Handle, Shell},
    spans::{self, StartSpansError},
    store::{OpenStoreError, Store},
    tenant_service::TenantService,
    token_service::TokenService,
    tokens::Tokens,
    trace::Hub,
    tuner::{Reloaded, TuneError, Tuner},
};

/// Where a controller keeps its store and listens.
#[derive(Debug, Clone)]
pub struct Place {
    /// Folder of the store.
    pub state_dir: PathBuf,
    /// For agents and tools (gRPC). Port 0: any.
    pub control: SocketAddr,
    /// For callers (HTTP). Port 0: any.
    pub gateway: SocketAddr,
    /// For people who operate the cluster (HTTP), if there is to be a page.
    pub page: Option<SocketAddr>,
    /// Collector of spans (OTLP over gRPC), if there is one.
    pub spans: Option<String>,
    /// How it speaks with agents and tools.
    pub security: Security,
    /// What callers of the gateway and people at the page are shown; `None`: they come over plain HTTP.
    pub web: Option<WebCertificate>,
}

impl Place {
    /// Whether callers are let through while there is no token: where everything is plain, or nobody from elsewhere
    /// comes to `gateway`.
    fn is_open(&self, gateway: SocketAddr) -> bool {
        matches!(self.security, Security::Plaintext) || gateway.ip().is_loopback()
    }
}

/// Listening sockets that somebody else has opened and keeps. None by default.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For agents and tools.
    pub control: Option<std::net::TcpListener>,
    /// For callers.
    pub gateway: Option<std::net::TcpListener>,
}

impl Sockets {
    /// Where others come in: at these sockets, and at the addresses where there is none.
    pub fn addresses(&self, control: SocketAddr, gateway: SocketAddr) -> [SocketAddr; 2] {
        [(&self.control, control), (&self.gateway, gateway)].map(|(socket, else_at)| {
            socket.as_ref().and_then(|socket| socket.local_addr().ok()).unwrap_or(else_at)
        })
    }
}

/// A controller that cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
    /// A port.
    #[error("listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The page, over HTTP without TLS.
    #[error(
        "the page can be at {0} with a certificate for people alone (--https), since the cluster uses certificates; without one, at an address of this machine"
    )]
    PageInTheOpen(SocketAddr),
    /// The export of spans.
    #[error(transparent)]
    Spans(#[from] StartSpansError),
}

/// A running controller. Dropping it does not stop it; [`Controller::stop`] does.
#[derive(Debug)]
pub struct Controller {
    /// Where agents and tools find it.
    pub control: SocketAddr,
    /// Where callers find it.
    pub gateway: SocketAddr,
    /// Where people find the page, if there is one.
    pub page: Option<SocketAddr>,
    driver: Handle,
    tuner: Tuner,
    grace: Duration,
    /// No more callers are let in: whoever comes waits at the door for the next controller.
    door: CancellationToken,
    /// Callers that are in are served and let go.
    callers: CancellationToken,
    /// No more connections; open streams to agents end.
    close: CancellationToken,
    /// The driver's shell ends.
    end: CancellationToken,
    /// Tasks that end with `close`: servers, streams, requests.
    tracker: TaskTracker,
    /// Tasks of the shell.
    shell_tracker: TaskTracker,
}

/// Left for streams to end after the grace.
const CLOSE_MAX: Duration = Duration::from_secs(2);
/// A caller that was let in last has said what it wants after this long, or does not hurry.
const LAST_IN: Duration = Duration::from_millis(100);
/// Between two looks at how many requests are still open while stopping.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

impl Controller {
    /// Opens the store, listens, and serves. When it returns, both ports are open.
    pub async fn start(place: Place, config: Config) -> Result<Self, StartError> {
        Self::start_at(place, config, Sockets::default()).await
    }

    /// The same, with sockets that somebody else has opened where there are some.
    pub async fn start_at(place: Place, config: Config, sockets: Sockets) -> Result<Self, StartError> {
        let opened = Store::open(&place.state_dir)?;
        let (control_listener, control) = listen(place.control, sockets.control).await?;
        let (gateway_listener, gateway) = listen(place.gateway, sockets.gateway).await?;
        let people = listen_for_people(&place).await?;

        let [tracker, shell_tracker] = std::array::from_fn(|_| TaskTracker::new());
        let [close, end, door, callers] = std::array::from_fn(|_| CancellationToken::new());
        let settle = if opened.incarnation == 1 { Duration::ZERO } else { config.driver.settle };
        let (store, incarnation) = (Arc::new(opened.store), opened.incarnation);
        let settings = Settings { incarnation, settle, ..config.driver };
        let driver = Driver::new(Now::START, settings, config.policy.build(), opened.functions)
            .with_standings(opened.standings);
        let registry: Arc<dyn Registry> = Arc::new(Table::new(config.registry));
        let (places, hub) = (Arc::new(Places::default()), Arc::new(Hub::default()));
        let driver = shell::start(Shell {
            driver,
            registry: Arc::clone(&registry),
            places: Arc::clone(&places),
            hub: Arc::clone(&hub),
            tracker: shell_tracker.clone(),
            stop: end.clone(),
        });
        if let Some(endpoint) = &place.spans {
            spans::export(endpoint, &hub, &tracker, close.clone())?;
        }
        let agents = Arc::new(Agents::new(place.security.clone()));
        let invoker =
            Arc::new(Invoker::new(driver.clone(), Arc::clone(&agents), config.requests, tracker.clone()));
        let keyring = Keyring::new(opened.keys, opened.domain_key);
        let greeting = greeting(incarnation, keyring, &config);
        let fleet = FleetService::new(driver.clone(), greeting.clone(), tracker.clone(), close.clone());
        let tokens = Arc::new(Tokens::new(place.is_open(gateway), opened.tokens));
        let token_service = TokenService::new(&tokens, &store);
        let tuner = Tuner::new(config.document, driver.clone());
        let service = ControlService {
            driver: driver.clone(),
            store,
            keyring: greeting.keyring,
            registry: Arc::clone(&registry),
            agents,
            invoker: Arc::clone(&invoker),
            changes: Arc::default(),
            tuner: tuner.clone(),
            hub,
            close: close.clone(),
        };
        let sources = Sources::of(&service, &tokens, &place.security);
        let page = people.map(|people| serve_people(people, sources, place.web.clone(), (&tracker, &close)));
        let lookups = RegistryService::new(registry, places, driver.clone());
        let services = (fleet, lookups, service, token_service);
        serve_grpc((control_listener, place.security), services, &tracker, close.clone());
        let gateway_door = Door::new(gateway_listener, door.clone());
        serve_callers(gateway_door, Gateway { invoker, tokens }, place.web, &tracker, (&callers, &close));
        tracing::info!(%control, %gateway, incarnation, "controller listens");
        Ok(Self {
            control,
            gateway,
            page,
            driver,
            tuner,
            grace: config.stop_grace,
            door,
            callers,
            close,
            end,
            tracker,
            shell_tracker,
        })
    }

    /// Takes over what may change of a configuration while the controller runs, from one that was read again. Nothing changes if any of it
    /// cannot be.
    pub async fn reload(&self, read: &Document) -> Result<Reloaded, TuneError> {
        self.tuner.reload(read).await
    }

    /// Asks what it lacks to serve callers, each time anew; nothing: it is ready. An answer says that its loop lives, too.
    pub fn lacks(&self) -> impl Fn() -> BoxFuture<'static, Vec<String>> + Send + Sync + use<> {
        let (driver, door) = (self.driver.clone(), self.door.clone());
        move || {
            let (driver, closed) = (driver.clone(), door.is_cancelled());
            Box::pin(async move {
                let settled = driver.look(|driver, now| driver.is_settled(now)).await;
                let mut lacks = Vec::new();
                if closed || settled.is_err() {
                    lacks.push("callers: it stops".to_owned());
                }
                if settled == Ok(false) {
                    lacks.push(
                        "agents: they have the time to connect that fleet.settle gives them".to_owned(),
                    );
                }
                lacks
            })
        }
    }

    /// Lets no more callers in, serves those that are in within the grace, closes everything.
    ///
    /// Where somebody else holds the gateway's socket, callers that come meanwhile wait for the next controller.
    /// Returns `false` when something still ran at the end of its time.
    pub async fn stop(self) -> bool {
        self.door.cancel();
        let drained = tokio::time::timeout(self.grace, async {
            // A caller that is let go before it has been heard would get no answer at all.
            tokio::time::sleep(LAST_IN).await;
            self.callers.cancel();
            while let Ok(1..) = self.driver.look(|driver, _| driver.open_requests()).await {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        });
        let drained = drained.await.is_ok();
        self.callers.cancel();
        drop(self.driver.tell(Event::Stop).await);
        self.close.cancel();
        self.tracker.close();
        // What is still open gets its 503 now: the shell lets go of every request.
        self.end.cancel();
        self.shell_tracker.close();
        let closed = async {
            self.shell_tracker.wait().await;
            self.tracker.wait().await;
        };
        tokio::time::timeout(CLOSE_MAX, closed).await.is_ok() && drained
    }
}

/// What every agent is told first.
fn greeting(incarnation: u32, keyring: Keyring, config: &Config) -> Greeting {
    Greeting {
        incarnation: u64::from(incarnation),
        heartbeat: config.heartbeat,
        engine: config.engine,
        keyring: Arc::new(keyring),
    }
}

/// A listener, and where it listens.
type Listening = (TcpListener, SocketAddr);

async fn listen(
    address: SocketAddr,
    inherited: Option<std::net::TcpListener>,
) -> Result<Listening, StartError> {
    let listener = match inherited {
        Some(socket) => socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket)),
        None => TcpListener::bind(address).await,
    };
    let listening = listener.and_then(|listener| listener.local_addr().map(|bound| (listener, bound)));
    listening.map_err(|source| StartError::Listen { address, source })
}

/// Where the page is, if there is one. With certificates, and none for people, it is for this machine alone: an operator's token would go
/// over the network in the clear.
async fn listen_for_people(place: &Place) -> Result<Option<Listening>, StartError> {
    let Some(asked) = place.page else { return Ok(None) };
    let is_open = matches!(place.security, Security::Mutual(_)) && place.web.is_none();
    if is_open && !asked.ip().is_loopback() {
        return Err(StartError::PageInTheOpen(asked));
    }
    listen(asked, None).await.map(Some)
}

fn serve_callers(
    door: Door,
    gateway: Gateway,
    web: Option<WebCertificate>,
    tracker: &TaskTracker,
    (callers, close): (&CancellationToken, &CancellationToken),
) {
    if let Some(web) = &web {
        tracker.spawn(web.clone().keep_fresh(close.clone()));
    }
    door.serve(("the gateway", gateway::router(gateway)), web, tracker, callers.clone());
}

fn serve_people(
    (listener, address): Listening,
    sources: Sources,
    web: Option<WebCertificate>,
    (tracker, close): (&TaskTracker, &CancellationToken),
) -> SocketAddr {
    let page = Page::new(sources);
    tracker.spawn(page.clone().watch(close.clone()));
    let door = Door::new(listener, CancellationToken::new());
    door.serve(("the page", page.router()), web, tracker, close.clone());
    address
}

fn serve_grpc(
    (listener, security): (TcpListener, Security),
    (fleet, lookups, control, tokens): (FleetService, RegistryService, ControlService, TokenService),
    tracker: &TaskTracker,
    close: CancellationToken,
) {
    let most = limits::MESSAGE_BYTES_MAX;
    let tenants = TenantService::beside(&control);
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .layer(Guard)
        .add_service(FleetServer::new(fleet).max_decoding_message_size(most).max_encoding_message_size(most))
        .add_service(
            RegistryServer::new(lookups).max_decoding_message_size(most).max_encoding_message_size(most),
        )
        .add_service(
            ControlServer::new(control).max_decoding_message_size(most).max_encoding_message_size(most),
        )
        .add_service(TenantsServer::new(tenants))
        .add_service(TokensServer::new(tokens));
    if let Security::Mutual(credentials) = &security {
        tracker.spawn(credentials.clone().keep_fresh(close.clone()));
    }
    tracker.spawn(async move {
        let streams = security.incoming(listener, Service::Control);
        if let Err(error) = router.serve_with_incoming_shutdown(streams, close.cancelled_owned()).await {
            tracing::error!(%error, "gRPC server ended");
        }
    });
}
