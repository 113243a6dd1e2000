//! Named byte strings that travel with the pages: the files CRIU needs beside memory.
//!
//! They are many and small and alike, so they are compressed together, and unpacked together. Plain form:
//!
//! ```text
//!  count, 4 │ count times: name length, 1 │ data length, 4 │ name │ then all data in the same order
//! ```

use std::collections::BTreeMap;
use std::ops::Range;

use thiserror::Error;
use zstd::zstd_safe::get_error_name;

use super::build::BuildImageError;
use super::{SECTION_NAME_BYTES_MAX, SECTIONS_BYTES_MAX, SECTIONS_MAX};

/// They are small, so time spent here is not felt, and every sandbox pays for their size.
const LEVEL: i32 = 12;

/// Why the sections of an image cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReadSectionsError {
    /// zstd refused the bytes.
    #[error("unpack sections: zstd: {problem}")]
    Unpack {
        /// What zstd says.
        problem: &'static str,
    },
    /// They unpack to another length than the header says.
    #[error("sections unpack to {found} bytes instead of {expected}")]
    Length {
        /// What the header says.
        expected: usize,
        /// What came out.
        found: usize,
    },
    /// The table of names and lengths makes no sense.
    #[error("section table: {problem}")]
    Table {
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The sections of an image, unpacked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sections {
    plain: Vec<u8>,
    ranges: BTreeMap<String, Range<usize>>,
}

impl Sections {
    /// The section with this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.ranges.get(name).and_then(|range| self.plain.get(range.clone()))
    }

    /// All sections in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.ranges.iter().map(|(name, range)| (name.as_str(), &self.plain[range.clone()]))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// None at all?
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Unpacks what [`pack`] made. `plain_bytes` has been held against the limit.
    pub(super) fn unpack(stored: &[u8], plain_bytes: usize) -> Result<Self, ReadSectionsError> {
        if stored.is_empty() && plain_bytes == 0 {
            return Ok(Self::default());
        }
        let mut plain = Vec::with_capacity(plain_bytes);
        zstd::zstd_safe::decompress(&mut plain, stored)
            .map_err(|code| ReadSectionsError::Unpack { problem: get_error_name(code) })?;
        if plain.len() != plain_bytes {
            return Err(ReadSectionsError::Length { expected: plain_bytes, found: plain.len() });
        }
        let ranges = parse_table(&plain)?;
        Ok(Self { plain, ranges })
    }
}

fn parse_table(plain: &[u8]) -> Result<BTreeMap<String, Range<usize>>, ReadSectionsError> {
    let bad = |problem| ReadSectionsError::Table { problem };
    let mut rest = plain;
    let count = take_u32(&mut rest).ok_or(bad("no count"))?;
    if count > SECTIONS_MAX {
        return Err(bad("too many sections"));
    }
    let mut names = Vec::with_capacity(count);
    for _ in 0..count {
        let (&name_bytes, after) = rest.split_first().ok_or(bad("ends within an entry"))?;
        rest = after;
        let data_bytes = take_u32(&mut rest).ok_or(bad("ends within an entry"))?;
        let (name, after) = rest.split_at_checked(name_bytes.into()).ok_or(bad("ends within an entry"))?;
        rest = after;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty());
        names.push((name.ok_or(bad("a name is not text"))?, data_bytes));
    }
    let mut at = plain.len() - rest.len();
    let mut ranges = BTreeMap::new();
    for (name, data_bytes) in names {
        // Both are far below the limit of a usize: lengths are 32 bits and `at` is checked each time round.
        let end = at + data_bytes;
        if end > plain.len() {
            return Err(bad("data ends early"));
        }
        if ranges.insert(name.to_owned(), at..end).is_some() {
            return Err(bad("two sections with one name"));
        }
        at = end;
    }
    if at == plain.len() { Ok(ranges) } else { Err(bad("data goes on after the last section")) }
}

fn take_u32(rest: &mut &[u8]) -> Option<usize> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    usize::try_from(u32::from_le_bytes(*number)).ok()
}

/// The compressed form of these sections and its plain length. Nothing at all when there are none.
pub(super) fn pack(sections: &BTreeMap<String, Vec<u8>>) -> Result<(Vec<u8>, u32), BuildImageError> {
    if sections.is_empty() {
        return Ok((Vec::new(), 0));
    }
    let too_many = BuildImageError::TooManySections { sections: sections.len() };
    if sections.len() > SECTIONS_MAX {
        return Err(too_many);
    }
    let mut plain = u32::try_from(sections.len()).ok().ok_or(too_many)?.to_le_bytes().to_vec();
    for (name, data) in sections {
        let bad_name = || BuildImageError::SectionName { bytes: name.len() };
        let name_bytes = u8::try_from(name.len()).ok().filter(|bytes| *bytes > 0).ok_or_else(bad_name)?;
        let too_long = BuildImageError::SectionsTooLong { bytes: data.len() };
        let data_bytes = u32::try_from(data.len()).ok().ok_or(too_long)?;
        plain.push(name_bytes);
        plain.extend_from_slice(&data_bytes.to_le_bytes());
        plain.extend_from_slice(name.as_bytes());
    }
    const { assert!(SECTION_NAME_BYTES_MAX == u8::MAX as usize) };
    sections.values().for_each(|data| plain.extend_from_slice(data));
    let too_long = BuildImageError::SectionsTooLong { bytes: plain.len() };
    if plain.len() > SECTIONS_BYTES_MAX {
        return Err(too_long);
    }
    let plain_bytes = u32::try_from(plain.len()).ok().ok_or(too_long)?;
    let mut stored = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
    zstd::zstd_safe::compress(&mut stored, &plain, LEVEL)
        .map_err(|code| BuildImageError::PackSections { problem: get_error_name(code) })?;
    Ok((stored, plain_bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unpacked(plain: &[u8]) -> Result<Sections, ReadSectionsError> {
        let mut stored = Vec::with_capacity(zstd::zstd_safe::compress_bound(plain.len()));
        zstd::zstd_safe::compress(&mut stored, plain, 1).unwrap();
        Sections::unpack(&stored, plain.len())
    }

    #[test]
    fn tables_that_make_no_sense_are_refused() {
        let table = |problem| Err(ReadSectionsError::Table { problem });
        assert_eq!(unpacked(&[1]), table("no count"));
        assert_eq!(unpacked(&[0xff, 0xff, 0xff, 0xff]), table("too many sections"));
        assert_eq!(unpacked(&[1, 0, 0, 0, 1, 0, 0]), table("ends within an entry"));
        assert_eq!(unpacked(&[1, 0, 0, 0, 2, 0, 0, 0, 0, b'a']), table("ends within an entry"));
        assert_eq!(unpacked(&[1, 0, 0, 0, 0, 0, 0, 0, 0]), table("a name is not text"));
        assert_eq!(unpacked(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0xff]), table("a name is not text"));
        assert_eq!(unpacked(&[1, 0, 0, 0, 1, 2, 0, 0, 0, b'a', 7]), table("data ends early"));
        assert_eq!(
            unpacked(&[1, 0, 0, 0, 1, 0, 0, 0, 0, b'a', 7]),
            table("data goes on after the last section")
        );
        let twice = [2, 0, 0, 0, 1, 0, 0, 0, 0, b'a', 1, 0, 0, 0, 0, b'a'];
        assert_eq!(unpacked(&twice), table("two sections with one name"));
    }

    #[test]
    fn a_wrong_plain_length_is_refused() {
        let (stored, plain_bytes) = pack(&BTreeMap::from([("a".to_owned(), vec![1; 50])])).unwrap();
        let plain_bytes = plain_bytes as usize;
        assert_eq!(Sections::unpack(&stored, plain_bytes).unwrap().get("a"), Some(&[1; 50][..]));
        let longer = Sections::unpack(&stored, plain_bytes + 1);
        assert_eq!(longer, Err(ReadSectionsError::Length { expected: plain_bytes + 1, found: plain_bytes }));
        assert!(matches!(Sections::unpack(&stored, plain_bytes - 1), Err(ReadSectionsError::Unpack { .. })));
        assert!(matches!(
            Sections::unpack(&[], 5),
            Err(ReadSectionsError::Length { .. } | ReadSectionsError::Unpack { .. })
        ));
        assert!(matches!(Sections::unpack(&[1], 0), Err(ReadSectionsError::Unpack { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_unpack_safely(mut plain in proptest::collection::vec(any::<u8>(), 4..200), count in 0u8..5) {
            prop_assert!(Sections::unpack(&plain, plain.len() % 100).is_err());
            plain[..4].copy_from_slice(&[count, 0, 0, 0]);
            if let Ok(sections) = unpacked(&plain) {
                prop_assert_eq!(sections.len(), usize::from(count));
            }
        }
    }
}
