//! Base pages, wherever they are: this node's own snapshots, or another node's over its Node service.
//!
//! The roads ask for many pages at once ([`Bases::read`]); each is read once, however many pages need it. To align a
//! sandbox with a base, all of the base must be here ([`Bases::whole`]).

pub mod indexes;
pub mod local;
pub mod remote;
pub mod replicas;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use medes_dedup::{
    page::{BasePage, PAGE_BYTES, Page, SnapshotId},
    words::Facts,
};
use medes_proto::{
    ids::{NodeId, TenantName},
    registry::SnapshotPlace,
};

use self::{
    indexes::Indexes,
    local::{LocalBases, Snapshot},
    remote::{Peers, ReadRemoteError},
    replicas::{FetchError, Replicas},
};

/// Base pages that were read, by place.
#[derive(Debug, Default)]
pub struct BasePages {
    /// Snapshots that are here as a whole: nothing is copied.
    local: BTreeMap<SnapshotId, Arc<Snapshot>>,
    /// Where each remote page is in `bytes`, in pages.
    index: BTreeMap<BasePage, usize>,
    bytes: Vec<u8>,
}

impl BasePages {
    /// Adds a whole snapshot: all its pages, and what is known about it.
    pub fn hold(&mut self, whole: Arc<Snapshot>) {
        self.local.insert(whole.id, whole);
    }

    /// The bytes of a page, if it was asked for and is there.
    pub fn page(&self, place: BasePage) -> Option<&Page> {
        if let Some(snapshot) = self.local.get(&place.snapshot) {
            return snapshot.page(place.page);
        }
        let start = self.index.get(&place)? * PAGE_BYTES;
        self.bytes.get(start..start + PAGE_BYTES)?.try_into().ok()
    }
}

impl medes_dedup::rebuild::BasePages for BasePages {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.page(page)
    }

    fn facts(&self, snapshot: SnapshotId) -> Option<&Facts> {
        self.local.get(&snapshot).map(|whole| whole.facts())
    }
}

/// Base pages that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadBasesError {
    /// Neither here, nor does anybody know where.
    #[error("base snapshot {0} is nowhere known")]
    Unknown(SnapshotId),
    /// It was made on this node and is gone.
    #[error("base snapshot {0} is no longer on this node")]
    Gone(SnapshotId),
    /// Its node did not deliver.
    #[error("read {pages} pages of {snapshot} from {node}")]
    Remote {
        /// Of which snapshot.
        snapshot: SnapshotId,
        /// From which node.
        node: NodeId,
        /// How many pages were asked for.
        pages: usize,
        /// What happened.
        #[source]
        source: ReadRemoteError,
    },
}

/// How much memory this node gives to what only helps to store sandboxes smaller.
#[derive(Debug, Clone, Copy)]
pub struct Budgets {
    /// For whole snapshots of other nodes.
    pub replica_bytes: u64,
    /// For indexes of snapshots.
    pub index_bytes: usize,
}

impl Budgets {
    /// For a handful of functions at a time; what is let go of is fetched or made again.
    pub const DEFAULT: Self = Self { replica_bytes: 256 << 20, index_bytes: 128 << 20 };
}

/// All base pages this node can read.
#[derive(Debug)]
pub struct Bases {
    node: NodeId,
    /// Snapshots this node holds.
    pub local: LocalBases,
    /// Snapshots of other nodes, copied here.
    pub replicas: Replicas,
    /// What sandboxes are aligned by.
    pub indexes: Indexes,
    peers: Peers,
}

impl Bases {
    /// Bases as node `node` sees them. No read from another node takes longer than `deadline`.
    pub fn new(node: NodeId, deadline: Duration, budgets: Budgets) -> Self {
        let Budgets { replica_bytes, index_bytes } = budgets;
        let (replicas, indexes) = (Replicas::new(replica_bytes, deadline), Indexes::new(index_bytes));
        Self { node, local: LocalBases::default(), replicas, indexes, peers: Peers::new(deadline) }
    }

    /// The node itself.
    pub const fn node(&self) -> &NodeId {
        &self.node
    }

    /// All of a snapshot: as it lies here, or fetched from its node.
    ///
    /// Cancel-safe.
    pub async fn whole(
        &self,
        place: &SnapshotPlace,
        tenant: &TenantName,
    ) -> Result<Arc<Snapshot>, FetchError> {
        match self.local.get(place.snapshot) {
            Some(local) if local.tenant == *tenant => Ok(local),
            Some(local) => Err(FetchError::Tenant(local.id)),
            None if place.node == self.node => Err(FetchError::Gone(place.snapshot)),
            None => self.replicas.fetch(&self.peers, place, tenant).await,
        }
    }

    /// Forgets a snapshot of this node.
    pub fn remove(&self, snapshot: SnapshotId) {
        self.local.remove(snapshot);
        self.indexes.forget(snapshot);
    }

    /// Bytes of all snapshots held here, copies of other nodes' included.
    pub fn bytes(&self) -> u64 {
        self.local.bytes().saturating_add(self.replicas.bytes())
    }

    /// Reads pages; `wanted` is sorted and without repeats, `places` tells where each snapshot is.
    ///
    /// Cancel-safe: dropping it reads no further and leaves nothing behind.
    pub async fn read(
        &self,
        wanted: &[BasePage],
        places: &BTreeMap<SnapshotId, SnapshotPlace>,
    ) -> Result<BasePages, ReadBasesError> {
        let mut pages = BasePages::default();
        for run in wanted.chunk_by(|a, b| a.snapshot == b.snapshot) {
            let snapshot = run[0].snapshot;
            if let Some(whole) = self.local.get(snapshot).or_else(|| self.replicas.get(snapshot)) {
                pages.local.insert(snapshot, whole);
                continue;
            }
            let place = places.get(&snapshot).ok_or(ReadBasesError::Unknown(snapshot))?;
            if place.node == self.node {
                return Err(ReadBasesError::Gone(snapshot));
            }
            let first = pages.bytes.len() / PAGE_BYTES;
            self.peers.read(&place.address, snapshot, run, &mut pages.bytes).await.map_err(|source| {
                ReadBasesError::Remote { snapshot, node: place.node.clone(), pages: run.len(), source }
            })?;
            pages.index.extend(run.iter().enumerate().map(|(i, &page)| (page, first + i)));
        }
        Ok(pages)
    }
}
