//! Which step of a staircase an address is on, in a few nanoseconds.
//!
//! Both a process's mappings and a pointer table are sorted lists of addresses where something begins. They are asked
//! for every word of a page, so a binary search is too slow: addresses cluster in a few regions, and in each a table of
//! equal buckets says what is there. What a page points to has no order that a processor could foresee, so an answer takes
//! one look into that table, and no branch that is not nearly always the same.

/// Most regions with buckets of their own; with more of them, a plain binary search answers.
const REGIONS_MAX: usize = 8;

/// Steps further apart than this belong to different regions.
const REGION_GAP: u64 = 1 << 30;

/// Buckets for each step, and some more: most hold a step or none.
const BUCKETS_PER_STEP: u64 = 4;
const BUCKETS_MORE: u64 = 4096;

/// Buckets are no smaller than this.
const BUCKET_LOG2_MIN: u32 = 6;

/// Steps of a bucket that are looked at one by one.
const LOOKS_MAX: usize = 8;

/// Sorted addresses, each with what stands for it from there on, and a way to find the one that an address is on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steps {
    starts: Vec<u64>,
    values: Vec<u32>,
    low: u64,
    /// Addresses from `low` on that are on a step at all.
    span: u64,
    regions: Vec<Region>,
    /// Where the regions start; the largest number stands for those that there are not.
    region_starts: [u64; REGIONS_MAX],
}

#[derive(Debug, Clone)]
struct Region {
    start: u64,
    shift: u32,
    /// Number of the step behind the region's last.
    end: u32,
    buckets: Vec<Bucket>,
}

/// What is in an equal part of a region. If no more than one step starts there, the whole answer.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// What stands for the step that the bucket begins on, in the lower half, and for the step that starts in it, in the upper
    /// half; or the number of the former, if it takes a search.
    answer: u32,
    /// Where in the bucket that step starts; or [`NONE`], or [`SEARCH`].
    next: u32,
}

/// No step starts in a bucket.
const NONE: u32 = u32::MAX;

/// More than one step starts in a bucket, or what stands for them has too large a number: it takes a search.
const SEARCH: u32 = u32::MAX - 1;

// Neighbours in a region are at most a gap apart, and it has more buckets than steps: so a bucket is no larger than a gap.
const _: () = assert!(REGION_GAP < SEARCH as u64);

impl Steps {
    /// Steps that begin at these addresses, which rise strictly, and what stands for each; the last one ends at `end`.
    pub(crate) fn new(starts: Vec<u64>, values: Vec<u32>, end: u64) -> Self {
        debug_assert!(starts.is_sorted_by(|a, b| a < b) && starts.len() == values.len());
        let low = starts.first().copied().unwrap_or_default();
        let mut regions = Vec::new();
        let mut first = 0;
        for part in starts.chunk_by(|a, b| b - a <= REGION_GAP) {
            if regions.len() == REGIONS_MAX {
                regions.clear();
                break;
            }
            regions.push(Region::new(&starts, &values, first..first + part.len()));
            first += part.len();
        }
        let mut region_starts = [u64::MAX; REGIONS_MAX];
        region_starts.iter_mut().zip(&regions).for_each(|(start, region)| *start = region.start);
        Self { span: end.saturating_sub(low), starts, values, low, regions, region_starts }
    }

    /// What stands for the last step that starts at or before this address.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        self.covers(address).then(|| self.find_covered(address))
    }

    /// Is the address on a step at all?
    #[inline]
    pub(crate) const fn covers(&self, address: u64) -> bool {
        address.wrapping_sub(self.low) < self.span
    }

    /// The same as [`Self::find`] for an address that is covered; anything for any other.
    #[inline]
    pub(crate) fn find_covered(&self, address: u64) -> usize {
        let Some(region) = self.regions.get(self.region(address)) else { return self.search(0, address) };
        let from_start = address.wrapping_sub(region.start);
        let Some(Bucket { answer, next }) =
            region.buckets.get((from_start >> region.shift) as usize).copied()
        else {
            // Behind the last step's start.
            return self.value(region.end as usize - 1);
        };
        if next == SEARCH {
            return self.search(answer as usize, address);
        }
        let inside = (from_start & ((1 << region.shift) - 1)) as u32;
        (if inside >= next { answer >> 16 } else { answer & 0xffff }) as usize
    }

    /// The last region that starts at or before an address; any if there is none.
    #[inline]
    fn region(&self, address: u64) -> usize {
        const { assert!(REGIONS_MAX == 8) };
        let mut at = 0;
        for half in [4, 2, 1] {
            at += half * usize::from(address >= self.region_starts[at + half]);
        }
        at
    }

    /// Looks for the step of an address among all from this one on.
    fn search(&self, from: usize, address: u64) -> usize {
        let behind = self.starts.get(from + 1..).unwrap_or_default();
        let near = behind.iter().take(LOOKS_MAX).take_while(|start| **start <= address).count();
        let steps = if near < LOOKS_MAX { near } else { behind.partition_point(|start| *start <= address) };
        self.value(from + steps)
    }

    fn value(&self, step: usize) -> usize {
        self.values.get(step).copied().unwrap_or_default() as usize
    }

    /// Bytes it takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let buckets =
            self.regions.iter().map(|region| size_of_val(&region.buckets[..]) + size_of::<Region>());
        size_of_val(&self.starts[..]) + size_of_val(&self.values[..]) + buckets.sum::<usize>()
    }

    /// Where the steps start.
    pub(crate) fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// What stands for each.
    pub(crate) fn values(&self) -> &[u32] {
        &self.values
    }

    /// First address behind the last step.
    pub(crate) const fn end(&self) -> u64 {
        self.low + self.span
    }
}

impl Region {
    /// Of these steps, which are some.
    fn new(starts: &[u64], values: &[u32], steps: std::ops::Range<usize>) -> Self {
        let (start, last) = (starts[steps.start], starts[steps.end - 1]);
        let buckets_max = BUCKETS_PER_STEP * steps.len() as u64 + BUCKETS_MORE;
        let shift = (BUCKET_LOG2_MIN..64).find(|shift| (last - start) >> shift < buckets_max).unwrap_or(63);
        let mut buckets = Vec::with_capacity(((last - start) >> shift) as usize + 1);
        let mut step = steps.start;
        for number in 0..=(last - start) >> shift {
            let from = start + (number << shift);
            while step + 1 < steps.end && starts[step + 1] <= from {
                step += 1;
            }
            let inside = |step: usize| {
                let offset = starts[..steps.end].get(step)? - from;
                (offset >> shift == 0).then_some(offset as u32)
            };
            let short = |step: usize| values.get(step).filter(|value| **value <= u16::MAX.into());
            buckets.push(match (short(step), inside(step + 1), short(step + 1), inside(step + 2)) {
                (Some(answer), None, ..) => Bucket { answer: *answer, next: NONE },
                (Some(before), Some(next), Some(after), None) => {
                    Bucket { answer: after << 16 | before, next }
                }
                _ => Bucket { answer: step as u32, next: SEARCH },
            });
        }
        Self { start, shift, end: steps.end as u32, buckets }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Buckets answer what a search through all steps answers.
        #[test]
        fn finds_what_a_search_finds(
            raw in proptest::collection::btree_set(
                (0u64..12, prop_oneof![0u64..100, 0u64..1 << 22, any::<u64>().prop_map(|x| x >> 10)])
                    .prop_map(|(region, at)| (region << 60) + at),
                0..300,
            ),
            near in 0u64..5000,
            times in prop_oneof![Just(1u32), Just(1000)],
            anywhere: u64,
        ) {
            let starts: Vec<u64> = raw.into_iter().collect();
            let end = starts.last().map_or(0, |last| last + near);
            let values: Vec<u32> = (0..starts.len() as u32).map(|step| step * times).collect();
            let steps = Steps::new(starts.clone(), values, end);
            let asked = starts.iter().flat_map(|start| [start.wrapping_sub(1), *start, start + near]);
            for address in asked.chain([anywhere, 0, u64::MAX]) {
                let expected = starts.partition_point(|start| *start <= address).checked_sub(1);
                let expected = expected.map(|step| step * times as usize);
                prop_assert_eq!(steps.find(address), expected.filter(|_| address < end), "{:#x}", address);
            }
        }
    }
}
