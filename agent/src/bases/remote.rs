//! Other nodes: their Node service says what a snapshot is and how its pages are read, and then they are read that way.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use medes_dedup::page::{BasePage, Page, SnapshotId};
use medes_identity::{access::Service, security::Security};
use medes_proto::{
    WireError,
    ids::NodeId,
    layout::SnapshotLayout,
    limits::MESSAGE_BYTES_MAX,
    moving::{ImageRequest, OfferedSandbox},
    node::PageAccess,
    wire::{self, GiveUpReply, ImagePart, PageAccessRequest, ReadLayoutRequest, node_client::NodeClient},
};
use tokio_util::task::TaskTracker;
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    base_pages::{BasePages, ReadPagesError},
    onesided::{OneSidedPages, Timing},
    rdma,
    tcp::{Buffers, TcpPages},
};

/// Another node did not deliver its pages.
#[derive(Debug, thiserror::Error)]
pub enum ReadRemoteError {
    /// The address we were given is not one.
    #[error("{address:?} is not an address")]
    Address {
        /// The text.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The node refused, broke off or is not there.
    #[error("ask {address}")]
    Call {
        /// Where.
        address: String,
        /// What it said.
        #[source]
        source: Box<tonic::Status>,
    },
    /// Its host has no address.
    #[error("look {address} up")]
    Resolve {
        /// What was looked up.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Its pages did not come.
    #[error("read pages that {address} holds")]
    Pages {
        /// Where.
        address: String,
        /// Why not.
        #[source]
        source: ReadPagesError,
    },
    /// What it says makes no sense.
    #[error("understand what {address} says")]
    Answer {
        /// Where.
        address: String,
        /// What is wrong.
        #[source]
        source: WireError,
    },
    /// It took too long.
    #[error("{address} took longer than {deadline:?}")]
    Deadline {
        /// Where.
        address: String,
        /// How long it had.
        deadline: Duration,
    },
}

/// A node that holds snapshots: its name, which its certificate must have, and host:port of its Node service.
pub type Holder<'a> = (&'a NodeId, &'a str);

/// Other nodes, each met when first needed.
#[derive(Debug)]
pub struct Peers {
    deadline: Duration,
    security: Security,
    by_rdma: bool,
    peers: Mutex<BTreeMap<(NodeId, String), Arc<Peer>>>,
    buffers: Arc<Buffers>,
    tasks: TaskTracker,
}

/// More peers than this and the least useful thing to do is to remember them all.
const PEERS_MAX: usize = 256;
/// The part of a read's deadline after which one answer that has not come will not come. The rest is for another try.
const PATIENCE_PART: u32 = 4;
/// How long to wait before a node is asked again to give a sandbox up, when nobody knows whether it has heard.
const GIVE_UP_PAUSES: [Duration; 3] =
    [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// One other node.
#[derive(Debug)]
struct Peer {
    node: NodeId,
    address: String,
    channel: Channel,
    /// How its pages are read, once it has said so.
    pages: tokio::sync::Mutex<Option<Arc<dyn BasePages>>>,
}

impl Peers {
    /// No read takes longer than `deadline`.
    pub fn new(deadline: Duration) -> Self {
        let (buffers, tasks) = (Arc::default(), TaskTracker::new());
        let (security, by_rdma) = (Security::Plaintext, false);
        Self { deadline, security, by_rdma, peers: Mutex::default(), buffers, tasks }
    }

    /// The same, for a node whose peers know it by a certificate.
    #[must_use]
    pub fn secured(self, security: Security) -> Self {
        Self { security, ..self }
    }

    /// The same, for a node that reads by RDMA what others let it read that way.
    #[must_use]
    pub fn by_rdma(self) -> Self {
        Self { by_rdma: true, ..self }
    }

    /// Reads page `wanted[i]`, which that node holds, into `into[i]`. On an error, what is in `into` means nothing.
    pub async fn read(
        &self,
        holder: Holder<'_>,
        wanted: &[BasePage],
        into: &mut [Page],
    ) -> Result<(), ReadRemoteError> {
        let (_, address) = holder;
        let read = async {
            let peer = self.peer(holder)?;
            let failed = |source| ReadRemoteError::Pages { address: address.into(), source };
            let pages = self.pages(&peer).await?;
            match pages.read(wanted, into).await {
                Ok(()) => Ok(()),
                Err(error) if error.is_final() => Err(failed(error)),
                Err(error) => {
                    // It may have started again since, and be somewhere else.
                    tracing::debug!(address, error = &error as &dyn std::error::Error, "ask a node again");
                    peer.forget(&pages).await;
                    self.pages(&peer).await?.read(wanted, into).await.map_err(failed)
                }
            }
        };
        tokio::time::timeout(self.deadline, read).await.unwrap_or_else(|_elapsed| {
            Err(ReadRemoteError::Deadline { address: address.into(), deadline: self.deadline })
        })
    }

    /// What a node says of a snapshot it holds.
    pub async fn layout(
        &self,
        holder: Holder<'_>,
        snapshot: SnapshotId,
    ) -> Result<SnapshotLayout, ReadRemoteError> {
        let snapshot = snapshot.get();
        let ask = |mut client: NodeClient<Channel>| async move {
            client.read_layout(ReadLayoutRequest { snapshot }).await
        };
        let reply = self.call(holder, ask).await?;
        SnapshotLayout::try_from(reply)
            .map_err(|source| ReadRemoteError::Answer { address: holder.1.into(), source })
    }

    /// A sandbox that a node offers to this one: what it is, then its bytes.
    pub async fn read_image(
        &self,
        holder: Holder<'_>,
        request: ImageRequest,
    ) -> Result<Streaming<ImagePart>, ReadRemoteError> {
        let request = wire::ReadImageRequest::from(request);
        let ask = |mut client: NodeClient<Channel>| {
            let request = request.clone();
            async move { client.read_image(request).await }
        };
        self.call(holder, ask).await
    }

    /// Has a node give a sandbox up that it offers to this one. Asked again if no answer comes: it may have done so.
    pub async fn give_up(&self, holder: Holder<'_>, offered: OfferedSandbox) -> Result<(), ReadRemoteError> {
        let offered = wire::OfferedSandbox::from(offered);
        let ask = |mut client: NodeClient<Channel>| {
            let offered = offered.clone();
            async move { client.give_up(offered).await }
        };
        let mut asked = self.call(holder, ask).await;
        for pause in GIVE_UP_PAUSES {
            match &asked {
                Err(ReadRemoteError::Call { source, .. }) if has_said(source) => break,
                Err(_no_answer) => tokio::time::sleep(pause).await,
                Ok(_) => break,
            }
            asked = self.call(holder, ask).await;
        }
        asked.map(|GiveUpReply {}| ())
    }

    /// One question to a node, and its answer.
    async fn call<T, F>(
        &self,
        holder: Holder<'_>,
        ask: impl Fn(NodeClient<Channel>) -> F,
    ) -> Result<T, ReadRemoteError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let address = || holder.1.to_owned();
        let peer = self.peer(holder)?;
        match tokio::time::timeout(self.deadline, peer.call(ask)).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(source)) => Err(ReadRemoteError::Call { address: address(), source: Box::new(source) }),
            Err(_elapsed) => Err(ReadRemoteError::Deadline { address: address(), deadline: self.deadline }),
        }
    }

    /// The way to a node's pages, which it is asked for the first time.
    async fn pages(&self, peer: &Peer) -> Result<Arc<dyn BasePages>, ReadRemoteError> {
        let mut pages = peer.pages.lock().await;
        if let Some(pages) = pages.as_ref() {
            return Ok(pages.clone());
        }
        let (place, access) = peer.access().await?;
        let patience = self.deadline / PATIENCE_PART;
        let tcp = TcpPages::new((place, access.token), patience, self.buffers.clone(), self.tasks.clone());
        let tcp = tcp.secured(self.security.clone(), &peer.node);
        Ok(pages.insert(self.best_way(tcp, place, access)).clone())
    }

    /// RDMA, if both sides can, with TCP behind it; else TCP.
    fn best_way(&self, tcp: TcpPages, place: SocketAddr, access: PageAccess) -> Arc<dyn BasePages> {
        let Some(mut rdma) = access.rdma.filter(|_| self.by_rdma) else { return Arc::new(tcp) };
        if rdma.ip().is_unspecified() {
            rdma.set_ip(place.ip());
        }
        match rdma::dial(rdma, access.token, &self.tasks) {
            Ok(dial) => {
                tracing::debug!(%place, %rdma, "pages of a node are read by RDMA");
                Arc::new(OneSidedPages::new(tcp, dial, Timing::DEFAULT, self.tasks.clone()))
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::info!(%place, error, "pages of a node are read over TCP");
                Arc::new(tcp)
            }
        }
    }

    fn peer(&self, (node, address): Holder<'_>) -> Result<Arc<Peer>, ReadRemoteError> {
        let key = (node.clone(), address.to_owned());
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&key) {
            return Ok(peer.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| ReadRemoteError::Address { address: address.into(), source })?
            .connect_timeout(self.deadline / PATIENCE_PART);
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        let channel = self.security.channel_lazy(&endpoint, Service::Node, Some(node.into()));
        let (node, address) = key.clone();
        let peer = Arc::new(Peer { node, address, channel, pages: tokio::sync::Mutex::default() });
        peers.insert(key, peer.clone());
        Ok(peer)
    }
}

impl Peer {
    /// Asks it something that does no harm when it is asked twice: if the connection turns out to be broken, it is asked once more on a new one.
    /// While nothing is said on a connection, nobody notices that.
    async fn call<T, F>(&self, ask: impl Fn(NodeClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client = || NodeClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let reply = match ask(client()).await {
            Err(status) if is_broken(&status) => ask(client()).await,
            reply => reply,
        };
        reply.map(Response::into_inner)
    }

    /// Asks how its pages are read.
    async fn access(&self) -> Result<(SocketAddr, PageAccess), ReadRemoteError> {
        let address = || self.address.clone();
        let ask =
            |mut client: NodeClient<Channel>| async move { client.page_access(PageAccessRequest {}).await };
        let reply = self.call(ask).await;
        let reply =
            reply.map_err(|source| ReadRemoteError::Call { address: address(), source: Box::new(source) })?;
        let access = PageAccess::try_from(reply);
        let access = access.map_err(|source| ReadRemoteError::Answer { address: address(), source })?;
        let resolve = |source| ReadRemoteError::Resolve { address: address(), source };
        let mut places = tokio::net::lookup_host(&self.address).await.map_err(resolve)?;
        let mut place = places.next().ok_or_else(|| resolve(io::ErrorKind::NotFound.into()))?;
        place.set_port(access.port.get());
        Ok((place, access))
    }

    async fn forget(&self, broken: &Arc<dyn BasePages>) {
        let mut pages = self.pages.lock().await;
        if pages.as_ref().is_some_and(|pages| Arc::ptr_eq(pages, broken)) {
            *pages = None;
        }
    }
}

/// Whether a connection broke while it was open. Whatever code such an error has, its cause is the transport's; where no connection came about at
/// all the code says so.
fn is_broken(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::transport::Error>() {
            return status.code() != Code::Unavailable;
        }
        cause = error.source();
    }
    false
}

/// Whether this is an answer of the node, and not one that did not come.
fn has_said(status: &Status) -> bool {
    status.code() != Code::Unavailable && !is_broken(status)
}
