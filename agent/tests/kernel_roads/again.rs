//! The second time: what has not changed is taken over, hot pages are kept whole, and whatever is believed of the
//! memory, every byte comes back.

use std::path::PathBuf;

use medes_agent::{
    criu::tree,
    driver::Deduped,
    earlier::Room,
    roads::{HotPages, Warm},
    watch::{
        Group, Options, Wants, Watch,
        heat::{HeatSettings, PageOf},
        now_ns,
        tracked::{Tracked, Tracking},
        writes,
    },
};
use medes_proto::{
    fleet::{EngineSettings, Level},
    heat::PageClass,
    ids::SandboxId,
};

use crate::{
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    ("what_has_not_changed_is_taken_over", what_has_not_changed_is_taken_over),
    ("each_level_takes_over_and_goes_on", each_level_takes_over_and_goes_on),
    ("without_room_or_bases_everything_is_encoded_again", without_room_or_bases_everything_is_encoded_again),
    ("hot_pages_of_all_processes_are_kept_whole", hot_pages_of_all_processes_are_kept_whole),
    ("pages_that_are_only_read_are_touched_and_not_hot", pages_that_are_only_read_are_touched_and_not_hot),
    ("a_wrong_idea_of_what_is_hot_costs_no_byte", a_wrong_idea_of_what_is_hot_costs_no_byte),
];

const SCRATCH: u64 = 512 << 20;

/// Takes a sandbox's memory and gives it back, the same to the byte.
async fn there_and_back(station: &Station, id: SandboxId, warm: Warm) -> (Warm, Deduped) {
    let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
    let (warm, restored) = station.restore(stored).await.expect("a sandbox");
    assert!(deduped.memory_digest.is_some());
    assert_eq!(deduped.memory_digest, restored.memory_digest, "memory changed: {deduped:?}");
    (warm, deduped)
}

fn what_has_not_changed_is_taken_over() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let (id, warm) = station.start().await;
        let (mut warm, first) = there_and_back(&station, id, warm).await;
        assert_eq!(first.pages.reused, 0);
        for cycle in 0..3 {
            run(&warm, &format!("kept.more = [str(i) for i in range({cycle}, 3000)]")).await;
            let (back, again) = there_and_back(&station, id, warm).await;
            warm = back;
            let (pages, reused) = (again.pages.total(), again.pages.reused);
            println!("cycle {cycle}: {reused} of {pages} pages taken over, {} looked up", again.looked_up);
            assert!(reused * 10 > pages * 7, "{again:?}");
            assert!(reused < pages, "the request has written something: {again:?}");
            assert!(again.looked_up < first.looked_up.max(pages / 10), "{again:?} after {first:?}");
            assert_eq!((again.aligned_with, &again.bases), (Some(base), &vec![base]));
            assert_eq!(value(&warm, &format!("kept.more[7] == str(7 + {cycle})")).await, "True");
        }
        warm.housing.remove().await.expect("removed");
        assert!(station.roads.earlier.used() > 0);
        drop(warm);
        assert_eq!(station.roads.earlier.used(), 0, "nothing is kept for a sandbox that is gone");
    });
}

fn each_level_takes_over_and_goes_on() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, mut warm) = station.start().await;
        // From each level to each other one, the first without words to one with them too.
        for level in [Level::None, Level::Small, Level::Small, Level::Fast, Level::None, Level::Fast] {
            station.set(EngineSettings { level, ..EngineSettings::default() });
            run(&warm, "kept.more = [str(i) for i in range(5000)]").await;
            (warm, _) = there_and_back(&station, id, warm).await;
            assert_eq!(value(&warm, "kept.more[4999]").await, "4999");
        }
        warm.housing.remove().await.expect("removed");
    });
}

fn without_room_or_bases_everything_is_encoded_again() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, warm) = station.start().await;
        let (warm, _) = there_and_back(&station, id, warm).await;
        station.registry.refuse_once();
        let (warm, refused) = there_and_back(&station, id, warm).await;
        assert_eq!(refused.pages.reused, 0, "its bases may go: {refused:?}");
        let (warm, again) = there_and_back(&station, id, warm).await;
        assert!(again.pages.reused > 0, "{again:?}");
        drop(warm.past);
        station.roads.earlier = Room::new(0);
        let warm = Warm::new(warm.spec, warm.housing, warm.tree);
        let (warm, _) = there_and_back(&station, id, warm).await;
        assert!(warm.past.earlier.is_none());
        let (warm, without) = there_and_back(&station, id, warm).await;
        assert_eq!(without.pages.reused, 0, "{without:?}");
        warm.housing.remove().await.expect("removed");
    });
}

pub(crate) fn tracked(station: &Station) -> Tracked {
    let settings = HeatSettings { windows: 4, windows_min: 3, ..HeatSettings::default() };
    let program = PathBuf::from(env!("CARGO_BIN_EXE_medes-agent"));
    let way = writes::Way::Protection;
    Tracked::new(Tracking { reaper: station.roads.reaper.clone(), program, settings, way })
}

/// 64 pages of memory in this process and in a child that writes when it is told to.
const WRITERS: &str = "
import mmap
def area():
    made = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    made.madvise(mmap.MADV_NOHUGEPAGE)
    return made
kept.mine = area(); kept.told = os.pipe(); kept.done = os.pipe()
kept.child = os.fork()
if kept.child == 0:
    theirs = area()
    while True:
        os.read(kept.told[0], 1)
        for i in range(64): theirs[i * 4096:i * 4096 + 2048] = os.urandom(2048)
        os.write(kept.done[1], b'.')
";
const WRITE: &str = "
for i in range(64): kept.mine[i * 4096:i * 4096 + 2048] = os.urandom(2048)
os.write(kept.told[1], b'.'); os.read(kept.done[0], 1)
";

fn hot_pages_of_all_processes_are_kept_whole() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, mut warm) = station.start().await;
        run(&warm, WRITERS).await;
        let watcher = tracked(&station);
        let pids = tree::members(warm.tree.pid()).expect("its processes");
        assert_eq!(pids.len(), 2);
        watcher.look(&pids, None).await;
        assert_eq!(watcher.summary().windows, 0, "the first look only arms");
        for _window in 0..3 {
            run(&warm, WRITE).await;
            watcher.note_request();
            watcher.look(&pids, None).await;
        }
        // A pause in which nobody asked is no window.
        watcher.look(&pids, None).await;
        let (summary, hot) = (watcher.summary(), watcher.hot().await);
        println!("{summary:?}");
        assert_eq!((summary.windows, summary.hot), (3, hot.len() as u64));
        let mut processes: Vec<i32> = hot.iter().map(|page| page.process).collect();
        processes.dedup();
        assert_eq!(processes.len(), 2, "both, by their numbers inside");
        assert!(processes.contains(&1));
        for process in processes {
            assert!(hot.iter().filter(|page| page.process == process).count() >= 64);
        }
        let known = watcher.known().await.expect("three windows");
        let map = medes_agent::heat::look(id, warm.tree.pid(), Some(known)).expect("a map");
        assert_eq!(map.source, "watch");
        assert!(map.count(PageClass::Hot) >= 128);
        warm.past.tracked = Some(watcher.into());
        let (mut warm, deduped) = there_and_back(&station, id, warm).await;
        assert!(deduped.pages.hot_skipped >= 128, "{deduped:?}");
        // Heat outlives the processes; raw or packed, the bytes come back.
        for (hot_pages, skips) in [(HotPages::Raw, true), (HotPages::Encode, false)] {
            station.roads.hot_pages = hot_pages;
            run(&warm, WRITE).await;
            let (back, again) = there_and_back(&station, id, warm).await;
            warm = back;
            assert_eq!(again.pages.hot_skipped >= 128, skips, "{again:?}");
        }
        warm.housing.remove().await.expect("removed");
    });
}

/// Memory that is only read, and given back before it is read again.
const READER: &str = "
import mmap
kept.read = mmap.mmap(-1, 64 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
kept.read.madvise(mmap.MADV_NOHUGEPAGE)
";
const READ: &str = "
import mmap
kept.read.madvise(mmap.MADV_DONTNEED)
assert not any(kept.read[i * 4096] for i in range(64))
";

fn pages_that_are_only_read_are_touched_and_not_hot() {
    at_station(SCRATCH, async |mut station: Station| {
        let (id, warm) = station.start().await;
        run(&warm, READER).await;
        let (mut watch, no_ebpf) = Watch::start(Options::default());
        let cgroup = warm.housing.cgroup();
        let group = Group { cgroup_id: cgroup.id(), procs: cgroup.main_dir().join("cgroup.procs") };
        let key = watch.add(group, now_ns()).expect("watched");
        let watcher = tracked(&station);
        let pids = tree::members(warm.tree.pid()).expect("its processes");
        watcher.look(&pids, None).await;
        for window in 0..3 {
            let followed = watch.want_faults(key, Wants { events: true, heat: false }).is_ok();
            run(&warm, READ).await;
            watcher.note_request();
            watcher.note_faults(watch.faults(usize::MAX));
            watcher.look(&pids, None).await;
            let summary = watcher.summary();
            // Without kernel programs only the first time is seen, when the pages appear.
            if followed || window == 0 {
                assert!(summary.touched >= summary.written + 64, "{summary:?}");
            }
        }
        if let Some(error) = no_ebpf {
            println!("SKIPPED the half of it that takes kernel programs: {error}");
        } else {
            let map = medes_agent::heat::look(id, warm.tree.pid(), watcher.known().await).expect("a map");
            assert!(map.count(PageClass::Read) >= 64, "{:?}", PageClass::ALL.map(|class| map.count(class)));
        }
        warm.housing.remove().await.expect("removed");
    });
}

fn a_wrong_idea_of_what_is_hot_costs_no_byte() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, mut warm) = station.start().await;
        let watcher = tracked(&station);
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", warm.tree.pid())).expect("its mappings");
        let starts = maps.lines().filter_map(|line| u64::from_str_radix(line.split('-').next()?, 16).ok());
        let wrong: Vec<PageOf> = starts.map(|start| PageOf { process: 1, page: start / 4096 }).collect();
        for _window in 0..3 {
            watcher.learn(wrong.clone()).await;
        }
        warm.past.tracked = Some(watcher.into());
        let (warm, deduped) = there_and_back(&station, id, warm).await;
        assert!(deduped.pages.hot_skipped > 0, "{deduped:?}");
        assert_eq!(value(&warm, "6 * 7").await, "42");
        warm.housing.remove().await.expect("removed");
    });
}
