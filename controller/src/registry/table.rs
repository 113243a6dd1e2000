//! The registry in this process: shards with a lock each, and short handles for snapshots.

use std::{
    collections::BTreeMap,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use medes_proto::{
    ids::SnapshotId,
    registry::{Fingerprints, Hint},
};

use super::{
    PageIndex, Registered, Registry, Size,
    shard::{Entry, Inserted, NO_HANDLE, Shard},
    votes::Votes,
};

/// Enough that two lookups rarely meet in one, and that growing one is a short pause.
const SHARD_BITS: u32 = 8;
const SHARDS: usize = 1 << SHARD_BITS;

/// Limits of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableSettings {
    /// Entries altogether. At most 24 bytes each.
    pub entries_max: u64,
    /// Base pages for one hash: a chunk that is everywhere says nothing about a page.
    pub list_max: usize,
}

impl Default for TableSettings {
    fn default() -> Self {
        Self { entries_max: 64 << 20, list_max: 8 }
    }
}

/// The registry in this process.
#[derive(Debug)]
pub struct Table {
    settings: TableSettings,
    /// Held for reading through every registration and lookup, so that a handle cannot change its meaning in one.
    handles: RwLock<Handles>,
    shards: Vec<RwLock<Shard>>,
    entries: AtomicU64,
}

/// 4-byte names for 8-byte snapshot numbers.
#[derive(Debug, Default)]
struct Handles {
    by_snapshot: BTreeMap<SnapshotId, u32>,
    snapshots: Vec<Option<SnapshotId>>,
    free: Vec<u32>,
}

impl Handles {
    fn name(&self, handle: u32) -> Option<SnapshotId> {
        self.snapshots.get(handle as usize).copied().flatten()
    }

    /// `None` when 2^32 - 1 snapshots are alive.
    fn make(&mut self, snapshot: SnapshotId) -> Option<u32> {
        if let Some(&handle) = self.by_snapshot.get(&snapshot) {
            return Some(handle);
        }
        let handle = match self.free.pop() {
            Some(handle) => handle,
            None => {
                let next = u32::try_from(self.snapshots.len()).ok().filter(|&next| next != NO_HANDLE)?;
                self.snapshots.push(None);
                next
            }
        };
        self.snapshots[handle as usize] = Some(snapshot);
        self.by_snapshot.insert(snapshot, handle);
        Some(handle)
    }
}

impl Table {
    /// An empty table.
    pub fn new(settings: TableSettings) -> Self {
        Self {
            settings,
            handles: RwLock::default(),
            shards: std::iter::repeat_with(RwLock::default).take(SHARDS).collect(),
            entries: AtomicU64::new(0),
        }
    }

    fn shard(&self, hash: u64) -> (&RwLock<Shard>, u64) {
        (&self.shards[(hash >> (64 - SHARD_BITS)) as usize], hash << SHARD_BITS)
    }

    fn insert(&self, hash: u64, handle: u32, page: u32) -> Inserted {
        if self.entries.load(Ordering::Relaxed) >= self.settings.entries_max {
            return Inserted::Refused;
        }
        let (shard, key) = self.shard(hash);
        let inserted = write(shard).insert(Entry { key, handle, page }, self.settings.list_max);
        if inserted == Inserted::Added {
            self.entries.fetch_add(1, Ordering::Relaxed);
        }
        inserted
    }

    fn handle_of(&self, snapshot: SnapshotId) -> Option<RwLockReadGuard<'_, Handles>> {
        // A forget may come between the two locks: then make it again.
        for _attempt in 0..8 {
            let handles = read(&self.handles);
            if handles.by_snapshot.contains_key(&snapshot) {
                return Some(handles);
            }
            drop(handles);
            write(&self.handles).make(snapshot)?;
        }
        None
    }
}

impl Registry for Table {
    fn register(&self, snapshot: SnapshotId, first: PageIndex, pages: &Fingerprints) -> Registered {
        let mut result = Registered::default();
        let Some(handles) = self.handle_of(snapshot) else {
            result.refused = pages.iter().map(|page| page.len() as u64).sum();
            return result;
        };
        let Some(&handle) = handles.by_snapshot.get(&snapshot) else { return result };
        for (page, hashes) in (first.0..).zip(pages.iter()) {
            for &hash in hashes {
                match self.insert(hash, handle, page) {
                    Inserted::Added => result.added += 1,
                    Inserted::Known => {}
                    Inserted::Refused => result.refused += 1,
                }
            }
        }
        result
    }

    fn lookup(&self, pages: &Fingerprints, admit: &dyn Fn(SnapshotId) -> bool) -> Vec<Vec<Hint>> {
        let handles = read(&self.handles);
        let mut votes = Votes::default();
        let candidates = pages.iter().map(|hashes| {
            for &hash in hashes {
                let (shard, key) = self.shard(hash);
                for entry in read(shard).entries(key) {
                    votes.add(entry.handle, entry.page);
                }
            }
            votes.count(|handle| handles.name(handle).filter(|&snapshot| admit(snapshot)))
        });
        candidates.collect()
    }

    fn forget(&self, snapshot: SnapshotId) {
        let handle = {
            let mut handles = write(&self.handles);
            let Some(handle) = handles.by_snapshot.remove(&snapshot) else { return };
            handles.snapshots[handle as usize] = None;
            handle
        };
        // No registration can add to it any more; its entries are invisible already.
        for shard in &self.shards {
            let removed = write(shard).remove(handle);
            self.entries.fetch_sub(removed as u64, Ordering::Relaxed);
        }
        write(&self.handles).free.push(handle);
    }

    fn size(&self) -> Size {
        let bytes: usize = self.shards.iter().map(|shard| read(shard).bytes()).sum();
        let entries: usize = self.shards.iter().map(|shard| read(shard).len()).sum();
        Size { entries: entries as u64, bytes: bytes as u64 }
    }
}

/// Nothing that holds one of these locks can leave its data half changed, so a panic elsewhere does not matter.
fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
