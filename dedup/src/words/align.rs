//! Where each part of a page comes from in the base: pieces of a page, each a run of blocks with one base position.
//!
//! Heaps of two processes hold the same objects at other distances, so a page rarely lines up with one base page.
//! The search goes block by block (64 bytes) and compares tokens: the position of the block before is kept while it
//! fits; else a few recent positions, the same place by mapping, and anchors found in the base's index may take over.

use super::index::{ANCHOR_WORDS, BaseIndex, Memory, anchor};
use super::token::{KINDS, PAGE_WORDS, Token, tokens, word};
use crate::page::{Page, PageIndex};

/// Words of a block, the unit of pieces.
pub(crate) const BLOCK_WORDS: usize = 8;

/// Blocks of a page.
pub(crate) const PAGE_BLOCKS: usize = PAGE_WORDS / BLOCK_WORDS;

/// Blocks that are compared at once. Two, so that one odd word does not decide.
const LOOK_BLOCKS: usize = 2;

/// What another position must bring to be taken: about what a piece costs.
const SWITCH_GAIN: u32 = 4;

/// Positions tried again because they were right lately.
const RECENT: usize = 6;

/// Anchors looked up for one block.
const LOOKUPS_MAX: usize = 3;

/// Where a run of blocks comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nowhere: zeros.
    Zeros,
    /// Base words from this one on, minus the run's first word in the page: position of a word of the base that
    /// stands for word 0 of the page. May be negative, where the run begins further on.
    Base(i64),
}

/// A run of blocks of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// How many blocks.
    pub(crate) blocks: u8,
    /// Where they come from.
    pub(crate) from: Origin,
}

/// A pointer of the base and what stands in its place in the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) base: u64,
    pub(crate) shift: u64,
}

/// Walks over the pages of a target in order.
pub(super) struct Walk<'b> {
    base: &'b BaseIndex,
    /// Base position minus target position, in words, over the whole memories.
    drift: i64,
    recent: [i64; RECENT],
    next: usize,
    tokens: Box<[Token; PAGE_WORDS]>,
    weights: Box<[u32; PAGE_WORDS]>,
}

impl<'b> Walk<'b> {
    pub(super) fn new(base: &'b BaseIndex) -> Self {
        Self {
            base,
            drift: 0,
            recent: [0; RECENT],
            next: 0,
            tokens: Box::new([0; PAGE_WORDS]),
            weights: Box::new([0; PAGE_WORDS]),
        }
    }

    /// The pieces of one page of the target. `same` is the base page at the same place, if there is one.
    pub(super) fn page(
        &mut self,
        memory: &Memory<'_>,
        at: usize,
        same: Option<usize>,
        pieces: &mut Vec<Piece>,
    ) {
        tokens(memory.pages()[at], memory.mappings(), &mut self.tokens);
        for (weight, token) in self.weights.iter_mut().zip(self.tokens.iter()) {
            *weight = 1 + 2 * u32::from(*token > 0) + u32::from(*token > *KINDS.end());
        }
        let page_start = (at * PAGE_WORDS) as i64;
        let same = same.map(|page| (page * PAGE_WORDS) as i64 - page_start);
        let mut from = Origin::Base(page_start + self.drift);
        let mut run = 0;
        for block in 0..PAGE_BLOCKS {
            let chosen = self.block(block, page_start, from, same);
            if chosen != from && run > 0 {
                pieces.push(Piece { blocks: run, from });
                run = 0;
            }
            from = chosen;
            run += 1;
        }
        pieces.push(Piece { blocks: run, from });
    }

    /// Where this block comes from, given where the one before came from.
    fn block(&mut self, block: usize, page_start: i64, now: Origin, same: Option<i64>) -> Origin {
        let words = block * BLOCK_WORDS..((block + LOOK_BLOCKS) * BLOCK_WORDS).min(PAGE_WORDS);
        let now_score = self.score(words.clone(), now);
        let perfect: u32 = self.weights[words.clone()].iter().sum();
        if now_score == perfect {
            return now;
        }
        let mut best = (now_score + SWITCH_GAIN, now);
        let consider = |best: &mut (u32, Origin), from| {
            let score = self.score(words.clone(), from);
            if score > best.0 {
                *best = (score, from);
            }
            score == perfect
        };
        if consider(&mut best, Origin::Zeros) {
            return Origin::Zeros;
        }
        for drift in same.into_iter().chain(self.recent) {
            if consider(&mut best, Origin::Base(page_start + drift)) {
                break;
            }
        }
        // Looking up costs most, so it is for blocks that are far from right.
        if best.0 < perfect - perfect / 4 {
            let mut lookups = 0;
            for at in block * BLOCK_WORDS..((block + 1) * BLOCK_WORDS).min(PAGE_WORDS - ANCHOR_WORDS) {
                let Some(hash) = self.tokens[at..].first_chunk().and_then(anchor) else { continue };
                for place in self.base.places(hash) {
                    consider(&mut best, Origin::Base(place as i64 - at as i64));
                }
                lookups += 1;
                if lookups == LOOKUPS_MAX {
                    break;
                }
            }
        }
        if let Origin::Base(start) = best.1 {
            self.remember(start - page_start);
        }
        best.1
    }

    fn remember(&mut self, drift: i64) {
        self.drift = drift;
        if !self.recent.contains(&drift) {
            self.recent[self.next] = drift;
            self.next = (self.next + 1) % RECENT;
        }
    }

    /// How well some words of the page agree with the base there.
    #[inline]
    fn score(&self, words: std::ops::Range<usize>, from: Origin) -> u32 {
        let (mine, weights) = (&self.tokens[words.clone()], &self.weights[words.clone()]);
        let weighed = |equal: bool, weight: &u32| if equal { *weight } else { 0 };
        match from {
            Origin::Zeros => {
                mine.iter().zip(weights).map(|(token, weight)| weighed(*token == 0, weight)).sum()
            }
            Origin::Base(start) => {
                let Ok(first) = usize::try_from(start + words.start as i64) else { return 0 };
                let Some(theirs) = self.base.tokens.get(first..first + words.len()) else { return 0 };
                let pairs = mine.iter().zip(theirs).zip(weights);
                pairs.map(|((a, b), weight)| weighed(a == b, weight)).sum()
            }
        }
    }

    /// Pointers of the page just aligned that stand where the base has pointers of the same kind.
    pub(super) fn pointers(
        &self,
        page: &Page,
        pieces: &[Piece],
        base: &[&Page],
        mut found: impl FnMut(Seen),
    ) {
        let mut at = 0;
        for piece in pieces {
            let end = at + usize::from(piece.blocks) * BLOCK_WORDS;
            if let Origin::Base(start) = piece.from {
                for mine in at..end {
                    let kind = self.tokens[mine];
                    if !KINDS.contains(&kind) {
                        continue;
                    }
                    let Ok(theirs) = usize::try_from(start + mine as i64) else { continue };
                    if self.base.tokens.get(theirs) == Some(&kind)
                        && let Some(base_page) = base.get(theirs / PAGE_WORDS)
                    {
                        let pointer = word(base_page, theirs % PAGE_WORDS);
                        found(Seen { base: pointer, shift: word(page, mine).wrapping_sub(pointer) });
                    }
                }
            }
            at = end;
        }
    }
}

/// The base page at the same place as each page of the target.
pub(super) fn same_places(memory: &Memory<'_>, base: &BaseIndex) -> Vec<Option<PageIndex>> {
    let shifts = memory.mappings().shifts_to(&base.mappings);
    let mut mappings = memory.mappings().as_slice().iter().zip(shifts).peekable();
    let place = |address: &u64| {
        while mappings.peek().is_some_and(|(mapping, _)| mapping.end <= *address) {
            mappings.next();
        }
        let (mapping, shift) = mappings.peek()?;
        let there = address.wrapping_add((*shift)?);
        let page = (mapping.start <= *address).then(|| base.page_at(there))??;
        Some(PageIndex(page as u32))
    };
    memory.addresses().iter().map(place).collect()
}
