//! Words with their address taken out: equal in two processes of one program wherever it was loaded.

use crate::mapping::{Backing, Mappings};
use crate::page::{PAGE_BYTES, Page};

/// Bytes of a word: a pointer.
pub(crate) const WORD_BYTES: usize = 8;

/// Words in a page.
pub(crate) const PAGE_WORDS: usize = PAGE_BYTES / WORD_BYTES;

/// What is left of a word: 0 is 0, a pointer into a file is the place in the file, any other pointer only says
/// what kind of memory it points to, and everything else is its own hash.
pub(crate) type Token = u32;

/// Tokens of pointers whose target says nothing: heap, stack, anonymous.
pub(crate) const KINDS: std::ops::RangeInclusive<Token> = 1..=3;

const FIRST_HASH: Token = 8;

/// Spreads a word over the upper half.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The word at a position; positions are below [`PAGE_WORDS`].
#[inline]
pub(crate) fn word(page: &Page, at: usize) -> u64 {
    let (words, _) = page.as_chunks::<WORD_BYTES>();
    u64::from_le_bytes(words[at])
}

#[inline]
pub(crate) fn token(word: u64, mappings: &Mappings) -> Token {
    if word == 0 {
        return 0;
    }
    match mappings.find(word) {
        None => hash(word),
        Some(mapping) => match mapping.backing {
            Backing::Heap => 1,
            Backing::Stack => 2,
            Backing::Anonymous => 3,
            Backing::File { name, offset } => {
                hash(name.number() ^ (word - mapping.start).wrapping_add(offset))
            }
        },
    }
}

#[inline]
fn hash(word: u64) -> Token {
    let mixed = (word ^ word >> 32).wrapping_mul(SPREAD);
    ((mixed >> 32) as Token) | FIRST_HASH
}

/// The token of a word that is compared as it is.
#[inline]
pub(crate) fn exact(word: u64) -> Token {
    if word == 0 { 0 } else { hash(word) }
}

/// The tokens of a page, into the front of `out`.
pub(crate) fn tokens(page: &Page, token: impl Fn(u64) -> Token, out: &mut [Token]) {
    let (words, _) = page.as_chunks::<WORD_BYTES>();
    for (token_out, bytes) in out.iter_mut().zip(words) {
        *token_out = token(u64::from_le_bytes(*bytes));
    }
}
