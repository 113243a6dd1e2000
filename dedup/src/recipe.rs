//! How to rebuild one page.
//!
//! In a dedup image the recipes of all pages are one table of a few bytes for each page (see [`Recipes`]).
//! Where a page's bytes begin is not stored: they follow those of the page before. So recipes cannot overlap,
//! cannot leave gaps, and cannot point outside.

mod table;

pub(crate) use table::{Kind, Record, Records, write_group};
pub use table::{PAGES_PER_GROUP, ParseRecipeError, RECIPE_BYTES_MAX, Recipes};

use crate::key::PageHash;
use crate::page::BasePage;

/// What made the stored bytes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The bytes are the page itself.
    Raw,
    /// zstd, with the base page as dictionary if there is one.
    Zstd,
    /// Samples of something, by themselves (see [`crate::samples`]).
    Samples,
    /// Words of the base, not only of the page that is named (see [`crate::words`]).
    Words,
    /// zstd, with what the words predict as dictionary.
    Predicted,
}

impl Codec {
    /// Does it take a pointer table, and more base pages than the one that is named?
    pub const fn is_of_words(self) -> bool {
        matches!(self, Self::Words | Self::Predicted)
    }
}

/// A run of bytes in an image's arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Where it begins, from the start of the arena.
    pub offset: u64,
    /// How long it is; never more than a page.
    pub bytes: u16,
}

/// What a page is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Zero,
    /// The base page, unchanged.
    Same(BasePage),
    /// The base page, changed by the bytes at `place`.
    Delta {
        /// The base page.
        base: BasePage,
        /// What made the bytes.
        codec: Codec,
        /// Where they are.
        place: Place,
    },
    /// The bytes at `place` and nothing else.
    Whole {
        /// What made the bytes.
        codec: Codec,
        /// Where they are.
        place: Place,
    },
}

impl Source {
    /// The base page that must be at hand to rebuild the page.
    pub const fn base(&self) -> Option<BasePage> {
        match self {
            Self::Same(base) | Self::Delta { base, .. } => Some(*base),
            Self::Zero | Self::Whole { .. } => None,
        }
    }
}

/// How to rebuild one page, and the hash it must have then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Keyed hash of the page.
    pub hash: PageHash,
    /// What it is made of.
    pub source: Source,
}
