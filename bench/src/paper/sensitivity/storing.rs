//! The paper's rule with any chunk size and any number of chunks in a page: which base page a page would be stored against.

use std::collections::HashMap;

use medes_dedup::{
    fingerprint::{VALUE_MASK, VALUE_PATTERN},
    page::{BasePage, Page, is_zero},
};

use crate::engine::{dump::Dump, ours::Base};

/// Base pages kept for one chunk.
const PAGES_MAX: usize = 16;

/// How pages are sampled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) chunk_bytes: usize,
    pub(super) chunks: usize,
}

impl Rule {
    /// The paper's.
    pub(super) const PAPER: Self = Self { chunk_bytes: 64, chunks: 5 };

    /// The first chunks of a page whose last two bytes match the pattern, without overlap.
    fn sample(self, page: &[u8]) -> impl Iterator<Item = &[u8]> {
        let Self { chunk_bytes, chunks } = self;
        let mut next = 0;
        let sampled = page.windows(chunk_bytes).enumerate().filter(move |(at, chunk)| {
            let [.., low, high] = chunk else { return false };
            let hit = *at >= next && u16::from_le_bytes([*low, *high]) & VALUE_MASK == VALUE_PATTERN;
            if hit {
                next = at + chunk_bytes;
            }
            hit
        });
        sampled.map(|(_, chunk)| chunk).take(chunks)
    }

    /// For each page of the target the base page that shares most chunks with it, if there is one.
    pub(super) fn choices(self, target: &Dump, base: &Base<'_>) -> Vec<Vec<BasePage>> {
        let mut known: HashMap<&[u8], Vec<BasePage>> = HashMap::new();
        for (name, page) in base.named_pages() {
            for chunk in self.sample(page) {
                let pages = known.entry(chunk).or_default();
                if pages.len() < PAGES_MAX {
                    pages.push(name);
                }
            }
        }
        let choice = |page: &Page| {
            let mut votes: HashMap<BasePage, u32> = HashMap::new();
            let chunks = if is_zero(page) { 0 } else { usize::MAX };
            for chunk in self.sample(page).take(chunks) {
                for name in known.get(chunk).into_iter().flatten() {
                    *votes.entry(*name).or_default() += 1;
                }
            }
            // Of several the first in the base: the same choice in every run.
            let best = votes
                .into_iter()
                .max_by_key(|(name, votes)| (*votes, std::cmp::Reverse((name.snapshot, name.page))));
            best.map(|(name, _)| name).into_iter().collect()
        };
        target.pages().iter().map(choice).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pattern 0x0105 under mask 0x0307: a byte that ends in 101, then one that ends in 01.
    const MARK: [u8; 2] = [0x05, 0x01];

    #[test]
    fn chunks_are_those_that_end_in_the_pattern() {
        let mut page = vec![0xff; 40];
        page[6..8].copy_from_slice(&MARK);
        page[9..11].copy_from_slice(&MARK);
        page[20..22].copy_from_slice(&MARK);
        let rule = |chunks| Rule { chunk_bytes: 8, chunks };
        let found: Vec<&[u8]> = rule(5).sample(&page).collect();
        assert_eq!(found, [&page[..8], &page[14..22]], "the second begins within the first");
        assert_eq!(rule(1).sample(&page).count(), 1);
        assert_eq!(Rule { chunk_bytes: 32, chunks: 5 }.sample(&page).count(), 0);
    }
}
