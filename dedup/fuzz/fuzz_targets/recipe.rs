//! `cargo +nightly fuzz run recipe`: any bytes as a table of recipes, with any number of pages and base snapshots.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::key::PageHash;
use medes_dedup::page::SnapshotId;
use medes_dedup::recipe::{Recipes, Source};

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (bases, pages, table) = input;
    let bases: Vec<SnapshotId> = (1..=u64::from(bases)).filter_map(SnapshotId::new).collect();
    let mut recipes = Recipes::new(table, pages.into(), &bases, PageHash([1; 8]));
    let (mut read, mut end) = (0, 0);
    for recipe in recipes.by_ref() {
        let Ok(recipe) = recipe else { break };
        read += 1;
        assert!(recipe.source.base().is_none_or(|base| bases.contains(&base.snapshot)));
        if let Source::Delta { place, .. } | Source::Whole { place, .. } = recipe.source {
            assert!(place.offset == end && (1..=4096).contains(&place.bytes));
            end += u64::from(place.bytes);
        }
    }
    assert!(read <= pages && recipes.unread() <= table.len());
    assert!(recipes.next().is_none(), "goes on after its end");
});
