//! Registry questions and answers: fingerprints of many pages in one message, candidates in the reply.

use crate::{
    WireError,
    ids::{NodeId, SandboxId, SnapshotId, snapshot_from_wire},
    limits::{ADDRESS_BYTES_MAX, BATCH_PAGES_MAX, IMAGE_BASES_MAX, PAGE_CANDIDATES_MAX, PAGE_CHUNKS_MAX},
    wire,
};
use medes_dedup::{
    fingerprint::ChunkHash,
    page::{BasePage, PageIndex},
};

/// Fingerprints of several pages, flattened: no allocation for each page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprints {
    hashes: Vec<u64>,
    lengths: Vec<u8>,
}

impl Fingerprints {
    /// Adds a page's chunk hashes; those beyond the wire's limit are left out.
    pub fn push(&mut self, chunks: &[ChunkHash]) {
        let chunks = &chunks[..chunks.len().min(PAGE_CHUNKS_MAX)];
        self.hashes.extend(chunks.iter().map(|hash| hash.get()));
        self.lengths.push(u8::try_from(chunks.len()).unwrap_or(0));
    }

    /// Pages in this batch.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is no page.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// Each page's chunk hashes.
    pub fn iter(&self) -> impl Iterator<Item = &[u64]> {
        let mut rest = &self.hashes[..];
        self.lengths.iter().map(move |&length| {
            let (page, after) = rest.split_at(usize::from(length).min(rest.len()));
            rest = after;
            page
        })
    }

    fn from_wire(hashes: Vec<u64>, lengths: &[u8]) -> Result<Self, WireError> {
        if lengths.len() > BATCH_PAGES_MAX {
            return Err(WireError::invalid("lengths", "too many pages"));
        }
        if lengths.iter().any(|&length| usize::from(length) > PAGE_CHUNKS_MAX) {
            return Err(WireError::invalid("lengths", "too many chunks for one page"));
        }
        if lengths.iter().map(|&length| usize::from(length)).sum::<usize>() != hashes.len() {
            return Err(WireError::invalid("hashes", "not as many as lengths say"));
        }
        Ok(Self { hashes, lengths: lengths.to_vec() })
    }
}

/// Pages of a sandbox whose candidates are wanted.
#[derive(Debug, Clone)]
pub struct LookupBatch {
    /// Whose pages.
    pub sandbox: SandboxId,
    /// Their fingerprints.
    pub fingerprints: Fingerprints,
}

impl From<LookupBatch> for wire::LookupBatch {
    fn from(batch: LookupBatch) -> Self {
        let Fingerprints { hashes, lengths } = batch.fingerprints;
        Self { sandbox: batch.sandbox.get(), hashes, lengths: lengths.into() }
    }
}

impl TryFrom<wire::LookupBatch> for LookupBatch {
    type Error = WireError;

    fn try_from(raw: wire::LookupBatch) -> Result<Self, WireError> {
        let wire::LookupBatch { sandbox, hashes, lengths } = raw;
        Ok(Self {
            sandbox: SandboxId::from_wire(sandbox, "lookup.sandbox")?,
            fingerprints: Fingerprints::from_wire(hashes, &lengths)?,
        })
    }
}

/// A base page that shares chunks with the page asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hint {
    /// The base page.
    pub base: BasePage,
    /// How many chunks they share.
    pub votes: u8,
}

/// Where a base snapshot is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotPlace {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// The node that holds it.
    pub node: NodeId,
    /// host:port of that node's Node service.
    pub address: String,
}

/// Candidates for each page of a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LookupReply {
    /// For each page, best first.
    pub hints: Vec<Vec<Hint>>,
    /// Each snapshot named above, once.
    pub places: Vec<SnapshotPlace>,
}

impl From<LookupReply> for wire::LookupReply {
    fn from(reply: LookupReply) -> Self {
        let all = || reply.hints.iter().flatten();
        Self {
            snapshots: all().map(|hint| hint.base.snapshot.get()).collect(),
            pages: all().map(|hint| hint.base.page.0).collect(),
            votes: all().map(|hint| hint.votes).collect(),
            counts: reply.hints.iter().map(|page| u8::try_from(page.len()).unwrap_or(u8::MAX)).collect(),
            places: reply.places.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<SnapshotPlace> for wire::SnapshotPlace {
    fn from(place: SnapshotPlace) -> Self {
        Self { snapshot: place.snapshot.get(), node: place.node.into(), address: place.address }
    }
}

impl TryFrom<wire::SnapshotPlace> for SnapshotPlace {
    type Error = WireError;

    fn try_from(raw: wire::SnapshotPlace) -> Result<Self, WireError> {
        let wire::SnapshotPlace { snapshot, node, address } = raw;
        if address.len() > ADDRESS_BYTES_MAX {
            return Err(WireError::invalid("place.address", "too long"));
        }
        Ok(Self {
            snapshot: snapshot_from_wire(snapshot, "place.snapshot")?,
            node: node.parse().map_err(|_name| WireError::invalid("place.node", "not a node name"))?,
            address,
        })
    }
}

impl TryFrom<wire::LookupReply> for LookupReply {
    type Error = WireError;

    fn try_from(raw: wire::LookupReply) -> Result<Self, WireError> {
        let wire::LookupReply { snapshots, pages, votes, counts, places } = raw;
        if counts.len() > BATCH_PAGES_MAX || places.len() > BATCH_PAGES_MAX * PAGE_CANDIDATES_MAX {
            return Err(WireError::invalid("reply.counts or reply.places", "too many"));
        }
        if counts.iter().any(|&count| usize::from(count) > PAGE_CANDIDATES_MAX) {
            return Err(WireError::invalid("reply.counts", "too many candidates for one page"));
        }
        let total: usize = counts.iter().map(|&count| usize::from(count)).sum();
        if [snapshots.len(), pages.len(), votes.len()] != [total; 3] {
            return Err(WireError::invalid("reply", "candidates do not match counts"));
        }
        let mut flat =
            snapshots.into_iter().zip(pages).zip(votes.iter()).map(|((snapshot, page), &votes)| {
                let snapshot = snapshot_from_wire(snapshot, "reply.snapshots")?;
                Ok(Hint { base: BasePage { snapshot, page: PageIndex(page) }, votes })
            });
        let hints = counts.iter().map(|&count| flat.by_ref().take(usize::from(count)).collect());
        Ok(Self {
            hints: hints.collect::<Result<_, WireError>>()?,
            places: places.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
        })
    }
}

/// Fingerprints of consecutive pages of a new base snapshot.
#[derive(Debug, Clone)]
pub struct RegisterBatch {
    /// Which snapshot.
    pub snapshot: SnapshotId,
    /// Number of the first page here.
    pub first_page: PageIndex,
    /// Fingerprints of that page and those after it.
    pub fingerprints: Fingerprints,
}

impl From<RegisterBatch> for wire::RegisterBatch {
    fn from(batch: RegisterBatch) -> Self {
        let Fingerprints { hashes, lengths } = batch.fingerprints;
        Self {
            snapshot: batch.snapshot.get(),
            first_page: batch.first_page.0,
            hashes,
            lengths: lengths.into(),
        }
    }
}

impl TryFrom<wire::RegisterBatch> for RegisterBatch {
    type Error = WireError;

    fn try_from(raw: wire::RegisterBatch) -> Result<Self, WireError> {
        let wire::RegisterBatch { snapshot, first_page, hashes, lengths } = raw;
        let fingerprints = Fingerprints::from_wire(hashes, &lengths)?;
        let pages = u32::try_from(fingerprints.len()).unwrap_or(u32::MAX);
        if first_page.checked_add(pages).is_none() {
            return Err(WireError::invalid("register.first_page", "too large"));
        }
        let snapshot = snapshot_from_wire(snapshot, "register.snapshot")?;
        Ok(Self { snapshot, first_page: PageIndex(first_page), fingerprints })
    }
}

/// A dedup image's claim on the snapshots it refers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquire {
    /// Whose image.
    pub sandbox: SandboxId,
    /// The snapshots.
    pub snapshots: Vec<SnapshotId>,
}

impl TryFrom<wire::AcquireRequest> for Acquire {
    type Error = WireError;

    fn try_from(raw: wire::AcquireRequest) -> Result<Self, WireError> {
        let wire::AcquireRequest { sandbox, snapshots } = raw;
        if snapshots.len() > IMAGE_BASES_MAX {
            return Err(WireError::invalid("acquire.snapshots", "too many"));
        }
        let snapshots = snapshots.into_iter().map(|id| snapshot_from_wire(id, "acquire.snapshots"));
        Ok(Self {
            sandbox: SandboxId::from_wire(sandbox, "acquire.sandbox")?,
            snapshots: snapshots.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fingerprints_come_back_page_by_page(pages in prop::collection::vec(prop::collection::vec(any::<u64>(), 0..32), 0..50)) {
            let mut sent = Fingerprints::default();
            for page in &pages {
                sent.push(&page.iter().copied().map(ChunkHash::new).collect::<Vec<_>>());
            }
            let wire: wire::LookupBatch =
                LookupBatch { sandbox: SandboxId::new(1).unwrap(), fingerprints: sent }.into();
            let got = LookupBatch::try_from(wire).unwrap();
            prop_assert_eq!(got.fingerprints.iter().map(<[u64]>::to_vec).collect::<Vec<_>>(), pages);
        }

        #[test]
        fn lengths_that_do_not_add_up_are_refused(hashes in prop::collection::vec(any::<u64>(), 0..20), lengths in prop::collection::vec(any::<u8>(), 0..5)) {
            let fits = lengths.iter().all(|&l| usize::from(l) <= PAGE_CHUNKS_MAX)
                && lengths.iter().map(|&l| usize::from(l)).sum::<usize>() == hashes.len();
            let raw = wire::LookupBatch { sandbox: 1, hashes, lengths: lengths.into() };
            prop_assert_eq!(LookupBatch::try_from(raw).is_ok(), fits);
        }
    }
}
