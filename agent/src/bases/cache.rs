//! Single pages of other nodes' snapshots, kept for the next sandbox that needs them: bounded, shared by all of a node.
//!
//! A snapshot never changes and its number is never used again, so nothing here can be out of date. What was used since
//! the hand last passed stays (the clock algorithm).

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use medes_dedup::page::{BasePage, PAGE_BYTES, Page, SnapshotId};

/// What one page takes besides itself: its place, and where that is written down.
const SLOT_BYTES: usize = 64;

#[derive(Debug)]
struct Slot {
    place: BasePage,
    page: Box<Page>,
    used: bool,
}

#[derive(Debug, Default)]
struct Kept {
    slots: Vec<Slot>,
    at: HashMap<BasePage, usize>,
    hand: usize,
}

/// The cache.
#[derive(Debug)]
pub struct PageCache {
    pages_max: usize,
    kept: Mutex<Kept>,
}

impl PageCache {
    /// Empty; takes up to `budget_bytes`.
    pub fn new(budget_bytes: usize) -> Self {
        Self { pages_max: budget_bytes / (PAGE_BYTES + SLOT_BYTES), kept: Mutex::default() }
    }

    /// Appends those of `wanted` that are here to `found`; returns the others. Both keep their order.
    pub fn take(&self, wanted: &[BasePage], found: &mut Vec<(BasePage, Page)>) -> Vec<BasePage> {
        let mut kept = self.lock();
        let mut missing = Vec::new();
        for &place in wanted {
            match kept.at.get(&place).copied() {
                Some(at) => {
                    let slot = &mut kept.slots[at];
                    slot.used = true;
                    found.push((place, *slot.page));
                }
                None => missing.push(place),
            }
        }
        missing
    }

    /// Keeps a page.
    pub fn keep(&self, place: BasePage, page: &Page) {
        let mut kept = self.lock();
        let Kept { slots, at, hand } = &mut *kept;
        if self.pages_max == 0 || at.contains_key(&place) {
            return;
        }
        if slots.len() < self.pages_max {
            at.insert(place, slots.len());
            slots.push(Slot { place, page: Box::new(*page), used: false });
            return;
        }
        // After one round nobody is used any more.
        while slots[*hand].used {
            slots[*hand].used = false;
            *hand = (*hand + 1) % slots.len();
        }
        let slot = &mut slots[*hand];
        at.remove(&slot.place);
        at.insert(place, *hand);
        (slot.place, *slot.page) = (place, *page);
        *hand = (*hand + 1) % slots.len();
    }

    /// Lets go of a snapshot's pages: something made of them was wrong.
    pub fn forget(&self, snapshot: SnapshotId) {
        let mut kept = self.lock();
        let Kept { slots, at, hand } = &mut *kept;
        slots.retain(|slot| slot.place.snapshot != snapshot);
        *hand = 0;
        *at = slots.iter().enumerate().map(|(at, slot)| (slot.place, at)).collect();
    }

    /// Lets go of all pages.
    pub fn clear(&self) {
        *self.lock() = Kept::default();
    }

    /// Pages that are kept, by snapshot, as bytes.
    pub fn bytes_by_snapshot(&self) -> BTreeMap<SnapshotId, u64> {
        let mut bytes = BTreeMap::new();
        for slot in &self.lock().slots {
            *bytes.entry(slot.place.snapshot).or_default() += (PAGE_BYTES + SLOT_BYTES) as u64;
        }
        bytes
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        (self.lock().slots.len() * (PAGE_BYTES + SLOT_BYTES)) as u64
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use medes_dedup::page::PageIndex;
    use proptest::prelude::*;

    use super::*;

    fn place(snapshot: u64, page: u32) -> BasePage {
        BasePage { snapshot: SnapshotId::new(snapshot).unwrap(), page: PageIndex(page) }
    }

    fn page(place: BasePage) -> Page {
        let mut page = [0; PAGE_BYTES];
        page[..8].copy_from_slice(&place.snapshot.get().to_le_bytes());
        page[8..12].copy_from_slice(&place.page.0.to_le_bytes());
        page
    }

    fn cache(pages: usize) -> PageCache {
        PageCache::new(pages * (PAGE_BYTES + SLOT_BYTES))
    }

    #[test]
    fn what_is_used_stays() {
        let cache = cache(2);
        for wanted in [place(1, 1), place(1, 2)] {
            cache.keep(wanted, &page(wanted));
        }
        assert!(cache.take(&[place(1, 1)], &mut Vec::new()).is_empty());
        cache.keep(place(1, 3), &page(place(1, 3)));
        let mut found = Vec::new();
        assert_eq!(cache.take(&[place(1, 1), place(1, 2), place(1, 3)], &mut found), [place(1, 2)]);
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_distrusted_snapshot_is_gone() {
        let cache = cache(4);
        for wanted in [place(1, 1), place(2, 1), place(1, 2)] {
            cache.keep(wanted, &page(wanted));
        }
        cache.forget(SnapshotId::new(1).unwrap());
        let mut found = Vec::new();
        assert_eq!(cache.take(&[place(1, 1), place(1, 2), place(2, 1)], &mut found).len(), 2);
        assert_eq!(found, [(place(2, 1), page(place(2, 1)))]);
    }

    proptest! {
        #[test]
        fn never_a_wrong_page_and_never_too_many(
            room in 0..6_usize, steps in prop::collection::vec((1..3_u64, 0..8_u32, any::<bool>()), 0..200),
        ) {
            let cache = cache(room);
            for (snapshot, number, keep) in steps {
                let wanted = place(snapshot, number);
                if keep {
                    cache.keep(wanted, &page(wanted));
                }
                let mut found = Vec::new();
                let missing = cache.take(&[wanted], &mut found);
                prop_assert_eq!(missing.len() + found.len(), 1);
                prop_assert!(found.iter().all(|(place, bytes)| *bytes == page(*place)));
                prop_assert!(!keep || room == 0 || missing.is_empty());
                prop_assert!(cache.bytes() <= (room * (PAGE_BYTES + SLOT_BYTES)) as u64);
            }
        }
    }
}
