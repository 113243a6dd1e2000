//! Ranges of pages and of addresses, in order and apart from each other.

use std::ops::Range;

use medes_dedup::page::PAGE_BYTES;

const PAGE: u64 = PAGE_BYTES as u64;

/// Whether a page is in one of these ranges, which are in order.
pub(super) fn is_in(ranges: &[Range<u64>], page: u64) -> bool {
    let at = ranges.partition_point(|range| range.end <= page);
    ranges.get(at).is_some_and(|range| range.contains(&page))
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

#[cfg(test)]
mod tests {
    use proptest::{collection::btree_set, prelude::*};

    use super::*;
    use crate::pager::space::pages;

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
