//! Where each part of a page comes from in the base: pieces of a page, each a run of blocks with one base position.
//!
//! Heaps of two processes hold the same objects at other distances, so a page rarely lines up with one base page.
//! For each block (64 bytes) a few base positions compete: those that won before, the same place by mapping, and places
//! that the base's index names for the block's words. The sequence that explains most words at the price of fewest changes
//! of position wins (the Viterbi algorithm, with a narrow beam); where one position explains everything, nothing else is looked at.

use super::index::{ANCHOR_WORDS, BaseIndex, Memory, anchor};
use super::token::{KINDS, PAGE_WORDS, Token, WORD_BYTES, exact, token, tokens, word};
use crate::mapping::Mappings;
use crate::page::{Page, PageIndex};

/// Words of a block, the unit of pieces.
pub(crate) const BLOCK_WORDS: usize = 8;

/// Blocks of a page.
pub(crate) const PAGE_BLOCKS: usize = PAGE_WORDS / BLOCK_WORDS;

/// Something for each word of a block.
type Block<T> = [T; BLOCK_WORDS];

/// What a word that is predicted right is worth: a zero, a pointer of some kind, anything else.
const WEIGHTS: [i32; 3] = [1, 2, 4];

/// What a change of position costs, in the same measure: a piece takes about as many bytes as one and a half wrong words.
const SWITCH_COST: i32 = 6;

/// Positions that compete for one block, at most.
const CANDIDATES_MAX: usize = 24;

/// Positions tried again at the start of a page because they were right lately.
const RECENT: usize = 6;

/// Pieces of an earlier image are kept while not more than this part of a page disagrees with them.
const KEPT_PART: i32 = 8;

/// A page of which no more words changed has stayed the page it was.
const STAYED_WORDS_MAX: usize = PAGE_WORDS / 16;

/// How hard to look.
#[derive(Debug, Clone, Copy)]
struct Effort {
    /// Positions that compete for one block.
    candidates: usize,
    /// Positions that are kept from one block to the next.
    beam: usize,
    /// Anchors looked up for one block.
    lookups: usize,
}

impl Effort {
    /// A first walk, of words without their addresses: takes three quarters of the time of a thorough one, and finds nearly the same.
    const LIGHT: Self = Self { candidates: 12, beam: 4, lookups: 2 };
    /// A second walk.
    const THOROUGH: Self = Self { candidates: CANDIDATES_MAX, beam: 10, lookups: 4 };
}

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

/// A position in the competition: the base word that stands for word 0 of the page, and how well it did so far.
#[derive(Debug, Clone, Copy)]
struct State {
    from: Origin,
    score: i32,
    /// Which state of the block before it comes from.
    parent: u8,
}

/// The competitors at one block.
#[derive(Debug, Clone)]
struct Round {
    states: [State; CANDIDATES_MAX],
    count: usize,
}

impl Round {
    const EMPTY: Self =
        Self { states: [State { from: Origin::Zeros, score: 0, parent: 0 }; CANDIDATES_MAX], count: 0 };

    fn states(&self) -> &[State] {
        &self.states[..self.count]
    }

    /// Is there room for one more that is not there yet?
    fn takes(&self, from: Origin, candidates: usize) -> bool {
        self.count < candidates && !self.states().iter().any(|state| state.from == from)
    }

    fn push(&mut self, state: State) {
        self.states[self.count] = state;
        self.count += 1;
    }

    /// The best ones first, and no others.
    fn prune(&mut self, beam: usize) {
        let states = &mut self.states[..self.count];
        states.sort_unstable_by_key(|state| std::cmp::Reverse(state.score));
        let least = states[0].score - SWITCH_COST;
        // Who is a whole change behind can as well be changed to later.
        let good = states.iter().take_while(|state| state.score > least).count();
        self.count = good.clamp(1, beam);
    }
}

/// Walks over the pages of a target in order.
pub(super) struct Walk<'b> {
    base: &'b BaseIndex,
    /// Are words compared as they are?
    exact: bool,
    effort: Effort,
    /// Base position minus target position, in words over the whole memories: what was right lately, the last one first.
    recent: [i64; RECENT],
    tokens: Box<[Token; PAGE_WORDS]>,
    weights: Box<[i32; PAGE_WORDS]>,
    rounds: Vec<Round>,
}

impl<'b> Walk<'b> {
    pub(super) fn new(base: &'b BaseIndex, exact: bool) -> Self {
        Self {
            base,
            exact,
            effort: if exact { Effort::THOROUGH } else { Effort::LIGHT },
            recent: [0; RECENT],
            tokens: Box::new([0; _]),
            weights: Box::new([0; _]),
            rounds: vec![Round::EMPTY; PAGE_BLOCKS],
        }
    }

    /// One page that is the base page at the same place, or hardly another. Nothing is looked at but the bytes: most pages of a target that
    /// descends from its base are like this.
    pub(super) fn stayed(
        &mut self,
        (page, at): (&Page, usize),
        (same, base): (usize, &Page),
        pieces: &mut Vec<Piece>,
    ) -> bool {
        let words = page.as_chunks::<WORD_BYTES>().0.iter().zip(base.as_chunks::<WORD_BYTES>().0);
        let changed: usize = words.map(|(mine, theirs)| usize::from(mine != theirs)).sum();
        if self.exact || changed > STAYED_WORDS_MAX {
            return false;
        }
        let start = (same * PAGE_WORDS) as i64;
        pieces.push(Piece { blocks: PAGE_BLOCKS as u8, from: Origin::Base(start) });
        self.remember(start - (at * PAGE_WORDS) as i64);
        true
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
        for (weight, token) in self.weights.iter_mut().zip(&self.tokens[..]) {
            *weight = WEIGHTS[usize::from(*token > 0) + usize::from(*token > *KINDS.end())];
        }
        let page_start = (at * PAGE_WORDS) as i64;
        if self.tokens.iter().all(|token| *token == 0) {
            pieces.push(Piece { blocks: PAGE_BLOCKS as u8, from: Origin::Zeros });
            return;
        }
        let near = [same.map(|page| page * PAGE_WORDS), usize::try_from(page_start + self.recent[0]).ok()];
        if let Some(start) = near.into_iter().flatten().find(|start| self.all_agree(*start)) {
            pieces.push(Piece { blocks: PAGE_BLOCKS as u8, from: Origin::Base(start as i64) });
            self.remember(start as i64 - page_start);
            return;
        }
        if !self.exact && self.mostly_agree(before) {
            pieces.extend_from_slice(before);
            return;
        }
        let same = same.map(|page| Origin::Base((page * PAGE_WORDS) as i64));
        let mut before = before.iter().flat_map(|piece| (0..piece.blocks).map(|_| piece.from));
        for block in 0..PAGE_BLOCKS {
            self.round(block, page_start, same, before.next());
        }
        self.choose(page_start, pieces);
    }

    /// Is the whole page what the base has from this word on?
    fn all_agree(&self, start: usize) -> bool {
        self.base.tokens.get(start..start + PAGE_WORDS).is_some_and(|theirs| theirs == &self.tokens[..])
    }

    /// Do these pieces, which are of the whole page or none, still explain so much that a walk would hardly find better ones?
    fn mostly_agree(&self, pieces: &[Piece]) -> bool {
        let perfect: i32 = self.weights.iter().sum();
        let (mut block, mut sum) = (0, 0);
        for piece in pieces {
            for at in (block..block + usize::from(piece.blocks)).map(|block| block * BLOCK_WORDS) {
                let mine = self.tokens.get(at..).and_then(<[Token]>::first_chunk);
                let weights = self.weights.get(at..).and_then(<[i32]>::first_chunk);
                let (Some(mine), Some(weights)) = (mine, weights) else { return false };
                sum += agreed(self.base, at, piece.from, mine, weights);
            }
            block += usize::from(piece.blocks);
        }
        block == PAGE_BLOCKS && sum >= perfect - perfect / KEPT_PART
    }

    /// Lets the candidates of one block compete.
    fn round(&mut self, block: usize, page_start: i64, same: Option<Origin>, before: Option<Origin>) {
        let Self { base, recent, tokens, weights, rounds, effort, .. } = self;
        let at = block * BLOCK_WORDS;
        let (Some(tokens), Some(weights)) = (tokens.get(at..), weights[at..].first_chunk()) else { return };
        let Some(mine) = tokens.first_chunk() else { return };
        let agreed = |from| agreed(base, at, from, mine, weights);
        let perfect: i32 = weights.iter().sum();
        let (past, [round, ..]) = rounds.split_at_mut(block) else { return };
        round.count = 0;
        let last = past.last().map_or(&[][..], Round::states);
        let (changed, mut best) = (last.first().map_or(0, |state| state.score) - SWITCH_COST, i32::MIN);
        for (parent, state) in last.iter().enumerate() {
            let agreed = agreed(state.from);
            best = best.max(agreed);
            round.push(State { from: state.from, score: state.score + agreed, parent: parent as u8 });
        }
        // While somebody is right, only what is right too could matter later.
        if best < perfect {
            let consider = |round: &mut Round, from: Origin| {
                if !round.takes(from, effort.candidates) {
                    return i32::MIN;
                }
                let agreed = agreed(from);
                round.push(State { from, score: changed + agreed, parent: 0 });
                agreed
            };
            best = best.max(consider(round, Origin::Zeros));
            for from in same.into_iter().chain(before) {
                best = best.max(consider(round, from));
            }
            if block == 0 {
                for drift in *recent {
                    best = best.max(consider(round, Origin::Base(page_start + drift)));
                }
            }
            // Looking up costs most, so it is for blocks that are far from right.
            if best < perfect - perfect / 8 {
                let anchors = tokens.windows(ANCHOR_WORDS).take(BLOCK_WORDS).enumerate();
                let found = anchors.filter_map(|(word, tokens)| Some((word, anchor(tokens.first_chunk()?)?)));
                for (word, hash) in found.take(effort.lookups) {
                    for place in base.places(hash) {
                        consider(round, Origin::Base(place as i64 - (at + word) as i64));
                    }
                }
            }
        }
        round.prune(effort.beam);
    }

    /// Follows the winner back to the start of the page.
    fn choose(&mut self, page_start: i64, pieces: &mut Vec<Piece>) {
        let mut chosen = [Origin::Zeros; PAGE_BLOCKS];
        let mut winner = 0;
        for block in (0..PAGE_BLOCKS).rev() {
            let state = self.rounds[block].states[winner];
            chosen[block] = state.from;
            winner = usize::from(state.parent);
        }
        for run in chosen.chunk_by(|a, b| a == b) {
            pieces.push(Piece { blocks: run.len() as u8, from: run[0] });
            if let Origin::Base(start) = run[0] {
                self.remember(start - page_start);
            }
        }
    }

    fn remember(&mut self, drift: i64) {
        let known = self.recent.iter().position(|known| *known == drift).unwrap_or(RECENT - 1);
        self.recent[..=known].rotate_right(1);
        self.recent[0] = drift;
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

/// How well a block's words, which begin at word `at` of the page, agree with the base there.
#[inline]
fn agreed(base: &BaseIndex, at: usize, from: Origin, mine: &Block<Token>, weights: &Block<i32>) -> i32 {
    match from {
        Origin::Zeros => agreement(mine, &[0; BLOCK_WORDS], weights),
        Origin::Base(start) => {
            let Ok(first) = usize::try_from(start + at as i64) else { return 0 };
            let theirs = base.tokens.get(first..).and_then(<[Token]>::first_chunk);
            theirs.map_or(0, |theirs| agreement(mine, theirs, weights))
        }
    }
}

/// The weights of the words that are equal. Without branches, so that it becomes a few vector instructions.
#[inline]
fn agreement(mine: &Block<Token>, theirs: &Block<Token>, weights: &Block<i32>) -> i32 {
    let mut sum = 0;
    for word in 0..BLOCK_WORDS {
        sum += i32::from(mine[word] == theirs[word]).wrapping_neg() & weights[word];
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
