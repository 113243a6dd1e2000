//! `cargo +nightly fuzz run delta`: any bytes as a delta and as a page compressed alone, on a base taken from the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::delta::{CODED_BYTES_MAX, DeltaCodec, Level};
use medes_dedup::page::{Page, ZERO_PAGE};

fuzz_target!(|input: &[u8]| {
    let mut base: Page = ZERO_PAGE;
    let start = input.len().min(base.len());
    base[..start].copy_from_slice(&input[..start]);
    let mut codec = DeltaCodec::new();
    let mut out = [1; 4096];
    if codec.decode(input, &base, &mut out).is_err() {
        assert_eq!(out, ZERO_PAGE);
    }
    // What decodes is a page like any other: it must survive the way there and back, on the same codec.
    let page = out;
    if let Some(delta) = codec.encode(&page, &base, CODED_BYTES_MAX, Level::FASTEST).map(<[u8]>::to_vec) {
        assert_eq!(codec.decode(&delta, &base, &mut out), Ok(()));
        assert_eq!(out, page);
    }
    if codec.decode_alone(input, &mut out).is_err() {
        assert_eq!(out, ZERO_PAGE);
    }
});
