//! Whose memory first: what the dedup of a sandbox brings for its work, and its place among the others of its node.

use medes_proto::sandbox::WriteHeat;

use super::*;
use crate::policy::Gain;

/// A node with warm sandboxes of `f`, all quiet, each with a report that `change` has the last word on.
fn node_of(number: u32, change: impl Fn(u32, &mut SandboxReport)) -> (Bench, ConnectionId) {
    let (mut bench, connection) = Bench::with_node(Settings::default());
    let sandboxes = (1..=number).map(|at| {
        let mut one = report(SandboxId::of(1, at).unwrap(), "f", SandboxState::Warm);
        change(at, &mut one);
        one
    });
    bench.beat(connection, Inventory { sandboxes: sandboxes.collect(), ..Inventory::default() });
    bench.driver.sandboxes.values_mut().for_each(|sandbox| sandbox.quiet = true);
    (bench, connection)
}

fn ranked(bench: &Bench, number: u32) -> Gain {
    bench.driver.ranked(&bench.driver.sandboxes[&SandboxId::of(1, number).unwrap()])
}

#[test]
fn without_knowledge_all_memory_is_won_and_every_page_is_work() {
    let (bench, _) = node_of(1, |_, one| one.private_bytes = 800 * 4096);
    let gain = ranked(&bench, 1);
    assert_eq!((gain.won_bytes, gain.work_pages), (800 * 4096, 800 + 100));
    assert_eq!((gain.ahead, gain.among, gain.slots), (0, 1, Settings::default().node_dedups_max));
}

#[test]
fn what_is_written_and_touched_all_the_time_is_no_gain_but_work() {
    let heat = WriteHeat { windows: 8, hot_pages: 40, warm_pages: 20, written_pages: 50, touched_pages: 200 };
    let (mut bench, _) = node_of(1, |_, one| {
        (one.private_bytes, one.heat, one.starts_from_dedup) = (800 * 4096, heat, 1);
    });
    bench.driver.functions.values_mut().for_each(|function| function.dedup_bytes.add(100.0 * 4096.0));
    let gain = ranked(&bench, 1);
    assert_eq!(
        gain.won_bytes,
        (800 - 100 - 40) * 4096,
        "what an image takes, and hot pages, do not come free"
    );
    assert_eq!(gain.work_pages, 60 + 100 + 100, "60 are encoded, all compared, 200 brought back");
}

#[test]
fn what_never_came_from_an_image_is_encoded_whole_however_little_it_writes() {
    let heat = WriteHeat { windows: 8, written_pages: 5, touched_pages: 5, ..WriteHeat::default() };
    let (bench, _) = node_of(2, |at, one| {
        (one.private_bytes, one.heat, one.starts_from_dedup) = (800 * 4096, heat, u64::from(at == 2));
    });
    assert_eq!((ranked(&bench, 1).work_pages, ranked(&bench, 2).work_pages), (800 + 100 + 2, 5 + 100 + 2));
    assert_eq!((ranked(&bench, 1).ahead, ranked(&bench, 2).ahead), (1, 0), "so the other one comes first");
}

#[test]
fn sandboxes_are_ranked_by_memory_for_work_among_the_idle_and_quiet_of_their_node() {
    // The same memory, more and more of it touched by each request.
    let (mut bench, connection) = node_of(4, |at, one| {
        one.private_bytes = 800 * 4096;
        one.heat = WriteHeat { windows: 8, touched_pages: u64::from(at) * 100, ..WriteHeat::default() };
    });
    let places = |bench: &Bench| (1..=4).map(|at| ranked(bench, at).ahead).collect::<Vec<_>>();
    assert_eq!(places(&bench), [0, 1, 2, 3]);
    assert_eq!(ranked(&bench, 3).among, 4);
    // Who works is not among them, nor who has a command under way, which takes a slot.
    let id = |at| SandboxId::of(1, at).unwrap();
    bench.driver.sandboxes.get_mut(&id(1)).unwrap().quiet = false;
    assert_eq!(places(&bench)[1..], [0, 1, 2]);
    bench.ask(Operation::Dedup { sandbox: id(2), digest_memory: false });
    assert_eq!((ranked(&bench, 4).ahead, ranked(&bench, 4).among), (1, 2));
    assert_eq!(ranked(&bench, 4).slots, Settings::default().node_dedups_max - 1);
    // Another node's are none of their business.
    let mut there = report(id(9), "f", SandboxState::Warm);
    there.private_bytes = 1 << 30;
    bench.attach("n2", 1, Inventory { sandboxes: vec![there], ..Inventory::default() });
    bench.driver.sandboxes.get_mut(&id(9)).unwrap().quiet = true;
    assert_eq!(ranked(&bench, 4).among, 2);
    let _ = connection;
}

#[test]
fn what_was_parked_in_haste_counts_as_what_it_comes_to() {
    let parked = |bytes: u64| {
        move |one: &mut SandboxReport| (one.state, one.stored_bytes) = (SandboxState::Parked, bytes)
    };
    let (mut bench, connection) = node_of(1, |_, one| parked(10 << 20)(one));
    let known = |bench: &Bench| bench.driver.functions.values().next().unwrap().dedup_bytes.bytes();
    assert_eq!(known(&bench), None);
    for (bytes, then) in [(1 << 20, Some(1 << 20)), (1 << 20, Some(1 << 20)), (9 << 20, Some(1 << 20))] {
        let mut one = report(SandboxId::of(1, 1).unwrap(), "f", SandboxState::Parked);
        parked(bytes)(&mut one);
        bench.beat(connection, Inventory { sandboxes: vec![one], ..Inventory::default() });
        assert_eq!(known(&bench), then, "{bytes}");
    }
}
