//! Pages of samples: pixels, sound, readings. No byte comes twice, so zstd finds nothing, but each is close to its neighbours.
//!
//! Each byte is predicted from the bytes before it that belong to the same channel (red, green, blue, ...), and what is left is
//! written in few bits if it is small (Rice codes whose parameter follows the page: Weinberger, Seroussi and Sapiro,
//! LOCO-I, 2000). Nothing is set up: the page carries all it takes.
//!
//! ```text
//! shape, 1:    bits 0-1 channels - 1 · bit 2 what the first channel got wrong is taken off the second and third
//!              · bits 3-4 predictor: 0 left, 1 slope, 2 row
//! silent, 1:   a bit for each channel that is always as predicted and has no codes
//! distance, 2: bytes of a row; only of the predictor row
//! the first byte of each channel · the codes of all others, from the lowest bit on; unused bits are zero
//! ```

use thiserror::Error;

use crate::page::{PAGE_BYTES, Page};

mod bits;
mod rates;
mod shape;

use bits::{BitReader, BitWriter};
use rates::{Rates, folded, unfolded};
use shape::{Predict, Shape, Work};

/// Most channels.
const CHANNELS_MAX: usize = 4;

/// A page that takes fewer bytes than this in another way would hardly be smaller as samples.
const WORTH_FROM: usize = 512;

/// Why bytes are not a page of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeSamplesError {
    /// A shape that no encoder writes.
    #[error("a page of samples has no such shape")]
    Shape,
    /// The codes end before the page does.
    #[error("the codes of a page of samples break off")]
    Short,
    /// They go on behind the last one.
    #[error("the codes of a page of samples go on behind its end")]
    Long,
}

/// Appends the page to `out` if that takes at most `max_bytes`; otherwise leaves it as it was and says `false`.
pub(crate) fn encode(page: &Page, max_bytes: usize, out: &mut Vec<u8>) -> bool {
    if max_bytes < WORTH_FROM {
        return false;
    }
    let Some(shape) = Shape::of(page, max_bytes) else { return false };
    let start = out.len();
    let silent = shape.silent(page);
    shape.write(silent, out);
    out.extend_from_slice(&page[..shape.channels()]);
    shape.with(Encode { page, silent, bits: BitWriter::new(out) });
    let fits = out.len() - start <= max_bytes;
    if !fits {
        out.truncate(start);
    }
    fits
}

struct Encode<'w> {
    page: &'w Page,
    silent: u8,
    bits: BitWriter<'w>,
}

impl Work for Encode<'_> {
    type Done = ();

    fn run<const C: usize, P: Predict>(mut self, predict: P, correlated: bool) {
        let mut rates = Rates::<C>::new();
        shape::errors::<C, P>(self.page, predict, correlated, C..PAGE_BYTES, |channel, error| {
            if self.silent & 1 << channel == 0 {
                let number = folded(error);
                self.bits.put(number, rates.plain_bits(channel));
                rates.learn(channel, number);
            }
        });
        self.bits.end();
    }
}

/// The page that an encoder wrote as samples. The bytes may come from anywhere; nothing but `page` is written.
pub fn decode(bytes: &[u8], page: &mut Page) -> Result<(), DecodeSamplesError> {
    let (shape, silent, rest) = Shape::read(bytes).ok_or(DecodeSamplesError::Shape)?;
    let (firsts, codes) = rest.split_at_checked(shape.channels()).ok_or(DecodeSamplesError::Short)?;
    page[..firsts.len()].copy_from_slice(firsts);
    shape.with(Decode { page, silent, bits: BitReader::new(codes) })
}

struct Decode<'w, 'd> {
    page: &'w mut Page,
    silent: u8,
    bits: BitReader<'d>,
}

impl Work for Decode<'_, '_> {
    type Done = Result<(), DecodeSamplesError>;

    fn run<const C: usize, P: Predict>(self, predict: P, correlated: bool) -> Self::Done {
        let Self { page, silent, mut bits } = self;
        let mut rates = Rates::<C>::new();
        let mut left: [u8; C] = std::array::from_fn(|channel| page[channel]);
        let mut before = left;
        for start in (C..PAGE_BYTES).step_by(C) {
            let mut first = 0;
            for channel in 0..C.min(PAGE_BYTES - start) {
                let mut error = 0;
                if silent & 1 << channel == 0 {
                    let number = bits.take(rates.plain_bits(channel)).ok_or(DecodeSamplesError::Short)?;
                    rates.learn(channel, number);
                    error = unfolded(number);
                }
                if correlated {
                    error = shape::with_first(channel, error, &mut first);
                }
                let expected = predict.expected::<C>(page, start + channel, left[channel], before[channel]);
                before[channel] = left[channel];
                left[channel] = expected.wrapping_add(error);
                page[start + channel] = left[channel];
            }
        }
        if bits.is_at_end() { Ok(()) } else { Err(DecodeSamplesError::Long) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes that each depend on the one so many before, with some noise.
    fn smooth(channels: usize, row: usize, noise: u8, seed: u64) -> Page {
        let mut page = [0; PAGE_BYTES];
        let mut state = seed | 1;
        for at in 0..PAGE_BYTES {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let left = at.checked_sub(channels).map_or(100, |left| page[left]);
            let above = at.checked_sub(row).map_or(left, |above| page[above]);
            let noise = if noise == 0 { 0 } else { (state >> 40) as u8 % noise };
            page[at] = ((u16::from(left) + u16::from(above)) / 2) as u8;
            page[at] = page[at].wrapping_add(noise);
        }
        page
    }

    proptest! {
        /// What is written comes back, in every shape, and is never longer than it may be.
        #[test]
        fn pages_come_back(
            channels in 1usize..5, row in 5usize..3000, noise in 0u8..40, seed: u64, max in 0usize..PAGE_BYTES,
            noisy: bool,
        ) {
            let mut page = smooth(channels, row, noise, seed);
            if noisy {
                page[..2000].iter_mut().zip(seed.to_le_bytes().iter().cycle()).for_each(|(byte, mix)| {
                    *byte = byte.wrapping_mul(*mix | 1);
                });
            }
            let mut bytes = vec![7];
            if encode(&page, max, &mut bytes) {
                prop_assert!(bytes.len() <= 1 + max);
                let mut back = [1; PAGE_BYTES];
                prop_assert_eq!(decode(&bytes[1..], &mut back), Ok(()));
                prop_assert!(back == page);
                bytes.push(0);
                prop_assert_eq!(decode(&bytes[1..], &mut back), Err(DecodeSamplesError::Long));
            } else {
                prop_assert_eq!(bytes.len(), 1);
            }
        }

        /// Every shape, also one that no page would be given.
        #[test]
        fn every_shape_comes_back(shape in any::<[u8; 4]>(), seed: u64, noise in 0u8..60) {
            let page = smooth(3, 300, noise, seed);
            let Some((shape, _, _)) = Shape::read(&shape) else { return Ok(()) };
            let silent = shape.silent(&page);
            let mut written = Vec::new();
            shape.write(silent, &mut written);
            prop_assert_eq!(Shape::read(&written), Some((shape, silent, &[][..])));
            written.extend_from_slice(&page[..shape.channels()]);
            shape.with(Encode { page: &page, silent, bits: BitWriter::new(&mut written) });
            let mut back = [1; PAGE_BYTES];
            prop_assert_eq!(decode(&written, &mut back), Ok(()));
            prop_assert!(back == page);
        }

        /// Any bytes are some page, or none.
        #[test]
        fn any_bytes_decode_or_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..3000), plain: bool) {
            if plain && bytes.len() > 1 {
                bytes[0] &= 0b1111;
                bytes[1] = 0;
            }
            let mut page = [0; PAGE_BYTES];
            _ = decode(&bytes, &mut page);
        }
    }

    #[test]
    fn what_is_smooth_takes_little_and_what_is_not_is_left_to_others() {
        let mut bytes = Vec::new();
        for (channels, row) in [(1, 2000), (3, 2000), (4, 2000), (1, 320), (3, 960)] {
            assert!(encode(&smooth(channels, row, 4, 9), PAGE_BYTES / 2, &mut bytes), "{channels} {row}");
        }
        let mut state = 1u64;
        let noise = [(); PAGE_BYTES].map(|()| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        });
        assert!(!encode(&noise, PAGE_BYTES - 1, &mut bytes));
    }

    #[test]
    fn errors_fold_and_unfold() {
        for error in 0..=u8::MAX {
            assert_eq!(unfolded(folded(error)), error);
            assert_eq!(rates::size(folded(error)), u32::from((error as i8).unsigned_abs()));
        }
    }
}
