//! All recipes of an image as one table, about ten bytes for a page.
//!
//! Recipes lie in groups of [`PAGES_PER_GROUP`] pages; each group can be parsed from its start on its own. In a group
//! there is one entry after another. An entry is for one page, or for a run of pages that are all zeros, or equal to
//! base pages that follow one another:
//!
//! ```text
//!  ┌──────┬────────┬──────────┬───────┬────────┬────────────────────┐
//!  │ head │ base   │ distance │ run   │ bytes  │ hash of each page  │
//!  │ 1    │ 0 or 1 │ 0 to 5   │ 0, 1  │ 0 to 2 │ 0 or 8 for each    │
//!  └──────┴────────┴──────────┴───────┴────────┴────────────────────┘
//!   head      bits 0-2: 0 zero, 1 same, 2 delta by zstd, 3 delta of words, 4 delta on predicted words,
//!                       5 whole by zstd, 6 whole as it is, 7 whole as samples
//!             bits 3-5: base, distance, run follow; bits 6 and 7 are zero
//!   base      position of the base snapshot in the image's table, if it is not that of the entry before
//!   distance  how far the base page is from the expected one, if it is: zigzag varint
//!   run       how many pages, if not one; ends with the group at the latest
//!   bytes     how many bytes of the arena are this page's: varint; only where these are coded
//!   hash      of the page when it comes back; pages of zeros have none
//! ```
//!
//! Expected is the base page that lies as far behind the base page before as the page itself does behind its own. A
//! group begins with base 0 and expects base page 0. What needs not be said must not be said, and what fits into the run
//! before must be in it: so there is one way to write a table, and every other is an error.

use std::iter::FusedIterator;

use thiserror::Error;

use super::{Codec, Place, Recipe, Source};
use crate::delta::CODED_BYTES_MAX;
use crate::key::PageHash;
use crate::page::{BasePage, PAGE_BYTES, PageIndex, SnapshotId};
use crate::words::varint;

/// Pages whose recipes are parsed together. A larger group takes longer until its last page is found, a smaller one
/// more memory for where each begins.
pub const PAGES_PER_GROUP: usize = 16;

/// Most bytes that the recipe of one page takes: head, base, distance, length, hash.
pub const RECIPE_BYTES_MAX: usize = 1 + 1 + 5 + 2 + HASH_BYTES;

const HASH_BYTES: usize = size_of::<PageHash>();

/// Numbers of the kinds in an entry's head. None is free.
mod number {
    pub(super) const ZERO: u8 = 0;
    pub(super) const SAME: u8 = 1;
    pub(super) const DELTA_ZSTD: u8 = 2;
    pub(super) const DELTA_WORDS: u8 = 3;
    pub(super) const DELTA_PREDICTED: u8 = 4;
    pub(super) const WHOLE_ZSTD: u8 = 5;
    pub(super) const WHOLE_RAW: u8 = 6;
    pub(super) const WHOLE_SAMPLES: u8 = 7;
}

/// The bits of a head that are the kind's number.
const NUMBER: u8 = 0b111;
/// Another base follows.
const BASE: u8 = 1 << 3;
/// A distance follows.
const DISTANCE: u8 = 1 << 4;
/// The length of a run follows.
const RUN: u8 = 1 << 5;

/// Why bytes are not a table of recipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseRecipeError {
    /// They end before the last page.
    #[error("the recipes end too early")]
    Short,
    /// A head says that something follows which this kind does not have.
    #[error("a page of kind {kind} cannot have flags {flags:#04x}")]
    Flags {
        /// The page kind.
        kind: u8,
        /// The upper bits of the head.
        flags: u8,
    },
    /// The base is not in the image's table.
    #[error("base {base} is not in the table of {bases}")]
    Base {
        /// The position found.
        base: u8,
        /// Entries in the table.
        bases: usize,
    },
    /// A base is named although it is that of the entry before.
    #[error("base {base} is named again")]
    SameBase {
        /// Its position.
        base: u8,
    },
    /// A distance or a length is not written the one usual way.
    #[error("a number is not written the usual way")]
    Number,
    /// A distance is given although the base page is the expected one.
    #[error("a distance of zero")]
    NoDistance,
    /// The base page has a number that no page can have.
    #[error("no base page can be {distance} from page {expected}")]
    Page {
        /// The page that was expected.
        expected: u64,
        /// How far the base page is from it.
        distance: i64,
    },
    /// A run of less than two pages, or of more than the group has left.
    #[error("a run of {run} pages where {left} are left")]
    Run {
        /// The length found.
        run: u8,
        /// Pages of the group from here on.
        left: u32,
    },
    /// Pages that go on where a run ended and are not in it.
    #[error("pages of kind {kind} that the run before should hold")]
    Split {
        /// The page kind.
        kind: u8,
    },
    /// More or fewer stored bytes than such a page can have.
    #[error("a page of kind {kind} cannot have {bytes} stored bytes")]
    Length {
        /// The page kind.
        kind: u8,
        /// The length found.
        bytes: u64,
    },
}

/// Says where in the image a recipe's base and bytes are; what a table tells of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) hash: PageHash,
    pub(crate) kind: Kind,
}

/// A [`Source`] with the base as a position in the table and the place as a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Zero,
    Same { base: u8, page: PageIndex },
    Delta { base: u8, page: PageIndex, codec: Codec, bytes: u16 },
    Whole { codec: Codec, bytes: u16 },
}

impl Kind {
    /// Bytes in the arena.
    pub(crate) const fn stored_bytes(self) -> u16 {
        match self {
            Self::Zero | Self::Same { .. } => 0,
            Self::Delta { bytes, .. } | Self::Whole { bytes, .. } => bytes,
        }
    }

    /// Position in the table of bases.
    pub(crate) const fn base(self) -> Option<u8> {
        match self {
            Self::Same { base, .. } | Self::Delta { base, .. } => Some(base),
            Self::Zero | Self::Whole { .. } => None,
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::Zero => number::ZERO,
            Self::Same { .. } => number::SAME,
            Self::Delta { codec: Codec::Words, .. } => number::DELTA_WORDS,
            Self::Delta { codec: Codec::Predicted, .. } => number::DELTA_PREDICTED,
            Self::Delta { .. } => number::DELTA_ZSTD,
            Self::Whole { codec: Codec::Raw, .. } => number::WHOLE_RAW,
            Self::Whole { codec: Codec::Samples, .. } => number::WHOLE_SAMPLES,
            Self::Whole { .. } => number::WHOLE_ZSTD,
        }
    }

    /// May this page be in one run with the page `steps` before it?
    fn continues(self, first: Self, steps: usize) -> bool {
        match (first, self) {
            (Self::Zero, Self::Zero) => true,
            (Self::Same { base, page }, Self::Same { base: other, page: next }) => {
                base == other && page.0 as usize + steps == next.0 as usize
            }
            _ => false,
        }
    }
}

/// The base page that needs not be named.
#[derive(Debug, Clone, Copy, Default)]
struct Expected {
    base: u8,
    /// More than any page's number once the last page was passed.
    page: u64,
}

/// Appends the recipes of one group: all pages up to the next multiple of [`PAGES_PER_GROUP`], or the last ones.
pub(crate) fn write_group(group: &[Record], out: &mut Vec<u8>) {
    let mut expected = Expected::default();
    let mut rest = group;
    while let Some(Record { kind, .. }) = rest.first().copied() {
        let run = (1..rest.len()).find(|at| !rest[*at].kind.continues(kind, *at)).unwrap_or(rest.len());
        let (records, after) = rest.split_at(run);
        rest = after;

        let head = out.len();
        out.push(kind.number());
        if let Kind::Same { base, page } | Kind::Delta { base, page, .. } = kind {
            if base != expected.base {
                out[head] |= BASE;
                out.push(base);
            }
            let page = u64::from(page.0);
            if page != expected.page {
                out[head] |= DISTANCE;
                varint::write(out, varint::zigzag(page.cast_signed() - expected.page.cast_signed()));
            }
            expected = Expected { base, page };
        }
        if run > 1 {
            out[head] |= RUN;
            out.push(run as u8);
        }
        if let Kind::Delta { bytes, .. } | Kind::Whole { codec: Codec::Zstd | Codec::Samples, bytes } = kind {
            varint::write(out, bytes.into());
        }
        if kind != Kind::Zero {
            records.iter().for_each(|record| out.extend_from_slice(&record.hash.0));
        }
        expected.page += run as u64;
    }
}

/// The entry that is being read.
#[derive(Debug, Clone, Copy)]
struct Entry {
    number: u8,
    /// Pages of it still to come.
    left: u32,
    /// Stored bytes of its page.
    bytes: u16,
}

/// What a table tells, page by page, in terms of the image. Ends after the first error.
#[derive(Debug, Clone)]
pub(crate) struct Records<'t> {
    rest: &'t [u8],
    bases: usize,
    zero: PageHash,
    pages: u32,
    /// Pages of the group still to come.
    group: u32,
    expected: Expected,
    entry: Entry,
}

impl<'t> Records<'t> {
    /// From the start of a group on, `pages` pages of an image with so many `bases`. `zero` is the hash of zeros.
    pub(crate) const fn new(table: &'t [u8], pages: u32, bases: usize, zero: PageHash) -> Self {
        let expected = Expected { base: 0, page: 0 };
        let entry = Entry { number: number::ZERO, left: 0, bytes: 0 };
        Self { rest: table, bases, zero, pages, group: 0, expected, entry }
    }

    /// Bytes that have not been read.
    pub(crate) const fn unread(&self) -> usize {
        self.rest.len()
    }

    fn record(&mut self) -> Result<Record, ParseRecipeError> {
        if self.entry.left == 0 {
            self.entry = self.entry()?;
        }
        let Entry { number, bytes, .. } = self.entry;
        let Expected { base, page } = self.expected;
        // Whether there is such a page was looked at when the entry was read.
        let page = PageIndex(page as u32);
        let kind = match number {
            number::ZERO => Kind::Zero,
            number::SAME => Kind::Same { base, page },
            number::DELTA_ZSTD => Kind::Delta { base, page, codec: Codec::Zstd, bytes },
            number::DELTA_WORDS => Kind::Delta { base, page, codec: Codec::Words, bytes },
            number::DELTA_PREDICTED => Kind::Delta { base, page, codec: Codec::Predicted, bytes },
            number::WHOLE_ZSTD => Kind::Whole { codec: Codec::Zstd, bytes },
            number::WHOLE_SAMPLES => Kind::Whole { codec: Codec::Samples, bytes },
            _ => Kind::Whole { codec: Codec::Raw, bytes },
        };
        let hash = if number == number::ZERO { self.zero } else { PageHash(self.take()?) };
        self.entry.left -= 1;
        self.group -= 1;
        self.pages -= 1;
        self.expected.page += 1;
        Ok(Record { hash, kind })
    }

    fn entry(&mut self) -> Result<Entry, ParseRecipeError> {
        let mut before = Some(self.entry.number);
        if self.group == 0 {
            self.group = self.pages.min(PAGES_PER_GROUP as u32);
            self.expected = Expected::default();
            before = None;
        }
        let [head] = self.take()?;
        let (number, flags) = (head & NUMBER, head & !NUMBER);
        let possible = match number {
            number::ZERO => RUN,
            number::SAME => RUN | BASE | DISTANCE,
            number::DELTA_ZSTD | number::DELTA_WORDS | number::DELTA_PREDICTED => BASE | DISTANCE,
            // Whole pages: a head has no other numbers.
            _ => 0,
        };
        if flags & !possible != 0 {
            return Err(ParseRecipeError::Flags { kind: number, flags });
        }
        if before == Some(number) && possible & RUN != 0 && flags & (BASE | DISTANCE) == 0 {
            return Err(ParseRecipeError::Split { kind: number });
        }
        if flags & BASE != 0 {
            let [base] = self.take()?;
            if base == self.expected.base {
                return Err(ParseRecipeError::SameBase { base });
            }
            self.expected.base = base;
        }
        let distance = if flags & DISTANCE != 0 { varint::unzigzag(self.number()?) } else { 0 };
        if flags & DISTANCE != 0 && distance == 0 {
            return Err(ParseRecipeError::NoDistance);
        }
        let mut run = 1;
        if flags & RUN != 0 {
            [run] = self.take()?;
            if run < 2 || u32::from(run) > self.group {
                return Err(ParseRecipeError::Run { run, left: self.group });
            }
        }
        if possible & BASE != 0 {
            let Expected { base, page } = self.expected;
            if usize::from(base) >= self.bases {
                return Err(ParseRecipeError::Base { base, bases: self.bases });
            }
            let last = u64::from(u32::MAX) + 1 - u64::from(run);
            let there = page.checked_add_signed(distance).filter(|there| *there <= last);
            self.expected.page = there.ok_or(ParseRecipeError::Page { expected: page, distance })?;
        }
        let bytes = match number {
            number::ZERO | number::SAME => 0,
            number::WHOLE_RAW => PAGE_BYTES as u16,
            kind => {
                let bytes = self.number()?;
                let fits =
                    u16::try_from(bytes).ok().filter(|fits| (1..=CODED_BYTES_MAX).contains(&(*fits).into()));
                fits.ok_or(ParseRecipeError::Length { kind, bytes })?
            }
        };
        Ok(Entry { number, left: run.into(), bytes })
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ParseRecipeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(ParseRecipeError::Short)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64, ParseRecipeError> {
        let before = self.rest;
        varint::read(&mut self.rest).ok_or_else(|| match before.iter().all(|byte| *byte >= 0x80) {
            true => ParseRecipeError::Short,
            false => ParseRecipeError::Number,
        })
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, ParseRecipeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.pages == 0 {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.pages = 0;
        }
        Some(record)
    }
}

impl FusedIterator for Records<'_> {}

/// The recipes of a table in page order. Ends after the first error.
///
/// The table may come from anywhere: what comes out names only bases that there are, and the places of the pages' bytes
/// follow one another without a gap.
#[derive(Debug, Clone)]
pub struct Recipes<'t> {
    records: Records<'t>,
    bases: &'t [SnapshotId],
    offset: u64,
}

impl<'t> Recipes<'t> {
    /// Reads a table for `pages` pages of an image with these base snapshots. `zero` is the hash of a page of zeros.
    pub const fn new(table: &'t [u8], pages: u32, bases: &'t [SnapshotId], zero: PageHash) -> Self {
        Self::starting_at(0, table, pages, bases, zero)
    }

    /// From the start of a group on whose first stored byte is at `offset` of the arena.
    pub(crate) const fn starting_at(
        offset: u64,
        table: &'t [u8],
        pages: u32,
        bases: &'t [SnapshotId],
        zero: PageHash,
    ) -> Self {
        Self { records: Records::new(table, pages, bases.len(), zero), bases, offset }
    }

    /// Bytes of the table that have not been read. A whole table has none left after its last page.
    pub const fn unread(&self) -> usize {
        self.records.unread()
    }

    fn recipe(&mut self, Record { hash, kind }: Record) -> Result<Recipe, ParseRecipeError> {
        let bases = self.bases;
        let at = |base: u8, page| {
            let known = bases.get(usize::from(base)).copied();
            let snapshot = known.ok_or(ParseRecipeError::Base { base, bases: bases.len() })?;
            Ok(BasePage { snapshot, page })
        };
        let place = Place { offset: self.offset, bytes: kind.stored_bytes() };
        self.offset += u64::from(place.bytes);
        let source = match kind {
            Kind::Zero => Source::Zero,
            Kind::Same { base, page } => Source::Same(at(base, page)?),
            Kind::Delta { base, page, codec, .. } => Source::Delta { base: at(base, page)?, codec, place },
            Kind::Whole { codec, .. } => Source::Whole { codec, place },
        };
        Ok(Recipe { hash, source })
    }
}

impl Iterator for Recipes<'_> {
    type Item = Result<Recipe, ParseRecipeError>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = self.records.next()?;
        Some(record.and_then(|record| self.recipe(record)))
    }
}

impl FusedIterator for Recipes<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ZERO: PageHash = PageHash([7; 8]);

    fn kinds() -> impl Strategy<Value = Kind> {
        let coded = 1u16..=CODED_BYTES_MAX as u16;
        let page = || prop_oneof![0u32..4, u32::MAX - 3..=u32::MAX, any::<u32>()].prop_map(PageIndex);
        let codec = prop_oneof![Just(Codec::Zstd), Just(Codec::Words), Just(Codec::Predicted)];
        prop_oneof![
            Just(Kind::Zero),
            (0u8..3, page()).prop_map(|(base, page)| Kind::Same { base, page }),
            (0u8..3, page(), coded.clone(), codec).prop_map(|(base, page, bytes, codec)| Kind::Delta {
                base,
                page,
                codec,
                bytes
            }),
            coded.clone().prop_map(|bytes| Kind::Whole { codec: Codec::Zstd, bytes }),
            coded.prop_map(|bytes| Kind::Whole { codec: Codec::Samples, bytes }),
            Just(Kind::Whole { codec: Codec::Raw, bytes: PAGE_BYTES as u16 }),
        ]
    }

    /// Pages as an image has them: some of any kind, and stretches that go on as they began.
    fn all_records() -> impl Strategy<Value = Vec<Record>> {
        let stretch = (kinds(), 1usize..100, any::<[u8; 8]>()).prop_map(|(first, pages, hash)| {
            let next = |at: usize| {
                let moved = |page: PageIndex| PageIndex(page.0.wrapping_add(at as u32));
                match first {
                    Kind::Same { base, page } => Kind::Same { base, page: moved(page) },
                    Kind::Delta { base, page, codec, bytes } => {
                        Kind::Delta { base, page: moved(page), codec, bytes }
                    }
                    other => other,
                }
            };
            let record = |at| {
                let kind = next(at);
                Record { hash: if kind == Kind::Zero { ZERO } else { PageHash(hash) }, kind }
            };
            (0..pages).map(record).collect::<Vec<_>>()
        });
        proptest::collection::vec(stretch, 0..8).prop_map(|stretches| stretches.concat())
    }

    fn written(records: &[Record]) -> Vec<u8> {
        let mut table = Vec::new();
        records.chunks(PAGES_PER_GROUP).for_each(|group| write_group(group, &mut table));
        table
    }

    proptest! {
        #[test]
        fn tables_come_back(records in all_records()) {
            let table = written(&records);
            prop_assert!(table.len() <= records.len() * RECIPE_BYTES_MAX);
            let mut read = Records::new(&table, records.len() as u32, 3, ZERO);
            let back: Result<Vec<Record>, _> = read.by_ref().collect();
            prop_assert_eq!(back, Ok(records));
            prop_assert_eq!(read.unread(), 0);
        }

        /// One way to write each table: whatever parses is what would be written.
        #[test]
        fn every_table_that_parses_is_the_usual_one(
            records in all_records(),
            strikes in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..0x40), 1..4),
            more in -2i32..3,
        ) {
            let mut table = written(&records);
            for (at, byte) in strikes.iter().filter(|_| !records.is_empty()) {
                let at = at.index(table.len());
                table[at] = *byte;
            }
            let pages = (records.len() as i32 + more).max(0) as u32;
            let mut read = Records::new(&table, pages, 3, ZERO);
            if let Ok(parsed) = read.by_ref().collect::<Result<Vec<Record>, _>>() {
                prop_assert_eq!(parsed.len(), pages as usize);
                prop_assert_eq!(written(&parsed), &table[..table.len() - read.unread()]);
            }
        }

        /// The same for short tables of likely bytes, where almost every byte is a head or a number.
        #[test]
        fn every_short_table_that_parses_is_the_usual_one(
            table in proptest::collection::vec(prop_oneof![0u8..0x40, any::<u8>()], 0..40),
            pages in 0u32..70,
        ) {
            let mut read = Records::new(&table, pages, 2, ZERO);
            if let Ok(parsed) = read.by_ref().collect::<Result<Vec<Record>, _>>() {
                prop_assert_eq!(parsed.len(), pages as usize);
                prop_assert_eq!(written(&parsed), &table[..table.len() - read.unread()]);
            }
        }

        /// Bytes of the arena follow one another, whatever the table says.
        #[test]
        fn places_leave_no_gaps(table: Vec<u8>, records in all_records(), pages in 0u32..100) {
            let bases: Vec<SnapshotId> = (1..=3).filter_map(SnapshotId::new).collect();
            for (table, pages) in [(table, pages), (written(&records), records.len() as u32)] {
                let mut end = 0;
                for recipe in Recipes::new(&table, pages, &bases, ZERO).map_while(Result::ok) {
                    prop_assert!(recipe.source.base().is_none_or(|base| bases.contains(&base.snapshot)));
                    if let Source::Delta { place, .. } | Source::Whole { place, .. } = recipe.source {
                        prop_assert_eq!(place.offset, end);
                        prop_assert!(place.bytes > 0 && usize::from(place.bytes) <= PAGE_BYTES);
                        end += u64::from(place.bytes);
                    }
                }
            }
        }
    }

    #[test]
    fn a_page_takes_a_few_bytes() {
        let same = |page| Record { hash: ZERO, kind: Kind::Same { base: 0, page: PageIndex(page) } };
        let delta = |page| {
            let kind = Kind::Delta { base: 0, page: PageIndex(page), codec: Codec::Words, bytes: 90 };
            Record { hash: ZERO, kind }
        };
        let zero = Record { hash: ZERO, kind: Kind::Zero };
        assert_eq!(written(&[zero; 16]), [0x20, 16]);
        assert_eq!(written(&[zero]), [0]);
        assert_eq!(written(&(0..16).map(same).collect::<Vec<_>>()).len(), 2 + 16 * 8);
        assert_eq!(written(&(0..16).map(delta).collect::<Vec<_>>()).len(), 16 * 10);
        // The pages of zeros between are counted too, so the base page behind them needs no distance.
        assert_eq!(written(&[delta(0), zero, zero, delta(3)]).len(), 10 + 2 + 10);
        assert_eq!(written(&[delta(70_000), same(5)]).len(), 13 + 12);
    }

    #[test]
    fn each_mistake_has_its_error() {
        let error = |table: &[u8], pages| {
            let padded = [table, &[0; 16]].concat();
            Records::new(&padded, pages, 2, ZERO).find_map(Result::err).unwrap()
        };
        let short = |table: &[u8]| Records::new(table, 2, 2, ZERO).find_map(Result::err).unwrap();
        for table in [&[][..], &[0], &[1, 9], &[0x09], &[0x11], &[0x11, 0x80], &[0x21], &[5], &[2, 0x80]] {
            assert_eq!(short(table), ParseRecipeError::Short);
        }
        assert_eq!(error(&[7], 1), ParseRecipeError::Length { kind: 7, bytes: 0 });
        assert_eq!(error(&[0x0f, 1], 1), ParseRecipeError::Flags { kind: 7, flags: 0x08 });
        assert_eq!(error(&[0x40], 1), ParseRecipeError::Flags { kind: 0, flags: 0x40 });
        assert_eq!(error(&[0x81], 1), ParseRecipeError::Flags { kind: 1, flags: 0x80 });
        assert_eq!(error(&[0x08, 1], 1), ParseRecipeError::Flags { kind: 0, flags: 0x08 });
        assert_eq!(error(&[0x22, 2], 2), ParseRecipeError::Flags { kind: 2, flags: 0x20 });
        assert_eq!(error(&[0x15, 2], 1), ParseRecipeError::Flags { kind: 5, flags: 0x10 });
        assert_eq!(error(&[0x0e, 1], 1), ParseRecipeError::Flags { kind: 6, flags: 0x08 });
        assert_eq!(error(&[0x09, 2], 1), ParseRecipeError::Base { base: 2, bases: 2 });
        assert_eq!(error(&[0x09, 0], 1), ParseRecipeError::SameBase { base: 0 });
        assert_eq!(error(&[0x11, 0x80, 0], 1), ParseRecipeError::Number);
        assert_eq!(error(&[0x11, 0], 1), ParseRecipeError::NoDistance);
        assert_eq!(error(&[0x11, 1], 1), ParseRecipeError::Page { expected: 0, distance: -1 });
        // Zigzag of 2^32: one more than the last page there can be.
        let far = [0x11, 0x80, 0x80, 0x80, 0x80, 0x20];
        assert_eq!(error(&far, 1), ParseRecipeError::Page { expected: 0, distance: 1 << 32 });
        // The run ends behind the last page there can be.
        let last = [0x31, 0xfe, 0xff, 0xff, 0xff, 0x1f, 2];
        assert_eq!(error(&last, 2), ParseRecipeError::Page { expected: 0, distance: (1 << 32) - 1 });
        assert_eq!(error(&[0x20, 1], 9), ParseRecipeError::Run { run: 1, left: 9 });
        assert_eq!(error(&[0x20, 10], 9), ParseRecipeError::Run { run: 10, left: 9 });
        assert_eq!(error(&[0x20, 17], 90), ParseRecipeError::Run { run: 17, left: 16 });
        assert_eq!(error(&[0, 0], 2), ParseRecipeError::Split { kind: 0 });
        assert_eq!(error(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 1], 2), ParseRecipeError::Split { kind: 1 });
        assert_eq!(error(&[2, 0], 1), ParseRecipeError::Length { kind: 2, bytes: 0 });
        assert_eq!(error(&[5, 0x80, 0x20], 1), ParseRecipeError::Length { kind: 5, bytes: 4096 });
        assert_eq!(error(&[5, 0x80, 0x80, 4], 1), ParseRecipeError::Length { kind: 5, bytes: 1 << 16 });
        // A group begins anew, and so does a run.
        let zeros = Records::new(&[0x20, 16, 0x20, 2], 18, 0, ZERO);
        assert!(zeros.eq((0..18).map(|_| Ok(Record { hash: ZERO, kind: Kind::Zero }))));
    }
}
