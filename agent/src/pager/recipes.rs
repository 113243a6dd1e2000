//! Makes recipes of the pages of a stopped process: words of its function's base where there is one here, compressed pages
//! otherwise. Proven twice: by the encoder, and from the sealed image before any original is given up.
//!
//! Pages that are as they were at the last park are taken over from the image made then, recipe and bytes, so that there is one
//! image, and in it nothing that is no page any more.
//!
//! Of a sandbox that was parked before only what it has written since is handled, and kept as it is: whoever is soon wanted back need not have worked for
//! it. That becomes recipes as well once the sandbox has been parked for a while ([`super::shrink`]).

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use medes_dedup::{
    delta::DeltaCodec,
    encode::{EncodedPage, EncodedRun},
    image::{BuildImageError, DedupImage, ImageBuilder, OpenImageError},
    key::PageHash,
    mapping::MappingsError,
    page::{PAGE_BYTES, Page, SnapshotId, ZERO_PAGE},
    rebuild::RebuildError,
    words::{Memory, MemoryError},
};
use medes_proto::fleet::Level;

use super::saved::Saved;
use super::store::{Contents, PLAIN, ParkedImage, Store};
use crate::{
    bases::{HeldPages, indexes::Indexes, local::Snapshot},
    engine::Engine,
    maps,
    memory_file::MemoryFile,
    page_work::{
        self, MissingBasePage,
        words::{Worded, WordsBase},
    },
};

/// Why pages could not be stored. Nothing was given up.
#[derive(Debug, thiserror::Error)]
pub enum StorePagesError {
    /// A page was encoded with a base page that is not there.
    #[error("encode its pages")]
    Encode(#[from] MissingBasePage),
    /// The image has more of something than an image may have.
    #[error("build the image of its pages")]
    Build(#[from] BuildImageError),
    /// There was no memory for it.
    #[error("keep the image of its pages")]
    Seal(#[source] io::Error),
    /// The image just made does not open.
    #[error("open the image of its pages again")]
    Reopen(#[from] OpenImageError),
    /// A page does not come back from it.
    #[error("rebuild a page to prove it")]
    Rebuild(#[from] RebuildError),
    /// A page comes back as another one.
    #[error("page {page} of the image is not the page that was stored")]
    Differs {
        /// Its position.
        page: u32,
    },
    /// The encoder has not said how a page is stored.
    #[error("page {page:#x} was not encoded")]
    Unencoded {
        /// Its number.
        page: u64,
    },
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] crate::faults::Injected),
}

/// Why pages are stored without a base.
#[derive(Debug, thiserror::Error)]
enum NotAligned {
    #[error("{0} has no layout")]
    NoLayout(SnapshotId),
    #[error("{0} is of another program")]
    OtherProgram(SnapshotId),
    #[error("its mappings")]
    Mappings(#[from] MappingsError),
    #[error("its memory, or the base's")]
    Memory(#[from] MemoryError),
}

/// How pages of a sandbox are stored.
#[derive(Debug)]
pub struct Recipes {
    /// The engine for its tenant, as it is set now.
    pub engine: Engine,
    /// A base of the sandbox's function that is here as a whole.
    pub base: Option<Arc<Snapshot>>,
    /// Indexes of bases.
    pub bases: Arc<crate::bases::Bases>,
    /// Failures that tests ask for.
    pub faults: Arc<crate::faults::Faults>,
}

impl Recipes {
    /// The same, with this base.
    pub(super) fn with_base(&self, base: Option<Arc<Snapshot>>) -> Self {
        let (bases, faults) = (self.bases.clone(), self.faults.clone());
        Self { engine: self.engine.clone(), base, bases, faults }
    }

    /// Stores the pages that were saved together with those that have not changed, and proves that each comes back. Blocks: some
    /// 4 ms per MB and thread, or a tenth of that where they are kept as they are. `None`: nothing has changed.
    pub(super) fn store(&self, saved: Saved) -> Result<Option<Store>, StorePagesError> {
        let kept = saved.kept();
        if saved.is_as_before(kept.len()) {
            return Ok(None);
        }
        if saved.in_haste && self.brings_no_base(&saved.before) {
            let stored = saved.keep(kept);
            self.faults.pass(crate::faults::Step::ParkEncode)?;
            return Ok(Some(stored));
        }
        let kept: Vec<(u64, u32)> = kept.into_iter().filter(|(_, place)| *place < PLAIN).collect();
        let (image, held) = self.encode(&saved, &kept)?;
        self.faults.pass(crate::faults::Step::ParkEncode)?;
        let sealed = MemoryFile::sealed("medes-parked", &image);
        drop(image);
        let image = DedupImage::open(sealed.map_err(StorePagesError::Seal)?, self.engine.key())?;
        let held = held.into_iter().filter(|base| image.bases().contains(&base.id)).collect();
        let parked = ParkedImage::new(Arc::new(image), held);
        let numbers = prove(&parked, &saved, &kept, self.engine.threads)?;
        Ok(Some(Store::of(Contents::of(Arc::new(parked)), numbers.into_iter().zip(0..))))
    }

    /// Whether a sandbox that is stored like this has no other base to be made from: with one it is worth all to be stored anew.
    fn brings_no_base(&self, before: &Store) -> bool {
        let held = before.image().map(|image| image.held()).unwrap_or_default();
        self.base.as_ref().is_none_or(|base| held.iter().any(|held| held.id == base.id))
    }

    /// All pages in order of their numbers, and the bases they may be made from.
    fn encode(
        &self,
        saved: &Saved,
        kept: &[(u64, u32)],
    ) -> Result<(Vec<u8>, Vec<Arc<Snapshot>>), StorePagesError> {
        let pages = saved.pages();
        let mut image = ImageBuilder::new(self.engine.key());
        let before = saved.before.image();
        let stored: Vec<EncodedPage<'_>> =
            before.map(|before| before.image().encoded().collect()).unwrap_or_default();
        let related = before.map(|before| image.relations_of(before.image())).unwrap_or_default();
        let mut held: Vec<Arc<Snapshot>> = before.map(|before| before.held().to_vec()).unwrap_or_default();
        let runs = if let Some(worded) = self.words(saved, &pages) {
            // What is stored anew was made with the relation there is.
            if !related.contains(&worded.snapshot) {
                image.relation(worded.snapshot, &worded.relation);
            }
            let is_held = |base: &Arc<Snapshot>| held.iter().any(|held| held.id == base.id);
            if let Some(base) = self.base.clone().filter(|base| !is_held(base)) {
                held.push(base);
            }
            worded.runs
        } else {
            let choices = vec![Vec::new(); pages.len()];
            let rules = (self.engine.key(), self.engine.encode_rules());
            page_work::encode(&pages, &choices, &HeldPages::default(), rules, self.engine.threads)?
        };
        let mut fresh = saved.numbers.iter().copied().zip(runs.iter().flat_map(EncodedRun::iter)).peekable();
        for (number, place) in kept {
            while let Some((_, page)) = fresh.next_if(|(fresh, _)| fresh < number) {
                image.push(&page)?;
            }
            let page = usize::try_from(*place).ok().and_then(|place| stored.get(place));
            image.push(page.ok_or(StorePagesError::Unencoded { page: *number })?)?;
        }
        fresh.try_for_each(|(_, page)| image.push(&page))?;
        Ok((image.finish()?, held))
    }

    /// The pages as words of the base, if there is one of the same program.
    fn words(&self, saved: &Saved, pages: &[&Page]) -> Option<Worded> {
        let base = self.base.as_ref().filter(|_| self.engine.level() != Level::None && !pages.is_empty())?;
        let aligned = self.align(base, &self.bases.indexes, saved, pages);
        aligned
            .inspect_err(|error| {
                let error: &dyn std::error::Error = error;
                tracing::warn!(error, "parked without a base to align with");
            })
            .ok()
    }

    fn align(
        &self,
        base: &Snapshot,
        indexes: &Indexes,
        saved: &Saved,
        pages: &[&Page],
    ) -> Result<Worded, NotAligned> {
        let main = base.main_process().ok_or(NotAligned::NoLayout(base.id))?;
        let mapped = saved.maps();
        if main.layout.program() != maps::program(&mapped) {
            return Err(NotAligned::OtherProgram(base.id));
        }
        let index = indexes.of(base.id, &main)?;
        let mappings = maps::mappings(&mapped)?;
        let addresses: Vec<u64> = saved.numbers.iter().map(|page| page * PAGE_BYTES as u64).collect();
        let memory = Memory::new(pages, &addresses, &mappings)?;
        // An image has one relation for each base: what is new has to be made with it too.
        let before = saved.before.image();
        let places = saved.numbers.iter().map(|page| saved.before.find_in_image(*page));
        let earlier = before.and_then(|before| before.image().earlier(base.id, places));
        let base = WordsBase { snapshot: base.id, index: &index, pages: &main.pages, facts: base.facts() };
        let rules = (self.engine.key(), self.engine.encode_rules());
        // Fast whatever is set for images that are kept for long: who is parked is wanted back in a moment.
        Ok(page_work::words::encode(
            memory,
            base,
            (Level::Fast, earlier.as_ref(), &saved.hot()),
            rules,
            self.engine.threads,
        ))
    }
}

/// Neighbours that are rebuilt together to prove them.
const PROVEN_AT_ONCE: usize = 16;

/// Every page that was saved comes back from what is stored, and is the same; every page that was taken over is what it was
/// before. Returns their numbers, in the order of the image.
fn prove(
    parked: &ParkedImage,
    saved: &Saved,
    kept: &[(u64, u32)],
    threads: NonZeroUsize,
) -> Result<Vec<u64>, StorePagesError> {
    let mut numbers = Vec::with_capacity(saved.numbers.len() + kept.len());
    let mut proofs: Vec<(u32, &Page)> = Vec::with_capacity(saved.numbers.len());
    let (mut fresh, mut kept) = (saved.numbers.iter().zip(saved.pages()).peekable(), kept.iter().peekable());
    let before = saved.before.image().into_iter().flat_map(|before| before.image().recipes());
    let before: Vec<PageHash> = before.map(|recipe| recipe.hash).collect();
    let hash_before = |place| before.get(usize::try_from(place).ok()?);
    for (position, recipe) in (0..).zip(parked.image().recipes().map(Some).chain(std::iter::repeat(None))) {
        let next = fresh.peek().map_or(u64::MAX, |(number, _)| **number);
        if let Some((number, place)) = kept.next_if(|(number, _)| *number < next) {
            if recipe.is_none_or(|recipe| Some(&recipe.hash) != hash_before(*place)) {
                return Err(StorePagesError::Differs { page: position });
            }
            numbers.push(*number);
        } else if let Some((number, original)) = fresh.next() {
            proofs.push((position, original));
            numbers.push(*number);
        } else {
            break;
        }
    }
    page_work::spread(&proofs, threads, |proofs| {
        let mut codec = DeltaCodec::new();
        let mut rebuilt = vec![ZERO_PAGE; PROVEN_AT_ONCE];
        let neighbours = proofs.chunk_by(|(a, _), (b, _)| a + 1 == *b);
        neighbours.flat_map(|run| run.chunks(PROVEN_AT_ONCE)).try_for_each(|run| {
            let rebuilt = &mut rebuilt[..run.len()];
            parked.rebuild(&mut codec, run[0].0, rebuilt)?;
            let other = run.iter().zip(rebuilt).find(|((_, original), rebuilt)| **original != **rebuilt);
            other.map_or(Ok(()), |((page, _), _)| Err(StorePagesError::Differs { page: *page }))
        })
    })
    .into_iter()
    .collect::<Result<(), StorePagesError>>()?;
    Ok(numbers)
}
