//! A page, its place in a base snapshot, and the numbers everybody agrees on.

use std::fmt;

/// Bytes in one page. The image format stores page counts, so this can never change.
pub const PAGE_BYTES: usize = 4096;

/// Bytes in one chunk, the unit of a fingerprint (the paper's "reusable sandbox chunk", section 4.1).
pub const CHUNK_BYTES: usize = 64;

const _: () = assert!(PAGE_BYTES.is_multiple_of(CHUNK_BYTES));

/// The bytes of one page.
pub type Page = [u8; PAGE_BYTES];

/// A page of zeros.
pub const ZERO_PAGE: Page = [0; PAGE_BYTES];

/// Number of a base snapshot, unique in a cluster for ever. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(std::num::NonZeroU64);

impl SnapshotId {
    /// `None` for zero, which no snapshot has.
    pub const fn new(number: u64) -> Option<Self> {
        match std::num::NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number, as files and messages carry it.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// As people read it: both halves of the number, whoever chose them.
impl fmt::Display for SnapshotId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "base-{}-{}", self.get() >> 32, self.get() & u64::from(u32::MAX))
    }
}

/// Position of a page in a snapshot or in a sandbox's dump, counted in pages from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageIndex(pub u32);

/// One page of one base snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BasePage {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The page in it.
    pub page: PageIndex,
}

impl fmt::Display for PageIndex {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)
    }
}

impl fmt::Display for BasePage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.snapshot, self.page)
    }
}

/// Is every byte of the page zero?
pub fn is_zero(page: &Page) -> bool {
    // Chunk by chunk: the first one usually answers, and each is a few vector instructions.
    page.as_chunks::<CHUNK_BYTES>().0.iter().all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
}
