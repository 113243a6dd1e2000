//! The second half of a page's code: the words that were predicted wrongly, each by what the others say about it.
//!
//! ```text
//! for each wrong word:
//!     gap: right words before it (63: so many, and another gap follows), or the end
//!     how: a mask of the bytes that differ, and these bytes; 0 a small number is added;
//!         or zero; or as far off as one of the last few wrong words; or the same as one of these; or near one of these, and
//!         its two lowest bytes
//! ```

use super::context;
use super::entropy::{Coded, Decoder, SYMBOLS_MAX};

/// The longest gap in one symbol, and the symbol behind all gaps.
pub(super) const GAP_MAX: u16 = 63;
pub(super) const END: u16 = 64;

/// What a word can be besides a mask of bytes.
pub(super) const SMALL: u16 = 0;
pub(super) const ZERO: u16 = 256;
pub(super) const SHIFT: u16 = 257;
const VALUE: u16 = SHIFT + RECENT as u16;

pub(super) const NEAR: u16 = VALUE + RECENT as u16;

const NEAR_END: u16 = NEAR + NEAR_RECENT as u16;

/// Wrong words that are remembered.
const RECENT: usize = 16;

/// Of these, those that a word can be near: as many as there are symbols for.
const NEAR_RECENT: usize = 11;

/// Bytes in which a word differs from one that it is near.
const NEAR_BYTES: usize = 2;

const FAR: u64 = !0xffff;

const _: () = assert!(NEAR_END <= SYMBOLS_MAX);

/// What the wrong words so far say about the next one.
#[derive(Debug, Clone, Default)]
pub(super) struct Corrections {
    pub(super) gap: u16,
    how: u8,
    /// Highest byte of the last wrong word: text goes on from word to word.
    last: u8,
    shifts: Recent,
    values: Recent,
}

/// The last few of some numbers.
#[derive(Debug, Clone, Default)]
struct Recent {
    ring: [u64; RECENT],
    next: usize,
}

impl Recent {
    /// How many numbers ago this one was pushed.
    fn ago(&self, number: u64) -> Option<usize> {
        (0..RECENT).find(|ago| self.get(*ago) == number)
    }

    /// How many numbers ago one was pushed that differs in the lowest bytes only.
    fn near(&self, number: u64) -> Option<usize> {
        (0..NEAR_RECENT).find(|ago| (self.get(*ago) ^ number) & FAR == 0)
    }

    const fn get(&self, ago: usize) -> u64 {
        self.ring[self.next.wrapping_sub(1 + ago) % RECENT]
    }

    const fn push(&mut self, number: u64) {
        self.ring[self.next % RECENT] = number;
        self.next += 1;
    }
}

impl Corrections {
    pub(super) const fn gap_context(&self) -> u8 {
        context::GAP
            + match self.gap {
                0 => 0,
                1..4 => 1,
                4..16 => 2,
                _ => 3,
            }
    }

    /// By what was predicted, too: a pointer goes wrong in other ways than a zero.
    const fn how_context(&self, predicted: u64) -> u8 {
        let sort = match predicted {
            0 => 0,
            1..0x1_0000 => 1,
            0x1_0000..0x8000_0000_0000 => 2,
            _ => 3,
        };
        context::HOW + self.how + 4 * sort
    }

    /// Remembers how a word was put right.
    const fn was(&mut self, how: u16, word: u64) {
        self.last = (word >> 56) as u8;
        self.how = match how {
            SMALL => 0,
            1..ZERO if (how as u8).count_ones() <= 4 => 1,
            1..ZERO | NEAR.. => 2,
            _ => 3,
        };
    }

    /// Keeps what was not known.
    const fn remember(&mut self, how: u16, word: u64, predicted: u64) {
        match how {
            SMALL | ZERO => {}
            SHIFT..VALUE => self.values.push(word),
            VALUE..NEAR => self.shifts.push(word.wrapping_sub(predicted)),
            1..ZERO | NEAR.. => {
                self.shifts.push(word.wrapping_sub(predicted));
                self.values.push(word);
            }
        }
    }

    pub(super) fn write(&mut self, word: u64, predicted: u64, out: &mut Vec<Coded>) {
        let shift = word.wrapping_sub(predicted);
        let how_context = self.how_context(predicted);
        let how = if word == 0 {
            ZERO
        } else if let Some(at) = self.shifts.ago(shift) {
            SHIFT + at as u16
        } else if let Some(at) = self.values.ago(word) {
            VALUE + at as u16
        } else if i8::try_from(shift as i64).is_ok() {
            SMALL
        } else {
            let differing = (word ^ predicted).to_le_bytes();
            let mask = differing.iter().rev().fold(0, |mask, byte| mask << 1 | u16::from(*byte != 0));
            // Pointers that go wrong go to the same places.
            let near = (mask.count_ones() > NEAR_BYTES as u32).then(|| self.values.near(word)).flatten();
            near.map_or(mask, |at| NEAR + at as u16)
        };
        out.push(Coded { context: how_context, symbol: how });
        match how {
            SMALL => out.push(Coded { context: context::SMALL, symbol: u16::from(shift as u8) }),
            1..ZERO => {
                let mut mask = how as u8;
                let class = byte_context(mask);
                let bytes = word.to_le_bytes();
                let mut before = self.last;
                while mask != 0 {
                    let at = mask.trailing_zeros() as u8;
                    let byte = bytes[usize::from(at)];
                    out.push(Coded { context: behind(before, class) + at, symbol: byte.into() });
                    before = byte;
                    mask &= mask - 1;
                }
            }
            NEAR.. => {
                let bytes = (0..).zip(word.to_le_bytes()).take(NEAR_BYTES);
                out.extend(
                    bytes.map(|(at, byte)| Coded { context: context::NEAR + at, symbol: byte.into() }),
                );
            }
            _ => {}
        }
        self.remember(how, word, predicted);
        self.was(how, word);
    }

    /// The word, by what [`Corrections::write`] wrote.
    #[inline]
    pub(super) fn read(&mut self, predicted: u64, from: &mut Decoder<'_>) -> Option<u64> {
        let how = from.next(self.how_context(predicted))?;
        let word = match how {
            SMALL => predicted.wrapping_add(i64::from(from.next(context::SMALL)? as u8 as i8) as u64),
            1..ZERO => {
                let mut mask = how as u8;
                let class = byte_context(mask);
                let mut bytes = predicted.to_le_bytes();
                let mut before = self.last;
                while mask != 0 {
                    let at = mask.trailing_zeros() as u8;
                    before = from.next(behind(before, class) + at)? as u8;
                    bytes[usize::from(at)] = before;
                    mask &= mask - 1;
                }
                u64::from_le_bytes(bytes)
            }
            ZERO => 0,
            SHIFT..VALUE => predicted.wrapping_add(self.shifts.get(usize::from(how - SHIFT))),
            VALUE..NEAR => self.values.get(usize::from(how - VALUE)),
            NEAR..NEAR_END => {
                let mut bytes = self.values.get(usize::from(how - NEAR)).to_le_bytes();
                for (at, byte) in (0..).zip(bytes.iter_mut().take(NEAR_BYTES)) {
                    *byte = from.next(context::NEAR + at)? as u8;
                }
                u64::from_le_bytes(bytes)
            }
            _ => return None,
        };
        self.remember(how, word, predicted);
        self.was(how, word);
        Some(word)
    }
}

/// The class of words of which next to nothing is right.
const NEW: u8 = context::BYTE + 24;

/// The context of byte 0 of a word with this mask.
const fn byte_context(mask: u8) -> u8 {
    match (mask, mask.count_ones()) {
        (_, ..=2) => context::BYTE,
        (_, 3..=4) => context::BYTE + 8,
        // A pointer where none was expected.
        (0x3f, _) => context::BYTE + 16,
        _ => NEW,
    }
}

/// The same behind this byte: what follows a letter in new words is a letter.
const fn behind(before: u8, class: u8) -> u8 {
    if class == NEW && matches!(before, b' '..=b'~') { context::TEXT } else { class }
}
