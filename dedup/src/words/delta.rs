//! One page as pieces of the base, with every word predicted, and what the prediction got wrong.
//!
//! As symbols for the entropy coder: first the `pieces`, then what is `wrong`. Nothing is set up to read a page: a pass over the
//! base's words, a pass over the wrong ones.

use thiserror::Error;

use super::align::{BLOCK_WORDS, Origin, Piece};
use super::entropy::{Coded, Counts, Decoder};
use super::facts::Facts;
use super::pieces::{Pieces, first_page, write_pieces};
use super::relation::Relation;
use super::token::{PAGE_WORDS, WORD_BYTES};
use super::wrong::{Corrections, END, GAP_MAX};
use crate::page::{Page, PageIndex};

/// Bytes of a block.
const BLOCK_BYTES: usize = BLOCK_WORDS * WORD_BYTES;

/// Why bytes are not a page made of base words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeWordsError {
    /// They end too early, or hold what no encoder writes.
    #[error("the code of a page of words breaks off")]
    Code,
    /// They go on when the page is complete.
    #[error("the code of a page of words goes on behind its end")]
    Long,
    /// Pieces of an unknown kind, or of more blocks than a page has.
    #[error("the pieces of a page of words make no sense")]
    Pieces,
    /// More words than a page has, or a reference to a word that was not there.
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

/// All that words are predicted from.
#[derive(Debug)]
pub(crate) struct Known<'k, P: ?Sized> {
    /// Pages of the base.
    pub(crate) pages: &'k P,
    /// What they say about themselves.
    pub(crate) facts: &'k Facts,
    /// How the target differs from the base.
    pub(crate) relation: &'k Relation,
}

/// Fills the page with what the pieces say.
fn predict<P: PageSource + ?Sized>(
    pieces: &[Piece],
    known: &Known<'_, P>,
    page: &mut Page,
) -> Result<(), DecodeWordsError> {
    let mut rest = page.as_chunks_mut::<WORD_BYTES>().0;
    let mut at = 0;
    for piece in pieces {
        let words = usize::from(piece.blocks) * BLOCK_WORDS;
        let (out, behind) = rest.split_at_mut_checked(words).ok_or(DecodeWordsError::Pieces)?;
        rest = behind;
        match piece.from {
            Origin::Zeros => out.fill([0; WORD_BYTES]),
            Origin::Base(start) => {
                let first = start.checked_add(at as i64).and_then(|first| usize::try_from(first).ok());
                let first = first.ok_or(DecodeWordsError::Pieces)?;
                let mut next = first;
                let mut left = &mut *out;
                while !left.is_empty() {
                    let number =
                        u32::try_from(next / PAGE_WORDS).map_err(|_error| DecodeWordsError::Pieces)?;
                    let number = PageIndex(number);
                    let from = known.pages.page(number).ok_or(DecodeWordsError::NoPage { page: number })?;
                    let from = &from.as_chunks::<WORD_BYTES>().0[next % PAGE_WORDS..];
                    let count = from.len().min(left.len());
                    let (now, later) = left.split_at_mut(count);
                    known.relation.translate(&from[..count], now);
                    left = later;
                    next += count;
                }
                known.relation.put_secret(known.facts, first, out);
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
    /// Pieces without corrections.
    pub(crate) pieces: &'e [u8],
    /// What the pieces give without corrections.
    pub(crate) predicted: &'e Page,
}

/// Writes pages as words. Holds its working memory, so one lives per worker.
#[derive(Debug)]
pub(crate) struct WordEncoder {
    predicted: Box<Page>,
    symbols: Vec<Coded>,
    pieces: Vec<u8>,
    out: Vec<u8>,
}

impl WordEncoder {
    /// An encoder.
    pub(crate) fn new() -> Self {
        Self { predicted: Box::new([0; _]), symbols: Vec::new(), pieces: Vec::new(), out: Vec::new() }
    }

    /// The base page to name in the recipe, and the bytes. `None` if no piece is of the base or a piece leaves it.
    pub(crate) fn encode<P: PageSource + ?Sized>(
        &mut self,
        page: &Page,
        pieces: &[Piece],
        known: &Known<'_, P>,
    ) -> Option<PageOfWords<'_>> {
        let (named, pieces_end) = self.symbols(page, pieces, known)?;
        let model = &known.relation.model;
        self.pieces.clear();
        self.out.clear();
        model.encode(&self.symbols[..pieces_end], &mut self.pieces);
        model.encode(&self.symbols, &mut self.out);
        Some(PageOfWords { named, bytes: &self.out, pieces: &self.pieces, predicted: &self.predicted })
    }

    /// What the pieces of the page encoded last give without corrections.
    pub(crate) const fn predicted(&self) -> &Page {
        &self.predicted
    }

    /// Counts the symbols of a page, to learn a model from.
    pub(super) fn count<P: PageSource + ?Sized>(
        &mut self,
        page: &Page,
        pieces: &[Piece],
        known: &Known<'_, P>,
        counts: &mut Counts,
    ) {
        if self.symbols(page, pieces, known).is_some() {
            counts.see(&self.symbols);
        }
    }

    /// The page as symbols: the base page to name, and how many symbols are pieces.
    fn symbols<P: PageSource + ?Sized>(
        &mut self,
        page: &Page,
        pieces: &[Piece],
        known: &Known<'_, P>,
    ) -> Option<(PageIndex, usize)> {
        predict(pieces, known, &mut self.predicted).ok()?;
        let named = first_page(pieces)?;
        self.symbols.clear();
        write_pieces(pieces, named, &mut self.symbols);
        let pieces_end = self.symbols.len();
        if page != &*self.predicted {
            self.corrections(page);
        }
        Some((named, pieces_end))
    }

    fn corrections(&mut self, page: &Page) {
        let mut state = Corrections::default();
        let mut right = 0;
        let blocks =
            page.as_chunks::<BLOCK_BYTES>().0.iter().zip(self.predicted.as_chunks::<BLOCK_BYTES>().0);
        for (is, predicted) in blocks {
            if is == predicted {
                right += BLOCK_WORDS as u16;
                continue;
            }
            let words = is.as_chunks::<WORD_BYTES>().0.iter().zip(predicted.as_chunks::<WORD_BYTES>().0);
            for (is, predicted) in words {
                if is == predicted {
                    right += 1;
                    continue;
                }
                while right >= GAP_MAX {
                    self.symbols.push(Coded { context: state.gap_context(), symbol: GAP_MAX });
                    right -= GAP_MAX;
                }
                self.symbols.push(Coded { context: state.gap_context(), symbol: right });
                state.gap = right;
                right = 0;
                state.write(u64::from_le_bytes(*is), u64::from_le_bytes(*predicted), &mut self.symbols);
            }
        }
        self.symbols.push(Coded { context: state.gap_context(), symbol: END });
    }
}

/// The first half of decoding: writes the page that the pieces predict. The bytes may come from anywhere: every step is
/// checked, and nothing but `page` is written. With another base or relation than the original the result is some error
/// or some other page, so compare the page's hash.
pub(crate) fn decode_pieces<'d, P: PageSource + ?Sized>(
    bytes: &'d [u8],
    named: PageIndex,
    known: &Known<'d, P>,
    page: &mut Page,
) -> Result<Rest<'d>, DecodeWordsError> {
    let mut from = known.relation.model.decoder(bytes).ok_or(DecodeWordsError::Code)?;
    let pieces = Pieces::read(&mut from, named)?;
    predict(pieces.as_slice(), known, page)?;
    Ok(Rest(from))
}

/// What stands behind the pieces.
#[derive(Debug)]
pub(crate) struct Rest<'d>(Decoder<'d>);

impl<'d> Rest<'d> {
    /// Nothing of the code, and these bytes behind it.
    pub(crate) fn bytes(self) -> Result<&'d [u8], DecodeWordsError> {
        self.0.end().ok_or(DecodeWordsError::Code)
    }

    /// Puts right what the prediction got wrong.
    pub(crate) fn correct(self, page: &mut Page) -> Result<(), DecodeWordsError> {
        let Self(mut from) = self;
        if from.is_at_end() {
            return Ok(());
        }
        let words = page.as_chunks_mut::<WORD_BYTES>().0;
        let mut state = Corrections::default();
        let mut at = 0;
        loop {
            let gap = from.next(state.gap_context()).ok_or(DecodeWordsError::Code)?;
            match gap {
                END => break,
                GAP_MAX => {
                    at += usize::from(GAP_MAX);
                    continue;
                }
                _ => at += usize::from(gap),
            }
            state.gap = gap;
            let word = words.get_mut(at).ok_or(DecodeWordsError::Corrections)?;
            let right = state.read(u64::from_le_bytes(*word), &mut from);
            *word = right.ok_or(DecodeWordsError::Code)?.to_le_bytes();
            at += 1;
        }
        match from.end() {
            Some([]) => Ok(()),
            Some(_) => Err(DecodeWordsError::Long),
            None => Err(DecodeWordsError::Code),
        }
    }
}

/// The pieces that a page is made of. `None` if the bytes are no code of words.
pub(super) fn pieces_of(bytes: &[u8], named: PageIndex, relation: &Relation) -> Option<Pieces> {
    Pieces::read(&mut relation.model.decoder(bytes)?, named).ok()
}

/// The first half of decoding, for who has encoded: are these the pieces that were meant? What they predict needs not be made
/// a second time then.
pub(crate) fn reread_pieces<'d>(
    bytes: &'d [u8],
    named: PageIndex,
    meant: &[Piece],
    relation: &'d Relation,
) -> Option<Rest<'d>> {
    let mut from = relation.model.decoder(bytes)?;
    let pieces = Pieces::read(&mut from, named).ok()?;
    (pieces.as_slice() == meant).then_some(Rest(from))
}

/// The base pages needed to decode these bytes, each once, in no order.
pub(crate) fn pages_needed(
    bytes: &[u8],
    named: PageIndex,
    relation: &Relation,
    out: &mut Vec<PageIndex>,
) -> Result<(), DecodeWordsError> {
    let mut from = relation.model.decoder(bytes).ok_or(DecodeWordsError::Code)?;
    let before = out.len();
    let mut at = 0;
    for piece in Pieces::read(&mut from, named)?.as_slice() {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::words::align::PAGE_BLOCKS;
    use crate::words::context::ALL as CONTEXTS;
    use crate::words::entropy::{Counts, Model, PlainBytes};
    use crate::words::pieces::{CHANGE, NAMED, ZEROS};
    use crate::words::wrong::{NEAR, SHIFT, ZERO};

    /// A relation whose coder knows nothing: every symbol is escaped, so that any bytes lead somewhere.
    fn unlearned() -> Relation {
        Relation {
            model: Model::learn(&Counts::new(CONTEXTS), 0..0, PlainBytes { bits_min: 8.0, times: 1 }),
            ..Relation::default()
        }
    }

    /// The symbols as bytes that [`unlearned`] reads.
    fn coded(symbols: &[Coded]) -> Vec<u8> {
        let mut bytes = Vec::new();
        unlearned().model.encode(symbols, &mut bytes);
        bytes
    }

    fn decode(bytes: &[u8], named: PageIndex, base: &[&Page]) -> Result<Page, DecodeWordsError> {
        let (facts, relation) = (Facts::none(), unlearned());
        let known = Known { pages: base, facts: &facts, relation: &relation };
        let mut page = [1; _];
        decode_pieces(bytes, named, &known, &mut page)?.correct(&mut page)?;
        Ok(page)
    }

    proptest! {
        /// Any bytes, with any page named: an error or some page, and the pages read are those that were said to be.
        #[test]
        fn any_bytes_decode_or_fail(
            raw in proptest::collection::vec(any::<u8>(), 0..200),
            symbols in proptest::collection::vec(prop_oneof![0u16..6, 0u16..70, 250u16..300], 0..60),
            as_symbols: bool,
            named in prop_oneof![0u32..4, any::<u32>()],
        ) {
            let symbols: Vec<Coded> = symbols.into_iter().map(|symbol| Coded { context: 0, symbol }).collect();
            let bytes = if as_symbols { coded(&symbols) } else { raw };
            let pages = [[3; _]; 4];
            let base: Vec<&Page> = pages.iter().collect();
            let mut needed = Vec::new();
            let named_pages = pages_needed(&bytes, PageIndex(named), &unlearned(), &mut needed);
            if decode(&bytes, PageIndex(named), &base).is_ok() {
                prop_assert_eq!(named_pages, Ok(()));
                prop_assert!(needed.iter().all(|page| page.0 < 4));
            }
            prop_assert!(needed.len() <= 2 * PAGE_BLOCKS);
        }

        /// Any pieces are written so that they are read again.
        #[test]
        fn pieces_come_back(
            raw in proptest::collection::vec(
                (1u8..20, prop_oneof![Just(None), (-600i64..4000).prop_map(Some), any::<i32>().prop_map(|far| Some(far.into()))]),
                1..60,
            ),
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
            let mut symbols = Vec::new();
            write_pieces(&pieces, PageIndex(named), &mut symbols);
            let bytes = coded(&symbols);
            let relation = unlearned();
            let mut from = relation.model.decoder(&bytes).unwrap();
            let read = Pieces::read(&mut from, PageIndex(named)).unwrap();
            prop_assert_eq!(read.as_slice(), pieces.as_slice());
            prop_assert!(from.is_at_end());
        }

        /// Any corrections are written so that they are read again.
        #[test]
        fn corrections_come_back(
            words in proptest::collection::vec(
                (
                    0usize..PAGE_WORDS,
                    prop_oneof![
                        Just(0u64),
                        any::<u64>(),
                        0u64..300,
                        (0u64..4).prop_map(|x| 0x7f00 + x * 0x1_0000_0000),
                        // Pointers near each other.
                        (0u64..3, any::<u16>()).prop_map(|(far, near)| 0x7f12_0000_0000 + (far << 20) + u64::from(near)),
                        any::<[u8; 8]>().prop_map(|text| u64::from_le_bytes(text.map(|byte| b' ' + byte % 90))),
                    ],
                ),
                0..200,
            ),
        ) {
            let base = [0x11; _];
            let mut page = base;
            for (at, word) in words {
                page.as_chunks_mut::<WORD_BYTES>().0[at] = word.to_le_bytes();
            }
            let (facts, relation) = (Facts::none(), unlearned());
            let pages: [&Page; 1] = [&base];
            let known = Known { pages: &pages[..], facts: &facts, relation: &relation };
            let pieces = [Piece { blocks: PAGE_BLOCKS as u8, from: Origin::Base(0) }];
            let mut encoder = WordEncoder::new();
            let encoded = encoder.encode(&page, &pieces, &known).unwrap();
            prop_assert_eq!(decode(encoded.bytes, encoded.named, &pages), Ok(page));
        }
    }

    #[test]
    fn each_mistake_has_its_error() {
        let base: [&Page; 1] = [&[3; _]];
        let symbols = |all: &[u16]| -> Vec<Coded> {
            all.iter().map(|symbol| Coded { context: 0, symbol: *symbol }).collect()
        };
        let decode = |all: &[u16]| decode(&coded(&symbols(all)), PageIndex(0), &base).map(|_| ());
        assert_eq!(decode(&[NAMED, 0]), Ok(()));
        assert_eq!(decode(&[]), Err(DecodeWordsError::Code));
        assert_eq!(decode(&[NAMED]), Err(DecodeWordsError::Code));
        assert_eq!(decode(&[NAMED, 63]), Err(DecodeWordsError::Code));
        assert_eq!(decode(&[NAMED, 63, ZEROS, 2]), Err(DecodeWordsError::Pieces));
        assert_eq!(decode(&[CHANGE, 0]), Err(DecodeWordsError::Pieces));
        assert_eq!(decode(&[CHANGE + 2, 0, 0]), Err(DecodeWordsError::NoPage { page: PageIndex(1) }));
        assert_eq!(decode(&[NAMED, 0, 5, ZERO, 1, SHIFT, END]), Ok(()));
        assert_eq!(decode(&[NAMED, 0, 5, ZERO, 1, SHIFT, END, 5]), Err(DecodeWordsError::Code));
        assert_eq!(decode(&[NAMED, 0, 5]), Err(DecodeWordsError::Code));
        assert_eq!(decode(&[NAMED, 0, 5, NEAR, 7, 9, END]), Ok(()));
        assert_eq!(decode(&[NAMED, 0, 5, NEAR, 7]), Err(DecodeWordsError::Code));
        let far = [[NAMED, 0].as_slice(), &[GAP_MAX; 9], &[0, ZERO, END]].concat();
        assert_eq!(decode(&far), Err(DecodeWordsError::Corrections));
        let mut longer = coded(&symbols(&[NAMED, 0, 5, ZERO, END]));
        longer.push(7);
        assert_eq!(super::tests::decode(&longer, PageIndex(0), &base), Err(DecodeWordsError::Long));
    }
}
