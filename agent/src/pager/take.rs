//! What of a sandbox's memory is taken: all of it, when it is parked, or some that it does not touch, while it goes on.

use std::ops::Range;

use medes_dedup::page::PAGE_BYTES;

use super::ranges::joined;

/// How much, and what the sandbox does afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Take {
    /// Everything, and it is frozen. Of a hundred of its pages so many may stay: those that the next request will touch.
    All { resident_percent: u32 },
    /// At most so many pages, none of which it is known to touch, and it goes on.
    Cold { pages_max: usize },
}

/// Pages that are taken of one that goes on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Cold {
    /// Their numbers, in order.
    pub(super) pages: Vec<u64>,
    /// Where to look first the next time.
    pub(super) next: u64,
    /// There are more.
    pub(super) more: bool,
}

impl Cold {
    /// At most so many of the pages that are there and cold. The first ones from `from` on, then those before: which of the cold ones are
    /// needed after all is only told by what is missed, so each gets its turn.
    pub(super) fn of(
        there: &[Range<u64>],
        (from, pages_max): (u64, usize),
        is_cold: impl Fn(u64) -> bool,
    ) -> Self {
        let at = there.partition_point(|range| range.end <= from);
        let (before, after) = there.split_at(at);
        let cut = |range: &Range<u64>| range.start.max(from)..range.end;
        let later = after.iter().map(cut).chain(before.iter().cloned());
        // Of the range that `from` is in the middle of.
        let first = after.first().map(|range| range.start..from.clamp(range.start, range.end));
        let mut cold = later.chain(first).flatten().filter(|page| is_cold(*page));
        let mut pages: Vec<u64> = cold.by_ref().take(pages_max).collect();
        let more = cold.next().is_some();
        let next = pages.last().map_or(0, |last| last + 1);
        pages.sort_unstable();
        Self { pages, next, more }
    }

    /// Where they are.
    pub(super) fn addresses(&self) -> Vec<Range<u64>> {
        let address = |page| page * PAGE_BYTES as u64;
        joined(self.pages.iter().map(|page| *page..page + 1))
            .map(|range| address(range.start)..address(range.end))
            .collect()
    }

    /// All others of those that are there.
    pub(super) fn others(&self, there: &[Range<u64>]) -> Vec<u64> {
        there.iter().cloned().flatten().filter(|page| self.pages.binary_search(page).is_err()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cold_page_gets_its_turn() {
        let there = [10..14, 20..22, 30..33];
        let is_cold = |page: u64| page != 12;
        let (mut from, mut taken) = (12, Vec::new());
        for _step in 0..4 {
            let Cold { pages, next, .. } = Cold::of(&there, (from, 2), is_cold);
            taken.push(pages);
            from = next;
        }
        assert_eq!(taken, [vec![13, 20], vec![21, 30], vec![31, 32], vec![10, 11]]);
    }

    #[test]
    fn each_page_that_is_there_is_taken_or_another() {
        let there = [10..14, 20..22];
        let cold = Cold { pages: vec![11, 12, 20], ..Cold::default() };
        assert_eq!(cold.addresses(), [11 << 12..13 << 12, 20 << 12..21 << 12]);
        assert_eq!(cold.others(&there), [10, 13, 21]);
    }

    #[test]
    fn it_says_whether_there_are_more() {
        let there = [10..14, 20..22];
        let all = Cold::of(&there, (0, 6), |_| true);
        assert_eq!(all, Cold { pages: vec![10, 11, 12, 13, 20, 21], next: 22, more: false });
        assert!(Cold::of(&there, (11, 5), |_| true).more);
        assert_eq!(Cold::of(&there, (11, 9), |_| true).pages.len(), 6, "none is taken twice");
        assert_eq!(Cold::of(&there, (0, 9), |_| false), Cold::default());
        assert_eq!(Cold::of(&there, (0, 0), |_| true), Cold { more: true, ..Cold::default() });
        assert_eq!(Cold::of(&[], (5, 9), |_| true), Cold::default());
    }
}
