//! Whatever goes in comes out: pages through the codec, the encoder, the image and back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use common::{KEY, any_page, any_pair, base, changed, finished, heap_page, noise_page, photo_page};
use medes_dedup::delta::{CODED_BYTES_MAX, DeltaCodec, Level};
use medes_dedup::encode::{EncodeRules, EncodedRun, Encoder, PageClass, PreferWhole};
use medes_dedup::image::{BASES_MAX, BuildImageError, ImageBuilder};
use medes_dedup::key::PageHasher;
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, ZERO_PAGE};
use medes_dedup::paper;
use medes_dedup::recipe::{Codec, Source};
use proptest::prelude::*;

proptest! {
    /// A delta gives the page back and keeps to its limit.
    #[test]
    fn deltas_come_back((page, base) in any_pair(), limit in 0usize..5000, level in 1i32..20) {
        let mut codec = DeltaCodec::new();
        let level = Level::new(level).unwrap();
        if let Some(delta) = codec.encode(&page, &base, limit, level).map(<[u8]>::to_vec) {
            prop_assert!(delta.len() <= limit && delta.len() <= CODED_BYTES_MAX);
            let mut back = noise_page(1);
            prop_assert_eq!(codec.decode(&delta, &base, &mut back), Ok(()));
            prop_assert_eq!(back, page);
        }
    }

    /// Contexts are reused: what one page leaves behind must not reach the next.
    #[test]
    fn one_codec_serves_many_pages(pairs in proptest::collection::vec(any_pair(), 1..6)) {
        let mut shared = DeltaCodec::new();
        for (page, base) in &pairs {
            let fresh = DeltaCodec::new().encode(page, base, PAGE_BYTES, Level::default()).map(<[u8]>::to_vec);
            let reused = shared.encode(page, base, PAGE_BYTES, Level::default()).map(<[u8]>::to_vec);
            prop_assert_eq!(&fresh, &reused);
            if let Some(delta) = fresh {
                let mut back = ZERO_PAGE;
                shared.decode(&delta, base, &mut back).unwrap();
                prop_assert_eq!(back, *page);
            }
        }
    }

    /// Any pages with any bases, by any rules, through an image and back; and the read plan is enough.
    #[test]
    fn images_give_every_page_back(
        pairs in proptest::collection::vec(any_pair(), 0..90),
        limit in 0usize..4096,
        whole_from in proptest::option::of(0usize..5000),
        compress in any::<bool>(),
    ) {
        let whole_level = compress.then(Level::default);
        let prefer_whole =
            whole_from.map(|bytes| PreferWhole { delta_bytes_min: bytes, more_bytes_max: bytes % 40 });
        let rules = EncodeRules { delta_bytes_max: limit, prefer_whole, whole_level, ..EncodeRules::default() };
        let mut encoder = Encoder::new(&KEY, rules);
        let mut builder = ImageBuilder::new(&KEY);
        let names: Vec<BasePage> = (0u32..).map(|at| base(1 + u64::from(at % 3), at / 2)).take(pairs.len()).collect();
        for ((page, bytes), name) in pairs.iter().zip(&names) {
            builder.push(&encoder.encode_page(page, &[(*name, bytes)])).unwrap();
        }
        prop_assert_eq!(encoder.distrusted(), 0);
        prop_assert_eq!(encoder.classes(), builder.classes());
        let image = finished(builder);
        prop_assert_eq!(image.classes(), encoder.classes());
        prop_assert_eq!(image.pages() as usize, pairs.len());

        let listed: Vec<_> = image.recipes().collect();
        let hasher = PageHasher::new(&KEY);
        let mut codec = DeltaCodec::new();
        let mut back = ZERO_PAGE;
        for (at, (page, bytes)) in pairs.iter().enumerate() {
            let recipe = image.recipe(PageIndex(at as u32)).unwrap();
            prop_assert_eq!(recipe, listed[at]);
            prop_assert_eq!(recipe.hash, hasher.hash(page));
            image.rebuild(&mut codec, PageIndex(at as u32), Some(bytes), &mut back).unwrap();
            prop_assert_eq!(&back, page);
        }
        prop_assert_eq!(image.recipe(PageIndex(image.pages())), None);

        let planned: Vec<(BasePage, PageIndex)> =
            image.reads().iter().flat_map(|read| read.pages().map(move |page| (read.base, page))).collect();
        prop_assert!(planned.is_sorted());
        let mut needed: Vec<_> = (0u32..)
            .zip(&listed)
            .filter_map(|(at, recipe)| Some((recipe.source.base()?, PageIndex(at))))
            .collect();
        needed.sort();
        prop_assert_eq!(planned, needed);
        let mut distinct: Vec<_> = image.reads().iter().map(|read| read.base).collect();
        let reads = distinct.len();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), reads);
    }

    /// It does not matter how the work was divided.
    #[test]
    fn runs_of_workers_give_the_same_file(pairs in proptest::collection::vec(any_pair(), 0..30), cut in 0usize..30) {
        let cut = cut.min(pairs.len());
        let mut alone = ImageBuilder::new(&KEY);
        let mut encoder = Encoder::new(&KEY, EncodeRules::default());
        for (page, bytes) in &pairs {
            alone.push(&encoder.encode_page(page, &[(base(7, 3), bytes)])).unwrap();
        }
        let mut together = ImageBuilder::new(&KEY);
        for part in [&pairs[..cut], &pairs[cut..]] {
            let mut encoder = Encoder::new(&KEY, EncodeRules::default());
            let mut run = EncodedRun::new();
            part.iter().for_each(|(page, bytes)| run.push(&encoder.encode_page(page, &[(base(7, 3), bytes)])));
            prop_assert_eq!(run.len(), part.len());
            together.append(&run).unwrap();
        }
        prop_assert_eq!(alone.finish(), together.finish());
    }

    /// Sections of any names and bytes come back, and only these.
    #[test]
    fn sections_come_back(
        sections in proptest::collection::btree_map("[a-z]{1,20}", proptest::collection::vec(any::<u8>(), 0..300), 0..20),
    ) {
        let mut builder = ImageBuilder::new(&KEY);
        for (name, data) in &sections {
            builder.section(name, data.clone()).unwrap();
        }
        let back = finished(builder).sections().unwrap();
        prop_assert_eq!(back.len(), sections.len());
        prop_assert!(back.iter().eq(sections.iter().map(|(name, data)| (name.as_str(), data.as_slice()))));
        prop_assert_eq!(back.get("NO SUCH"), None);
    }

    /// With several candidates the result is never larger than with any one of them.
    #[test]
    fn more_candidates_never_cost(page in any_page(), seeds in proptest::collection::vec((any::<u64>(), 0usize..300), 1..4)) {
        let bases: Vec<Page> = seeds.iter().map(|(seed, words)| changed(&page, *seed, *words)).collect();
        let named: Vec<(BasePage, &Page)> = (0u32..).zip(&bases).map(|(at, bytes)| (base(1, at), bytes)).collect();
        let prefer_whole = Some(PreferWhole { delta_bytes_min: 0, more_bytes_max: 16 });
        let mut encoder = Encoder::new(&KEY, EncodeRules { prefer_whole, ..EncodeRules::default() });
        let all = encoder.encode_page(&page, &named).stored_bytes();
        for one in &named {
            prop_assert!(all <= encoder.encode_page(&page, &[*one]).stored_bytes());
        }
    }
}

#[test]
fn each_page_is_stored_the_cheapest_way() {
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let heap = heap_page(1);
    let like = changed(&heap, 2, 10);
    let candidates = [(base(1, 0), &heap), (base(1, 1), &like)];

    let zero = encoder.encode_page(&ZERO_PAGE, &candidates);
    assert_eq!((zero.class(), zero.stored_bytes(), zero.base()), (PageClass::Zero, 0, None));
    let same = encoder.encode_page(&like, &candidates);
    assert_eq!((same.class(), same.stored_bytes(), same.base()), (PageClass::Same, 0, Some(base(1, 1))));
    let delta = encoder.encode_page(&changed(&heap, 3, 5), &candidates);
    assert_eq!((delta.class(), delta.base()), (PageClass::Delta, Some(base(1, 0))));
    assert!(delta.stored_bytes() < 120, "{} bytes for 5 words of 8", delta.stored_bytes());
    let whole = encoder.encode_page(&heap_page(9), &[]);
    assert_eq!((whole.class(), whole.base()), (PageClass::Whole, None));
    assert!(whole.stored_bytes() < 3000);
    let raw = encoder.encode_page(&noise_page(1), &candidates);
    assert_eq!((raw.class(), raw.stored_bytes(), raw.base()), (PageClass::Whole, PAGE_BYTES, None));
    assert_eq!(encoder.classes().pages(), 5);
    assert_eq!(encoder.distrusted(), 0);
}

#[test]
fn paper_mode_keeps_a_page_raw_when_no_delta_fits() {
    let mut encoder = Encoder::new(&KEY, paper::encode_rules());
    let heap = heap_page(1);
    let alone = encoder.encode_page(&heap, &[]);
    assert_eq!((alone.class(), alone.stored_bytes()), (PageClass::Whole, PAGE_BYTES));
    // A delta that is not shorter than the page is no delta.
    let noise = noise_page(1);
    let unlike = encoder.encode_page(&noise, &[(base(1, 0), &heap)]);
    assert_eq!((unlike.class(), unlike.stored_bytes()), (PageClass::Whole, PAGE_BYTES));
    // Any other delta is taken, even where the page alone would be smaller.
    let flat = [7; PAGE_BYTES];
    let forced = encoder.encode_page(&flat, &[(base(1, 0), &heap)]);
    assert_eq!(forced.class(), PageClass::Delta);
}

#[test]
fn a_base_that_hardly_helps_is_not_depended_on() {
    let from = heap_page(2);
    let unlike = [(base(1, 0), &from)];
    let page = heap_page(1);
    let default = EncodeRules::default();
    let mut encoder = Encoder::new(&KEY, EncodeRules { prefer_whole: None, ..default });
    let delta = encoder.encode_page(&page, &unlike);
    assert_eq!(delta.class(), PageClass::Delta);
    let delta_bytes = delta.stored_bytes();
    let alone = encoder.encode_page(&page, &[]).stored_bytes();

    let class = |delta_bytes_min, more_bytes_max| {
        let prefer_whole = Some(PreferWhole { delta_bytes_min, more_bytes_max });
        Encoder::new(&KEY, EncodeRules { prefer_whole, ..default }).encode_page(&page, &unlike).class()
    };
    let more = alone.checked_sub(delta_bytes).unwrap();
    assert!(more > 0);
    assert_eq!(class(0, more), PageClass::Whole);
    assert_eq!(class(0, more - 1), PageClass::Delta);
    assert_eq!(class(delta_bytes, more), PageClass::Whole);
    assert_eq!(class(delta_bytes + 1, more), PageClass::Delta);
}

#[test]
fn a_base_that_looks_like_a_zstd_dictionary_costs_only_the_delta() {
    // The magic number of trained dictionaries, then rubbish: zstd refuses it.
    let mut trap = heap_page(1);
    trap[..4].copy_from_slice(&0xec30_a437_u32.to_le_bytes());
    let page = changed(&trap, 2, 3);
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let stored = encoder.encode_page(&page, &[(base(1, 0), &trap)]);
    assert_eq!(stored.class(), PageClass::Whole);
    assert_eq!(encoder.distrusted(), 0);
    // And the codec is as good as before.
    let plain = heap_page(5);
    assert_eq!(
        encoder.encode_page(&changed(&plain, 6, 3), &[(base(1, 0), &plain)]).class(),
        PageClass::Delta
    );
}

#[test]
fn an_image_without_pages_is_an_image() {
    let image = finished(ImageBuilder::new(&KEY));
    assert_eq!((image.pages(), image.bases().len(), image.recipes().count()), (0, 0, 0));
    assert!(image.reads().is_empty());
    assert!(image.sections().unwrap().is_empty());
}

#[test]
fn stored_bytes_leave_nothing_out() {
    let mut builder = ImageBuilder::new(&KEY);
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    (0..200).for_each(|_| builder.push(&encoder.encode_page(&ZERO_PAGE, &[])).unwrap());
    builder.section("core", vec![1; 100]).unwrap();
    let image = finished(builder);
    assert!(image.stored_bytes() > image.file().len() as u64);
    // Not much is left out by looking at the file alone either: the secrets of a hasher are a good KiB.
    assert!(image.stored_bytes() < image.file().len() as u64 + 2000);
}

#[test]
fn the_table_of_bases_holds_each_snapshot_once() {
    let mut builder = ImageBuilder::new(&KEY);
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let page = heap_page(1);
    for at in 0..100u64 {
        let name = base(1 + at % 3, at as u32);
        builder.push(&encoder.encode_page(&page, &[(name, &page)])).unwrap();
    }
    let image = finished(builder);
    assert_eq!(image.bases().iter().map(|one| one.get()).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(image.recipe(PageIndex(70)).unwrap().source, Source::Same(base(2, 70)));
}

#[test]
fn limits_of_the_builder_are_errors() {
    let page = heap_page(1);
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    for snapshot in 1..=BASES_MAX as u64 {
        builder.push(&encoder.encode_page(&page, &[(base(snapshot, 0), &page)])).unwrap();
    }
    let one_more = encoder.encode_page(&page, &[(base(1000, 0), &page)]);
    assert_eq!(builder.push(&one_more), Err(BuildImageError::TooManyBases));
    // The refused page has left nothing behind.
    assert_eq!(finished(builder).pages() as usize, BASES_MAX);

    let mut builder = ImageBuilder::new(&KEY);
    builder.section("a", Vec::new()).unwrap();
    assert_eq!(builder.section("a", vec![1]), Err(BuildImageError::SectionTwice { bytes: 1 }));
    let mut builder = ImageBuilder::new(&KEY);
    assert_eq!(builder.section("", Vec::new()), Err(BuildImageError::SectionName { bytes: 0 }));
    assert_eq!(
        builder.section(&"n".repeat(256), Vec::new()),
        Err(BuildImageError::SectionName { bytes: 256 })
    );
}

#[test]
fn raw_pages_are_told_from_compressed_ones() {
    let mut builder = ImageBuilder::new(&KEY);
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    builder.push(&encoder.encode_page(&noise_page(1), &[])).unwrap();
    builder.push(&encoder.encode_page(&heap_page(1), &[])).unwrap();
    builder.push(&encoder.encode_page(&photo_page(1), &[])).unwrap();
    let image = finished(builder);
    let codecs: Vec<Codec> = image
        .recipes()
        .filter_map(|recipe| match recipe.source {
            Source::Whole { codec, .. } => Some(codec),
            _ => None,
        })
        .collect();
    assert_eq!(codecs, [Codec::Raw, Codec::Zstd, Codec::Samples]);
}
