//! Indexes of base snapshots: made when a sandbox is first aligned with one, shared, and kept within a budget of memory.
//!
//! An index takes as much memory as its base and is made again in a fraction of a second, so one that nobody has used for
//! a while goes ([`Indexes::sweep`]): memory was to be won.

use std::sync::{Arc, Mutex, PoisonError};

use medes_dedup::{
    page::SnapshotId,
    words::{BaseIndex, Memory, MemoryError},
};

use super::local::MainProcess;

/// Indexes that are kept, the one used last at the end.
#[derive(Debug)]
pub struct Indexes {
    budget_bytes: usize,
    kept: Mutex<Vec<Slot>>,
}

#[derive(Debug, Clone)]
struct Slot {
    snapshot: SnapshotId,
    /// Empty until somebody has made it; whoever else wants it meanwhile waits here.
    index: Arc<Mutex<Option<Arc<BaseIndex>>>>,
    /// Since the last sweep.
    used: bool,
}

impl Slot {
    /// What it takes; 0 while it is being made.
    fn bytes(&self) -> usize {
        let made = self.index.try_lock().ok().and_then(|index| index.clone());
        made.map_or(0, |index| index.memory_bytes())
    }
}

impl Indexes {
    /// None yet. What is kept takes at most `budget_bytes`; what is in use may take more.
    pub const fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, kept: Mutex::new(Vec::new()) }
    }

    /// The index of a snapshot's main process. Reads all its pages the first time: call it from a blocking thread.
    pub fn of(&self, snapshot: SnapshotId, main: &MainProcess<'_>) -> Result<Arc<BaseIndex>, MemoryError> {
        let slot = self.slot(snapshot);
        let mut made = slot.index.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match &*made {
            Some(index) => index.clone(),
            None => {
                let (addresses, mappings) = (main.layout.addresses(), main.layout.mappings());
                let memory = Memory::new(&main.pages, &addresses, &mappings);
                let memory = memory.inspect_err(|_wrong| self.forget(snapshot))?;
                made.insert(Arc::new(BaseIndex::new(memory))).clone()
            }
        };
        drop(made);
        self.keep_within_budget();
        Ok(index)
    }

    /// The snapshot is gone.
    pub fn forget(&self, snapshot: SnapshotId) {
        self.lock().retain(|slot| slot.snapshot != snapshot);
    }

    /// Lets go of what was not used since the last sweep.
    pub fn sweep(&self) {
        // An index is as large as its base: it is freed when the lock is free again.
        let unused: Vec<Slot> = self.lock().extract_if(.., |slot| !std::mem::take(&mut slot.used)).collect();
        drop(unused);
    }

    /// Bytes of each that is kept.
    pub fn bytes_by_snapshot(&self) -> Vec<(SnapshotId, u64)> {
        self.lock().iter().map(|slot| (slot.snapshot, slot.bytes() as u64)).collect()
    }

    /// Bytes of all that are kept.
    pub fn bytes(&self) -> usize {
        self.lock().iter().map(Slot::bytes).sum()
    }

    fn slot(&self, snapshot: SnapshotId) -> Slot {
        let mut kept = self.lock();
        let slot = match kept.iter().position(|slot| slot.snapshot == snapshot) {
            Some(at) => Slot { used: true, ..kept.remove(at) },
            None => Slot { snapshot, index: Arc::default(), used: true },
        };
        kept.push(slot.clone());
        slot
    }

    fn keep_within_budget(&self) {
        let mut kept = self.lock();
        let mut bytes: usize = kept.iter().map(Slot::bytes).sum();
        kept.retain(|slot| {
            let fits = bytes <= self.budget_bytes;
            if !fits {
                bytes -= slot.bytes();
            }
            fits
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Slot>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use medes_dedup::page::{Page, ZERO_PAGE};
    use medes_proto::layout::{ProcessLayout, Run};

    use super::*;

    fn id(number: u64) -> SnapshotId {
        SnapshotId::new(number).unwrap()
    }

    #[test]
    fn the_ones_used_longest_ago_go_when_the_budget_is_full() {
        let layout = ProcessLayout::new(vec![Run { address: 4096, pages: 2 }], Vec::new()).unwrap();
        let pages: [&Page; 2] = [&ZERO_PAGE; 2];
        let main = MainProcess { layout: &layout, pages: pages.to_vec() };
        let one = Indexes::new(usize::MAX).of(id(1), &main).unwrap().memory_bytes();
        let indexes = Indexes::new(2 * one);
        let first = indexes.of(id(1), &main).unwrap();
        let second = indexes.of(id(2), &main).unwrap();
        assert!(Arc::ptr_eq(&first, &indexes.of(id(1), &main).unwrap()), "made once");
        indexes.of(id(3), &main).unwrap();
        assert_eq!(indexes.bytes(), 2 * one);
        assert!(Arc::ptr_eq(&first, &indexes.of(id(1), &main).unwrap()), "used lately");
        assert!(!Arc::ptr_eq(&second, &indexes.of(id(2), &main).unwrap()), "made anew");
        indexes.forget(id(2));
        assert_eq!(indexes.bytes(), one);
    }

    #[test]
    fn what_nobody_used_between_two_sweeps_goes() {
        let layout = ProcessLayout::new(vec![Run { address: 4096, pages: 2 }], Vec::new()).unwrap();
        let main = MainProcess { layout: &layout, pages: vec![&ZERO_PAGE; 2] };
        let indexes = Indexes::new(usize::MAX);
        let first = indexes.of(id(1), &main).unwrap();
        indexes.of(id(2), &main).unwrap();
        indexes.sweep();
        assert!(Arc::ptr_eq(&first, &indexes.of(id(1), &main).unwrap()), "used since it was made");
        indexes.sweep();
        assert_eq!(indexes.bytes(), first.memory_bytes(), "only the one that was used again");
        indexes.sweep();
        assert_eq!(indexes.bytes(), 0);
    }

    #[test]
    fn addresses_that_do_not_go_with_the_pages_are_an_error_and_nothing_stays() {
        let layout = ProcessLayout::new(vec![Run { address: 4096, pages: 2 }], Vec::new()).unwrap();
        let indexes = Indexes::new(usize::MAX);
        let main = MainProcess { layout: &layout, pages: vec![&ZERO_PAGE] };
        assert!(matches!(indexes.of(id(1), &main), Err(MemoryError::Addresses { .. })));
        assert_eq!(indexes.bytes(), 0);
    }
}
