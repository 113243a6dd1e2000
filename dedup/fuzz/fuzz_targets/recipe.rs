//! `cargo +nightly fuzz run recipe`: any 24 bytes as a recipe, with any number of base snapshots.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::page::SnapshotId;
use medes_dedup::recipe::{RECORD_BYTES, Recipe, Source};

fuzz_target!(|input: (u8, u32, [u8; RECORD_BYTES])| {
    let (bases, offset, record) = input;
    let bases: Vec<SnapshotId> = (1..=u64::from(bases)).filter_map(SnapshotId::new).collect();
    let Ok(recipe) = Recipe::parse(&record, &bases, offset.into()) else { return };
    assert!(recipe.source.base().is_none_or(|base| bases.contains(&base.snapshot)));
    if let Source::Delta { place, .. } | Source::Whole { place, .. } = recipe.source {
        assert!(place.offset == u64::from(offset) && (1..=4096).contains(&place.bytes));
    }
});
