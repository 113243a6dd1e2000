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
    steps: Steps,
    shifts: Vec<u64>,
}

impl Translation {
    /// A table with these entries, whose addresses are multiples of 8 and rise strictly; the last one ends at `end`.
    pub(super) fn new(mut entries: Vec<(u64, u64)>, end: u64) -> Self {
        entries.truncate(ENTRIES_MAX);
        entries.dedup_by_key(|(_, shift)| *shift);
        let (starts, shifts) = entries.into_iter().unzip();
        Self { steps: Steps::new(starts, end & !7), shifts }
    }

    /// Entries.
    pub fn len(&self) -> usize {
        self.shifts.len()
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
        match self.steps.find(word).and_then(|step| self.shifts.get(step)) {
            Some(shift) => word.wrapping_add(*shift),
            None => word,
        }
    }

    /// Translates many words where they are.
    ///
    /// Which words are pointers is found out first, without a branch: the processor foresees neither these nor where they point.
    pub(super) fn translate_all(&self, words: &mut [[u8; WORD_BYTES]]) {
        for part in words.chunks_mut(u64::BITS as usize) {
            let bit = |(at, word): (usize, &[u8; WORD_BYTES])| {
                u64::from(self.steps.covers(u64::from_le_bytes(*word))) << at
            };
            let mut pointers = part.iter().enumerate().map(bit).fold(0, |all, bit| all | bit);
            while pointers != 0 {
                let at = pointers.trailing_zeros() as usize;
                pointers &= pointers - 1;
                let word = u64::from_le_bytes(part[at]);
                let shift = self.shifts.get(self.steps.find_covered(word)).copied().unwrap_or_default();
                part[at] = word.wrapping_add(shift).to_le_bytes();
            }
        }
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
        for shift in &self.shifts {
            match recent.position(*shift) {
                Some(ago) => write(&mut plain, 1 + ago as u64),
                None => {
                    write(&mut plain, 0);
                    write(&mut plain, zigzag(shift.wrapping_sub(recent.last()) as i64));
                }
            }
            recent.push(*shift);
        }
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&(self.shifts.len() as u32).to_le_bytes());
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
        Ok(Self { steps: Steps::new(starts, end), shifts })
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
