//! A program that does nothing but check its memory: some threads, each with regions of which it knows every word, read,
//! written, moved, given up, grown and shrunk at random.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::memory::{Region, deep};
use crate::program::{Numbers, answer};
use crate::runner::Test;

pub(crate) const PROGRAMS: &[Test] = &[("memory_checker", memory_checker)];

const THREADS: u64 = 4;
const REGIONS: usize = 6;
const PAGES: u64 = 256;

static ROUNDS: AtomicU64 = AtomicU64::new(0);
static WRONG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Life of the program. `/` answers with the rounds made and what was found wrong.
fn memory_checker() {
    for seed in 0..THREADS {
        std::thread::spawn(move || check(seed));
    }
    answer(|_path| {
        let wrong = WRONG.lock().unwrap();
        format!("{} {}", ROUNDS.load(Ordering::SeqCst), wrong.join("; "))
    });
}

fn check(seed: u64) {
    let mut numbers = Numbers(seed);
    let mut regions: Vec<Region> = (0..REGIONS).map(|_| Region::new(PAGES)).collect();
    loop {
        let at = usize::try_from(numbers.below(REGIONS as u64)).unwrap();
        let region = &mut regions[at];
        let page = numbers.below(region.pages());
        let pages = 1 + numbers.below((region.pages() - page).min(16));
        match numbers.below(100) {
            0 => region.give_up(page, pages, MmapAdvise::MADV_DONTNEED),
            1 => {
                let size = 1 + numbers.below(2 * PAGES);
                region.resize(size);
            }
            2 => regions[at] = Region::new(1 + numbers.below(PAGES)),
            3 => {
                region.protect(ProtFlags::PROT_NONE);
                region.protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
            }
            4 => {
                if !deep(64) {
                    WRONG.lock().unwrap().push("stack".to_owned());
                }
            }
            5..40 => (page..page + pages).for_each(|page| region.fill(page, numbers.next() | 1)),
            _ => {
                let wrong = (page..page + pages).filter_map(|page| region.check(page));
                WRONG.lock().unwrap().extend(wrong.take(3));
            }
        }
        ROUNDS.fetch_add(1, Ordering::SeqCst);
    }
}
