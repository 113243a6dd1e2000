//! `cargo +nightly fuzz run table`: any bytes as a pointer table, and any word through it.
//!
//! The compressed part is made here: a fuzzer does not find valid zstd frames, and zstd is not what is tested.
#![no_main]

use libfuzzer_sys::fuzz_target;
use medes_dedup::words::{TRANSLATION_BYTES_MAX, Translation};

fuzz_target!(|input: (u32, Vec<u8>, Vec<u64>)| {
    let (entries, plain, words) = input;
    drop(Translation::read(&plain));
    let mut bytes = [entries.to_le_bytes(), (plain.len() as u32).to_le_bytes()].concat();
    bytes.extend(zstd::bulk::compress(&plain, 1).expect("memory"));
    let Ok(table) = Translation::read(&bytes) else { return };
    let written = table.write();
    assert!(written.len() <= TRANSLATION_BYTES_MAX);
    let again = Translation::read(&written).expect("what was written");
    for word in words {
        assert_eq!(table.translate(word), again.translate(word));
    }
});
