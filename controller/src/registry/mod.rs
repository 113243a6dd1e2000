//! The fingerprint registry: chunk hash to base pages. Its answers are hints; bytes decide.
//!
//! Behind a trait, so that a distributed store can take the place of the table in this process when one machine is
//! too small.

use medes_proto::{
    ids::SnapshotId,
    registry::{Fingerprints, Hint},
};

mod shard;
mod table;
mod votes;

pub use medes_dedup::page::PageIndex;
pub use table::{Table, TableSettings};

/// What became of a registration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registered {
    /// New entries.
    pub added: u64,
    /// Entries left out, because the hash's list or the whole registry was full.
    pub refused: u64,
}

/// How large the registry is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Entries: one hash of one page each.
    pub entries: u64,
    /// Memory they take.
    pub bytes: u64,
}

/// Chunk hash to base pages. All calls may come from several threads at once and may block for a short time.
pub trait Registry: Send + Sync + std::fmt::Debug {
    /// Adds the fingerprints of consecutive pages of a snapshot. Entries that are there already are not added twice.
    fn register(&self, snapshot: SnapshotId, first: PageIndex, pages: &Fingerprints) -> Registered;

    /// For each page the base pages that share most chunks with it, best first, of snapshots that pass `admit`.
    /// The same registry content gives the same answer, in whatever order it was filled, as long as no list is full.
    fn lookup(&self, pages: &Fingerprints, admit: &dyn Fn(SnapshotId) -> bool) -> Vec<Vec<Hint>>;

    /// Removes everything about a snapshot.
    fn forget(&self, snapshot: SnapshotId);

    /// How large it is.
    fn size(&self) -> Size;
}
