//! What does not work leaves nothing behind, and never wrong bytes: after a failed dedup the sandbox is warm, after
//! a failed restore there is none.

use std::{io::Write, sync::Arc};

use medes_agent::{
    bases::local::Snapshot,
    faults::Step,
    memory_file::{MappedFile, MemoryFile},
    roads::{Stored, Warm},
};
use medes_dedup::page::{Page, SnapshotId};
use medes_proto::{failure::FailureKind, ids::SandboxId, registry::SnapshotPlace};

use crate::{
    holder::{self, Wire},
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_dedup_that_fails_at_any_step_leaves_the_sandbox_warm",
        a_dedup_that_fails_at_any_step_leaves_the_sandbox_warm,
    ),
    ("a_restore_that_fails_at_any_step_leaves_nothing", a_restore_that_fails_at_any_step_leaves_nothing),
    ("a_flipped_bit_anywhere_in_an_image_is_seen", a_flipped_bit_anywhere_in_an_image_is_seen),
    ("a_flipped_bit_in_a_base_page_is_seen", a_flipped_bit_in_a_base_page_is_seen),
    (
        "base_pages_from_another_node_are_used_only_if_they_are_right",
        base_pages_from_another_node_are_used_only_if_they_are_right,
    ),
    ("a_base_that_is_gone_is_told", a_base_that_is_gone_is_told),
    (
        "a_base_whose_holder_breaks_off_is_read_from_another_node",
        a_base_whose_holder_breaks_off_is_read_from_another_node,
    ),
    ("a_copy_of_a_base_is_held_like_one_made_here", a_copy_of_a_base_is_held_like_one_made_here),
    ("what_could_never_come_back_stays_warm", what_could_never_come_back_stays_warm),
    ("a_full_scratch_is_told_by_who_needs_it", a_full_scratch_is_told_by_who_needs_it),
    ("a_dump_that_has_no_place_leaves_the_sandbox_warm", a_dump_that_has_no_place_leaves_the_sandbox_warm),
    (
        "an_open_connection_is_refused_before_anything_is_touched",
        an_open_connection_is_refused_before_anything_is_touched,
    ),
];

const SCRATCH: u64 = 512 << 20;

async fn works(warm: &Warm) {
    assert_eq!(value(warm, "6 * 7").await, "42");
}

fn a_dedup_that_fails_at_any_step_leaves_the_sandbox_warm() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, mut warm) = station.start().await;
        let pid = warm.tree.pid();
        for step in [
            Step::Preflight,
            Step::Dump,
            Step::Lookup,
            Step::ReadBases,
            Step::Encode,
            Step::Seal,
            Step::Acquire,
        ] {
            station.fail_once(step);
            let Err(not) = station.dedup(id, warm).await else { panic!("no failure at {step:?}") };
            let failure = not.error.failure(id);
            assert!(failure.message.contains(&format!("{step:?}")), "{failure:?}");
            warm = not.warm;
            assert_eq!(warm.tree.pid(), pid, "the same processes");
            works(&warm).await;
            assert_eq!(std::fs::read_dir(warm.housing.work_dir()).expect("work folder").count(), 0);
        }
        // And after all that it can still go and come back.
        let (stored, _) = station.dedup(id, warm).await.expect("a dedup image");
        let (warm, _) = station.restore(stored).await.expect("a sandbox");
        works(&warm).await;
        warm.housing.remove().await.expect("removed");
    });
}

fn a_restore_that_fails_at_any_step_leaves_nothing() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        for step in [Step::Open, Step::ReadBack, Step::Rebuild, Step::CriuRestore, Step::Resume] {
            let (id, warm) = station.start().await;
            let (stored, _) = station.dedup(id, warm).await.expect("a dedup image");
            station.fail_once(step);
            let Err(not) = station.restore(stored).await else { panic!("no failure at {step:?}") };
            let failure = not.error.failure(id);
            assert!(failure.message.contains(&format!("{step:?}")), "{failure:?}");
            let cgroup = not.housing.cgroup().clone();
            not.housing.remove().await.expect("removed");
            assert!(cgroup.pids().map_or(true, |pids| pids.is_empty()), "processes stay after {step:?}");
        }
    });
}

async fn stored(station: &mut Station) -> (SandboxId, Stored) {
    let (id, warm) = station.start().await;
    let (stored, _) = station.dedup(id, warm).await.expect("a dedup image");
    (id, stored)
}

fn sealed(bytes: &[u8]) -> MappedFile {
    let mut file = MemoryFile::create("test").expect("a memory file");
    file.write_all(bytes).expect("room");
    file.seal().expect("sealed")
}

fn a_flipped_bit_anywhere_in_an_image_is_seen() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        for part in 0..8 {
            let (id, mut stored) = stored(&mut station).await;
            let mut bytes = stored.image.as_ref().to_vec();
            // Header, arena, recipes, sections, checksum: spread over the whole file.
            let at = (bytes.len() - 1) * part / 7;
            bytes[at] ^= 1 << (part % 8);
            stored.image = sealed(&bytes);
            let Err(not) = station.restore(stored).await else { panic!("bit {at} of the image went unseen") };
            let failure = not.error.failure(id);
            assert_eq!(failure.kind, FailureKind::Corrupt, "{failure:?}");
            not.housing.remove().await.expect("removed");
        }
    });
}

fn a_flipped_bit_in_a_base_page_is_seen() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await;
        let (id, stored) = stored(&mut station).await;
        let bases = &station.roads.bases.local;
        let good = bases.get(base.id).expect("the base");
        // One bit in every page: whichever pages the image uses, one of them is wrong.
        let bytes: Vec<u8> = good.pages().flat_map(flipped).collect();
        let bad =
            Snapshot::new(base.id, good.function.clone(), good.tenant.clone(), sealed(&bytes), Vec::new());
        bases.insert(Arc::new(bad.expect("whole pages")));
        let Err(not) = station.restore(stored).await else { panic!("wrong base pages went unseen") };
        let failure = not.error.failure(id);
        assert_eq!(failure.kind, FailureKind::Corrupt, "{failure:?}");
        not.housing.remove().await.expect("removed");
    });
}

fn base_pages_from_another_node_are_used_only_if_they_are_right() {
    at_station(SCRATCH, async |mut station: Station| {
        for (wire, expected) in [
            (Wire::Good, None),
            (Wire::FlippedBit, Some(FailureKind::Corrupt)),
            (Wire::Short, Some(FailureKind::BaseLost)),
        ] {
            // Each time another base, so that no copy of an earlier one can help.
            let base = station.base().await.id;
            let snapshot = station.roads.bases.local.get(base).expect("the base");
            let (id, mut stored) = stored(&mut station).await;
            stored.origin.places.insert(base, holder::serve(snapshot.clone(), wire).await);
            station.roads.bases.local.remove(base);
            match (station.restore(stored).await, expected) {
                (Ok((warm, _)), None) => {
                    works(&warm).await;
                    warm.housing.remove().await.expect("removed");
                }
                (Err(not), Some(kind)) => {
                    let failure = not.error.failure(id);
                    assert_eq!(failure.kind, kind, "{wire:?}: {failure:?}");
                    not.housing.remove().await.expect("removed");
                }
                (result, _) => panic!("{wire:?} gave {result:?}"),
            }
            station.roads.bases.local.insert(snapshot);
        }
    });
}

fn a_base_whose_holder_breaks_off_is_read_from_another_node() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let snapshot = station.roads.bases.local.get(base).expect("the base");
        let (_, mut stored) = stored(&mut station).await;
        let short = holder::serve(snapshot.clone(), Wire::Short).await;
        stored.origin.places.insert(base, short.clone());
        let good = holder::serve(snapshot.clone(), Wire::Good).await;
        // The controller has not noticed yet: it still names the one that does not deliver, and first.
        station.registry.also(short);
        station.registry.also(SnapshotPlace { node: "other".parse().expect("a name"), ..good });
        station.roads.bases.local.remove(base);
        let (warm, _) = station.restore(stored).await.expect("restored from the other node");
        works(&warm).await;
        warm.housing.remove().await.expect("removed");
    });
}

fn a_copy_of_a_base_is_held_like_one_made_here() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let bases = station.roads.bases.clone();
        let snapshot = bases.local.get(base).expect("the base");
        let (_, stored) = stored(&mut station).await;
        bases.local.remove(base);
        for wire in [Wire::Short, Wire::FlippedBit] {
            let place = holder::serve(snapshot.clone(), wire).await;
            assert!(bases.replicate(&place).await.is_err(), "{wire:?}");
            assert!(bases.local.get(base).is_none(), "{wire:?}");
        }
        let place = holder::serve(snapshot.clone(), Wire::Good).await;
        let copy = bases.replicate(&place).await.expect("copied");
        assert!(copy.pages().eq(snapshot.pages()));
        assert_eq!(bases.bytes(), copy.len_bytes(), "it is held once");
        let (warm, _) = station.restore(stored).await.expect("restored without another node");
        works(&warm).await;
        warm.housing.remove().await.expect("removed");
    });
}

fn flipped(page: &Page) -> Page {
    let mut page = *page;
    page[100] ^= 4;
    page
}

fn a_base_that_is_gone_is_told() {
    at_station(SCRATCH, async |mut station: Station| {
        let base: SnapshotId = station.base().await.id;
        let (id, stored) = stored(&mut station).await;
        station.roads.bases.local.remove(base);
        let Err(not) = station.restore(stored).await else { panic!("restored without its base") };
        assert_eq!(not.error.failure(id).kind, FailureKind::BaseLost);
        not.housing.remove().await.expect("removed");
    });
}

fn what_could_never_come_back_stays_warm() {
    // Enough for the node's own folders, not for the pages of a Python process: a dump writes none there, a restore does.
    at_station(3 << 20, async |mut station: Station| {
        let (id, warm) = station.start().await;
        let Err(not) = station.dedup(id, warm).await else { panic!("its pages would fit into 3 MiB") };
        let failure = not.error.failure(id);
        assert_eq!(failure.kind, FailureKind::NoSpace, "{failure:?}");
        works(&not.warm).await;
        not.warm.housing.remove().await.expect("removed");
    });
}

fn a_full_scratch_is_told_by_who_needs_it() {
    at_station(SCRATCH, async |mut station: Station| {
        let (id, stored) = stored(&mut station).await;
        let filler = stored.housing.work_dir().join("filler");
        let file = std::fs::File::create(&filler).expect("a file");
        let room = nix::sys::statvfs::statvfs(&filler).expect("a file system");
        let free = i64::try_from(room.blocks_available() * room.fragment_size()).expect("a size");
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, free).expect("filled");
        let Err(not) = station.restore(stored).await else { panic!("its pages fitted into nothing") };
        let failure = not.error.failure(id);
        assert_eq!(failure.kind, FailureKind::NoSpace, "{failure:?}");
        not.housing.remove().await.expect("removed");
    });
}

fn a_dump_that_has_no_place_leaves_the_sandbox_warm() {
    at_station(SCRATCH, async |mut station: Station| {
        let (id, warm) = station.start().await;
        let taken = warm.housing.work_dir().join("dump");
        std::fs::write(&taken, "in the way").expect("written");
        let Err(not) = station.dedup(id, warm).await else { panic!("dumped into a file") };
        assert_eq!(not.error.failure(id).kind, FailureKind::DedupFailed);
        works(&not.warm).await;
        not.warm.housing.remove().await.expect("removed");
    });
}

fn an_open_connection_is_refused_before_anything_is_touched() {
    at_station(SCRATCH, async |mut station: Station| {
        let (id, warm) = station.start().await;
        let open = "
kept.listener = socket.create_server(('127.0.0.1', 9999))
kept.here = socket.create_connection(('127.0.0.1', 9999))
kept.there, _ = kept.listener.accept()
";
        run(&warm, open).await;
        let Err(not) = station.dedup(id, warm).await else { panic!("dumped with an open connection") };
        let failure = not.error.failure(id);
        assert_eq!(failure.kind, FailureKind::DumpRefused, "{failure:?}");
        assert!(failure.message.contains("connection"), "{failure:?}");
        works(&not.warm).await;
        // Once it is closed, nothing stands in the way.
        run(&not.warm, "kept.here.close(); kept.there.close()").await;
        let (stored, _) = station.dedup(id, not.warm).await.expect("a dedup image");
        stored.housing.remove().await.expect("removed");
    });
}
