//! Memory taken of sandboxes that go on.

use medes_agent::pager::{self, ParkError};
use tokio_util::sync::CancellationToken;

use crate::desk::{Desk, Guest, at_desk, differences};
use crate::node::{function, python, result, until};
use crate::runner::Test;
use crate::there_and_back::{NUMBERS, QUIET, SUM};

pub(crate) const TESTS: &[Test] = &[
    (
        "what_is_not_touched_goes_and_what_is_touched_stays",
        what_is_not_touched_goes_and_what_is_touched_stays,
    ),
    ("trimming_changes_no_byte", trimming_changes_no_byte),
    ("one_that_is_trimmed_can_be_parked_and_released", one_that_is_trimmed_can_be_parked_and_released),
    ("a_step_that_is_called_off_takes_nothing", a_step_that_is_called_off_takes_nothing),
];

const LITTLE: &str = "result = 6 * 7";
const STEP: usize = 1024;
/// More than any of these programs needs, so that a test ends.
const STEPS_MAX: usize = 60;

/// Trims it until nothing is cold any more; how many pages were taken.
async fn trim_all(desk: &Desk, guest: &mut Guest, request: &str) -> u64 {
    let mut taken = 0;
    for step in 0..STEPS_MAX {
        let report = desk.trim(guest, STEP).await;
        assert!(report.taken_pages <= STEP as u64, "{report:?}");
        assert!(step > 0 || report.taken_pages == 0, "nobody knows yet what is cold: {report:?}");
        taken += report.taken_pages;
        if !report.has_more {
            return taken;
        }
        assert_eq!(result(&guest.housing, request).await, "42", "step {step}");
    }
    panic!("there is no end of what is cold: {taken} pages");
}

fn what_is_not_touched_goes_and_what_is_touched_stays() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        assert_eq!(result(&guest.housing, LITTLE).await, "42");
        let before = guest.anonymous_kb();
        let taken = trim_all(&desk, &mut guest, LITTLE).await;
        let after = guest.anonymous_kb();
        println!("{before} kB -> {after} kB, {taken} pages; {:?}", guest.paged.as_ref().unwrap().counts());
        assert!(after * 2 < before, "{before} kB -> {after} kB");
        // When one request has brought back what the last step took of it, what it touches is there.
        assert_eq!(result(&guest.housing, LITTLE).await, "42");
        let missed = guest.paged.as_ref().unwrap().counts().missed;
        for _request in 0..5 {
            assert_eq!(result(&guest.housing, LITTLE).await, "42");
        }
        let later = guest.paged.as_ref().unwrap().counts().missed;
        assert!((later - missed) * 10 < taken, "{missed} pages missed, then {later}");
        assert_eq!(result(&guest.housing, SUM).await, "1777800", "and the rest comes when it is");
        guest.housing.remove().await.unwrap();
    });
}

fn trimming_changes_no_byte() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &python(QUIET)).await;
        for round in 0..12 {
            assert_eq!(guest.ask("/").await, "1777800", "round {round}");
            let place = format!("/proc/{}/wchan", guest.tree.pid());
            until("it waits", || std::fs::read_to_string(&place).is_ok_and(|at| at.contains("accept")));
            let before = guest.memory(None);
            let report = desk.trim(&mut guest, 512 << (round % 4)).await;
            let after = guest.memory(Some(&before));
            assert_eq!(differences(&before, &after), [0; 0], "round {round}: {report:?}");
        }
        let counts = guest.paged.as_ref().unwrap().counts();
        assert!(counts.missed > 1000, "something was taken: {counts:?}");
        guest.housing.remove().await.unwrap();
    });
}

fn one_that_is_trimmed_can_be_parked_and_released() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        for round in 0..3 {
            trim_all(&desk, &mut guest, LITTLE).await;
            let report = desk.park(&mut guest).await;
            assert!(report.reused_pages > 0, "round {round}: what was taken before is stored: {report:?}");
            assert!(guest.anonymous_kb() < 64, "round {round}: {} kB are left", guest.anonymous_kb());
            guest.unpark().await;
            assert_eq!(result(&guest.housing, LITTLE).await, "42", "round {round}");
            trim_all(&desk, &mut guest, LITTLE).await;
            guest.paged.take().unwrap().release().await.unwrap();
            assert_eq!(result(&guest.housing, SUM).await, "1777800", "round {round}");
        }
        guest.housing.remove().await.unwrap();
    });
}

fn a_step_that_is_called_off_takes_nothing() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &function()).await;
        result(&guest.housing, NUMBERS).await;
        desk.trim(&mut guest, STEP).await;
        assert_eq!(result(&guest.housing, LITTLE).await, "42");
        let (before, called_off) = (guest.anonymous_kb(), CancellationToken::new());
        called_off.cancel();
        let (cgroup, how) = (guest.housing.cgroup(), (desk.recipes(), STEP));
        let trimmed = pager::trim(&desk.pager, cgroup, guest.paged.clone(), how, &called_off).await;
        assert!(matches!(trimmed, Err(ParkError::Cancelled)), "{trimmed:?}");
        assert!(guest.anonymous_kb() + 64 >= before, "{before} kB -> {} kB", guest.anonymous_kb());
        assert_eq!(result(&guest.housing, SUM).await, "1777800");
        assert!(desk.trim(&mut guest, STEP).await.taken_pages > 0, "and the next one takes");
        guest.housing.remove().await.unwrap();
    });
}
