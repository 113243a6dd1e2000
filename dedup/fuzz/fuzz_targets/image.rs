//! `cargo +nightly fuzz run image`: any body as an image file, opened and rebuilt page by page.
//!
//! The body is sealed here with the right key, because nothing unsealed is ever parsed. Start from the golden files:
//! `mkdir -p corpus/image`, then copy them there without their last 48 bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::delta::DeltaCodec;
use medes_dedup::image::{DedupImage, seal};
use medes_dedup::key::{DomainKey, PageHasher};
use medes_dedup::page::{BasePage, Page, PageIndex, ZERO_PAGE};
use medes_dedup::rebuild::BasePages;

/// The key of the tests, so that the golden file is a useful start.
const KEY: DomainKey = DomainKey::from_bytes([42; 32]);

/// Stands for every base page.
const BASE: Page = [0x5a; 4096];

struct Everywhere;

impl BasePages for Everywhere {
    fn base_page(&self, _: BasePage) -> Option<&Page> {
        Some(&BASE)
    }
}

fuzz_target!(|body: &[u8]| {
    // As it is: must be refused or be really sealed.
    let as_it_is = DedupImage::open(body, &KEY).is_ok();
    let sealed = seal(body.to_vec(), &KEY);
    let Ok(image) = DedupImage::open(&sealed, &KEY) else { return };
    assert!(!as_it_is, "one body is both sealed and unsealed");

    let hasher = PageHasher::new(&KEY);
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    for page in (0..image.pages()).map(PageIndex) {
        match image.rebuild_from(&mut codec, page, &Everywhere, &mut out) {
            Ok(()) => assert_eq!(image.recipe(page).map(|recipe| recipe.hash), Some(hasher.hash(&out))),
            Err(_) => assert_eq!(out, ZERO_PAGE),
        }
    }
    assert_eq!(image.recipes().count(), image.pages() as usize);
    assert!(image.reads().iter().all(|read| image.bases().contains(&read.base.snapshot)));
    if let Ok(sections) = image.sections() {
        assert!(sections.iter().all(|(name, _)| sections.get(name).is_some()));
    }
});
