//! Back without memory: it comes as it is touched, and is what it was.

use medes_agent::{criu::tree, faults::Step, pager::Paged, sandbox::LaunchSpec};
use medes_proto::{fleet::SnapshotReport, heat::PageClass};

use crate::{
    again::tracked,
    node,
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    ("what_is_touched_is_what_it_was", what_is_touched_is_what_it_was),
    ("children_and_threads_come_back_late", children_and_threads_come_back_late),
    ("clones_share_what_they_do_not_touch", clones_share_what_they_do_not_touch),
    ("a_clone_knows_what_the_last_one_touched", a_clone_knows_what_the_last_one_touched),
    ("who_came_back_late_is_put_away_again", who_came_back_late_is_put_away_again),
    ("the_heat_of_who_came_back_late_is_known", the_heat_of_who_came_back_late_is_known),
    ("a_late_restore_that_fails_leaves_nothing", a_late_restore_that_fails_leaves_nothing),
];

pub(crate) const SCRATCH: u64 = 512 << 20;
/// Memory that says of each page which one it is, and a sum over all of it.
const SET_UP: &str = "
import hashlib
kept.hashlib = hashlib
kept.data = bytearray(b''.join(n.to_bytes(8, 'little') * 512 for n in range(4096)))
kept.numbers = [str(i) for i in range(50000)]
kept.total = hashlib.sha256(kept.data).hexdigest()
";
pub(crate) const SUM: &str =
    "kept.hashlib.sha256(kept.data).hexdigest() == kept.total and kept.numbers[49999]";

/// An init snapshot that says of each page which one it is, with what `more` leaves besides. Clones come late.
pub(crate) async fn init(station: &mut Station, more: &str) -> (LaunchSpec, SnapshotReport) {
    station.be_late();
    let launch = node::function();
    let (first, warm) = station.start_with(&launch, "start = 'clone'").await;
    run(&warm, SET_UP).await;
    run(&warm, more).await;
    let report = station.init(first, &warm).await;
    warm.housing.remove().await.expect("removed");
    (launch, report)
}

fn what_is_touched_is_what_it_was() {
    at_station(SCRATCH, async |mut station: Station| {
        station.be_late();
        station.base().await;
        let (id, mut warm) = station.start().await;
        run(&warm, SET_UP).await;
        for cycle in 0..3 {
            if let Some(paged) = warm.paged.take() {
                paged.release().await.expect("all of it is back");
            }
            let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
            let (back, restored) = station.restore_unseen(stored).await.expect("a sandbox");
            assert!(restored.in_place && back.paged.is_some(), "cycle {cycle}: it was not late");
            let missing = back.paged.as_ref().map_or(0, Paged::stored_bytes);
            assert!(missing > 0 && missing <= deduped.stored_bytes + (1 << 20), "{missing} {deduped:?}");
            // Four megabytes more, of which it is told afterwards: zeros are zeros.
            assert_eq!(value(&back, SUM).await, "49999", "cycle {cycle}");
            run(&back, "kept.more = bytearray(4 << 20); kept.more[12345] = 7").await;
            assert_eq!(value(&back, "sum(kept.more)").await, "7");
            let counts = back.paged.as_ref().expect("served").counts();
            assert!(counts.missed > 100, "cycle {cycle}: {counts:?}");
            warm = back;
        }
        warm.housing.remove().await.expect("removed");
    });
}

fn children_and_threads_come_back_late() {
    at_station(SCRATCH, async |mut station: Station| {
        station.be_late();
        station.base().await;
        let (id, warm) = station.start().await;
        run(&warm, SET_UP).await;
        let set_up = "
kept.ours, theirs = socket.socketpair()
kept.child = os.fork()
if kept.child == 0:
    while theirs.recv(1):
        theirs.send(kept.hashlib.sha256(kept.data).hexdigest().encode())
    os._exit(0)
kept.turns = []
def count():
    while True:
        kept.turns.append(len(kept.numbers))
        time.sleep(0.01)
for _ in range(3):
    threading.Thread(target=count, daemon=True).start()
";
        run(&warm, set_up).await;
        let (stored, _) = station.dedup(id, warm).await.expect("a dedup image");
        let (back, restored) = station.restore_unseen(stored).await.expect("a sandbox");
        assert!(restored.in_place);
        assert_eq!(
            value(&back, "kept.ours.send(b'?') and kept.ours.recv(100).decode() == kept.total").await,
            "True"
        );
        assert_eq!(value(&back, SUM).await, "49999");
        run(&back, "kept.before = len(kept.turns); time.sleep(0.2)").await;
        assert_eq!(value(&back, "len(kept.turns) > kept.before + 10 and set(kept.turns)").await, "{50000}");
        // A child that is forked while most is missing has what its parent has.
        let forked = "
import os
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, kept.hashlib.sha256(kept.data).hexdigest().encode())
    os._exit(0)
os.waitpid(child, 0)
result = os.read(reader, 100).decode() == kept.total
";
        run(&back, forked).await;
        back.housing.remove().await.expect("removed");
    });
}

fn clones_share_what_they_do_not_touch() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "kept.noise = os.urandom(24 << 20)").await;
        let mut clones = Vec::new();
        for _ in 0..3 {
            let id = station.id();
            let (clone, phases) =
                station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
            assert!(phases.iter().any(|phase| phase.name == "bring"), "{phases:?}");
            let used = clone.housing.usage().anon_bytes;
            assert!(used < 24 << 20, "{used} bytes of a sandbox of {}", report.bytes);
            clones.push(clone);
        }
        for clone in &clones {
            assert_eq!(value(clone, SUM).await, "49999");
            assert_eq!(
                value(clone, "len(kept.noise), len(set(kept.noise[-4096:])) > 200").await,
                "(25165824, True)"
            );
        }
        for clone in clones {
            clone.housing.remove().await.expect("removed");
        }
    });
}

fn a_clone_knows_what_the_last_one_touched() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "pass").await;
        let mut missed = Vec::new();
        for _ in 0..4 {
            let id = station.id();
            let (clone, _) =
                station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
            // As long as it takes to have all that is known given back.
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            assert_eq!(value(&clone, SUM).await, "49999");
            let counts = clone.paged.as_ref().expect("late").counts();
            assert_eq!(counts.pushed > 100, !missed.is_empty(), "{counts:?}");
            missed.push(counts.missed);
            // The next one asks while it lives, and this one ends before.
            let next = station.id();
            let (other, _) =
                station.clone_of(next, report.id, &launch, "start = 'clone'").await.expect("a clone");
            clone.housing.remove().await.expect("removed");
            other.housing.remove().await.expect("removed");
        }
        // The first one was given some pages around each that it missed; the second one tells which of them it takes.
        assert!(missed[3] * 4 < missed[0].max(missed[1]), "{missed:?}");
    });
}

fn who_came_back_late_is_put_away_again() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "pass").await;
        let id = station.id();
        let (mut clone, _) =
            station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
        run(&clone, "kept.mine = [str(i) for i in range(20000)]").await;
        for cycle in 0..3 {
            let parked = station.park(id, clone).await;
            assert!(parked.1.stored_bytes < report.bytes / 4, "cycle {cycle}: {:?}", parked.1);
            assert_eq!(parked.1.bases, [report.id]);
            clone = parked.0;
            clone.paged.as_ref().expect("parked").unpark().await.expect("thawed");
            assert_eq!(value(&clone, "kept.mine[19999], len(kept.mine)").await, "('19999', 20000)");
            if cycle > 0 {
                assert_eq!(value(&clone, SUM).await, "49999");
            }
        }
        if let Some(paged) = clone.paged.take() {
            paged.release().await.expect("all of it is back");
        }
        let (stored, deduped) = station.dedup(id, clone).await.expect("a dedup image");
        assert!(deduped.pages.reused > 1000, "what it never touched is still the snapshot's: {deduped:?}");
        let (back, _) = station.restore_unseen(stored).await.expect("a sandbox");
        assert_eq!(value(&back, SUM).await, "49999");
        back.housing.remove().await.expect("removed");
    });
}

fn the_heat_of_who_came_back_late_is_known() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "kept.mine = bytearray(64 * 4096)").await;
        let id = station.id();
        let (mut clone, _) =
            station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
        let watcher = tracked(&station);
        let pids = tree::members(clone.tree.pid()).expect("its processes");
        const WRITE: &str = "for i in range(64): kept.mine[i * 4096:i * 4096 + 2048] = os.urandom(2048)";
        run(&clone, WRITE).await;
        watcher.look(&pids, clone.paged.as_ref()).await;
        assert_eq!(watcher.summary().windows, 0, "the first look only arms");
        for window in 0..3 {
            run(&clone, WRITE).await;
            watcher.note_request();
            watcher.look(&pids, clone.paged.as_ref()).await;
            let summary = watcher.summary();
            assert!(summary.windows == window + 1 && summary.written >= 64, "{summary:?}");
        }
        // What it did not write, but waited for.
        assert_eq!(value(&clone, SUM).await, "49999");
        watcher.note_request();
        watcher.look(&pids, clone.paged.as_ref()).await;
        let summary = watcher.summary();
        assert!(summary.hot >= 64 && summary.touched > summary.written + 256, "{summary:?}");
        let map = medes_agent::heat::look(id, clone.tree.pid(), watcher.known().await).expect("a map");
        assert!(map.source == "watch" && map.count(PageClass::Hot) >= 64);
        run(&clone, "kept.now = hash(bytes(kept.mine))").await;
        // What was seen to be written is stored as it is now.
        for cycle in 0..2 {
            clone = station.park(id, clone).await.0;
            clone.paged.as_ref().expect("parked").unpark().await.expect("thawed");
            assert_eq!(value(&clone, "hash(bytes(kept.mine)) == kept.now").await, "True", "cycle {cycle}");
            watcher.look(&pids, clone.paged.as_ref()).await;
        }
        clone.past.tracked = Some(watcher.into());
        if let Some(paged) = clone.paged.take() {
            paged.release().await.expect("all of it is back");
        }
        let (stored, deduped) = station.dedup(id, clone).await.expect("a dedup image");
        assert!(deduped.pages.hot_skipped >= 64, "{deduped:?}");
        let (back, _) = station.restore_unseen(stored).await.expect("a sandbox");
        assert_eq!(value(&back, "hash(bytes(kept.mine)) == kept.now").await, "True");
        assert_eq!(value(&back, SUM).await, "49999");
        back.housing.remove().await.expect("removed");
    });
}

fn a_late_restore_that_fails_leaves_nothing() {
    at_station(SCRATCH, async |mut station: Station| {
        let (launch, report) = init(&mut station, "pass").await;
        for step in [Step::Rebuild, Step::CriuRestore, Step::Resume] {
            station.fail_once(step);
            let id = station.id();
            let not =
                station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect_err("a failure");
            not.housing.expect("what is left").remove().await.expect("removed");
        }
        let id = station.id();
        let (clone, _) = station.clone_of(id, report.id, &launch, "start = 'clone'").await.expect("a clone");
        assert_eq!(value(&clone, SUM).await, "49999");
        clone.housing.remove().await.expect("removed");
    });
}
