//! What memory calls mean for pages that are missing: what they always mean.

use std::io::{Read, Write};
use std::process::Command;
use std::sync::Mutex;

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags};

use crate::desk::at_desk;
use crate::memory::{Region, deep, grow_heap, heap_word, in_child};
use crate::program::{answer, program};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] =
    &[("memory_calls_mean_the_same_for_missing_pages", memory_calls_mean_the_same_for_missing_pages)];
pub(crate) const PROGRAMS: &[Test] = &[("memory_meanings", memory_meanings)];

const PAGES: u64 = 8;

/// What is wrong, if anything.
type Verdict = Option<String>;
/// Looks at memory that was prepared, after it was taken and given back.
type Look = Box<dyn FnOnce() -> Verdict + Send>;

/// What is prepared, by name.
type Case = (&'static str, fn() -> Look);

/// What is prepared before a park.
const CASES: &[Case] = &[
    ("read", || with_region(|region| region.check_all())),
    ("dontneed", || {
        with_region(|region| {
            region.give_up(2, 3, MmapAdvise::MADV_DONTNEED);
            region.check_all()
        })
    }),
    ("free", || {
        with_region(|region| {
            advise_free(region);
            region.check_or_zeros()
        })
    }),
    ("written, then dontneed", || {
        with_region(|region| {
            region.fill(3, 99);
            region.give_up(3, 1, MmapAdvise::MADV_DONTNEED);
            region.check_all()
        })
    }),
    ("mapped anew", || {
        with_region(|region| {
            region.map_anew(3, 2);
            region.check_all()
        })
    }),
    ("grown", || {
        with_region(|region| {
            region.resize(64);
            region.check_all()
        })
    }),
    ("shrunk and grown", || {
        with_region(|region| {
            region.resize(3);
            region.resize(PAGES);
            region.check_all()
        })
    }),
    ("moved over another", || {
        with_region(|region| {
            let mut other = Region::new(PAGES);
            other.fill_all(7);
            region.move_over(other);
            region.check_all()
        })
    }),
    ("protected", || {
        with_region(|region| {
            region.protect(ProtFlags::PROT_READ);
            let wrong = region.check_all();
            region.protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
            region.fill(1, 5);
            wrong.or(region.check_all())
        })
    }),
    ("not readable while it is taken", not_readable),
    ("locked while it is taken", locked),
    ("locked afterwards", || {
        with_region(|region| {
            region.lock().unwrap();
            region.check_all()
        })
    }),
    ("forked", forked),
    ("forked twice", || {
        with_region(|region| {
            tell(
                in_child(|| in_child(|| region.check_all().is_none()) && region.check_all().is_none()),
                "a grandchild",
            )
            .or(region.check_all())
        })
    }),
    ("written by the kernel", piped),
    ("shared", || {
        let mut region = Region::with(PAGES, MapFlags::MAP_SHARED);
        region.fill_all(11);
        Box::new(move || region.check_all())
    }),
    ("of a file", of_a_file),
    ("of a file, not to be written", of_a_file_not_to_be_written),
    ("of a file, then of another", of_a_file_then_of_another),
    ("huge", huge),
    ("heap", heap),
    ("another program", || {
        Box::new(|| {
            tell(Command::new("true").status().is_ok_and(|status| status.success()), "no program started")
        })
    }),
    ("a thread", || {
        Box::new(|| tell(std::thread::spawn(|| deep(100)).join().is_ok_and(|good| good), "its stack"))
    }),
    ("the stack", || Box::new(|| tell(deep(400), "the stack"))),
    ("much new memory", || {
        Box::new(|| {
            let mut region = Region::new(4096);
            region.fill_all(3);
            region.check_all()
        })
    }),
];

fn tell(is_so: bool, what: &str) -> Verdict {
    (!is_so).then(|| what.to_owned())
}

fn with_region(look: impl FnOnce(&mut Region) -> Verdict + Send + 'static) -> Look {
    let mut region = Region::new(PAGES);
    region.fill_all(0x1000);
    Box::new(move || look(&mut region))
}

/// Contents that may go, or stay until they do; either way whole pages.
fn advise_free(region: &mut Region) {
    region.advise(MmapAdvise::MADV_FREE).unwrap();
}

fn not_readable() -> Look {
    let mut region = Region::new(PAGES);
    region.fill_all(21);
    region.protect(ProtFlags::PROT_NONE);
    Box::new(move || {
        region.protect(ProtFlags::PROT_READ);
        region.check_all()
    })
}

fn locked() -> Look {
    let mut region = Region::new(PAGES);
    region.fill_all(31);
    region.lock().unwrap();
    Box::new(move || region.check_all())
}

fn forked() -> Look {
    with_region(|region| {
        let seen = in_child(|| {
            let same = region.check_all().is_none();
            region.fill(2, 77);
            same && region.check_all().is_none()
        });
        tell(seen, "what a child sees").or(region.check_all())
    })
}

fn piped() -> Look {
    with_region(|region| {
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(region.as_bytes(2)).unwrap();
        let salt = 0x1000 + 2;
        reader.read_exact(region.as_bytes_mut(5, salt)).unwrap();
        region.check_all()
    })
}

fn changed_file() -> Region {
    // So many that the changed ones are moved in more than one part, and some between stay the file's.
    let mut region = Region::of_file(600);
    [1, 2, 6, 30].into_iter().chain(100..500).for_each(|page| region.fill(page, 61 + page));
    region
}

fn of_a_file() -> Look {
    let mut region = changed_file();
    Box::new(move || {
        let wrong = region.check_all();
        region.fill(2, 5);
        region.fill(50, 6);
        wrong.or(region.check_all())
    })
}

fn of_a_file_not_to_be_written() -> Look {
    let mut region = changed_file();
    region.protect(ProtFlags::PROT_READ);
    Box::new(move || {
        let wrong = region.check_all();
        region.protect(ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
        region.fill(1, 5);
        wrong.or(region.check_all())
    })
}

fn of_a_file_then_of_another() -> Look {
    let mut region = changed_file();
    Box::new(move || {
        let mut other = Region::of_file(600);
        other.fill(3, 7);
        other.move_over(region);
        region = other;
        region.fill(4, 8);
        region.check_all()
    })
}

fn huge() -> Look {
    let mut region = Region::new(2048);
    // Some kernels have none.
    let _none = region.advise(MmapAdvise::MADV_HUGEPAGE);
    region.fill_all(41);
    Box::new(move || region.check_all())
}

fn heap() -> Look {
    let start = grow_heap(16);
    (0..16).for_each(|page| assert_ne!(heap_word(start + page * 4096, Some(page as u64 + 51)), 0));
    Box::new(move || {
        let same = (0..16).all(|page| heap_word(start + page * 4096, None) == page as u64 + 51);
        let end = grow_heap(4);
        let new = (0..4).all(|page| heap_word(end + page * 4096, None) == 0);
        tell(same, "what was there").or(tell(new, "what is new"))
    })
}

/// Life of the program: `/prepare`, and when its memory was taken and given back, `/look`.
fn memory_meanings() {
    let looks: Mutex<Vec<(&str, Look)>> = Mutex::default();
    answer(|path| {
        if path == "/prepare" {
            *looks.lock().unwrap() = CASES.iter().map(|(name, prepare)| (*name, prepare())).collect();
            return String::new();
        }
        let all = std::mem::take(&mut *looks.lock().unwrap());
        let wrong = all.into_iter().filter_map(|(name, look)| Some(format!("{name}: {}", look()?)));
        wrong.collect::<Vec<_>>().join("\n")
    });
}

fn memory_calls_mean_the_same_for_missing_pages() {
    at_desk(async |desk| {
        let mut guest = desk.start("s1", &program("memory_meanings")).await;
        guest.ask("/prepare").await;
        assert_eq!(guest.ask("/look").await, "", "without being parked at all");
        for round in 0..5 {
            guest.ask("/prepare").await;
            let report = desk.park(&mut guest).await;
            assert!(report.left_out_pages >= PAGES, "the locked ones: {report:?}");
            guest.unpark().await;
            // Not in each round: what was written has its mark in some, and not in others.
            if round % 2 == 1 {
                guest.look();
            }
            assert_eq!(guest.ask("/look").await, "", "round {round}");
            guest.look();
        }
        println!("{:?}", guest.paged.as_ref().unwrap().counts());
        guest.housing.remove().await.unwrap();
    });
}
