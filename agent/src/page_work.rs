//! The work on all pages of a sandbox, spread over a few threads. Blocks: call it from a blocking thread.

pub mod words;

use std::{num::NonZeroUsize, thread};

use medes_dedup::{
    delta::DeltaCodec,
    encode::{EncodeRules, EncodedRun, Encoder},
    fingerprint::{Fingerprint, Fingerprinter},
    image::DedupImage,
    key::{DomainKey, PageHash, PageHasher},
    page::{BasePage, Page, PageIndex, is_zero},
    rebuild::RebuildError,
};

use crate::bases::HeldPages;

/// Pages per thread below which another thread costs more than it brings.
const PAGES_MIN: usize = 512;

/// Pages each of `threads` workers takes, in order.
fn share(pages: usize, threads: NonZeroUsize) -> usize {
    pages.div_ceil(threads.get()).max(PAGES_MIN)
}

/// A worker's result; a panic in it is a panic here.
pub(crate) fn finish<T>(worker: thread::ScopedJoinHandle<'_, T>) -> T {
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Has each of a few threads work on a part of something, one item a page; what they came to, in order.
pub fn spread<T: Sync, R: Send>(
    items: &[T],
    threads: NonZeroUsize,
    work: impl Fn(&[T]) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let work = &work;
        let parts = items.chunks(share(items.len(), threads));
        let workers: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        workers.into_iter().map(finish).collect()
    })
}

/// The fingerprints of all pages, in order.
pub fn fingerprint(
    pages: &[&Page],
    fingerprinter: &Fingerprinter,
    threads: NonZeroUsize,
) -> Vec<Fingerprint> {
    let work =
        |pages: &[&Page]| -> Vec<_> { pages.iter().map(|page| fingerprinter.fingerprint(page)).collect() };
    thread::scope(|scope| {
        let workers: Vec<_> =
            pages.chunks(share(pages.len(), threads)).map(|pages| scope.spawn(move || work(pages))).collect();
        workers.into_iter().flat_map(finish).collect()
    })
}

/// Whether each page has the hash that is given for it; one without has not.
pub fn have_hashes(
    pages: &[&Page],
    hashes: &[Option<PageHash>],
    hasher: &PageHasher,
    threads: NonZeroUsize,
) -> Vec<bool> {
    let hash = |page: &Page| if is_zero(page) { hasher.zero() } else { hasher.hash(page) };
    let work = |pages: &[&Page], hashes: &[Option<PageHash>]| -> Vec<bool> {
        let pairs = pages.iter().zip(hashes);
        pairs.map(|(page, expected)| expected.is_some_and(|expected| hash(page) == expected)).collect()
    };
    let share = share(pages.len(), threads);
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> = pages
            .chunks(share)
            .zip(hashes.chunks(share))
            .map(|(pages, hashes)| scope.spawn(move || work(pages, hashes)))
            .collect();
        workers.into_iter().flat_map(finish).collect()
    })
}

/// A base page was chosen but is not among those that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("page {} of {} was not read", .0.page.0, .0.snapshot)]
pub struct MissingBasePage(pub BasePage);

/// Encodes all pages, each with the base pages chosen for it (`choices`, in page order).
pub fn encode(
    pages: &[&Page],
    choices: &[Vec<BasePage>],
    bases: &HeldPages,
    (key, rules): (&DomainKey, EncodeRules),
    threads: NonZeroUsize,
) -> Result<Vec<EncodedRun>, MissingBasePage> {
    let work = |pages: &[&Page], choices: &[Vec<BasePage>]| {
        let mut encoder = Encoder::new(key, rules);
        let mut run = EncodedRun::new();
        let mut candidates = Vec::new();
        for (page, chosen) in pages.iter().zip(choices) {
            candidates.clear();
            for &base in chosen {
                candidates.push((base, bases.page(base).ok_or(MissingBasePage(base))?));
            }
            run.push(&encoder.encode_page(page, &candidates));
        }
        tell_distrust(&encoder);
        Ok(run)
    };
    let share = share(pages.len(), threads);
    thread::scope(|scope| {
        let workers: Vec<_> = pages
            .chunks(share)
            .zip(choices.chunks(share))
            .map(|(pages, choices)| scope.spawn(move || work(pages, choices)))
            .collect();
        workers.into_iter().map(finish).collect()
    })
}

fn tell_distrust(encoder: &Encoder) {
    let pages = encoder.distrusted();
    if pages > 0 {
        tracing::error!(
            pages,
            "stored bytes did not give a page back; kept raw: codec or memory is defective"
        );
    }
}

/// Rebuilds single pages of an image.
pub fn rebuild_some<B: AsRef<[u8]> + Sync>(
    image: &DedupImage<B>,
    bases: &HeldPages,
    out: &mut [(PageIndex, &mut Page)],
    threads: NonZeroUsize,
) -> Result<(), RebuildError> {
    let share = share(out.len(), threads);
    thread::scope(|scope| {
        let work = |out: &mut [(PageIndex, &mut Page)]| {
            let mut codec = DeltaCodec::new();
            out.iter_mut().try_for_each(|(index, page)| image.rebuild_from(&mut codec, *index, bases, page))
        };
        let workers: Vec<_> = out.chunks_mut(share).map(|out| scope.spawn(move || work(out))).collect();
        workers.into_iter().try_for_each(finish)
    })
}

/// Rebuilds all pages of an image into `out`, which has as many.
pub fn rebuild<B: AsRef<[u8]> + Sync>(
    image: &DedupImage<B>,
    bases: &HeldPages,
    out: &mut [&mut Page],
    threads: NonZeroUsize,
) -> Result<(), RebuildError> {
    let work = |first: usize, out: &mut [&mut Page]| {
        let mut codec = DeltaCodec::new();
        for (at, page) in (first..).zip(out) {
            let index = PageIndex(u32::try_from(at).unwrap_or(u32::MAX));
            image.rebuild_from(&mut codec, index, bases, page)?;
        }
        Ok(())
    };
    let share = share(out.len(), threads);
    thread::scope(|scope| {
        let workers: Vec<_> = out
            .chunks_mut(share)
            .enumerate()
            .map(|(i, out)| scope.spawn(move || work(i * share, out)))
            .collect();
        workers.into_iter().try_for_each(finish)
    })
}
