//! A program that does nothing but check its memory: some threads, each with regions of which it knows every word, read,
//! written, moved, given up, grown and shrunk at random.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::mman::{MmapAdvise, ProtFlags};

use crate::memory::{Region, deep};
use crate::program::{Numbers, answer};
use crate::runner::Test;

pub(crate) const PROGRAMS: &[Test] = &[("memory_checker", memory_checker), ("memory_mover", memory_mover)];

const THREADS: u64 = 4;
const REGIONS: usize = 6;
const PAGES: u64 = 256;

static ROUNDS: AtomicU64 = AtomicU64::new(0);
static WRONG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Life of a program that mostly uses its memory. `/` answers with the rounds made and what was found wrong.
fn memory_checker() {
    check_with(5);
}

/// Life of one that keeps moving it: what one thread gives up is at once where another one's goes.
fn memory_mover() {
    check_with(40);
}

fn check_with(changes: u64) {
    for seed in 0..THREADS {
        std::thread::spawn(move || check(seed, changes));
    }
    answer(|_path| {
        let wrong = WRONG.lock().unwrap();
        format!("{} {}", ROUNDS.load(Ordering::SeqCst), wrong.join("; "))
    });
}

/// `changes`: in so many of a hundred rounds it changes its mappings.
fn check(seed: u64, changes: u64) {
    let mut numbers = Numbers(seed);
    let mut regions: Vec<Region> = (0..REGIONS).map(|_| Region::new(PAGES)).collect();
    loop {
        let at = usize::try_from(numbers.below(REGIONS as u64)).unwrap();
        let region = &mut regions[at];
        let page = numbers.below(region.pages());
        let pages = 1 + numbers.below((region.pages() - page).min(16));
        let changes_mappings = numbers.below(100) < changes;
        match if changes_mappings { numbers.below(5) } else { 5 + numbers.below(95) } {
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
