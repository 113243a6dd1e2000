//! Base pages, wherever they are: this node's own snapshots, or another node's over its Node service.
//!
//! The roads ask for many pages at once ([`Bases::read`]); each is read once, however many pages need it.

pub mod local;
pub mod remote;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use medes_dedup::page::{BasePage, PAGE_BYTES, Page, SnapshotId};
use medes_proto::{ids::NodeId, registry::SnapshotPlace};

use self::{
    local::{LocalBases, Snapshot},
    remote::{Peers, ReadRemoteError},
};

/// Base pages that were read, by place.
#[derive(Debug, Default)]
pub struct BasePages {
    /// Snapshots of this node: nothing is copied.
    local: BTreeMap<SnapshotId, Arc<Snapshot>>,
    /// Where each remote page is in `bytes`, in pages.
    index: BTreeMap<BasePage, usize>,
    bytes: Vec<u8>,
}

impl BasePages {
    /// The bytes of a page, if it was asked for and is there.
    pub fn page(&self, place: BasePage) -> Option<&Page> {
        if let Some(snapshot) = self.local.get(&place.snapshot) {
            return snapshot.page(place.page);
        }
        let start = self.index.get(&place)? * PAGE_BYTES;
        self.bytes.get(start..start + PAGE_BYTES)?.try_into().ok()
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

/// All base pages this node can read.
#[derive(Debug)]
pub struct Bases {
    node: NodeId,
    /// Snapshots this node holds.
    pub local: LocalBases,
    peers: Peers,
}

impl Bases {
    /// Bases as node `node` sees them. No read from another node takes longer than `deadline`.
    pub fn new(node: NodeId, deadline: Duration) -> Self {
        Self { node, local: LocalBases::default(), peers: Peers::new(deadline) }
    }

    /// The node itself.
    pub const fn node(&self) -> &NodeId {
        &self.node
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
            if let Some(local) = self.local.get(snapshot) {
                pages.local.insert(snapshot, local);
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
