//! Pages of words: whatever the base, the mappings and the pages are, every page comes back; and what is moved is found.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use common::{KEY, Process, any_page, base, changed, noise_page, process};
use medes_dedup::delta::DeltaCodec;
use medes_dedup::encode::{EncodeRules, EncodedRun, Encoder, PageClass, WordRules, WordsOf};
use medes_dedup::image::{BuildImageError, DedupImage, ImageBuilder, seal};
use medes_dedup::mapping::{Backing, FileName, Mapping, Mappings, MappingsError};
use medes_dedup::page::{BasePage, Page, PageIndex, ZERO_PAGE};
use medes_dedup::rebuild::{BasePages, RebuildError};
use medes_dedup::recipe::Source;
use medes_dedup::words::{
    Aligner, BaseIndex, Facts, Memory, MemoryError, Plan, RELATION_BYTES_MAX, Relation, Translation,
};
use proptest::prelude::*;

fn index(base: &Process) -> BaseIndex {
    BaseIndex::new(Memory::new(&base.pages(), &base.addresses, &base.mappings).unwrap())
}

/// The plan for a target, made in parts of so many pages.
fn plan(target: &Process, from: &Process, part_pages: usize) -> Plan {
    let (index, base_pages, pages) = (index(from), from.pages(), target.pages());
    let memory = Memory::new(&pages, &target.addresses, &target.mappings).unwrap();
    let facts = Facts::none();
    let aligner = Aligner::new(memory, &index, &base_pages, &facts);
    let starts = (0..pages.len()).step_by(part_pages);
    aligner.plan(starts.map(|start| aligner.part(start..(start + part_pages).min(pages.len()))))
}

/// The plan for a target, refined.
fn refined(target: &Process, from: &Process) -> Plan {
    let (index, base_pages, pages) = (index(from), from.pages(), target.pages());
    let memory = Memory::new(&pages, &target.addresses, &target.mappings).unwrap();
    let facts = Facts::none();
    let aligner = Aligner::new(memory, &index, &base_pages, &facts);
    let first = aligner.plan([aligner.part(0..pages.len())]);
    let second = aligner.refine(&first);
    second.plan([second.part(0..pages.len())])
}

/// The target as an image on base snapshot 1.
fn image(target: &Process, from: &Process, part_pages: usize) -> DedupImage<Vec<u8>> {
    stored(target, from, &plan(target, from, part_pages), WordRules::FAST)
}

fn stored(target: &Process, from: &Process, plan: &Plan, rules: WordRules) -> DedupImage<Vec<u8>> {
    let pages = from.pages();
    let facts = Facts::none();
    let words = WordsOf { snapshot: base(1, 0).snapshot, pages: &pages, facts: &facts, plan, rules };
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut run = EncodedRun::new();
    for (at, page) in (0u32..).map(PageIndex).zip(&target.pages) {
        run.push(&encoder.encode_planned(page, at, &words));
    }
    assert_eq!(encoder.distrusted(), 0);
    let mut builder = ImageBuilder::new(&KEY);
    builder.append(&run).unwrap();
    builder.relation(words.snapshot, plan.relation());
    builder.section("core-1.img", b"registers".to_vec()).unwrap();
    DedupImage::open(builder.finish().unwrap(), &KEY).unwrap()
}

/// The base pages that the read plan of an image names, and no others.
struct Planned<'b>(&'b Process, BTreeSet<BasePage>);

impl BasePages for Planned<'_> {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.1.contains(&page).then(|| self.0.pages.get(page.page.0 as usize))?
    }
}

/// Rebuilds every page from what the read plan names for this page alone.
fn check(image: &DedupImage<Vec<u8>>, target: &Process, from: &Process) {
    assert_eq!(image.pages() as usize, target.pages.len());
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    for (at, page) in (0u32..).map(PageIndex).zip(&target.pages) {
        let reads = image.reads();
        let needed = reads.iter().filter(|read| read.pages().any(|one| one == at)).map(|read| read.base);
        image.rebuild_from(&mut codec, at, &Planned(from, needed.collect()), &mut out).unwrap();
        assert!(out == *page, "page {at}");
    }
    assert_eq!(image.sections().unwrap().get("core-1.img"), Some(&b"registers"[..]));
}

/// Any process at all, related to nothing.
fn any_process() -> impl Strategy<Value = Process> {
    let backing = prop_oneof![
        (0u8..3, 0u64..9)
            .prop_map(|(name, page)| Backing::File { name: FileName::of(&[name]), offset: page << 12 }),
        Just(Backing::Heap),
        Just(Backing::Stack),
        Just(Backing::Anonymous),
    ];
    let mapping = (backing, prop_oneof![0u64..4, any::<u64>().prop_map(|at| at >> 20)], 1u64..5);
    let pages = proptest::collection::vec(any_page(), 0..24);
    (proptest::collection::vec(mapping, 0..12), pages, 1u64..4).prop_map(|(raw, pages, distance)| {
        let mut start = 0x1000u64;
        let mappings = raw.into_iter().map(|(backing, gap, pages)| {
            let mapping = Mapping { start: start + (gap << 12), end: start + ((gap + pages) << 12), backing };
            start = mapping.end;
            mapping
        });
        let mappings = Mappings::new(mappings).unwrap();
        let first = mappings.as_slice().first().map_or(0, |mapping| mapping.start);
        let addresses = (0..pages.len() as u64).map(|page| first + ((page * distance) << 12)).collect();
        Process { mappings, addresses, pages }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any page, any base, any mappings.
    #[test]
    fn any_process_comes_back(target in any_process(), from in any_process(), part_pages in 1usize..30) {
        check(&image(&target, &from, part_pages), &target, &from);
    }

    /// Some pages of a target change into anything: the others are taken over, these are made anew with the same relation.
    #[test]
    fn what_has_not_changed_is_taken_over(
        program: u64,
        layouts: (u64, u64),
        new in proptest::collection::vec((any::<prop::sample::Index>(), any_page()), 0..8),
        touched in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..4096, any::<u8>()), 0..8),
        with_places: bool,
    ) {
        let (from, mut target) = (process(program, layouts.0, 3), process(program, layouts.1, 9));
        let earlier = image(&target, &from, 30);
        let before = target.pages.clone();
        for (at, page) in new {
            *at.get_mut(&mut target.pages) = page;
        }
        for (at, byte, value) in touched {
            at.get_mut(&mut target.pages)[byte] = value;
        }
        let fresh: Vec<usize> = (0..before.len()).filter(|at| before[*at] != target.pages[*at]).collect();
        let (index, base_pages, facts) = (index(&from), from.pages(), Facts::none());
        let pages: Vec<&Page> = fresh.iter().map(|at| &target.pages[*at]).collect();
        let addresses: Vec<u64> = fresh.iter().map(|at| target.addresses[*at]).collect();
        let memory = Memory::new(&pages, &addresses, &target.mappings).unwrap();
        let (snapshot, _) = earlier.relations().next().unwrap();
        let places = fresh.iter().map(|at| with_places.then_some(PageIndex(*at as u32)));
        let known = earlier.earlier(snapshot, places).unwrap();
        let aligner = Aligner::new(memory, &index, &base_pages, &facts).again(&known);
        let plan = aligner.plan([aligner.part(0..pages.len())]);
        let rules = WordRules::FAST;
        let words = WordsOf { snapshot, pages: &base_pages, facts: &facts, plan: &plan, rules };
        let mut encoder = Encoder::new(&KEY, EncodeRules::default());
        let mut builder = ImageBuilder::new(&KEY);
        let mut numbers = (0u32..).map(PageIndex);
        for (at, taken) in earlier.encoded().enumerate() {
            match fresh.contains(&at) {
                true => {
                    let number = numbers.next().unwrap();
                    builder.push(&encoder.encode_planned(&target.pages[at], number, &words)).unwrap();
                }
                false => builder.push(&taken).unwrap(),
            }
        }
        for (snapshot, relation) in earlier.relations() {
            builder.relation(snapshot, relation);
        }
        builder.section("core-1.img", b"registers".to_vec()).unwrap();
        prop_assert_eq!(encoder.distrusted(), 0);
        check(&DedupImage::open(builder.finish().unwrap(), &KEY).unwrap(), &target, &from);
    }

    /// A second start of the program, with some words of its own and its objects further on.
    #[test]
    fn relatives_come_back(
        program: u64,
        layouts: (u64, u64),
        gaps in (0usize..40, 0usize..40),
        words in 0usize..600,
        part_pages in 1usize..30,
    ) {
        let from = process(program, layouts.0, gaps.0);
        let mut target = process(program, layouts.1, gaps.1);
        for (at, page) in (0u64..).zip(&mut target.pages) {
            *page = changed(page, program ^ at, words);
        }
        check(&image(&target, &from, part_pages), &target, &from);
    }

    /// A pointer table survives being written down: it translates every word as before.
    #[test]
    fn tables_come_back(program: u64, layouts: (u64, u64), gap in 0usize..40, words: Vec<u64>) {
        let (from, target) = (process(program, layouts.0, 0), process(program, layouts.1, gap));
        let plan = plan(&target, &from, 100);
        let table = plan.relation().translation();
        let read = Translation::read(&table.write()).unwrap();
        prop_assert_eq!(read.len(), table.len());
        let ends = from.mappings.as_slice().iter().flat_map(|mapping| [mapping.start - 1, mapping.start, mapping.end]);
        for word in from.addresses.iter().copied().chain(ends).chain(words) {
            prop_assert_eq!(read.translate(word), table.translate(word));
        }
    }

    /// Any bytes as a pointer table: an error, or a table that is written the same way again.
    #[test]
    fn any_bytes_as_a_table(plain: Vec<u8>, entries in 0u32..40, compressed in any::<bool>()) {
        let mut bytes = plain.clone();
        if compressed {
            bytes = [entries.to_le_bytes(), (plain.len() as u32).to_le_bytes()].concat();
            bytes.extend(zstd::bulk::compress(&plain, 1).unwrap());
        }
        if let Ok(table) = Translation::read(&bytes) {
            let again = Translation::read(&table.write()).unwrap();
            prop_assert_eq!(again.len(), table.len());
        }
    }

    /// Any bytes as a relation, and a real one with bytes changed: an error, or a relation that is written the same way
    /// again.
    #[test]
    fn any_bytes_as_a_relation(
        noise: Vec<u8>,
        strikes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let real = RELATION.get_or_init(|| {
            plan(&process(1, 3, 5), &process(1, 2, 0), 100).relation().write()
        });
        let mut struck = real.clone();
        for (at, byte) in strikes {
            let at = at.index(struck.len());
            struck[at] = byte;
        }
        let with_secret = [&[16], &noise[..noise.len().min(16)], &real[1..]].concat();
        for bytes in [noise, struck, with_secret] {
            if let Ok(relation) = Relation::read(&bytes) {
                let written = relation.write();
                prop_assert!(written.len() <= RELATION_BYTES_MAX);
                let again = Relation::read(&written).unwrap();
                prop_assert_eq!(again.needs_facts(), relation.needs_facts());
                prop_assert_eq!(again.write(), written);
            }
        }
        prop_assert_eq!(&Relation::read(real).unwrap().write(), real);
    }
}

/// A relation as it is written, made once.
static RELATION: OnceLock<Vec<u8>> = OnceLock::new();

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    /// Damage that somebody with the key has sealed: whatever still comes out is the page that went in.
    #[test]
    fn damage_gives_an_error_or_the_page(at: prop::sample::Index, byte: u8, times in 1usize..4) {
        let (from, target) = (process(1, 2, 0), process(1, 3, 5));
        let file = IMAGE.get_or_init(|| image(&target, &from, 100).into_file());
        let mut body = file[..file.len() - 48].to_vec();
        for step in 0..times {
            let at = (at.index(body.len()) + step * 997) % body.len();
            body[at] = byte.wrapping_add(step as u8);
        }
        let Ok(image) = DedupImage::open(seal(body, &KEY), &KEY) else { return Ok(()) };
        let all = (0..from.pages.len() as u32).map(|page| base(1, page)).collect();
        let all = Planned(&from, all);
        let mut codec = DeltaCodec::new();
        let mut out = noise_page(1);
        for page in (0..image.pages()).map(PageIndex) {
            match image.rebuild_from(&mut codec, page, &all, &mut out) {
                Ok(()) => prop_assert_eq!(out, target.pages[page.0 as usize]),
                Err(_) => prop_assert_eq!(out, ZERO_PAGE),
            }
        }
        prop_assert!(image.reads().iter().all(|read| image.bases().contains(&read.base.snapshot)));
    }

    /// A refined plan is a plan like any other.
    #[test]
    fn refined_plans_come_back(program: u64, layouts: (u64, u64), gap in 0usize..40, words in 0usize..300) {
        let (from, mut target) = (process(program, layouts.0, 0), process(program, layouts.1, gap));
        for (at, page) in (0u64..).zip(&mut target.pages) {
            *page = changed(page, program ^ at, words);
        }
        check(&stored(&target, &from, &refined(&target, &from), WordRules::SMALL), &target, &from);
    }
}

/// The file that is damaged, made once.
static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();

/// Nothing but addresses and distances differ: then next to nothing is stored.
#[test]
fn a_moved_process_takes_next_to_nothing() {
    let (from, target) = (process(1, 2, 0), process(1, 3, 5));
    let image = image(&target, &from, 100);
    check(&image, &target, &from);
    let classes = image.classes();
    assert_eq!(classes.whole, 0, "{classes:?}");
    let bytes = (classes.delta_bytes + classes.whole_bytes) as usize;
    assert!(bytes < target.pages.len() * 100, "{bytes} bytes for {} pages", target.pages.len());
}

/// How the work was divided may change a few bytes, never a page; and the same division gives the same file.
#[test]
fn planning_is_repeatable() {
    let (from, target) = (process(5, 6, 1), process(5, 7, 9));
    let files = [3, 3, 100].map(|part_pages| image(&target, &from, part_pages).into_file());
    assert_eq!(files[0], files[1]);
    for file in files {
        check(&DedupImage::open(file, &KEY).unwrap(), &target, &from);
    }
}

#[test]
fn pages_equal_to_their_base_take_no_bytes() {
    let from = process(1, 2, 0);
    let image = image(&from, &from, 100);
    let classes = image.classes();
    assert_eq!(classes.same as usize, from.pages.len(), "{classes:?}");
}

#[test]
fn pages_nobody_can_compress_stay_as_they_are() {
    let (from, mut target) = (process(1, 2, 0), process(1, 3, 0));
    target.pages[4] = noise_page(9);
    let image = image(&target, &from, 100);
    check(&image, &target, &from);
    assert_eq!(image.classes().whole, 1);
}

/// Whoever descends from the base has it at the same addresses: no pointer is looked up to bring it back.
#[test]
fn what_descends_from_its_base_moves_nothing() {
    let from = process(1, 2, 0);
    let mut target = from.clone();
    for (seed, page) in (0..).zip(target.pages.iter_mut().step_by(7)) {
        *page = changed(page, seed, 20);
    }
    let stays = plan(&target, &from, 100);
    assert!(stays.relation().translation().is_empty());
    check(&stored(&target, &from, &stays, WordRules::FAST), &target, &from);
    // Another start of the program is at other addresses; one with all pages changed could be anybody's.
    assert!(!plan(&process(1, 3, 0), &from, 100).relation().translation().is_empty());
    target.pages.iter_mut().for_each(|page| *page = changed(page, 5, 300));
    let plan = plan(&target, &from, 100);
    check(&stored(&target, &from, &plan, WordRules::FAST), &target, &from);
}

#[test]
fn hot_pages_are_words_or_stay_as_they_are() {
    let (from, mut target) = (process(1, 2, 0), process(1, 3, 0));
    // It would compress well by itself.
    target.pages[4] = [7; 4096];
    let plan = plan(&target, &from, 100);
    let [small, hot] = [WordRules::FAST, WordRules::HOT].map(|rules| stored(&target, &from, &plan, rules));
    check(&hot, &target, &from);
    let bytes = |image: &DedupImage<_>, page| match image.recipe(PageIndex(page)).unwrap().source {
        Source::Delta { place, .. } | Source::Whole { place, .. } => place.bytes,
        Source::Zero | Source::Same(_) => 0,
    };
    assert_eq!((bytes(&small, 4) < 1024, bytes(&hot, 4)), (true, 4096));
    assert_eq!(bytes(&small, 9), bytes(&hot, 9));
}

#[test]
fn neighbours_come_back_together() {
    let (from, target) = (process(1, 2, 0), process(1, 3, 5));
    let image = image(&target, &from, 100);
    let all = Planned(&from, image.reads().iter().map(|read| read.base).collect());
    let mut codec = DeltaCodec::new();
    for (first, count) in [(0, target.pages.len()), (5, 1), (9, 16), (15, 2)] {
        let mut out = vec![[1; 4096]; count];
        image.rebuild_run(&mut codec, PageIndex(first), &all, &mut out).unwrap();
        assert!(out == target.pages[first as usize..][..count], "{count} from {first} on");
    }
    // One that is not there: none of them.
    let mut out = vec![[1; 4096]; 3];
    let last = PageIndex(u32::try_from(target.pages.len()).unwrap() - 2);
    let error = image.rebuild_run(&mut codec, last, &all, &mut out).unwrap_err();
    assert!(matches!(error, RebuildError::NoPage { .. }), "{error}");
    assert!(out.iter().all(|page| *page == ZERO_PAGE));
}

#[test]
fn an_image_of_words_needs_their_table() {
    let (from, target) = (process(1, 2, 0), process(1, 3, 0));
    let (plan, pages) = (plan(&target, &from, 100), from.pages());
    let snapshot = base(1, 0).snapshot;
    let facts = Facts::none();
    let words = WordsOf { snapshot, pages: &pages, facts: &facts, plan: &plan, rules: WordRules::FAST };
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let page = encoder.encode_planned(&target.pages[3], PageIndex(3), &words);
    assert_eq!(page.class(), PageClass::Delta);
    let mut builder = ImageBuilder::new(&KEY);
    builder.push(&page).unwrap();
    assert_eq!(builder.finish(), Err(BuildImageError::NoTable { snapshot }));
}

#[test]
fn base_pages_that_are_missing_are_named() {
    let (from, target) = (process(1, 2, 0), process(1, 3, 5));
    let image = image(&target, &from, 100);
    let mut codec = DeltaCodec::new();
    let mut out = noise_page(1);
    for page in (0..image.pages()).map(PageIndex) {
        let error =
            image.rebuild_from(&mut codec, page, &Planned(&from, BTreeSet::new()), &mut out).unwrap_err();
        let RebuildError::NoBase { page: named, base } = error else { panic!("{error}") };
        assert_eq!(named, page);
        assert!(image.reads().iter().any(|read| read.base == base));
        assert_eq!(out, ZERO_PAGE);
    }
}

#[test]
fn a_wrong_base_is_seen_by_the_hash() {
    let (from, target) = (process(1, 2, 0), process(1, 3, 5));
    let image = image(&target, &from, 100);
    let wrong = process(2, 2, 0);
    let all = (0..from.pages.len() as u32).map(|page| base(1, page)).collect();
    let mut codec = DeltaCodec::new();
    let mut out = noise_page(1);
    for page in (0..image.pages()).map(PageIndex) {
        let all = Planned(&wrong, BTreeSet::clone(&all));
        let error = image.rebuild_from(&mut codec, page, &all, &mut out).unwrap_err();
        // With another page as its dictionary, zstd may notice by itself.
        assert!(matches!(error, RebuildError::Hash { .. } | RebuildError::Decode { .. }), "{error}");
        assert_eq!(out, ZERO_PAGE);
    }
}

#[test]
fn mappings_and_memories_that_cannot_be_are_refused() {
    let mapping = |start, end| Mapping { start, end, backing: Backing::Anonymous };
    let error = |list: &[Mapping]| Mappings::new(list.iter().copied()).unwrap_err();
    assert_eq!(error(&[mapping(0x1000, 0x1000)]), MappingsError::Bounds { start: 0x1000, end: 0x1000 });
    assert_eq!(error(&[mapping(0x1000, 0x1800)]), MappingsError::Bounds { start: 0x1000, end: 0x1800 });
    let overlap = [mapping(0x5000, 0x7000), mapping(0x1000, 0x6000)];
    assert_eq!(error(&overlap), MappingsError::Overlap { start: 0x5000 });
    let page = ZERO_PAGE;
    let mappings = Mappings::default();
    let memory = |addresses: &[u64]| Memory::new(&[&page, &page], addresses, &mappings).err();
    assert_eq!(memory(&[0x1000]), Some(MemoryError::Addresses { addresses: 1, pages: 2 }));
    assert_eq!(memory(&[0x2000, 0x1000]), Some(MemoryError::Order { page: PageIndex(1) }));
    assert_eq!(memory(&[0x1000, 0x2004]), Some(MemoryError::Order { page: PageIndex(1) }));
    assert_eq!(memory(&[0x1000, 0x2000]), None);
}

/// What is paired: the same part of the same file, a stack by its end, memory without a file by size and neighbour.
#[test]
fn mappings_are_paired_by_what_stays() {
    let file = |name: &[u8], offset| Backing::File { name: FileName::of(name), offset };
    let list = |raw: &[(u64, u64, Backing)]| {
        Mappings::new(raw.iter().map(|(start, pages, backing)| Mapping {
            start: start << 12,
            end: (start + pages) << 12,
            backing: *backing,
        }))
        .unwrap()
    };
    let one = list(&[
        (10, 2, file(b"a", 0)),
        (20, 7, Backing::Heap),
        (100, 1, file(b"b", 0)),
        (101, 4, Backing::Anonymous),
        (105, 6, Backing::Anonymous),
        (150, 2, file(b"c", 0)),
        (200, 3, Backing::Stack),
    ]);
    let other = list(&[
        (1010, 2, file(b"a", 0)),
        (1020, 9, Backing::Heap),
        (1090, 6, Backing::Anonymous),
        (1100, 1, file(b"b", 0)),
        (1101, 4, Backing::Anonymous),
        (1160, 5, file(b"c", 0x5000)),
        (1200, 9, Backing::Stack),
    ]);
    let shifts: Vec<Option<i64>> =
        one.shifts_to(&other).into_iter().map(|shift| Some(shift? as i64 >> 12)).collect();
    let stack = 1209 - 203;
    assert_eq!(shifts, [Some(1000), Some(1000), Some(1000), Some(1000), Some(985), Some(1005), Some(stack)]);
    assert!(one.shifts_to(&Mappings::default()).iter().all(Option::is_none));
}

/// In one that descends from another, mappings have grown, merged and come new, and nothing has moved.
#[test]
fn what_is_still_there_is_not_taken_for_something_else() {
    let list = |raw: &[(u64, u64)]| {
        Mappings::new(raw.iter().map(|(start, pages)| Mapping {
            start: start << 12,
            end: (start + pages) << 12,
            backing: Backing::Anonymous,
        }))
        .unwrap()
    };
    let from = list(&[(100, 8), (200, 40), (300, 8)]);
    // The first has a neighbour of its size now, the second has grown downwards, the third is gone and somebody else has that size.
    let later = list(&[(100, 8), (110, 8), (190, 50), (400, 8)]);
    assert!(from.stayed_in(&later));
    assert_eq!(from.shifts_to(&later)[..2], [Some(0), Some(0)]);
    let elsewhere = list(&[(1100, 8), (1200, 40), (1300, 8)]);
    assert!(!from.stayed_in(&elsewhere) && !from.stayed_in(&Mappings::default()));
    assert_eq!(from.shifts_to(&elsewhere), [Some(1000 << 12); 3]);
}
