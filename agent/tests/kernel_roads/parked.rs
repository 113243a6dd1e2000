//! What was parked in haste is stored small while it waits, and is what it was.

use medes_agent::{
    faults::Step,
    pager::ShrinkParkedError,
    park::{self, ShrinkError},
    roads::Warm,
};

use crate::{
    late::{SCRATCH, SUM, init},
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "what_was_parked_in_haste_becomes_words_of_its_base",
        what_was_parked_in_haste_becomes_words_of_its_base,
    ),
    (
        "who_is_wanted_back_before_it_is_stored_small_has_all",
        who_is_wanted_back_before_it_is_stored_small_has_all,
    ),
];

/// Some that each request changes a little, as programs do.
const CHANGE: &str = "
kept.turn = getattr(kept, 'turn', 0) + 1
for page in range(0, 4096, 16): kept.data[page * 4096 + 9] = kept.turn % 256
kept.total = kept.hashlib.sha256(kept.data).hexdigest()
";

/// Bytes that are kept for it once it is stored small; `None`: it stays stored as it is.
async fn shrunk(station: &Station, warm: &Warm) -> Result<Option<u64>, ShrinkError> {
    let paged = warm.paged.clone().expect("parked");
    let shrunk = park::shrink(&station.roads, &warm.spec.tenant, paged).await?;
    let Some((smaller, _)) = shrunk else { return Ok(None) };
    assert_eq!(smaller.stored_bytes, warm.paged.as_ref().expect("parked").stored_bytes());
    Ok(Some(smaller.stored_bytes))
}

async fn unpark(warm: &Warm) {
    warm.paged.as_ref().expect("parked").unpark().await.expect("thawed");
}

fn what_was_parked_in_haste_becomes_words_of_its_base() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "pass").await;
        let id = station.id();
        let (mut clone, _) =
            station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
        for cycle in 0..4 {
            run(&clone, CHANGE).await;
            let (parked, deduped) = station.park(id, clone).await;
            clone = parked;
            if cycle > 0 {
                assert!(deduped.shrinks, "it is known what it touches: {deduped:?}");
                let small = shrunk(&station, &clone).await.expect("no trouble").expect("smaller");
                println!("cycle {cycle}: {} bytes, then {small}", deduped.stored_bytes);
                // Of 256 pages that are nearly as in the base, and others.
                assert!(small + (512 << 10) < deduped.stored_bytes, "{small} of {deduped:?}");
                assert_eq!(shrunk(&station, &clone).await.expect("no trouble"), None, "as small as it gets");
            }
            unpark(&clone).await;
            assert_eq!(value(&clone, SUM).await, "49999", "cycle {cycle}");
        }
        clone.housing.remove().await.expect("removed");
    });
}

fn who_is_wanted_back_before_it_is_stored_small_has_all() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "pass").await;
        let id = station.id();
        let (mut clone, _) =
            station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
        for cycle in 0..6 {
            run(&clone, CHANGE).await;
            clone = station.park(id, clone).await.0;
            match cycle % 3 {
                // In the middle of it, and while it writes.
                0 => {
                    let run = async {
                        unpark(&clone).await;
                        run(&clone, CHANGE).await;
                    };
                    let (shrunk, ()) = tokio::join!(shrunk(&station, &clone), run);
                    shrunk.expect("no trouble");
                }
                // When it has moved and given up some of it.
                1 => {
                    unpark(&clone).await;
                    run(&clone, "kept.numbers = list(kept.numbers); kept.data += bytes(1 << 22); del kept.data[1 << 24:]").await;
                    shrunk(&station, &clone).await.expect("no trouble");
                }
                _ => {
                    station.fail_once(Step::ShrinkParked);
                    let failed = shrunk(&station, &clone).await;
                    assert!(
                        matches!(failed, Err(ShrinkError::Shrink(ShrinkParkedError::Injected(_)))),
                        "{failed:?}"
                    );
                    unpark(&clone).await;
                }
            }
            assert_eq!(value(&clone, SUM).await, "49999", "cycle {cycle}");
        }
        clone.housing.remove().await.expect("removed");
    });
}
