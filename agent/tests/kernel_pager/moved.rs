//! Missing pages that are moved: to where others were seen to be written, and without anybody hearing of it.

use std::sync::Mutex;

use medes_agent::faults::Step;
use medes_agent::pager::FaultError;

use crate::desk::at_desk;
use crate::memory::Region;
use crate::program::{answer, program};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("what_moves_to_where_was_written_is_not_taken_to_be_there", what_moves_is_not_taken_to_be_there),
    ("a_move_that_nobody_hears_of_ends_the_sandbox", a_move_that_nobody_hears_of_ends_the_sandbox),
];
pub(crate) const PROGRAMS: &[Test] = &[("memory_moved", memory_moved)];

const PAGES: u64 = 64;

/// Life of the program: two regions; the first is written, and then gives way to the second.
fn memory_moved() {
    let regions: Mutex<Vec<Region>> = Mutex::default();
    answer(|path| {
        let mut regions = regions.lock().unwrap();
        match path {
            "/prepare" => {
                *regions = (0..2).map(|_| Region::new(PAGES)).collect();
                regions.iter_mut().zip([100, 200]).for_each(|(region, salt)| region.fill_all(salt));
            }
            "/write" => regions[0].fill_all(300),
            "/move" => {
                let first = regions.remove(0);
                regions[0].move_over(first);
            }
            _ => {
                let wrong = regions.iter().filter_map(Region::check_all);
                return wrong.collect::<Vec<_>>().join("; ");
            }
        }
        String::new()
    });
}

fn what_moves_is_not_taken_to_be_there() {
    at_desk(async |mut desk| {
        let mut guest = desk.start("s1", &program("memory_moved")).await;
        for resident_percent in [0, 60, 100] {
            guest.ask("/prepare").await;
            desk.resident_percent = 0;
            desk.park(&mut guest).await;
            guest.unpark().await;
            // Missed and written: likely to be touched again, and what is stored of it is old.
            guest.ask("/write").await;
            let seen: u64 = guest.look().written.iter().map(|range| (range.end - range.start) / 4096).sum();
            assert!(seen >= PAGES, "{seen} pages written");
            guest.ask("/move").await;
            desk.resident_percent = resident_percent;
            desk.park(&mut guest).await;
            guest.unpark().await;
            assert_eq!(guest.ask("/check").await, "", "{resident_percent} % may stay");
        }
        guest.housing.remove().await.unwrap();
    });
}

/// The page tables say that something is stored there, whatever is known: no zeros are given.
fn a_move_that_nobody_hears_of_ends_the_sandbox() {
    at_desk(async |mut desk| {
        for missed in ["/check", "/write"] {
            let faults = desk.may_fail(Step::HearMove);
            let mut guest = desk.start("s1", &program("memory_moved")).await;
            guest.ask("/prepare").await;
            desk.park(&mut guest).await;
            guest.unpark().await;
            faults.arm(1);
            guest.ask("/move").await;
            let answer = guest.try_ask(missed).await;
            assert!(answer.is_err(), "{missed}: {answer:?}");
            let why = guest.paged.as_ref().unwrap().why_lost();
            assert!(matches!(why, Some(FaultError::Unclear)), "{missed}: {why:?}");
            guest.housing.remove().await.unwrap();
        }
    });
}
