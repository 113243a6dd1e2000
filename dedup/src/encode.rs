//! From a page and a few base pages to the smallest thing that gives the page back.
//!
//! Nothing is believed: what would be stored is unpacked again, by the same code a restore uses, and compared byte for
//! byte before it is handed out. A codec that fails this costs space (the page is kept raw), never a page.

use crate::delta::{CODED_BYTES_MAX, DeltaCodec, Level};
use crate::image::PageClasses;
use crate::key::{DomainKey, PageHash, PageHasher};
use crate::page::{BasePage, PAGE_BYTES, Page, ZERO_PAGE, is_zero};
use crate::rebuild::{BasePages, unpack};
use crate::recipe::{Codec, Kind};
use crate::samples;
use crate::words::{Relation, WordEncoder};

mod words;

pub use words::{WordRules, WordsOf};

/// What an encoder may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeRules {
    /// A delta longer than this is not used, however the page is stored then. At most one byte less than a page.
    pub delta_bytes_max: usize,
    /// How hard to work on deltas.
    pub delta_level: Level,
    /// How hard to work on pages without a base page, or `None` to keep these raw.
    pub whole_level: Option<Level>,
    /// When a page is stored by itself although there is a delta. `None`: never.
    pub prefer_whole: Option<PreferWhole>,
}

/// When a delta is not worth the base page that must be read for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreferWhole {
    /// Shorter deltas are taken without a look. Anything the codec can do without a base it can do with one, so
    /// there is next to nothing to gain (nothing measurable on Python processes), and looking halves the speed.
    pub delta_bytes_min: usize,
    /// How much more than the delta the page by itself may take: a page less to read, and to depend on, is worth a
    /// few bytes.
    pub more_bytes_max: usize,
}

impl Default for EncodeRules {
    fn default() -> Self {
        Self {
            delta_bytes_max: CODED_BYTES_MAX,
            // On Python processes the lightest deltas are also 4 % smaller than those of level 3.
            delta_level: Level::FASTEST,
            whole_level: Some(Level::default()),
            prefer_whole: Some(PreferWhole { delta_bytes_min: 1024, more_bytes_max: 16 }),
        }
    }
}

/// The ways to store a page; `B` is its stored bytes, or how many these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form<B> {
    Zero,
    Same(BasePage),
    Delta { base: BasePage, codec: Codec, bytes: B },
    Whole { codec: Codec, bytes: B },
}

impl<B> Form<B> {
    fn map<C>(self, change: impl FnOnce(B) -> C) -> Form<C> {
        match self {
            Self::Zero => Form::Zero,
            Self::Same(base) => Form::Same(base),
            Self::Delta { base, codec, bytes } => Form::Delta { base, codec, bytes: change(bytes) },
            Self::Whole { codec, bytes } => Form::Whole { codec, bytes: change(bytes) },
        }
    }

    pub(crate) const fn base(&self) -> Option<BasePage> {
        match self {
            Self::Same(base) | Self::Delta { base, .. } => Some(*base),
            Self::Zero | Self::Whole { .. } => None,
        }
    }

    const fn bytes(&self) -> Option<&B> {
        match self {
            Self::Delta { bytes, .. } | Self::Whole { bytes, .. } => Some(bytes),
            Self::Zero | Self::Same(_) => None,
        }
    }
}

/// Which way a page is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageClass {
    /// Zeros.
    Zero,
    /// Equal to a base page.
    Same,
    /// A delta to a base page.
    Delta,
    /// By itself.
    Whole,
}

/// A page ready to be stored; proven to give the page back. Borrows its bytes from the encoder or the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodedPage<'e> {
    pub(crate) hash: PageHash,
    pub(crate) form: Form<&'e [u8]>,
}

impl EncodedPage<'_> {
    /// The hash the page has when it comes back.
    pub const fn hash(&self) -> PageHash {
        self.hash
    }

    /// The base page it needs to come back: what must be held on to while the image exists.
    pub const fn base(&self) -> Option<BasePage> {
        self.form.base()
    }

    /// Which way it is stored.
    pub const fn class(&self) -> PageClass {
        match self.form {
            Form::Zero => PageClass::Zero,
            Form::Same(_) => PageClass::Same,
            Form::Delta { .. } => PageClass::Delta,
            Form::Whole { .. } => PageClass::Whole,
        }
    }

    /// Whether it is made of words, so that its image needs a relation to its base.
    pub const fn is_words(&self) -> bool {
        matches!(self.form, Form::Delta { codec: Codec::Words | Codec::Predicted, .. })
    }

    /// Bytes it takes beside its recipe.
    pub fn stored_bytes(&self) -> usize {
        self.form.bytes().map_or(0, |bytes| bytes.len())
    }
}

/// Encoded pages in page order, on their own: what one worker hands over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodedRun {
    pages: Vec<(PageHash, Form<usize>)>,
    bytes: Vec<u8>,
}

impl EncodedRun {
    /// A run without pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next page.
    pub fn push(&mut self, page: &EncodedPage<'_>) {
        let form = page.form.map(|bytes| {
            self.bytes.extend_from_slice(bytes);
            bytes.len()
        });
        self.pages.push((page.hash, form));
    }

    /// The pages in order.
    pub fn iter(&self) -> impl Iterator<Item = EncodedPage<'_>> {
        let mut rest = self.bytes.as_slice();
        self.pages.iter().map(move |(hash, form)| {
            let form = form.map(|length| {
                let (bytes, after) = rest.split_at(length);
                rest = after;
                bytes
            });
            EncodedPage { hash: *hash, form }
        })
    }

    /// How many pages.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// No page at all?
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Empties it, keeping its memory for the next pages.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.bytes.clear();
    }
}

/// Encodes pages of one domain. One per worker; allocates nothing per page.
#[derive(Debug)]
pub struct Encoder {
    rules: EncodeRules,
    hasher: PageHasher,
    codec: DeltaCodec,
    /// The best stored bytes so far for the page at hand.
    best: Box<Page>,
    rebuilt: Box<Page>,
    /// A page as samples, while it is not known whether that is better.
    samples: Vec<u8>,
    classes: PageClasses,
    words: WordEncoder,
    distrusted: u64,
}

impl Encoder {
    /// An encoder for pages of this domain.
    pub fn new(domain: &DomainKey, rules: EncodeRules) -> Self {
        Self {
            rules,
            hasher: PageHasher::new(domain),
            codec: DeltaCodec::new(),
            best: Box::new(ZERO_PAGE),
            rebuilt: Box::new(ZERO_PAGE),
            samples: Vec::new(),
            classes: PageClasses::default(),
            words: WordEncoder::new(),
            distrusted: 0,
        }
    }

    /// Pages encoded so far, by kind.
    pub const fn classes(&self) -> PageClasses {
        self.classes
    }

    /// How often stored bytes did not give the page back and the page was kept raw instead. Anything but 0 is a defect of
    /// a codec or of the machine, and worth an alarm.
    pub const fn distrusted(&self) -> u64 {
        self.distrusted
    }

    /// The smallest way to store the page with the help of these base pages, proven to give it back.
    ///
    /// Cannot fail: in the worst case the page is kept as it is. The first of equally good candidates wins.
    pub fn encode_page(&mut self, page: &Page, candidates: &[(BasePage, &Page)]) -> EncodedPage<'_> {
        let (hash, chosen) = if is_zero(page) {
            (self.hasher.zero(), Form::Zero)
        } else {
            let same = candidates.iter().find(|(_, bytes)| *bytes == page).map(|(base, _)| Form::Same(*base));
            let form = same.unwrap_or_else(|| self.smallest(page, candidates));
            (self.hasher.hash(page), form)
        };
        let chosen = self.proven(page, (candidates, &Relation::default()), chosen);
        self.finished(hash, chosen)
    }

    /// Fills `best` with the fewest bytes that should give the page back.
    fn smallest(&mut self, page: &Page, candidates: &[(BasePage, &Page)]) -> Form<usize> {
        let mut form: Option<Form<usize>> = None;
        let mut limit = self.rules.delta_bytes_max;
        for (base, bytes) in candidates {
            if let Some(delta) = self.codec.encode(page, bytes, limit, self.rules.delta_level) {
                self.best[..delta.len()].copy_from_slice(delta);
                form = Some(Form::Delta { base: *base, codec: Codec::Zstd, bytes: delta.len() });
                // The next one has to be smaller.
                limit = delta.len() - 1;
            }
        }
        let delta_bytes = form.as_ref().and_then(Form::bytes).copied();
        let limit = match (form, delta_bytes, self.rules.prefer_whole) {
            (Some(_), Some(bytes), Some(rule)) if bytes >= rule.delta_bytes_min => {
                bytes + rule.more_bytes_max
            }
            (Some(form), ..) => return form,
            (None, ..) => CODED_BYTES_MAX,
        };
        if let Some(level) = self.rules.whole_level {
            form = self.by_itself(page, limit, level).or(form);
        }
        form.unwrap_or_else(|| self.raw(page))
    }

    /// Fills `best` with the page by itself, if that takes at most so many bytes.
    fn by_itself(&mut self, page: &Page, mut limit: usize, level: Level) -> Option<Form<usize>> {
        let mut form = None;
        if let Some(coded) = self.codec.encode_alone(page, limit, level) {
            self.best[..coded.len()].copy_from_slice(coded);
            form = Some(Form::Whole { codec: Codec::Zstd, bytes: coded.len() });
            limit = coded.len() - 1;
        }
        self.samples.clear();
        if samples::encode(page, limit, &mut self.samples) {
            let bytes = self.samples.len();
            self.best[..bytes].copy_from_slice(&self.samples);
            form = Some(Form::Whole { codec: Codec::Samples, bytes });
        }
        form
    }

    fn raw(&mut self, page: &Page) -> Form<usize> {
        self.best.copy_from_slice(page);
        Form::Whole { codec: Codec::Raw, bytes: PAGE_BYTES }
    }

    /// The form, if unpacking it gives the page; else the page itself.
    fn proven<P: BasePages + ?Sized>(
        &mut self,
        page: &Page,
        bases: (&P, &Relation),
        form: Form<usize>,
    ) -> Form<usize> {
        let stored = form.map(|length| &self.best[..length]);
        let unpacked = unpack(&mut self.codec, &stored, bases, &mut self.rebuilt);
        if unpacked.is_ok() && *self.rebuilt == *page { form } else { self.distrust(page) }
    }

    /// Keeps the page as it is, since nothing else gives it back.
    fn distrust(&mut self, page: &Page) -> Form<usize> {
        self.distrusted += 1;
        self.raw(page)
    }

    /// The form as it is handed out.
    fn finished(&mut self, hash: PageHash, chosen: Form<usize>) -> EncodedPage<'_> {
        self.classes.count(match chosen {
            Form::Zero => Kind::Zero,
            Form::Same(base) => Kind::Same { base: 0, page: base.page },
            Form::Delta { base, codec, bytes } => {
                Kind::Delta { base: 0, page: base.page, codec, bytes: bytes as u16 }
            }
            Form::Whole { codec, bytes } => Kind::Whole { codec, bytes: bytes as u16 },
        });
        EncodedPage { hash, form: chosen.map(|length| &self.best[..length]) }
    }
}

/// Candidates as pages to rebuild from.
impl BasePages for [(BasePage, &Page)] {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.iter().find(|(base, _)| *base == page).map(|(_, bytes)| *bytes)
    }
}
