//! From many hits to a few candidates: each hit is a vote for a base page.

use medes_dedup::page::{BasePage, PageIndex};
use medes_proto::{
    ids::SnapshotId,
    limits::{PAGE_CANDIDATES_MAX, PAGE_CHUNKS_MAX},
    registry::Hint,
};

/// Hits of one page: handle in the upper half, page number in the lower. Made once, used for many pages.
#[derive(Debug, Default)]
pub(super) struct Votes {
    hits: Vec<u64>,
    hints: Vec<Hint>,
}

impl Votes {
    pub(super) fn add(&mut self, handle: u32, page: u32) {
        self.hits.push(u64::from(handle) << 32 | u64::from(page));
    }

    /// The base pages with most votes, best first; equal ones by snapshot and page number. Starts anew.
    pub(super) fn count(&mut self, name: impl Fn(u32) -> Option<SnapshotId>) -> Vec<Hint> {
        self.hits.sort_unstable();
        self.hints.clear();
        for same in self.hits.chunk_by(|a, b| a == b) {
            let handle = (same[0] >> 32) as u32;
            let page = PageIndex((same[0] & u64::from(u32::MAX)) as u32);
            let Some(snapshot) = name(handle) else { continue };
            let votes = same.len().min(PAGE_CHUNKS_MAX) as u8;
            self.hints.push(Hint { base: BasePage { snapshot, page }, votes });
        }
        self.hits.clear();
        let order = |hint: &Hint| (std::cmp::Reverse(hint.votes), hint.base);
        if self.hints.len() > PAGE_CANDIDATES_MAX {
            self.hints.select_nth_unstable_by_key(PAGE_CANDIDATES_MAX, order);
            self.hints.truncate(PAGE_CANDIDATES_MAX);
        }
        self.hints.sort_unstable_by_key(order);
        self.hints.clone()
    }
}
