//! The table against a naive model.

use std::collections::BTreeSet;

use medes_dedup::{fingerprint::ChunkHash, page::BasePage};
use medes_proto::limits::PAGE_CANDIDATES_MAX;
use proptest::prelude::*;

use super::*;

fn snapshot(number: u64) -> SnapshotId {
    SnapshotId::new(number).unwrap()
}

fn fingerprints(pages: &[Vec<u64>]) -> Fingerprints {
    let mut all = Fingerprints::default();
    for page in pages {
        all.push(&page.iter().copied().map(ChunkHash::new).collect::<Vec<_>>());
    }
    all
}

/// Every entry in one set; lookups look at all of them.
#[derive(Default)]
struct Model(BTreeSet<(u64, SnapshotId, u32)>);

impl Model {
    fn lookup(&self, hashes: &[u64]) -> Vec<Hint> {
        let mut votes = BTreeMap::<BasePage, u8>::new();
        for hash in hashes {
            for &(_, snapshot, page) in self.0.iter().filter(|entry| entry.0 == *hash) {
                *votes.entry(BasePage { snapshot, page: PageIndex(page) }).or_default() += 1;
            }
        }
        let mut hints: Vec<_> = votes.into_iter().map(|(base, votes)| Hint { base, votes }).collect();
        hints.sort_by_key(|hint| (std::cmp::Reverse(hint.votes), hint.base));
        hints.truncate(PAGE_CANDIDATES_MAX);
        hints
    }
}

#[derive(Debug, Clone)]
enum Step {
    Register(u64, u32, Vec<Vec<u64>>),
    Forget(u64),
    Lookup(Vec<Vec<u64>>),
}

fn pages() -> impl Strategy<Value = Vec<Vec<u64>>> {
    // Few distinct hashes, spread over shards, so that pages really share them.
    let hash = (0u64..40).prop_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let page = prop::collection::btree_set(hash, 0..8).prop_map(|set| set.into_iter().collect());
    prop::collection::vec(page, 0..6)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..6, 0u32..20, pages()).prop_map(|(s, first, pages)| Step::Register(s, first, pages)),
        1 => (1u64..6).prop_map(Step::Forget),
        3 => pages().prop_map(Step::Lookup),
    ]
}

proptest! {
    #[test]
    fn answers_as_the_model_does(steps in prop::collection::vec(step(), 0..60)) {
        let table = Table::new(TableSettings { entries_max: u64::MAX, list_max: usize::MAX });
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Register(id, first, pages) => {
                    let before = model.0.len() as u64;
                    for (page, hashes) in (first..).zip(&pages) {
                        model.0.extend(hashes.iter().map(|&hash| (hash, snapshot(id), page)));
                    }
                    let result = table.register(snapshot(id), PageIndex(first), &fingerprints(&pages));
                    prop_assert_eq!(result.added, model.0.len() as u64 - before);
                    prop_assert_eq!(result.refused, 0);
                }
                Step::Forget(id) => {
                    model.0.retain(|entry| entry.1 != snapshot(id));
                    table.forget(snapshot(id));
                }
                Step::Lookup(pages) => {
                    let expected: Vec<_> = pages.iter().map(|page| model.lookup(page)).collect();
                    prop_assert_eq!(table.lookup(&fingerprints(&pages), &|_| true), expected);
                }
            }
            prop_assert_eq!(table.size().entries, model.0.len() as u64);
        }
    }
}

#[test]
fn a_chunk_that_is_everywhere_cannot_fill_the_registry() {
    let table = Table::new(TableSettings { entries_max: 1_000, list_max: 8 });
    let everywhere = vec![vec![7]; 500];
    let result = table.register(snapshot(1), PageIndex(0), &fingerprints(&everywhere));
    assert_eq!(result, Registered { added: 8, refused: 492 });
    assert_eq!(table.lookup(&fingerprints(&[vec![7]]), &|_| true)[0].len(), 8);
}

#[test]
fn a_full_registry_refuses_and_still_answers() {
    let table = Table::new(TableSettings { entries_max: 3, list_max: 8 });
    let pages: Vec<_> = (1..=5).map(|n| vec![n << 40]).collect();
    let result = table.register(snapshot(1), PageIndex(0), &fingerprints(&pages));
    assert_eq!(result, Registered { added: 3, refused: 2 });
    assert_eq!(
        table.lookup(&fingerprints(&pages), &|_| true).iter().filter(|hints| !hints.is_empty()).count(),
        3
    );
    table.forget(snapshot(1));
    assert_eq!(table.size().entries, 0);
    assert_eq!(table.register(snapshot(2), PageIndex(0), &fingerprints(&pages)).added, 3);
}

#[test]
fn snapshots_that_are_not_admitted_do_not_crowd_out_others() {
    let table = Table::new(TableSettings { entries_max: 100, list_max: 50 });
    for id in 1..=20 {
        table.register(snapshot(id), PageIndex(0), &fingerprints(&[vec![7]]));
    }
    let hints = table.lookup(&fingerprints(&[vec![7]]), &|id| id == snapshot(20));
    assert_eq!(hints[0].len(), 1);
    assert_eq!(hints[0][0].base.snapshot, snapshot(20));
}

#[test]
fn lookups_registrations_and_forgetting_may_meet() {
    let table = Table::new(TableSettings::default());
    let pages: Vec<_> = (0..200u64).map(|n| vec![n.wrapping_mul(0x9e37_79b9_7f4a_7c15)]).collect();
    let all = fingerprints(&pages);
    std::thread::scope(|threads| {
        for id in 1..=2 {
            let (table, all) = (&table, &all);
            threads.spawn(move || {
                for _round in 0..50 {
                    table.register(snapshot(id), PageIndex(0), all);
                    for hints in table.lookup(all, &|_| true) {
                        assert!(hints.iter().all(|hint| hint.base.snapshot.get() <= 2));
                    }
                    table.forget(snapshot(id));
                }
            });
        }
    });
    assert_eq!(table.size().entries, 0);
}
