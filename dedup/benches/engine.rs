//! How fast pages become fingerprints and recipes, and come back. Pages look like heaps of one program started twice.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on stops")]
#![allow(missing_docs, reason = "criterion's macros write functions without any")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::{KEY, base, changed, heap_page, photo_page, process};
use criterion::BatchSize::PerIteration;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use medes_dedup::delta::{DeltaCodec, Level};
use medes_dedup::encode::{EncodeRules, EncodedRun, Encoder, WordRules, WordsOf};
use medes_dedup::fingerprint::{Fingerprinter, Sampling};
use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::key::PageHasher;
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, ZERO_PAGE};
use medes_dedup::paper;
use medes_dedup::words::{Aligner, BaseIndex, Facts, Memory};

/// 256 pages: more than the first-level cache holds, less than the second.
const PAGES: u64 = 256;

struct Input {
    bases: Vec<(BasePage, Page)>,
    pages: Vec<Page>,
}

fn input() -> Input {
    let bases: Vec<_> = (0..PAGES).map(|at| (base(1, at as u32), heap_page(at))).collect();
    let pages = bases.iter().map(|(name, page)| changed(page, u64::from(name.page.0) + 1000, 24)).collect();
    Input { bases, pages }
}

fn bytes() -> Throughput {
    Throughput::Bytes(PAGES * PAGE_BYTES as u64)
}

fn fingerprints(criterion: &mut Criterion) {
    let Input { pages, .. } = input();
    let mut group = criterion.benchmark_group("fingerprint");
    group.throughput(bytes());
    for (name, sampling) in [("bottom-10", Sampling::default()), ("paper", paper::sampling())] {
        let maker = Fingerprinter::new(&KEY, sampling);
        group.bench_function(name, |bencher| {
            bencher.iter(|| pages.iter().for_each(|page| _ = black_box(maker.fingerprint(black_box(page)))));
        });
    }
    let hasher = PageHasher::new(&KEY);
    group.bench_function("page hash", |bencher| {
        bencher.iter(|| pages.iter().for_each(|page| _ = black_box(hasher.hash(black_box(page)))));
    });
    group.finish();
}

fn encode(criterion: &mut Criterion) {
    let Input { bases, pages } = input();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(bytes());
    for (name, rules) in [("default", EncodeRules::default()), ("paper", paper::encode_rules())] {
        let mut encoder = Encoder::new(&KEY, rules);
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for (page, (name, bytes)) in pages.iter().zip(&bases) {
                    black_box(encoder.encode_page(black_box(page), &[(*name, bytes)]).stored_bytes());
                }
            });
        });
    }
    let mut codec = DeltaCodec::new();
    group.bench_function("delta alone", |bencher| {
        bencher.iter(|| {
            for (page, (_, bytes)) in pages.iter().zip(&bases) {
                black_box(codec.encode(black_box(page), bytes, PAGE_BYTES, Level::default()));
            }
        });
    });
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let Input { bases, pages } = input();
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    for (page, (name, bytes)) in pages.iter().zip(&bases) {
        builder.push(&encoder.encode_page(page, &[(*name, bytes)])).unwrap();
    }
    let file = builder.finish().unwrap();
    let mut group = criterion.benchmark_group("decode");
    group.throughput(bytes());
    group.bench_function("open", |bencher| {
        bencher.iter(|| black_box(DedupImage::open(black_box(&file), &KEY).unwrap().pages()));
    });
    let image = DedupImage::open(&file, &KEY).unwrap();
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    group.bench_function("rebuild", |bencher| {
        bencher.iter(|| {
            for (page, (_, bytes)) in (0u32..).map(PageIndex).zip(&bases) {
                image.rebuild(&mut codec, page, Some(bytes), black_box(&mut out)).unwrap();
            }
        });
    });
    let deltas: Vec<Vec<u8>> = pages
        .iter()
        .zip(&bases)
        .map(|(page, (_, bytes))| codec.encode(page, bytes, PAGE_BYTES, Level::default()).unwrap().to_vec())
        .collect();
    group.bench_function("delta alone", |bencher| {
        bencher.iter(|| {
            for (delta, (_, bytes)) in deltas.iter().zip(&bases) {
                codec.decode(black_box(delta), bytes, black_box(&mut out)).unwrap();
            }
        });
    });
    group.finish();
}

/// Pages that no base helps with and that are samples of something, there and back.
fn samples(criterion: &mut Criterion) {
    let pages: Vec<Page> = (0..PAGES).map(photo_page).collect();
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut run = || {
        let mut run = EncodedRun::new();
        pages.iter().for_each(|page| run.push(&encoder.encode_page(black_box(page), &[])));
        run
    };
    let mut group = criterion.benchmark_group("samples");
    group.throughput(bytes());
    group.bench_function("encode", |bencher| bencher.iter(|| black_box(run())));
    let mut builder = ImageBuilder::new(&KEY);
    builder.append(&run()).unwrap();
    let image = DedupImage::open(builder.finish().unwrap(), &KEY).unwrap();
    let (mut codec, mut out) = (DeltaCodec::new(), ZERO_PAGE);
    group.bench_function("rebuild", |bencher| {
        bencher.iter(|| {
            for at in 0..image.pages() {
                image.rebuild(&mut codec, PageIndex(at), None, black_box(&mut out)).unwrap();
            }
        });
    });
    group.finish();
}

/// Every stage of a process that becomes words of a base: what is done once for a base, and page by page.
fn words(criterion: &mut Criterion) {
    let (from, target) = (process(7, 3, 3), process(7, 4, 9));
    let (base_pages, pages) = (from.pages(), target.pages());
    let base_memory = Memory::new(&base_pages, &from.addresses, &from.mappings).unwrap();
    let memory = Memory::new(&pages, &target.addresses, &target.mappings).unwrap();
    let mut group = criterion.benchmark_group("words");
    group.throughput(Throughput::Bytes((pages.len() * PAGE_BYTES) as u64));
    group.bench_function("index", |bencher| bencher.iter(|| BaseIndex::new(black_box(base_memory))));
    group.bench_function("study", |bencher| bencher.iter(|| Facts::study(black_box(base_memory))));
    let (index, facts) = (BaseIndex::new(base_memory), Facts::study(base_memory));
    let aligner = Aligner::new(memory, &index, &base_pages, &facts);
    let all = || aligner.part(0..pages.len());
    group.bench_function("align", |bencher| bencher.iter(|| black_box(all())));
    group.bench_function("plan", |bencher| {
        bencher.iter_batched(all, |part| aligner.plan([part]), PerIteration);
    });
    let plan = aligner.plan([all()]);
    group.bench_function("refine", |bencher| {
        bencher.iter(|| {
            let second = aligner.refine(&plan);
            second.plan([second.part(0..pages.len())])
        });
    });
    let snapshot = base(1, 0).snapshot;
    let of = WordsOf { snapshot, pages: &base_pages, facts: &facts, plan: &plan, rules: WordRules::FAST };
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut numbered = || {
        let mut run = EncodedRun::new();
        for (at, page) in (0u32..).map(PageIndex).zip(&pages) {
            run.push(&encoder.encode_planned(page, at, &of));
        }
        run
    };
    group.bench_function("encode", |bencher| bencher.iter(|| black_box(numbered())));
    let mut builder = ImageBuilder::new(&KEY);
    builder.append(&numbered()).unwrap();
    builder.relation(snapshot, plan.relation());
    let image = DedupImage::open(builder.finish().unwrap(), &KEY).unwrap();
    let places = || (0..image.pages()).map(|at| Some(PageIndex(at)));
    group.bench_function("align again", |bencher| {
        bencher.iter(|| {
            let earlier = image.earlier(snapshot, places()).unwrap();
            let again = Aligner::new(memory, &index, &base_pages, &facts).again(&earlier);
            again.plan([again.part(0..pages.len())])
        });
    });
    let (mut codec, mut out) = (DeltaCodec::new(), ZERO_PAGE);
    group.bench_function("rebuild", |bencher| {
        bencher.iter(|| {
            for at in 0..image.pages() {
                image.rebuild_from(&mut codec, PageIndex(at), &of, black_box(&mut out)).unwrap();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, fingerprints, encode, decode, samples, words);
criterion_main!(benches);
