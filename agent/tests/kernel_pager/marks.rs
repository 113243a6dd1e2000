//! Pages of which only a mark is left, or of which old notes say something: neither can be read, and what they are is known.

use std::sync::Mutex;

use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::desk::at_desk;
use crate::memory::Region;
use crate::program::{answer, program};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    (
        "what_is_freed_while_it_is_missing_can_be_parked_again",
        what_is_freed_while_it_is_missing_can_be_parked_again,
    ),
    ("what_is_freed_while_it_is_missing_outlives_a_trim", what_is_freed_while_it_is_missing_outlives_a_trim),
    (
        "what_moves_to_where_another_was_written_can_be_parked_again",
        what_moves_to_where_another_was_written_can_be_parked_again,
    ),
];
pub(crate) const PROGRAMS: &[Test] = &[("memory_marks", memory_marks)];

const PAGES: u64 = 64;
/// Pages that fit between no two mappings of a small program.
const GAP: u64 = 16_384;
/// Pages taken of one that goes on, at most.
const STEP: usize = 256;

/// Life of a program with two regions: `/fill` both, `/write` the first, `/free` it without touching it, have the second go `/over` it, `/check` what
/// there is. Each answers with what is wrong. Each time it also writes to a page in front of them that it may not read then, so that its memory cannot
/// be read in the way in which missing pages would be served meanwhile.
fn memory_marks() {
    let all: Mutex<Vec<Region>> = Mutex::default();
    answer(|path| {
        let mut all = all.lock().unwrap();
        if path == "/fill" {
            *all = vec![Region::new(PAGES), Region::new(PAGES)];
            all.iter_mut().for_each(|region| region.fill_all(0x700));
            // So large that there is room for it below all others only.
            all.insert(0, Region::new(GAP));
        }
        let Some((unreadable, regions)) = all.split_first_mut() else { return String::new() };
        unreadable.protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        unreadable.fill(0, 0x500);
        unreadable.protect(ProtFlags::PROT_NONE);
        match path {
            "/write" => regions[0].fill_all(0x900),
            "/free" => regions[0].advise(MmapAdvise::MADV_FREE).unwrap(),
            "/over" => {
                let mut second = all.pop().unwrap();
                second.move_over(all.pop().unwrap());
                all.push(second);
            }
            "/check" => return regions.iter_mut().find_map(Region::check_or_zeros).unwrap_or_default(),
            "/check-all" => return regions.iter().find_map(Region::check_all).unwrap_or_default(),
            _ => {}
        }
        String::new()
    });
}

fn what_is_freed_while_it_is_missing_can_be_parked_again() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &program("memory_marks")).await;
        guest.ask("/fill").await;
        for round in 0..3 {
            desk.park(&mut guest).await;
            guest.unpark().await;
            assert_eq!(guest.ask("/free").await, "");
            desk.park(&mut guest).await;
            guest.unpark().await;
            assert_eq!(guest.ask("/check").await, "", "round {round}");
            assert_eq!(guest.ask("/write").await, "");
        }
        guest.housing.remove().await.unwrap();
    });
}

fn what_is_freed_while_it_is_missing_outlives_a_trim() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &program("memory_marks")).await;
        guest.ask("/fill").await;
        desk.park(&mut guest).await;
        guest.unpark().await;
        assert_eq!(guest.ask("/free").await, "");
        let mut taken = 0;
        for _step in 0..4 {
            taken += desk.trim(&mut guest, STEP).await.taken_pages;
        }
        assert!(taken > 0, "nothing was taken");
        assert_eq!(guest.ask("/check").await, "");
        guest.housing.remove().await.unwrap();
    });
}

fn what_moves_to_where_another_was_written_can_be_parked_again() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &program("memory_marks")).await;
        guest.ask("/fill").await;
        desk.park(&mut guest).await;
        guest.unpark().await;
        guest.ask("/write").await;
        // That it was written is noted, and it is protected anew.
        guest.look();
        assert_eq!(guest.ask("/over").await, "");
        desk.park(&mut guest).await;
        guest.unpark().await;
        assert_eq!(guest.ask("/check-all").await, "");
        guest.housing.remove().await.unwrap();
    });
}
