//! The part of the work on pages that makes them words of a base: aligning a process with one, then encoding it.
//!
//! All calls into the engine's alignment are here.

use std::{num::NonZeroUsize, ops::Range, thread};

use medes_dedup::{
    encode::{EncodeRules, EncodedPage, EncodedRun, Encoder, PageClass, WordRules, WordsOf},
    key::DomainKey,
    page::{Page, PageIndex, SnapshotId},
    words::{Aligner, BaseIndex, Earlier, Facts, Memory, Part, Relation},
};
use medes_proto::fleet::Level;

use super::{finish, share, tell_distrust};

/// A base as a process is aligned with it: its name, its index and the pages that was made of.
#[derive(Debug, Clone, Copy)]
pub struct WordsBase<'b> {
    /// Which snapshot; its first pages are these.
    pub snapshot: SnapshotId,
    /// What was prepared of it.
    pub index: &'b BaseIndex,
    /// Its pages.
    pub pages: &'b [&'b Page],
    /// What they say about themselves.
    pub facts: &'b Facts,
}

/// A process made of words of a base.
#[derive(Debug)]
pub struct Worded {
    /// The base.
    pub snapshot: SnapshotId,
    /// Its pages in order.
    pub runs: Vec<EncodedRun>,
    /// What they were predicted with, which the image keeps.
    pub relation: Relation,
}

/// A page of words from this many bytes on is worth a question to the registry: another base may have it.
const ASK_BYTES_MIN: usize = 1024;

/// Whether the registry may know something better than what was found.
pub fn is_worth_asking(page: &EncodedPage<'_>) -> bool {
    match page.class() {
        PageClass::Zero | PageClass::Same => false,
        PageClass::Delta => page.stored_bytes() >= ASK_BYTES_MIN,
        PageClass::Whole => true,
    }
}

/// Makes a process of words of a base; `earlier` is what is known of its pages from an image of which others are taken over.
/// `hot`: positions of pages that are to be quick to have back, rather than small, in order. Nothing of it is in doubt: every page was proven to come back.
pub fn encode(
    memory: Memory<'_>,
    base: WordsBase<'_>,
    (level, earlier, hot): (Level, Option<&Earlier<'_>>, &[PageIndex]),
    (key, rules): (&DomainKey, EncodeRules),
    threads: NonZeroUsize,
) -> Worded {
    let pages = memory.pages();
    let put_together = |aligner: &Aligner<'_>| aligner.plan(parts(aligner, pages.len(), threads));
    let aligner = Aligner::new(memory, base.index, base.pages, base.facts);
    let aligner = match earlier {
        Some(earlier) => aligner.again(earlier),
        None => aligner,
    };
    let plan = put_together(&aligner);
    let (plan, word_rules) = match level {
        Level::None | Level::Fast => (plan, WordRules::FAST),
        Level::Small => {
            let second = aligner.refine(&plan);
            (put_together(&second), WordRules::SMALL)
        }
    };
    let WordsBase { snapshot, pages: base_pages, facts, .. } = base;
    let words = WordsOf { snapshot, pages: base_pages, facts, plan: &plan, rules: word_rules };
    let runs = runs(pages, (&words, hot), (key, rules), threads);
    Worded { snapshot: base.snapshot, runs, relation: plan.relation().clone() }
}

/// Consecutive ranges of so many pages, one for each worker.
fn ranges(pages: usize, threads: NonZeroUsize) -> impl Iterator<Item = Range<usize>> {
    let share = share(pages, threads);
    (0..pages).step_by(share).map(move |start| start..pages.min(start + share))
}

fn parts(aligner: &Aligner<'_>, pages: usize, threads: NonZeroUsize) -> Vec<Part> {
    thread::scope(|scope| {
        let workers: Vec<_> =
            ranges(pages, threads).map(|range| scope.spawn(move || aligner.part(range))).collect();
        workers.into_iter().map(finish).collect()
    })
}

fn runs(
    pages: &[&Page],
    (words, hot): (&WordsOf<'_>, &[PageIndex]),
    (key, rules): (&DomainKey, EncodeRules),
    threads: NonZeroUsize,
) -> Vec<EncodedRun> {
    let work = |range: Range<usize>| {
        let mut encoder = Encoder::new(key, rules);
        let mut run = EncodedRun::new();
        let quick = WordsOf { rules: WordRules::HOT, ..*words };
        for (at, page) in range.clone().zip(&pages[range]) {
            let at = PageIndex(u32::try_from(at).unwrap_or(u32::MAX));
            let words = if hot.binary_search(&at).is_ok() { &quick } else { words };
            run.push(&encoder.encode_planned(page, at, words));
        }
        tell_distrust(&encoder);
        run
    };
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> =
            ranges(pages.len(), threads).map(|range| scope.spawn(move || work(range))).collect();
        workers.into_iter().map(finish).collect()
    })
}
