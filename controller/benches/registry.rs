//! Registry look-ups and registrations: `cargo bench -p medes-controller`.
//!
//! Prints nanoseconds per chunk hash looked up on one core, and bytes per entry. `MEDES_BENCH_ENTRIES` sets the size
//! of the table (default 10 million entries).

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use medes_controller::registry::{PageIndex, Registry, Table, TableSettings};
use medes_dedup::fingerprint::ChunkHash;
use medes_proto::{ids::SnapshotId, registry::Fingerprints};

const HASHES_PER_PAGE: u64 = 10;
const BATCH_PAGES: u64 = 1_024;
/// 64 MiB of base pages each.
const SNAPSHOT_PAGES: u64 = 16_384;

/// The `number`-th hash: spread evenly, as keyed chunk hashes are.
fn hash(number: u64) -> ChunkHash {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ChunkHash::new(mixed ^ (mixed >> 31))
}

/// Fingerprints of these pages.
fn batch(pages: impl Iterator<Item = u64>) -> Fingerprints {
    let mut batch = Fingerprints::default();
    for page in pages {
        let from = page * HASHES_PER_PAGE;
        let hashes: Vec<_> = (from..from + HASHES_PER_PAGE).map(hash).collect();
        batch.push(&hashes);
    }
    batch
}

fn filled(pages: u64) -> Table {
    let table = Table::new(TableSettings { entries_max: u64::MAX, list_max: 8 });
    for first in (0..pages).step_by(BATCH_PAGES as usize) {
        let snapshot = SnapshotId::new(1 + first / SNAPSHOT_PAGES).expect("not zero");
        let page = PageIndex((first % SNAPSHOT_PAGES) as u32);
        table.register(snapshot, page, &batch(first..first + BATCH_PAGES));
    }
    table
}

fn main() {
    let wanted = std::env::var("MEDES_BENCH_ENTRIES").ok().and_then(|text| text.parse().ok());
    let pages = wanted.unwrap_or(10_000_000u64) / HASHES_PER_PAGE;
    let table = filled(pages);
    let size = table.size();
    println!("{} entries, {:.1} bytes each", size.entries, size.bytes as f64 / size.entries as f64);

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("registry");
    group.throughput(Throughput::Elements(BATCH_PAGES * HASHES_PER_PAGE));
    // Pages anywhere, and too many of them for the processor's caches.
    let anywhere =
        |n: u64| (n * BATCH_PAGES..(n + 1) * BATCH_PAGES).map(move |page| hash(page).get() % pages);
    let hits: Vec<_> = (0..256).map(|n| batch(anywhere(n))).collect();
    let misses: Vec<_> = (0..256).map(|n| batch(anywhere(n).map(|page| page + (1 << 40)))).collect();
    for (name, batches) in [("lookup_hit", &hits), ("lookup_miss", &misses)] {
        let mut next = 0;
        group.bench_function(name, |bench| {
            bench.iter(|| {
                next = (next + 1) % batches.len();
                black_box(table.lookup(&batches[next], &|_| true))
            });
        });
    }
    let mut first = pages;
    group.bench_function("register", |bench| {
        let snapshot = SnapshotId::new(1 << 32).expect("not zero");
        bench.iter_batched(
            || {
                first += BATCH_PAGES;
                batch(first..first + BATCH_PAGES)
            },
            |batch| table.register(snapshot, PageIndex(0), &batch),
            criterion::BatchSize::LargeInput,
        );
    });
    group.finish();
    criterion.final_summary();
}
