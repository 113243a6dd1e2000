//! Our engine, as this benchmark calls it. The only file that knows how pages become a dedup image and come back.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use medes_dedup::{
    candidate::{CandidateRules, FanOut, Hint, NodeId},
    delta::DeltaCodec,
    encode::{EncodeRules, Encoder, WordRules, WordsOf},
    fingerprint::{ChunkHash, Fingerprinter, Sampling},
    image::{DedupImage, ImageBuilder},
    key::DomainKey,
    page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId},
    paper,
    rebuild::BasePages,
    words::{Aligner, BaseIndex, Facts, Memory},
};

use super::{
    clock::timed,
    dump::{Dump, Part},
};

const KEY: DomainKey = DomainKey::from_bytes([42; 32]);
const NODE: NodeId = NodeId(0);

/// How hard to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// For a sandbox that is parked just now.
    Fast,
    /// For what stays parked, knowing nothing of any language's runtime.
    SmallGeneric,
    /// For what stays parked.
    Small,
}

/// How page and base page are brought together without knowing where either was mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hinted {
    /// What agents make today.
    Default,
    /// What the paper made.
    Paper,
}

/// A base, prepared once for any number of targets.
pub(crate) struct Base<'d> {
    dump: &'d Dump,
    parts: Vec<BasePart<'d>>,
}

struct BasePart<'d> {
    snapshot: SnapshotId,
    pages: Vec<&'d Page>,
    index: BaseIndex,
    facts: Facts,
}

impl<'d> Base<'d> {
    pub(crate) fn new(dump: &'d Dump) -> Result<Self> {
        let part = |(number, part): (u64, &'d Part)| {
            let pages: Vec<&Page> = dump.pages()[part.pages.clone()].iter().collect();
            let memory = Memory::new(&pages, &part.addresses, &part.mappings)?;
            let (index, facts) = (BaseIndex::new(memory), Facts::study(memory));
            let snapshot = SnapshotId::new(number).context("numbers start at one")?;
            Ok(BasePart { snapshot, pages, index, facts })
        };
        Ok(Self { dump, parts: (1..).zip(&dump.parts).map(part).collect::<Result<_>>()? })
    }

    /// Bytes that preparing it took.
    pub(super) fn memory_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.index.memory_bytes() + part.facts.memory_bytes()).sum()
    }

    /// Its pages by their names, in order.
    pub(crate) fn named_pages(&self) -> impl Iterator<Item = (BasePage, &'d Page)> {
        self.parts.iter().flat_map(|part| {
            let named = move |(page, bytes): (PageIndex, &&'d Page)| {
                (BasePage { snapshot: part.snapshot, page }, *bytes)
            };
            (0..).map(PageIndex).zip(&part.pages).map(named)
        })
    }

    /// The dump it was made of.
    pub(super) fn dump(&self) -> &Dump {
        self.dump
    }
}

impl<'d> Base<'d> {
    fn part(&self, snapshot: SnapshotId) -> Option<&BasePart<'d>> {
        self.parts.get(usize::try_from(snapshot.get()).ok()?.checked_sub(1)?)
    }
}

impl BasePages for Base<'_> {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.part(page.snapshot)?.pages.get(page.page.0 as usize).copied()
    }

    fn facts(&self, snapshot: SnapshotId) -> Option<&Facts> {
        Some(&self.part(snapshot)?.facts)
    }
}

/// A target, stored.
pub(crate) struct Stored {
    image: DedupImage<Vec<u8>>,
    /// Seconds of alignment, and of learning pointers from it.
    pub(crate) align: f64,
    /// Seconds of everything else: coding, hashing, proving that each page comes back.
    pub(crate) code: f64,
}

impl Stored {
    /// Everything that is kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.image.stored_bytes()
    }

    /// What is kept beside the coded pages.
    pub(super) fn overhead_bytes(&self) -> u64 {
        let classes = self.image.classes();
        self.bytes() - classes.delta_bytes - classes.whole_bytes
    }

    /// The file, for opening it again.
    pub(super) fn file(&self) -> &[u8] {
        self.image.file()
    }
}

/// An image that pages are read from, in any order.
pub(super) struct Reader<'f> {
    image: DedupImage<&'f [u8]>,
    codec: DeltaCodec,
}

impl<'f> Reader<'f> {
    pub(super) fn open(file: &'f [u8]) -> Result<Self> {
        Ok(Self { image: DedupImage::open(file, &KEY)?, codec: DeltaCodec::new() })
    }

    /// Rebuilds one page and checks its hash.
    pub(super) fn page(&mut self, page: u32, base: &Base<'_>, out: &mut Page) -> Result<()> {
        Ok(self.image.rebuild_from(&mut self.codec, PageIndex(page), base, out)?)
    }

    /// Rebuilds all pages.
    pub(super) fn all(&mut self, base: &Base<'_>, out: &mut [Page]) -> Result<()> {
        (0..).zip(out).try_for_each(|(at, page)| self.page(at, base, page))
    }
}

/// Stores a target with the base prepared.
pub(crate) fn store(target: &Dump, base: &Base<'_>, level: Level) -> Result<Stored> {
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    let (mut align, mut code) = (0.0, 0.0);
    for (number, part) in target.parts.iter().enumerate() {
        let pages: Vec<&Page> = target.pages()[part.pages.clone()].iter().collect();
        // The same process of the base. A process that the base did not have has nothing to be predicted from.
        let Some(of) = base.parts.get(number) else {
            let (pushed, seconds) =
                timed(|| pages.iter().try_for_each(|page| builder.push(&encoder.encode_page(page, &[]))));
            pushed?;
            code += seconds;
            continue;
        };
        let memory = Memory::new(&pages, &part.addresses, &part.mappings)?;
        let none = Facts::none();
        let facts = if level == Level::SmallGeneric { &none } else { &of.facts };
        let (plan, seconds) = timed(|| {
            let aligner = Aligner::new(memory, &of.index, &of.pages, facts);
            let plan = aligner.plan([aligner.part(0..pages.len())]);
            match level {
                Level::Fast => plan,
                Level::SmallGeneric | Level::Small => {
                    let second = aligner.refine(&plan);
                    second.plan([second.part(0..pages.len())])
                }
            }
        });
        align += seconds;
        let rules = match level {
            Level::Fast => WordRules::FAST,
            Level::SmallGeneric | Level::Small => WordRules::SMALL,
        };
        let words = WordsOf { snapshot: of.snapshot, pages: &of.pages, facts, plan: &plan, rules };
        let (pushed, seconds) = timed(|| {
            builder.relation(of.snapshot, plan.relation());
            let mut numbered = (0u32..).map(PageIndex).zip(&pages);
            numbered.try_for_each(|(at, page)| builder.push(&encoder.encode_planned(page, at, &words)))
        });
        pushed?;
        code += seconds;
    }
    ensure!(encoder.distrusted() == 0, "{} pages did not come back while encoding", encoder.distrusted());
    let (file, seconds) = timed(|| builder.finish());
    Ok(Stored { image: DedupImage::open(file?, &KEY)?, align, code: code + seconds })
}

/// Fingerprints every page; how many chunks were found, so that the work cannot be left out.
pub(super) fn fingerprint(dump: &Dump) -> usize {
    let fingerprinter = Fingerprinter::new(&KEY, Sampling::default());
    dump.pages().iter().map(|page| fingerprinter.fingerprint(page).hashes().len()).sum()
}

/// A registry that knows one base.
pub(super) struct Registry {
    fingerprinter: Fingerprinter,
    chunks: HashMap<ChunkHash, Vec<BasePage>>,
}

impl Registry {
    /// Base pages kept for one chunk.
    const PAGES_MAX: usize = 16;

    pub(super) fn new(base: &Base<'_>, how: Hinted) -> Self {
        let sampling = match how {
            Hinted::Default => Sampling::default(),
            Hinted::Paper => paper::sampling(),
        };
        let fingerprinter = Fingerprinter::new(&KEY, sampling);
        let mut chunks: HashMap<ChunkHash, Vec<BasePage>> = HashMap::new();
        for part in &base.parts {
            for (page, bytes) in (0..).map(PageIndex).zip(&part.pages) {
                for hash in fingerprinter.fingerprint(bytes).hashes() {
                    let pages = chunks.entry(*hash).or_default();
                    if pages.len() < Self::PAGES_MAX {
                        pages.push(BasePage { snapshot: part.snapshot, page });
                    }
                }
            }
        }
        Self { fingerprinter, chunks }
    }

    /// The base pages that share chunks with a page.
    fn hints(&self, page: &Page) -> Vec<Hint> {
        let mut votes: HashMap<BasePage, u16> = HashMap::new();
        for hash in self.fingerprinter.fingerprint(page).hashes() {
            for base in self.chunks.get(hash).into_iter().flatten() {
                *votes.entry(*base).or_default() += 1;
            }
        }
        votes.into_iter().map(|(base, votes)| Hint { base, node: NODE, votes }).collect()
    }

    /// For each page of the target the base pages that would be tried.
    pub(super) fn choices(&self, target: &Dump, how: Hinted) -> Vec<Vec<BasePage>> {
        let rules = match how {
            Hinted::Default => CandidateRules::default(),
            Hinted::Paper => paper::candidate_rules(),
        };
        let mut fan_out = FanOut::new(rules, NODE);
        let choice = |page| {
            let mut chosen = Vec::new();
            fan_out.choose(&self.hints(page), &mut chosen);
            chosen
        };
        target.pages().iter().map(choice).collect()
    }
}

/// Stores a target by candidates from a registry, one delta per page.
pub(super) fn store_hinted(target: &Dump, base: &Base<'_>, how: Hinted) -> Result<Stored> {
    let registry = Registry::new(base, how);
    let rules = match how {
        Hinted::Default => EncodeRules::default(),
        Hinted::Paper => paper::encode_rules(),
    };
    let (choices, align) = timed(|| registry.choices(target, how));
    Ok(Stored { align, ..store_chosen(target, base, rules, &choices)? })
}

/// Stores a target with base pages that were chosen for each page, one delta per page.
pub(crate) fn store_chosen(
    target: &Dump,
    base: &Base<'_>,
    rules: EncodeRules,
    choices: &[Vec<BasePage>],
) -> Result<Stored> {
    let (file, code) = timed(|| {
        let mut encoder = Encoder::new(&KEY, rules);
        let mut builder = ImageBuilder::new(&KEY);
        for (page, chosen) in target.pages().iter().zip(choices) {
            let tried: Vec<_> = chosen.iter().filter_map(|one| Some((*one, base.base_page(*one)?))).collect();
            builder.push(&encoder.encode_page(page, &tried))?;
        }
        builder.finish()
    });
    Ok(Stored { image: DedupImage::open(file?, &KEY)?, align: 0.0, code })
}

/// Rebuilds every page and compares it with the original; seconds of rebuilding alone.
pub(crate) fn prove(stored: &Stored, target: &Dump, base: &Base<'_>) -> Result<f64> {
    // Memory that is there already: what the kernel takes to hand it out is not the engine's.
    let mut out = vec![[0xff; PAGE_BYTES]; target.pages().len()];
    let mut reader = Reader::open(stored.file())?;
    let (rebuilt, seconds) = timed(|| reader.all(base, &mut out));
    rebuilt?;
    ensure!(out.as_flattened() == target.bytes, "a page does not come back as it was");
    Ok(seconds)
}

/// A page of the base by its name.
pub(super) fn base_page<'b>(base: &'b Base<'_>, page: BasePage) -> Option<&'b Page> {
    base.base_page(page)
}
