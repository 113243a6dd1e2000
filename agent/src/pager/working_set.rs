//! The pages that the next request will probably touch, learnt from what was touched before.
//!
//! Nobody tells which of the pushed pages were used: only that a page was missed, or that it was written. So of those that
//! were only read, a different small part is left out each time; who misses them brings them back, the others drop out.

/// One page of a working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hot {
    /// Number of the page.
    pub(super) page: u64,
    /// Whether it is written: then it is given back unprotected, which spares the write a fault.
    pub(super) written: bool,
}

/// Pages in order of address.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkingSet {
    pages: Vec<Hot>,
    round: u64,
}

/// Most pages of a working set: 1 GiB.
const PAGES_MAX: usize = 1 << 18;
/// One in so many of the pages that were only read is left out each time.
const LEFT_OUT: u64 = 64;

impl WorkingSet {
    /// How many pages.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there is anything in it yet.
    pub(super) const fn is_learnt(&self) -> bool {
        !self.pages.is_empty()
    }

    /// Whether a page is given back without being asked for.
    pub(super) fn contains(&self, page: u64) -> bool {
        self.pages.binary_search_by_key(&page, |hot| hot.page).is_ok()
    }

    /// What to give back now. Pages left out are forgotten unless they are missed.
    pub(super) fn begin(&mut self) -> Vec<Hot> {
        self.round += 1;
        let turn = self.round % LEFT_OUT;
        self.pages.retain(|hot| hot.written || hot.page.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58 != turn);
        self.pages.clone()
    }

    /// What was learnt since: pages that were missed, and ranges of those that were written, in order.
    pub(super) fn learn(&mut self, mut missed: Vec<Hot>, is_written: impl Fn(u64) -> bool) {
        self.pages.append(&mut missed);
        self.pages.sort_unstable_by_key(|hot| hot.page);
        self.pages.dedup_by_key(|hot| hot.page);
        self.pages.truncate(PAGES_MAX);
        self.pages.iter_mut().for_each(|hot| hot.written = is_written(hot.page));
    }

    /// The pages at these numbers have other contents, or none.
    pub(super) fn forget(&mut self, pages: &std::ops::Range<u64>) {
        self.pages.retain(|hot| !pages.contains(&hot.page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hot(page: u64) -> Hot {
        Hot { page, written: false }
    }

    #[test]
    fn missed_pages_come_in_and_unused_ones_drop_out() {
        let mut set = WorkingSet::default();
        set.learn((0..1000).rev().map(hot).collect(), |page| page < 10);
        assert_eq!(set.len(), 1000);
        let first = set.begin();
        assert!(first.is_sorted_by_key(|hot| hot.page));
        assert!((950..1000).contains(&first.len()), "{}", first.len());
        for _ in 0..LEFT_OUT {
            set.begin();
            set.learn(Vec::new(), |page| page < 10);
        }
        let left: Vec<u64> = set.begin().into_iter().map(|hot| hot.page).collect();
        assert_eq!(left, (0..10).collect::<Vec<_>>(), "written pages are used for certain");
    }

    #[test]
    fn a_page_that_is_missed_each_time_stays() {
        let mut set = WorkingSet::default();
        for _ in 0..3 * LEFT_OUT {
            let given = set.begin();
            let missed = (0..200).filter(|page| !given.contains(&hot(*page))).map(hot).collect();
            set.learn(missed, |_| false);
            assert_eq!(set.len(), 200);
        }
    }
}
