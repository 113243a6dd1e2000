//! The sandbox's largest process as words of a base: which base, brought here as a whole, aligned, encoded.
//!
//! All of this only makes the image smaller. Whatever goes wrong is told, and the pages go the other way: each by itself,
//! with candidates of the registry.

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use medes_dedup::{
    encode::EncodedPage,
    page::{Page, SnapshotId, is_zero},
    words::{Memory, MemoryError},
};
use medes_proto::{fleet::Level, ids::SandboxId, registry::SnapshotPlace};

use super::sort::{Fate, Sorted};
use crate::{
    bases::{indexes::Indexes, local::Snapshot, replicas::FetchError},
    dump::Dump,
    engine::Engine,
    faults::{Injected, Step},
    layout::UnknownLayout,
    page_work::{
        self,
        words::{Worded, WordsBase},
    },
    registry::{Hints, RegistryError},
    roads::{Roads, Warm, blocking},
};

/// Some pages of a dump as words of a base.
pub(super) struct Words {
    /// Where the base is.
    pub(super) place: SnapshotPlace,
    /// Positions of the pages among those of the dump, in order.
    pub(super) pages: Vec<usize>,
    /// The pages.
    pub(super) worded: Worded,
}

impl Words {
    /// The pages with their positions.
    pub(super) fn encoded(&self) -> impl Iterator<Item = (usize, EncodedPage<'_>)> {
        super::placed((&self.pages, &self.worded.runs))
    }
}

/// Why a sandbox is stored without being aligned with a base.
#[derive(Debug, thiserror::Error)]
pub enum NotAligned {
    /// The registry was asked which base there is.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The base did not come here.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is not known where its pages were.
    #[error(transparent)]
    Layout(#[from] UnknownLayout),
    /// It has no private memory at all.
    #[error("it has no process with pages")]
    NoProcess,
    /// It is not known where the base's pages were.
    #[error("{0} has no layout")]
    NoLayout(SnapshotId),
    /// The base's largest process runs something else.
    #[error("{0} is of another program")]
    OtherProgram(SnapshotId),
    /// Its pages, or those of the base, are not in order.
    #[error("its memory, or the base's")]
    Memory(#[from] MemoryError),
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// Encodes what can be made of words of a base: the one the earlier image is aligned with or the controller named, else this node's own of the same function,
/// else the one that a sample of the pages votes for. `None`, and a line in the log, if there is no such base or no way.
pub(super) async fn encode(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    dump: &Arc<Dump>,
    (engine, named, sorted): (&Engine, Option<SnapshotPlace>, &Arc<Sorted>),
) -> Option<Words> {
    if engine.level() == Level::None || !sorted.fates.contains(&Fate::Fresh) {
        return None;
    }
    let named = sorted.base().or(named);
    let words = async {
        let Some(place) = find(roads, sandbox, warm, dump, (engine, named)).await? else { return Ok(None) };
        let base = roads.bases.whole(&place, &warm.spec.tenant).await?;
        roads.faults.pass(Step::Align)?;
        let (dump, engine, bases) = (dump.clone(), engine.clone(), roads.bases.clone());
        let sorted = sorted.clone();
        let aligned = blocking(move || {
            let rules = (engine.key(), engine.encode_rules());
            align((&dump, &sorted), &base, &bases.indexes, |memory, base| {
                let earlier = sorted.words(base.snapshot, memory.pages().len());
                page_work::words::encode(
                    memory,
                    base,
                    (engine.level(), earlier.as_ref(), &[]),
                    rules,
                    engine.threads,
                )
            })
        });
        let (pages, worded) = aligned.await?;
        Ok::<_, NotAligned>(Some(Words { place, pages, worded }))
    };
    words.await.unwrap_or_else(|error| {
        tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "stored without a base to align with");
        None
    })
}

/// Brings both sides together: the largest process of each, if these run the same program. Of the sandbox's only what
/// has to be encoded.
pub(super) fn align(
    (dump, sorted): (&Dump, &Sorted),
    base: &Snapshot,
    indexes: &Indexes,
    encode: impl FnOnce(Memory<'_>, WordsBase<'_>) -> Worded,
) -> Result<(Vec<usize>, Worded), NotAligned> {
    let (file, layout) = dump.processes()?.into_iter().next().ok_or(NotAligned::NoProcess)?;
    let main = base.main_process().ok_or(NotAligned::NoLayout(base.id))?;
    if layout.program() != main.layout.program() {
        return Err(NotAligned::OtherProgram(base.id));
    }
    let index = indexes.of(base.id, &main)?;
    let (range, pages) = dump.pages_of(file);
    let all = range.zip(pages).zip(layout.addresses()).map(|((at, page), address)| (at, (page, address)));
    let fresh = all.filter(|(at, _)| sorted.is_fresh(*at));
    let (positions, (pages, addresses)): (Vec<_>, (Vec<_>, Vec<_>)) = fresh.unzip();
    let mappings = layout.mappings();
    let memory = Memory::new(&pages, &addresses, &mappings)?;
    let base = WordsBase { snapshot: base.id, index: &index, pages: &main.pages, facts: base.facts() };
    Ok((positions, encode(memory, base)))
}

async fn find(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    dump: &Arc<Dump>,
    (engine, named): (&Engine, Option<SnapshotPlace>),
) -> Result<Option<SnapshotPlace>, NotAligned> {
    roads.faults.pass(Step::FindBase)?;
    if named.is_some() {
        return Ok(named);
    }
    let node = roads.bases.node();
    if let Some(own) = roads.bases.local.of_function(&warm.spec.name, &warm.spec.tenant) {
        return Ok(Some(SnapshotPlace { snapshot: own.id, node: node.clone(), address: String::new() }));
    }
    let fingerprinter = engine.fingerprinter();
    let (dump, threads) = (dump.clone(), engine.threads);
    let sampled = move || page_work::fingerprint(&sample(&dump.pages()), &fingerprinter, threads);
    let hints = roads.registry.lookup(sandbox, &blocking(sampled).await).await?;
    Ok(elected(&hints, |place| place.node == *node))
}

/// Pages asked about to find the base of a related function.
const SAMPLE_PAGES: usize = 128;

/// Pages from all over the sandbox, without those of zeros.
fn sample<'p>(pages: &[&'p Page]) -> Vec<&'p Page> {
    let step = pages.len().div_ceil(SAMPLE_PAGES).max(1);
    pages.iter().step_by(step).filter(|page| !is_zero(page)).copied().collect()
}

/// One chunk in common may be chance.
const VOTES_MIN: u8 = 2;
/// A base is worth to be brought here as a whole if one page in so many resembles one of its pages.
const PAGES_PER_VOTE: usize = 4;

/// The snapshot that most pages resemble, if these are enough; among equals one that is here, then the oldest.
fn elected(hints: &Hints, is_here: impl Fn(&SnapshotPlace) -> bool) -> Option<SnapshotPlace> {
    let mut voters: BTreeMap<SnapshotId, usize> = BTreeMap::new();
    for page in &hints.pages {
        let mut resembled: Vec<SnapshotId> =
            page.iter().filter(|hint| hint.votes >= VOTES_MIN).map(|hint| hint.base.snapshot).collect();
        resembled.sort_unstable();
        resembled.dedup();
        resembled.into_iter().for_each(|snapshot| *voters.entry(snapshot).or_default() += 1);
    }
    let enough = voters.into_iter().filter(|(_, pages)| pages * PAGES_PER_VOTE >= hints.pages.len());
    let known = enough.filter_map(|(snapshot, pages)| Some((pages, hints.places.get(&snapshot)?)));
    let (_, place) = known.min_by_key(|(pages, place)| (Reverse(*pages), !is_here(place), place.snapshot))?;
    Some(place.clone())
}

#[cfg(test)]
mod tests {
    use medes_dedup::page::{BasePage, PageIndex, ZERO_PAGE};
    use medes_proto::registry::Hint;

    use super::*;

    fn id(number: u64) -> SnapshotId {
        SnapshotId::new(number).unwrap()
    }

    /// For each page the snapshots that resemble it, with their votes; 1 and 3 are elsewhere.
    fn hints(pages: &[&[(u64, u8)]]) -> Hints {
        let hint = |&(snapshot, votes): &(u64, u8)| Hint {
            base: BasePage { snapshot: id(snapshot), page: PageIndex(0) },
            votes,
        };
        let place = |number: u64| {
            let node = if number == 2 { "here" } else { "there" }.parse().unwrap();
            (id(number), SnapshotPlace { snapshot: id(number), node, address: String::new() })
        };
        Hints {
            pages: pages.iter().map(|page| page.iter().map(hint).collect()).collect(),
            places: (1..=3).map(place).collect(),
        }
    }

    fn winner(pages: &[&[(u64, u8)]]) -> Option<u64> {
        elected(&hints(pages), |place| place.node.as_str() == "here").map(|place| place.snapshot.get())
    }

    #[test]
    fn the_base_that_most_pages_resemble_is_elected() {
        assert_eq!(winner(&[&[(1, 5), (3, 9)], &[(1, 2)], &[(3, 9), (3, 8)], &[(1, 3)]]), Some(1));
        assert_eq!(winner(&[&[(1, 5), (2, 2)], &[(2, 2), (1, 9)]]), Some(2), "among equals, the one here");
        assert_eq!(winner(&[&[(3, 5)], &[(1, 9)]]), Some(1), "then the oldest");
    }

    #[test]
    fn a_base_that_hardly_resembles_it_is_not() {
        assert_eq!(winner(&[&[(1, 1)], &[(1, 1)]]), None, "one chunk is chance");
        assert_eq!(winner(&[&[(1, 9)], &[], &[], &[], &[]]), None, "one page of five");
        assert_eq!(winner(&[&[(7, 9)]]), None, "nobody knows where it is");
        assert_eq!(winner(&[]), None);
    }

    #[test]
    fn a_sample_is_small_and_from_all_over() {
        let mut page = ZERO_PAGE;
        page[0] = 1;
        let pages: Vec<&Page> = vec![&page; 10 * SAMPLE_PAGES + 1];
        assert!((SAMPLE_PAGES / 2..=SAMPLE_PAGES).contains(&sample(&pages).len()));
        assert_eq!(sample(&[&ZERO_PAGE, &page]).len(), 1);
        assert!(sample(&[]).is_empty());
    }
}
