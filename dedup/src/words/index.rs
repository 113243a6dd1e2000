//! What is prepared once for a base snapshot, so that any number of sandboxes can be aligned with it.

use thiserror::Error;

use super::align::BLOCK_WORDS;
use super::facts::Facts;
use super::relation::Relation;
use super::token::{KINDS, PAGE_WORDS, Token, exact, token, tokens};
use crate::image::PAGES_MAX;
use crate::mapping::Mappings;
use crate::page::{PAGE_BYTES, Page, PageIndex, ZERO_PAGE};

/// Tokens that make up an anchor.
pub(super) const ANCHOR_WORDS: usize = 4;

/// Places remembered for anchors of one bucket.
const WAYS: usize = 4;

/// A token that no word has.
const NOTHING: Token = *KINDS.end() + 1;

/// No place.
const NONE: u32 = u32::MAX;

/// Why some pages cannot be the memory of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// More pages than an image may have.
    #[error("{pages} pages, more than {PAGES_MAX}")]
    TooMany {
        /// How many.
        pages: usize,
    },
    /// Not one address for each page.
    #[error("{addresses} addresses for {pages} pages")]
    Addresses {
        /// How many addresses.
        addresses: usize,
        /// How many pages.
        pages: usize,
    },
    /// Page addresses are whole pages and rise.
    #[error("page {page} is out of order or not at a page's address")]
    Order {
        /// Which page.
        page: PageIndex,
    },
}

/// The memory of one process: its pages in order of address, where each was, and what was mapped.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'m> {
    pages: &'m [&'m Page],
    addresses: &'m [u64],
    mappings: &'m Mappings,
}

impl<'m> Memory<'m> {
    /// Checks that there is an address for each page, and that they rise.
    pub fn new(
        pages: &'m [&'m Page],
        addresses: &'m [u64],
        mappings: &'m Mappings,
    ) -> Result<Self, MemoryError> {
        if pages.len() > PAGES_MAX {
            return Err(MemoryError::TooMany { pages: pages.len() });
        }
        if addresses.len() != pages.len() {
            return Err(MemoryError::Addresses { addresses: addresses.len(), pages: pages.len() });
        }
        let mut free_from = 0;
        for (page, address) in (0u32..).map(PageIndex).zip(addresses) {
            if *address < free_from || !address.is_multiple_of(PAGE_BYTES as u64) {
                return Err(MemoryError::Order { page });
            }
            free_from = address.saturating_add(PAGE_BYTES as u64);
        }
        Ok(Self { pages, addresses, mappings })
    }

    /// The pages.
    pub const fn pages(&self) -> &'m [&'m Page] {
        self.pages
    }

    /// Where each was.
    pub const fn addresses(&self) -> &'m [u64] {
        self.addresses
    }

    /// What was mapped.
    pub const fn mappings(&self) -> &'m Mappings {
        self.mappings
    }
}

/// A base snapshot, made ready for alignment. Takes about as much memory as the base's pages do (half of it tokens, half
/// the anchor table); the pages themselves are not kept.
#[derive(Debug, Clone)]
pub struct BaseIndex {
    pub(super) mappings: Mappings,
    pub(super) addresses: Vec<u64>,
    pub(super) tokens: Vec<Token>,
    anchors: Vec<[u32; WAYS]>,
    shift: u32,
}

impl BaseIndex {
    /// Reads the whole base once.
    pub fn new(memory: Memory<'_>) -> Self {
        let Memory { pages, addresses, mappings } = memory;
        let tokens = |_, page: &Page, out: &mut _| tokens(page, |word| token(word, mappings), out);
        Self::with_tokens(pages, addresses.to_vec(), mappings.clone(), tokens)
    }

    /// The same base as a target sees it: its words predicted, every one compared as it is.
    pub(super) fn predicted(&self, pages: &[&Page], facts: &Facts, relation: &Relation) -> Self {
        let tokens = |at, page: &Page, out: &mut _| {
            let mut predicted = ZERO_PAGE;
            let words = predicted.as_chunks_mut().0;
            relation.translate(page.as_chunks().0, words);
            relation.put_secret(facts, at * PAGE_WORDS, words);
            tokens(&predicted, exact, out);
        };
        Self::with_tokens(pages, self.addresses.clone(), self.mappings.clone(), tokens)
    }

    fn with_tokens(
        pages: &[&Page],
        addresses: Vec<u64>,
        mappings: Mappings,
        tokens: impl Fn(usize, &Page, &mut [Token]),
    ) -> Self {
        let mut all = Vec::with_capacity(pages.len() * PAGE_WORDS + BLOCK_WORDS);
        let mut page_tokens = [0; PAGE_WORDS];
        for (at, page) in pages.iter().enumerate() {
            tokens(at, page, &mut page_tokens);
            all.extend_from_slice(&page_tokens);
        }
        // Behind the end there is nothing that agrees with anything.
        all.extend_from_slice(&[NOTHING; BLOCK_WORDS]);
        // One place in four becomes an anchor, and a bucket has four ways: half of the ways stay free.
        let buckets = (all.len() / 8).next_power_of_two().max(16);
        let mut index = Self {
            mappings,
            addresses,
            tokens: all,
            anchors: vec![[NONE; WAYS]; buckets],
            shift: 64 - buckets.trailing_zeros(),
        };
        for at in 0..index.tokens.len() - BLOCK_WORDS {
            if let Some(hash) = index.tokens[at..].first_chunk().and_then(anchor) {
                let ways = &mut index.anchors[(hash >> index.shift) as usize];
                // The first ones stay: what comes often, comes early.
                if let Some(free) = ways.iter_mut().find(|place| **place == NONE) {
                    *free = at as u32;
                }
            }
        }
        index
    }

    /// Pages in the base.
    pub fn pages(&self) -> usize {
        self.addresses.len()
    }

    /// Bytes it takes in memory, to be counted against whatever keeps it.
    pub fn memory_bytes(&self) -> usize {
        size_of_val(&self.tokens[..]) + size_of_val(&self.anchors[..]) + size_of_val(&self.addresses[..])
    }

    /// Places that may have these tokens.
    #[inline]
    pub(super) fn places(&self, hash: u64) -> impl Iterator<Item = usize> {
        let ways = self.anchors[(hash >> self.shift) as usize];
        ways.into_iter().take_while(|place| *place != NONE).map(|place| place as usize)
    }

    /// The page at an address.
    pub(super) fn page_at(&self, address: u64) -> Option<usize> {
        self.addresses.binary_search(&address).ok()
    }
}

/// The hash of four tokens, if these say enough and the hash is one of the chosen quarter.
#[inline]
pub(super) fn anchor(tokens: &[Token; ANCHOR_WORDS]) -> Option<u64> {
    let [a, b, c, d] = tokens.map(u64::from);
    let hash =
        (a ^ b << 32).wrapping_mul(0xff51_afd7_ed55_8ccd) ^ (c ^ d << 32).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    let hash = (hash ^ hash >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    if hash & 3 != 0 {
        return None;
    }
    let plain = tokens.iter().filter(|token| **token <= *KINDS.end()).count();
    (plain < ANCHOR_WORDS - 1).then_some(hash)
}
