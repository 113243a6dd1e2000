//! Taking pages of an earlier image over into a new one: a page that has not changed needs not be encoded again.

use super::DedupImage;
use crate::encode::EncodedPage;
use crate::page::{PageIndex, SnapshotId};
use crate::recipe::Source;
use crate::words::{Earlier, Relation};

impl<B: AsRef<[u8]>> DedupImage<B> {
    /// All pages as they are stored, in page order, to be pushed into another image of the same domain. A page that has
    /// the hash of one of these comes back from it. The other image needs the [relations](Self::relations) too.
    pub fn encoded(&self) -> impl Iterator<Item = EncodedPage<'_>> {
        self.recipes().map(|recipe| EncodedPage { hash: recipe.hash, form: self.form(recipe.source) })
    }

    /// What is known about pages of a target that are stored here, each at its place if it has one, and that are to be made of the
    /// same base again. `None` if no page is made of its words.
    pub fn earlier(
        &self,
        base: SnapshotId,
        places: impl IntoIterator<Item = Option<PageIndex>>,
    ) -> Option<Earlier<'_>> {
        let (_, relation) = self.relations().find(|(snapshot, _)| *snapshot == base)?;
        let mut earlier = Earlier::new(relation);
        for place in places {
            let recipe = place.and_then(|place| self.recipe(place));
            match recipe.map(|recipe| recipe.source) {
                Some(Source::Same(page)) if page.snapshot == base => earlier.push_same(page.page),
                Some(Source::Delta { base: page, codec, place })
                    if page.snapshot == base && codec.is_of_words() =>
                {
                    earlier.push(Some((page.page, self.stored(place))));
                }
                _ => earlier.push(None),
            }
        }
        Some(earlier)
    }

    /// How the words of each base became words of this image's pages.
    pub fn relations(&self) -> impl Iterator<Item = (SnapshotId, &Relation)> {
        self.bases().iter().copied().zip(self.all_relations())
    }
}
