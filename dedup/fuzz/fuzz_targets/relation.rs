//! `cargo +nightly fuzz run relation`: any bytes as the relation of a target to its base.
//!
//! The compressed parts are made here: a fuzzer does not find valid zstd frames, and zstd is not what is tested.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::words::{RELATION_BYTES_MAX, Relation};

fuzz_target!(|input: (Option<[u8; 16]>, Vec<u8>, u32, Vec<u8>)| {
    let (secret, model, entries, table) = input;
    drop(Relation::read(&model));
    let mut bytes = match &secret {
        Some(secret) => [&[16], &secret[..]].concat(),
        None => vec![0],
    };
    let packed = zstd::bulk::compress(&model, 1).expect("memory");
    bytes.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&packed);
    bytes.extend_from_slice(&entries.to_le_bytes());
    bytes.extend_from_slice(&(table.len() as u32).to_le_bytes());
    bytes.extend(zstd::bulk::compress(&table, 1).expect("memory"));
    let Ok(relation) = Relation::read(&bytes) else { return };
    assert_eq!(relation.needs_facts(), secret.is_some());
    let written = relation.write();
    assert!(written.len() <= RELATION_BYTES_MAX);
    assert_eq!(Relation::read(&written).expect("what was written").write(), written);
});
