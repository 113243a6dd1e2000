//! One page as pieces of the base, with every word predicted, and what the prediction got wrong.
//!
//! ```text
//! pieces     for each, until 64 blocks are covered:
//!                head: blocks - 1 in the low 6 bits, how in the high 2
//!                    0 base, the position as a change from the last one (zigzag varint follows)
//!                    1 zeros
//!                    2 base, the position used before the last one
//!            positions are words of the base, for word 0 of the page, at first that of the recipe's base page
//! wrong      (or a zstd frame with the predicted page as dictionary, or all of this compressed: see the recipe's codec)
//!            nothing more if no word is wrong; else
//!                8 bytes: for each block of 8 words, is a word wrong?
//!                for each such block 1 byte: which words
//!                for each wrong word 1 byte: which of its bytes differ; 0 says that a small number is added
//!                for each wrong word the bytes that differ, or the small number
//! ```
//!
//! Nothing is set up to read a page: a pass over the base's words, a pass over the wrong ones.

use thiserror::Error;

use super::align::{BLOCK_WORDS, Origin, PAGE_BLOCKS, Piece};
use super::token::{PAGE_WORDS, WORD_BYTES};
use super::translation::Translation;
use super::varint::{read, unzigzag, write, zigzag};
use crate::page::{Page, PageIndex};

/// Bytes of a block.
const BLOCK_BYTES: usize = BLOCK_WORDS * WORD_BYTES;

/// Bytes of the bitmap of blocks.
const BITMAP_BYTES: usize = PAGE_BLOCKS / 8;

const _: () = assert!(PAGE_BLOCKS == 64 && BLOCK_WORDS == 8);

const RUN_BITS: u8 = 0x3f;
const MOVE: u8 = 0;
const ZEROS: u8 = 1;
const BACK: u8 = 2;

/// Why bytes are not a page made of base words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeWordsError {
    /// They end too early.
    #[error("a page of words ends too early")]
    Short,
    /// They go on when the page is complete.
    #[error("{bytes} bytes behind a page of words")]
    Long {
        /// How many.
        bytes: usize,
    },
    /// Pieces of an unknown kind, or of more blocks than a page has.
    #[error("the pieces of a page of words make no sense")]
    Pieces,
    /// A block with wrong words has none, or a small number is none.
    #[error("the corrections of a page of words make no sense")]
    Corrections,
    /// A piece lies outside of what is known of the base.
    #[error("base page {page} is needed, which was not given")]
    NoPage {
        /// Which base page.
        page: PageIndex,
    },
}

/// Pages of one base snapshot by their number.
pub(crate) trait PageSource {
    /// The page, if it is at hand.
    fn page(&self, page: PageIndex) -> Option<&Page>;
}

impl PageSource for [&Page] {
    fn page(&self, page: PageIndex) -> Option<&Page> {
        self.get(page.0 as usize).copied()
    }
}

/// Fills the page with what the pieces and the pointer table say.
fn predict<P: PageSource + ?Sized>(
    pieces: &[Piece],
    base: &P,
    translation: &Translation,
    page: &mut Page,
) -> Result<(), DecodeWordsError> {
    let mut rest = page.as_chunks_mut::<WORD_BYTES>().0;
    let mut at = 0;
    for piece in pieces {
        let words = usize::from(piece.blocks) * BLOCK_WORDS;
        let (mut out, behind) = rest.split_at_mut_checked(words).ok_or(DecodeWordsError::Pieces)?;
        rest = behind;
        match piece.from {
            Origin::Zeros => out.fill([0; WORD_BYTES]),
            Origin::Base(start) => {
                let first = start.checked_add(at as i64).and_then(|first| usize::try_from(first).ok());
                let mut first = first.ok_or(DecodeWordsError::Pieces)?;
                while !out.is_empty() {
                    let number =
                        u32::try_from(first / PAGE_WORDS).map_err(|_error| DecodeWordsError::Pieces)?;
                    let number = PageIndex(number);
                    let from = base.page(number).ok_or(DecodeWordsError::NoPage { page: number })?;
                    let from = &from.as_chunks::<WORD_BYTES>().0[first % PAGE_WORDS..];
                    let count = from.len().min(out.len());
                    let (now, later) = out.split_at_mut(count);
                    for (to, word) in now.iter_mut().zip(from) {
                        *to = translation.translate(u64::from_le_bytes(*word)).to_le_bytes();
                    }
                    out = later;
                    first += count;
                }
            }
        }
        at += words;
    }
    if rest.is_empty() { Ok(()) } else { Err(DecodeWordsError::Pieces) }
}

/// A page as words of a base.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageOfWords<'e> {
    /// The base page that the recipe names.
    pub(crate) named: PageIndex,
    /// Pieces and corrections.
    pub(crate) bytes: &'e [u8],
    /// How many of the bytes are pieces.
    pub(crate) pieces_bytes: usize,
    /// What the pieces give without corrections.
    pub(crate) predicted: &'e Page,
}

/// Writes pages as words. Holds its working memory, so one lives per worker.
#[derive(Debug)]
pub(crate) struct WordEncoder {
    predicted: Box<Page>,
    masks: Vec<u8>,
    differing: Vec<u8>,
    out: Vec<u8>,
}

impl WordEncoder {
    /// An encoder.
    pub(crate) fn new() -> Self {
        Self {
            predicted: Box::new([0; _]),
            masks: Vec::with_capacity(PAGE_WORDS),
            differing: Vec::with_capacity(PAGE_WORDS * WORD_BYTES),
            out: Vec::new(),
        }
    }

    /// The base page to name in the recipe, and the bytes. `None` if no piece is of the base or a piece leaves it.
    pub(crate) fn encode<P: PageSource + ?Sized>(
        &mut self,
        page: &Page,
        pieces: &[Piece],
        base: &P,
        translation: &Translation,
    ) -> Option<PageOfWords<'_>> {
        predict(pieces, base, translation, &mut self.predicted).ok()?;
        let named = first_page(pieces)?;
        self.out.clear();
        write_pieces(pieces, named, &mut self.out);
        let pieces_bytes = self.out.len();
        if page != &*self.predicted {
            self.corrections(page);
        }
        Some(PageOfWords { named, bytes: &self.out, pieces_bytes, predicted: &self.predicted })
    }

    fn corrections(&mut self, page: &Page) {
        self.masks.clear();
        self.differing.clear();
        let bitmap_at = self.out.len();
        self.out.extend_from_slice(&[0; BITMAP_BYTES]);
        let mut bitmap = 0u64;
        let blocks =
            page.as_chunks::<BLOCK_BYTES>().0.iter().zip(self.predicted.as_chunks::<BLOCK_BYTES>().0);
        for (block, (is, predicted)) in blocks.enumerate() {
            if is == predicted {
                continue;
            }
            let mut wrong = 0u8;
            let words = is.as_chunks::<WORD_BYTES>().0.iter().zip(predicted.as_chunks::<WORD_BYTES>().0);
            for (in_block, (is, predicted)) in words.enumerate() {
                if is == predicted {
                    continue;
                }
                wrong |= 1 << in_block;
                let change = u64::from_le_bytes(*is).wrapping_sub(u64::from_le_bytes(*predicted)) as i64;
                if let Ok(small) = i8::try_from(change) {
                    self.masks.push(0);
                    self.differing.push(small as u8);
                    continue;
                }
                let mut mask = 0;
                for (byte, (a, b)) in is.iter().zip(predicted).enumerate() {
                    if a != b {
                        mask |= 1 << byte;
                        self.differing.push(*a);
                    }
                }
                self.masks.push(mask);
            }
            bitmap |= 1 << block;
            self.out.push(wrong);
        }
        self.out[bitmap_at..bitmap_at + BITMAP_BYTES].copy_from_slice(&bitmap.to_le_bytes());
        self.out.extend_from_slice(&self.masks);
        self.out.extend_from_slice(&self.differing);
    }
}

/// The first half of decoding: writes the page that the pieces and the table predict, and gives back the corrections.
///
/// The bytes may come from anywhere: every step is checked, and nothing but `page` is written. With another base or
/// table than the original the result is some error or some other page, so compare the page's hash.
pub(crate) fn decode_pieces<'d, P: PageSource + ?Sized>(
    bytes: &'d [u8],
    named: PageIndex,
    base: &P,
    translation: &Translation,
    page: &mut Page,
) -> Result<&'d [u8], DecodeWordsError> {
    let mut rest = bytes;
    let pieces = Pieces::read(&mut rest, named)?;
    predict(pieces.as_slice(), base, translation, page)?;
    Ok(rest)
}

/// The second half: puts right what the prediction got wrong. No bytes, no corrections.
pub(crate) fn correct(bytes: &[u8], page: &mut Page) -> Result<(), DecodeWordsError> {
    if bytes.is_empty() { Ok(()) } else { correct_words(bytes, page) }
}

fn correct_words(bytes: &[u8], page: &mut Page) -> Result<(), DecodeWordsError> {
    let (bitmap, rest) = bytes.split_first_chunk::<BITMAP_BYTES>().ok_or(DecodeWordsError::Short)?;
    let mut bitmap = u64::from_le_bytes(*bitmap);
    let blocks = bitmap.count_ones() as usize;
    let (wrong, rest) = rest.split_at_checked(blocks).ok_or(DecodeWordsError::Short)?;
    let words = wrong.iter().map(|wrong| wrong.count_ones() as usize).sum();
    let (masks, mut differing) = rest.split_at_checked(words).ok_or(DecodeWordsError::Short)?;
    let mut masks = masks.iter();
    let page_words = page.as_chunks_mut::<WORD_BYTES>().0;
    for wrong in wrong {
        let block = bitmap.trailing_zeros() as usize * BLOCK_WORDS;
        bitmap &= bitmap.wrapping_sub(1);
        let mut wrong = *wrong;
        if wrong == 0 {
            return Err(DecodeWordsError::Corrections);
        }
        while wrong != 0 {
            let word = &mut page_words[block + wrong.trailing_zeros() as usize];
            wrong &= wrong - 1;
            let mask = *masks.next().ok_or(DecodeWordsError::Short)?;
            if mask == 0 {
                let (small, rest) = differing.split_first().ok_or(DecodeWordsError::Short)?;
                differing = rest;
                let change = i64::from(*small as i8) as u64;
                *word = u64::from_le_bytes(*word).wrapping_add(change).to_le_bytes();
                continue;
            }
            let count = mask.count_ones() as usize;
            let (now, rest) = differing.split_at_checked(count).ok_or(DecodeWordsError::Short)?;
            differing = rest;
            let mut mask = mask;
            for byte in now {
                word[mask.trailing_zeros() as usize & 7] = *byte;
                mask &= mask.wrapping_sub(1);
            }
        }
    }
    if differing.is_empty() { Ok(()) } else { Err(DecodeWordsError::Long { bytes: differing.len() }) }
}

/// The base pages needed to decode these bytes, each once, in no order.
pub(crate) fn pages_needed(
    bytes: &[u8],
    named: PageIndex,
    out: &mut Vec<PageIndex>,
) -> Result<(), DecodeWordsError> {
    let mut rest = bytes;
    let before = out.len();
    let mut at = 0;
    for piece in Pieces::read(&mut rest, named)?.as_slice() {
        let words = i64::from(piece.blocks) * BLOCK_WORDS as i64;
        if let Origin::Base(start) = piece.from {
            let first = start.checked_add(at).ok_or(DecodeWordsError::Pieces)?;
            let last = first.checked_add(words - 1).ok_or(DecodeWordsError::Pieces)?;
            for number in first.div_euclid(PAGE_WORDS as i64)..=last.div_euclid(PAGE_WORDS as i64) {
                let page = PageIndex(u32::try_from(number).map_err(|_error| DecodeWordsError::Pieces)?);
                if !out[before..].contains(&page) {
                    out.push(page);
                }
            }
        }
        at += words;
    }
    Ok(())
}

/// The page of the base that the first piece begins in.
fn first_page(pieces: &[Piece]) -> Option<PageIndex> {
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

fn write_pieces(pieces: &[Piece], named: PageIndex, out: &mut Vec<u8>) {
    let mut last = i64::from(named.0) * PAGE_WORDS as i64;
    let mut before = last;
    for piece in pieces {
        let run = piece.blocks.wrapping_sub(1) & RUN_BITS;
        match piece.from {
            Origin::Zeros => out.push(run | ZEROS << 6),
            Origin::Base(start) if start == before && start != last => {
                out.push(run | BACK << 6);
                (last, before) = (start, last);
            }
            Origin::Base(start) => {
                out.push(run | MOVE << 6);
                write(out, zigzag(start - last));
                if start != last {
                    (last, before) = (start, last);
                }
            }
        }
    }
}

/// The pieces of one page.
struct Pieces {
    list: [Piece; PAGE_BLOCKS],
    count: usize,
}

impl Pieces {
    fn as_slice(&self) -> &[Piece] {
        &self.list[..self.count]
    }

    fn read(bytes: &mut &[u8], named: PageIndex) -> Result<Self, DecodeWordsError> {
        let mut pieces = Self { list: [Piece { blocks: 0, from: Origin::Zeros }; PAGE_BLOCKS], count: 0 };
        let mut last = i64::from(named.0) * PAGE_WORDS as i64;
        let mut before = last;
        let mut covered = 0;
        while covered < PAGE_BLOCKS {
            let (head, rest) = bytes.split_first().ok_or(DecodeWordsError::Short)?;
            *bytes = rest;
            let blocks = (head & RUN_BITS) + 1;
            covered += usize::from(blocks);
            let from = match head >> 6 {
                ZEROS => Origin::Zeros,
                MOVE => {
                    let change = unzigzag(read(bytes).ok_or(DecodeWordsError::Short)?);
                    let start = last.checked_add(change).ok_or(DecodeWordsError::Pieces)?;
                    if start != last {
                        (last, before) = (start, last);
                    }
                    Origin::Base(start)
                }
                BACK => {
                    (last, before) = (before, last);
                    Origin::Base(last)
                }
                _ => return Err(DecodeWordsError::Pieces),
            };
            let slot = pieces.list.get_mut(pieces.count).ok_or(DecodeWordsError::Pieces)?;
            *slot = Piece { blocks, from };
            pieces.count += 1;
        }
        if covered == PAGE_BLOCKS { Ok(pieces) } else { Err(DecodeWordsError::Pieces) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any bytes, with any page named: an error or some page, and the pages read are those that were said to be.
        #[test]
        fn any_bytes_decode_or_fail(
            raw in proptest::collection::vec(any::<u8>(), 0..200),
            one_piece in any::<bool>(),
            named in prop_oneof![0u32..4, any::<u32>()],
        ) {
            // A single piece of a whole page, so that corrections are reached more often.
            let bytes = if one_piece { [&[0x3f, 0][..], &raw].concat() } else { raw };
            let named = PageIndex(named);
            let pages = [[3; _]; 4];
            let base: Vec<&Page> = pages.iter().collect();
            let mut page = [1; _];
            let decoded = decode_pieces(&bytes, named, base.as_slice(), &Translation::default(), &mut page)
                .and_then(|rest| correct(rest, &mut page));
            let mut needed = Vec::new();
            let named_pages = pages_needed(&bytes, named, &mut needed);
            if decoded.is_ok() {
                prop_assert_eq!(named_pages, Ok(()));
                prop_assert!(needed.iter().all(|page| page.0 < 4));
            }
            prop_assert!(needed.len() <= 2 * PAGE_BLOCKS);
        }

        /// Any pieces are written so that they are read again.
        #[test]
        fn pieces_come_back(
            raw in proptest::collection::vec((1u8..20, prop_oneof![Just(None), (-600i64..4000).prop_map(Some)]), 1..60),
            named in 0u32..9,
        ) {
            let mut pieces = Vec::new();
            let mut left = PAGE_BLOCKS as u8;
            for (blocks, from) in raw {
                let blocks = blocks.min(left);
                left -= blocks;
                if blocks > 0 {
                    pieces.push(Piece { blocks, from: from.map_or(Origin::Zeros, Origin::Base) });
                }
            }
            if left > 0 {
                pieces.push(Piece { blocks: left, from: Origin::Zeros });
            }
            let mut bytes = Vec::new();
            write_pieces(&pieces, PageIndex(named), &mut bytes);
            let mut rest = bytes.as_slice();
            let read = Pieces::read(&mut rest, PageIndex(named)).unwrap();
            prop_assert_eq!(read.as_slice(), pieces.as_slice());
            prop_assert!(rest.is_empty());
        }
    }

    #[test]
    fn each_mistake_has_its_error() {
        let base: [&Page; 1] = [&[3; _]];
        let decode = |bytes: &[u8]| {
            let mut page = [1; _];
            decode_pieces(bytes, PageIndex(0), base.as_slice(), &Translation::default(), &mut page)
                .and_then(|rest| correct(rest, &mut page))
        };
        assert_eq!(decode(&[0x3f, 0]), Ok(()));
        assert_eq!(decode(&[]), Err(DecodeWordsError::Short));
        assert_eq!(decode(&[0x3e, 0]), Err(DecodeWordsError::Short));
        assert_eq!(decode(&[0x3e, 0, 0x41]), Err(DecodeWordsError::Pieces));
        assert_eq!(decode(&[0xff]), Err(DecodeWordsError::Pieces));
        assert_eq!(decode(&[0x3f, 1]), Err(DecodeWordsError::Pieces));
        assert_eq!(decode(&[0x3f, 2]), Err(DecodeWordsError::NoPage { page: PageIndex(1) }));
        assert_eq!(decode(&[0x3f, 0, 1]), Err(DecodeWordsError::Short));
        assert_eq!(decode(&[0x3f, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Err(DecodeWordsError::Corrections));
        assert_eq!(decode(&[0x3f, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2]), Err(DecodeWordsError::Short));
        assert_eq!(decode(&[0x3f, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 9]), Ok(()));
        assert_eq!(decode(&[0x3f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]), Err(DecodeWordsError::Long { bytes: 1 }));
    }
}
