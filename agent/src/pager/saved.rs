//! Pages of one process that are to be stored, copied while it stood still.

use std::borrow::Cow;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use medes_dedup::page::{PAGE_BYTES, Page, PageIndex, is_zero};

use super::store::{Contents, PLAIN, PlainPages, Store};
use crate::maps::{self, FilePart};
use crate::memory_file::{MappedFile, MemoryFile};
use crate::page_work;

/// Pages of one process that are to be stored, and which are not.
#[derive(Debug, Default)]
pub(super) struct Saved {
    /// Their numbers, in order.
    pub(super) numbers: Vec<u64>,
    /// Where each of them is in `copied`.
    pub(super) places: Vec<u32>,
    /// Their bytes.
    pub(super) copied: Option<MappedFile>,
    /// How many of them the process has; the others were kept as they are already.
    pub(super) fresh: usize,
    /// What the process had mapped, and parts of files that memory stands for.
    pub(super) maps: String,
    pub(super) files: Option<Vec<FilePart>>,
    /// What it is stored as so far, if it is.
    pub(super) before: Store,
    /// Numbers of pages that are zeros now, whatever they were; in order.
    pub(super) zeros: Vec<u64>,
    /// Numbers of pages that stay where they are and need not be stored; in order.
    pub(super) stay: Vec<u64>,
    /// Numbers of pages that will be wanted back first, as far as that is known; in order.
    pub(super) hot: Vec<u64>,
    /// They are kept as they are for now.
    pub(super) in_haste: bool,
}

impl Saved {
    /// Gets the pages of the process with these numbers from `read`, some at a time and by a few threads, and those that were kept as they are
    /// and have not changed.
    pub(super) fn copy<E: From<io::Error> + Send>(
        &mut self,
        threads: NonZeroUsize,
        read: impl Fn(&[u64], &mut [u8]) -> Result<(), E> + Sync,
    ) -> Result<(), E> {
        let fresh = std::mem::take(&mut self.numbers);
        self.fresh = fresh.len();
        let carried = self.carried(&fresh);
        let file = MemoryFile::create("medes-parked")?;
        let is_zero = write(&file, &fresh, threads, read)?;
        let plain = self.before.plain().map(|plain| plain.pages()).unwrap_or_default();
        let mut slot = fresh.len();
        for run in carried.chunk_by(|(_, a), (_, b)| a + 1 == *b) {
            let first = run.first().map_or(0, |(_, place)| (place - PLAIN) as usize);
            // What is not there was never stored.
            let pages = plain.get(first..first + run.len()).unwrap_or_default();
            file.write_all_at(pages.as_flattened(), (slot * PAGE_BYTES) as u64)?;
            slot += run.len();
        }
        // Nothing is needed to bring zeros back.
        let zeros = fresh.iter().zip(&is_zero).filter(|(_, is_zero)| **is_zero).map(|(number, _)| *number);
        self.zeros.extend(zeros);
        self.zeros.sort_unstable();
        let fresh = fresh.into_iter().zip(0..).zip(is_zero).filter(|(_, is_zero)| !is_zero);
        let carried = carried.into_iter().map(|(number, _)| number).zip((0..).skip(self.fresh));
        let mut pages: Vec<(u64, u32)> = fresh.map(|(page, _)| page).chain(carried).collect();
        pages.sort_unstable();
        (self.numbers, self.places) = pages.into_iter().unzip();
        self.copied = Some(file.seal()?);
        Ok(())
    }

    /// What the process had mapped, with the files that it was of.
    pub(super) fn maps(&self) -> Cow<'_, str> {
        match &self.files {
            Some(files) if !files.is_empty() => maps::with_parts(&self.maps, files).into(),
            _ => self.maps.as_str().into(),
        }
    }

    /// The pages, in order of their numbers.
    pub(super) fn pages(&self) -> Vec<&Page> {
        let all = self.copied.as_ref().map(|copied| copied.as_ref().as_chunks().0).unwrap_or_default();
        self.places.iter().filter_map(|place| all.get(*place as usize)).collect()
    }

    /// Pages that are kept as they are and have not changed: these are copied, since what they are in is not kept.
    fn carried(&self, fresh: &[u64]) -> Vec<(u64, u32)> {
        let mut is_other = others([fresh, &self.zeros, &self.stay]);
        let plain = self.before.table().places().filter(|(_, place)| *place >= PLAIN);
        plain.filter(|(page, _)| !is_other(*page)).collect()
    }

    /// Pages that are stored and have not changed, and of which nothing was copied: their numbers and where they are, in order.
    pub(super) fn kept(&self) -> Vec<(u64, u32)> {
        let mut is_other = others([&self.numbers, &self.zeros, &self.stay]);
        self.before.table().places().filter(|(page, _)| !is_other(*page)).collect()
    }

    /// Whether what is stored is right as it is. `kept`: how many pages are.
    pub(super) fn is_as_before(&self, kept: usize) -> bool {
        let carried = self.numbers.len();
        self.fresh == 0
            && (self.in_haste || carried == 0)
            && (kept + carried) as u64 == self.before.table().pages()
    }

    /// Which of the pages will be wanted back first, by position.
    pub(super) fn hot(&self) -> Vec<PageIndex> {
        let mut is_hot = others([&self.hot]);
        let pages = (0..).map(PageIndex).zip(&self.numbers).filter(|(_, page)| is_hot(**page));
        pages.map(|(at, _)| at).collect()
    }

    /// Keeps the pages as they are beside what there is. `kept`: those of that which are still right.
    pub(super) fn keep(self, mut kept: Vec<(u64, u32)>) -> Store {
        let image = self.before.image().cloned();
        let copied = self.copied.filter(|_| !self.numbers.is_empty());
        let plain = copied.map(|file| Arc::new(PlainPages::new(file)));
        kept.extend(self.numbers.into_iter().zip(self.places.into_iter().map(|place| PLAIN + place)));
        kept.sort_unstable();
        Store::of(Contents { image, plain }, kept.into_iter())
    }
}

/// Pages that are read, looked at and written together: so few that they stay in the processor's cache.
const COPIED_AT_ONCE: usize = 32;
/// Pages per thread below which another thread costs more than it brings.
const COPIED_MIN: usize = 128;

/// Writes pages one behind the other; whether each is nothing but zeros.
fn write<E: From<io::Error> + Send>(
    file: &MemoryFile,
    numbers: &[u64],
    threads: NonZeroUsize,
    read: impl Fn(&[u64], &mut [u8]) -> Result<(), E> + Sync,
) -> Result<Vec<bool>, E> {
    let share = numbers.len().div_ceil(threads.get()).max(COPIED_MIN);
    let part = |first: usize, numbers: &[u64]| {
        let (mut are_zero, mut bytes) =
            (Vec::with_capacity(numbers.len()), vec![0; COPIED_AT_ONCE * PAGE_BYTES]);
        for (at, some) in (first..).step_by(COPIED_AT_ONCE).zip(numbers.chunks(COPIED_AT_ONCE)) {
            let bytes = &mut bytes[..some.len() * PAGE_BYTES];
            read(some, bytes)?;
            are_zero.extend(bytes.as_chunks().0.iter().map(is_zero));
            file.write_all_at(bytes, (at * PAGE_BYTES) as u64)?;
        }
        Ok::<_, E>(are_zero)
    };
    let part = &part;
    let mut parts = (0..).step_by(share).zip(numbers.chunks(share));
    let Some((first, own)) = parts.next() else { return Ok(Vec::new()) };
    thread::scope(|scope| {
        let others: Vec<_> =
            parts.map(|(first, numbers)| scope.spawn(move || part(first, numbers))).collect();
        let mut are_zero = part(first, own)?;
        for other in others {
            are_zero.extend(page_work::finish(other)?);
        }
        Ok(are_zero)
    })
}

/// Whether a page is in one of these lists, which are in order; to be asked in order.
fn others<const N: usize>(lists: [&[u64]; N]) -> impl FnMut(u64) -> bool {
    // Each list is walked along once.
    let mut lists = lists.map(|pages| pages.iter().peekable());
    move |page| {
        lists.iter_mut().any(|pages| {
            while pages.next_if(|other| **other < page).is_some() {}
            pages.peek() == Some(&&page)
        })
    }
}

#[cfg(test)]
mod tests {
    use medes_dedup::page::ZERO_PAGE;

    use super::*;

    /// Pages that say which one they are.
    fn copied(fresh: &[u64], saved: Saved) -> Saved {
        let mut saved = Saved { numbers: fresh.to_vec(), ..saved };
        let read = |numbers: &[u64], out: &mut [u8]| {
            for (page, number) in out.as_chunks_mut::<PAGE_BYTES>().0.iter_mut().zip(numbers) {
                page[7] = u8::try_from(*number).unwrap();
            }
            Ok::<_, io::Error>(())
        };
        saved.copy(NonZeroUsize::MIN.saturating_add(1), read).unwrap();
        saved
    }

    #[test]
    fn many_are_copied_by_several_threads_each_to_its_place() {
        let numbers: Vec<u64> = (1..1000).filter(|number| number % 7 > 0).collect();
        let name = |number: u64| u8::try_from(number % 250 + 1).unwrap();
        let read = |numbers: &[u64], out: &mut [u8]| {
            for (page, number) in out.as_chunks_mut::<PAGE_BYTES>().0.iter_mut().zip(numbers) {
                page.fill(if number % 5 == 0 { 0 } else { name(*number) });
            }
            Ok::<_, io::Error>(())
        };
        for threads in [1, 2, 3] {
            let mut saved = Saved { numbers: numbers.clone(), ..Saved::default() };
            saved.copy(NonZeroUsize::new(threads).unwrap(), read).unwrap();
            let mut pages = saved.numbers.iter().zip(saved.pages());
            assert!(pages.all(|(number, page)| page[99] == name(*number)));
            assert_eq!(saved.numbers.len() + saved.zeros.len(), numbers.len());
            assert!(saved.zeros.iter().all(|number| number % 5 == 0));
        }
        let mut saved = Saved { numbers, ..Saved::default() };
        let failed = saved.copy(NonZeroUsize::new(2).unwrap(), |some, _| {
            if some.contains(&900) { Err(io::Error::from(io::ErrorKind::Other)) } else { Ok(()) }
        });
        assert!(failed.is_err(), "whoever of them it happens to");
    }

    fn named(store: &Store) -> Vec<(u64, u8)> {
        let mut codec = medes_dedup::delta::DeltaCodec::new();
        let mut named = Vec::new();
        for (number, place) in store.table().places() {
            let mut page = [ZERO_PAGE];
            store.rebuild(&mut codec, place, &mut page).unwrap();
            named.push((number, page[0][7]));
        }
        named
    }

    #[test]
    fn zeros_are_left_out_and_the_rest_keeps_its_order() {
        let saved = copied(&[0, 11, 20, 21], Saved { zeros: vec![12], ..Saved::default() });
        assert_eq!((saved.zeros.as_slice(), saved.numbers.as_slice()), (&[0, 12][..], &[11, 20, 21][..]));
        assert_eq!(saved.pages().iter().map(|page| page[7]).collect::<Vec<_>>(), [11, 20, 21]);
    }

    #[test]
    fn what_is_kept_as_it_is_is_carried_along_until_it_changes() {
        let first = copied(&[10, 11, 12, 13, 14], Saved { in_haste: true, ..Saved::default() });
        let store = first.keep(Vec::new());
        assert_eq!(named(&store), [(10, 10), (11, 11), (12, 12), (13, 13), (14, 14)]);
        let before = || Saved { before: store.clone(), in_haste: true, ..Saved::default() };
        let same = copied(&[], before());
        assert!(same.is_as_before(same.kept().len()));
        assert!(!Saved { in_haste: false, ..same }.is_as_before(0), "all of it is to be stored small");
        let next = copied(&[9, 11], Saved { zeros: vec![12], stay: vec![14], ..before() });
        assert_eq!((next.fresh, next.kept(), next.is_as_before(0)), (2, Vec::new(), false));
        assert_eq!(next.numbers, [9, 10, 11, 13]);
        assert_eq!(named(&next.keep(Vec::new())), [(9, 9), (10, 10), (11, 11), (13, 13)]);
        let none = copied(&[], Saved { zeros: vec![10, 11, 12, 13, 14], ..before() });
        let none = none.keep(Vec::new());
        assert!(none.plain().is_none() && named(&none).is_empty());
    }

    #[test]
    fn hot_pages_are_told_by_position() {
        let saved = copied(&[3, 5, 8, 9], Saved { hot: vec![1, 5, 6, 9], ..Saved::default() });
        assert_eq!(saved.hot(), [PageIndex(1), PageIndex(3)]);
    }
}
