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
pub(crate) use delta::{Known, PageOfWords, PageSource, WordEncoder, decode_pieces, pages_needed};
pub use facts::Facts;
pub use index::{BaseIndex, Memory, MemoryError};
use learn::Learner;
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
    /// What an earlier pass found, when this one compares words as that one predicts them.
    before: Option<&'a Plan>,
    same: Vec<Option<PageIndex>>,
}

/// Some pages of a target, aligned: what one worker hands over.
#[derive(Debug, Clone)]
pub struct Part {
    pieces: Vec<Piece>,
    /// For each page, where its pieces end.
    ends: Vec<usize>,
    learner: Learner,
}

/// How every page of a target is made of the base.
#[derive(Debug, Clone)]
pub struct Plan {
    pieces: Vec<Piece>,
    ends: Vec<usize>,
    relation: Relation,
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
        Self { memory, base: Cow::Borrowed(base), base_pages, facts, before: None, same }
    }

    /// A second look at the same target, for the level `small`: against what the plan predicts, pointers tell objects
    /// apart that look alike without them. Costs as much time as the first, and once more the index's memory.
    pub fn refine(&self, plan: &'a Plan) -> Self {
        let base = self.base.predicted(self.base_pages, self.facts, &plan.relation);
        Self { base: Cow::Owned(base), before: Some(plan), same: self.same.clone(), ..*self }
    }

    /// The tables of the entropy coder, learned from a part of the pages.
    fn model(&self, plan: &Plan) -> entropy::Model {
        let mut counts = entropy::Counts::new(context::ALL);
        let mut encoder = WordEncoder::new();
        let known = Known { pages: self.base_pages, facts: self.facts, relation: &plan.relation };
        let pages = self.memory.pages();
        let pass = usize::from(self.before.is_some());
        let times = 1 + pages.len() / SAMPLE_PAGES[pass];
        for at in (0..pages.len()).step_by(times) {
            encoder.count(pages[at], plan.pieces(at), &known, &mut counts);
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
        let mut walk = Walk::new(&self.base, self.before.is_some());
        let mut part = Part { pieces: Vec::new(), ends: Vec::new(), learner: Learner::new() };
        for at in pages {
            let (Some(page), Some(same)) = (self.memory.pages().get(at), self.same.get(at)) else { break };
            let first = part.pieces.len();
            let before = self.before.map(|plan| plan.pieces(at)).unwrap_or_default();
            walk.page(&self.memory, at, same.map(|page| page.0 as usize), before, &mut part.pieces);
            part.ends.push(part.pieces.len());
            let found = &part.pieces[first..];
            walk.pointers((page, self.memory.mappings()), found, self.base_pages, |seen| {
                part.learner.see(seen);
            });
        }
        part
    }

    /// Puts the parts together, which cover all pages in order, and learns the pointer table.
    pub fn plan(&self, parts: impl IntoIterator<Item = Part>) -> Plan {
        let (mut plan, learner) = joined(parts);
        plan.relation = Relation {
            translation: learner.translation(&self.base.mappings, self.memory.mappings()),
            secret: self.secret(),
            ..Relation::default()
        };
        plan.relation.model = self.model(&plan);
        plan
    }

    /// The same with the relation of an earlier image of the target, whose pages are taken over: an image has one
    /// relation for each base. What is new in the target is predicted worse than by [`Self::plan`], never wrong.
    pub fn plan_with(&self, parts: impl IntoIterator<Item = Part>, relation: &Relation) -> Plan {
        let (plan, _learner) = joined(parts);
        Plan { relation: relation.clone(), ..plan }
    }
}

/// The pieces of all parts, and what their pointers say.
fn joined(parts: impl IntoIterator<Item = Part>) -> (Plan, Learner) {
    let mut plan = Plan { pieces: Vec::new(), ends: Vec::new(), relation: Relation::default() };
    let mut learner = Learner::new();
    for part in parts {
        let before = plan.pieces.len();
        plan.pieces.extend(part.pieces);
        plan.ends.extend(part.ends.iter().map(|end| before + end));
        learner.merge(part.learner);
    }
    (plan, learner)
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
        encoder.encode(page, self.pieces(at.0 as usize), &known)
    }

    /// The base page that the page is aligned with from end to end, if it is one.
    pub(crate) fn only_page(&self, at: PageIndex) -> Option<PageIndex> {
        match self.pieces(at.0 as usize) {
            [Piece { from: Origin::Base(start), .. }] if start.rem_euclid(PAGE_WORDS as i64) == 0 => {
                u32::try_from(start / PAGE_WORDS as i64).ok().map(PageIndex)
            }
            _ => None,
        }
    }

    fn pieces(&self, page: usize) -> &[Piece] {
        let start = page.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(page).and_then(|end| self.pieces.get(start..*end)).unwrap_or_default()
    }
}
