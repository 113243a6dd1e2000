//! This node's questions to the controller's fingerprint registry.

use std::{collections::BTreeMap, time::Duration};

use futures::stream;
use medes_dedup::{
    fingerprint::Fingerprint,
    page::{PageIndex, SnapshotId},
};
use medes_proto::{
    WireError,
    ids::SandboxId,
    limits::{BATCH_PAGES_MAX, MESSAGE_BYTES_MAX},
    registry::{Fingerprints, Hint, LookupBatch, LookupReply, RegisterBatch, SnapshotPlace},
    wire::{self, registry_client::RegistryClient},
};
use tonic::transport::Channel;

/// The registry did not answer, or not as it should.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The call failed.
    #[error("{doing} the registry")]
    Call {
        /// What we asked of it.
        doing: &'static str,
        /// What it said.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The answer does not make sense.
    #[error("read the registry's answer")]
    Answer(#[from] WireError),
    /// The stream of answers ended before all pages had one.
    #[error("the registry answered for {answered} of {pages} pages")]
    Short {
        /// Pages it answered for.
        answered: usize,
        /// Pages it was asked about.
        pages: usize,
    },
    /// It took too long.
    #[error("the registry took longer than {0:?}")]
    Deadline(Duration),
}

/// What the registry knows about the pages of one sandbox.
#[derive(Debug, Default)]
pub struct Hints {
    /// For each page asked about, in order.
    pub pages: Vec<Vec<Hint>>,
    /// Where the snapshots named are.
    pub places: BTreeMap<SnapshotId, SnapshotPlace>,
}

/// A connection to the registry. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    client: RegistryClient<Channel>,
    deadline: Duration,
}

impl Registry {
    /// Over a channel to the controller; no call takes longer than `deadline`.
    pub fn new(channel: Channel, deadline: Duration) -> Self {
        let client = RegistryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        Self { client, deadline }
    }

    /// Asks for candidates for every page of a sandbox. Cancel-safe.
    pub async fn lookup(&self, sandbox: SandboxId, pages: &[Fingerprint]) -> Result<Hints, RegistryError> {
        let batches: Vec<wire::LookupBatch> = pages
            .chunks(BATCH_PAGES_MAX)
            .map(|pages| LookupBatch { sandbox, fingerprints: flatten(pages) }.into())
            .collect();
        let mut client = self.client.clone();
        let ask = async {
            let call = |source| RegistryError::Call { doing: "ask", source: Box::new(source) };
            let mut replies = client.lookup(stream::iter(batches)).await.map_err(call)?.into_inner();
            let mut hints = Hints { pages: Vec::with_capacity(pages.len()), places: BTreeMap::new() };
            while let Some(reply) = replies.message().await.map_err(call)? {
                let LookupReply { hints: more, places } = reply.try_into()?;
                hints.pages.extend(more);
                hints.places.extend(places.into_iter().map(|place| (place.snapshot, place)));
            }
            match hints.pages.len() {
                answered if answered == pages.len() => Ok(hints),
                answered => Err(RegistryError::Short { answered, pages: pages.len() }),
            }
        };
        tokio::time::timeout(self.deadline, ask).await.unwrap_or(Err(RegistryError::Deadline(self.deadline)))
    }

    /// Tells the registry the fingerprints of a new base snapshot. Cancel-safe, but may then be half done: drop
    /// the snapshot.
    pub async fn register(&self, snapshot: SnapshotId, pages: &[Fingerprint]) -> Result<(), RegistryError> {
        let batches: Vec<wire::RegisterBatch> = pages
            .chunks(BATCH_PAGES_MAX)
            .zip((0..).step_by(BATCH_PAGES_MAX))
            .map(|(pages, first)| {
                let first_page = PageIndex(first);
                RegisterBatch { snapshot, first_page, fingerprints: flatten(pages) }.into()
            })
            .collect();
        let mut client = self.client.clone();
        self.bounded("register with", client.register(stream::iter(batches))).await.map(drop)
    }

    /// Makes sure that none of these snapshots is dropped while the sandbox's dedup image refers to them.
    pub async fn acquire(&self, sandbox: SandboxId, snapshots: &[SnapshotId]) -> Result<(), RegistryError> {
        let snapshots = snapshots.iter().map(|id| id.get()).collect();
        let request = wire::AcquireRequest { sandbox: sandbox.get(), snapshots };
        let mut client = self.client.clone();
        self.bounded("acquire from", client.acquire(request)).await.map(drop)
    }

    /// Every node that holds one of these, as far as the controller knows. Cancel-safe.
    pub async fn locate(&self, snapshots: &[SnapshotId]) -> Result<Vec<SnapshotPlace>, RegistryError> {
        let snapshots = snapshots.iter().map(|id| id.get()).collect();
        let mut client = self.client.clone();
        let reply = self.bounded("ask", client.locate(wire::LocateRequest { snapshots })).await?;
        Ok(reply.places.into_iter().map(SnapshotPlace::try_from).collect::<Result<_, _>>()?)
    }

    async fn bounded<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, RegistryError> {
        match tokio::time::timeout(self.deadline, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(source)) => Err(RegistryError::Call { doing, source: Box::new(source) }),
            Err(_elapsed) => Err(RegistryError::Deadline(self.deadline)),
        }
    }
}

fn flatten(pages: &[Fingerprint]) -> Fingerprints {
    let mut flat = Fingerprints::default();
    for page in pages {
        flat.push(page.hashes());
    }
    flat
}
