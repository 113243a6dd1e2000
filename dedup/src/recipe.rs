//! How to rebuild one page, and the 24 bytes that say so in a dedup image.
//!
//! ```text
//!  0              16    17       18     20     24
//!  ┌───────────────┬────┬────────┬──────┬──────┐
//!  │ page hash     │how │ base   │bytes │ page │   little-endian
//!  └───────────────┴────┴────────┴──────┴──────┘
//!   how    low half: 0 zero, 1 same, 2 delta, 3 whole; high half: codec (0 none, 1 zstd, 2 words, 3 predicted page)
//!   base   position of the base snapshot in the image's table
//!   bytes  how many bytes of the arena are this page's
//!   page   the page in the base snapshot
//! ```
//!
//! What a kind does not use is zero, so there is one way to write a recipe and every other is an error.
//! Where a page's bytes begin is not stored: they follow those of the page before. So recipes cannot overlap,
//! cannot leave gaps, and cannot point outside.

use thiserror::Error;

use crate::delta::CODED_BYTES_MAX;
use crate::key::PageHash;
use crate::page::{BasePage, PAGE_BYTES, PageIndex, SnapshotId};

/// Bytes of one recipe in an image.
pub const RECORD_BYTES: usize = 24;

/// What made the stored bytes of a page. Numbers 4 to 15 are free for codecs to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The bytes are the page itself.
    Raw,
    /// zstd, with the base page as dictionary if there is one.
    Zstd,
    /// Words of the base, not only of the page that is named (see [`crate::words`]).
    Words,
    /// zstd, with what the words predict as dictionary.
    Predicted,
}

impl Codec {
    /// Does it take a pointer table, and more base pages than the one that is named?
    pub const fn is_of_words(self) -> bool {
        matches!(self, Self::Words | Self::Predicted)
    }

    const fn number(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
            Self::Words => 2,
            Self::Predicted => 3,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            2 => Some(Self::Words),
            3 => Some(Self::Predicted),
            _ => None,
        }
    }
}

/// A run of bytes in an image's arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Where it begins, from the start of the arena.
    pub offset: u64,
    /// How long it is; never more than a page.
    pub bytes: u16,
}

/// What a page is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Zeros.
    Zero,
    /// The base page, unchanged.
    Same(BasePage),
    /// The base page, changed by the bytes at `place`.
    Delta {
        /// The base page.
        base: BasePage,
        /// What made the bytes.
        codec: Codec,
        /// Where they are.
        place: Place,
    },
    /// The bytes at `place` and nothing else.
    Whole {
        /// What made the bytes.
        codec: Codec,
        /// Where they are.
        place: Place,
    },
}

impl Source {
    /// The base page that must be at hand to rebuild the page.
    pub const fn base(&self) -> Option<BasePage> {
        match self {
            Self::Same(base) | Self::Delta { base, .. } => Some(*base),
            Self::Zero | Self::Whole { .. } => None,
        }
    }
}

/// How to rebuild one page, and the hash it must have then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    /// Keyed hash of the page.
    pub hash: PageHash,
    /// What it is made of.
    pub source: Source,
}

/// Why 24 bytes are not a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseRecipeError {
    /// Neither zero, same, delta nor whole.
    #[error("page kind {kind} is unknown")]
    Kind {
        /// The number found.
        kind: u8,
    },
    /// A codec this version does not have, or one that does not go with the kind.
    #[error("codec {codec} is unknown for page kind {kind}")]
    Codec {
        /// The page kind.
        kind: u8,
        /// The number found.
        codec: u8,
    },
    /// More or fewer stored bytes than such a page can have.
    #[error("a page of kind {kind} cannot have {bytes} stored bytes")]
    Length {
        /// The page kind.
        kind: u8,
        /// The length found.
        bytes: u16,
    },
    /// The base is not in the image's table.
    #[error("base {base} is not in the table of {bases}")]
    Base {
        /// The position found.
        base: u8,
        /// Entries in the table.
        bases: usize,
    },
    /// A field that this kind does not use is not zero.
    #[error("a page of kind {kind} has a base")]
    Unused {
        /// The page kind.
        kind: u8,
    },
}

/// Says where in the image a recipe's base and bytes are; the form recipes have on disk.
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
    const ZERO: u8 = 0;
    const SAME: u8 = 1;
    const DELTA: u8 = 2;
    const WHOLE: u8 = 3;

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
}

impl Record {
    pub(crate) fn write(&self) -> [u8; RECORD_BYTES] {
        let (kind, codec, base, bytes, page) = match self.kind {
            Kind::Zero => (Kind::ZERO, Codec::Raw, 0, 0, 0),
            Kind::Same { base, page } => (Kind::SAME, Codec::Raw, base, 0, page.0),
            Kind::Delta { base, page, codec, bytes } => (Kind::DELTA, codec, base, bytes, page.0),
            Kind::Whole { codec, bytes } => (Kind::WHOLE, codec, 0, bytes, 0),
        };
        let mut record = [0; RECORD_BYTES];
        record[..16].copy_from_slice(&self.hash.0);
        record[16] = codec.number() << 4 | kind;
        record[17] = base;
        record[18..20].copy_from_slice(&bytes.to_le_bytes());
        record[20..].copy_from_slice(&page.to_le_bytes());
        record
    }

    /// Parses one record of an image that has `bases` entries in its table of bases.
    pub(crate) fn parse(record: &[u8; RECORD_BYTES], bases: usize) -> Result<Self, ParseRecipeError> {
        let [hash @ .., how, base, bytes_low, bytes_high, page_0, page_1, page_2, page_3] = *record;
        let bytes = u16::from_le_bytes([bytes_low, bytes_high]);
        let page = PageIndex(u32::from_le_bytes([page_0, page_1, page_2, page_3]));
        let (kind, codec_number) = (how & 0xf, how >> 4);
        let bad_codec = ParseRecipeError::Codec { kind, codec: codec_number };
        let codec = Codec::from_number(codec_number).ok_or(bad_codec)?;
        let length_fits = match (kind, codec) {
            (Kind::ZERO | Kind::SAME, Codec::Raw) => bytes == 0,
            (Kind::WHOLE, Codec::Raw) => usize::from(bytes) == PAGE_BYTES,
            (Kind::WHOLE, codec) if codec.is_of_words() => return Err(bad_codec),
            (Kind::DELTA, Codec::Zstd | Codec::Words | Codec::Predicted) | (Kind::WHOLE, Codec::Zstd) => {
                bytes > 0 && usize::from(bytes) <= CODED_BYTES_MAX
            }
            (Kind::ZERO | Kind::SAME | Kind::DELTA, _) => return Err(bad_codec),
            _ => return Err(ParseRecipeError::Kind { kind }),
        };
        if !length_fits {
            return Err(ParseRecipeError::Length { kind, bytes });
        }
        let kind = match kind {
            Kind::SAME => Kind::Same { base, page },
            Kind::DELTA => Kind::Delta { base, page, codec, bytes },
            _ if (base, page.0) != (0, 0) => return Err(ParseRecipeError::Unused { kind }),
            Kind::ZERO => Kind::Zero,
            _ => Kind::Whole { codec, bytes },
        };
        match kind.base() {
            Some(base) if usize::from(base) >= bases => Err(ParseRecipeError::Base { base, bases }),
            _ => Ok(Self { hash: PageHash(hash), kind }),
        }
    }
}

impl Recipe {
    /// Parses one record of an image with these base snapshots, the page's bytes beginning at `offset` of the arena.
    pub fn parse(
        record: &[u8; RECORD_BYTES],
        bases: &[SnapshotId],
        offset: u64,
    ) -> Result<Self, ParseRecipeError> {
        let Record { hash, kind } = Record::parse(record, bases.len())?;
        let at = |base: u8, page| {
            let known = bases.get(usize::from(base)).copied();
            let snapshot = known.ok_or(ParseRecipeError::Base { base, bases: bases.len() })?;
            Ok(BasePage { snapshot, page })
        };
        let source = match kind {
            Kind::Zero => Source::Zero,
            Kind::Same { base, page } => Source::Same(at(base, page)?),
            Kind::Delta { base, page, codec, bytes } => {
                Source::Delta { base: at(base, page)?, codec, place: Place { offset, bytes } }
            }
            Kind::Whole { codec, bytes } => Source::Whole { codec, place: Place { offset, bytes } },
        };
        Ok(Self { hash, source })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = Kind> {
        let coded = 1u16..=CODED_BYTES_MAX as u16;
        prop_oneof![
            Just(Kind::Zero),
            (0u8..10, any::<u32>()).prop_map(|(base, page)| Kind::Same { base, page: PageIndex(page) }),
            (0u8..10, any::<u32>(), coded.clone(), 1u8..4).prop_map(|(base, page, bytes, codec)| {
                Kind::Delta { base, page: PageIndex(page), codec: Codec::from_number(codec).unwrap(), bytes }
            }),
            coded.prop_map(|bytes| Kind::Whole { codec: Codec::Zstd, bytes }),
            Just(Kind::Whole { codec: Codec::Raw, bytes: PAGE_BYTES as u16 }),
        ]
    }

    proptest! {
        #[test]
        fn records_come_back(hash: [u8; 16], kind in kinds()) {
            let record = Record { hash: PageHash(hash), kind };
            prop_assert_eq!(Record::parse(&record.write(), 10), Ok(record));
        }

        /// One way to write each recipe: what parses is what would be written.
        #[test]
        fn every_record_that_parses_is_the_usual_one(
            hash: [u8; 16],
            how in 0u8..0x54,
            base in 0u8..3,
            bytes in prop_oneof![Just(0u16), Just(PAGE_BYTES as u16), any::<u16>()],
            page in 0u32..3,
        ) {
            let mut record = [0; RECORD_BYTES];
            record[..16].copy_from_slice(&hash);
            record[16] = how;
            record[17] = base;
            record[18..20].copy_from_slice(&bytes.to_le_bytes());
            record[20..].copy_from_slice(&page.to_le_bytes());
            if let Ok(parsed) = Record::parse(&record, 2) {
                prop_assert_eq!(parsed.write(), record);
            }
        }
    }

    #[test]
    fn each_mistake_has_its_error() {
        let record = |how, base, bytes: u16, page: u8| {
            let mut record = [0; RECORD_BYTES];
            record[16] = how;
            record[17] = base;
            record[18..20].copy_from_slice(&bytes.to_le_bytes());
            record[20] = page;
            Record::parse(&record, 1).unwrap_err()
        };
        assert_eq!(record(0x04, 0, 0, 0), ParseRecipeError::Kind { kind: 4 });
        assert_eq!(record(0x52, 0, 9, 0), ParseRecipeError::Codec { kind: 2, codec: 5 });
        assert_eq!(record(0x23, 0, 9, 0), ParseRecipeError::Codec { kind: 3, codec: 2 });
        assert_eq!(record(0x30, 0, 0, 0), ParseRecipeError::Codec { kind: 0, codec: 3 });
        assert_eq!(record(0x02, 0, 9, 0), ParseRecipeError::Codec { kind: 2, codec: 0 });
        assert_eq!(record(0x10, 0, 0, 0), ParseRecipeError::Codec { kind: 0, codec: 1 });
        assert_eq!(record(0x00, 0, 1, 0), ParseRecipeError::Length { kind: 0, bytes: 1 });
        assert_eq!(record(0x01, 0, 1, 0), ParseRecipeError::Length { kind: 1, bytes: 1 });
        assert_eq!(record(0x12, 0, 0, 0), ParseRecipeError::Length { kind: 2, bytes: 0 });
        assert_eq!(record(0x12, 0, 4096, 0), ParseRecipeError::Length { kind: 2, bytes: 4096 });
        assert_eq!(record(0x03, 0, 4095, 0), ParseRecipeError::Length { kind: 3, bytes: 4095 });
        assert_eq!(record(0x13, 1, 9, 0), ParseRecipeError::Unused { kind: 3 });
        assert_eq!(record(0x00, 0, 0, 1), ParseRecipeError::Unused { kind: 0 });
        assert_eq!(record(0x01, 1, 0, 0), ParseRecipeError::Base { base: 1, bases: 1 });
    }
}
