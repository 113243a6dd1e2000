//! The dedup image a sandbox came back from, kept while it is warm: what has not changed since is taken over by its
//! next image, recipe and bytes, instead of being encoded again.
//!
//! The page's keyed hash decides whether it has changed, and nothing else: who may have written it is not asked, so
//! nobody can be wrong about it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use medes_dedup::{
    encode::EncodedPage,
    image::DedupImage,
    key::PageHasher,
    page::{Page, SnapshotId},
};
use medes_proto::registry::SnapshotPlace;

use crate::{
    criu::images::{Owner, PagesFile},
    engine::Engine,
    memory_file::MappedFile,
    page_work,
    roads::blocking,
};

/// Room for such images, shared by all sandboxes of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Room {
    bytes_max: u64,
    used: Arc<AtomicU64>,
}

/// A piece of it; free again when dropped.
#[derive(Debug)]
struct Piece {
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Room {
    /// What a node gives if it is not told otherwise.
    pub const DEFAULT_BYTES: u64 = 256 << 20;

    /// For so many bytes; 0 keeps nothing.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: Arc::default() }
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    fn piece(&self, bytes: u64) -> Option<Piece> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        taken.is_ok().then(|| Piece { bytes, used: self.used.clone() })
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What is known of an image besides its bytes.
#[derive(Debug, Clone)]
pub struct Origin {
    /// Where its base snapshots are.
    pub places: BTreeMap<SnapshotId, SnapshotPlace>,
    /// Whose pages it has and where they were, in the order of the image's pages.
    pub files: Vec<PagesFile>,
    /// The base it is aligned with, if it is.
    pub aligned_with: Option<SnapshotId>,
}

/// An image that is kept.
#[derive(Debug)]
pub struct Earlier {
    /// The image.
    pub image: Arc<DedupImage<MappedFile>>,
    /// What else is known of it.
    pub origin: Origin,
    _room: Piece,
}

impl Earlier {
    /// Keeps an image if there is room.
    pub fn keep(room: &Room, image: Arc<DedupImage<MappedFile>>, origin: Origin) -> Option<Arc<Self>> {
        let piece = room.piece(image.stored_bytes().saturating_add(image.table_bytes()))?;
        Some(Arc::new(Self { image, origin, _room: piece }))
    }

    /// Where the base is that it is aligned with.
    pub fn base(&self) -> Option<&SnapshotPlace> {
        self.origin.places.get(&self.origin.aligned_with?)
    }

    /// Its pages as they are stored.
    pub fn pages(&self) -> Vec<EncodedPage<'_>> {
        self.image.encoded().collect()
    }
}

/// For each of `pages`, which lie as `files` says: its position in the earlier image if it is still the same page.
pub async fn unchanged<P: Pages>(
    earlier: Arc<Earlier>,
    pages: Arc<P>,
    engine: &Engine,
    hasher: PageHasher,
) -> Vec<Option<usize>> {
    let threads = engine.threads;
    blocking(move || {
        let stored = earlier.pages();
        let mut positions = matched(pages.files(), &earlier.origin.files);
        let pages = pages.pages();
        let hashes: Vec<_> =
            positions.iter().map(|at| at.and_then(|at| Some(stored.get(at)?.hash()))).collect();
        let same = page_work::have_hashes(&pages, &hashes, &hasher, threads);
        positions.iter_mut().zip(same).filter(|(_, same)| !same).for_each(|(at, _)| *at = None);
        positions
    })
    .await
}

/// Pages, and where they are.
pub trait Pages: Send + Sync + 'static {
    /// All of them.
    fn pages(&self) -> Vec<&Page>;
    /// Where they are, in the same order.
    fn files(&self) -> &[PagesFile];
}

/// For each page of `now`, in order, the position of the page at the same place among those of `before`.
fn matched(now: &[PagesFile], before: &[PagesFile]) -> Vec<Option<usize>> {
    let mut known: BTreeMap<Owner, (usize, &PagesFile)> = BTreeMap::new();
    let mut start = 0;
    for file in before {
        known.insert(file.owner, (start, file));
        start += file.addresses().count();
    }
    let mut found = Vec::new();
    for file in now {
        let theirs = known.get(&file.owner).into_iter();
        let mut theirs = theirs.flat_map(|(start, file)| file.addresses().zip(*start..)).peekable();
        for address in file.addresses() {
            while theirs.next_if(|(other, _)| *other < address).is_some() {}
            found.push(theirs.next_if(|(other, _)| *other == address).map(|(_, at)| at));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::images::Run;

    fn file(pid: u32, runs: &[(u64, u64)]) -> PagesFile {
        let runs: Vec<Run> = runs.iter().map(|&(page, pages)| Run { address: page * 4096, pages }).collect();
        let pages = runs.iter().map(|run| run.pages).sum();
        PagesFile { owner: Owner::Process { pid }, name: format!("pages-{pid}.img"), runs, pages }
    }

    #[test]
    fn pages_are_matched_by_process_and_address() {
        let before = [file(1, &[(10, 3), (20, 1)]), file(2, &[(10, 1)])];
        let now = [file(2, &[(9, 2)]), file(3, &[(10, 1)]), file(1, &[(11, 1), (12, 3), (20, 2)])];
        let expected = [None, Some(4), None, Some(1), Some(2), None, None, Some(3), None];
        assert_eq!(matched(&now, &before), expected);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room() {
        let room = Room::new(100);
        let first = room.piece(60).unwrap();
        assert!(room.piece(41).is_none() && room.piece(u64::MAX).is_none());
        let second = room.piece(40).unwrap();
        assert_eq!(room.used(), 100);
        drop((first, second));
        assert_eq!(room.used(), 0);
    }
}
