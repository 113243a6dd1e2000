//! Which page of its image each address of a parked process is: a list of runs, since neighbours stay neighbours.

use std::ops::Range;

/// Consecutive pages of a process that are consecutive pages of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u64,
    pages: u32,
    /// Number of the first one in the image.
    place: u32,
}

impl Run {
    const fn end(&self) -> u64 {
        self.first + self.pages as u64
    }

    /// The part of it within a range.
    fn within(&self, range: &Range<u64>) -> Option<Self> {
        let (first, end) = (self.first.max(range.start), self.end().min(range.end));
        let skipped = u32::try_from(first.saturating_sub(self.first)).ok()?;
        let pages = u32::try_from(end.checked_sub(first)?).ok().filter(|pages| *pages > 0)?;
        Some(Self { first, pages, place: self.place + skipped })
    }
}

/// Pages by their numbers (address / 4096). In order, without overlap.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Table {
    runs: Vec<Run>,
}

impl Table {
    /// These pages, in order, are the pages of an image from 0 on.
    #[cfg(test)]
    pub(super) fn of(pages: &[u64]) -> Self {
        Self::placed(pages.iter().copied().zip(0..))
    }

    /// These pages, in order, each where it says in an image.
    pub(super) fn placed(pages: impl Iterator<Item = (u64, u32)>) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for (first, place) in pages {
            match runs.last_mut() {
                Some(last) if last.end() == first && last.place + last.pages == place => last.pages += 1,
                _ => runs.push(Run { first, pages: 1, place }),
            }
        }
        runs.shrink_to_fit();
        Self { runs }
    }

    /// Where a page is stored, and how many pages from it on lie one behind the other there.
    pub(super) fn find(&self, page: u64) -> Option<(u32, u32)> {
        let at = self.runs.partition_point(|run| run.end() <= page);
        let rest = self.runs.get(at)?.within(&(page..u64::MAX)).filter(|rest| rest.first == page)?;
        Some((rest.place, rest.pages))
    }

    /// How many pages are stored.
    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }

    /// All pages with their places, in order of the pages.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, u32)> {
        self.runs.iter().flat_map(|run| (run.first..run.end()).zip(run.place..))
    }

    /// Neighbours that are neighbours in the image: the first one, how many, and the place of the first one.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u64, (u32, u32))> {
        self.runs.iter().map(|run| (run.first, (run.pages, run.place)))
    }

    /// Ranges of stored pages, in order; neighbours are not joined.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|run| run.first..run.end())
    }

    /// The first stored pages from this one on that are neighbours.
    pub(super) fn range_from(&self, page: u64) -> Option<Range<u64>> {
        let at = self.runs.partition_point(|run| run.end() <= page);
        self.runs.get(at).map(|run| run.first.max(page)..run.end())
    }

    /// Bytes it takes.
    pub(super) const fn memory_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
    }

    /// Forgets these pages; which of them were stored.
    pub(super) fn forget(&mut self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        self.cut(range).into_iter().map(|run| run.first..run.end())
    }

    /// Pages have moved; what was at their new place is forgotten.
    pub(super) fn moved(&mut self, from: u64, to: u64, pages: u64) {
        let moved = self.cut(&(from..from.saturating_add(pages)));
        drop(self.cut(&(to..to.saturating_add(pages))));
        let at = self.runs.partition_point(|run| run.first < to);
        let there = moved.into_iter().map(|run| Run { first: run.first - from + to, ..run });
        self.runs.splice(at..at, there);
    }

    /// Takes the runs within a range out.
    fn cut(&mut self, range: &Range<u64>) -> Vec<Run> {
        let from = self.runs.partition_point(|run| run.end() <= range.start);
        let to = self.runs.partition_point(|run| run.first < range.end).max(from);
        let touched = &self.runs[from..to];
        let cut = touched.iter().filter_map(|run| run.within(range)).collect();
        let before = touched.first().and_then(|run| run.within(&(0..range.start)));
        let after = touched.last().and_then(|run| run.within(&(range.end..u64::MAX)));
        self.runs.splice(from..to, before.into_iter().chain(after));
        cut
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::btree_set, prelude::*};

    use super::*;

    #[derive(Debug, Clone)]
    enum Change {
        Forget(Range<u64>),
        Moved { from: u64, to: u64, pages: u64 },
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let forget = (0..64_u64, 0..20_u64).prop_map(|(first, pages)| Change::Forget(first..first + pages));
        let moved = (0..64_u64, 0..64_u64, 1..12_u64)
            .prop_filter("the kernel moves apart", |(from, to, pages)| from.abs_diff(*to) >= *pages)
            .prop_map(|(from, to, pages)| Change::Moved { from, to, pages });
        proptest::collection::vec(prop_oneof![forget, moved], 0..24)
    }

    #[test]
    fn the_next_stored_pages_are_found_from_anywhere() {
        let table = Table::of(&[3, 4, 5, 9]);
        let found = [0, 4, 6, 9, 10].map(|page| table.range_from(page));
        assert_eq!(found, [Some(3..6), Some(4..6), Some(9..10), Some(9..10), None]);
    }

    proptest! {
        #[test]
        fn it_does_what_a_map_of_single_pages_does(pages in btree_set(0..64_u64, 0..40), changes in changes()) {
            let pages: Vec<u64> = pages.into_iter().collect();
            let mut table = Table::of(&pages);
            let mut model: BTreeMap<u64, u32> = pages.into_iter().zip(0..).collect();
            for change in changes {
                match change {
                    Change::Forget(range) => {
                        let forgotten: Vec<u64> = table.forget(&range).flatten().collect();
                        prop_assert_eq!(forgotten, model.range(range.clone()).map(|(page, _)| *page).collect::<Vec<_>>());
                        model.retain(|page, _| !range.contains(page));
                    }
                    Change::Moved { from, to, pages } => {
                        table.moved(from, to, pages);
                        let taken: Vec<_> = model.range(from..from + pages).map(|(page, place)| (page - from + to, *place)).collect();
                        model.retain(|page, _| !(from..from + pages).contains(page) && !(to..to + pages).contains(page));
                        model.extend(taken);
                    }
                }
                for page in 0..130 {
                    prop_assert_eq!(table.find(page).map(|(place, _)| place), model.get(&page).copied(), "page {}", page);
                }
                prop_assert_eq!(table.pages(), model.len() as u64);
                prop_assert_eq!(table.places().collect::<Vec<_>>(), model.iter().map(|(page, place)| (*page, *place)).collect::<Vec<_>>());
                let ranges: Vec<_> = table.ranges().collect();
                prop_assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{:?}", ranges);
            }
        }
    }

    #[test]
    fn neighbours_that_lie_apart_in_the_image_are_two_runs() {
        let table = Table::placed([(10, 5), (11, 6), (12, 9), (13, 10)].into_iter());
        assert_eq!((table.runs.len(), table.find(10), table.find(13)), (2, Some((5, 2)), Some((10, 1))));
    }

    #[test]
    fn neighbours_are_one_run() {
        let table = Table::of(&[10, 11, 12, 20]);
        assert_eq!(table.find(11), Some((1, 2)));
        assert_eq!((table.runs.len(), table.find(13), table.find(9)), (2, None, None));
        assert_eq!(table.places().last(), Some((20, 3)));
    }
}
