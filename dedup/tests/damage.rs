//! What happens to files, deltas and recipes that are not what was written: a typed error, and never a wrong page.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use common::{KEY, any_pair, base, changed, heap_page, noise_page};
use medes_dedup::delta::{CODED_BYTES_MAX, DecodeDeltaError, DeltaCodec, Level};
use medes_dedup::encode::{EncodeRules, Encoder};
use medes_dedup::image::{DedupImage, ImageBuilder, OpenImageError, seal};
use medes_dedup::key::{DomainKey, PageHash, PageHasher};
use medes_dedup::page::{PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE};
use medes_dedup::rebuild::RebuildError;
use medes_dedup::recipe::{ParseRecipeError, Recipes, Source};
use medes_dedup::words::ReadRelationError;
use proptest::prelude::*;
use proptest::sample::Index;

/// Bytes that `seal` adds at the end.
const TRAILER_BYTES: usize = 48;
const HEADER_BYTES: usize = 64;

/// An image with a page of each kind, its base page, and what the pages must be.
fn sample() -> (Vec<u8>, Page, Vec<Page>) {
    let from = heap_page(1);
    let pages = vec![ZERO_PAGE, from, changed(&from, 2, 8), [9; PAGE_BYTES], changed(&from, 3, 4)];
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    for (at, page) in pages.iter().enumerate() {
        // Page 3 has no candidate and so stays whole.
        let candidates = [(base(5, 9), &from)];
        let candidates = if at == 3 { &[] } else { &candidates[..] };
        builder.push(&encoder.encode_page(page, candidates)).unwrap();
    }
    builder.section("core-1.img", b"registers".to_vec()).unwrap();
    builder.section("mm-1.img", vec![3; 40]).unwrap();
    let classes = builder.classes();
    assert_eq!((classes.zero, classes.same, classes.delta, classes.whole), (1, 1, 2, 1));
    (builder.finish().unwrap(), from, pages)
}

fn open(file: &[u8]) -> Result<DedupImage<&[u8]>, OpenImageError> {
    DedupImage::open(file, &KEY)
}

/// The file with its body changed by `change`, sealed again as if its writer had meant it.
fn resealed(file: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = file[..file.len() - TRAILER_BYTES].to_vec();
    change(&mut body);
    seal(body, &KEY)
}

#[test]
fn every_flipped_bit_of_an_image_is_seen() {
    let (file, _, _) = sample();
    open(&file).unwrap();
    let mut damaged = file.clone();
    for at in 0..file.len() {
        for bit in 0..8 {
            damaged[at] ^= 1 << bit;
            let expected = if at < 8 { OpenImageError::Magic } else { OpenImageError::Checksum };
            assert_eq!(open(&damaged).unwrap_err(), expected, "byte {at} bit {bit}");
            damaged[at] ^= 1 << bit;
        }
    }
    assert_eq!(damaged, file);
}

#[test]
fn every_cut_of_an_image_is_seen() {
    let (file, _, _) = sample();
    for bytes in 0..file.len() {
        let expected = match bytes {
            0..8 => OpenImageError::Magic,
            8..TRAILER_BYTES => OpenImageError::TooShort { bytes },
            _ => OpenImageError::Checksum,
        };
        assert_eq!(open(&file[..bytes]).unwrap_err(), expected);
    }
    let longer = [file.as_slice(), &[0]].concat();
    assert_eq!(open(&longer).unwrap_err(), OpenImageError::Checksum);
}

#[test]
fn another_key_is_told_apart_from_damage() {
    let (file, _, _) = sample();
    for other in [DomainKey::from_bytes([43; 32]), KEY.for_tenant("a")] {
        assert_eq!(DedupImage::open(&file, &other).unwrap_err(), OpenImageError::Key);
    }
}

#[test]
fn an_image_forged_without_the_key_is_refused() {
    let (file, _, _) = sample();
    // The forger can copy the key check value and make a right checksum, but not the seal.
    let body = file[..file.len() - TRAILER_BYTES].to_vec();
    let forged = seal(body, &DomainKey::from_bytes([43; 32]));
    assert_eq!(open(&forged).unwrap_err(), OpenImageError::Seal);
}

#[test]
fn a_wrong_base_page_is_an_error_and_gives_no_bytes() {
    let (file, from, pages) = sample();
    let image = open(&file).unwrap();
    let mut codec = DeltaCodec::new();
    let mut out = noise_page(1);
    let mut wrong = from;
    wrong[100] ^= 1;
    for (at, needs_base) in [(0, false), (1, true), (2, true), (3, false), (4, true)] {
        let page = PageIndex(at);
        let named = Some(base(5, 9));
        for bad in [wrong, ZERO_PAGE, noise_page(7)] {
            out.fill(1);
            let result = image.rebuild(&mut codec, page, Some(&bad), &mut out);
            if needs_base {
                let error = result.unwrap_err();
                let blamed = matches!(
                    error,
                    RebuildError::Hash { page: p, base: b } | RebuildError::Decode { page: p, base: b, .. }
                        if p == page && b == named
                );
                // A delta may happen not to use the byte that is wrong; then the page is right.
                assert!(blamed, "{error:?}");
                assert_eq!(out, ZERO_PAGE);
            } else {
                result.unwrap();
                assert_eq!(out, pages[at as usize]);
            }
        }
        out.fill(1);
        let result = image.rebuild(&mut codec, page, None, &mut out);
        if needs_base {
            assert_eq!(result, Err(RebuildError::NoBase { page, base: base(5, 9) }));
            assert_eq!(out, ZERO_PAGE);
        } else {
            result.unwrap();
        }
    }
    let past = PageIndex(5);
    assert_eq!(
        image.rebuild(&mut codec, past, Some(&from), &mut out),
        Err(RebuildError::NoPage { page: past, pages: 5 })
    );
}

#[test]
fn errors_say_what_was_being_done() {
    let hash = RebuildError::Hash { page: PageIndex(3), base: Some(base(5, 9)) };
    assert_eq!(hash.to_string(), "page 3 on base-0-5/9 does not have its hash");
    let decode =
        RebuildError::Decode { page: PageIndex(3), base: None, source: DecodeDeltaError::Short { bytes: 7 } };
    assert_eq!(decode.to_string(), "decode page 3");
    assert!(std::error::Error::source(&decode).is_some());
}

/// Each field of the header, with something in it that must not be there.
#[test]
fn a_header_that_makes_no_sense_is_refused() {
    let (file, _, _) = sample();
    let with = |at: usize, bytes: &[u8]| {
        let changed = resealed(&file, |body| body[at..at + bytes.len()].copy_from_slice(bytes));
        open(&changed).unwrap_err()
    };
    assert_eq!(with(8, &[4, 0]), OpenImageError::Version { version: 4 });
    assert_eq!(with(8, &[6, 0]), OpenImageError::Version { version: 6 });
    assert_eq!(with(10, &[2]), OpenImageError::Level { level: 2 });
    // Level 1 has pointer tables, and this file has none.
    let no_table = ReadRelationError::Short;
    assert_eq!(with(10, &[1]), OpenImageError::Table { position: 0, source: no_table });
    for reserved in [11, 14, 40, 43, 44, 47] {
        assert_eq!(with(reserved, &[1]), OpenImageError::Reserved);
    }
    let limit = |what, found, max| OpenImageError::Limit { what, found, max };
    assert_eq!(with(12, &[0, 1]), limit("base snapshots", 256, 255));
    assert_eq!(with(16, &[1, 0, 0, 1]), limit("pages", (1 << 24) + 1, 1 << 24));
    assert_eq!(with(20, &[0xff; 4]), limit("recipe bytes", u64::from(u32::MAX), 5 * 17));
    assert_eq!(with(28, &[0xff; 4]), limit("section bytes", u64::from(u32::MAX), 64 << 20));
    assert_eq!(with(32, &[0xff; 8]), limit("arena bytes", u64::MAX, 5 * PAGE_BYTES as u64));
    assert!(matches!(with(20, &[9]), OpenImageError::Length { .. }));
    let short = ParseRecipeError::Short;
    assert_eq!(with(16, &[6]), OpenImageError::Recipe { page: 5, source: short });
    assert!(matches!(with(24, &[0xff; 4]), OpenImageError::Length { .. }));
    assert_eq!(with(50, &[0xee]), OpenImageError::Key);
    let short = resealed(&file, |body| body.truncate(HEADER_BYTES - 1));
    assert_eq!(open(&short).unwrap_err(), OpenImageError::TooShort { bytes: HEADER_BYTES - 1 });
}

/// Tables whose parts are right but do not go together.
#[test]
fn tables_that_disagree_are_refused() {
    let (file, _, _) = sample();
    let arena = u64::from_le_bytes(file[32..40].try_into().unwrap()) as usize;
    let recipes = u32::from_le_bytes(file[20..24].try_into().unwrap()) as usize;
    let start = HEADER_BYTES + arena;
    let bases = start + recipes;
    // Zero, same as page 9, its delta (8 less than expected), a page by itself.
    assert_eq!(file[start..start + 3], [0, 0x11, 16]);
    let delta = start + 3 + 8;
    assert_eq!(file[delta..delta + 2], [0x12, 1]);
    let with = |at: usize, byte: u8| {
        let changed = resealed(&file, |body| body[at] = byte);
        open(&changed).unwrap_err()
    };
    let recipe = |page, source| OpenImageError::Recipe { page, source };
    assert_eq!(with(start, 0x40), recipe(0, ParseRecipeError::Flags { kind: 0, flags: 0x40 }));
    assert_eq!(with(start + 2, 0), recipe(1, ParseRecipeError::NoDistance));
    assert_eq!(with(start + 1, 0x09), recipe(1, ParseRecipeError::Base { base: 16, bases: 1 }));
    assert_eq!(with(delta, 0x0a), recipe(2, ParseRecipeError::Base { base: 1, bases: 1 }));
    // A delta one byte shorter leaves a byte of the arena to nobody.
    let length = file[delta + 2];
    assert!((2..0x80).contains(&length), "the length is one byte");
    let arena = arena as u64;
    assert_eq!(with(delta + 2, length - 1), OpenImageError::Arena { used: arena - 1, arena });
    let longer = resealed(&file, |body| {
        body[20..24].copy_from_slice(&(recipes as u32 + 1).to_le_bytes());
        body.insert(bases, 0);
    });
    assert_eq!(open(&longer).unwrap_err(), OpenImageError::RecipesLeft { bytes: 1 });
    assert_eq!(with(bases, 0), OpenImageError::BaseTable { position: 0 });
    let unused = resealed(&file, |body| {
        body[12] = 2;
        body.splice(bases + 8..bases + 8, 77u64.to_le_bytes());
    });
    assert_eq!(open(&unused).unwrap_err(), OpenImageError::BaseTable { position: 1 });
    let twice = resealed(&file, |body| {
        body[12] = 2;
        body.splice(bases + 8..bases + 8, 5u64.to_le_bytes());
    });
    assert_eq!(open(&twice).unwrap_err(), OpenImageError::BaseTable { position: 1 });
}

/// Where a test may strike: anywhere, or in one of the parts that are parsed.
fn strikes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    proptest::collection::vec((any::<Index>(), any::<u8>()), 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A body with any bytes changed, whose writer had the key: refused, or every page is right or refused.
    #[test]
    fn no_image_gives_a_wrong_page(strikes in strikes(), tail in any::<bool>(), cut in 0usize..40) {
        let (file, from, _) = sample();
        let arena = u64::from_le_bytes(file[32..40].try_into().unwrap()) as usize;
        let damaged = resealed(&file, |body| {
            for (at, byte) in &strikes {
                // Half of the time only the tables, which are a small part of the file.
                let start = if tail { HEADER_BYTES + arena } else { 0 };
                let at = start + at.index(body.len() - start);
                body[at] = *byte;
            }
            if cut < 10 {
                body.truncate(body.len() - cut);
            }
        });
        let Ok(image) = open(&damaged) else { return Ok(()) };
        let hasher = PageHasher::new(&KEY);
        let mut codec = DeltaCodec::new();
        let mut out = ZERO_PAGE;
        for page in (0..image.pages()).map(PageIndex) {
            match image.rebuild(&mut codec, page, Some(&from), &mut out) {
                Ok(()) => prop_assert_eq!(hasher.hash(&out), image.recipe(page).unwrap().hash),
                Err(_) => prop_assert_eq!(out, ZERO_PAGE),
            }
        }
        if let Ok(sections) = image.sections() {
            prop_assert!(sections.iter().all(|(name, _)| !name.is_empty()));
        }
        prop_assert!(image.reads().iter().count() <= image.pages() as usize);
    }

    /// Not an image at all, but with the right start.
    #[test]
    fn noise_is_never_an_image(body in proptest::collection::vec(any::<u8>(), 0..300), sealed in any::<bool>()) {
        let mut file = [b"MedesImg\x02\0".as_slice(), &body].concat();
        if sealed {
            file = seal(file, &KEY);
        }
        prop_assert!(open(&file).is_err());
    }

    /// Any bytes at all as a delta: an error and zeros, or a page; never a panic or a write elsewhere.
    #[test]
    fn any_bytes_decode_safely(delta in proptest::collection::vec(any::<u8>(), 0..5000), seed in any::<u64>()) {
        let mut codec = DeltaCodec::new();
        let mut out = noise_page(seed);
        if codec.decode(&delta, &heap_page(seed), &mut out).is_err() {
            prop_assert_eq!(out, ZERO_PAGE);
        }
        let mut out = noise_page(seed);
        if codec.decode_alone(&delta, &mut out).is_err() {
            prop_assert_eq!(out, ZERO_PAGE);
        }
    }

    /// A real delta with some bytes changed. The codec stays usable whatever it has seen.
    #[test]
    fn damaged_deltas_decode_safely((page, base) in any_pair(), strikes in strikes(), cut in any::<Index>()) {
        let mut codec = DeltaCodec::new();
        let Some(delta) = codec.encode(&page, &base, CODED_BYTES_MAX, Level::default()).map(<[u8]>::to_vec) else {
            return Ok(());
        };
        let mut damaged = delta.clone();
        for (at, byte) in strikes {
            let at = at.index(damaged.len());
            damaged[at] = byte;
        }
        damaged.truncate(cut.index(damaged.len() + 1));
        let mut out = noise_page(1);
        if codec.decode(&damaged, &base, &mut out).is_err() {
            prop_assert_eq!(out, ZERO_PAGE);
        }
        prop_assert_eq!(codec.decode(&delta, &base, &mut out), Ok(()));
        prop_assert_eq!(out, page);
    }

    /// Any bytes as recipes: an error, or recipes that stay inside their tables and leave no gaps.
    #[test]
    fn any_recipes_parse_safely(
        table in proptest::collection::vec(prop_oneof![0u8..0x28, any::<u8>()], 0..100),
        pages in 0u32..100,
        bases in 0u64..4,
    ) {
        let bases: Vec<SnapshotId> = (1..=bases).filter_map(SnapshotId::new).collect();
        let mut end = 0;
        let mut recipes = Recipes::new(&table, pages, &bases, PageHash([1; 8]));
        let read = recipes.by_ref().map_while(Result::ok).inspect(|recipe| {
            assert!(recipe.source.base().is_none_or(|base| bases.contains(&base.snapshot)));
            if let Source::Delta { place, .. } | Source::Whole { place, .. } = recipe.source {
                assert!(place.offset == end && (1..=PAGE_BYTES).contains(&place.bytes.into()));
                end += u64::from(place.bytes);
            }
        });
        prop_assert!(read.count() <= pages as usize);
        prop_assert!(recipes.next().is_none(), "goes on after its end");
    }
}
