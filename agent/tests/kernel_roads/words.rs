//! Sandboxes as words of a base: this node's, another node's, a related function's, and none when that fails.

use medes_agent::{driver::Deduped, faults::Step};
use medes_dedup::{fingerprint::Sampling, paper};
use medes_proto::fleet::{EngineSettings, Level};

use crate::{
    holder::{self, Wire},
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_level_with_words_stores_less_and_asks_less", a_level_with_words_stores_less_and_asks_less),
    ("a_base_of_another_node_comes_here_once", a_base_of_another_node_comes_here_once),
    ("a_base_that_does_not_come_right_is_done_without", a_base_that_does_not_come_right_is_done_without),
    ("a_failed_alignment_is_done_without", a_failed_alignment_is_done_without),
    ("a_related_functions_base_is_found_by_a_sample", a_related_functions_base_is_found_by_a_sample),
];

const SCRATCH: u64 = 512 << 20;

/// Takes a new sandbox's memory and gives it back, the same to the byte; tells what was made of it.
async fn there_and_back(station: &mut Station) -> Deduped {
    let (id, warm) = station.start().await;
    run(&warm, "kept.numbers = [str(i) for i in range(1000)]").await;
    let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
    let (warm, restored) = station.restore(stored).await.expect("a sandbox");
    assert_eq!(deduped.memory_digest, restored.memory_digest, "memory changed: {deduped:?}");
    assert_eq!(value(&warm, "kept.numbers[777]").await, "777");
    warm.housing.remove().await.expect("removed");
    deduped
}

fn pages(deduped: &Deduped) -> u64 {
    let pages = deduped.pages;
    pages.zero + pages.same + pages.delta + pages.whole
}

fn a_level_with_words_stores_less_and_asks_less() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let mut at = async |level| {
            station.set(EngineSettings { level, ..EngineSettings::default() });
            there_and_back(&mut station).await
        };
        let none = at(Level::None).await;
        assert_eq!((none.aligned_with, none.looked_up), (None, pages(&none)));
        let fast = at(Level::Fast).await;
        assert_eq!((fast.aligned_with, &fast.bases), (Some(base), &vec![base]));
        assert!(fast.looked_up * 4 < pages(&fast), "{fast:?}");
        assert!(fast.stored_bytes < none.stored_bytes, "{fast:?} against {none:?}");
        // That it stores less than `fast` can only be told of one and the same memory: see `shrink`.
        let small = at(Level::Small).await;
        assert_eq!((small.aligned_with, &small.bases), (Some(base), &vec![base]));
        assert!(small.stored_bytes < none.stored_bytes, "{small:?} against {none:?}");
        // The paper knows no words, whatever the level.
        let sampling = paper::sampling();
        assert!(matches!(sampling, Sampling::Value { .. }));
        station.set(EngineSettings { sampling, level: Level::Fast, ..EngineSettings::default() });
        let paper = there_and_back(&mut station).await;
        assert_eq!((paper.aligned_with, paper.looked_up), (None, pages(&paper)));
    });
}

fn a_base_of_another_node_comes_here_once() {
    at_station(SCRATCH, async |mut station: Station| {
        let report = station.base().await;
        let snapshot = station.roads.bases.local.get(report.id).expect("the base");
        let (place, holder) = holder::serve_counted(snapshot, Wire::Good).await;
        station.registry.place(place.clone());
        station.roads.bases.remove(report.id);
        for _sandbox in 0..2 {
            let (id, warm) = station.start().await;
            let done = station.dedup_with(id, warm, Some(place.clone())).await;
            let (stored, deduped) = done.expect("a dedup image");
            assert_eq!((deduped.aligned_with, deduped.bases), (Some(report.id), vec![report.id]));
            assert_eq!(
                stored.origin.places.get(&report.id),
                Some(&place),
                "where it can be read without the copy"
            );
            let (warm, restored) = station.restore(stored).await.expect("a sandbox");
            assert_eq!(deduped.memory_digest, restored.memory_digest);
            warm.housing.remove().await.expect("removed");
        }
        assert_eq!(holder.expect("a page service").pages_sent(), report.pages);
        // The copy, and what was found out about it.
        let kept = station.roads.bases.replicas.bytes();
        assert!((report.bytes..2 * report.bytes).contains(&kept), "{kept}");
    });
}

fn a_base_that_does_not_come_right_is_done_without() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let snapshot = station.roads.bases.local.get(base).expect("the base");
        // Single pages come from a node that does everything right.
        station.registry.place(holder::serve(snapshot.clone(), Wire::Good).await);
        station.roads.bases.remove(base);
        for wire in [
            Wire::OneFlippedBit,
            Wire::Short,
            Wire::WrongLayout,
            Wire::TooManyPages,
            Wire::OtherTenant,
            Wire::NoLayout,
        ] {
            let place = holder::serve(snapshot.clone(), wire).await;
            let (id, warm) = station.start().await;
            let done = station.dedup_with(id, warm, Some(place)).await;
            let (stored, deduped) = done.unwrap_or_else(|not| panic!("{wire:?}: {not:?}"));
            assert_eq!(deduped.aligned_with, None, "{wire:?}");
            assert!(deduped.pages.delta > 0, "{wire:?}: {deduped:?}");
            assert_eq!(station.roads.bases.replicas.bytes(), 0, "{wire:?}: kept");
            let (warm, restored) = station.restore(stored).await.expect("a sandbox");
            assert_eq!(deduped.memory_digest, restored.memory_digest);
            warm.housing.remove().await.expect("removed");
        }
    });
}

fn a_failed_alignment_is_done_without() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        for step in [Step::FindBase, Step::Align] {
            station.fail_once(step);
            let deduped = there_and_back(&mut station).await;
            assert_eq!(deduped.aligned_with, None, "{step:?}");
            assert_eq!(deduped.bases, [base], "{step:?}: the registry knows it too");
            assert_eq!(there_and_back(&mut station).await.aligned_with, Some(base), "only once");
        }
    });
}

fn a_related_functions_base_is_found_by_a_sample() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let (id, warm) = station.start_as("relative").await;
        let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
        assert_eq!(deduped.aligned_with, Some(base));
        let (warm, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest);
        warm.housing.remove().await.expect("removed");
    });
}
