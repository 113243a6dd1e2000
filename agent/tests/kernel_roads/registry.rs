//! A registry in memory, behind the real service: enough to find base pages by their chunks.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::{Stream, StreamExt};
use medes_dedup::page::{BasePage, PageIndex, SnapshotId};
use medes_proto::{
    ids::NodeId,
    registry::{Hint, LookupBatch, LookupReply, RegisterBatch, SnapshotPlace},
    wire::{
        self, AcquireReply, AcquireRequest, RegisterReply,
        registry_server::{Registry, RegistryServer},
    },
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

#[derive(Debug, Default)]
struct Shared {
    chunks: Mutex<BTreeMap<u64, Vec<BasePage>>>,
    places: Mutex<BTreeMap<SnapshotId, SnapshotPlace>>,
    others: Mutex<Vec<SnapshotPlace>>,
    refuses: AtomicBool,
}

/// Serves lookups of what was registered. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct TestRegistry {
    shared: Arc<Shared>,
    holder: NodeId,
}

impl TestRegistry {
    /// Starts one whose snapshots all lie on `holder`, and connects to it.
    pub(crate) async fn start(holder: &NodeId) -> (Self, Channel) {
        let registry = Self { shared: Arc::default(), holder: holder.clone() };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let address = listener.local_addr().expect("address");
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(RegistryServer::new(registry.clone()));
        tokio_util::task::TaskTracker::new().spawn(server.serve_with_incoming(incoming));
        let channel = Channel::from_shared(format!("http://{address}")).expect("address").connect_lazy();
        (registry, channel)
    }
}

impl TestRegistry {
    /// The next time somebody acquires a base, it is on its way out.
    pub(crate) fn refuse_once(&self) {
        self.shared.refuses.store(true, Ordering::SeqCst);
    }

    /// Whether a part of these bytes is among what it was ever told of pages.
    pub(crate) fn shows(&self, bytes: &[u8]) -> bool {
        let chunks = self.shared.chunks.lock().expect("lock");
        let mut parts = bytes.windows(8).filter_map(|part| part.try_into().ok());
        parts.any(|part| {
            [u64::from_le_bytes(part), u64::from_be_bytes(part)].iter().any(|one| chunks.contains_key(one))
        })
    }

    /// From now on it says that a snapshot is there.
    pub(crate) fn place(&self, place: SnapshotPlace) {
        self.shared.places.lock().expect("lock").insert(place.snapshot, place);
    }

    /// Says that somebody else holds it, too, to who asks for that.
    pub(crate) fn also(&self, place: SnapshotPlace) {
        self.shared.others.lock().expect("lock").push(place);
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<wire::LookupReply, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for TestRegistry {
    type LookupStream = Replies;

    async fn lookup(
        &self,
        request: Request<Streaming<wire::LookupBatch>>,
    ) -> Result<Response<Replies>, Status> {
        let shared = self.shared.clone();
        let answer = move |batch: Result<wire::LookupBatch, Status>| {
            let batch = LookupBatch::try_from(batch?)?;
            let chunks = shared.chunks.lock().expect("lock");
            let hints = batch.fingerprints.iter().map(|hashes| {
                let mut votes: BTreeMap<BasePage, u8> = BTreeMap::new();
                for base in hashes.iter().filter_map(|hash| chunks.get(hash)).flatten() {
                    *votes.entry(*base).or_default() += 1;
                }
                let mut hints: Vec<Hint> =
                    votes.into_iter().map(|(base, votes)| Hint { base, votes }).collect();
                hints.sort_by_key(|hint| std::cmp::Reverse(hint.votes));
                hints.truncate(4);
                hints
            });
            let hints = hints.collect();
            let places = shared.places.lock().expect("lock").values().cloned().collect();
            Ok(LookupReply { hints, places }.into())
        };
        Ok(Response::new(Box::pin(request.into_inner().map(answer))))
    }

    async fn register(
        &self,
        request: Request<Streaming<wire::RegisterBatch>>,
    ) -> Result<Response<RegisterReply>, Status> {
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            let batch = RegisterBatch::try_from(batch)?;
            let place =
                SnapshotPlace { snapshot: batch.snapshot, node: self.holder.clone(), address: String::new() };
            self.shared.places.lock().expect("lock").insert(batch.snapshot, place);
            let mut chunks = self.shared.chunks.lock().expect("lock");
            for (page, hashes) in (batch.first_page.0..).zip(batch.fingerprints.iter()) {
                for hash in hashes {
                    let base = BasePage { snapshot: batch.snapshot, page: PageIndex(page) };
                    chunks.entry(*hash).or_default().push(base);
                }
            }
        }
        Ok(Response::new(RegisterReply::default()))
    }

    async fn locate(
        &self,
        _request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateReply>, Status> {
        let others = self.shared.others.lock().expect("lock").clone();
        Ok(Response::new(wire::LocateReply { places: others.into_iter().map(Into::into).collect() }))
    }

    async fn acquire(&self, _: Request<AcquireRequest>) -> Result<Response<AcquireReply>, Status> {
        match self.shared.refuses.swap(false, Ordering::SeqCst) {
            true => Err(Status::not_found("a test wanted it gone")),
            false => Ok(Response::new(AcquireReply {})),
        }
    }
}
