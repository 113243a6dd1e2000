//! The pages that the next request will probably touch, learnt from what was touched before.
//!
//! Nobody tells which of the pushed pages were used: only that a page was missed, or that it was written. So a different small
//! part is doubted each time ([`Doubt`]): of the pages that were only read it is left out, and who misses them brings them back;
//! those that were written are given back protected, and lose the mark unless they are written again.
//!
//! They are in the order in which they are needed, as a large set is not given back as a whole before the program runs. Which order
//! that is shows in what is missed: the first time all of it is, one page after the other; later, a page that is missed
//! was needed before those that were still to come, and goes in front of them from then on.
//!
//! The best of them need not be given back at all: within a budget they stay where they are while the rest is taken
//! ([`WorkingSet::stay`]).

use std::collections::BTreeSet;
use std::ops::Range;

use super::doubt::Doubt;

/// One page of a working set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hot {
    /// Number of the page.
    pub(super) page: u64,
    /// Whether it is written: then it is given back unprotected, which spares the write a fault.
    pub(super) written: bool,
    /// When it is needed, among the others. Those of one rank are given back in order of address, neighbours together.
    pub(super) rank: u32,
}

/// Pages in order of address.
#[derive(Debug, Clone, Default)]
pub(super) struct WorkingSet {
    pages: Vec<Hot>,
    /// Those that stay while it is parked, in order.
    stay: Vec<u64>,
    doubt: Doubt,
    /// Pages that were doubted the last time, in order.
    doubted: Vec<u64>,
    /// The highest rank.
    last: u32,
}

/// Most pages of a working set: 1 GiB.
const PAGES_MAX: usize = 1 << 18;
/// So many pages that are missed one after the other have one rank.
const OF_A_RANK: usize = 32;

impl WorkingSet {
    /// How many pages.
    #[cfg(test)]
    pub(super) const fn len(&self) -> usize {
        self.pages.len()
    }

    /// All of them.
    pub(super) fn pages(&self) -> &[Hot] {
        &self.pages
    }

    /// Their numbers, in order.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.pages.iter().map(|hot| hot.page).collect()
    }

    /// One of these pages, which are in order of address.
    pub(super) fn of_pages(pages: Vec<Hot>) -> Self {
        let last = pages.iter().map(|hot| hot.rank).max().unwrap_or_default();
        Self { pages, last, ..Self::default() }
    }

    /// Whether there is anything in it yet.
    pub(super) const fn is_learnt(&self) -> bool {
        !self.pages.is_empty()
    }

    /// Whether a page is given back without being asked for.
    pub(super) fn contains(&self, page: u64) -> bool {
        self.pages.binary_search_by_key(&page, |hot| hot.page).is_ok()
    }

    /// Which pages stay from now on, at most so many of those that are there: written ones first.
    pub(super) fn stay(&mut self, pages_max: usize, is_there: impl Fn(u64) -> bool) -> &[u64] {
        let candidates =
            self.pages.iter().filter(|hot| !self.doubt.is_next_of(hot.page) && is_there(hot.page));
        let (written, read): (Vec<Hot>, Vec<Hot>) = candidates.partition(|hot| hot.written);
        self.stay = written.into_iter().chain(read).take(pages_max).map(|hot| hot.page).collect();
        self.stay.sort_unstable();
        &self.stay
    }

    /// The rank of a page that is missed behind all that were to be given back, and behind so many others.
    pub(super) fn rank_behind(&self, missed: usize) -> u32 {
        let behind = u32::try_from(missed / OF_A_RANK).unwrap_or(u32::MAX);
        self.last.saturating_add(1).saturating_add(behind)
    }

    /// What to give back now, in the order in which it is needed. Pages left out are forgotten unless they are missed.
    pub(super) fn begin(&mut self) -> Vec<Hot> {
        self.doubt.go_on();
        let doubt = &self.doubt;
        let away = self.pages.iter().filter(|hot| self.stay.binary_search(&hot.page).is_err());
        self.doubted = away.map(|hot| hot.page).filter(|page| doubt.is_of(*page)).collect();
        self.pages.retain(|hot| hot.written || !doubt.is_of(hot.page));
        let away = self.pages.iter().filter(|hot| self.stay.binary_search(&hot.page).is_err());
        let mut away: Vec<Hot> =
            away.map(|hot| Hot { written: hot.written && !doubt.is_of(hot.page), ..*hot }).collect();
        // Stable: of one rank they stay in order of address.
        away.sort_by_key(|hot| hot.rank);
        away
    }

    /// What was learnt since: pages that were missed, and which pages were written. Of those that stayed nobody knows.
    pub(super) fn learn(&mut self, mut missed: Vec<Hot>, is_written: impl Fn(u64) -> bool) {
        self.judge(&missed, &is_written);
        self.pages.append(&mut missed);
        self.pages.sort_unstable_by_key(|hot| (hot.page, hot.rank));
        self.pages.dedup_by_key(|hot| hot.page);
        self.pages.truncate(PAGES_MAX);
        self.last = self.pages.iter().map(|hot| hot.rank).max().unwrap_or_default();
        let judged = self.pages.iter_mut().filter(|hot| self.stay.binary_search(&hot.page).is_err());
        judged.for_each(|hot| hot.written = is_written(hot.page));
    }

    /// What became of those that were doubted.
    fn judge(&mut self, missed: &[Hot], is_written: impl Fn(u64) -> bool) {
        let doubted = std::mem::take(&mut self.doubted);
        let mut missed: Vec<u64> = missed.iter().map(|hot| hot.page).collect();
        missed.sort_unstable();
        let is_used = |page: &&u64| missed.binary_search(page).is_ok() || is_written(**page);
        let used = doubted.iter().filter(is_used).count();
        let count = |pages: usize| u32::try_from(pages).unwrap_or(u32::MAX);
        self.doubt.judge(count(doubted.len()), count(used));
    }

    /// Pages that were missed since; which others were written nobody has looked at, so these stay what they were.
    pub(super) fn come_to_know(&mut self, missed: Vec<Hot>) {
        let written = self.pages.iter().chain(&missed).filter(|hot| hot.written);
        let written: BTreeSet<u64> = written.map(|hot| hot.page).collect();
        self.learn(missed, |page| written.contains(&page));
    }

    /// The pages at these numbers have other contents, or none.
    pub(super) fn forget(&mut self, pages: &Range<u64>) {
        self.pages.retain(|hot| !pages.contains(&hot.page));
        self.stay.retain(|page| !pages.contains(page));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In so many turns all were doubted, however often that is.
    const TURNS: u64 = 1 << 10;

    fn hot(page: u64) -> Hot {
        Hot { page, written: false, rank: 0 }
    }

    #[test]
    fn missed_pages_come_in_and_unused_ones_drop_out() {
        let mut set = WorkingSet::default();
        set.learn((0..1000).rev().map(hot).collect(), |page| page < 10);
        assert_eq!(set.len(), 1000);
        let first = set.begin();
        assert!(first.is_sorted_by_key(|hot| hot.page), "nothing tells which is needed first");
        assert!((950..1000).contains(&first.len()), "{}", first.len());
        for _ in 0..TURNS {
            set.begin();
            set.learn(Vec::new(), |page| page < 10);
        }
        let left: Vec<u64> = set.begin().into_iter().map(|hot| hot.page).collect();
        assert_eq!(left, (0..10).collect::<Vec<_>>(), "written pages are used for certain");
    }

    #[test]
    fn pages_that_are_not_written_any_more_lose_the_mark_and_drop_out() {
        let mut set = WorkingSet::default();
        set.learn((0..500).map(hot).collect(), |_| true);
        for _ in 0..2 * TURNS {
            // Who is given back unprotected counts as written, used or not.
            let unprotected: Vec<u64> =
                set.begin().iter().filter(|hot| hot.written).map(|hot| hot.page).collect();
            set.learn(Vec::new(), |page| page < 10 || unprotected.contains(&page));
        }
        let left: Vec<u64> = set.begin().into_iter().map(|hot| hot.page).collect();
        assert_eq!(left, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_best_that_are_there_stay_and_are_not_given_back() {
        let mut set = WorkingSet::default();
        set.learn((0..200).map(hot).collect(), |page| page % 2 == 0);
        let stay = set.stay(110, |page| page < 150).to_vec();
        assert_eq!(stay.len(), 110);
        assert!(stay.is_sorted() && stay.iter().all(|page| *page < 150));
        let written = stay.iter().filter(|page| *page % 2 == 0).count();
        assert!((70..=75).contains(&written), "nearly all of the 75 that are written: {written}");
        let given = set.begin();
        assert!(given.iter().all(|hot| stay.binary_search(&hot.page).is_err()));
        assert!((150..200).all(|page| page % 2 == 1 || given.iter().any(|hot| hot.page == page)));
        // Nobody looks at those that stayed; they keep what is known of them.
        set.learn(Vec::new(), |_| false);
        assert_eq!(set.pages.iter().filter(|hot| hot.written).count(), written);
        set.forget(&(0..150));
        assert_eq!(set.stay, [0; 0]);
    }

    #[test]
    fn who_begins_where_another_did_knows_what_that_one_touched() {
        let mut first = WorkingSet::default();
        first.come_to_know(vec![Hot { written: true, ..hot(3) }, hot(5)]);
        let mut second = first.clone();
        second.begin();
        second.come_to_know(vec![hot(7)]);
        let known: Vec<(u64, bool)> = second.begin().iter().map(|hot| (hot.page, hot.written)).collect();
        assert!([(3, true), (5, false), (7, false)].iter().all(|page| known.contains(page)), "{known:?}");
    }

    #[test]
    fn they_are_given_back_in_the_order_in_which_they_were_missed() {
        let mut set = WorkingSet::default();
        let missed: Vec<u64> = (0..512).map(|at| at * 37 % 512).collect();
        let ranked = |(at, page): (usize, &u64)| Hot { rank: set.rank_behind(at), ..hot(*page) };
        let first: Vec<Hot> = missed.iter().enumerate().map(ranked).collect();
        set.learn(first, |_| true);
        let given: Vec<u64> = set.begin().into_iter().map(|hot| hot.page).collect();
        for (given, missed) in given.chunks(OF_A_RANK).zip(missed.chunks(OF_A_RANK)) {
            assert!(given.is_sorted());
            assert!(given.iter().all(|page| missed.contains(page)));
        }
        // The last one was missed while the first ones were still to come; one that nobody knew, when all had come.
        let (late, new) = (missed[511], 1000);
        set.learn(vec![Hot { rank: 1, ..hot(late) }, Hot { rank: set.rank_behind(0), ..hot(new) }], |_| true);
        let given: Vec<u64> = set.begin().into_iter().map(|hot| hot.page).collect();
        assert!(given[..OF_A_RANK + 1].contains(&late));
        assert_eq!(given.last(), Some(&new));
    }

    #[test]
    fn a_page_that_is_missed_each_time_stays() {
        let mut set = WorkingSet::default();
        for _ in 0..3 * TURNS {
            let given = set.begin();
            let missed = (0..200).filter(|page| !given.contains(&hot(*page))).map(hot).collect();
            set.learn(missed, |_| false);
            assert_eq!(set.len(), 200);
        }
    }
}
