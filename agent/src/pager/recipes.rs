//! Makes recipes of the pages of a stopped process: words of its function's base where there is one here, compressed pages
//! otherwise. Proven twice: by the encoder, and from the sealed image before any original is given up.

use std::io::{self, Write};
use std::sync::Arc;

use medes_dedup::{
    delta::DeltaCodec,
    encode::EncodedRun,
    image::{BuildImageError, DedupImage, ImageBuilder, OpenImageError},
    key::DomainKey,
    mapping::MappingsError,
    page::{PAGE_BYTES, Page, ZERO_PAGE, is_zero},
    rebuild::RebuildError,
    words::{Memory, MemoryError},
};
use medes_proto::fleet::Level;

use super::store::ParkedImage;
use crate::{
    bases::{BasePages, indexes::Indexes, local::Snapshot},
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
        page: usize,
    },
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] crate::faults::Injected),
}

/// Why pages are stored without a base.
#[derive(Debug, thiserror::Error)]
enum NotAligned {
    #[error("{0} has no layout")]
    NoLayout(medes_dedup::page::SnapshotId),
    #[error("{0} is of another program")]
    OtherProgram(medes_dedup::page::SnapshotId),
    #[error("its mappings")]
    Mappings(#[from] MappingsError),
    #[error("its memory, or the base's")]
    Memory(#[from] MemoryError),
}

/// Pages of one process that are to be stored, copied while it stood still.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Their numbers, in order.
    pub(super) numbers: Vec<u64>,
    /// Their bytes.
    pub(super) bytes: Vec<u8>,
    /// What the process had mapped.
    pub(super) maps: String,
}

impl Saved {
    /// The pages.
    pub(super) fn pages(&self) -> &[Page] {
        self.bytes.as_chunks::<PAGE_BYTES>().0
    }

    /// Leaves pages of zeros out: their numbers, in order. Nothing has to be stored to bring these back.
    pub(super) fn leave_out_zeros(&mut self) -> Vec<u64> {
        let mut zeros = Vec::new();
        let mut kept = 0;
        for at in 0..self.numbers.len() {
            let start = at * PAGE_BYTES;
            if self.bytes[start..].first_chunk::<PAGE_BYTES>().is_some_and(is_zero) {
                zeros.push(self.numbers[at]);
                continue;
            }
            if kept < at {
                self.bytes.copy_within(start..start + PAGE_BYTES, kept * PAGE_BYTES);
                self.numbers[kept] = self.numbers[at];
            }
            kept += 1;
        }
        self.numbers.truncate(kept);
        self.bytes.truncate(kept * PAGE_BYTES);
        zeros
    }
}

/// How pages of a sandbox are stored.
#[derive(Debug)]
pub struct Recipes {
    /// The tenant's key.
    pub key: DomainKey,
    /// The engine as it is set now.
    pub engine: Engine,
    /// A base of the sandbox's function that is here as a whole.
    pub base: Option<Arc<Snapshot>>,
    /// Indexes of bases.
    pub bases: Arc<crate::bases::Bases>,
    /// Failures that tests ask for.
    pub faults: Arc<crate::faults::Faults>,
}

impl Recipes {
    /// Stores pages, and proves that each comes back. Blocks: some 4 ms per MB and thread.
    pub(super) fn store(&self, saved: &Saved) -> Result<ParkedImage, StorePagesError> {
        let (image, bases) = self.encode(saved)?;
        self.faults.pass(crate::faults::Step::ParkEncode)?;
        let sealed = (|| {
            let mut file = MemoryFile::create("medes-parked")?;
            file.write_all(&image)?;
            file.seal()
        })();
        drop(image);
        let parked =
            ParkedImage::new(DedupImage::open(sealed.map_err(StorePagesError::Seal)?, &self.key)?, bases);
        prove(&parked, saved)?;
        Ok(parked)
    }

    fn encode(&self, saved: &Saved) -> Result<(Vec<u8>, BasePages), StorePagesError> {
        let pages: Vec<&Page> = saved.pages().iter().collect();
        let mut image = ImageBuilder::new(&self.key);
        let mut bases = BasePages::default();
        if let Some(worded) = self.words(saved, &pages) {
            worded.runs.iter().try_for_each(|run| push(&mut image, run))?;
            image.relation(worded.snapshot, &worded.relation);
            self.base.iter().for_each(|base| bases.hold(base.clone()));
        } else {
            let choices = vec![Vec::new(); pages.len()];
            let rules = (&self.key, self.engine.encode_rules());
            let runs = page_work::encode(&pages, &choices, &bases, rules, self.engine.threads)?;
            runs.iter().try_for_each(|run| push(&mut image, run))?;
        }
        Ok((image.finish()?, bases))
    }

    /// The pages as words of the base, if there is one of the same program.
    fn words(&self, saved: &Saved, pages: &[&Page]) -> Option<Worded> {
        let base = self.base.as_ref().filter(|_| self.engine.level() != Level::None)?;
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
        if main.layout.program() != maps::program(&saved.maps) {
            return Err(NotAligned::OtherProgram(base.id));
        }
        let index = indexes.of(base.id, &main)?;
        let mappings = maps::mappings(&saved.maps)?;
        let addresses: Vec<u64> = saved.numbers.iter().map(|page| page * PAGE_BYTES as u64).collect();
        let memory = Memory::new(pages, &addresses, &mappings)?;
        let base = WordsBase { snapshot: base.id, index: &index, pages: &main.pages, facts: base.facts() };
        let rules = (&self.key, self.engine.encode_rules());
        // Fast whatever is set for images that are kept for long: who is parked is wanted back in a moment.
        Ok(page_work::words::encode(memory, base, (Level::Fast, None), rules, self.engine.threads))
    }
}

fn push(image: &mut ImageBuilder, run: &EncodedRun) -> Result<(), BuildImageError> {
    run.iter().try_for_each(|page| image.push(&page))
}

/// Every page comes back from what is stored, and is the same.
fn prove(parked: &ParkedImage, saved: &Saved) -> Result<(), StorePagesError> {
    let mut codec = DeltaCodec::new();
    let mut rebuilt = Box::new(ZERO_PAGE);
    for ((number, page), original) in (0..).zip(0usize..).zip(saved.pages()) {
        parked.rebuild(&mut codec, number, &mut rebuilt)?;
        if *rebuilt != *original {
            return Err(StorePagesError::Differs { page });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_left_out_and_the_rest_keeps_its_order() {
        let mut bytes = vec![0; 5 * PAGE_BYTES];
        for at in [1, 3, 4] {
            bytes[at * PAGE_BYTES + 7] = u8::try_from(at).unwrap();
        }
        let mut saved = Saved { numbers: vec![10, 11, 12, 20, 21], bytes, maps: String::new() };
        assert_eq!(saved.leave_out_zeros(), [10, 12]);
        assert_eq!(saved.numbers, [11, 20, 21]);
        assert_eq!(saved.pages().iter().map(|page| page[7]).collect::<Vec<_>>(), [1, 3, 4]);
    }
}
