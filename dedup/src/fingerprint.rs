//! A page's few chunk hashes: what is asked of the registry to find pages that look like it.
//!
//! A chunk is any 64 bytes in a row, at any byte offset. Its hash is `sum T[byte] << distance from the
//! end` ("gear"), where `T` is a table of secret numbers of the domain. Moving one byte on costs a shift, an
//! addition and one table look-up: a byte that leaves the chunk has been shifted out of the 64 bits by then.
//! The oldest bytes have a say in the highest bits only, so it is these that decide which hashes are small.
//! `T[0]` is such that the hash of a chunk of zeros is nearly the largest; it is no chunk of any page, nor is what is above it.
//!
//! Two ways to pick the few:
//!
//! * **Bottom** (the default): the chunks with the smallest hashes of all. Two pages that share a part
//!   of their chunks share the same part of their smallest ones, wherever in the page these lie.
//! * **Value** (the paper, section 4.1): the first chunks whose last two bytes match a pattern.

use std::fmt;

use crate::key::DomainKey;
use crate::page::{CHUNK_BYTES, PAGE_BYTES, Page, is_zero};

/// Most chunk hashes in one fingerprint. Bounds registry messages and keeps a fingerprint inline.
pub const CHUNKS_MAX: usize = 32;

/// How many chunks stand for a page: 1 to [`CHUNKS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkCount(u8);

impl ChunkCount {
    /// `None` outside 1..=32.
    pub const fn new(count: u8) -> Option<Self> {
        if count == 0 || count as usize > CHUNKS_MAX { None } else { Some(Self(count)) }
    }

    /// The count.
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn constant(count: u8) -> Self {
        match Self::new(count) {
            Some(count) => count,
            None => panic!("a constant chunk count is out of range"),
        }
    }
}

/// Which chunks of a page are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// The first chunks whose last two bytes match [`VALUE_PATTERN`], without overlap.
    Value {
        /// How many.
        chunks: ChunkCount,
    },
    /// The chunks with the smallest hashes.
    Bottom {
        /// How many.
        chunks: ChunkCount,
    },
}

/// Bottom 10. Measured on two Python processes, ASLR on, registry hints only: 5 chunks leave 16.9 % of the bytes, 10 leave
/// 15.7 %, 20 leave 15.2 %. Each chunk costs an entry (up to 24 bytes) in the registry for every page of every base: 10
/// are 6 % of a base page, 20 would be 12 %, which eats what they find.
impl Default for Sampling {
    fn default() -> Self {
        Self::Bottom { chunks: ChunkCount::constant(10) }
    }
}

/// The bits of a chunk's last two bytes (little-endian) that value sampling looks at. Five bits: 1 chunk in 32 of
/// random bytes. The paper fixes neither pattern nor density; 1/32 is dense enough that a page with any content
/// nearly always has five, and both bytes have a say.
pub const VALUE_MASK: u16 = 0x0307;

/// What these bits must be. Not zero in either byte, or pages of small integers would be all matches.
pub const VALUE_PATTERN: u16 = 0x0105;

/// Keyed hash of one chunk. Equal hashes are a hint that chunks are equal, never more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChunkHash(u64);

impl ChunkHash {
    /// From the number that files and messages carry.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number, as files and messages carry it.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The chunk hashes that stand for a page. No two are equal; may be empty.
#[derive(Clone, Copy)]
pub struct Fingerprint {
    hashes: [ChunkHash; CHUNKS_MAX],
    count: u8,
}

impl Fingerprint {
    /// Of a page that has nothing to be found by.
    pub const EMPTY: Self = Self { hashes: [ChunkHash(0); CHUNKS_MAX], count: 0 };

    /// The hashes, smallest first for bottom sampling, in page order for value sampling.
    pub fn hashes(&self) -> &[ChunkHash] {
        &self.hashes[..usize::from(self.count)]
    }

    /// Nothing to look up?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn push(&mut self, hash: ChunkHash) {
        self.hashes[usize::from(self.count)] = hash;
        self.count += 1;
    }
}

impl PartialEq for Fingerprint {
    fn eq(&self, other: &Self) -> bool {
        self.hashes() == other.hashes()
    }
}

impl Eq for Fingerprint {}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_list().entries(self.hashes()).finish()
    }
}

/// What a byte counts for when it comes into the window.
type Table = [u64; 256];

/// How many bits of `T[0]` are zero at the top. With none, half of all chunks would be above a chunk of zeros; with many, bytes of
/// zeros that follow a small hash would make several more, and a fingerprint would be of one place of the page.
const ZERO_BITS: u32 = 3;

const _: () = assert!(CHUNK_BYTES == u64::BITS as usize);

/// How many times the expected k-th smallest of all chunks the bar of the first pass is: then most pages need no second one.
const BAR: u64 = 2;

/// How much higher the bar of the next pass is.
const HIGHER: u64 = 16;

/// Half of the steps a window takes through a page.
const HALF: usize = (PAGE_BYTES - CHUNK_BYTES) / 2;

const _: () = assert!(2 * HALF + CHUNK_BYTES == PAGE_BYTES);

/// Makes fingerprints in one domain, by one rule.
#[derive(Clone)]
pub struct Fingerprinter {
    table: Box<Table>,
    /// The hash of a chunk of zeros.
    zeros: u64,
    /// Scrambles a chosen hash before anyone sees it, so that the registry gets evenly spread keys.
    mask: u64,
    sampling: Sampling,
}

impl Fingerprinter {
    /// A fingerprinter for pages of this domain. Fingerprints of different domains or rules never meet.
    pub fn new(domain: &DomainKey, sampling: Sampling) -> Self {
        let mut number = domain.chunk_numbers();
        let mut table = Box::new([0; 256]);
        table.iter_mut().for_each(|slot| *slot = number());
        table[0] = table[0] >> ZERO_BITS | 1;
        let zeros = table[0].wrapping_neg();
        Self { table, zeros, mask: number(), sampling }
    }

    /// The rule in use.
    pub const fn sampling(&self) -> Sampling {
        self.sampling
    }

    /// The fingerprint of a page. A page of zeros has none.
    pub fn fingerprint(&self, page: &Page) -> Fingerprint {
        if is_zero(page) {
            return Fingerprint::EMPTY;
        }
        match self.sampling {
            Sampling::Value { chunks } => self.by_value(page, chunks.get()),
            Sampling::Bottom { chunks } => self.bottom(page, chunks.get()),
        }
    }

    fn bottom(&self, page: &Page, chunks: usize) -> Fingerprint {
        let expected = u64::MAX / (PAGE_BYTES - CHUNK_BYTES + 1) as u64 * chunks as u64;
        let mut bar = expected.saturating_mul(BAR).min(self.zeros);
        let mut smallest = Smallest::new(chunks);
        loop {
            self.pass(page, &mut smallest, bar);
            if smallest.count == chunks || bar == self.zeros {
                break;
            }
            // Pages with too little variety to fill the list under the bar get another pass.
            smallest.count = 0;
            bar = bar.saturating_mul(HIGHER).min(self.zeros);
        }
        let mut fingerprint = Fingerprint::EMPTY;
        smallest.kept().iter().for_each(|&hash| fingerprint.push(self.finish(hash)));
        fingerprint
    }

    /// Shows every chunk of the page with a hash below the bar to the list.
    ///
    /// Two windows move at once, one through each half of the page: a step has to wait for the step before, and two
    /// can wait together. The halves share the chunk in the middle.
    fn pass(&self, page: &Page, smallest: &mut Smallest, mut bar: u64) {
        let (mut low, mut high) =
            (self.chunk(&page[..CHUNK_BYTES]), self.chunk(&page[HALF..HALF + CHUNK_BYTES]));
        for hash in [low, high] {
            if hash < bar {
                bar = smallest.offer(hash, bar);
            }
        }
        let halves = page[CHUNK_BYTES..CHUNK_BYTES + HALF].iter().zip(&page[CHUNK_BYTES + HALF..]);
        for (low_enters, high_enters) in halves {
            low = self.step(low, *low_enters);
            high = self.step(high, *high_enters);
            if low < bar {
                bar = smallest.offer(low, bar);
            }
            if high < bar {
                bar = smallest.offer(high, bar);
            }
        }
        smallest.settle(bar);
    }

    #[inline]
    fn step(&self, hash: u64, enters: u8) -> u64 {
        (hash << 1).wrapping_add(self.table[usize::from(enters)])
    }

    fn by_value(&self, page: &Page, chunks: usize) -> Fingerprint {
        let mut fingerprint = Fingerprint::EMPTY;
        let mut end = CHUNK_BYTES;
        while end <= PAGE_BYTES && fingerprint.hashes().len() < chunks {
            let last = u16::from_le_bytes([page[end - 2], page[end - 1]]);
            if last & VALUE_MASK != VALUE_PATTERN {
                end += 1;
                continue;
            }
            let hash = self.finish(self.chunk(&page[end - CHUNK_BYTES..end]));
            if !fingerprint.hashes().contains(&hash) {
                fingerprint.push(hash);
            }
            end += CHUNK_BYTES;
        }
        fingerprint
    }

    fn chunk(&self, bytes: &[u8]) -> u64 {
        bytes.iter().fold(0, |hash, &byte| self.step(hash, byte))
    }

    /// One to one, so distinct chunks stay distinct.
    fn finish(&self, hash: u64) -> ChunkHash {
        let mut mixed = hash ^ self.mask;
        mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ChunkHash(mixed ^ (mixed >> 32))
    }
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Fingerprinter").field("sampling", &self.sampling).finish_non_exhaustive()
    }
}

/// The k smallest distinct numbers seen so far, once they are settled; before that, with others among them.
struct Smallest {
    numbers: [u64; 2 * CHUNKS_MAX],
    count: usize,
    chunks: usize,
}

impl Smallest {
    const fn new(chunks: usize) -> Self {
        Self { numbers: [0; _], count: 0, chunks }
    }

    fn kept(&self) -> &[u64] {
        &self.numbers[..self.count]
    }

    /// Takes in a number below the bar. Gives the new bar.
    #[cold]
    #[inline(never)]
    fn offer(&mut self, number: u64, bar: u64) -> u64 {
        // Runs of one byte give the same hash over and over.
        if self.kept().last() == Some(&number) {
            return bar;
        }
        self.numbers[self.count] = number;
        self.count += 1;
        if self.count == self.numbers.len() { self.settle(bar) } else { bar }
    }

    /// Sorts, and keeps no more than are wanted. Once these are all there, only what is below the largest of them is.
    fn settle(&mut self, bar: u64) -> u64 {
        let numbers = &mut self.numbers[..self.count];
        numbers.sort_unstable();
        let mut kept = 0;
        for at in 0..numbers.len() {
            if kept == 0 || numbers[kept - 1] != numbers[at] {
                numbers[kept] = numbers[at];
                kept += 1;
            }
        }
        self.count = kept.min(self.chunks);
        if self.count == self.chunks { self.numbers[self.count - 1] } else { bar }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::page::ZERO_PAGE;

    const KEY: DomainKey = DomainKey::from_bytes([3; 32]);

    fn bottom(chunks: u8) -> Fingerprinter {
        Fingerprinter::new(&KEY, Sampling::Bottom { chunks: ChunkCount::new(chunks).unwrap() })
    }

    fn value(chunks: u8) -> Fingerprinter {
        Fingerprinter::new(&KEY, Sampling::Value { chunks: ChunkCount::new(chunks).unwrap() })
    }

    fn noise(seed: u64) -> Page {
        let mut page = ZERO_PAGE;
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
        page
    }

    fn pages() -> impl Strategy<Value = Page> {
        let sparse = proptest::collection::vec((0usize..PAGE_BYTES, any::<u8>()), 0..30);
        prop_oneof![
            any::<u64>().prop_map(noise),
            any::<u8>().prop_map(|byte| [byte; PAGE_BYTES]),
            sparse.clone().prop_map(|bytes| {
                let mut page = ZERO_PAGE;
                bytes.into_iter().for_each(|(at, byte)| page[at] = byte);
                page
            }),
            (any::<u64>(), 1usize..100).prop_map(|(seed, period)| {
                let from = noise(seed);
                std::array::from_fn(|at| from[at % period])
            }),
            (any::<u64>(), 0usize..PAGE_BYTES).prop_map(|(seed, from)| {
                let mut page = noise(seed);
                page[from..].fill(0);
                page
            }),
        ]
    }

    /// The chunk hash by its definition, nothing rolled.
    fn by_definition(maker: &Fingerprinter, chunk: &[u8]) -> u64 {
        chunk
            .iter()
            .zip((0..64).rev())
            .fold(0, |sum, (byte, distance)| sum.wrapping_add(maker.table[usize::from(*byte)] << distance))
    }

    proptest! {
        /// The fast pass finds what looking at every chunk and sorting finds.
        #[test]
        fn bottom_is_the_smallest_of_all_chunks(page in pages(), chunks in 1u8..=32) {
            let maker = bottom(chunks);
            let mut all: Vec<u64> = page.windows(CHUNK_BYTES).map(|chunk| by_definition(&maker, chunk)).collect();
            all.retain(|hash| *hash < maker.zeros);
            all.sort_unstable();
            all.dedup();
            all.truncate(chunks.into());
            let expected: Vec<ChunkHash> = all.into_iter().map(|hash| maker.finish(hash)).collect();
            let found = maker.fingerprint(&page);
            prop_assert_eq!(found.hashes(), expected);
        }

        /// Value sampling: first matches, no overlap, no chunk twice.
        #[test]
        fn value_is_the_first_matching_chunks(page in pages(), chunks in 1u8..=32) {
            let maker = value(chunks);
            let mut expected = Vec::new();
            let mut free_from = 0;
            for (start, chunk) in page.windows(CHUNK_BYTES).enumerate() {
                let last = u16::from_le_bytes([chunk[62], chunk[63]]);
                if start >= free_from && last & VALUE_MASK == VALUE_PATTERN {
                    free_from = start + CHUNK_BYTES;
                    let hash = maker.finish(by_definition(&maker, chunk));
                    if !expected.contains(&hash) {
                        expected.push(hash);
                    }
                }
            }
            expected.truncate(chunks.into());
            let found = maker.fingerprint(&page);
            prop_assert_eq!(found.hashes(), expected);
        }

        /// Tenants with the same bytes have nothing in common.
        #[test]
        fn domains_never_match(page in pages()) {
            let other = Fingerprinter::new(&KEY.for_tenant("b"), Sampling::default());
            let ours = Fingerprinter::new(&KEY, Sampling::default()).fingerprint(&page);
            let theirs = other.fingerprint(&page);
            prop_assert!(ours.hashes().iter().all(|hash| !theirs.hashes().contains(hash)));
        }

        /// Content that moved within the page is still found.
        #[test]
        fn bottom_survives_a_shift(seed in any::<u64>(), by in 1usize..1500) {
            let page = noise(seed);
            let mut moved = noise(seed ^ 1);
            moved[by..].copy_from_slice(&page[..PAGE_BYTES - by]);
            let maker = bottom(32);
            let (a, b) = (maker.fingerprint(&page), maker.fingerprint(&moved));
            prop_assert!(a.hashes().iter().any(|hash| b.hashes().contains(hash)));
        }
    }

    #[test]
    fn zeros_have_no_fingerprint() {
        for maker in [bottom(10), value(5)] {
            assert!(maker.fingerprint(&ZERO_PAGE).is_empty());
        }
        // A byte at the very end makes one chunk that is not zero, a byte in the middle 64.
        let mut page = ZERO_PAGE;
        page[PAGE_BYTES - 1] = 1;
        assert_eq!(bottom(32).fingerprint(&page).hashes().len(), 1);
        page[2000] = 1;
        assert_eq!(bottom(32).fingerprint(&page).hashes().len(), 32);
    }

    #[test]
    fn noise_nearly_always_has_five_value_samples() {
        let maker = value(5);
        let full = (0..1000).filter(|seed| maker.fingerprint(&noise(*seed)).hashes().len() == 5).count();
        assert!(full >= 995, "{full} of 1000");
    }

    #[test]
    fn chunk_counts_out_of_range_do_not_exist() {
        assert!(ChunkCount::new(0).is_none());
        assert!(ChunkCount::new(33).is_none());
        assert_eq!(ChunkCount::new(32).map(ChunkCount::get), Some(32));
    }
}
