//! Where each part of a page comes from in the base: pieces of a page, each a run of blocks with one base position.
//!
//! Heaps of two processes hold the same objects at other distances, so a page rarely lines up with one base page.
//! The search goes block by block (64 bytes) and compares tokens: the position of the block before is kept while it
//! fits; else a few recent positions, the same place by mapping, and anchors found in the base's index may take over.

use super::index::{ANCHOR_WORDS, BaseIndex, Memory, anchor};
use super::token::{KINDS, PAGE_WORDS, Token, exact, token, tokens, word};
use crate::mapping::Mappings;
use crate::page::{Page, PageIndex};

/// Words of a block, the unit of pieces.
pub(crate) const BLOCK_WORDS: usize = 8;

/// Blocks of a page.
pub(crate) const PAGE_BLOCKS: usize = PAGE_WORDS / BLOCK_WORDS;

/// Blocks that are compared at once. Two, so that one odd word does not decide.
const LOOK_BLOCKS: usize = 2;

/// Words that are compared at once.
pub(super) const LOOK_WORDS: usize = LOOK_BLOCKS * BLOCK_WORDS;

/// Something for each of these words.
type Look<T> = [T; LOOK_WORDS];

/// Something for each word of a page; behind its end, words that count nothing, so that the last block can look ahead.
type Padded<T> = Box<[T; PAGE_WORDS + LOOK_WORDS]>;

/// What another position must bring to be taken: two words, more than what a piece costs, because each piece is another
/// place to read. It hardly matters: 2, 4 and 7 stored the same within 0.1 % of the memory.
const SWITCH_GAIN: u32 = 6;

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
    /// Are words compared as they are?
    exact: bool,
    /// Base position minus target position, in words, over the whole memories.
    drift: i64,
    recent: [i64; RECENT],
    next: usize,
    tokens: Padded<Token>,
    weights: Padded<u32>,
}

impl<'b> Walk<'b> {
    pub(super) fn new(base: &'b BaseIndex, exact: bool) -> Self {
        Self {
            base,
            exact,
            drift: 0,
            recent: [0; RECENT],
            next: 0,
            tokens: Box::new([0; _]),
            weights: Box::new([0; _]),
        }
    }

    /// The pieces of one page of the target. `same` is the base page at the same place, if there is one, and
    /// `before` what an earlier walk found.
    pub(super) fn page(
        &mut self,
        memory: &Memory<'_>,
        at: usize,
        same: Option<usize>,
        before: &[Piece],
        pieces: &mut Vec<Piece>,
    ) {
        let mappings = memory.mappings();
        match self.exact {
            true => tokens(memory.pages()[at], exact, &mut self.tokens[..]),
            false => tokens(memory.pages()[at], |word| token(word, mappings), &mut self.tokens[..]),
        }
        for (weight, token) in self.weights.iter_mut().zip(&self.tokens[..PAGE_WORDS]) {
            *weight = 1 + 2 * u32::from(*token > 0) + u32::from(*token > *KINDS.end());
        }
        let page_start = (at * PAGE_WORDS) as i64;
        let same = same.map(|page| (page * PAGE_WORDS) as i64 - page_start);
        let mut from = Origin::Base(page_start + self.drift);
        let mut run = 0;
        let mut before = before.iter().flat_map(|piece| (0..piece.blocks).map(|_| piece.from));
        for block in 0..PAGE_BLOCKS {
            let chosen = self.block(block, page_start, from, (same, before.next()));
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
    fn block(
        &mut self,
        block: usize,
        page_start: i64,
        now: Origin,
        (same, before): (Option<i64>, Option<Origin>),
    ) -> Origin {
        let now_score = self.score(block, now);
        let perfect: u32 = self.weights[block * BLOCK_WORDS..][..LOOK_WORDS].iter().sum();
        if now_score == perfect {
            return now;
        }
        let mut best = (now_score + SWITCH_GAIN, now);
        let consider = |best: &mut (u32, Origin), from| {
            let score = self.score(block, from);
            if score > best.0 {
                *best = (score, from);
            }
            score == perfect
        };
        if consider(&mut best, Origin::Zeros) {
            return Origin::Zeros;
        }
        if let Some(before) = before {
            consider(&mut best, before);
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

    /// How well the words from this block on agree with the base there.
    #[inline]
    fn score(&self, block: usize, from: Origin) -> u32 {
        let at = block * BLOCK_WORDS;
        let (Some(mine), Some(weights)) = (self.tokens[at..].first_chunk(), self.weights[at..].first_chunk())
        else {
            return 0;
        };
        match from {
            Origin::Zeros => agreement(mine, &[0; LOOK_WORDS], weights),
            Origin::Base(start) => {
                let Ok(first) = usize::try_from(start + at as i64) else { return 0 };
                let theirs = self.base.tokens.get(first..).and_then(<[Token]>::first_chunk);
                theirs.map_or(0, |theirs| agreement(mine, theirs, weights))
            }
        }
    }

    /// Pointers of the page just aligned that stand where the base has pointers of the same kind.
    pub(super) fn pointers(
        &self,
        (page, mappings): (&Page, &Mappings),
        pieces: &[Piece],
        base: &[&Page],
        mut found: impl FnMut(Seen),
    ) {
        let mut at = 0;
        for piece in pieces {
            let end = at + usize::from(piece.blocks) * BLOCK_WORDS;
            let Origin::Base(start) = piece.from else {
                at = end;
                continue;
            };
            for mine in at..end {
                let pointer = word(page, mine);
                let kind = if self.exact { token(pointer, mappings) } else { self.tokens[mine] };
                if !KINDS.contains(&kind) {
                    continue;
                }
                let Ok(theirs) = usize::try_from(start + mine as i64) else { continue };
                let Some(base_page) = base.get(theirs / PAGE_WORDS) else { continue };
                let base_pointer = word(base_page, theirs % PAGE_WORDS);
                let base_kind = match self.exact {
                    true => token(base_pointer, &self.base.mappings),
                    false => self.base.tokens[theirs],
                };
                if base_kind == kind {
                    found(Seen { base: base_pointer, shift: pointer.wrapping_sub(base_pointer) });
                }
            }
            at = end;
        }
    }
}

/// The weights of the words that are equal. Without branches, so that it becomes a few vector instructions.
#[inline]
fn agreement(mine: &Look<Token>, theirs: &Look<Token>, weights: &Look<u32>) -> u32 {
    let mut sum = 0;
    for word in 0..LOOK_WORDS {
        sum += u32::from(mine[word] == theirs[word]).wrapping_neg() & weights[word];
    }
    sum
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
