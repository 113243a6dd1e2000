//! The pointer table: what to add to a pointer of the base to get the pointer of the target.
//!
//! ```text
//! entry count, 4 · plain bytes, 4 · zstd frame of:
//!     for each entry  start / 8, as a distance from the one before (varint)
//!     the end / 8, likewise
//!     for each entry  1 + how many different shifts ago this one was last used, or 0 and the shift (zigzag varint)
//! ```
//!
//! A step function over base addresses. A wrong step makes pages larger, never wrong.

use thiserror::Error;

use super::token::WORD_BYTES;
use super::varint::{read, unzigzag, write, zigzag};
use crate::mapping::MAPPINGS_MAX;
use crate::steps::Steps;

/// Most entries of a table.
pub const ENTRIES_MAX: usize = 1 << 20;

/// Shifts that are remembered while a table is written or read.
const RECENT_MAX: usize = 64;

/// Most bytes of one entry before compression: two varints of 64 bits and a byte.
const ENTRY_BYTES_MAX: usize = 21;

/// Most bytes a table takes as it is written. zstd makes incompressible bytes a bit longer, never by half.
pub const TRANSLATION_BYTES_MAX: usize = 8 + ENTRIES_MAX * ENTRY_BYTES_MAX * 3 / 2;

const LEVEL: i32 = 3;

const _: () = assert!(MAPPINGS_MAX < ENTRIES_MAX);

/// Why bytes are not a pointer table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReadTranslationError {
    /// They end too early or go on too long.
    #[error("a pointer table does not end where it should")]
    Length,
    /// More entries than any table has, or a size that no such table has.
    #[error("a pointer table of {entries} entries in {bytes} bytes")]
    Limit {
        /// Entries it claims.
        entries: usize,
        /// Bytes it claims.
        bytes: usize,
    },
    /// zstd refused them.
    #[error("a pointer table does not decompress")]
    Compression,
    /// An address does not rise or is none, or a shift is not among the recent ones.
    #[error("entry {entry} of a pointer table makes no sense")]
    Entry {
        /// Which one.
        entry: usize,
    },
}

/// Translates pointers of a base snapshot into those of one target.
#[derive(Debug, Clone, Default)]
pub struct Translation {
    /// What stands for a step is where its shift is in the list.
    steps: Steps,
    shifts: Vec<u64>,
}

/// Shifts that were seen lately have one place in the list: few of them are hot, and these stay in the processor's cache.
const KNOWN: usize = 1 << 12;

impl Translation {
    /// A table with these entries, whose addresses are multiples of 8 and rise strictly; the last one ends at `end`.
    pub(super) fn new(mut entries: Vec<(u64, u64)>, end: u64) -> Self {
        entries.truncate(ENTRIES_MAX);
        entries.dedup_by_key(|(_, shift)| *shift);
        let (starts, shifts) = entries.into_iter().unzip();
        Self::of(starts, shifts, end & !7)
    }

    /// A table with a shift for each of these steps.
    fn of(starts: Vec<u64>, of_steps: Vec<u64>, end: u64) -> Self {
        let mut shifts = Vec::new();
        let mut known = vec![0; KNOWN];
        let number = |shift: u64| {
            let hash = shift.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - KNOWN.trailing_zeros());
            let slot: &mut u32 = &mut known[hash as usize];
            if shifts.get(*slot as usize) != Some(&shift) {
                *slot = shifts.len() as u32;
                shifts.push(shift);
            }
            *slot
        };
        let values = of_steps.into_iter().map(number).collect();
        Self { steps: Steps::new(starts, values, end), shifts }
    }

    /// The shift of each entry.
    fn of_entries(&self) -> impl Iterator<Item = u64> {
        self.steps.values().iter().map(|number| self.shifts[*number as usize])
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.steps.starts().len()
    }

    /// No entries: pointers stay what they are.
    pub fn is_empty(&self) -> bool {
        self.shifts.is_empty()
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.steps.memory_bytes() + size_of_val(&self.shifts[..])
    }

    /// The pointer that stands for this one; other words come back unchanged.
    #[inline]
    pub fn translate(&self, word: u64) -> u64 {
        match self.steps.find(word).and_then(|number| self.shifts.get(number)) {
            Some(shift) => word.wrapping_add(*shift),
            None => word,
        }
    }

    /// Translates many words where they are.
    ///
    /// Which words may be pointers is found out first, by their upper bits and without a branch, many at a time: the processor
    /// foresees neither these nor where they point.
    pub(super) fn translate_all(&self, words: &mut [[u8; WORD_BYTES]]) {
        if self.is_empty() {
            return;
        }
        for part in words.chunks_mut(u64::BITS as usize) {
            let mut pointers = self.like_pointers(part);
            while pointers != 0 {
                let at = pointers.trailing_zeros() as usize;
                pointers &= pointers - 1;
                let word = u64::from_le_bytes(part[at]);
                if self.steps.covers(word) {
                    let shift = self.shifts.get(self.steps.find_covered(word)).copied().unwrap_or_default();
                    part[at] = word.wrapping_add(shift).to_le_bytes();
                }
            }
        }
    }

    /// A bit for each of at most 64 words: whether its upper bits are those of an address in the table.
    fn like_pointers(&self, words: &[[u8; WORD_BYTES]]) -> u64 {
        // What has higher bits still may pass, too, and is seen to be none later.
        let upper = |address: u64| (address >> 20) as u32;
        let low = self.steps.starts().first().map_or(0, |low| upper(*low));
        // A table that no process has, as only a file can hold one, lets everything pass.
        let span =
            if self.steps.end() >> 52 == 0 { upper(self.steps.end()).wrapping_sub(low) } else { u32::MAX };
        let mut flags = [0u8; u64::BITS as usize];
        for (flag, word) in flags.iter_mut().zip(words) {
            *flag = u8::from(upper(u64::from_le_bytes(*word)).wrapping_sub(low) <= span);
        }
        // Each product moves eight flags into its highest byte, in order.
        let byte = |flags: &[u8; 8]| u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        flags.as_chunks().0.iter().rev().fold(0, |bits, flags| bits << 8 | byte(flags))
    }

    /// The table as bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        let mut before = 0;
        for address in self.steps.starts().iter().copied().chain([self.steps.end()]) {
            write(&mut plain, (address - before) / 8);
            before = address;
        }
        let mut recent = Recent::default();
        for shift in self.of_entries() {
            match recent.position(shift) {
                Some(ago) => write(&mut plain, 1 + ago as u64),
                None => {
                    write(&mut plain, 0);
                    write(&mut plain, zigzag(shift.wrapping_sub(recent.last()) as i64));
                }
            }
            recent.push(shift);
        }
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(self.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        // Compression of memory into memory does not fail; were it to, the table would not open and the maker would see it.
        bytes.extend_from_slice(&zstd::bulk::compress(&plain, LEVEL).unwrap_or_default());
        bytes
    }

    /// Reads a table from bytes that may come from anywhere.
    pub fn read(bytes: &[u8]) -> Result<Self, ReadTranslationError> {
        let (entries, rest) = bytes.split_first_chunk().ok_or(ReadTranslationError::Length)?;
        let (plain_bytes, coded) = rest.split_first_chunk().ok_or(ReadTranslationError::Length)?;
        let entries = u32::from_le_bytes(*entries) as usize;
        let plain_bytes = u32::from_le_bytes(*plain_bytes) as usize;
        if entries > ENTRIES_MAX || plain_bytes > (entries + 1) * ENTRY_BYTES_MAX {
            return Err(ReadTranslationError::Limit { entries, bytes: plain_bytes });
        }
        let Ok(plain) = zstd::bulk::decompress(coded, plain_bytes) else {
            return Err(ReadTranslationError::Compression);
        };
        let mut rest = plain.as_slice();
        let mut starts = Vec::with_capacity(entries + 1);
        let mut before = 0u64;
        for entry in 0..=entries {
            let distance = read(&mut rest).ok_or(ReadTranslationError::Length)?;
            let next = distance.checked_mul(8).and_then(|bytes| before.checked_add(bytes));
            let next = next.filter(|next| entry == 0 || *next > before || entry == entries);
            before = next.ok_or(ReadTranslationError::Entry { entry })?;
            starts.push(before);
        }
        let end = starts.pop().unwrap_or_default();
        let mut recent = Recent::default();
        let mut shifts = Vec::with_capacity(entries);
        for entry in 0..entries {
            let shift = match read(&mut rest).ok_or(ReadTranslationError::Length)? {
                0 => {
                    let change = read(&mut rest).ok_or(ReadTranslationError::Length)?;
                    recent.last().wrapping_add(unzigzag(change) as u64)
                }
                ago => recent.get(ago - 1).ok_or(ReadTranslationError::Entry { entry })?,
            };
            recent.push(shift);
            shifts.push(shift);
        }
        if !rest.is_empty() || plain.len() != plain_bytes {
            return Err(ReadTranslationError::Length);
        }
        Ok(Self::of(starts, shifts, end))
    }
}

/// Shifts used lately, the last one at the end.
#[derive(Debug, Default)]
struct Recent(Vec<u64>);

impl Recent {
    fn position(&self, shift: u64) -> Option<usize> {
        self.0.iter().rev().position(|known| *known == shift)
    }

    fn get(&self, ago: u64) -> Option<u64> {
        self.0.iter().rev().nth(usize::try_from(ago).ok()?).copied()
    }

    fn last(&self) -> u64 {
        self.0.last().copied().unwrap_or_default()
    }

    fn push(&mut self, shift: u64) {
        match self.position(shift) {
            Some(ago) => _ = self.0.remove(self.0.len() - 1 - ago),
            None if self.0.len() == RECENT_MAX => _ = self.0.remove(0),
            None => {}
        }
        self.0.push(shift);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Many words at once are what each is alone: near the steps, anywhere, small, and with bits above any address.
        #[test]
        fn many_words_translate_like_each_alone(
            raw in proptest::collection::btree_map(
                (prop_oneof![0u64..9, Just(1 << 15)], prop_oneof![0u64..1 << 12, 0u64..1 << 26])
                    .prop_map(|(region, at)| (region << 40) + at * 8),
                prop_oneof![0u64..4, any::<u64>()],
                0..60,
            ),
            words in proptest::collection::vec(
                (prop_oneof![Just(0u64), 1u64..1 << 40, any::<u64>()], any::<prop::sample::Index>()),
                0..200,
            ),
        ) {
            let starts: Vec<u64> = raw.keys().copied().collect();
            let end = starts.last().map_or(0, |last| last + (1 << 20));
            let table = Translation::new(raw.into_iter().collect(), end);
            let mut all: Vec<[u8; WORD_BYTES]> = Vec::new();
            for (word, near) in words {
                let near = if starts.is_empty() { 0 } else { starts[near.index(starts.len())] };
                all.extend([word, near.wrapping_add(word), near.wrapping_add(word % 64), near | 1 << 63].map(u64::to_le_bytes));
            }
            let expected: Vec<u64> = all.iter().map(|word| table.translate(u64::from_le_bytes(*word))).collect();
            table.translate_all(&mut all);
            let found: Vec<u64> = all.into_iter().map(u64::from_le_bytes).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
