//! What the pages of a parked process are kept as: a dedup image, beside it pages that are kept as they are for now, and a table of which address is
//! where in these.

use std::ops::Range;
use std::sync::Arc;

use medes_dedup::{
    delta::DeltaCodec,
    image::{DedupImage, PAGES_MAX, PageClasses},
    page::{Page, PageIndex},
    rebuild::RebuildError,
    recipe::Source,
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

/// Pages of a process as they were once, one behind the other. Immutable.
#[derive(Debug)]
pub(super) struct PlainPages(MappedFile);

impl PlainPages {
    /// The pages of a sealed file.
    pub(super) const fn new(file: MappedFile) -> Self {
        Self(file)
    }

    /// The file.
    pub(super) const fn file(&self) -> &MappedFile {
        &self.0
    }

    /// The pages.
    pub(super) fn pages(&self) -> &[Page] {
        self.0.as_ref().as_chunks().0
    }
}

/// Places from here on are of plain pages: an image has fewer.
pub(super) const PLAIN: u32 = 1 << 31;
const _: () = assert!(PAGES_MAX < PLAIN as usize);

/// What pages of one process are made from. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    /// What was stored small.
    pub(super) image: Option<Arc<ParkedImage>>,
    /// What was kept as it is since.
    pub(super) plain: Option<Arc<PlainPages>>,
}

impl Contents {
    /// Those of an image.
    pub(super) const fn of(image: Arc<ParkedImage>) -> Self {
        Self { image: Some(image), plain: None }
    }

    /// Rebuilds the pages from a place on.
    pub(super) fn rebuild(
        &self,
        codec: &mut DeltaCodec,
        place: u32,
        out: &mut [Page],
    ) -> Result<(), RebuildError> {
        // A place of what is gone is a defect; nobody may run with it.
        let nothing = RebuildError::NoPage { page: PageIndex(place), pages: 0 };
        let Some(at) = place.checked_sub(PLAIN) else {
            return self.image.as_ref().ok_or(nothing)?.rebuild(codec, place, out);
        };
        let pages = self.plain.as_ref().and_then(|plain| plain.pages().get(at as usize..)?.get(..out.len()));
        out.copy_from_slice(pages.ok_or(nothing)?);
        Ok(())
    }

    fn is(&self, other: &Self) -> bool {
        let address = |of: &Self| (of.image.as_ref().map(Arc::as_ptr), of.plain.as_ref().map(Arc::as_ptr));
        address(self) == address(other)
    }
}

/// All stored pages of one process. A clone is another process's, and shares what they are made from.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    table: Table,
    contents: Contents,
}

impl Store {
    /// The pages with these numbers, in order, each where it says.
    pub(super) fn of(contents: Contents, pages: impl Iterator<Item = (u64, u32)>) -> Self {
        Self { table: Table::placed(pages), contents }
    }

    /// Where a page is, and how many pages lie behind it from there on.
    pub(super) fn find(&self, page: u64) -> Option<(u32, u32)> {
        self.table.find(page)
    }

    /// Where a page is in the image, if that has it.
    pub(super) fn find_in_image(&self, page: u64) -> Option<PageIndex> {
        self.find(page).filter(|(place, _)| *place < PLAIN).map(|(place, _)| PageIndex(place))
    }

    /// Which pages are stored.
    pub(super) const fn table(&self) -> &Table {
        &self.table
    }

    /// What they are made from.
    pub(super) const fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The image, once there is one.
    pub(super) const fn image(&self) -> Option<&Arc<ParkedImage>> {
        self.contents.image.as_ref()
    }

    /// Pages that are kept as they are, if there are any.
    pub(super) const fn plain(&self) -> Option<&Arc<PlainPages>> {
        self.contents.plain.as_ref()
    }

    /// What the pages are stored as, and how many of them are kept as they are. Looks at each.
    pub(super) fn classes(&self) -> (PageClasses, u64) {
        let image = self.image().map(|image| image.image());
        let sources: Vec<Source> =
            image.into_iter().flat_map(|image| image.recipes()).map(|recipe| recipe.source).collect();
        let (mut classes, mut plain) = (PageClasses::default(), 0);
        for (_, place) in self.table.places() {
            match sources.get(place as usize) {
                _ if place >= PLAIN => {
                    classes.whole += 1;
                    plain += 1;
                }
                Some(Source::Zero) => classes.zero += 1,
                Some(Source::Same(_)) => classes.same += 1,
                Some(Source::Delta { .. }) => classes.delta += 1,
                Some(Source::Whole { .. }) | None => classes.whole += 1,
            }
        }
        (classes, plain)
    }

    /// Rebuilds the pages from a place on.
    pub(super) fn rebuild(
        &self,
        codec: &mut DeltaCodec,
        place: u32,
        out: &mut [Page],
    ) -> Result<(), RebuildError> {
        self.contents.rebuild(codec, place, out)
    }

    /// Whether it is the very same: the same pages, at the same places.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.contents.is(&other.contents) && self.table == other.table
    }

    /// Contents that were given up, or are no longer mapped; which of them were stored.
    pub(super) fn forget(&mut self, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        self.table.forget(pages)
    }

    /// Pages were moved.
    pub(super) fn moved(&mut self, from: u64, to: u64, pages: u64) {
        self.table.moved(from, to, pages);
    }
}
