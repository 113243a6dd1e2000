//! The Registry service: batches over a stream, a bounded number of them under way.

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream};
use medes_proto::{
    failure::FailureKind,
    ids::SnapshotId,
    limits::IMAGE_BASES_MAX,
    registry::{Acquire, LookupBatch, LookupReply, RegisterBatch},
    wire::{self, registry_server::Registry as RegistryRpc},
};
use metrics::counter;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    places::Places,
    registry::{Registered, Registry},
    shell::Handle,
};

/// Batches of one stream that are being worked on at a time; later ones wait on the wire.
const BATCHES_MAX: usize = 4;
/// Batches of all streams worked on at a time: they take processor time, and more at once would not end sooner.
const WORKERS_MAX: usize = 32;

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct RegistryService {
    registry: Arc<dyn Registry>,
    places: Arc<Places>,
    driver: Handle,
    workers: Arc<Semaphore>,
}

impl RegistryService {
    pub(crate) fn new(registry: Arc<dyn Registry>, places: Arc<Places>, driver: Handle) -> Self {
        Self { registry, places, driver, workers: Arc::new(Semaphore::new(WORKERS_MAX)) }
    }

    /// Runs registry work on a thread where it may block.
    async fn work<T: Send + 'static>(
        self,
        work: impl FnOnce(&dyn Registry, &Places) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let stopping = |_closed| Status::unavailable("the controller is stopping");
        let permit = Arc::clone(&self.workers).acquire_owned().await.map_err(stopping)?;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&*self.registry, &self.places)
        });
        done.await.map_err(|error| Status::internal(error.to_string()))
    }

    async fn lookup_batch(self, raw: Result<wire::LookupBatch, Status>) -> Result<wire::LookupReply, Status> {
        let LookupBatch { sandbox: _, fingerprints } = raw?.try_into()?;
        counter!("medes_registry_pages_looked_up_total").increment(fingerprints.len() as u64);
        self.work(move |registry, places| {
            let hints = registry.lookup(&fingerprints, &|snapshot| places.is_placed(snapshot));
            let named: BTreeSet<SnapshotId> = hints.iter().flatten().map(|hint| hint.base.snapshot).collect();
            LookupReply { hints, places: places.of(named) }.into()
        })
        .await
    }

    async fn register_batch(self, raw: wire::RegisterBatch) -> Result<Registered, Status> {
        let RegisterBatch { snapshot, first_page, fingerprints } = raw.try_into()?;
        if !self.places.is_expected(snapshot) {
            return Err(Status::not_found(format!("{snapshot} is not known to the controller")));
        }
        let places = Arc::clone(&self.places);
        let registry = Arc::clone(&self.registry);
        let result =
            self.work(move |registry, _| registry.register(snapshot, first_page, &fingerprints)).await?;
        if !places.is_expected(snapshot) {
            // Forgotten while this was under way: nobody else would remove what was added after that.
            registry.forget(snapshot);
            return Err(Status::not_found(format!("{snapshot} was dropped")));
        }
        counter!("medes_registry_entries_added_total").increment(result.added);
        counter!("medes_registry_entries_refused_total").increment(result.refused);
        Ok(result)
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<wire::LookupReply, Status>> + Send>>;

#[tonic::async_trait]
impl RegistryRpc for RegistryService {
    type LookupStream = Replies;

    async fn lookup(
        &self,
        request: Request<Streaming<wire::LookupBatch>>,
    ) -> Result<Response<Replies>, Status> {
        let service = self.clone();
        let replies = request
            .into_inner()
            .map(move |batch| service.clone().lookup_batch(batch))
            // In order, as the wire promises.
            .buffered(BATCHES_MAX);
        // The first error ends the stream: the batches after it could not be told apart.
        let until_error = replies.scan(false, |failed, reply| {
            let end = std::mem::replace(failed, reply.is_err());
            std::future::ready((!end).then_some(reply))
        });
        Ok(Response::new(Box::pin(until_error)))
    }

    async fn register(
        &self,
        request: Request<Streaming<wire::RegisterBatch>>,
    ) -> Result<Response<wire::RegisterReply>, Status> {
        let service = self.clone();
        let results = request.into_inner().map(move |batch| {
            let service = service.clone();
            async move { service.register_batch(batch?).await }
        });
        let total = results.buffered(BATCHES_MAX);
        let total = stream::StreamExt::fold(total, Ok(Registered::default()), |total, batch| {
            let total: Result<Registered, Status> = total.and_then(|total| {
                let batch = batch?;
                Ok(Registered { added: total.added + batch.added, refused: total.refused + batch.refused })
            });
            std::future::ready(total)
        });
        let Registered { added, refused } = total.await?;
        Ok(Response::new(wire::RegisterReply { entries_added: added, entries_refused: refused }))
    }

    async fn locate(
        &self,
        request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateReply>, Status> {
        let wire::LocateRequest { snapshots } = request.into_inner();
        if snapshots.len() > IMAGE_BASES_MAX {
            return Err(Status::invalid_argument("more snapshots than an image can refer to"));
        }
        let holders = self.places.holders_of(snapshots.into_iter().filter_map(SnapshotId::new));
        Ok(Response::new(wire::LocateReply { places: holders.into_iter().map(Into::into).collect() }))
    }

    async fn acquire(
        &self,
        request: Request<wire::AcquireRequest>,
    ) -> Result<Response<wire::AcquireReply>, Status> {
        let acquire = Acquire::try_from(request.into_inner())?;
        match self.driver.acquire(acquire).await? {
            Ok(_) => Ok(Response::new(wire::AcquireReply {})),
            Err(failure) if failure.kind == FailureKind::NotFound => Err(Status::not_found(failure.message)),
            Err(failure) => Err(Status::internal(failure.message)),
        }
    }
}
