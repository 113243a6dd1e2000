//! Counts bytes of one memory that another one has, too. Pure; equal hashes are never believed without a comparison.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Same {
    /// Bytes that were looked at.
    pub(super) bytes: u64,
    /// Of them: the other has them.
    pub(super) same: u64,
    /// Of these: in chunks of zeros, which say little about what two functions share.
    pub(super) zeros: u64,
}

impl Same {
    /// Not a number where nothing was looked at.
    pub(super) fn fraction(&self) -> f64 {
        self.same as f64 / self.bytes as f64
    }

    /// Of all bytes.
    pub(super) fn zero_fraction(&self) -> f64 {
        self.zeros as f64 / self.bytes as f64
    }

    fn add(&mut self, bytes: &[u8]) {
        self.same += bytes.len() as u64;
        if bytes.iter().all(|byte| *byte == 0) {
            self.zeros += bytes.len() as u64;
        }
    }
}

/// How much of `of` is in `with`, as the paper counts: chunks at multiples of twice their size in both, a match grown to twice that size at
/// most. No byte counts twice.
pub(super) fn sampled(of: &[u8], with: &[u8], size: usize) -> Same {
    let step = 2 * size;
    let chunk = |bytes: &'_ [u8], at: usize| bytes.get(at..at + size).map(|_| at);
    let mut known: HashMap<&[u8], usize> = HashMap::new();
    for at in (0..with.len()).step_by(step).filter_map(|at| chunk(with, at)) {
        known.entry(&with[at..at + size]).or_insert(at);
    }
    let mut same = Same { bytes: of.len() as u64, ..Same::default() };
    let mut counted = 0;
    for at in (0..of.len()).step_by(step).filter_map(|at| chunk(of, at)) {
        let Some(&there) = known.get(&of[at..at + size]) else { continue };
        let (after, after_there) = (at + size, there + size);
        let ahead = of[after..].iter().zip(&with[after_there..]).take(size);
        let ahead = ahead.take_while(|(a, b)| a == b).count();
        let behind = of[counted..at].iter().rev().zip(with[..there].iter().rev()).take(size - ahead);
        let behind = behind.take_while(|(a, b)| a == b).count();
        same.add(&of[at - behind..after + ahead]);
        counted = after + ahead;
    }
    same
}

/// How much of `of`, in chunks at multiples of their size, is anywhere in `with`.
pub(super) fn anywhere(of: &[u8], with: &[u8], size: usize) -> Same {
    let mut wanted: HashMap<u64, Vec<usize>, BuildHasherDefault<AsItIs>> = HashMap::default();
    let chunks = of.chunks_exact(size);
    let mut same = Same { bytes: (chunks.len() * size) as u64, ..Same::default() };
    for (number, chunk) in chunks.enumerate() {
        wanted.entry(hash(chunk)).or_default().push(number * size);
    }
    let filter = Filter::new(wanted.keys());
    roll(with, size, |at, hash| {
        if !filter.may_have(hash) {
            return;
        }
        let Some(places) = wanted.remove(&hash) else { return };
        let window = &with[at..at + size];
        let (here, others): (Vec<_>, Vec<_>) =
            places.into_iter().partition(|at| &of[*at..at + size] == window);
        here.iter().for_each(|at| same.add(&of[*at..at + size]));
        if !others.is_empty() {
            wanted.insert(hash, others);
        }
    });
    same
}

/// Odd, and without a pattern.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// A polynomial of the bytes: that of the next window comes from this one's with a few steps.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |hash: u64, byte| hash.wrapping_mul(FACTOR).wrapping_add(u64::from(*byte) + 1))
}

/// Tells every window of so many bytes: where it is, and its hash.
fn roll(bytes: &[u8], size: usize, mut tell: impl FnMut(usize, u64)) {
    let Some(first) = bytes.get(..size) else { return };
    let leaves = (1..size).fold(1_u64, |power, _| power.wrapping_mul(FACTOR));
    let mut now = hash(first);
    tell(0, now);
    for (at, (out, into)) in bytes.iter().zip(&bytes[size..]).enumerate() {
        now = now.wrapping_sub((u64::from(*out) + 1).wrapping_mul(leaves));
        now = now.wrapping_mul(FACTOR).wrapping_add(u64::from(*into) + 1);
        tell(at + 1, now);
    }
}

/// Answers most questions for what is not there without a look at the map.
struct Filter {
    bits: Vec<u64>,
    shift: u32,
}

/// Bits for each hash: few more are wrongly let through than one of sixteen.
const FILTER_BITS_EACH: usize = 16;

impl Filter {
    /// As small as it may be, so that the processor's caches hold it.
    fn new<'h>(hashes: impl ExactSizeIterator<Item = &'h u64>) -> Self {
        let count = (hashes.len() * FILTER_BITS_EACH).next_power_of_two().max(64);
        let mut filter = Self { bits: vec![0; count / 64], shift: 64 - count.trailing_zeros() };
        for hash in hashes {
            let (word, bit) = filter.place(*hash);
            filter.bits[word] |= bit;
        }
        filter
    }

    fn may_have(&self, hash: u64) -> bool {
        let (word, bit) = self.place(hash);
        self.bits[word] & bit != 0
    }

    const fn place(&self, hash: u64) -> (usize, u64) {
        let at = hash.wrapping_mul(FACTOR) >> self.shift;
        ((at >> 6) as usize, 1 << (at & 63))
    }
}

/// A key that is a hash already.
#[derive(Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.wrapping_mul(FACTOR).wrapping_add(u64::from(*byte)));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key.wrapping_mul(FACTOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_grows_to_twice_its_size_and_no_further() {
        // Chunks of 2 at multiples of 4: "ab" and "ef" here, "ab" and "EF" there.
        let same = sampled(b"abcdefgh", b"abcdEFgh", 2);
        assert_eq!(same, Same { bytes: 8, same: 4, zeros: 0 }, "abcd, and not the gh that no chunk leads to");
        // The second chunk matches, and grows back over what the first one had not.
        let same = sampled(b"xbcdefgh", b"abcdefgh", 2);
        assert_eq!(same.same, 4, "efgh: ahead comes first, and two more is all there may be");
        let same = sampled(b"xbcdefzz", b"abcdefgh", 2);
        assert_eq!(same.same, 4, "cdef: nothing ahead, so two behind");
    }

    #[test]
    fn no_byte_counts_twice() {
        assert_eq!(sampled(&[7; 64], &[7; 64], 4), Same { bytes: 64, same: 64, zeros: 0 });
        assert_eq!(sampled(&[0; 64], &[0; 64], 4).zeros, 64);
        assert!(sampled(b"", b"abcd", 2).fraction().is_nan());
    }

    #[test]
    fn what_has_moved_is_found_anywhere_only() {
        let (of, with) = (b"abcdefgh", b"_abcdefgh");
        assert_eq!(sampled(of, with, 2).same, 0);
        assert_eq!(anywhere(of, with, 4), Same { bytes: 8, same: 8, zeros: 0 });
        assert_eq!(anywhere(b"abcdabcdXXXX", b"zabcdz", 4).same, 8, "each chunk that is there counts");
        assert_eq!(anywhere(b"abcdefg", b"abcd", 4).bytes, 4, "an incomplete chunk is not looked at");
        assert_eq!(anywhere(b"abcd", b"ab", 4).same, 0);
    }

    #[test]
    fn windows_roll_to_the_same_hashes() {
        let bytes: Vec<u8> = (0..200_u32).map(|n| (n * n % 251) as u8).collect();
        let mut count = 0;
        roll(&bytes, 16, |at, rolled| {
            assert_eq!(rolled, hash(&bytes[at..at + 16]), "{at}");
            count += 1;
        });
        assert_eq!(count, 185);
    }
}
