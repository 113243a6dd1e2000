//! Pages that look like memory, made from a number: the same on every machine and in every run.
#![allow(dead_code, reason = "each test and benchmark uses its own part")]

use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::key::DomainKey;
use medes_dedup::mapping::{Backing, FileName, Mapping, Mappings};
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

/// A page of a photograph: soft shapes with the same grain in red, green and blue, and a fourth byte that says nothing.
pub(crate) fn photo_page(seed: u64) -> Page {
    let mut numbers = Numbers(seed);
    let mut page = ZERO_PAGE;
    for (at, pixel) in page.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let grain = numbers.below(24) as u8;
        let [red, green, blue] = [60, 90, 130].map(|shade: u8| shade + (at / 32) as u8 + grain);
        *pixel = [red, green, blue, 255];
    }
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
        any::<u64>().prop_map(photo_page),
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

/// The memory of a process that was started from a made-up program.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) mappings: Mappings,
    pub(crate) addresses: Vec<u64>,
    pub(crate) pages: Vec<Page>,
}

impl Process {
    pub(crate) fn pages(&self) -> Vec<&Page> {
        self.pages.iter().collect()
    }
}

/// Pages of each mapping of [`process`].
const MAPPING_PAGES: [u64; 6] = [2, 9, 3, 1, 8, 2];

/// Starts the program `program` at random addresses: its pointers point to the same things, wherever these are. Heap and
/// arena have `gap` words in front of their first object.
pub(crate) fn process(program: u64, layout: u64, gap: usize) -> Process {
    let mut places = Numbers(layout);
    let file = |name: &[u8], offset| Backing::File { name: FileName::of(name), offset };
    let backings = [
        file(b"/bin/program", 0x3000),
        Backing::Heap,
        file(b"/lib/library.so", 0x1000),
        file(b"/lib/library.so", 0x9000),
        Backing::Anonymous,
        Backing::Stack,
    ];
    let low = 0x5500_0000_0000 + ((places.next() & 0xfff_ffff) << 12);
    let high = 0x7f00_0000_0000 + ((places.next() & 0xff_ffff) << 12);
    let mut starts = [low, low + 0x10_0000, high, high + 0x8000, 0, 0];
    starts[4] = high + 0x10_0000 + ((places.next() & 0xff) << 12);
    starts[5] = 0x7ff0_0000_0000 + ((places.next() & 0xffff) << 12);
    let mappings = Mappings::new((0..6).map(|at| Mapping {
        start: starts[at],
        end: starts[at] + MAPPING_PAGES[at] * PAGE_BYTES as u64,
        backing: backings[at],
    }));
    let mut made = Process { mappings: mappings.unwrap(), addresses: Vec::new(), pages: Vec::new() };
    for at in 0..6 {
        let gap = if at == 1 || at == 4 { gap } else { 0 };
        let mut content = Numbers(program ^ (at as u64) << 32);
        let mut words = vec![[0; 8]; gap];
        while words.len() < MAPPING_PAGES[at] as usize * 512 {
            let number = content.next();
            words.push(match number % 8 {
                0..3 => {
                    let to = content.below(6);
                    let gap = if to == 1 || to == 4 { gap as u64 * 8 } else { 0 };
                    let inside = MAPPING_PAGES[to] * PAGE_BYTES as u64 - 2048;
                    (starts[to] + gap + (number >> 32) % inside / 16 * 16).to_le_bytes()
                }
                3..5 => (number >> 58).to_le_bytes(),
                5 => *b"medes.py",
                6 => [0; 8],
                _ => (number >> 20).to_le_bytes(),
            });
        }
        words.truncate(MAPPING_PAGES[at] as usize * 512);
        for (page, words) in (0u64..).zip(words.as_chunks::<512>().0) {
            let mut bytes = ZERO_PAGE;
            bytes.as_chunks_mut::<8>().0.copy_from_slice(words);
            made.addresses.push(starts[at] + page * PAGE_BYTES as u64);
            made.pages.push(bytes);
        }
    }
    made
}
