//! What works: state and memory come back, to the byte.

use medes_proto::sandbox::Phase;

use crate::{
    runner::Test,
    station::{Station, at_station, run, value},
};

pub(crate) const TESTS: &[Test] = &[
    (
        "every_byte_and_all_state_come_back_again_and_again",
        every_byte_and_all_state_come_back_again_and_again,
    ),
    ("without_a_base_a_sandbox_is_stored_whole", without_a_base_a_sandbox_is_stored_whole),
    ("children_threads_and_files_come_back", children_threads_and_files_come_back),
];

const SCRATCH: u64 = 512 << 20;

fn names(phases: &[Phase]) -> Vec<&str> {
    phases.iter().map(|phase| phase.name.as_str()).collect()
}

fn every_byte_and_all_state_come_back_again_and_again() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await;
        let (id, mut warm) = station.start().await;
        run(&warm, "kept.numbers = [str(i) for i in range(1000)]").await;
        for cycle in 0..3 {
            let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
            assert!(deduped.pages.same + deduped.pages.delta > 0, "nothing found in the base: {deduped:?}");
            assert_eq!(deduped.bases, [base.id]);
            assert!(deduped.stored_bytes < base.bytes / 2, "{deduped:?} against {} bytes", base.bytes);
            assert_eq!(names(&deduped.phases).last(), Some(&"end"));
            let (back, restored) = station.restore(stored).await.expect("a sandbox");
            assert_eq!(deduped.memory_digest, restored.memory_digest, "cycle {cycle}: memory changed");
            assert!(deduped.memory_digest.is_some());
            warm = back;
            assert_eq!(value(&warm, "kept.numbers[777]").await, "777");
            run(&warm, "print('still here', flush=True)").await;
            let log = warm.housing.log().tail(10);
            assert!(log.lines.iter().any(|line| line.text.contains("still here")), "{log:?}");
        }
        warm.housing.remove().await.expect("removed");
    });
}

fn without_a_base_a_sandbox_is_stored_whole() {
    at_station(SCRATCH, async |mut station: Station| {
        let (id, warm) = station.start().await;
        let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
        assert_eq!((deduped.bases.len(), deduped.pages.same, deduped.pages.delta), (0, 0, 0));
        let (warm, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest);
        warm.housing.remove().await.expect("removed");
    });
}

fn children_threads_and_files_come_back() {
    at_station(SCRATCH, async |mut station: Station| {
        let base = station.base().await.id;
        let (id, warm) = station.start().await;
        let set_up = "
kept.child = os.fork()
if kept.child == 0:
    while True: time.sleep(3600)
kept.file = open('/tmp/kept', 'w+'); kept.file.write('kept'); kept.file.flush()
kept.gone = open('/tmp/gone', 'w+'); kept.gone.write('gone'); kept.gone.flush(); os.unlink('/tmp/gone')
kept.listener = socket.create_server(('127.0.0.1', 9999))
threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
";
        run(&warm, set_up).await;
        let (stored, deduped) = station.dedup(id, warm).await.expect("a dedup image");
        assert_eq!(deduped.aligned_with, Some(base), "its largest process");
        let (warm, restored) = station.restore(stored).await.expect("a sandbox");
        assert_eq!(deduped.memory_digest, restored.memory_digest);
        for (code, expected) in [
            ("os.kill(kept.child, 0)", "None"),
            ("threading.active_count() >= 2", "True"),
            ("(kept.file.seek(0), kept.file.read())[1]", "kept"),
            ("open('/tmp/kept').read()", "kept"),
            ("(kept.gone.seek(0), kept.gone.read())[1]", "gone"),
            ("os.path.exists('/tmp/gone')", "False"),
            ("socket.create_connection(('127.0.0.1', 9999)).close()", "None"),
        ] {
            assert_eq!(value(&warm, code).await, expected, "{code}");
        }
        warm.housing.remove().await.expect("removed");
    });
}
