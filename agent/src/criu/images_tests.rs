//! The image reader against folders as CRIU writes them, as nobody should, and as nobody would.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use tempfile::TempDir;

use medes_dedup::mapping::{Backing, FileName, Mapping, MappingsError};

use super::super::image_file::{FILES_MAGIC, MM_MAGIC};
use super::super::mappings::{parse_files, parse_mm};
use std::fs;
use std::path::Path;

use super::*;

/// An image file with these entries.
fn image(kind: u32, entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [0x5456_4319_u32.to_le_bytes(), kind.to_le_bytes()].concat();
    for entry in entries {
        bytes.extend(u32::try_from(entry.len()).unwrap().to_le_bytes());
        bytes.extend(entry);
    }
    bytes
}

fn run(address: u64, pages: u64, flags: u32) -> Vec<u8> {
    let entry = wire::PagemapEntry {
        vaddr: address,
        compat_nr_pages: 0,
        in_parent: None,
        flags: Some(flags),
        nr_pages: Some(pages),
    };
    entry.encode_to_vec()
}

fn pagemap(pages_id: u32, runs: &[(u64, u64, u32)]) -> Vec<u8> {
    let head = wire::PagemapHead { pages_id }.encode_to_vec();
    let runs = runs.iter().map(|(address, pages, flags)| run(*address, *pages, *flags));
    image(PAGEMAP_MAGIC, &[head].into_iter().chain(runs).collect::<Vec<_>>())
}

fn core(area: Option<(u64, u32)>) -> Vec<u8> {
    let rseq_entry =
        area.map(|(rseq_abi_pointer, rseq_abi_size)| wire::RseqEntry { rseq_abi_pointer, rseq_abi_size });
    let core = wire::CoreEntry { thread_core: Some(wire::ThreadCoreEntry { rseq_entry }) };
    image(CORE_MAGIC, &[core.encode_to_vec()])
}

fn vma(start: u64, end: u64, status: u32) -> wire::VmaEntry {
    wire::VmaEntry { start, end, pgoff: 0x3000, shmid: 5, flags: None, status }
}

fn mm(vmas: &[wire::VmaEntry]) -> Vec<u8> {
    image(MM_MAGIC, &[wire::MmEntry { vmas: vmas.to_vec() }.encode_to_vec()])
}

/// File 5 has a name, 6 is none that has one.
fn files() -> Vec<u8> {
    let named = wire::RegFileEntry { name: "/lib/libm.so".into() };
    let entries = [(5, Some(named)), (6, None)].map(|(id, reg)| wire::FileEntry { id, reg }.encode_to_vec());
    image(FILES_MAGIC, &entries)
}

/// A dump of one process with two threads and three pages.
fn dump() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
    let process = wire::PstreeEntry { pid: 1, ppid: 0, threads: vec![1, 2] };
    put("pstree.img", &image(PSTREE_MAGIC, &[process.encode_to_vec()]));
    put("core-1.img", &core(Some((0x7000, 32))));
    put("core-2.img", &core(None));
    put("pagemap-1.img", &pagemap(7, &[(0x1000, 1, 4), (0x5000, 2, 6)]));
    put("pages-7.img", &[1; 3 * 4096]);
    put("mm-1.img", &mm(&[vma(0x1000, 0x2000, HEAP), vma(0x5000, 0x8000, FILE)]));
    put("files.img", &files());
    put("pagemap-shmem-9.img", &pagemap(8, &[]));
    put("stats-dump", b"not an image");
    put("criu.log", b"not an image");
    folder
}

#[test]
fn a_dump_is_taken_apart() {
    let folder = dump();
    let set = ImageSet::read(folder.path()).unwrap();
    assert_eq!(set.pids, [1]);
    assert_eq!(set.rseq, [RseqArea { pid: 1, address: 0x7000, bytes: 32 }]);
    assert_eq!(
        set.skeleton,
        [
            "core-1.img",
            "core-2.img",
            "files.img",
            "mm-1.img",
            "pagemap-1.img",
            "pagemap-shmem-9.img",
            "pstree.img"
        ]
    );
    let runs = vec![Run { address: 0x1000, pages: 1 }, Run { address: 0x5000, pages: 2 }];
    let owner = Owner::Process { pid: 1 };
    assert_eq!(set.pages, [PagesFile { owner, name: "pages-7.img".into(), runs, pages: 3 }]);
    assert_eq!(set.pages[0].addresses().collect::<Vec<_>>(), [0x1000, 0x5000, 0x6000]);
    let mappings = set.mappings(folder.path()).unwrap();
    assert_eq!(mappings.keys().copied().collect::<Vec<_>>(), [1]);
    let (heap, file) = (Backing::Heap, Backing::File { name: FileName::of(b"/lib/libm.so"), offset: 0x3000 });
    assert_eq!(mappings[&1].as_slice(), [at(0x1000, 0x2000, heap), at(0x5000, 0x8000, file)]);
}

fn at(start: u64, end: u64, backing: Backing) -> Mapping {
    Mapping { start, end, backing }
}

/// CRIU's words for a mapping: heap, private file, private memory without one.
const HEAP: u32 = 0x221;
const FILE: u32 = 0x41;
const ANONYMOUS: u32 = 0x201;

#[test]
fn every_kind_of_mapping_is_understood() {
    let names = parse_files(&files()).unwrap();
    let kind = |change: wire::VmaEntry| parse_mm(&mm(&[change]), &names).unwrap().as_slice().to_vec();
    let one = |status| vma(0x1000, 0x2000, status);
    let file = |name: &[u8], offset| Backing::File { name: FileName::of(name), offset };
    for (status, backing) in [
        (HEAP, Backing::Heap),
        (0x203, Backing::Stack),
        (ANONYMOUS, Backing::Anonymous),
        (FILE, file(b"/lib/libm.so", 0x3000)),
        (0x81, file(b"/lib/libm.so", 0x3000)),
        (0x209, file(b"[vdso]", 0)),
        (0x1201, file(b"[vvar]", 0)),
    ] {
        assert_eq!(kind(one(status)), [at(0x1000, 0x2000, backing)], "{status:#x}");
    }
    let nameless = wire::VmaEntry { shmid: 6, ..one(FILE) };
    assert_eq!(kind(nameless), [at(0x1000, 0x2000, Backing::Anonymous)], "a memfd, or a file of a plugin");
    assert_eq!(kind(one(0x5)), [], "the kernel's vsyscall page is in no process");
    // A guard lies within the mapping it guards.
    let guarded = parse_mm(&mm(&[vma(0x1000, 0x9000, ANONYMOUS), vma(0x2000, 0x3000, 0x1_0000)]), &names);
    assert_eq!(guarded.unwrap().as_slice().len(), 1);
}

#[test]
fn mappings_that_no_process_has_are_an_error() {
    let names = parse_files(&files()).unwrap();
    let problem = |vmas: &[wire::VmaEntry]| match parse_mm(&mm(vmas), &names) {
        Err(FormatError::Mappings(problem)) => problem,
        other => panic!("{other:?}"),
    };
    let overlap = problem(&[vma(0x1000, 0x3000, HEAP), vma(0x2000, 0x4000, FILE)]);
    assert_eq!(overlap, MappingsError::Overlap { start: 0x2000 });
    for (start, end) in [(0x1000, 0x1000), (0x2000, 0x1000), (0x1001, 0x2000)] {
        assert_eq!(problem(&[vma(start, end, FILE)]), MappingsError::Bounds { start, end });
    }
    assert!(matches!(parse_mm(&image(MM_MAGIC, &[]), &names), Err(FormatError::Missing { .. })));
    assert!(matches!(parse_mm(&files(), &names), Err(FormatError::Magic { .. })));
    let folder = dump();
    fs::remove_file(folder.path().join("files.img")).unwrap();
    assert!(ImageSet::read(folder.path()).unwrap().mappings(folder.path()).is_err(), "no names");
}

#[test]
fn as_many_mappings_as_the_kernel_allows_are_read() {
    let many: Vec<_> = (1..=65_530_u64)
        .map(|at| (0x7fff_0000_0000 + at * 0x2000, at))
        .map(|(start, at)| wire::VmaEntry { pgoff: at << 12, ..vma(start, start + 0x1000, ANONYMOUS) })
        .collect();
    let names = parse_files(&files()).unwrap();
    assert_eq!(parse_mm(&mm(&many), &names).unwrap().as_slice().len(), many.len());
}

#[test]
fn the_page_count_of_older_criu_is_understood() {
    let old = wire::PagemapEntry {
        vaddr: 0x1000,
        compat_nr_pages: 3,
        in_parent: None,
        flags: None,
        nr_pages: None,
    };
    let head = wire::PagemapHead { pages_id: 1 };
    let bytes = image(PAGEMAP_MAGIC, &[head.encode_to_vec(), old.encode_to_vec()]);
    assert_eq!(parse_pagemap(&bytes).unwrap(), (1, vec![Run { address: 0x1000, pages: 3 }]));
}

#[test]
fn pages_that_are_elsewhere_or_nowhere_are_an_error() {
    let at = |address, pages, flags| parse_pagemap(&pagemap(1, &[(address, pages, flags)]));
    assert!(
        matches!(at(0x1000, 1, 1), Err(FormatError::Elsewhere { address: 0x1000, flags: 1 })),
        "in the parent"
    );
    assert!(matches!(at(0x1000, 1, 5), Err(FormatError::Elsewhere { .. })), "in both");
    assert!(matches!(at(0x1000, 1, 2), Err(FormatError::Elsewhere { .. })), "served by somebody");
    assert!(matches!(at(0x1000, 0, 4), Err(FormatError::Run { .. })), "empty");
    assert!(matches!(at(0x1001, 1, 4), Err(FormatError::Run { .. })), "not aligned");
    assert!(matches!(at(0x1000, u64::MAX, 4), Err(FormatError::Run { .. })), "too long to multiply");
    assert!(matches!(at(u64::MAX - 4095, 1, 4), Err(FormatError::Run { .. })), "beyond the end");
    let overlap = parse_pagemap(&pagemap(1, &[(0x1000, 2, 4), (0x2000, 1, 4)]));
    assert!(matches!(overlap, Err(FormatError::Order { address: 0x2000 })));
    assert!(matches!(parse_pagemap(&core(None)), Err(FormatError::Magic { .. })), "another kind of file");
}

#[test]
fn a_folder_that_does_not_add_up_is_an_error() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 8] = [
        ("short pages file", |dir| fs::write(dir.join("pages-7.img"), [0; 4096]).unwrap()),
        ("odd pages file", |dir| fs::write(dir.join("pages-7.img"), [0; 3 * 4096 + 1]).unwrap()),
        ("no pages file", |dir| fs::remove_file(dir.join("pages-7.img")).unwrap()),
        ("pages of nobody", |dir| fs::write(dir.join("pages-3.img"), [0; 4096]).unwrap()),
        ("no core", |dir| fs::remove_file(dir.join("core-2.img")).unwrap()),
        ("two owners", |dir| fs::write(dir.join("pagemap-2.img"), pagemap(7, &[(0, 3, 4)])).unwrap()),
        ("an earlier dump", |dir| std::os::unix::fs::symlink("..", dir.join("parent")).unwrap()),
        ("a link", |dir| std::os::unix::fs::symlink("core-1.img", dir.join("core-3.img")).unwrap()),
    ];
    for (what, spoil) in spoils {
        let folder = dump();
        spoil(folder.path());
        assert!(ImageSet::read(folder.path()).is_err(), "{what}");
    }
}

#[test]
fn every_truncation_is_seen_unless_it_falls_between_two_entries() {
    let whole = pagemap(7, &[(0x1000, 1, 4), (0x5000, 2, 6)]);
    let runs = |len: usize| parse_pagemap(&whole[..len]).map(|(_, runs)| runs.len());
    let between: Vec<_> = (0..=whole.len()).filter_map(|len| runs(len).ok()).collect();
    assert_eq!(between, [0, 1, 2]);
}

#[test]
fn a_length_is_believed_only_if_the_bytes_are_there() {
    let mut bytes = image(CORE_MAGIC, &[]);
    bytes.extend(u32::MAX.to_le_bytes());
    assert!(matches!(parse_core(&bytes), Err(FormatError::EntryTooLong { len: u32::MAX })));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pstree.img");
    fs::File::create(&path).unwrap().set_len(LARGE_BYTES_MAX + 1).unwrap();
    assert!(matches!(
        super::super::image_file::read(&path, 100),
        Err(ImageFileError::TooLong { max: 100, .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(kind in 0_usize..6, tail in vec(any::<u8>(), 0..300), framed: bool) {
        let kind = [PAGEMAP_MAGIC, PSTREE_MAGIC, CORE_MAGIC, MM_MAGIC, FILES_MAGIC, 0][kind];
        // Framed, they get as far as the decoder of entries.
        let bytes = if framed { image(kind, &[tail]) } else { [image(kind, &[]), tail].concat() };
        let _any = (parse_pagemap(&bytes).is_ok(), parse_pstree(&bytes).is_ok(), parse_core(&bytes).is_ok());
        let _any = (parse_files(&bytes).is_ok(), parse_mm(&bytes, &Default::default()).is_ok());
    }

    #[test]
    fn a_changed_byte_gives_an_error_or_mappings_in_order(
        at in any::<prop::sample::Index>(), byte: u8,
        vmas in vec((0_u64..9, 1_u64..9, any::<u32>()), 0..20),
    ) {
        let mut end = 0;
        let vmas: Vec<_> = vmas
            .into_iter()
            .map(|(gap, pages, status)| {
                let start = end + gap * PAGE_BYTES;
                end = start + pages * PAGE_BYTES;
                vma(start, end, status)
            })
            .collect();
        let names = parse_files(&files()).unwrap();
        let mut bytes = mm(&vmas);
        prop_assert!(parse_mm(&bytes, &names).unwrap().as_slice().len() <= vmas.len());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(mappings) = parse_mm(&bytes, &names) {
            prop_assert!(mappings.as_slice().len() <= bytes.len() / 2);
            prop_assert!(mappings.as_slice().is_sorted_by(|a, b| a.end <= b.start));
        }
    }

    #[test]
    fn whatever_is_accepted_is_in_order(
        at in any::<prop::sample::Index>(), byte: u8, gaps in vec((0_u64..9, 1_u64..9), 0..20),
    ) {
        let mut address = 0;
        let mut runs = Vec::new();
        for (gap, pages) in gaps {
            address += gap * PAGE_BYTES;
            runs.push((address, pages, PRESENT));
            address += pages * PAGE_BYTES;
        }
        let mut bytes = pagemap(7, &runs);
        let whole = parse_pagemap(&bytes).unwrap().1;
        prop_assert_eq!(whole.iter().map(|r| (r.address, r.pages, PRESENT)).collect::<Vec<_>>(), runs);

        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok((_, runs)) = parse_pagemap(&bytes) {
            prop_assert!(runs.len() <= bytes.len());
            prop_assert!(runs.iter().all(|run| run.pages > 0 && run.address.is_multiple_of(PAGE_BYTES)));
            prop_assert!(runs.is_sorted_by(|a, b| a.address + a.pages * PAGE_BYTES <= b.address));
            prop_assert!(runs.iter().all(|run| run.address + run.pages * PAGE_BYTES <= ADDRESS_MAX));
        }
    }
}
