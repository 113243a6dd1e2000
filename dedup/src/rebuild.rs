//! From a recipe back to the page, and what has to be read for all of them.

use thiserror::Error;

use crate::delta::{DecodeDeltaError, DeltaCodec};
use crate::encode::Form;
use crate::image::DedupImage;
use crate::page::{BasePage, Page, PageIndex, SnapshotId, ZERO_PAGE};
use crate::recipe::{Codec, Place, Recipe, Source};
use crate::samples;
use crate::words::{DecodeWordsError, Facts, Known, PageSource, Relation, Rest, decode_pieces, pages_needed};

/// Why a page could not be rebuilt. In every case the sandbox must not run with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum RebuildError {
    /// The image has no such page.
    #[error("page {page} of an image of {pages}")]
    NoPage {
        /// What was asked for.
        page: PageIndex,
        /// What there is.
        pages: u32,
    },
    /// The recipe needs a base page and none was given.
    #[error("page {page} needs {base}, which was not given")]
    NoBase {
        /// The page.
        page: PageIndex,
        /// What it needs.
        base: BasePage,
    },
    /// Words of the page follow from facts about the base, and these were not given.
    #[error("page {page} needs what is known about {base}, which was not given")]
    NoFacts {
        /// The page.
        page: PageIndex,
        /// What they are about.
        base: SnapshotId,
    },
    /// The stored bytes do not decode. The image is sound, so the fault is with the base page, if there is one.
    #[error("decode page {page}{}", on_base(.base))]
    Decode {
        /// The page.
        page: PageIndex,
        /// The base page it was decoded on.
        base: Option<BasePage>,
        /// What the codec says.
        source: DecodeDeltaError,
    },
    /// A page came out, but not the one that was stored.
    #[error("page {page}{} does not have its hash", on_base(.base))]
    Hash {
        /// The page.
        page: PageIndex,
        /// The base page it was rebuilt from.
        base: Option<BasePage>,
    },
}

fn on_base(base: &Option<BasePage>) -> String {
    base.map(|base| format!(" on {base}")).unwrap_or_default()
}

/// Base pages at hand, of any number of snapshots.
pub trait BasePages {
    /// The page, if it is at hand.
    fn base_page(&self, page: BasePage) -> Option<&Page>;

    /// What is known about a snapshot beyond its pages, if that is at hand.
    fn facts(&self, _snapshot: SnapshotId) -> Option<&Facts> {
        None
    }
}

/// The one page that a caller found in a recipe.
struct Only<'p>(Option<(BasePage, &'p Page)>);

impl BasePages for Only<'_> {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.0.filter(|(name, _)| *name == page).map(|(_, bytes)| bytes)
    }
}

/// The pages of one snapshot among these.
struct OfSnapshot<'p, B: ?Sized>(SnapshotId, &'p B);

impl<B: BasePages + ?Sized> PageSource for OfSnapshot<'_, B> {
    fn page(&self, page: PageIndex) -> Option<&Page> {
        self.1.base_page(BasePage { snapshot: self.0, page })
    }
}

/// Why a form did not unpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnpackError {
    NoBase(BasePage),
    NoFacts(SnapshotId),
    Decode(DecodeDeltaError),
}

/// The second half of a page of words: makes it of what its pieces predict.
pub(crate) fn put_right(
    codec: &mut DeltaCodec,
    words: Codec,
    rest: Rest<'_>,
    page: &mut Page,
) -> Result<(), DecodeDeltaError> {
    match words {
        Codec::Predicted => codec.decode_over(rest.bytes()?, page),
        _ => Ok(rest.correct(page)?),
    }
}

/// Makes the page out of its stored form. The one way back, for restores and for the encoder's proof alike.
pub(crate) fn unpack<P: BasePages + ?Sized>(
    codec: &mut DeltaCodec,
    form: &Form<&[u8]>,
    (bases, relation): (&P, &Relation),
    page: &mut Page,
) -> Result<(), UnpackError> {
    let needed = |named: BasePage| bases.base_page(named).ok_or(UnpackError::NoBase(named));
    let decoded = match form {
        Form::Zero => {
            page.fill(0);
            Ok(())
        }
        Form::Same(named) => {
            page.copy_from_slice(needed(*named)?);
            Ok(())
        }
        Form::Delta { base, codec: Codec::Zstd, bytes } => codec.decode(bytes, needed(*base)?, page),
        Form::Delta { base, codec: words, bytes } if words.is_of_words() => {
            let snapshot = OfSnapshot(base.snapshot, bases);
            let facts = bases.facts(base.snapshot);
            if facts.is_none() && relation.needs_facts() {
                return Err(UnpackError::NoFacts(base.snapshot));
            }
            let none = Facts::none();
            let known = Known { pages: &snapshot, facts: facts.unwrap_or(&none), relation };
            let rest = decode_pieces(bytes, base.page, &known, page).map_err(|problem| match problem {
                DecodeWordsError::NoPage { page } => UnpackError::NoBase(BasePage { page, ..*base }),
                other => UnpackError::Decode(other.into()),
            })?;
            put_right(codec, *words, rest, page)
        }
        Form::Whole { codec: Codec::Zstd, bytes } => codec.decode_alone(bytes, page),
        Form::Whole { codec: Codec::Samples, bytes } => {
            samples::decode(bytes, page).map_err(DecodeDeltaError::from)
        }
        // A delta is never raw; a whole page that is not compressed is.
        Form::Delta { bytes, .. } | Form::Whole { bytes, .. } => match <&Page>::try_from(*bytes) {
            Ok(stored) => {
                page.copy_from_slice(stored);
                Ok(())
            }
            Err(_) => Err(DecodeDeltaError::Length { bytes: bytes.len() }),
        },
    };
    decoded.map_err(UnpackError::Decode)
}

impl<B: AsRef<[u8]>> DedupImage<B> {
    /// Rebuilds one page into `out`, given the base page its recipe names (`None` if it names none).
    ///
    /// `Ok` means that `out` has the hash the page had when it was stored. After an error `out` is all zeros, so that a
    /// caller who forgets to look cannot hand half a page to a sandbox.
    pub fn rebuild(
        &self,
        codec: &mut DeltaCodec,
        page: PageIndex,
        base: Option<&Page>,
        out: &mut Page,
    ) -> Result<(), RebuildError> {
        let named = self.recipe(page).and_then(|recipe| recipe.source.base());
        self.rebuild_from(codec, page, &Only(named.zip(base)), out)
    }

    /// Rebuilds one page into `out` from whatever base pages it takes: one, or for pages of words a few.
    ///
    /// [`Self::reads`] tells beforehand which. Same promises as [`Self::rebuild`].
    pub fn rebuild_from<P: BasePages + ?Sized>(
        &self,
        codec: &mut DeltaCodec,
        page: PageIndex,
        bases: &P,
        out: &mut Page,
    ) -> Result<(), RebuildError> {
        self.rebuild_run(codec, page, bases, std::slice::from_mut(out))
    }

    /// Rebuilds neighbours from this page on, which is faster than one by one. Same promises for all of them.
    pub fn rebuild_run<P: BasePages + ?Sized>(
        &self,
        codec: &mut DeltaCodec,
        first: PageIndex,
        bases: &P,
        out: &mut [Page],
    ) -> Result<(), RebuildError> {
        let mut recipes = self.recipes_from(first);
        let rebuilt = out.iter_mut().zip(first.0..).try_for_each(|(out, page)| {
            let page = PageIndex(page);
            let recipe = recipes.as_mut().and_then(Iterator::next);
            let recipe = recipe.ok_or(RebuildError::NoPage { page, pages: self.pages() })?;
            self.follow(codec, (page, recipe), bases, out)
        });
        if rebuilt.is_err() {
            out.fill(ZERO_PAGE);
        }
        rebuilt
    }

    fn follow<P: BasePages + ?Sized>(
        &self,
        codec: &mut DeltaCodec,
        (page, recipe): (PageIndex, Recipe),
        bases: &P,
        out: &mut Page,
    ) -> Result<(), RebuildError> {
        let form = self.form(recipe.source);
        let named = form.base();
        let relation = self.relation(named);
        unpack(codec, &form, (bases, relation), out).map_err(|problem| match problem {
            UnpackError::NoFacts(base) => RebuildError::NoFacts { page, base },
            UnpackError::NoBase(base) => RebuildError::NoBase { page, base },
            UnpackError::Decode(source) => RebuildError::Decode { page, base: named, source },
        })?;
        // Pages of zeros are so many that hashing each anew would be felt.
        let found = if form == Form::Zero { self.hasher().zero() } else { self.hasher().hash(out) };
        if found == recipe.hash { Ok(()) } else { Err(RebuildError::Hash { page, base: named }) }
    }

    /// A page as it is stored.
    pub(crate) fn form(&self, source: Source) -> Form<&[u8]> {
        match source {
            Source::Zero => Form::Zero,
            Source::Same(base) => Form::Same(base),
            Source::Delta { base, codec, place } => Form::Delta { base, codec, bytes: self.stored(place) },
            Source::Whole { codec, place } => Form::Whole { codec, bytes: self.stored(place) },
        }
    }

    /// The bytes at a place; none if the memory under the image has changed since it was opened.
    pub(crate) fn stored(&self, place: Place) -> &[u8] {
        let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
        let range = start..start.saturating_add(place.bytes.into());
        self.arena().get(range).unwrap_or_default()
    }

    /// Everything that must be read to rebuild all pages.
    pub fn reads(&self) -> ReadPlan {
        let mut uses: Vec<(BasePage, PageIndex)> = Vec::with_capacity(self.pages() as usize);
        let mut needed = Vec::new();
        for (page, recipe) in (0u32..).map(PageIndex).zip(self.recipes()) {
            let Some(base) = recipe.source.base() else { continue };
            needed.clear();
            if let Source::Delta { codec, place, .. } = recipe.source
                && codec.is_of_words()
            {
                // What does not parse will not rebuild either, and says so then.
                if pages_needed(self.stored(place), base.page, self.relation(Some(base)), &mut needed)
                    .is_err()
                {
                    needed.clear();
                }
            }
            if needed.is_empty() {
                needed.push(base.page);
            }
            uses.extend(needed.iter().map(|number| (BasePage { page: *number, ..base }, page)));
        }
        uses.sort_unstable();
        ReadPlan { uses }
    }
}

/// The distinct base pages of an image, by snapshot and page, each with the image's pages that need it.
///
/// A caller reads each base page once, in an order in which neighbours can be read together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadPlan {
    uses: Vec<(BasePage, PageIndex)>,
}

impl ReadPlan {
    /// Each base page once, in order of snapshot and page.
    pub fn iter(&self) -> impl Iterator<Item = BaseRead<'_>> {
        self.uses.chunk_by(|(a, _), (b, _)| a == b).filter_map(|uses| {
            let (base, _) = uses.first()?;
            Some(BaseRead { base: *base, uses })
        })
    }

    /// No base page needed at all?
    pub fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }
}

/// One base page to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseRead<'p> {
    /// The base page.
    pub base: BasePage,
    uses: &'p [(BasePage, PageIndex)],
}

impl<'p> BaseRead<'p> {
    /// The pages of the image that are made from it, in order.
    pub fn pages(&self) -> impl ExactSizeIterator<Item = PageIndex> + use<'p> {
        self.uses.iter().map(|(_, page)| *page)
    }
}
