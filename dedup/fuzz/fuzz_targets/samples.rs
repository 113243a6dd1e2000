//! `cargo +nightly fuzz run samples`: any bytes as a page of samples, and what comes out as a page to be stored.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::delta::DeltaCodec;
use medes_dedup::encode::{EncodeRules, Encoder};
use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::key::DomainKey;
use medes_dedup::page::PageIndex;
use medes_dedup::samples::decode;

fuzz_target!(|input: &[u8]| {
    let key = DomainKey::from_bytes([42; 32]);
    let mut page = [1; 4096];
    _ = decode(input, &mut page);
    // Whatever came out is a page like any other: it must survive the way there and back.
    let mut encoder = Encoder::new(&key, EncodeRules::default());
    let mut builder = ImageBuilder::new(&key);
    builder.push(&encoder.encode_page(&page, &[])).unwrap();
    assert_eq!(encoder.distrusted(), 0);
    let image = DedupImage::open(builder.finish().unwrap(), &key).unwrap();
    let mut out = [2; 4096];
    image.rebuild(&mut DeltaCodec::new(), PageIndex(0), None, &mut out).unwrap();
    assert_eq!(out, page);
});
