//! What is known about a base beyond its bytes: which of its words follow from a secret that each process draws anew.
//!
//! A language runtime that hashes with a random key fills its memory with words that no other process has. Who knows
//! how it hashes needs only the key. Each runtime is one implementation of [`Runtime`]; none of them can do harm: what is predicted
//! wrongly is stored as a correction, like everything else.

use std::fmt;
use std::sync::{Arc, OnceLock};

use super::cpython;
use super::index::Memory;
use super::token::WORD_BYTES;
use super::translation::Translation;

/// What a process drew at its start.
pub(super) type Secret = [u64; 2];

/// Bytes of a secret.
pub(super) const SECRET_BYTES: usize = 16;

/// A runtime found in a base.
pub(super) trait Runtime: fmt::Debug + Send + Sync {
    /// The secret of a target, for which `shift` says how far its mappings are from the base's.
    fn secret_of(&self, target: &Memory<'_>, shift: &dyn Fn(u64) -> Option<u64>) -> Option<Secret>;

    /// Is this the base's own, so that its words are right as they are?
    fn is_own(&self, secret: Secret) -> bool;

    /// Puts right those words of the base, from `first` on and with pointers translated, that follow from the secret.
    fn predict(
        &self,
        secret: Secret,
        translation: &Translation,
        cache: &TableCache,
        first: usize,
        words: &mut [[u8; WORD_BYTES]],
    );

    /// Bytes it takes in memory.
    fn memory_bytes(&self) -> usize;
}

/// Tables of one target that are too large to make anew for each page. Made when first needed; they live as long as the
/// image is open, and take at most what they take in the base.
#[derive(Debug, Clone, Default)]
pub(super) struct TableCache(OnceLock<Box<[Slot]>>);

/// One table, once it is made.
type Slot = OnceLock<Box<[u8]>>;

impl TableCache {
    /// Table `number` of `count`; nothing if it was filled from the facts of another base.
    pub(super) fn get(&self, number: usize, count: usize, make: impl FnOnce() -> Box<[u8]>) -> &[u8] {
        let tables = self.0.get_or_init(|| vec![OnceLock::new(); count].into_boxed_slice());
        tables.get(number).map_or(&[][..], |table| table.get_or_init(make))
    }

    /// Bytes it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let tables = self.0.get().map(|tables| &tables[..]).unwrap_or_default();
        let made = tables.iter().filter_map(|table| table.get()).map(|table| table.len());
        size_of_val(tables) + made.sum::<usize>()
    }
}

/// What the memory of a base says about itself. Found once for each base, wherever its pages are; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    runtime: Option<Arc<dyn Runtime>>,
}

impl Facts {
    /// Reads the whole base. The same base always gives the same facts.
    pub fn study(memory: Memory<'_>) -> Self {
        let runtime = cpython::Findings::search(memory).map(|found| Arc::new(found) as Arc<dyn Runtime>);
        Self { runtime }
    }

    /// Nothing is known: words are predicted from words alone.
    pub fn none() -> Self {
        Self::default()
    }

    /// Bytes they take in memory.
    pub fn memory_bytes(&self) -> usize {
        self.runtime.as_ref().map_or(0, |runtime| runtime.memory_bytes())
    }

    pub(super) fn runtime(&self) -> Option<&dyn Runtime> {
        self.runtime.as_deref()
    }
}
