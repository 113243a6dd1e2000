//! The ways to store a target that are compared.

use std::collections::{HashMap, HashSet};

use medes_dedup::candidate::{CandidateRules, FanOut, Hint, NodeId};
use medes_dedup::delta::DeltaCodec;
use medes_dedup::encode::{EncodeRules, Encoder, WordRules, WordsOf};
use medes_dedup::fingerprint::{ChunkHash, Fingerprinter, Sampling};
use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::key::DomainKey;
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE, is_zero};
use medes_dedup::rebuild::BasePages;
use medes_dedup::words::{Aligner, BaseIndex, Facts, Memory, Plan};

use crate::dump::Dump;

const KEY: DomainKey = DomainKey::from_bytes([42; 32]);
const NODE: NodeId = NodeId(0);

fn snapshot() -> SnapshotId {
    SnapshotId::new(1).unwrap()
}

/// One method on one target, or on several.
pub(crate) struct Measured {
    pub(crate) method: &'static str,
    pub(crate) plain: u64,
    pub(crate) stored: u64,
    pub(crate) seconds: Vec<(&'static str, f64)>,
    /// What the stored bytes are.
    pub(crate) parts: Vec<(&'static str, u64)>,
    pub(crate) note: String,
}

impl Measured {
    fn new(method: &'static str, target: &Dump, stored: u64) -> Self {
        let plain = target.bytes().len() as u64;
        Self { method, plain, stored, seconds: Vec::new(), parts: Vec::new(), note: String::new() }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.plain += other.plain;
        self.stored += other.stored;
        self.seconds.iter_mut().zip(&other.seconds).for_each(|((_, sum), (_, one))| *sum += one);
        self.parts.iter_mut().zip(&other.parts).for_each(|((_, sum), (_, one))| *sum += one);
        self.note.clear();
    }
}

/// Seconds this thread has run: what a machine shared with others leaves to be told.
fn ran() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = ran();
    let result = work();
    (result, ran() - start)
}

/// Pages of zeros and pages equal to any page of the base, at the price of a recipe each; the others whole.
pub(crate) fn same(target: &Dump, base: &[&Page]) -> Measured {
    let known: HashSet<&Page> = base.iter().copied().collect();
    let pages = target.pages();
    let found = pages.iter().filter(|page| is_zero(page) || known.contains(**page)).count();
    let stored = pages.len() * 24 + (pages.len() - found) * PAGE_BYTES;
    Measured::new("identical", target, stored as u64)
}

/// zstd without a base, page by page and the whole dump at once.
pub(crate) fn alone(target: &Dump) -> Vec<Measured> {
    let ways = [
        ("zstd-1 page", 1, true),
        ("zstd-3 page", 3, true),
        ("zstd-1 whole", 1, false),
        ("zstd-3 whole", 3, false),
    ];
    let measure = |(method, level, by_page)| {
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        let (stored, seconds) = timed(|| match by_page {
            false => compressor.compress(target.bytes()).unwrap().len(),
            true => target
                .pages()
                .iter()
                .map(|page| compressor.compress(&page[..]).unwrap().len().min(PAGE_BYTES))
                .sum(),
        });
        let mut measured = Measured::new(method, target, stored as u64);
        measured.seconds.push(("encode", seconds));
        measured
    };
    ways.into_iter().map(measure).collect()
}

/// The base pages by chunk: a registry with one snapshot.
struct Registry {
    fingerprinter: Fingerprinter,
    chunks: HashMap<ChunkHash, Vec<u32>>,
}

impl Registry {
    /// Base pages kept for one chunk.
    const PAGES_MAX: usize = 16;

    fn new(base: &[&Page], sampling: Sampling) -> Self {
        let fingerprinter = Fingerprinter::new(&KEY, sampling);
        let mut chunks: HashMap<ChunkHash, Vec<u32>> = HashMap::new();
        for (at, page) in (0u32..).zip(base) {
            for hash in fingerprinter.fingerprint(page).hashes() {
                let pages = chunks.entry(*hash).or_default();
                if pages.len() < Self::PAGES_MAX {
                    pages.push(at);
                }
            }
        }
        Self { fingerprinter, chunks }
    }

    fn hints(&self, page: &Page) -> Vec<Hint> {
        let mut votes: HashMap<u32, u16> = HashMap::new();
        for hash in self.fingerprinter.fingerprint(page).hashes() {
            for at in self.chunks.get(hash).into_iter().flatten() {
                *votes.entry(*at).or_default() += 1;
            }
        }
        let hint = |(at, votes)| Hint {
            base: BasePage { snapshot: snapshot(), page: PageIndex(at) },
            node: NODE,
            votes,
        };
        votes.into_iter().map(hint).collect()
    }
}

/// Candidates by fingerprint, one delta per page.
pub(crate) fn hinted(
    method: &'static str,
    target: &Dump,
    base: &[&Page],
    sampling: Sampling,
    (candidates, rules): (CandidateRules, EncodeRules),
) -> Measured {
    let registry = Registry::new(base, sampling);
    let mut fan_out = FanOut::new(candidates, NODE);
    let mut encoder = Encoder::new(&KEY, rules);
    let mut builder = ImageBuilder::new(&KEY);
    let ((), seconds) = timed(|| {
        let mut chosen = Vec::new();
        for page in target.pages() {
            fan_out.choose(&registry.hints(page), &mut chosen);
            let tried: Vec<_> = chosen.iter().map(|one| (*one, base[one.page.0 as usize])).collect();
            builder.push(&encoder.encode_page(page, &tried)).unwrap();
        }
    });
    let image = DedupImage::open(builder.finish().unwrap(), &KEY).unwrap();
    let mut measured = Measured::new(method, target, image.stored_bytes());
    measured.seconds.push(("encode with lookup", seconds));
    measured.seconds.push(("rebuild", rebuild(&image, target, base, &Facts::none())));
    measured
}

/// Pages of words.
pub(crate) fn planned(target: &Dump, base: &[&Page], index: &BaseIndex, facts: &Facts) -> Vec<Measured> {
    let pages = target.pages();
    let memory = Memory::new(&pages, &target.addresses, &target.mappings).unwrap();
    let aligner = Aligner::new(memory, index, base, facts);
    let (part, align_seconds) = timed(|| aligner.part(0..pages.len()));
    let (plan, learn_seconds) = timed(|| aligner.plan([part]));
    let (refined, refine_seconds) = timed(|| {
        let second = aligner.refine(&plan);
        second.plan([second.part(0..pages.len())])
    });
    let measure = |(method, plan, rules, learn_seconds): (_, &Plan, _, f64)| {
        let words = WordsOf { snapshot: snapshot(), pages: base, facts, plan, rules };
        let mut encoder = Encoder::new(&KEY, EncodeRules::default());
        let mut builder = ImageBuilder::new(&KEY);
        let ((), encode_seconds) = timed(|| {
            for (at, page) in (0u32..).map(PageIndex).zip(&pages) {
                builder.push(&encoder.encode_planned(page, at, &words)).unwrap();
            }
            builder.relation(snapshot(), plan.relation());
        });
        assert_eq!(encoder.distrusted(), 0);
        let classes = builder.classes();
        let file = builder.finish().unwrap();
        let (image, open_seconds) = timed(|| DedupImage::open(file, &KEY).unwrap());
        let mut measured = Measured::new(method, target, image.stored_bytes());
        let reads = image.reads();
        let pages_read: usize = reads.iter().map(|read| read.pages().len()).sum();
        measured.seconds = vec![
            ("encode", align_seconds + learn_seconds + encode_seconds),
            ("of it align", align_seconds),
            ("learn and refine", learn_seconds),
            ("code, hash and prove", encode_seconds),
            ("open", open_seconds),
            ("rebuild", rebuild(&image, target, base, facts)),
        ];
        measured.parts = vec![
            ("words", classes.delta_bytes),
            ("pages without base", classes.whole_bytes),
            ("recipes", 24 * u64::from(classes.pages())),
            ("pointer table", plan.relation().write().len() as u64),
        ];
        measured.note = format!(
            "zero {} same {} words {} whole {}; {} table entries; {:.2} base pages a page; tables {} bytes open",
            classes.zero,
            classes.same,
            classes.delta,
            classes.whole,
            plan.relation().translation().len(),
            pages_read as f64 / f64::from(classes.same + classes.delta).max(1.0),
            image.table_bytes(),
        );
        measured
    };
    let ways = [
        ("words fast", &plan, WordRules::FAST, learn_seconds),
        ("words packed", &plan, WordRules::SMALL, learn_seconds),
        ("words small", &refined, WordRules::SMALL, learn_seconds + refine_seconds),
    ];
    ways.into_iter().map(measure).collect()
}

/// The base as a place to read from.
struct Base<'b>(&'b [&'b Page], &'b Facts);

impl BasePages for Base<'_> {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.0.get(page.page.0 as usize).copied()
    }

    fn facts(&self, _: SnapshotId) -> Option<&Facts> {
        Some(self.1)
    }
}

/// Seconds to rebuild every page, hash checks included; then each is compared with the original.
fn rebuild(image: &DedupImage<Vec<u8>>, target: &Dump, base: &[&Page], facts: &Facts) -> f64 {
    let mut codec = DeltaCodec::new();
    let mut out = vec![ZERO_PAGE; target.addresses.len()];
    let ((), seconds) = timed(|| {
        for (at, page) in (0u32..).map(PageIndex).zip(&mut out) {
            image.rebuild_from(&mut codec, at, &Base(base, facts), page).unwrap();
        }
    });
    assert!(out.as_flattened() == target.bytes());
    seconds
}
