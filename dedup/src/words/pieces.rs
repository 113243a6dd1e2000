//! The first half of a page's code: which pieces of the base it is made of.
//!
//! ```text
//! for each piece, until 64 blocks are covered:
//!     origin: 0 where the recipe's base page says, 1 zeros, 2 the position used before the last one,
//!         or 3 + how many bits the change of position has (zigzag, in words), and these bits as digits
//!     run: how many blocks, 0 to the end of the page
//! ```
//!
//! Positions are words of the base, for word 0 of the page; at first that of the recipe's base page.

use super::align::{BLOCK_WORDS, Origin, PAGE_BLOCKS, Piece};
use super::context;
use super::delta::DecodeWordsError;
use super::entropy::{Coded, Decoder};
use super::token::PAGE_WORDS;
use super::varint::{unzigzag, zigzag};
use crate::page::PageIndex;

/// What an origin can be besides a change of so many bits.
pub(super) const NAMED: u16 = 0;
pub(super) const ZEROS: u16 = 1;
pub(super) const BACK: u16 = 2;
pub(super) const CHANGE: u16 = 3;

/// The page of the base that the first piece begins in.
pub(super) fn first_page(pieces: &[Piece]) -> Option<PageIndex> {
    let mut at = 0;
    for piece in pieces {
        if let Origin::Base(start) = piece.from {
            let page = (start + at).div_euclid(PAGE_WORDS as i64);
            return u32::try_from(page).ok().map(PageIndex);
        }
        at += i64::from(piece.blocks) * BLOCK_WORDS as i64;
    }
    None
}

/// Most bits of a change of position.
const CHANGE_BITS_MAX: u16 = 64;

/// Bits of a digit of a change: few, so that a table of their shares is learned soon.
const DIGIT_BITS: u16 = 7;

/// The context of a digit with so many above it.
const fn digit_context(above: u16) -> u8 {
    context::DIGIT + if above < 2 { above as u8 } else { 2 }
}

pub(super) fn write_pieces(pieces: &[Piece], named: PageIndex, out: &mut Vec<Coded>) {
    let mut last = i64::from(named.0) * PAGE_WORDS as i64;
    let mut before = last;
    let mut covered = 0;
    for (number, piece) in pieces.iter().enumerate() {
        let first = u8::from(number > 0);
        let origin = |symbol| Coded { context: context::ORIGIN + first, symbol };
        match piece.from {
            Origin::Zeros => out.push(origin(ZEROS)),
            Origin::Base(start) if start == last => out.push(origin(NAMED)),
            Origin::Base(start) if start == before => {
                out.push(origin(BACK));
                (last, before) = (start, last);
            }
            Origin::Base(start) => {
                let change = zigzag(start.wrapping_sub(last));
                let bits = (u64::BITS - change.leading_zeros()) as u16;
                out.push(origin(CHANGE + bits));
                // The highest bit is known to be set.
                let digits = (bits - 1).div_ceil(DIGIT_BITS);
                for digit in (0..digits).rev() {
                    let above = digits - 1 - digit;
                    let top = if digit + 1 == digits { (1u64 << (bits - 1)) - 1 } else { u64::MAX };
                    let symbol = ((change & top) >> (digit * DIGIT_BITS)) as u16 & ((1 << DIGIT_BITS) - 1);
                    out.push(Coded { context: digit_context(above), symbol });
                }
                (last, before) = (start, last);
            }
        }
        covered += usize::from(piece.blocks);
        let run = if covered == PAGE_BLOCKS { 0 } else { u16::from(piece.blocks) };
        out.push(Coded { context: context::RUN + first, symbol: run });
    }
}

/// The pieces of one page.
pub(super) struct Pieces {
    list: [Piece; PAGE_BLOCKS],
    count: usize,
}

impl Pieces {
    pub(super) fn as_slice(&self) -> &[Piece] {
        &self.list[..self.count]
    }

    pub(super) fn read(from: &mut Decoder<'_>, named: PageIndex) -> Result<Self, DecodeWordsError> {
        let mut pieces = Self { list: [Piece { blocks: 0, from: Origin::Zeros }; PAGE_BLOCKS], count: 0 };
        let mut last = i64::from(named.0) * PAGE_WORDS as i64;
        let mut before = last;
        let mut covered = 0;
        while covered < PAGE_BLOCKS {
            let first = u8::from(pieces.count > 0);
            let origin = match from.next(context::ORIGIN + first).ok_or(DecodeWordsError::Code)? {
                ZEROS => Origin::Zeros,
                NAMED => Origin::Base(last),
                BACK => {
                    (last, before) = (before, last);
                    Origin::Base(last)
                }
                change => {
                    let change = unzigzag(read_change(change - CHANGE, from)?);
                    let start = last.checked_add(change).ok_or(DecodeWordsError::Pieces)?;
                    (last, before) = (start, last);
                    Origin::Base(start)
                }
            };
            let blocks = match from.next(context::RUN + first).ok_or(DecodeWordsError::Code)? {
                0 => PAGE_BLOCKS - covered,
                blocks => usize::from(blocks),
            };
            covered += blocks;
            let slot = pieces.list.get_mut(pieces.count).ok_or(DecodeWordsError::Pieces)?;
            if covered > PAGE_BLOCKS {
                return Err(DecodeWordsError::Pieces);
            }
            *slot = Piece { blocks: blocks as u8, from: origin };
            pieces.count += 1;
        }
        Ok(pieces)
    }
}

fn read_change(bits: u16, from: &mut Decoder<'_>) -> Result<u64, DecodeWordsError> {
    if bits == 0 || bits > CHANGE_BITS_MAX {
        return Err(DecodeWordsError::Pieces);
    }
    let mut change = 0u64;
    let digits = (bits - 1).div_ceil(DIGIT_BITS);
    for above in 0..digits {
        let digit = from.next(digit_context(above)).ok_or(DecodeWordsError::Code)?;
        change = change << DIGIT_BITS | u64::from(digit);
    }
    // Digits that say more than the bits they are for are no code of ours, and harmless.
    Ok(change & ((1u64 << (bits - 1)) - 1) | 1 << (bits - 1))
}
