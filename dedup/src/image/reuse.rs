//! Taking pages of an earlier image over into a new one: a page that has not changed needs not be encoded again.

use super::DedupImage;
use crate::encode::EncodedPage;
use crate::page::SnapshotId;
use crate::words::Relation;

impl<B: AsRef<[u8]>> DedupImage<B> {
    /// All pages as they are stored, in page order, to be pushed into another image of the same domain. A page that has
    /// the hash of one of these comes back from it. The other image needs the [relations](Self::relations) too.
    pub fn encoded(&self) -> impl Iterator<Item = EncodedPage<'_>> {
        self.recipes().map(|recipe| EncodedPage { hash: recipe.hash, form: self.form(recipe.source) })
    }

    /// How the words of each base became words of this image's pages.
    pub fn relations(&self) -> impl Iterator<Item = (SnapshotId, &Relation)> {
        self.bases().iter().copied().zip(self.all_relations())
    }
}
