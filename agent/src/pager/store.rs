//! What the pages of a parked process are kept as: one dedup image, and a table of which address is where in it.

use std::ops::Range;
use std::sync::Arc;

use medes_dedup::{
    delta::DeltaCodec,
    image::DedupImage,
    page::{Page, PageIndex},
    rebuild::RebuildError,
};

use super::table::Table;
use crate::{
    bases::{HeldPages, local::Snapshot},
    memory_file::MappedFile,
};

/// Pages of a process as they were once, and what they are made from. Immutable.
#[derive(Debug)]
pub(super) struct ParkedImage {
    image: Arc<DedupImage<MappedFile>>,
    held: Vec<Arc<Snapshot>>,
    bases: HeldPages,
}

impl ParkedImage {
    /// An image with all bases that it needs, whole.
    pub(super) fn new(image: Arc<DedupImage<MappedFile>>, held: Vec<Arc<Snapshot>>) -> Self {
        let mut bases = HeldPages::default();
        held.iter().for_each(|base| bases.hold(base.clone()));
        Self { image, held, bases }
    }

    /// The image.
    pub(super) fn image(&self) -> &DedupImage<MappedFile> {
        &self.image
    }

    /// The bases it is made from.
    pub(super) fn held(&self) -> &[Arc<Snapshot>] {
        &self.held
    }

    /// The pages from a place on, each proven by its hash.
    pub(super) fn rebuild(
        &self,
        codec: &mut DeltaCodec,
        place: u32,
        out: &mut [Page],
    ) -> Result<(), RebuildError> {
        self.image.rebuild_run(codec, PageIndex(place), &self.bases, out)
    }
}

/// All stored pages of one process. A clone is another process's, and shares the image.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    table: Table,
    image: Option<Arc<ParkedImage>>,
}

impl Store {
    /// Where a page is in the image, and how many pages lie behind it from there on.
    pub(super) fn find(&self, page: u64) -> Option<(u32, u32)> {
        self.table.find(page)
    }

    /// Which pages are stored.
    pub(super) const fn table(&self) -> &Table {
        &self.table
    }

    /// Rebuilds the pages from a place on.
    pub(super) fn rebuild(
        &self,
        codec: &mut DeltaCodec,
        place: u32,
        out: &mut [Page],
    ) -> Result<(), RebuildError> {
        // A table of an image that is gone is a defect; nobody may run with it.
        let image = self.image.as_ref().ok_or(RebuildError::NoPage { page: PageIndex(place), pages: 0 })?;
        image.rebuild(codec, place, out)
    }

    /// Contents that were given up, or are no longer mapped; which of them were stored.
    pub(super) fn forget(&mut self, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        self.table.forget(pages)
    }

    /// Pages were moved.
    pub(super) fn moved(&mut self, from: u64, to: u64, pages: u64) {
        self.table.moved(from, to, pages);
    }

    /// The image, once there is one.
    pub(super) const fn image(&self) -> Option<&Arc<ParkedImage>> {
        self.image.as_ref()
    }
}

impl Store {
    /// The pages with these numbers, in order, as an image has them.
    pub(super) fn of(image: Arc<ParkedImage>, numbers: &[u64]) -> Self {
        Self { table: Table::of(numbers), image: Some(image) }
    }

    /// The pages with these numbers, in order, each where it says in the image.
    pub(super) fn placed(image: Arc<ParkedImage>, pages: &[(u64, u32)]) -> Self {
        Self { table: Table::placed(pages.iter().copied()), image: Some(image) }
    }
}
