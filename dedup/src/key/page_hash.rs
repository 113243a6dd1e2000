//! The keyed hash of a page: what a page that comes back has to show.
//!
//! A page is hashed whenever it is stored and whenever it comes back, so this is a good part of what reading a page costs. A
//! universal hash with secret numbers (NH of UMAC, RFC 4418: sums of products of 32-bit words) makes each KiB 16 bytes, with a
//! handful of vector instructions; keyed blake3 makes what is left of the four KiB, 64 bytes, the hash that anyone may see.
//!
//! Two pages that differ meet in the first half with a chance of 2^-64 for whoever does not know the secret numbers, and
//! the second half tells nothing about them.

use std::fmt;
use std::sync::Arc;

use super::{DomainKey, purpose, truncate};
use crate::page::{PAGE_BYTES, Page, ZERO_PAGE};

/// Bytes that are hashed with one set of secret numbers.
const PART_BYTES: usize = 1024;

/// 32-bit words of a part.
const PART_WORDS: usize = PART_BYTES / 4;

/// Words that are added up side by side: two vectors of 16 bytes.
const LANES: usize = 8;

/// Independent sums over a part. Each errs with a chance of 2^-32.
const SUMS: usize = 2;

/// The numbers of each sum are those of the one before, moved on by this much: as good as new ones, as every difference meets
/// a number in each sum that the sums before have not used on it.
const SHIFT: usize = LANES;

/// Bytes that all sums of a page take.
const SUMMED_BYTES: usize = PAGE_BYTES / PART_BYTES * SUMS * 8;

/// Keyed hash of one page, 64 bits. A rebuilt page is only used if it has this hash.
///
/// 64 bits are enough, because each page is only ever held against its own hash. An accident passes once in 2^63 damaged
/// pages. To do it on purpose takes the key: without it nobody can tell which hash a page has, so all that is left is to
/// try, and each try that fails is seen. And whoever changes an image instead of a base page has its checksum and its
/// seal to pass first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHash(pub [u8; 8]);

impl fmt::Display for PageHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// Hashes pages of one domain. Cheap to clone, so each worker may hold its own.
#[derive(Clone)]
pub struct PageHasher {
    secrets: Arc<Secrets>,
    zero: PageHash,
}

struct Secrets {
    numbers: [u32; PART_WORDS + (SUMS - 1) * SHIFT],
    key: [u8; 32],
}

impl PageHasher {
    /// The hasher of a domain.
    pub fn new(domain: &DomainKey) -> Self {
        let mut stream = blake3::Hasher::new_derive_key(purpose::PAGE_HASH).update(&domain.0).finalize_xof();
        let mut secrets = Secrets { numbers: [0; _], key: [0; 32] };
        stream.fill(&mut secrets.key);
        for number in &mut secrets.numbers {
            let mut bytes = [0; 4];
            stream.fill(&mut bytes);
            *number = u32::from_le_bytes(bytes);
        }
        let zero = secrets.hash(&ZERO_PAGE);
        Self { secrets: Arc::new(secrets), zero }
    }

    /// The hash of a page.
    pub fn hash(&self, page: &Page) -> PageHash {
        self.secrets.hash(page)
    }

    /// The hash of the page of zeros, which is by far the most common one.
    pub const fn zero(&self) -> PageHash {
        self.zero
    }

    /// Bytes it takes in memory, all its clones together.
    pub(crate) const fn memory_bytes() -> usize {
        size_of::<Secrets>()
    }
}

impl fmt::Debug for PageHasher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PageHasher(..)")
    }
}

impl Secrets {
    fn hash(&self, page: &Page) -> PageHash {
        let mut summed = [0; SUMMED_BYTES];
        let parts = page.as_chunks::<PART_BYTES>().0.iter().flat_map(|part| self.sums(part));
        for (bytes, sum) in summed.as_chunks_mut().0.iter_mut().zip(parts) {
            *bytes = sum.to_le_bytes();
        }
        PageHash(truncate(blake3::keyed_hash(&self.key, &summed).as_bytes()))
    }

    fn sums(&self, part: &[u8; PART_BYTES]) -> [u64; SUMS] {
        std::array::from_fn(|number| sum(part, &self.numbers[number * SHIFT..]))
    }
}

/// One NH: to each word a number is added, and the products of neighbours are added up.
///
/// As lanes of 64 bits with two words in each, which is how a compiler sees that vector instructions can do it.
#[inline]
fn sum(part: &[u8; PART_BYTES], numbers: &[u32]) -> u64 {
    const WORD: u64 = u32::MAX as u64;
    let mut sums = [0u64; LANES / 2];
    for (bytes, numbers) in part.as_chunks::<{ LANES * 4 }>().0.iter().zip(numbers.as_chunks::<LANES>().0) {
        let words = bytes.as_chunks::<4>().0;
        let added: [u32; LANES] =
            std::array::from_fn(|at| u32::from_le_bytes(words[at]).wrapping_add(numbers[at]));
        for (sum, pair) in sums.iter_mut().zip(added.as_chunks::<2>().0) {
            let both = u64::from(pair[0]) | u64::from(pair[1]) << 32;
            *sum = sum.wrapping_add((both & WORD) * (both >> 32));
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: DomainKey = DomainKey::from_bytes([7; 32]);

    /// NH by its definition, word by word.
    fn by_definition(part: &[u8], numbers: &[u32]) -> u64 {
        let word = |at: usize| u32::from_le_bytes(part[4 * at..4 * at + 4].try_into().unwrap());
        let product = |at: usize| {
            u64::from(word(at).wrapping_add(numbers[at]))
                * u64::from(word(at + 1).wrapping_add(numbers[at + 1]))
        };
        (0..PART_WORDS).step_by(2).map(product).fold(0, u64::wrapping_add)
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_sum(seed: u64, changes in proptest::collection::vec((0..PART_BYTES, any::<u8>()), 0..9)) {
            let mut part = [0; PART_BYTES];
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut part);
            for (at, byte) in changes {
                part[at] = byte;
            }
            let secrets = &PageHasher::new(&KEY).secrets;
            let expected = [0, SHIFT].map(|from| by_definition(&part, &secrets.numbers[from..]));
            prop_assert_eq!(secrets.sums(&part), expected);
        }

        /// Any change anywhere is seen, and a page that is moved about in itself is another page.
        #[test]
        fn another_page_has_another_hash(seed: u64, at in 0..PAGE_BYTES, flip in 1u8..) {
            let hasher = PageHasher::new(&KEY);
            let mut page = ZERO_PAGE;
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page);
            let mut hashes = vec![hasher.hash(&page)];
            page.rotate_left(PART_BYTES);
            hashes.push(hasher.hash(&page));
            page[at] ^= flip;
            hashes.push(hasher.hash(&page));
            hashes.sort();
            hashes.dedup();
            prop_assert_eq!(hashes.len(), 3);
        }
    }

    #[test]
    fn the_kept_zero_hash_is_the_hash_of_zeros() {
        let hasher = PageHasher::new(&KEY);
        assert_eq!(hasher.zero(), hasher.hash(&ZERO_PAGE));
        let mut page = ZERO_PAGE;
        page[4095] = 1;
        assert_ne!(hasher.zero(), hasher.hash(&page));
    }

    #[test]
    fn debug_output_tells_nothing_of_the_secrets() {
        assert_eq!(format!("{:?}", PageHasher::new(&KEY)), "PageHasher(..)");
    }
}
