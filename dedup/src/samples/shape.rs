//! How the samples of a page lie, and what predicts each of them.

use std::ops::Range;

use super::CHANNELS_MAX;
use crate::page::{PAGE_BYTES, Page};

/// What a byte is expected to be, by those before it.
pub(super) trait Predict: Copy {
    /// `left` is the byte before it in its channel, of `C` channels, and `before` the one before that, or `left` again.
    fn expected<const C: usize>(self, page: &Page, at: usize, left: u8, before: u8) -> u8;
}

/// What the one before it in its channel is.
#[derive(Debug, Clone, Copy)]
struct Left;

/// As far from that one as half the last step in its channel.
#[derive(Debug, Clone, Copy)]
struct Slope;

/// Among the one before it, the one in the row above, and what goes on as these two do: the one in the middle.
#[derive(Debug, Clone, Copy)]
struct Row(usize);

impl Predict for Left {
    #[inline]
    fn expected<const C: usize>(self, _page: &Page, _at: usize, left: u8, _before: u8) -> u8 {
        left
    }
}

impl Predict for Slope {
    #[inline]
    fn expected<const C: usize>(self, _page: &Page, _at: usize, left: u8, before: u8) -> u8 {
        ((3 * i32::from(left) - i32::from(before)) >> 1).clamp(0, 255) as u8
    }
}

impl Predict for Row {
    #[inline]
    fn expected<const C: usize>(self, page: &Page, at: usize, left: u8, _before: u8) -> u8 {
        let Some(corner) = at.checked_sub(self.0 + C) else { return left };
        let (corner, above) = (page[corner], page[corner + C]);
        let plane = i32::from(left) + i32::from(above) - i32::from(corner);
        plane.clamp(left.min(above).into(), left.max(above).into()) as u8
    }
}

/// Something to do for any shape, made anew for each so that it is fast.
pub(super) trait Work {
    /// What comes of it.
    type Done;

    fn run<const C: usize, P: Predict>(self, predict: P, correlated: bool) -> Self::Done;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Predictor {
    Left,
    Slope,
    /// Bytes of a row.
    Row(u16),
}

/// Rows are no shorter, as there would be channels instead, and no longer, as a page would have less than two.
const DISTANCES: Range<usize> = 64..PAGE_BYTES / 2;

const CHANNELS: u8 = 0b11;
const CORRELATED: u8 = 1 << 2;
const PREDICTOR_AT: u32 = 3;

/// How the samples of a page lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    channels: u8,
    /// Do the second and third channel go wrong as the first does?
    correlated: bool,
    predictor: Predictor,
}

impl Shape {
    pub(super) const fn channels(self) -> usize {
        self.channels as usize
    }

    /// Does the work for this shape.
    pub(super) fn with<W: Work>(self, work: W) -> W::Done {
        match self.channels {
            1 => self.with_channels::<1, W>(work),
            2 => self.with_channels::<2, W>(work),
            3 => self.with_channels::<3, W>(work),
            _ => self.with_channels::<CHANNELS_MAX, W>(work),
        }
    }

    fn with_channels<const C: usize, W: Work>(self, work: W) -> W::Done {
        match self.predictor {
            Predictor::Left => work.run::<C, _>(Left, self.correlated),
            Predictor::Slope => work.run::<C, _>(Slope, self.correlated),
            Predictor::Row(distance) => work.run::<C, _>(Row(distance.into()), self.correlated),
        }
    }

    /// The shape in which the page takes least, about; `None` if in none it would take no more than so many bytes.
    pub(super) fn of(page: &Page, max_bytes: usize) -> Option<Self> {
        let flat = (1..=CHANNELS_MAX as u8).flat_map(|channels| {
            let correlated = [false, true].into_iter().take(usize::from(channels).min(2));
            correlated.flat_map(move |correlated| {
                let predictors = [Predictor::Left, Predictor::Slope];
                predictors.map(|predictor| Self { channels, correlated, predictor })
            })
        });
        let sized = |shape: Self| (shape.with(Estimate(page)), shape);
        let (bytes, best) = flat.map(sized).min_by_key(|(bytes, _)| *bytes)?;
        // A little more may still come out smaller: an estimate knows nothing of parts that differ.
        if bytes > max_bytes + max_bytes / 8 {
            return None;
        }
        let predictor = Predictor::Row(row(page, best.channels()) as u16);
        let rows = [Self { predictor, ..best }, Self { predictor, correlated: !best.correlated, ..best }];
        let rows = rows.into_iter().filter(|shape| shape.channels > 1 || !shape.correlated).map(sized);
        rows.chain([(bytes, best)]).min_by_key(|(bytes, _)| *bytes).map(|(_, shape)| shape)
    }

    /// A bit for each channel without any error behind its first sample.
    pub(super) fn silent(self, page: &Page) -> u8 {
        self.with(Silent(page))
    }

    pub(super) fn write(self, silent: u8, out: &mut Vec<u8>) {
        let (number, distance) = match self.predictor {
            Predictor::Left => (0, None),
            Predictor::Slope => (1, None),
            Predictor::Row(distance) => (2, Some(distance)),
        };
        let correlated = if self.correlated { CORRELATED } else { 0 };
        out.extend([(self.channels - 1) | correlated | number << PREDICTOR_AT, silent]);
        out.extend(distance.into_iter().flat_map(u16::to_le_bytes));
    }

    /// The shape, the silent channels, and what follows; `None` if no encoder writes these.
    pub(super) fn read(bytes: &[u8]) -> Option<(Self, u8, &[u8])> {
        let ([head, silent], rest) = bytes.split_first_chunk()?;
        let channels = (head & CHANNELS) + 1;
        let correlated = head & CORRELATED != 0;
        let (predictor, rest) = match head >> PREDICTOR_AT {
            0 => (Predictor::Left, rest),
            1 => (Predictor::Slope, rest),
            2 => {
                let (distance, rest) = rest.split_first_chunk()?;
                let distance = u16::from_le_bytes(*distance);
                DISTANCES.contains(&distance.into()).then_some((Predictor::Row(distance), rest))?
            }
            _ => return None,
        };
        let fits = silent >> channels == 0 && (channels > 1 || !correlated);
        fits.then_some((Self { channels, correlated, predictor }, *silent, rest))
    }
}

/// The channel and error of each of these samples, which begin with a first channel and have one before them.
#[inline]
pub(super) fn errors<const C: usize, P: Predict>(
    page: &Page,
    predict: P,
    correlated: bool,
    samples: Range<usize>,
    mut each: impl FnMut(usize, u8),
) {
    for start in samples.clone().step_by(C) {
        let mut first = 0;
        for channel in 0..C.min(samples.end - start) {
            let at = start + channel;
            let left = page[at - C];
            let before = if at >= 2 * C { page[at - 2 * C] } else { left };
            let mut error = page[at].wrapping_sub(predict.expected::<C>(page, at, left, before));
            if correlated {
                match channel {
                    0 => first = error,
                    1 | 2 => error = error.wrapping_sub(first),
                    _ => {}
                }
            }
            each(channel, error);
        }
    }
}

/// Gives the second and third channel of correlated ones back what the first one's error was.
#[inline]
pub(super) const fn with_first(channel: usize, error: u8, first: &mut u8) -> u8 {
    match channel {
        0 => {
            *first = error;
            error
        }
        1 | 2 => error.wrapping_add(*first),
        _ => error,
    }
}

struct Silent<'p>(&'p Page);

impl Work for Silent<'_> {
    type Done = u8;

    fn run<const C: usize, P: Predict>(self, predict: P, correlated: bool) -> u8 {
        let mut loud = [0; C];
        errors::<C, P>(self.0, predict, correlated, C..PAGE_BYTES, |channel, error| loud[channel] |= error);
        loud.iter().rev().fold(0, |mask, errors| mask << 1 | u8::from(*errors == 0))
    }
}

/// Bytes that the page takes, reckoned from parts of it.
struct Estimate<'p>(&'p Page);

impl Work for Estimate<'_> {
    type Done = usize;

    fn run<const C: usize, P: Predict>(self, predict: P, correlated: bool) -> usize {
        /// Parts of a page that are looked at, and bytes of each: a multiple of any number of channels.
        const PARTS: usize = 3;
        const PART_BYTES: usize = 120;
        let mut sums = [0u32; C];
        for part in 0..PARTS {
            // The last one ends with the page, the first one has a whole row before it if there are rows.
            let from = PAGE_BYTES / 2 + part * (PAGE_BYTES / 2 - PART_BYTES) / (PARTS - 1);
            let from = from / C * C;
            errors::<C, P>(self.0, predict, correlated, from..from + PART_BYTES, |channel, error| {
                sums[channel] += u32::from((error as i8).unsigned_abs());
            });
        }
        let count = (PARTS * PART_BYTES / C) as u32;
        let bits = |sum: &u32| {
            if *sum == 0 {
                return 0;
            }
            let plain = (*sum / count).checked_ilog2().map_or(0, |bits| bits + 1);
            count * (plain + 1) + ((2 * sum) >> plain)
        };
        sums.iter().map(bits).sum::<u32>() as usize * PAGE_BYTES / (8 * PARTS * PART_BYTES)
    }
}

/// The distance, a multiple of the channels, at which bytes of the page are most alike.
fn row(page: &Page, channels: usize) -> usize {
    /// Bytes that are compared.
    const PROBE_BYTES: usize = 128;
    let (_, probe) = page.split_at(PAGE_BYTES - PROBE_BYTES);
    let differences = |distance: &usize| -> u32 {
        let there = &page[PAGE_BYTES - PROBE_BYTES - distance..][..PROBE_BYTES];
        probe.iter().zip(there).map(|(a, b)| u32::from(a.abs_diff(*b))).sum()
    };
    let distances = (DISTANCES.start.next_multiple_of(channels)..DISTANCES.end).step_by(channels);
    distances.min_by_key(differences).unwrap_or(DISTANCES.start)
}
