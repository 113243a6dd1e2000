//! Where base snapshots are: written by the driver's shell, read by every registry lookup.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
};

use medes_proto::{ids::SnapshotId, registry::SnapshotPlace};

/// Snapshots whose fingerprints may be registered, and where those are that lookups may name.
#[derive(Debug, Default)]
pub struct Places(RwLock<BTreeMap<SnapshotId, Option<SnapshotPlace>>>);

impl Places {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<SnapshotId, Option<SnapshotPlace>>)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// It is being made: registrations are welcome.
    pub(crate) fn expect(&self, id: SnapshotId) {
        self.change(|places| {
            places.entry(id).or_default();
        });
    }

    /// It is there.
    pub(crate) fn place(&self, place: SnapshotPlace) {
        self.change(|places| drop(places.insert(place.snapshot, Some(place))));
    }

    /// Not for now.
    pub(crate) fn hide(&self, id: SnapshotId) {
        self.change(|places| drop(places.insert(id, None)));
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
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&id).is_some_and(Option::is_some)
    }

    /// Where these are; those that went away meanwhile are left out.
    pub fn of(&self, ids: impl IntoIterator<Item = SnapshotId>) -> Vec<SnapshotPlace> {
        let places = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ids.into_iter().filter_map(|id| places.get(&id)?.clone()).collect()
    }
}
