//! Which step of a staircase an address is on, in a few nanoseconds.
//!
//! Both a process's mappings and a pointer table are sorted lists of addresses where something begins. They are asked
//! for every word of a page, so a binary search is too slow: addresses cluster in a few regions, and in each a table of
//! equal buckets says where to look.

/// Most regions with buckets of their own; with more of them, a plain binary search answers.
const REGIONS_MAX: usize = 8;

/// Steps further apart than this belong to different regions.
const REGION_GAP: u64 = 1 << 30;

/// Sorted addresses, with a way to find the last one that is not above a given address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steps {
    starts: Vec<u64>,
    low: u64,
    /// Addresses from `low` on that are on a step at all.
    span: u64,
    regions: Vec<Region>,
}

#[derive(Debug, Clone)]
struct Region {
    start: u64,
    /// Number of the step behind the region's last.
    end: u32,
    shift: u32,
    /// For each bucket, the last step that starts at or before the bucket's start; marked if more than one other starts in it.
    buckets: Vec<u32>,
}

/// Marks a bucket in which several steps start, so that it takes a search among them.
const SEVERAL: u32 = 1 << 31;

impl Steps {
    /// Steps that begin at these addresses, which rise strictly; the last one ends at `end`.
    pub(crate) fn new(starts: Vec<u64>, end: u64) -> Self {
        debug_assert!(starts.is_sorted_by(|a, b| a < b));
        let low = starts.first().copied().unwrap_or_default();
        let mut regions = Vec::new();
        let mut first = 0;
        for part in starts.chunk_by(|a, b| b - a <= REGION_GAP) {
            if regions.len() == REGIONS_MAX {
                regions.clear();
                break;
            }
            regions.push(Region::new(part, first));
            first += part.len() as u32;
        }
        Self { span: end.saturating_sub(low), starts, low, regions }
    }

    /// The last step that starts at or before this address.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        self.covers(address).then(|| self.find_covered(address))
    }

    /// Is the address on a step at all?
    #[inline]
    pub(crate) const fn covers(&self, address: u64) -> bool {
        address.wrapping_sub(self.low) < self.span
    }

    /// The same as [`Self::find`] for an address that is covered; some step for any other.
    ///
    /// Counts where it could compare and branch: what a page points to has no order that a processor could foresee.
    #[inline]
    pub(crate) fn find_covered(&self, address: u64) -> usize {
        let above = self.regions.iter().map(|region| usize::from(address >= region.start)).sum::<usize>();
        match above.checked_sub(1).and_then(|at| self.regions.get(at)) {
            Some(region) => region.find(&self.starts, address),
            None => self.starts.partition_point(|start| *start <= address).saturating_sub(1),
        }
    }

    /// Bytes it takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let buckets =
            self.regions.iter().map(|region| size_of_val(&region.buckets[..]) + size_of::<Region>());
        size_of_val(&self.starts[..]) + buckets.sum::<usize>()
    }

    pub(crate) fn starts(&self) -> &[u64] {
        &self.starts
    }

    /// First address behind the last step.
    pub(crate) const fn end(&self) -> u64 {
        self.low + self.span
    }
}

impl Region {
    fn new(starts: &[u64], first: u32) -> Self {
        let (start, last) = (starts[0], starts[starts.len() - 1]);
        // About as many buckets as steps: building stays cheap, and most buckets hold a step or two.
        let buckets_max = 2 * starts.len() as u64 + 1024;
        let shift = (12..64).find(|shift| (last - start) >> shift < buckets_max).unwrap_or(63);
        let mut buckets = Vec::new();
        let mut step = 0;
        for bucket in 0..=(last - start) >> shift {
            while step + 1 < starts.len() && starts[step + 1] - start <= bucket << shift {
                step += 1;
            }
            let several = starts.get(step + 2).is_some_and(|second| (second - start) >> shift <= bucket);
            buckets.push(first + step as u32 + if several { SEVERAL } else { 0 });
        }
        Self { start, end: first + starts.len() as u32, shift, buckets }
    }

    #[inline]
    fn find(&self, starts: &[u64], address: u64) -> usize {
        let bucket = ((address - self.start) >> self.shift) as usize;
        let from = match self.buckets.get(bucket) {
            Some(step) if step & SEVERAL == 0 => {
                let step = *step as usize;
                return step + usize::from(starts.get(step + 1).is_some_and(|next| *next <= address));
            }
            Some(step) => (step & !SEVERAL) as usize,
            // Behind the last step's start.
            None => return self.end as usize - 1,
        };
        let to = self.buckets.get(bucket + 1).map_or(self.end - 1, |step| step & !SEVERAL) as usize + 1;
        let behind = starts.get(from + 1..to).unwrap_or_default();
        if behind.len() <= 8 {
            from + behind.iter().take_while(|start| **start <= address).count()
        } else {
            from + behind.partition_point(|start| *start <= address)
        }
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
            anywhere: u64,
        ) {
            let starts: Vec<u64> = raw.into_iter().collect();
            let end = starts.last().map_or(0, |last| last + near);
            let steps = Steps::new(starts.clone(), end);
            let asked = starts.iter().flat_map(|start| [start.wrapping_sub(1), *start, start + near]);
            for address in asked.chain([anywhere, 0, u64::MAX]) {
                let expected = starts.partition_point(|start| *start <= address).checked_sub(1);
                prop_assert_eq!(steps.find(address), expected.filter(|_| address < end), "{:#x}", address);
            }
        }
    }
}
