//! Pages that look like memory, made from a number: the same on every machine and in every run.
#![allow(dead_code, reason = "each test and benchmark uses its own part")]

use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::key::DomainKey;
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE};
use proptest::prelude::*;

/// The key of most tests.
pub(crate) const KEY: DomainKey = DomainKey::from_bytes([42; 32]);

/// A small generator (splitmix64). Enough for test data, and fixed for ever, which the golden file needs.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// A page of words as a heap has them: pointers into a few mappings, small counts, text, zeros.
pub(crate) fn heap_page(seed: u64) -> Page {
    let mut numbers = Numbers(seed);
    let mut page = ZERO_PAGE;
    for word in page.as_chunks_mut::<8>().0 {
        let number = numbers.next();
        *word = match number % 8 {
            0..3 => (0x7f12_3456_0000 | (number >> 40) & 0x7ff8).to_le_bytes(),
            3..5 => (number >> 58).to_le_bytes(),
            5 => *b"medes.py",
            6 => [0; 8],
            _ => (number >> 20).to_le_bytes(),
        };
    }
    page
}

/// A page nobody can compress.
pub(crate) fn noise_page(seed: u64) -> Page {
    let mut numbers = Numbers(seed);
    let mut page = ZERO_PAGE;
    page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = numbers.next().to_le_bytes());
    page
}

/// The page with some of its words replaced, as a second start of the same program would have it.
pub(crate) fn changed(page: &Page, seed: u64, words: usize) -> Page {
    let mut numbers = Numbers(seed);
    let mut other = *page;
    for _ in 0..words {
        let word = numbers.below(PAGE_BYTES / 8);
        other.as_chunks_mut::<8>().0[word] = numbers.next().to_le_bytes();
    }
    other
}

/// A name for a base page.
pub(crate) fn base(snapshot: u64, page: u32) -> BasePage {
    BasePage { snapshot: SnapshotId::new(snapshot).unwrap(), page: PageIndex(page) }
}

/// Any page: noise, one byte repeated, heap, mostly zeros.
pub(crate) fn any_page() -> impl Strategy<Value = Page> {
    prop_oneof![
        any::<u64>().prop_map(noise_page),
        any::<u8>().prop_map(|byte| [byte; PAGE_BYTES]),
        any::<u64>().prop_map(heap_page),
        (any::<u64>(), 0usize..20).prop_map(|(seed, words)| changed(&ZERO_PAGE, seed, words)),
    ]
}

/// Any page with any base: unrelated, equal, or with some words changed.
pub(crate) fn any_pair() -> impl Strategy<Value = (Page, Page)> {
    prop_oneof![
        (any_page(), any_page()),
        any_page().prop_map(|page| (page, page)),
        (any_page(), any::<u64>(), 1usize..200)
            .prop_map(|(base, seed, words)| (changed(&base, seed, words), base)),
        (any_page(), 1usize..300).prop_map(|(base, by)| {
            let mut page = base;
            page.rotate_right(by);
            (page, base)
        }),
    ]
}

/// Closes a builder and opens the result.
pub(crate) fn finished(builder: ImageBuilder) -> DedupImage<Vec<u8>> {
    DedupImage::open(builder.finish().unwrap(), &KEY).unwrap()
}
