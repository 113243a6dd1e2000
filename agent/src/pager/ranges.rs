//! Ranges of pages and of addresses, in order and apart from each other.

use std::ops::Range;

use medes_dedup::page::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

/// Whether a page is in one of these ranges, which are in order.
pub(super) fn is_in(ranges: &[Range<u64>], page: u64) -> bool {
    let at = ranges.partition_point(|range| range.end <= page);
    ranges.get(at).is_some_and(|range| range.contains(&page))
}

/// Ranges in order, neighbours as one.
pub(super) fn joined(mut ranges: impl Iterator<Item = Range<u64>>) -> impl Iterator<Item = Range<u64>> {
    let mut open = ranges.next();
    std::iter::from_fn(move || {
        let mut range = open.take()?;
        for next in ranges.by_ref() {
            if next.start != range.end {
                open = Some(next);
                break;
            }
            range.end = next.end;
        }
        Some(range)
    })
}

/// Ranges of addresses without these pages; both in order.
pub(super) fn without(ranges: &[Range<u64>], pages: &[u64]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut pages = pages.iter().map(|page| page * PAGE).peekable();
    for range in ranges {
        let mut from = range.start;
        while pages.next_if(|page| *page < from).is_some() {}
        while let Some(page) = pages.next_if(|page| *page < range.end) {
            if from < page {
                left.push(from..page);
            }
            from = page + PAGE;
        }
        if from < range.end {
            left.push(from..range.end);
        }
    }
    left
}

/// Numbers of the pages of some addresses.
pub(super) const fn pages(range: &Range<u64>) -> Range<u64> {
    range.start / PAGE_BYTES as u64..range.end / PAGE_BYTES as u64
}

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    #[test]
    fn neighbours_are_joined() {
        let all: Vec<Range<u64>> = joined([1..3, 3..4, 6..7, 7..9, 12..13].into_iter()).collect();
        assert_eq!(all, [1..4, 6..9, 12..13]);
        assert_eq!(joined(std::iter::empty::<Range<u64>>()).count(), 0);
    }

    proptest! {
        #[test]
        fn what_stays_is_not_among_what_is_zapped(there in btree_set(0_u64..60, 0..40), stay in btree_set(0_u64..60, 0..30)) {
            let mut ranges: Vec<Range<u64>> = Vec::new();
            for page in &there {
                match ranges.last_mut() {
                    Some(last) if last.end == page * PAGE => last.end += PAGE,
                    _ => ranges.push(page * PAGE..(page + 1) * PAGE),
                }
            }
            let stay_in_order: Vec<u64> = stay.iter().copied().collect();
            let left = without(&ranges, &stay_in_order);
            let left: Vec<u64> = left.iter().flat_map(pages).collect();
            prop_assert_eq!(left, there.difference(&stay).copied().collect::<Vec<_>>());
        }
    }
}
