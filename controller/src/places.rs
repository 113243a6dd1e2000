//! Where base snapshots are: written by the driver's shell, read by every registry lookup.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use medes_proto::{ids::SnapshotId, registry::SnapshotPlace};

/// Snapshots whose fingerprints may be registered, and who holds those that lookups may name: whom to ask first is the first.
#[derive(Debug, Default)]
pub struct Places(RwLock<BTreeMap<SnapshotId, Vec<SnapshotPlace>>>);

impl Places {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<SnapshotId, Vec<SnapshotPlace>>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// It is being made: registrations are welcome.
    pub(crate) fn expect(&self, id: SnapshotId) {
        self.change(|places| {
            places.entry(id).or_default();
        });
    }

    /// It is there.
    pub(crate) fn place(&self, id: SnapshotId, holders: Vec<SnapshotPlace>) {
        self.change(|places| drop(places.insert(id, holders)));
    }

    /// Not for now.
    pub(crate) fn hide(&self, id: SnapshotId) {
        self.change(|places| drop(places.insert(id, Vec::new())));
    }

    /// Never again.
    pub(crate) fn forget(&self, id: SnapshotId) {
        self.change(|places| drop(places.remove(&id)));
    }

    /// Whether fingerprints of it may be registered.
    pub fn is_expected(&self, id: SnapshotId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// Whether lookups may name it.
    pub fn is_placed(&self, id: SnapshotId) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .is_some_and(|holders| !holders.is_empty())
    }

    /// Where each of these is; those that went away meanwhile are left out.
    pub fn of(&self, ids: impl IntoIterator<Item = SnapshotId>) -> Vec<SnapshotPlace> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ids.into_iter().filter_map(|id| places.get(&id)?.first().cloned()).collect()
    }

    /// Everybody who holds one of these.
    pub fn holders_of(&self, ids: impl IntoIterator<Item = SnapshotId>) -> Vec<SnapshotPlace> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ids.into_iter().filter_map(|id| places.get(&id)).flatten().cloned().collect()
    }
}
