//! Images that wait are made smaller, and still are what they were.

use medes_agent::dedupe::shrink::{ShrinkError, Shrunk, shrink};
use medes_agent::{memory_file::MemoryFile, roads::Stored};
use medes_proto::{
    fleet::{EngineSettings, Level},
    ids::SandboxId,
};

use crate::{
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_smaller_image_gives_the_same_sandbox_back", a_smaller_image_gives_the_same_sandbox_back),
    ("what_cannot_be_made_smaller_stays", what_cannot_be_made_smaller_stays),
];

const SCRATCH: u64 = 512 << 20;

async fn shrunk(station: &Station, id: SandboxId, stored: &Stored) -> Result<Option<Shrunk>, ShrinkError> {
    let of = (stored.image.clone(), stored.origin.clone());
    shrink(&station.roads, id, &stored.spec.tenant, of).await
}

fn a_smaller_image_gives_the_same_sandbox_back() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let (id, warm) = station.start().await;
        run(&warm, "kept.numbers = [str(i) for i in range(1000)]").await;
        let (mut stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
        let smaller = shrunk(&station, id, &stored).await.expect("no trouble").expect("smaller");
        assert!(smaller.image.len() < stored.image.len(), "{smaller:?} of {deduped:?}");
        assert_eq!(smaller.bases, [base]);
        stored.image = smaller.image;
        // Again: it is as small as it gets.
        let again = shrunk(&station, id, &stored).await.expect("no trouble");
        assert!(again.is_none(), "{again:?} of {} bytes", stored.image.len());
        let (warm, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest, "memory changed");
        assert_eq!(value(&warm, "kept.numbers[777]").await, "777");
        // Its next image takes over what has not changed.
        let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
        assert!(deduped.pages.reused > 0, "{deduped:?}");
        let (warm, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest, "memory changed");
        warm.housing.remove().await.expect("removed");
    });
}

fn what_cannot_be_made_smaller_stays() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, warm) = station.start().await;
        let (mut stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
        let half = &stored.image.as_ref()[..stored.image.len() / 2];
        let half = MemoryFile::sealed("half", half).expect("memory");
        let whole = std::mem::replace(&mut stored.image, half);
        let broken = shrunk(&station, id, &stored).await;
        assert!(matches!(broken, Err(ShrinkError::Restore(_))), "{broken:?}");
        stored.image = whole;
        let (warm, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest, "memory changed");
        warm.housing.remove().await.expect("removed");
        // Without a base there is nothing to align with a second time.
        station.set(EngineSettings { level: Level::None, ..EngineSettings::default() });
        let (id, warm) = station.start().await;
        let (stored, _) = station.dedup(id, warm).await.expect("a dedup image");
        assert!(shrunk(&station, id, &stored).await.expect("no trouble").is_none());
        stored.housing.remove().await.expect("removed");
    });
}
