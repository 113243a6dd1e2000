//! One shard of the table: open addressing with linear probing, kept in the order of its keys.
//!
//! The home of a key rises with the key, so keeping runs sorted (Robin Hood's rule, in effect) makes the whole
//! array sorted apart from holes. That gives three things: a lookup stops at the first larger key, growing is one
//! pass that copies forward, and a deletion sweep compacts in place. Capacity need not be a power of two, so the
//! table grows in small steps and stays between 68 % and 82 % full: 19.5 to 23.4 bytes for an entry of 16.

/// One hash of one base page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// The hash without the bits that chose the shard, shifted to the top.
    pub(super) key: u64,
    pub(super) handle: u32,
    pub(super) page: u32,
}

/// No snapshot has this handle.
pub(super) const NO_HANDLE: u32 = u32::MAX;
const HOLE: Entry = Entry { key: 0, handle: NO_HANDLE, page: 0 };

/// Slots added behind the last home at a time, for keys that were pushed out. No wrapping around: order is simpler.
const TAIL: usize = 64;
const HOMES_MIN: usize = 64;

const _: () = assert!(size_of::<Entry>() == 16);

/// What became of an insertion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    Added,
    Known,
    Refused,
}

#[derive(Debug, Default)]
pub(super) struct Shard {
    /// Homes, then the tail. Empty until the first insertion.
    slots: Vec<Entry>,
    homes: usize,
    len: usize,
}

impl Shard {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Entry>()
    }

    /// Every entry of a key, in the order they were added.
    pub(super) fn entries(&self, key: u64) -> &[Entry] {
        let Some(rest) = self.slots.get(home(key, self.homes)..) else { return &[] };
        let is_before = |slot: &&Entry| slot.handle != NO_HANDLE && slot.key < key;
        let skip = rest.iter().take_while(is_before).count();
        let found = rest[skip..].iter().take_while(|slot| slot.handle != NO_HANDLE && slot.key == key);
        let count = found.count();
        &rest[skip..skip + count]
    }

    /// Adds an entry, unless its key has `list_max` already.
    pub(super) fn insert(&mut self, entry: Entry, list_max: usize) -> Inserted {
        let list = self.entries(entry.key);
        if list.contains(&entry) {
            return Inserted::Known;
        }
        if list.len() >= list_max {
            return Inserted::Refused;
        }
        // 82 %.
        if (self.len + 1) * 100 > self.homes * 82 {
            self.rebuild(self.homes + self.homes / 5 + HOMES_MIN);
        }
        self.place(entry);
        self.len += 1;
        Inserted::Added
    }

    /// Puts an entry in its place and moves those behind it.
    fn place(&mut self, entry: Entry) {
        let from = home(entry.key, self.homes);
        let is_before = |slot: &&Entry| slot.handle != NO_HANDLE && slot.key <= entry.key;
        let at = from + self.slots[from..].iter().take_while(is_before).count();
        let hole = self.slots[at..].iter().position(|slot| slot.handle == NO_HANDLE);
        let hole = at + hole.unwrap_or_else(|| self.extend_tail(at));
        self.slots.copy_within(at..hole, at + 1);
        self.slots[at] = entry;
    }

    /// Adds holes at the end. Returns how far the first of them is behind `from`.
    fn extend_tail(&mut self, from: usize) -> usize {
        let first = self.slots.len();
        self.slots.reserve_exact(TAIL);
        self.slots.resize(first + TAIL, HOLE);
        first - from
    }

    /// Copies everything to an array with this many homes.
    fn rebuild(&mut self, homes: usize) {
        let homes = homes.max(HOMES_MIN);
        let mut slots = Vec::with_capacity(homes + TAIL);
        slots.resize(homes + TAIL, HOLE);
        let mut free = 0;
        for entry in self.slots.iter().filter(|slot| slot.handle != NO_HANDLE) {
            let at = home(entry.key, homes).max(free);
            if at >= slots.len() {
                slots.resize(at + TAIL, HOLE);
            }
            slots[at] = *entry;
            free = at + 1;
        }
        (self.slots, self.homes) = (slots, homes);
    }

    /// Removes all entries of a handle and closes the gaps.
    pub(super) fn remove(&mut self, handle: u32) -> usize {
        let homes = self.homes;
        let mut free = 0;
        let mut removed = 0;
        for from in 0..self.slots.len() {
            let entry = std::mem::replace(&mut self.slots[from], HOLE);
            if entry.handle == NO_HANDLE {
                continue;
            }
            if entry.handle == handle {
                removed += 1;
                continue;
            }
            // Never behind where it was: it was at its home or right behind a smaller one, and so it is now.
            let to = home(entry.key, homes).max(free);
            self.slots[to] = entry;
            free = to + 1;
        }
        self.len -= removed;
        if self.len * 100 < homes * 40 && homes > HOMES_MIN {
            self.rebuild(self.len * 100 / 70);
        }
        removed
    }
}

/// Where a key would like to be. Rises with the key.
fn home(key: u64, homes: usize) -> usize {
    // The product's upper half is below `homes`, so it fits again.
    ((u128::from(key) * homes as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_in_order(shard: &Shard) {
        let full: Vec<_> =
            shard.slots.iter().enumerate().filter(|(_, slot)| slot.handle != NO_HANDLE).collect();
        assert_eq!(full.len(), shard.len());
        assert!(full.windows(2).all(|pair| pair[0].1.key <= pair[1].1.key));
        for (at, slot) in full {
            let from = home(slot.key, shard.homes);
            assert!(
                shard.slots[from..=at].iter().all(|slot| slot.handle != NO_HANDLE),
                "hole before {slot:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn order_holds_through_insertions_and_removals(
            steps in prop::collection::vec((0u64..400, 0u32..6, 0u32..4, 0u8..12), 0..900),
            shift in 0u32..56,
        ) {
            let mut shard = Shard::default();
            for (key, handle, page, what) in steps {
                if what == 0 {
                    shard.remove(handle);
                } else {
                    // Crowded at the end of the key space for small shifts, spread for large ones.
                    let key = u64::MAX - (key << shift);
                    shard.insert(Entry { key, handle, page }, 3);
                    prop_assert!(shard.entries(key).len() <= 3);
                }
                is_in_order(&shard);
            }
        }
    }

    #[test]
    fn an_entry_takes_at_most_24_bytes() {
        let mut shard = Shard::default();
        let mut key = 1u64;
        let mut worst = 0.0f64;
        for page in 0..200_000 {
            key = key.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            shard.insert(Entry { key, handle: 1, page }, 8);
            if page > 20_000 {
                worst = worst.max(shard.bytes() as f64 / shard.len() as f64);
            }
        }
        assert!(worst <= 24.0, "{worst} bytes");
        assert_eq!(shard.remove(1), 200_000);
        assert!(shard.bytes() < 4_096);
    }
}
