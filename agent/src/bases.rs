//! Base pages, wherever they are: this node's own snapshots, or another node's.
//!
//! The roads ask for many pages at once ([`Bases::read`]); each is read once, however many pages need it, and what other
//! nodes hold is asked of all of them at the same time. To align a sandbox with a base, all of the base must be here
//! ([`Bases::whole`]). [`BasePages`] is the one way pages are read; [`local`], [`tcp`] and [`onesided`] are what can be underneath.

pub mod base_pages;
pub mod cache;
pub mod frame;
pub mod indexes;
pub mod local;
pub mod onesided;
pub mod rdma;
pub mod remote;
pub mod replicas;
pub mod serve;
pub mod tcp;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::try_join_all;
use medes_dedup::{
    page::{BasePage, Page, SnapshotId, ZERO_PAGE},
    words::Facts,
};
use medes_identity::security::Security;
use medes_proto::{
    ids::{NodeId, TenantName},
    registry::SnapshotPlace,
};

pub use self::base_pages::{BasePages, ReadPagesError};
use self::{
    cache::PageCache,
    indexes::Indexes,
    local::{LocalBases, Snapshot},
    remote::{Peers, ReadRemoteError},
    replicas::{FetchError, Replicas},
};

/// Base pages that are here for one piece of work, by place.
#[derive(Debug, Default)]
pub struct HeldPages {
    /// Snapshots that are here as a whole: nothing is copied.
    local: BTreeMap<SnapshotId, Arc<Snapshot>>,
    /// Where each other page is in `pages`.
    index: BTreeMap<BasePage, usize>,
    pages: Vec<Page>,
}

impl HeldPages {
    /// Adds a whole snapshot: all its pages, and what is known about it.
    pub fn hold(&mut self, whole: Arc<Snapshot>) {
        self.local.insert(whole.id, whole);
    }

    /// The snapshots, if all that was asked for is here as a whole.
    pub fn whole(&self) -> Option<Vec<Arc<Snapshot>>> {
        self.pages.is_empty().then(|| self.local.values().cloned().collect())
    }

    /// The bytes of a page, if it was asked for and is there.
    pub fn page(&self, place: BasePage) -> Option<&Page> {
        if let Some(snapshot) = self.local.get(&place.snapshot) {
            return snapshot.page(place.page);
        }
        self.pages.get(*self.index.get(&place)?)
    }
}

impl medes_dedup::rebuild::BasePages for HeldPages {
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
    #[error("read {pages} base pages from {node}")]
    Remote {
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
    /// For single pages of other nodes' snapshots.
    pub page_bytes: usize,
}

impl Budgets {
    /// For a handful of functions at a time; what is let go of is fetched or made again.
    pub const DEFAULT: Self = Self { replica_bytes: 256 << 20, index_bytes: 128 << 20, page_bytes: 64 << 20 };
}

/// All base pages this node can read.
#[derive(Debug)]
pub struct Bases {
    node: NodeId,
    /// Snapshots this node holds.
    pub local: Arc<LocalBases>,
    /// Snapshots of other nodes, copied here.
    pub replicas: Replicas,
    /// What sandboxes are aligned by.
    pub indexes: Indexes,
    cache: PageCache,
    peers: Peers,
}

impl Bases {
    /// Bases as node `node` sees them. No read from another node takes longer than `deadline`.
    pub fn new(node: NodeId, deadline: Duration, budgets: Budgets) -> Self {
        let Budgets { replica_bytes, index_bytes, page_bytes } = budgets;
        let (replicas, indexes) = (Replicas::new(replica_bytes, deadline), Indexes::new(index_bytes));
        let (cache, peers) = (PageCache::new(page_bytes), Peers::new(deadline));
        Self { node, local: Arc::default(), replicas, indexes, cache, peers }
    }

    /// The same, for a node whose peers know it by a certificate.
    #[must_use]
    pub fn secured(mut self, security: Security) -> Self {
        self.peers = self.peers.secured(security);
        self
    }

    /// The same, for a node that reads by RDMA what others let it read that way.
    #[must_use]
    pub fn by_rdma(mut self) -> Self {
        self.peers = self.peers.by_rdma();
        self
    }

    /// The node itself.
    pub const fn node(&self) -> &NodeId {
        &self.node
    }

    /// The other nodes.
    pub const fn peers(&self) -> &Peers {
        &self.peers
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

    /// Copies a snapshot of another node, and holds it from now on as one made here.
    ///
    /// Cancel-safe: what has come so far is thrown away.
    ///
    /// # Errors
    /// Its node does not deliver, or not what it promised; there is no memory for it.
    pub async fn replicate(&self, place: &SnapshotPlace) -> Result<Arc<Snapshot>, FetchError> {
        if let Some(held) = self.local.get(place.snapshot) {
            return Ok(held);
        }
        let fetched = self.replicas.take(&self.peers, place).await?;
        self.local.insert(fetched.clone());
        tracing::info!(snapshot = %fetched.id, from = %place.node, bytes = fetched.len_bytes(), "copied a base");
        Ok(fetched)
    }

    /// Forgets a snapshot of this node.
    pub fn remove(&self, snapshot: SnapshotId) {
        self.local.remove(snapshot);
        self.indexes.forget(snapshot);
    }

    /// Lets go of what is here only to make work for a tenant cheaper: copies of snapshots of other nodes, and single pages, of which
    /// nobody knows any more whose they are.
    pub fn let_go_of(&self, tenant: &TenantName) {
        for snapshot in self.replicas.remove_all_of(tenant) {
            self.indexes.forget(snapshot);
        }
        self.cache.clear();
    }

    /// Something made of this snapshot's pages was wrong: copies of them that came from elsewhere are let go of.
    pub fn distrust(&self, snapshot: SnapshotId) {
        self.cache.forget(snapshot);
    }

    /// Bytes of all base pages held here, copies of other nodes' included.
    pub fn bytes(&self) -> u64 {
        self.local.bytes().saturating_add(self.replicas.bytes()).saturating_add(self.cache.bytes())
    }

    /// Of the agent's own memory, what is kept for each snapshot: indexes, and single pages of those that are elsewhere.
    pub fn table_bytes(&self) -> BTreeMap<SnapshotId, u64> {
        let mut bytes = self.cache.bytes_by_snapshot();
        for (snapshot, index) in self.indexes.bytes_by_snapshot() {
            *bytes.entry(snapshot).or_default() += index;
        }
        bytes
    }

    /// Reads pages; `wanted` is sorted and without repeats, `places` tells where each snapshot is.
    ///
    /// Cancel-safe: dropping it reads no further and leaves nothing behind.
    pub async fn read(
        &self,
        wanted: &[BasePage],
        places: &BTreeMap<SnapshotId, SnapshotPlace>,
    ) -> Result<HeldPages, ReadBasesError> {
        let mut held = HeldPages::default();
        // What is not here, by where it is.
        let mut elsewhere: BTreeMap<&str, (&NodeId, Vec<BasePage>)> = BTreeMap::new();
        for run in wanted.chunk_by(|a, b| a.snapshot == b.snapshot) {
            let snapshot = run[0].snapshot;
            if let Some(whole) = self.local.get(snapshot).or_else(|| self.replicas.get(snapshot)) {
                held.hold(whole);
                continue;
            }
            let place = places.get(&snapshot).ok_or(ReadBasesError::Unknown(snapshot))?;
            if place.node == self.node {
                return Err(ReadBasesError::Gone(snapshot));
            }
            let mut cached = Vec::new();
            let missing = self.cache.take(run, &mut cached);
            for (place, page) in cached {
                held.index.insert(place, held.pages.len());
                held.pages.push(page);
            }
            if !missing.is_empty() {
                let (_, of_node) = elsewhere.entry(&place.address).or_insert((&place.node, Vec::new()));
                of_node.extend(missing);
            }
        }
        self.read_elsewhere(elsewhere, &mut held).await?;
        Ok(held)
    }

    /// Reads pages of other nodes, of all at once, and keeps them for later.
    async fn read_elsewhere(
        &self,
        elsewhere: BTreeMap<&str, (&NodeId, Vec<BasePage>)>,
        held: &mut HeldPages,
    ) -> Result<(), ReadBasesError> {
        let first = held.pages.len();
        let more: usize = elsewhere.values().map(|(_, wanted)| wanted.len()).sum();
        held.pages.resize(first + more, ZERO_PAGE);
        let mut rest = &mut held.pages[first..];
        let reads = elsewhere.iter().map(|(address, (node, wanted))| {
            let into = rest.split_off_mut(..wanted.len()).unwrap_or_default();
            async move {
                let read = self.peers.read((node, address), wanted, into).await;
                let (node, pages) = ((*node).clone(), wanted.len());
                read.map_err(|source| ReadBasesError::Remote { node, pages, source })
            }
        });
        try_join_all(reads.collect::<Vec<_>>()).await?;
        let places = elsewhere.values().flat_map(|(_, wanted)| wanted);
        for (at, &place) in (first..).zip(places) {
            held.index.insert(place, at);
            self.cache.keep(place, &held.pages[at]);
        }
        Ok(())
    }
}
