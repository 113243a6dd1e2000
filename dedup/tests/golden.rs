//! The image format as it was written once, kept as a file. If this fails, old images cannot be read any more:
//! then the version has to change, and this file stays.
//!
//! `MEDES_WRITE_GOLDEN=1 cargo test -p medes-dedup --test golden` writes the file anew.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use std::path::PathBuf;

use common::{KEY, Process, base, changed, heap_page, noise_page, photo_page, process};
use medes_dedup::delta::DeltaCodec;
use medes_dedup::encode::{EncodeRules, Encoder, WordRules, WordsOf};
use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, ZERO_PAGE};
use medes_dedup::rebuild::BasePages;
use medes_dedup::recipe::{Codec, Recipe, Source};
use medes_dedup::words::{Aligner, BaseIndex, Facts, Memory};

const GOLDEN_BYTES_MAX: usize = 8 << 10;

fn golden() -> Vec<u8> {
    golden_file("image-v5.medes", build)
}

fn golden_file(name: &str, build: impl Fn() -> Vec<u8>) -> Vec<u8> {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name].iter().collect();
    if std::env::var_os("MEDES_WRITE_GOLDEN").is_none() {
        return std::fs::read(path).unwrap();
    }
    let file = build();
    std::fs::write(path, &file).unwrap();
    file
}

fn bases() -> [(BasePage, Page); 2] {
    [(base(0x1122_3344_5566_7788, 70_000), heap_page(1)), (base(2, 0), heap_page(2))]
}

/// A page of each kind, several deltas, both bases; more pages than lie between two marks of the index.
fn pages() -> Vec<Page> {
    let [(_, first), (_, second)] = bases();
    let mut pages = vec![ZERO_PAGE, first, changed(&first, 3, 6), [9; PAGE_BYTES], noise_page(4)];
    pages.extend([ZERO_PAGE; 70]);
    pages.extend([changed(&second, 5, 30), second, changed(&first, 6, 1), photo_page(7)]);
    pages
}

fn sections() -> [(&'static str, Vec<u8>); 2] {
    [("core-1.img", b"registers of task 1".repeat(4)), ("empty", Vec::new())]
}

fn build() -> Vec<u8> {
    let bases = bases();
    let candidates: Vec<(BasePage, &Page)> = bases.iter().map(|(name, bytes)| (*name, bytes)).collect();
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    for (at, page) in pages().iter().enumerate() {
        // Without candidates a page stays whole, whatever this version of zstd makes of it.
        let candidates = if at == 3 { &[] } else { candidates.as_slice() };
        builder.push(&encoder.encode_page(page, candidates)).unwrap();
    }
    for (name, data) in sections() {
        builder.section(name, data).unwrap();
    }
    builder.finish().unwrap()
}

/// What must not depend on the version of zstd: everything but how many bytes it made.
fn shape(recipe: Recipe) -> (Recipe, bool) {
    let mut recipe = recipe;
    let mut stored = false;
    if let Source::Delta { place, .. } | Source::Whole { place, .. } = &mut recipe.source {
        stored = place.bytes > 0;
        place.offset = 0;
        place.bytes = 0;
    }
    (recipe, stored)
}

#[test]
fn the_golden_image_still_opens_and_rebuilds() {
    let file = golden();
    assert!(file.len() < GOLDEN_BYTES_MAX, "{} bytes", file.len());
    let image = DedupImage::open(file, &KEY).unwrap();
    let (bases, pages) = (bases(), pages());
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    for (at, page) in (0u32..).zip(&pages) {
        let needed = image.recipe(PageIndex(at)).unwrap().source.base();
        let bytes = needed.map(|name| &bases.iter().find(|(base, _)| *base == name).unwrap().1);
        image.rebuild(&mut codec, PageIndex(at), bytes, &mut out).unwrap();
        assert_eq!(out, *page, "page {at}");
    }
    assert_eq!(image.pages() as usize, pages.len());
    let read = image.sections().unwrap();
    for (name, data) in sections() {
        assert_eq!(read.get(name), Some(data.as_slice()));
    }
}

#[test]
fn the_same_pages_still_make_the_same_image() {
    let golden = DedupImage::open(golden(), &KEY).unwrap();
    let fresh = DedupImage::open(build(), &KEY).unwrap();
    assert_eq!(golden.bases(), fresh.bases());
    let count = |image: &DedupImage<Vec<u8>>| {
        let classes = image.classes();
        (classes.zero, classes.same, classes.delta, classes.whole)
    };
    assert_eq!(count(&golden), (71, 2, 3, 3));
    assert_eq!(count(&golden), count(&fresh));
    assert!(golden.recipes().map(shape).eq(fresh.recipes().map(shape)));
    assert_eq!(golden.sections(), fresh.sections());
    // Version and level, counts, key check: where a reader of any age looks for them.
    assert_eq!(golden.file()[..24], fresh.file()[..24]);
    assert_eq!(golden.file()[48..64], fresh.file()[48..64]);
}

/// A process and a second start of it with a few words and a page of its own, as level 1 stores it.
fn relatives() -> (Process, Process) {
    let (mut from, mut target) = (process(11, 12, 0), process(11, 13, 5));
    // Bytes that moved by less than a word, of which nothing but the predicted page as a dictionary makes anything.
    from.pages[7] = noise_page(16);
    target.pages[7] = from.pages[7];
    target.pages[7][512..].rotate_right(3);
    target.pages[3] = changed(&target.pages[3], 14, 200);
    target.pages[4] = noise_page(15);
    target.pages[5] = ZERO_PAGE;
    target.pages[6].rotate_right(3);
    target.pages[8] = photo_page(17);
    (from, target)
}

fn build_words() -> Vec<u8> {
    let (from, target) = relatives();
    let (base_pages, pages) = (from.pages(), target.pages());
    let index = BaseIndex::new(Memory::new(&base_pages, &from.addresses, &from.mappings).unwrap());
    let memory = Memory::new(&pages, &target.addresses, &target.mappings).unwrap();
    let facts = Facts::none();
    let aligner = Aligner::new(memory, &index, &base_pages, &facts);
    let plan = aligner.plan([aligner.part(0..pages.len())]);
    let snapshot = base(1, 0).snapshot;
    let words = WordsOf { snapshot, pages: &base_pages, facts: &facts, plan: &plan, rules: WordRules::FAST };
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    for (at, page) in (0u32..).map(PageIndex).zip(&pages) {
        builder.push(&encoder.encode_planned(page, at, &words)).unwrap();
    }
    builder.relation(snapshot, plan.relation());
    builder.finish().unwrap()
}

/// Every base page of a process.
struct All(Process);

impl BasePages for All {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.0.pages.get(page.page.0 as usize)
    }
}

/// What is made today may be smaller than this file, but this file is read for ever.
#[test]
fn the_golden_image_of_words_still_opens_and_rebuilds() {
    let file = golden_file("image-v5-words.medes", build_words);
    assert!(file.len() < 2 * GOLDEN_BYTES_MAX, "{} bytes", file.len());
    let image = DedupImage::open(file, &KEY).unwrap();
    let (from, target) = relatives();
    let from = All(from);
    let used: Vec<Codec> = image
        .recipes()
        .filter_map(|recipe| match recipe.source {
            Source::Delta { codec, .. } | Source::Whole { codec, .. } => Some(codec),
            _ => None,
        })
        .collect();
    for codec in [Codec::Words, Codec::Predicted, Codec::Samples] {
        assert!(used.contains(&codec), "{codec:?}");
    }
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    assert_eq!(image.pages() as usize, target.pages.len());
    for (at, page) in (0u32..).map(PageIndex).zip(&target.pages) {
        image.rebuild_from(&mut codec, at, &from, &mut out).unwrap();
        assert!(out == *page, "page {at}");
    }
}
