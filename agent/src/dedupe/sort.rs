//! Which pages have to be encoded at all: not those that are still what the earlier image holds, and not those that
//! requests write all the time.

use std::{collections::BTreeSet, sync::Arc};

use medes_dedup::{key::PageHasher, page::SnapshotId, words::Earlier as Words};
use medes_proto::{ids::SandboxId, registry::SnapshotPlace};

use crate::{
    criu::images::Owner,
    dump::Dump,
    earlier::{self, Earlier},
    engine::Engine,
    roads::{HotPages, Roads, Warm},
    watch::heat::PageOf,
};

/// What is done with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is this page of the earlier image.
    Taken(usize),
    /// It is kept whole: a delta would be good for one request.
    Hot,
    /// It is encoded as small as can be.
    Fresh,
}

/// All pages of a dump, sorted.
#[derive(Debug)]
pub(super) struct Sorted {
    /// In the order of the pages.
    pub(super) fates: Vec<Fate>,
    /// What pages are taken over from, if there is anything.
    pub(super) earlier: Option<Arc<Earlier>>,
}

impl Sorted {
    /// Positions of the pages with a fate.
    fn positions(&self, wanted: Fate) -> Vec<usize> {
        self.fates.iter().enumerate().filter(|(_, fate)| **fate == wanted).map(|(at, _)| at).collect()
    }

    pub(super) fn hot(&self) -> Vec<usize> {
        self.positions(Fate::Hot)
    }

    pub(super) fn is_fresh(&self, at: usize) -> bool {
        self.fates.get(at) == Some(&Fate::Fresh)
    }

    /// How many pages are taken over.
    pub(super) fn taken(&self) -> u64 {
        self.fates.iter().filter(|fate| matches!(fate, Fate::Taken(_))).count() as u64
    }

    /// What the earlier image knows of so many pages that are to be made of the words of this base: how those that are
    /// taken over are.
    pub(super) fn words(&self, base: SnapshotId, pages: usize) -> Option<Words<'_>> {
        // An image has relations for all its bases, but those without pages of words say nothing.
        let earlier = self.earlier.as_ref().filter(|_| self.earlier_base() == Some(base))?;
        earlier.image.earlier(base, std::iter::repeat_n(None, pages))
    }

    fn earlier_base(&self) -> Option<SnapshotId> {
        self.earlier.as_ref()?.origin.aligned_with
    }

    /// The base that the earlier image is aligned with: the rest has to be aligned with it too, for an image has one
    /// relation for each base.
    pub(super) fn base(&self) -> Option<SnapshotPlace> {
        self.earlier.as_ref()?.base().cloned()
    }
}

/// Sorts the pages of a dump. `windows`: whether this life's writes are known to the heat already.
pub(super) async fn sort(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    dump: &Arc<Dump>,
    (engine, windows): (&Engine, bool),
) -> Sorted {
    let earlier = usable(roads, sandbox, warm).await;
    let mut fates = vec![Fate::Fresh; dump.pages().len()];
    let of = owners(dump);
    if let Some(earlier) = &earlier {
        let hasher = PageHasher::new(engine.key());
        let same = earlier::unchanged(earlier.clone(), dump.clone(), engine, hasher).await;
        for (fate, at) in fates.iter_mut().zip(same) {
            *fate = at.map_or(Fate::Fresh, Fate::Taken);
        }
        if let (Some(tracked), false) = (&warm.past.tracked, windows) {
            let written = of.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Fresh);
            tracked.learn(written.filter_map(|(page, _)| *page)).await;
        }
    }
    if let (Some(tracked), true) = (&warm.past.tracked, roads.hot_pages != HotPages::Encode) {
        let hot: BTreeSet<PageOf> = tracked.hot().await.into_iter().collect();
        for (fate, page) in fates.iter_mut().zip(&of) {
            // One that has not changed costs nothing, however hot it is.
            if *fate == Fate::Fresh && page.is_some_and(|page| hot.contains(&page)) {
                *fate = Fate::Hot;
            }
        }
    }
    Sorted { fates, earlier }
}

/// The earlier image, if its bases will stay as long as the new one needs them.
async fn usable(roads: &Roads, sandbox: SandboxId, warm: &Warm) -> Option<Arc<Earlier>> {
    let earlier = warm.past.earlier.clone()?;
    match roads.registry.acquire(sandbox, earlier.image.bases()).await {
        Ok(()) => Some(earlier),
        Err(error) => {
            tracing::info!(%sandbox, error = &error as &dyn std::error::Error, "its earlier image is of no use");
            None
        }
    }
}

/// For each page whose it is and where; `None` for shared memory.
fn owners(dump: &Dump) -> Vec<Option<PageOf>> {
    let files = dump.page_files().iter();
    let pages = files.flat_map(|file| {
        let process = match file.owner {
            Owner::Process { pid } => i32::try_from(pid).ok(),
            Owner::Shared { .. } => None,
        };
        file.addresses().map(move |address| Some(PageOf { process: process?, page: address / 4096 }))
    });
    pages.collect()
}
