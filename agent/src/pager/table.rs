//! Which page of which image each address of a parked process is: a list of runs, since neighbours stay neighbours.

use std::ops::Range;

/// Where a page is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the image.
    pub(super) image: u32,
    /// Number of the page in it.
    pub(super) page: u32,
}

/// Consecutive pages of a process that are consecutive pages of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u64,
    pages: u32,
    place: Place,
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
        let place = Place { page: self.place.page + skipped, ..self.place };
        Some(Self { first, pages, place })
    }
}

/// Pages by their numbers (address / 4096). In order, without overlap.
#[derive(Debug, Clone, Default)]
pub(super) struct Table {
    runs: Vec<Run>,
}

impl Table {
    /// Where a page is stored, and how many pages from it on lie one behind the other there.
    pub(super) fn find(&self, page: u64) -> Option<(Place, u32)> {
        let at = self.runs.partition_point(|run| run.end() <= page);
        let rest = self.runs.get(at)?.within(&(page..u64::MAX)).filter(|rest| rest.first == page)?;
        Some((rest.place, rest.pages))
    }

    /// How many pages are stored.
    pub(super) fn pages(&self) -> u64 {
        self.runs.iter().map(|run| u64::from(run.pages)).sum()
    }

    /// How many of them are stored in each image: image and pages, once for each run.
    pub(super) fn uses(&self) -> impl Iterator<Item = (u32, u32)> {
        self.runs.iter().map(|run| (run.place.image, run.pages))
    }

    /// Numbers of the pages stored in an image, in order.
    pub(super) fn of_image(&self, image: u32) -> impl Iterator<Item = u64> {
        self.runs.iter().filter(move |run| run.place.image == image).flat_map(|run| run.first..run.end())
    }

    /// Ranges of stored pages, in order; neighbours are not joined.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|run| run.first..run.end())
    }

    /// Bytes it takes.
    pub(super) const fn memory_bytes(&self) -> usize {
        self.runs.capacity() * size_of::<Run>()
    }

    /// Forgets these pages.
    pub(super) fn forget(&mut self, range: &Range<u64>) {
        drop(self.cut(range));
    }

    /// Pages have moved; what was at their new place is forgotten.
    pub(super) fn moved(&mut self, from: u64, to: u64, pages: u64) {
        let moved = self.cut(&(from..from.saturating_add(pages)));
        self.forget(&(to..to.saturating_add(pages)));
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

    /// These pages, in order, are now the pages of an image from 0 on.
    pub(super) fn replace(&mut self, image: u32, pages: &[u64]) {
        let mut new = Vec::new();
        for (page, &number) in (0..).zip(pages) {
            append(&mut new, Run { first: number, pages: 1, place: Place { image, page } });
        }
        let mut kept = Vec::with_capacity(self.runs.len() + new.len());
        let mut ahead = new.iter().peekable();
        // Both are in order: what lies between the new runs stays.
        for run in std::mem::take(&mut self.runs) {
            let mut from = run.first;
            while let Some(next) = ahead.next_if(|next| next.end() <= from) {
                append(&mut kept, *next);
            }
            while let Some(next) = ahead.peek().filter(|next| next.first < run.end()) {
                if let Some(rest) = run.within(&(from..next.first.max(from))) {
                    append(&mut kept, rest);
                }
                from = next.end();
                if next.end() > run.end() {
                    break;
                }
                append(&mut kept, **next);
                ahead.next();
            }
            if let Some(rest) = run.within(&(from.min(run.end())..run.end())) {
                append(&mut kept, rest);
            }
        }
        ahead.for_each(|next| append(&mut kept, *next));
        self.runs = kept;
    }
}

/// Adds a run, as part of the one before where it goes on with it.
fn append(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && last.end() == run.first
        && last.place.image == run.place.image
        && last.place.page.checked_add(last.pages) == Some(run.place.page)
    {
        last.pages += run.pages;
    } else {
        runs.push(run);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Change {
        Forget(Range<u64>),
        Moved { from: u64, to: u64, pages: u64 },
        Replace(Vec<u64>),
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let forget = (0..64_u64, 0..20_u64).prop_map(|(first, pages)| Change::Forget(first..first + pages));
        let moved = (0..64_u64, 0..64_u64, 1..12_u64)
            .prop_filter("the kernel moves apart", |(from, to, pages)| from.abs_diff(*to) >= *pages)
            .prop_map(|(from, to, pages)| Change::Moved { from, to, pages });
        let replace = proptest::collection::btree_set(0..64_u64, 0..24)
            .prop_map(|pages| Change::Replace(pages.into_iter().collect()));
        proptest::collection::vec(prop_oneof![forget, moved, replace], 0..24)
    }

    proptest! {
        #[test]
        fn it_does_what_a_map_of_single_pages_does(changes in changes()) {
            let mut table = Table::default();
            let mut model: BTreeMap<u64, Place> = BTreeMap::new();
            for (image, change) in (0..).zip(changes) {
                match change {
                    Change::Forget(range) => {
                        table.forget(&range);
                        model.retain(|page, _| !range.contains(page));
                    }
                    Change::Moved { from, to, pages } => {
                        table.moved(from, to, pages);
                        let taken: Vec<_> = model.range(from..from + pages).map(|(page, place)| (page - from + to, *place)).collect();
                        model.retain(|page, _| !(from..from + pages).contains(page) && !(to..to + pages).contains(page));
                        model.extend(taken);
                    }
                    Change::Replace(pages) => {
                        table.replace(image, &pages);
                        model.extend((0..).zip(&pages).map(|(page, number)| (*number, Place { image, page })));
                    }
                }
                for page in 0..130 {
                    prop_assert_eq!(table.find(page).map(|(place, _)| place), model.get(&page).copied(), "page {}", page);
                }
                prop_assert_eq!(table.pages(), model.len() as u64);
                let ranges: Vec<_> = table.ranges().collect();
                prop_assert!(ranges.windows(2).all(|two| two[0].end <= two[1].start), "{:?}", ranges);
            }
        }
    }

    #[test]
    fn neighbours_are_one_run() {
        let mut table = Table::default();
        table.replace(3, &[10, 11, 12, 20]);
        assert_eq!(table.find(11), Some((Place { image: 3, page: 1 }, 2)));
        assert_eq!((table.runs.len(), table.find(13), table.find(9)), (2, None, None));
        assert_eq!(table.of_image(3).collect::<Vec<_>>(), [10, 11, 12, 20]);
    }
}
