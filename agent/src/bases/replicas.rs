//! Whole snapshots of other nodes, fetched once so that sandboxes can be aligned with them: a bounded cache.
//!
//! A replica is what its node said it is: as many pages, with that hash over all of them. Nothing is lost with one: what
//! an image needs of it can be read from its node page by page.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE};
use medes_proto::{
    failure::FailureKind,
    ids::{NodeId, TenantName},
    layout::{InitSnapshot, SnapshotLayout},
    registry::SnapshotPlace,
};

use super::{
    local::{Init, Snapshot},
    remote::{Peers, ReadRemoteError},
};
use crate::memory_file::{MappedFile, MemoryFile};

/// Pages asked for at once. What is held twice for a moment, and hashed at one go, is this much.
const FETCH_PAGES: u32 = 1_024;

/// A snapshot that could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Its node did not deliver.
    #[error("fetch {snapshot} from {node}")]
    Remote {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// From which node.
        node: NodeId,
        /// What happened.
        #[source]
        source: ReadRemoteError,
    },
    /// Somebody else's bytes: a wrong answer of its node, or of whoever named it.
    #[error("{0} belongs to another tenant")]
    Tenant(SnapshotId),
    /// More than the cache may hold.
    #[error(
        "{snapshot} has {bytes} bytes, more than the {budget_bytes} that snapshots of other nodes may take"
    )]
    TooLarge {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// What it has.
        bytes: u64,
        /// What it may have.
        budget_bytes: u64,
    },
    /// The pages that came are not those of the snapshot.
    #[error("the pages of {0} do not have their hash")]
    Hash(SnapshotId),
    /// There was no memory for it.
    #[error("keep {snapshot}")]
    Keep {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{snapshot} did not come from {node} within {deadline:?}")]
    Deadline {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// From which node.
        node: NodeId,
        /// How long it had.
        deadline: Duration,
    },
    /// It was made on this node and is gone.
    #[error("{0} is no longer on this node")]
    Gone(SnapshotId),
}

impl FetchError {
    /// As the controller hears of it.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Hash(_) => FailureKind::Corrupt,
            Self::Remote { .. }
            | Self::Tenant(_)
            | Self::TooLarge { .. }
            | Self::Keep { .. }
            | Self::Deadline { .. }
            | Self::Gone(_) => FailureKind::BaseLost,
        }
    }

    /// The node that did not deliver, if it is that.
    pub const fn holder(&self) -> Option<&NodeId> {
        match self {
            Self::Remote { node, .. } | Self::Deadline { node, .. } => Some(node),
            _ => None,
        }
    }
}

/// Snapshots of other nodes that are kept, the one used last at the end.
#[derive(Debug)]
pub struct Replicas {
    budget_bytes: u64,
    deadline: Duration,
    kept: Mutex<Vec<Arc<Snapshot>>>,
    /// One fetch at a time: it takes the whole network anyway, and the budget is easily kept.
    fetching: tokio::sync::Mutex<()>,
}

impl Replicas {
    /// None yet; they may take `budget_bytes` together, and a fetch, waiting included, no longer than `deadline`.
    pub fn new(budget_bytes: u64, deadline: Duration) -> Self {
        Self { budget_bytes, deadline, kept: Mutex::default(), fetching: tokio::sync::Mutex::default() }
    }

    /// A snapshot, if it is here.
    pub fn get(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        let mut kept = self.lock();
        let at = kept.iter().position(|snapshot| snapshot.id == id)?;
        let snapshot = kept.remove(at);
        kept.push(snapshot.clone());
        Some(snapshot)
    }

    /// Removes those of a tenant. Returns which these were.
    pub fn remove_all_of(&self, tenant: &TenantName) -> Vec<SnapshotId> {
        let removed: Vec<_> = self.lock().extract_if(.., |kept| kept.tenant == *tenant).collect();
        removed.iter().map(|snapshot| snapshot.id).collect()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Snapshot>> {
        self.lock().clone()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.lock().iter().map(|snapshot| snapshot.len_bytes()).sum()
    }

    /// The snapshot, fetched if it is not here yet.
    ///
    /// Cancel-safe: what has come so far is thrown away.
    pub async fn fetch(
        &self,
        peers: &Peers,
        place: &SnapshotPlace,
        tenant: &TenantName,
    ) -> Result<Arc<Snapshot>, FetchError> {
        let snapshot = place.snapshot;
        if let Some(kept) = self.get(snapshot) {
            return own(kept, tenant);
        }
        let fetch = self.fetch_in_turn(peers, place, tenant);
        tokio::time::timeout(self.deadline, fetch).await.unwrap_or_else(|_elapsed| Err(self.late(place)))
    }

    /// The snapshot, out of the cache or fetched, to be held elsewhere: it counts here no more, and the budget does not bound it.
    ///
    /// Cancel-safe: what has come so far is thrown away.
    pub async fn take(&self, peers: &Peers, place: &SnapshotPlace) -> Result<Arc<Snapshot>, FetchError> {
        let snapshot = place.snapshot;
        let fetch = async {
            let _turn = self.fetching.lock().await;
            if let Some(kept) = self.get(snapshot) {
                return Ok(kept);
            }
            let layout = layout(peers, place).await?;
            fetch_whole(peers, place, layout).await
        };
        let taken = tokio::time::timeout(self.deadline, fetch).await;
        let taken = taken.unwrap_or_else(|_elapsed| Err(self.late(place)))?;
        self.lock().retain(|kept| kept.id != snapshot);
        Ok(taken)
    }

    fn late(&self, place: &SnapshotPlace) -> FetchError {
        let (snapshot, node) = (place.snapshot, place.node.clone());
        FetchError::Deadline { snapshot, node, deadline: self.deadline }
    }

    async fn fetch_in_turn(
        &self,
        peers: &Peers,
        place: &SnapshotPlace,
        tenant: &TenantName,
    ) -> Result<Arc<Snapshot>, FetchError> {
        let snapshot = place.snapshot;
        let _turn = self.fetching.lock().await;
        if let Some(kept) = self.get(snapshot) {
            return own(kept, tenant);
        }
        let layout = layout(peers, place).await?;
        if layout.tenant != *tenant {
            return Err(FetchError::Tenant(snapshot));
        }
        let bytes = u64::from(layout.pages) * PAGE_BYTES as u64;
        if bytes > self.budget_bytes {
            return Err(FetchError::TooLarge { snapshot, bytes, budget_bytes: self.budget_bytes });
        }
        self.make_room(bytes);
        let fetched = fetch_whole(peers, place, layout).await?;
        self.lock().push(fetched.clone());
        tracing::info!(%snapshot, from = %place.node, bytes, "fetched a base of another node");
        Ok(fetched)
    }

    /// Lets go of those used longest ago until this much more fits.
    fn make_room(&self, bytes: u64) {
        let mut kept = self.lock();
        let mut total = kept.iter().map(|snapshot| snapshot.len_bytes()).sum::<u64>() + bytes;
        kept.retain(|snapshot| {
            let fits = total <= self.budget_bytes;
            if !fits {
                total -= snapshot.len_bytes();
            }
            fits
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Snapshot>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn own(kept: Arc<Snapshot>, tenant: &TenantName) -> Result<Arc<Snapshot>, FetchError> {
    if kept.tenant == *tenant { Ok(kept) } else { Err(FetchError::Tenant(kept.id)) }
}

/// What its node says it is.
async fn layout(peers: &Peers, place: &SnapshotPlace) -> Result<SnapshotLayout, FetchError> {
    let (snapshot, node) = (place.snapshot, place.node.clone());
    let layout = peers.layout((&place.node, &place.address), snapshot).await;
    layout.map_err(|source| FetchError::Remote { snapshot, node, source })
}

async fn fetch_whole(
    peers: &Peers,
    place: &SnapshotPlace,
    layout: SnapshotLayout,
) -> Result<Arc<Snapshot>, FetchError> {
    let pages = fetch_pages(peers, place, &layout).await?;
    let SnapshotLayout { tenant, function, processes, init, .. } = layout;
    let fetched = Snapshot::new(place.snapshot, function, tenant, pages, processes);
    // A checked layout has no more pages in its processes than in all.
    let fetched = fetched.ok_or(FetchError::Hash(place.snapshot))?;
    if let Some(InitSnapshot { revision, image }) = init {
        let keep = |source| FetchError::Keep { snapshot: place.snapshot, source };
        let image = (!image.is_empty()).then(|| crate::init::seal(&image)).transpose().map_err(keep)?;
        fetched.is_init(Init::new(revision, image));
    }
    Ok(Arc::new(fetched))
}

/// All pages, sealed, with the hash that was promised.
async fn fetch_pages(
    peers: &Peers,
    place: &SnapshotPlace,
    layout: &SnapshotLayout,
) -> Result<MappedFile, FetchError> {
    let snapshot = place.snapshot;
    let keep = |source| FetchError::Keep { snapshot, source };
    let mut file = MemoryFile::create("medes-replica").map_err(keep)?;
    let mut hasher = blake3::Hasher::new();
    let mut into: Vec<Page> = vec![ZERO_PAGE; layout.pages.min(FETCH_PAGES) as usize];
    let mut first = 0;
    while first < layout.pages {
        let end = layout.pages.min(first.saturating_add(FETCH_PAGES));
        let wanted: Vec<BasePage> =
            (first..end).map(|page| BasePage { snapshot, page: PageIndex(page) }).collect();
        let pages = &mut into[..wanted.len()];
        peers
            .read((&place.node, &place.address), &wanted, pages)
            .await
            .map_err(|source| FetchError::Remote { snapshot, node: place.node.clone(), source })?;
        hasher.update(pages.as_flattened());
        file.write_all(pages.as_flattened()).map_err(keep)?;
        first = end;
    }
    match *hasher.finalize().as_bytes() == layout.hash {
        true => file.seal().map_err(keep),
        false => Err(FetchError::Hash(snapshot)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(number: u64, pages: usize) -> Arc<Snapshot> {
        let mut file = MemoryFile::create("test").unwrap();
        file.write_all(&vec![1; pages * PAGE_BYTES]).unwrap();
        let (id, function, tenant) =
            (SnapshotId::new(number).unwrap(), "f".parse().unwrap(), "t".parse().unwrap());
        Arc::new(Snapshot::new(id, function, tenant, file.seal().unwrap(), Vec::new()).unwrap())
    }

    /// A page and its sum.
    const PAGE: u64 = PAGE_BYTES as u64 + 8;

    #[test]
    fn the_ones_used_longest_ago_make_room() {
        let replicas = Replicas::new(5 * PAGE, Duration::ZERO);
        for (number, pages) in [(1, 2), (2, 1), (3, 1)] {
            replicas.lock().push(replica(number, pages));
        }
        let is_there = |number| replicas.lock().iter().any(|kept| kept.id.get() == number);
        assert!(replicas.get(SnapshotId::new(1).unwrap()).is_some());
        replicas.make_room(PAGE);
        assert_eq!(replicas.bytes(), 4 * PAGE, "it fits as it is");
        replicas.make_room(2 * PAGE);
        assert!(is_there(1) && !is_there(2) && is_there(3), "2 was used longest ago");
        replicas.make_room(5 * PAGE);
        assert_eq!(replicas.bytes(), 0);
    }
}
