//! Where the contexts of each sort of symbol begin: what the entropy coder has a table of its own for.

pub(super) const ORIGIN: u8 = 0;
pub(super) const RUN: u8 = ORIGIN + 2;
pub(super) const DIGIT: u8 = RUN + 2;
pub(super) const GAP: u8 = DIGIT + 3;
pub(super) const HOW: u8 = GAP + 4;
pub(super) const SMALL: u8 = HOW + 16;
pub(super) const BYTE: u8 = SMALL + 1;
pub(super) const TEXT: u8 = BYTE + 32;
pub(super) const NEAR: u8 = TEXT + 8;
pub(super) const ALL: usize = NEAR as usize + 2;

/// Those whose symbols are bytes.
pub(super) const OF_BYTES: std::ops::Range<usize> = SMALL as usize..ALL;
