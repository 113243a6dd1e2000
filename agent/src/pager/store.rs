//! What the pages of a parked process are kept as: dedup images, one for each park, each with the pages that had been
//! written since the park before, and a table of which address is where.

use std::ops::Range;
use std::sync::Arc;

use medes_dedup::{
    delta::DeltaCodec,
    image::DedupImage,
    page::{Page, PageIndex},
    rebuild::RebuildError,
};

use super::table::{Place, Table};
use crate::{bases::BasePages, memory_file::MappedFile};

/// Images of one process. Before there are more, the pages of the emptiest one move into the next.
pub(super) const IMAGES_MAX: usize = 8;

/// Pages of a process as they were once, and what they are made from. Immutable.
#[derive(Debug)]
pub(super) struct ParkedImage {
    image: DedupImage<MappedFile>,
    bases: BasePages,
}

impl ParkedImage {
    /// An image with all base pages that it needs.
    pub(super) const fn new(image: DedupImage<MappedFile>, bases: BasePages) -> Self {
        Self { image, bases }
    }

    /// The image.
    pub(super) const fn image(&self) -> &DedupImage<MappedFile> {
        &self.image
    }

    /// One page, proven by its hash.
    pub(super) fn rebuild(
        &self,
        codec: &mut DeltaCodec,
        page: u32,
        out: &mut Page,
    ) -> Result<(), RebuildError> {
        self.image.rebuild_from(codec, PageIndex(page), &self.bases, out)
    }
}

/// All stored pages of one process. A clone is another process's, and shares the images.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    table: Table,
    images: Vec<(u32, Arc<ParkedImage>)>,
    next: u32,
}

impl Store {
    /// Where a page is, and how many pages lie behind it from there on.
    pub(super) fn find(&self, page: u64) -> Option<(Place, u32)> {
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
        place: Place,
        out: &mut [Page],
    ) -> Result<(), RebuildError> {
        let image = self.images.iter().find(|(number, _)| *number == place.image);
        let Some((_, image)) = image else {
            // A table that names an image that is gone is a defect; nobody may run with it.
            return Err(RebuildError::NoPage { page: PageIndex(place.page), pages: 0 });
        };
        for (page, out) in (place.page..).zip(out) {
            image.rebuild(codec, page, out)?;
        }
        Ok(())
    }

    /// Contents that were given up, or are no longer mapped.
    pub(super) fn forget(&mut self, pages: &Range<u64>) {
        self.table.forget(pages);
    }

    /// Pages were moved.
    pub(super) fn moved(&mut self, from: u64, to: u64, pages: u64) {
        self.table.moved(from, to, pages);
    }

    /// Pages that should move into the next image, so that there are never too many images.
    pub(super) fn to_move(&self) -> Vec<u64> {
        if self.images.len() < IMAGES_MAX {
            return Vec::new();
        }
        let fewest = self.images.iter().map(|(number, _)| (self.pages_of(*number), *number)).min();
        fewest.map(|(_, number)| self.table.of_image(number).collect()).unwrap_or_default()
    }

    /// These pages, in order, are those of a new image.
    pub(super) fn add(&mut self, image: Arc<ParkedImage>, pages: &[u64]) {
        self.table.replace(self.next, pages);
        self.images.push((self.next, image));
        self.next = self.next.wrapping_add(1);
        let in_use: Vec<u32> = self.images.iter().map(|(number, _)| *number).collect();
        let empty: Vec<u32> = in_use.into_iter().filter(|number| self.pages_of(*number) == 0).collect();
        self.images.retain(|(number, _)| !empty.contains(number));
    }

    fn pages_of(&self, image: u32) -> u64 {
        self.table.uses().filter(|(of, _)| *of == image).map(|(_, pages)| u64::from(pages)).sum()
    }

    /// All bytes kept for it.
    pub(super) fn stored_bytes(&self) -> u64 {
        let images: u64 = self.images.iter().map(|(_, image)| image.image.stored_bytes()).sum();
        images + self.table.memory_bytes() as u64
    }

    /// The images.
    pub(super) fn images(&self) -> impl Iterator<Item = &Arc<ParkedImage>> {
        self.images.iter().map(|(_, image)| image)
    }
}
