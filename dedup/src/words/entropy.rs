//! Few bits for what is common: range coding (rANS) with tables that an image has once for all its pages.
//!
//! A page's corrections are too short to carry statistics of their own, so the tables are learned from many pages of
//! the image and kept beside its pointer table. Coding a page needs no set-up. Each symbol has a context, and each context a
//! table; what a table does not know is escaped. Bytes that no table would make shorter stand behind the code, the first one
//! at the very end. The coder is Duda's range variant of asymmetric numeral systems
//! (arXiv 1311.2540): a state of 23 bits, whole bytes in and out, the last symbol coded is the first one decoded.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::OnceLock;

use super::varint::{read, write};

/// Probabilities are parts of this.
const SCALE_BITS: u32 = 11;
const SCALE: u32 = 1 << SCALE_BITS;

/// Lowest state between two symbols.
const STATE_MIN: u32 = 1 << 15;

/// Bytes that the last state of a page takes.
const STATE_BYTES: usize = 3;

/// Symbols are below this.
pub(super) const SYMBOLS_MAX: u16 = 300;

/// Stands for a symbol that the table does not know; the symbol follows in two bytes.
const ESCAPE: u16 = SYMBOLS_MAX;

/// One symbol in its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coded {
    pub(super) context: u8,
    pub(super) symbol: u16,
}

/// How often each symbol was seen in each context.
#[derive(Debug, Clone)]
pub(super) struct Counts(Vec<[u32; SYMBOLS_MAX as usize]>);

impl Counts {
    pub(super) fn new(contexts: usize) -> Self {
        Self(vec![[0; _]; contexts])
    }

    pub(super) fn see(&mut self, coded: &[Coded]) {
        for Coded { context, symbol } in coded {
            self.0[usize::from(*context)][usize::from(*symbol)] += 1;
        }
    }
}

/// A symbol's share of the scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Share {
    start: u16,
    /// Zero: the table does not know it.
    size: u16,
}

/// The shares of the symbols that one context knows, in order of symbol. They add up to the scale.
type Sizes = Vec<(u16, u16)>;

/// Symbols that one table knows, the unknown among them: their numbers fit a byte.
const KNOWN_MAX: usize = 256;

/// One symbol of a table.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    symbol: u16,
    share: Share,
}

/// The table of one context, ready for use. As small as it can be: all of them together are asked at random for every symbol
/// of a page, and must not push each other out of the processor's cache.
#[derive(Debug, Clone)]
struct Table {
    /// By symbol, to encode.
    shares: Box<[Share]>,
    /// For each part of the scale, which of the known symbols has it; none at all if nothing is known and symbols are plain bytes.
    slots: Box<[u8]>,
    known: Box<[Known]>,
}

/// Tables of all contexts. Spread out when they are first used: an image that only waits keeps the short form.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    sizes: Vec<Sizes>,
    tables: OnceLock<Box<[Table]>>,
}

impl Table {
    fn new(sizes: &[(u16, u16)]) -> Self {
        let mut shares = vec![Share::default(); usize::from(ESCAPE) + 1];
        let mut slots = Vec::new();
        let mut known = vec![Known::default(); sizes.len()];
        let mut start = 0;
        for (number, (symbol, size)) in sizes.iter().enumerate() {
            let share = Share { start, size: *size };
            shares[usize::from(*symbol)] = share;
            known[number] = Known { symbol: *symbol, share };
            slots.extend((0..*size).map(|_| number as u8));
            start += size;
        }
        Self { shares: shares.into(), slots: slots.into(), known: known.into() }
    }
}

/// When bytes are stored as they are: they are read in no time then, and take eight bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlainBytes {
    /// From how many bits of information on.
    pub(super) bits_min: f64,
    /// How many symbols there will be for each that was counted. A table must save more bytes than it takes.
    pub(super) times: usize,
}

/// What a symbol takes in a table as it is written, about.
const KNOWN_BYTES: f64 = 1.5;

impl PlainBytes {
    fn is_for(self, counts: &[u32; SYMBOLS_MAX as usize], total: u64) -> bool {
        let bits = bits(counts, total);
        let saved = total as f64 * self.times as f64 * (8.0 - bits) / 8.0;
        let known = counts.iter().filter(|count| **count > 0).count();
        bits > self.bits_min || saved <= known as f64 * KNOWN_BYTES
    }
}

/// Shares by how often each symbol was seen; at least one part for the unknown. None where symbols are plain bytes and nothing
/// that is worth a table.
fn learn(counts: &[u32; SYMBOLS_MAX as usize], bytes: Option<PlainBytes>) -> Sizes {
    let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    if bytes.is_some_and(|rule| rule.is_for(counts, total)) {
        return Sizes::new();
    }
    let scaled = |count: u32| (u64::from(count) * u64::from(SCALE - 1) / total.max(1)) as u16;
    // What is rarer than a part of the scale is cheaper to escape than to have.
    let seen = counts.iter().enumerate().filter(|(_, count)| scaled(**count) > 0);
    let mut sizes: Vec<(u16, u16)> = seen.map(|(symbol, count)| (symbol as u16, scaled(*count))).collect();
    if sizes.len() >= KNOWN_MAX {
        sizes.sort_unstable_by_key(|(_, size)| Reverse(*size));
        sizes.truncate(KNOWN_MAX - 1);
        sizes.sort_unstable();
    }
    let used: u16 = sizes.iter().map(|(_, size)| size).sum();
    let known: u64 = sizes.iter().map(|(symbol, _)| u64::from(counts[usize::from(*symbol)])).sum();
    let left = SCALE as u16 - used;
    let escape = (((total - known) * u64::from(SCALE) / total.max(1)) as u16).clamp(1, left);
    if let Some(most) = sizes.iter_mut().max_by_key(|(_, size)| *size) {
        most.1 += left - escape;
        sizes.push((ESCAPE, escape));
    } else {
        sizes.push((ESCAPE, SCALE as u16));
    }
    sizes
}

/// Bits that a symbol takes on average.
fn bits(counts: &[u32; SYMBOLS_MAX as usize], total: u64) -> f64 {
    let share = |count: &u32| f64::from(*count) / total.max(1) as f64;
    counts.iter().map(share).filter(|share| *share > 0.0).map(|share| -share * share.log2()).sum()
}

fn write_sizes(sizes: &[(u16, u16)], out: &mut Vec<u8>) {
    write(out, sizes.len() as u64);
    let mut before = 0;
    for (symbol, size) in sizes {
        write(out, u64::from(symbol - before));
        write(out, u64::from(*size));
        before = *symbol;
    }
}

/// `None` if the bytes are no such shares.
fn read_sizes(bytes: &mut &[u8], of_bytes: bool) -> Option<Sizes> {
    let count = read(bytes).filter(|count| *count <= KNOWN_MAX as u64)?;
    if count == 0 {
        return of_bytes.then(Sizes::new);
    }
    let mut sizes = Sizes::with_capacity(count as usize);
    let mut total = 0;
    for at in 0..count {
        let distance = read(bytes).filter(|distance| *distance <= u64::from(ESCAPE))?;
        let size = read(bytes).filter(|size| (1..=u64::from(SCALE)).contains(size))?;
        let symbol = sizes.last().map_or(0, |(before, _)| *before) + distance as u16;
        if symbol > ESCAPE || (at > 0 && distance == 0) {
            return None;
        }
        total += size;
        sizes.push((symbol, size as u16));
    }
    // Without an escape there would be pages that cannot be coded; nobody writes such a table.
    let whole = total == u64::from(SCALE) && sizes.last().is_some_and(|(symbol, _)| *symbol == ESCAPE);
    whole.then_some(sizes)
}

impl Model {
    /// `of_bytes` are the contexts whose symbols are bytes, and `rule` says which of these have no table.
    pub(super) fn learn(counts: &Counts, of_bytes: Range<usize>, rule: PlainBytes) -> Self {
        let rule = |at| of_bytes.contains(&at).then_some(rule);
        let sizes = counts.0.iter().enumerate().map(|(at, counts)| learn(counts, rule(at)));
        Self { sizes: sizes.collect(), tables: OnceLock::new() }
    }

    /// Bytes it takes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        let sizes = self.sizes.iter().map(|sizes| size_of_val(&sizes[..]));
        let table = |table: &Table| {
            size_of_val(&table.shares[..]) + size_of_val(&table.slots[..]) + size_of_val(&table.known[..])
        };
        sizes.sum::<usize>() + self.tables.get().map_or(0, |tables| tables.iter().map(table).sum())
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        self.sizes.iter().for_each(|sizes| write_sizes(sizes, out));
    }

    /// Reads the tables of so many contexts, of which some have bytes for symbols. `None` if the bytes are not such tables.
    pub(super) fn read(bytes: &mut &[u8], contexts: usize, of_bytes: Range<usize>) -> Option<Self> {
        let sizes =
            (0..contexts).map(|at| read_sizes(bytes, of_bytes.contains(&at))).collect::<Option<_>>()?;
        Some(Self { sizes, tables: OnceLock::new() })
    }

    fn tables(&self) -> &[Table] {
        self.tables.get_or_init(|| self.sizes.iter().map(|sizes| Table::new(sizes)).collect())
    }

    /// Appends the symbols' code. No symbols, no bytes.
    pub(super) fn encode(&self, symbols: &[Coded], out: &mut Vec<u8>) {
        if symbols.is_empty() {
            return;
        }
        let (start, tables) = (out.len(), self.tables());
        let mut state = STATE_MIN;
        for Coded { context, symbol } in symbols.iter().rev() {
            let Table { shares, slots, .. } = &tables[usize::from(*context)];
            if slots.is_empty() {
                continue;
            }
            let share = shares[usize::from(*symbol)];
            if share.size > 0 {
                state = put(state, share.start.into(), share.size.into(), SCALE_BITS, out);
                continue;
            }
            for byte in symbol.to_le_bytes().into_iter().rev() {
                state = put(state, byte.into(), 1, 8, out);
            }
            let share = shares[usize::from(ESCAPE)];
            state = put(state, share.start.into(), share.size.into(), SCALE_BITS, out);
        }
        out.extend_from_slice(&state.to_le_bytes()[..STATE_BYTES]);
        out[start..].reverse();
        let plain = |coded: &&Coded| tables[usize::from(coded.context)].slots.is_empty();
        out.extend(symbols.iter().rev().filter(plain).map(|coded| coded.symbol as u8));
    }

    /// Reads what [`Model::encode`] wrote. `None` if it cannot have.
    pub(super) fn decoder<'d>(&'d self, bytes: &'d [u8]) -> Option<Decoder<'d>> {
        let (state, rest) = bytes.split_first_chunk::<STATE_BYTES>()?;
        let state = state.iter().fold(0, |state, byte| state << 8 | u32::from(*byte));
        (state >= STATE_MIN).then_some(Decoder { tables: self.tables(), state, rest })
    }
}

/// The state after one more symbol with this share of `1 << bits`.
#[inline]
fn put(mut state: u32, start: u32, size: u32, bits: u32, out: &mut Vec<u8>) -> u32 {
    // The highest state from which the next one stays below 2^23.
    let limit = ((STATE_MIN >> bits) << 8) * size;
    while state >= limit {
        out.push(state as u8);
        state >>= 8;
    }
    ((state / size) << bits) + start + state % size
}

/// Takes symbols out again, first things first.
#[derive(Debug)]
pub(super) struct Decoder<'d> {
    tables: &'d [Table],
    state: u32,
    rest: &'d [u8],
}

impl<'d> Decoder<'d> {
    /// The next symbol, of this context. `None` if the bytes are over.
    #[inline]
    pub(super) fn next(&mut self, context: u8) -> Option<u16> {
        let table = self.tables.get(usize::from(context))?;
        let part = self.state % SCALE;
        let Some(number) = table.slots.get(part as usize) else {
            let (byte, rest) = self.rest.split_last()?;
            self.rest = rest;
            return Some((*byte).into());
        };
        let Known { symbol, share } = *table.known.get(usize::from(*number))?;
        self.state = u32::from(share.size) * (self.state >> SCALE_BITS) + part - u32::from(share.start);
        self.renew()?;
        if symbol != ESCAPE {
            return Some(symbol);
        }
        let low = self.byte()?;
        let high = self.byte()?;
        Some(u16::from_le_bytes([low, high])).filter(|symbol| *symbol < SYMBOLS_MAX)
    }

    /// A byte of which nothing is known.
    #[inline]
    fn byte(&mut self) -> Option<u8> {
        let byte = self.state as u8;
        self.state >>= 8;
        self.renew()?;
        Some(byte)
    }

    /// Takes in bytes until the state is large enough: none, one or two, which nothing foresees, so it is done without a branch.
    #[inline]
    fn renew(&mut self) -> Option<()> {
        let Some(next) = self.rest.first_chunk() else { return self.renew_at_end() };
        let count = usize::from(self.state < STATE_MIN) + usize::from(self.state < STATE_MIN >> 8);
        let both = u64::from(self.state) << 16 | u64::from(u16::from_be_bytes(*next));
        self.state = (both >> (16 - 8 * count)) as u32;
        self.rest = self.rest.get(count..)?;
        Some(())
    }

    #[cold]
    fn renew_at_end(&mut self) -> Option<()> {
        while self.state < STATE_MIN {
            let (byte, rest) = self.rest.split_first()?;
            self.state = self.state << 8 | u32::from(*byte);
            self.rest = rest;
        }
        Some(())
    }

    /// Have all symbols of a code without anything behind it been taken?
    pub(super) const fn is_at_end(&self) -> bool {
        self.state == STATE_MIN && self.rest.is_empty()
    }

    /// The bytes behind the code; `None` if not all its symbols have been taken, or some were never there.
    pub(super) fn end(self) -> Option<&'d [u8]> {
        (self.state == STATE_MIN).then_some(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn symbols(contexts: u8) -> impl Strategy<Value = Vec<Coded>> {
        let symbol = prop_oneof![0u16..4, 0u16..40, 0u16..SYMBOLS_MAX];
        let coded = (0..contexts, symbol).prop_map(|(context, symbol)| Coded { context, symbol });
        proptest::collection::vec(coded, 0..300)
    }

    proptest! {
        /// What is coded comes back, whatever the tables were learned from, also through the tables' written form.
        #[test]
        fn symbols_come_back(learned in symbols(3), coded in symbols(3)) {
            let mut counts = Counts::new(3);
            counts.see(&learned);
            let mut written = Vec::new();
            let model = Model::learn(&counts, 0..0, PlainBytes { bits_min: 8.0, times: 1 });
            model.write(&mut written);
            let mut rest = written.as_slice();
            let read = Model::read(&mut rest, 3, 0..0).unwrap();
            prop_assert_eq!(&read.sizes, &model.sizes);
            prop_assert!(rest.is_empty());
            let mut bytes = Vec::new();
            model.encode(&coded, &mut bytes);
            if let Some((first, _)) = coded.split_first() {
                let mut decoder = read.decoder(&bytes).unwrap();
                for Coded { context, symbol } in std::iter::once(first).chain(&coded[1..]) {
                    prop_assert_eq!(decoder.next(*context), Some(*symbol));
                }
                prop_assert_eq!(decoder.end(), Some(&[][..]));
            } else {
                prop_assert!(bytes.is_empty());
            }
        }

        /// Any bytes: some tables that write what they were read from, or none.
        #[test]
        fn any_bytes_are_tables_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut rest = bytes.as_slice();
            if let Some(model) = Model::read(&mut rest, 1, 0..0) {
                let mut written = Vec::new();
                model.write(&mut written);
                prop_assert_eq!(&bytes[..bytes.len() - rest.len()], &written[..]);
            }
        }

        /// Any bytes decode to something, and end.
        #[test]
        fn any_bytes_decode_or_fail(learned in symbols(1), bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut counts = Counts::new(1);
            counts.see(&learned);
            let model = Model::learn(&counts, 0..0, PlainBytes { bits_min: 8.0, times: 1 });
            if let Some(mut decoder) = model.decoder(&bytes) {
                for _ in 0..2000 {
                    match decoder.next(0) {
                        Some(symbol) => prop_assert!(symbol < SYMBOLS_MAX),
                        None => break,
                    }
                }
            }
        }
    }

    /// The point of it all: a skewed source takes about its entropy.
    #[test]
    fn the_common_is_short() {
        let coded: Vec<Coded> =
            (0..8000u16).map(|at| Coded { context: 0, symbol: u16::from(at % 16 == 0) }).collect();
        let mut counts = Counts::new(1);
        counts.see(&coded);
        let mut bytes = Vec::new();
        Model::learn(&counts, 0..0, PlainBytes { bits_min: 8.0, times: 1 }).encode(&coded, &mut bytes);
        // 0.337 bits a symbol is the entropy; 337 bytes.
        assert!(bytes.len() < 350, "{}", bytes.len());
    }
}
