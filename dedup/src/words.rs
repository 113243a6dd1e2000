//! Pages made of words of one base, wherever in the base these are: the levels `fast` and `small`.
//!
//! Two processes of one program hold the same objects at other addresses and other distances, full of pointers. So a
//! target is aligned with its base at 8-byte steps (`align`), its pointers are predicted from the base's through a table
//! that is learned from the alignment (`learn`, `translation`), and what is left is stored word by word (`delta`).
//! A prediction that is wrong costs a few bytes, never a page.
//!
//! ```text
//! base pages ──► BaseIndex (once for each base)
//!                   │
//! target pages ─────┴─► Part, Part, ... (each on a thread) ──► Plan ──► page by page: `encode` ──► bytes
//! ```

mod align;
mod context;
mod cpython;
mod delta;
mod entropy;
mod facts;
mod index;
mod learn;
mod page_pieces;
mod pieces;
mod relation;
mod siphash;
mod token;
mod translation;
pub(crate) mod varint;
mod wrong;

use std::borrow::Cow;
use std::ops::Range;

use align::{Origin, Piece, Walk};
pub use delta::DecodeWordsError;
pub(crate) use delta::{Known, PageOfWords, PageSource, Rest, WordEncoder, decode_pieces, pages_needed};
pub use facts::Facts;
pub use index::{BaseIndex, Memory, MemoryError};
use learn::Learner;
use page_pieces::PagePieces;
pub use relation::{RELATION_BYTES_MAX, ReadRelationError, Relation};
use token::PAGE_WORDS;
pub use translation::{ENTRIES_MAX, ReadTranslationError, TRANSLATION_BYTES_MAX, Translation};

use crate::page::{Page, PageIndex};

/// Pages that the entropy coder's tables are learned from, about: in a first pass, and in one that has more time. With fewer,
/// 0.07 % of the memory more is stored.
const SAMPLE_PAGES: [usize; 2] = [512, 8192];

/// From how many bits of information on a byte is stored as it is: where it is read often, and where it only waits.
const BYTE_BITS_MAX: [f64; 2] = [5.0, 7.6];

/// Aligns a target with a base.
#[derive(Debug)]
pub struct Aligner<'a> {
    memory: Memory<'a>,
    base: Cow<'a, BaseIndex>,
    base_pages: &'a [&'a Page],
    facts: &'a Facts,
    /// How words are compared.
    pass: Pass,
    /// What was found before, by an earlier pass or for an earlier image: where to look first.
    before: Option<&'a PagePieces>,
    /// The relation that there is already and that has to do.
    relation: Option<&'a Relation>,
    same: Vec<Option<PageIndex>>,
}

/// How words of the target and the base are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Without their addresses.
    First,
    /// As they are, the base's as they are predicted.
    Exact,
}

/// Some pages of a target, aligned: what one worker hands over.
#[derive(Debug, Clone)]
pub struct Part {
    pieces: PagePieces,
    learner: Learner,
    /// Pages that are what the base has at the same place, and all that it has something for.
    stayed: usize,
    placed: usize,
}

/// How every page of a target is made of the base.
#[derive(Debug, Clone)]
pub struct Plan {
    pieces: PagePieces,
    relation: Relation,
}

/// What an earlier image of a target knows about its pages: see [`DedupImage::earlier`](crate::image::DedupImage::earlier).
#[derive(Debug)]
pub struct Earlier<'i> {
    relation: &'i Relation,
    pieces: PagePieces,
}

impl<'i> Earlier<'i> {
    /// Nothing yet but how words of a base became words of the target.
    pub(crate) fn new(relation: &'i Relation) -> Self {
        Self { relation, pieces: PagePieces::default() }
    }

    /// One more page, which was stored as this code; `None` if it was stored another way. What cannot be read says nothing.
    pub(crate) fn push(&mut self, code: Option<(PageIndex, &[u8])>) {
        if let Some((named, bytes)) = code
            && let Some(pieces) = delta::pieces_of(bytes, named, self.relation)
        {
            self.pieces.open_page().extend_from_slice(pieces.as_slice());
        }
        self.pieces.end_page();
    }

    /// One more page, which was the same as this one of the base.
    pub(crate) fn push_same(&mut self, page: PageIndex) {
        let from = Origin::Base(page.0 as i64 * PAGE_WORDS as i64);
        self.pieces.open_page().push(Piece { blocks: align::PAGE_BLOCKS as u8, from });
        self.pieces.end_page();
    }
}

impl<'a> Aligner<'a> {
    /// For a target and the base it resembles. `base_pages` are the pages the index was made of, `facts` what they say.
    pub fn new(
        memory: Memory<'a>,
        base: &'a BaseIndex,
        base_pages: &'a [&'a Page],
        facts: &'a Facts,
    ) -> Self {
        let same = align::same_places(&memory, base);
        let (pass, before, relation) = (Pass::First, None, None);
        Self { memory, base: Cow::Borrowed(base), base_pages, facts, pass, before, relation, same }
    }

    /// For a target of which an earlier image exists, whose pages are taken over where they have not changed: an image has one
    /// relation for each base, so this is made with that one. What is new in the target is predicted worse, never wrong.
    ///
    /// Pages that are still much like what they were are not aligned anew, which takes most of the time.
    pub fn again(self, earlier: &'a Earlier<'_>) -> Self {
        Self { before: Some(&earlier.pieces), relation: Some(earlier.relation), ..self }
    }

    /// A second look at the same target, for the level `small`: against what the plan predicts, pointers tell objects
    /// apart that look alike without them. Costs as much time as the first, and once more the index's memory.
    pub fn refine(&self, plan: &'a Plan) -> Self {
        let base = self.base.predicted(self.base_pages, self.facts, &plan.relation);
        let (base, before) = (Cow::Owned(base), Some(&plan.pieces));
        Self { base, pass: Pass::Exact, before, same: self.same.clone(), ..*self }
    }

    /// The tables of the entropy coder, learned from a part of the pages.
    fn model(&self, plan: &Plan) -> entropy::Model {
        let mut counts = entropy::Counts::new(context::ALL);
        let mut encoder = WordEncoder::new();
        let known = Known { pages: self.base_pages, facts: self.facts, relation: &plan.relation };
        let pages = self.memory.pages();
        let pass = usize::from(self.pass == Pass::Exact);
        let times = 1 + pages.len() / SAMPLE_PAGES[pass];
        for at in (0..pages.len()).step_by(times) {
            encoder.count(pages[at], plan.pieces.of(at), &known, &mut counts);
        }
        let rule = entropy::PlainBytes { bits_min: BYTE_BITS_MAX[pass], times };
        entropy::Model::learn(&counts, context::OF_BYTES, rule)
    }

    fn secret(&self) -> Option<facts::Secret> {
        let shifts = self.base.mappings.shifts_to(self.memory.mappings());
        let mappings = self.base.mappings.as_slice();
        let shift = |address| {
            let at = mappings.partition_point(|mapping| mapping.end <= address);
            mappings
                .get(at)
                .filter(|mapping| mapping.start <= address)
                .and_then(|_| shifts.get(at).copied()?)
        };
        self.facts.runtime()?.secret_of(&self.memory, &shift)
    }

    /// Aligns a range of the target's pages. Parts may be made at the same time.
    pub fn part(&self, pages: Range<usize>) -> Part {
        let mut walk = Walk::new(&self.base, self.pass == Pass::Exact);
        let mut part = Part { pieces: PagePieces::default(), learner: Learner::new(), stayed: 0, placed: 0 };
        for at in pages {
            let (Some(page), Some(same)) = (self.memory.pages().get(at), self.same.get(at)) else { break };
            let before = self.before.map(|pieces| pieces.of(at)).unwrap_or_default();
            let pieces = part.pieces.open_page();
            let stays = same.and_then(|same| Some((same.0 as usize, *self.base_pages.get(same.0 as usize)?)));
            part.placed += usize::from(stays.is_some());
            if stays.is_some_and(|stays| walk.stayed((page, at), stays, pieces)) {
                part.stayed += 1;
                part.pieces.end_page();
                continue;
            }
            walk.page(&self.memory, at, same.map(|page| page.0 as usize), before, pieces);
            let found = part.pieces.end_page();
            if self.relation.is_some() {
                continue;
            }
            walk.pointers((page, self.memory.mappings()), found, self.base_pages, |seen| {
                part.learner.see(seen);
            });
        }
        part
    }

    /// Puts the parts together, which cover all pages in order, and learns the pointer table.
    pub fn plan(&self, parts: impl IntoIterator<Item = Part>) -> Plan {
        let (mut pieces, mut learner) = (PagePieces::default(), Learner::new());
        let (mut stayed, mut placed) = (0, 0);
        for part in parts {
            pieces.append(part.pieces);
            learner.merge(part.learner);
            stayed += part.stayed;
            placed += part.placed;
        }
        if let Some(relation) = self.relation {
            return Plan { pieces, relation: relation.clone() };
        }
        let (base, target) = (&self.base.mappings, self.memory.mappings());
        // In one that descends from the base, only single objects have moved, which is not worth a look at every pointer.
        let descends = base.stayed_in(target) && stayed * 4 >= placed * 3;
        let translation = if descends { Translation::default() } else { learner.translation(base, target) };
        let is_own =
            |secret: &facts::Secret| self.facts.runtime().is_some_and(|runtime| runtime.is_own(*secret));
        let secret = self.secret().filter(|secret| !(descends && is_own(secret)));
        let relation = Relation { translation, secret, ..Relation::default() };
        let mut plan = Plan { pieces, relation };
        plan.relation.model = self.model(&plan);
        plan
    }
}

impl Plan {
    /// How the target's words follow from the base's, which an image keeps once for each base.
    pub const fn relation(&self) -> &Relation {
        &self.relation
    }

    /// A page of the target as words of the base.
    pub(crate) fn encode<'e>(
        &self,
        encoder: &'e mut WordEncoder,
        at: PageIndex,
        page: &Page,
        (base, facts): (&[&Page], &Facts),
    ) -> Option<PageOfWords<'e>> {
        let known = Known { pages: base, facts, relation: &self.relation };
        encoder.encode(page, self.pieces.of(at.0 as usize), &known)
    }

    /// Half of the proof that bytes are this page: they name the pieces it was encoded with. The other half is that what is
    /// behind them makes it of what these predict.
    pub(crate) fn reread<'d>(&'d self, at: PageIndex, bytes: &'d [u8], named: PageIndex) -> Option<Rest<'d>> {
        delta::reread_pieces(bytes, named, self.pieces.of(at.0 as usize), &self.relation)
    }

    /// The base page that the page is aligned with from end to end, if it is one.
    pub(crate) fn only_page(&self, at: PageIndex) -> Option<PageIndex> {
        match self.pieces.of(at.0 as usize) {
            [Piece { from: Origin::Base(start), .. }] if start.rem_euclid(PAGE_WORDS as i64) == 0 => {
                u32::try_from(start / PAGE_WORDS as i64).ok().map(PageIndex)
            }
            _ => None,
        }
    }
}
