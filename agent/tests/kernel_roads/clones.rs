//! Clones: new sandboxes that begin where the first one was when it had become ready.

use std::collections::BTreeSet;

use medes_agent::{faults::Step, sandbox::LaunchSpec};
use medes_proto::{failure::FailureKind, ids::SnapshotId};

use crate::{
    node,
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    ("clones_begin_where_the_first_one_was", clones_begin_where_the_first_one_was),
    ("no_two_clones_draw_the_same", no_two_clones_draw_the_same),
    ("a_clone_is_put_away_as_what_it_differs_in", a_clone_is_put_away_as_what_it_differs_in),
    ("who_does_not_know_of_clones_is_not_cloned", who_does_not_know_of_clones_is_not_cloned),
    ("what_fails_leaves_nothing_and_the_next_one_works", what_fails_leaves_nothing_and_the_next_one_works),
    ("files_too_large_to_travel_make_a_base_only", files_too_large_to_travel_make_a_base_only),
];

const SCRATCH: u64 = 512 << 20;
const BOTH: &str = r#"{"hooks": ["snapshot", "restored"]}"#;

fn knowing(hooks: &str) -> LaunchSpec {
    let mut launch = node::function();
    launch.env.push(("HOOKS".into(), hooks.into()));
    launch
}

fn clones_begin_where_the_first_one_was() {
    at_station(SCRATCH, async |mut station: Station| {
        let launch = knowing(BOTH);
        let (first, warm) = station.start_with(&launch, "").await;
        let set_up = "
kept.numbers = [str(i) for i in range(100000)]
kept.file = open('/tmp/kept', 'w+'); kept.file.write('kept'); kept.file.flush()
os.makedirs('/dev/shm/deep'); open('/dev/shm/deep/data', 'w').write('x' * 5000)
kept.child = os.fork()
if kept.child == 0:
    while True: time.sleep(3600)
";
        run(&warm, set_up).await;
        let report = station.init(first, &warm).await;
        let init = report.init.expect("an init snapshot");
        assert_eq!((init.revision, init.clonable), (3, true));
        assert_eq!(value(&warm, "list(kept.told)").await, "['/medes/snapshot']", "and it runs on");
        let ids: Vec<_> = (0..3).map(|_| station.id()).collect();
        let clones = ids.iter().map(|id| station.clone_of(*id, report.id, &launch, ""));
        let clones = futures::future::join_all(clones).await;
        for (id, clone) in ids.iter().zip(clones) {
            let (clone, phases) = clone.expect("a clone");
            assert!(phases.iter().any(|phase| phase.name == "criu"), "{phases:?}");
            assert_eq!(value(&clone, "kept.numbers[77777], len(kept.numbers)").await, "('77777', 100000)");
            assert_eq!(value(&clone, "open('/tmp/kept').read()").await, "kept");
            assert_eq!(value(&clone, "len(open('/dev/shm/deep/data').read())").await, "5000");
            assert_eq!(value(&clone, "os.kill(kept.child, 0)").await, "None", "its child is there as well");
            // An open file is its own: what one writes the others do not see.
            assert_eq!(value(&clone, "kept.file.write(' on'), kept.file.flush()").await, "(3, None)");
            assert_eq!(value(&clone, "open('/tmp/kept').read()").await, "kept on");
            let number = id.get();
            assert_eq!(
                value(&clone, "open('/run/medes/generation').read()").await,
                format!("{number}\n"),
                "who it is now"
            );
            let told = value(&clone, "kept.told['/medes/restored']").await;
            assert!(told.contains(&id.to_string()) && told.contains(&number.to_string()), "{told}");
            run(&clone, "print('I am', kept.told['/medes/restored'], flush=True)").await;
            let lines = clone.housing.log().tail(10).lines;
            assert!(lines.iter().any(|line| line.text.contains(&id.to_string())), "{lines:?}");
            clone.housing.remove().await.expect("removed");
        }
        assert_eq!(value(&warm, "open('/tmp/kept').read()").await, "kept");
        assert_eq!(value(&warm, "list(kept.told)").await, "['/medes/snapshot']");
        warm.housing.remove().await.expect("removed");
    });
}

fn no_two_clones_draw_the_same() {
    at_station(SCRATCH, async |mut station: Station| {
        let launch = knowing(BOTH);
        let (first, warm) = station.start_with(&launch, "").await;
        run(&warm, "import uuid, ssl, random; kept.uuid, kept.ssl, kept.random = uuid, ssl, random").await;
        run(&warm, "kept.ssl.RAND_bytes(8); kept.random.random()").await;
        let report = station.init(first, &warm).await;
        warm.housing.remove().await.expect("removed");
        let mut drawn = BTreeSet::new();
        let began = std::time::SystemTime::now();
        for _ in 0..3 {
            let id = station.id();
            let (clone, _) = station.clone_of(id, report.id, &launch, "").await.expect("a clone");
            // As the runtime of the ten functions does when it is told.
            run(&clone, "kept.random.seed(os.urandom(32)); kept.ssl.RAND_add(os.urandom(32), 32.0)").await;
            for what in [
                "kept.uuid.uuid4().hex",
                "kept.random.getrandbits(128)",
                "kept.ssl.RAND_bytes(16).hex()",
                "os.urandom(16).hex()",
            ] {
                assert!(drawn.insert(value(&clone, what).await), "{what} was drawn before");
            }
            let clock: f64 = value(&clone, "time.time()").await.parse().expect("seconds");
            let since = began.duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
            assert!((0.0..60.0).contains(&(clock - since)), "its clock is the node's: {clock} {since}");
            clone.housing.remove().await.expect("removed");
        }
        assert_eq!(drawn.len(), 12);
    });
}

fn a_clone_is_put_away_as_what_it_differs_in() {
    at_station(SCRATCH, async |mut station: Station| {
        let launch = knowing(BOTH);
        let (first, warm) = station.start_with(&launch, "").await;
        run(&warm, "kept.data = os.urandom(4 << 20)").await;
        let report = station.init(first, &warm).await;
        warm.housing.remove().await.expect("removed");
        let id = station.id();
        let (clone, _) = station.clone_of(id, report.id, &launch, "").await.expect("a clone");
        run(&clone, "kept.mine = 7").await;
        let (stored, deduped) = station.dedup(id, clone).await.expect("a dedup image");
        assert_eq!(deduped.bases, [report.id]);
        assert!(deduped.pages.reused > 900, "four megabytes of noise lie in the snapshot: {deduped:?}");
        assert!(deduped.stored_bytes < report.bytes / 8, "{deduped:?} of {}", report.bytes);
        let (back, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest);
        assert_eq!(value(&back, "kept.mine, len(kept.data)").await, format!("(7, {})", 4 << 20));
        back.housing.remove().await.expect("removed");
    });
}

fn who_does_not_know_of_clones_is_not_cloned() {
    at_station(SCRATCH, async |mut station: Station| {
        let unaware = node::function();
        for (launch, lines, clonable) in [
            (&unaware, "", false),
            (&unaware, "start = 'clone'", true),
            (&knowing(BOTH), "start = 'cold'", false),
            (&knowing(r#"{"hooks": ["snapshot"]}"#), "", false),
            (&knowing(r#"{"hooks": ["restored"]}"#), "", true),
        ] {
            let (id, warm) = station.start_with(launch, lines).await;
            let report = station.init(id, &warm).await;
            assert_eq!(report.init.map(|init| init.clonable), Some(clonable), "{lines} {:?}", launch.env);
            assert_eq!(value(&warm, "len(kept.told)").await, "0", "nobody is told what it did not ask for");
            warm.housing.remove().await.expect("removed");
            let id = station.id();
            match station.clone_of(id, report.id, launch, lines).await {
                Ok((clone, _)) => {
                    assert!(clonable, "{lines}");
                    clone.housing.remove().await.expect("removed");
                }
                Err(not) => assert!(!clonable && not.housing.is_none(), "{lines}: {not:?}"),
            }
        }
    });
}

fn what_fails_leaves_nothing_and_the_next_one_works() {
    at_station(SCRATCH, async |mut station: Station| {
        let launch = knowing(BOTH);
        let (first, warm) = station.start_with(&launch, "").await;
        let report = station.init(first, &warm).await;
        warm.housing.remove().await.expect("removed");
        for step in [Step::Open, Step::ReadBack, Step::Rebuild, Step::CriuRestore, Step::Resume] {
            station.fail_once(step);
            let id = station.id();
            let not = station.clone_of(id, report.id, &launch, "").await.expect_err("a failure");
            let failure = not.error.failure(id);
            assert!(failure.message.starts_with(&format!("clone {id}: ")), "{failure}");
            not.housing.expect("what is left").remove().await.expect("removed");
            let (clone, _) = station.clone_of(id, report.id, &launch, "").await.expect("a clone");
            clone.housing.remove().await.expect("removed");
        }
        let nowhere = SnapshotId::new(999).expect("an id");
        let id = station.id();
        let not = station.clone_of(id, nowhere, &launch, "").await.expect_err("no such snapshot");
        assert_eq!(not.error.failure(id).kind, FailureKind::BaseLost);
    });
}

fn files_too_large_to_travel_make_a_base_only() {
    at_station(SCRATCH, async |mut station: Station| {
        let launch = knowing(BOTH);
        let (first, warm) = station.start_with(&launch, "").await;
        run(&warm, "open('/tmp/large', 'wb').write(os.urandom(12 << 20))").await;
        let report = station.init(first, &warm).await;
        assert_eq!(report.init.map(|init| init.clonable), Some(false));
        assert_eq!(value(&warm, "os.path.getsize('/tmp/large')").await, (12 << 20).to_string());
        warm.housing.remove().await.expect("removed");
    });
}
