//! Park and unpark, over and over, with programs that look at their memory.

use std::time::{Duration, Instant};

use crate::desk::{Guest, at_desk, differences};
use crate::node::{function, python, result, until};
use crate::program::{Numbers, program};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "a_parked_sandbox_has_no_memory_and_answers_as_before",
        a_parked_sandbox_has_no_memory_and_answers_as_before,
    ),
    (
        "what_is_read_and_was_never_written_takes_no_memory",
        what_is_read_and_was_never_written_takes_no_memory,
    ),
    ("only_what_was_written_is_stored_again", only_what_was_written_is_stored_again),
    ("what_a_look_has_seen_is_stored_again", what_a_look_has_seen_is_stored_again),
    ("the_working_set_is_learnt_and_given_back", the_working_set_is_learnt_and_given_back),
    ("what_it_will_touch_is_there_before_it_runs", what_it_will_touch_is_there_before_it_runs),
    ("what_the_next_request_touches_may_stay", what_the_next_request_touches_may_stay),
    (
        "a_program_that_checks_its_memory_finds_nothing_wrong",
        a_program_that_checks_its_memory_finds_nothing_wrong,
    ),
    (
        "a_program_that_keeps_moving_its_memory_finds_nothing_wrong",
        a_program_that_keeps_moving_its_memory_finds_nothing_wrong,
    ),
    ("twenty_times_there_and_back_changes_no_byte", twenty_times_there_and_back_changes_no_byte),
    (
        "the_rest_comes_back_while_nobody_asks_and_is_not_stored_again",
        the_rest_comes_back_while_nobody_asks_and_is_not_stored_again,
    ),
    ("everything_comes_back_at_once_when_it_is_released", everything_comes_back_at_once_when_it_is_released),
];

pub(crate) const NUMBERS: &str = "import sys\nsys.numbers = [str(i) * 20 for i in range(20000)]";
pub(crate) const SUM: &str = "import sys\nresult = sum(len(number) for number in sys.numbers)";

fn a_parked_sandbox_has_no_memory_and_answers_as_before() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        let expected = result(&guest.housing, SUM).await;
        let before = guest.anonymous_kb();
        let report = desk.park(&mut guest).await;
        println!("{before} kB -> {} kB; {report:?}", guest.anonymous_kb());
        // Neither what it has for itself nor what it has changed of its files.
        assert!(guest.anonymous_kb() < 64, "{} kB of {before} kB are left", guest.anonymous_kb());
        assert!(report.stored_bytes * 2 < before * 1024, "{report:?}");
        guest.unpark().await;
        assert_eq!(result(&guest.housing, SUM).await, expected);
        println!("{:?}", guest.paged.as_ref().unwrap().counts());
        guest.housing.remove().await.unwrap();
    });
}

fn what_is_read_and_was_never_written_takes_no_memory() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        let room =
            "import mmap, sys\nsys.room = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)";
        result(&guest.housing, room).await;
        let sum = "import sys\nresult = sum(sys.room[at] for at in range(0, 32 << 20, 4096))";
        let before = guest.anonymous_kb();
        // The second time the pages are among those that are given back before they are missed.
        for round in 0..2 {
            desk.park(&mut guest).await;
            guest.unpark().await;
            assert_eq!(result(&guest.housing, sum).await, "0", "round {round}");
            let after = guest.anonymous_kb();
            assert!(after < before + (4 << 10), "round {round}: {before} kB, then {after} kB");
        }
        let fill = "import sys\nfor at in range(0, 32 << 20, 4096): sys.room[at] = 1";
        result(&guest.housing, fill).await;
        for round in 0..2 {
            assert_eq!(result(&guest.housing, sum).await, "8192", "round {round}");
            assert!(guest.anonymous_kb() > 32 << 10, "round {round}");
            desk.park(&mut guest).await;
            guest.unpark().await;
        }
        guest.housing.remove().await.unwrap();
    });
}

fn only_what_was_written_is_stored_again() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        let first = desk.park(&mut guest).await;
        guest.unpark().await;
        assert_eq!(result(&guest.housing, "result = 1").await, "1");
        let second = desk.park(&mut guest).await;
        println!("{first:?}\n{second:?}");
        assert!(
            second.saved_pages * 4 < first.saved_pages,
            "{} then {}",
            first.saved_pages,
            second.saved_pages
        );
        assert!(desk.shrink(&guest).await.unwrap().unwrap());
        guest.unpark().await;
        assert_eq!(result(&guest.housing, SUM).await, "1777800");
        // Many parks: there is one image in the end all the time, with what there is and no more.
        for round in 0..30 {
            result(
                &guest.housing,
                &format!("import sys\nfor i in range({round}, 20000, 300): sys.numbers[i] = str(i) * 20"),
            )
            .await;
            let report = desk.park(&mut guest).await;
            assert!(report.reused_pages > report.saved_pages, "round {round}: {report:?}");
            assert_eq!(u64::from(report.classes.pages()), report.pages, "round {round}: {report:?}");
            assert!((1..=report.saved_pages).contains(&report.plain_pages), "round {round}: {report:?}");
            assert!(desk.shrink(&guest).await.unwrap().unwrap(), "round {round}");
            let (bytes, _, classes) = guest.paged.as_ref().unwrap().kept_as();
            assert!(bytes * 10 < first.stored_bytes * 13, "round {round}: {bytes}");
            assert_eq!(u64::from(classes.pages()), report.pages, "round {round}: {classes:?}");
            guest.unpark().await;
            assert_eq!(result(&guest.housing, SUM).await, "1777800", "round {round}");
        }
        guest.housing.remove().await.unwrap();
    });
}

fn what_a_look_has_seen_is_stored_again() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        desk.park(&mut guest).await;
        guest.unpark().await;
        guest.look();
        let bytes =
            |ranges: &[std::ops::Range<u64>]| ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        for round in 0..6 {
            result(
                &guest.housing,
                &format!("import sys\nfor i in range(0, 20000, 2): sys.numbers[i] = str(i + {round}) * 20"),
            )
            .await;
            let seen = guest.look();
            assert!(bytes(&seen.written) > 1 << 20, "round {round}: {seen:?}");
            assert!(bytes(&guest.look().written) < 1 << 20, "round {round}: it is told once");
            // Most times it is not parked, and a later look has nothing to say of it.
            if round % 3 == 2 {
                let report = desk.park(&mut guest).await;
                assert!(report.saved_pages > 256, "round {round}: {report:?}");
                guest.unpark().await;
            }
            let sum = "import sys\nresult = sum(int(number[:len(number) // 20]) for number in sys.numbers)";
            let expected = (0..20_000_u64).map(|i| if i % 2 == 0 { i + round } else { i }).sum::<u64>();
            assert_eq!(result(&guest.housing, sum).await, expected.to_string(), "round {round}");
            assert!(
                round % 3 != 2 || bytes(&guest.look().missed) > 0,
                "round {round}: it had to wait for something"
            );
        }
        guest.housing.remove().await.unwrap();
    });
}

fn the_working_set_is_learnt_and_given_back() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        let (mut unforeseen, mut before) = (Vec::new(), 0);
        for _ in 0..5 {
            desk.park(&mut guest).await;
            guest.unpark().await;
            assert_eq!(result(&guest.housing, SUM).await, "1777800");
            let counts = guest.paged.as_ref().unwrap().counts();
            unforeseen.push(counts.unforeseen - before);
            before = counts.unforeseen;
        }
        println!("unforeseen {unforeseen:?}; {:?}", guest.paged.as_ref().unwrap().counts());
        assert!(unforeseen[0] > 100, "{unforeseen:?}");
        assert!(unforeseen[3] * 4 < unforeseen[0], "{unforeseen:?}");
        guest.housing.remove().await.unwrap();
    });
}

fn what_it_will_touch_is_there_before_it_runs() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        for round in 0..6 {
            desk.park(&mut guest).await;
            let paged = guest.paged.clone().unwrap();
            let before = paged.counts();
            paged.push().await;
            let given = paged.counts() - before;
            // It is still frozen.
            let there = guest.anonymous_kb();
            guest.unpark().await;
            assert_eq!(result(&guest.housing, SUM).await, "1777800", "round {round}");
            let brought = paged.counts() - before;
            println!("{given:?}, {there} kB; then {brought:?}");
            if round >= 3 {
                assert!(given.pushed > 200 && given.missed == 0, "{given:?}");
                assert!(there * 1024 >= given.pushed * 4096, "{there} kB after {given:?}");
                assert!(brought.missed * 4 < given.pushed, "{given:?} before it ran, then {brought:?}");
            }
        }
        guest.housing.remove().await.unwrap();
    });
}

fn what_the_next_request_touches_may_stay() {
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        const LITTLE: &str = "result = 6 * 7";
        let mut given = Vec::new();
        for (round, percent) in [0, 0, 0, 0, 100, 100, 10, 0].into_iter().enumerate() {
            desk.resident_percent = percent;
            let report = desk.park(&mut guest).await;
            let all = report.pages + report.resident_pages;
            assert!(
                report.resident_pages * 100 <= (all + all / 4) * u64::from(percent),
                "{percent} percent: {report:?}"
            );
            assert!(percent == 0 || round < 4 || report.resident_pages > 0, "{report:?}");
            let before = guest.paged.as_ref().unwrap().counts();
            guest.unpark().await;
            assert_eq!(result(&guest.housing, LITTLE).await, "42", "round {round}");
            let after = guest.paged.as_ref().unwrap().counts();
            given.push(after.pushed + after.missed - before.pushed - before.missed);
            println!(
                "{percent} %: {} of {all} pages stay, {} given back",
                report.resident_pages, given[round]
            );
        }
        assert!(given[5] * 3 < given[3], "nearly nothing has to be given back: {given:?}");
        assert!(given[7] * 3 > given[3], "{given:?}");
        // All of it is still right, wherever it was.
        assert_eq!(result(&guest.housing, SUM).await, "1777800");
        guest.housing.remove().await.unwrap();
    });
}

/// What the checker has done, and what it found.
async fn findings(guest: &Guest) -> (u64, String) {
    let answer = guest.ask("/").await;
    let (rounds, wrong) = answer.split_once(' ').unwrap();
    (rounds.parse().unwrap(), wrong.to_owned())
}

fn a_program_that_checks_its_memory_finds_nothing_wrong() {
    there_and_back("memory_checker");
}

fn a_program_that_keeps_moving_its_memory_finds_nothing_wrong() {
    there_and_back("memory_mover");
}

fn there_and_back(checker: &str) {
    let seconds = std::env::var("MEDES_TEST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    let seed = std::env::var("MEDES_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", &program(checker)).await;
        let mut numbers = Numbers(seed);
        let until = Instant::now() + Duration::from_secs(seconds);
        let (mut cycles, mut last, mut looked, mut trimmed) = (0, 0, 0, 0);
        let (mut shrunk, mut shrinks) = (0, Vec::new());
        while Instant::now() < until {
            desk.resident_percent = [0, 10, 60][cycles % 3];
            desk.park(&mut guest).await;
            // What was kept as it is is stored small before it comes back, while it does, or while it is parked again.
            match numbers.below(4) {
                0 => shrunk += u32::from(desk.shrink(&guest).await.unwrap().unwrap()),
                1 => {
                    shrinks.push(desk.shrink(&guest));
                    tokio::time::sleep(Duration::from_micros(numbers.below(30_000))).await;
                }
                _ => {}
            }
            guest.unpark().await;
            cycles += 1;
            // Most times it is stopped again in the middle of what it misses.
            tokio::time::sleep(Duration::from_micros(numbers.below(40_000))).await;
            // Looks take marks off while it writes and moves its memory.
            for _look in 0..numbers.below(3) {
                looked += u64::from(!guest.look().written.is_empty());
                tokio::time::sleep(Duration::from_micros(numbers.below(4_000))).await;
            }
            // What nobody asks for comes back too, in the middle of everything.
            if numbers.below(3) == 0 {
                guest.paged.as_ref().unwrap().fill();
                tokio::time::sleep(Duration::from_micros(numbers.below(20_000))).await;
            }
            // And some of it is taken while it goes on.
            for _step in 0..numbers.below(3) {
                trimmed += desk.trim(&mut guest, 16 << numbers.below(8)).await.taken_pages;
                tokio::time::sleep(Duration::from_micros(numbers.below(10_000))).await;
            }
            if numbers.below(4) == 0 {
                let (rounds, wrong) = findings(&guest).await;
                assert_eq!(wrong, "", "seed {seed}, cycle {cycles}, after {rounds} rounds");
                assert!(rounds > last, "seed {seed}, cycle {cycles}: it stands still");
                last = rounds;
            }
        }
        let (rounds, wrong) = findings(&guest).await;
        for done in futures::future::join_all(shrinks).await {
            shrunk += u32::from(done.unwrap().unwrap_or_else(|error| panic!("seed {seed}: {error}")));
        }
        assert!(shrunk > 0, "seed {seed}: some waited for it");
        println!(
            "seed {seed}: {cycles} cycles, {shrunk} times stored small, {looked} looks, {trimmed} pages trimmed, {rounds} rounds, {:?}",
            guest.paged.as_ref().unwrap().counts()
        );
        assert_eq!(wrong, "", "seed {seed}");
        guest.housing.remove().await.unwrap();
    });
}

/// A program that does nothing at all between requests. Of some of its memory every other page is there.
pub(crate) const QUIET: &str = "
import mmap, os, socket
numbers = [str(i) * 20 for i in range(20000)]
holes = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, 16 << 20, 8192): holes[at:at + 8] = at.to_bytes(8, 'little')
server = socket.create_server(('127.0.0.1', int(os.environ['PORT'])))
while True:
    client, _ = server.accept()
    client.recv(65536)
    body = str(sum(len(number) for number in numbers)).encode()
    client.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n' % len(body) + body)
    client.close()
";

fn twenty_times_there_and_back_changes_no_byte() {
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", &python(QUIET)).await;
        let waits = |at: &str| at.contains("accept");
        for round in 0..20 {
            // Half of the time without anything that stays.
            desk.resident_percent = if round < 10 { 0 } else { 20 };
            assert_eq!(guest.ask("/").await, "1777800", "round {round}");
            let place = format!("/proc/{}/wchan", guest.tree.pid());
            until("it waits", || std::fs::read_to_string(&place).is_ok_and(|at| waits(&at)));
            let before = guest.memory(None);
            assert!(before.len() > 100, "round {round}: {} pages", before.len());
            desk.park(&mut guest).await;
            let after = guest.memory(Some(&before));
            assert_eq!(differences(&before, &after), [0; 0], "round {round}");
            guest.unpark().await;
        }
        guest.housing.remove().await.unwrap();
    });
}

fn the_rest_comes_back_while_nobody_asks_and_is_not_stored_again() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        let before = guest.anonymous_kb();
        for round in 0..3 {
            desk.park(&mut guest).await;
            guest.unpark().await;
            assert_eq!(result(&guest.housing, "result = 6 * 7").await, "42", "round {round}");
            let paged = guest.paged.as_ref().unwrap();
            assert!(!paged.is_filling(), "nobody wanted that");
            paged.fill();
            until("it is back", || guest.anonymous_kb() * 100 > before * 90);
            assert!(paged.is_filling());
            let missed = paged.counts().missed;
            assert_eq!(result(&guest.housing, SUM).await, "1777800", "round {round}");
            let later = paged.counts().missed;
            assert!(later - missed < 50, "round {round}: {missed} pages missed, then {later}");
        }
        // Unless it was written.
        let report = desk.park(&mut guest).await;
        assert!(report.saved_pages < report.reused_pages, "{report:?}");
        assert!(!guest.paged.as_ref().unwrap().is_filling());
        std::thread::sleep(Duration::from_millis(100));
        assert!(guest.anonymous_kb() < 64, "{} kB: it stays parked", guest.anonymous_kb());
        guest.unpark().await;
        assert_eq!(result(&guest.housing, SUM).await, "1777800");
        guest.housing.remove().await.unwrap();
    });
}

fn everything_comes_back_at_once_when_it_is_released() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        let before = guest.anonymous_kb();
        desk.park(&mut guest).await;
        guest.paged.take().unwrap().release().await.unwrap();
        assert!(guest.anonymous_kb() * 10 > before * 8, "{} kB of {before} kB", guest.anonymous_kb());
        assert_eq!(result(&guest.housing, SUM).await, "1777800");
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", guest.tree.pid())).unwrap();
        let watched =
            |line: &str| line.starts_with("VmFlags:") && (line.contains(" um") || line.contains(" uw"));
        assert!(!smaps.lines().any(watched), "nothing of us is left");
        desk.park(&mut guest).await;
        guest.unpark().await;
        assert_eq!(result(&guest.housing, SUM).await, "1777800", "and it can be parked anew");
        guest.housing.remove().await.unwrap();
    });
}
