//! `cargo +nightly fuzz run criu`: any bytes as the images of a dump, through everything that reads them.
//!
//! The files have the names that CRIU gives them, and mostly its magic numbers and lengths, or entries that make sense but for their numbers: a fuzzer
//! spends its time on what is inside.
#![no_main]

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::LazyLock;

use criu::images::{ImageSet, PAGE_BYTES, PagesFile};
use criu::wire::images as wire;
use criu::{CORE, FILES, MM, PAGEMAP, PSTREE, file};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// The agent's room of this name, of which only what reads images is called.
#[path = "../../src/criu"]
#[allow(dead_code, unused_imports, reason = "whole modules, without those who call the rest")]
mod criu {
    mod image_file;
    pub mod images;
    mod mappings;
    pub mod thin;
    pub mod wire;

    pub const PAGEMAP: u32 = image_file::PAGEMAP_MAGIC;
    pub const PSTREE: u32 = image_file::PSTREE_MAGIC;
    pub const CORE: u32 = image_file::CORE_MAGIC;
    pub const MM: u32 = image_file::MM_MAGIC;
    pub const FILES: u32 = image_file::FILES_MAGIC;

    /// The bytes of a file of this kind.
    pub fn file(kind: u32, entries: &[Vec<u8>]) -> Vec<u8> {
        image_file::image(kind, entries)
    }
}

#[derive(Arbitrary, Debug)]
struct Dump {
    pagemap: Image,
    pstree: Image,
    core: Image,
    mm: Image,
    files: Image,
    pages: u16,
}

#[derive(Arbitrary, Debug)]
enum Image {
    None,
    Raw(Vec<u8>),
    Entries(Vec<Vec<u8>>),
    Numbers(Vec<[u16; 4]>),
}

impl Image {
    fn write(&self, path: &Path, kind: u32) {
        let bytes = match self {
            Self::None => return,
            Self::Raw(bytes) => bytes.clone(),
            Self::Entries(entries) => file(kind, entries),
            Self::Numbers(numbers) => file(kind, &entries(kind, numbers)),
        };
        fs::write(path, bytes).expect("room in memory");
    }
}

/// What CRIU could have written, with these numbers in it.
fn entries(kind: u32, numbers: &[[u16; 4]]) -> Vec<Vec<u8>> {
    let page = |number: u16| u64::from(number) * PAGE_BYTES;
    match kind {
        PAGEMAP => {
            let head = wire::PagemapHead { pages_id: 1 }.encode_to_vec();
            let run = |[at, pages, flags, new]: &[u16; 4]| wire::PagemapEntry {
                vaddr: page(*at),
                compat_nr_pages: u32::from(*pages),
                in_parent: None,
                flags: (flags % 8 != 0).then_some(4),
                nr_pages: (new % 2 == 0).then_some(u64::from(*pages)),
            };
            [head].into_iter().chain(numbers.iter().map(run).map(|run| run.encode_to_vec())).collect()
        }
        PSTREE => vec![wire::PstreeEntry { pid: 1, ppid: 0, threads: vec![1] }.encode_to_vec()],
        CORE => {
            let area = |[at, offset, bytes, _]: &[u16; 4]| wire::RseqEntry {
                rseq_abi_pointer: page(*at) + u64::from(*offset),
                rseq_abi_size: u32::from(*bytes),
            };
            let thread = wire::ThreadCoreEntry { rseq_entry: numbers.first().map(area) };
            vec![wire::CoreEntry { thread_core: Some(thread) }.encode_to_vec()]
        }
        MM => {
            let vma = |[start, pages, status, flags]: &[u16; 4]| wire::VmaEntry {
                start: page(*start),
                end: page(*start) + page(*pages),
                pgoff: 0,
                shmid: u64::from(*status % 4),
                status: 1 << (status % 20),
                // Mostly private and without a file.
                flags: Some(if flags % 8 == 0 { u32::from(*flags) } else { 0x22 }),
            };
            vec![wire::MmEntry { vmas: numbers.iter().map(vma).collect() }.encode_to_vec()]
        }
        _ => {
            let named = |[id, name, ..]: &[u16; 4]| wire::FileEntry {
                id: u32::from(id % 4),
                reg: (name % 4 != 0).then(|| wire::RegFileEntry { name: format!("/{name}") }),
            };
            numbers.iter().map(named).map(|named| named.encode_to_vec()).collect()
        }
    }
}

/// In memory: the folder is made anew for every input.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = Path::new("/dev/shm");
    let parent = if shared.is_dir() { shared.to_owned() } else { env::temp_dir() };
    parent.join(format!("medes-fuzz-criu-{}", process::id()))
});

/// Ascending, without overlap, and as many as the file has.
fn check(file: &PagesFile) {
    assert_eq!(file.runs.iter().map(|run| run.pages).sum::<u64>(), file.pages);
    let ends = file.runs.iter().map(|run| run.address + run.pages * PAGE_BYTES);
    let starts = file.runs.iter().skip(1).map(|run| run.address);
    assert!(ends.zip(starts).all(|(end, next)| end <= next));
}

fn read(folder: &Path) {
    let Ok(set) = ImageSet::read(folder) else { return };
    set.pages.iter().for_each(check);
    drop(set.file_paths(folder));
    drop(set.mappings(folder));
    let Ok(thinned) = set.thin(folder) else { return };
    for (whole, part) in set.pages.iter().zip(&thinned) {
        check(&part.file);
        assert_eq!((part.now.len() + part.later.len()) as u64, whole.pages);
        // Put down and read again, it is the same.
        criu::thin::write_pagemap(folder, &part.file).expect("one that was read");
        if let Ok(pages) = File::options().write(true).open(folder.join(&whole.name)) {
            pages.set_len(part.file.pages * PAGE_BYTES).expect("room in memory");
        }
    }
    let again = ImageSet::read(folder).expect("what was written");
    let expected: Vec<_> = thinned.iter().map(|part| (&part.file.runs, part.file.pages)).collect();
    let found: Vec<_> = again.pages.iter().map(|file| (&file.runs, file.pages)).collect();
    assert_eq!(found, expected);
}

fuzz_target!(|dump: Dump| {
    let folder = FOLDER.as_path();
    fs::create_dir_all(folder).expect("a folder");
    dump.pagemap.write(&folder.join("pagemap-1.img"), PAGEMAP);
    dump.pstree.write(&folder.join("pstree.img"), PSTREE);
    dump.core.write(&folder.join("core-1.img"), CORE);
    dump.mm.write(&folder.join("mm-1.img"), MM);
    dump.files.write(&folder.join("files.img"), FILES);
    let pages = match &dump.pagemap {
        // Most times as long as it should be.
        Image::Numbers(runs) if dump.pages % 8 > 0 => {
            runs.iter().map(|[_, pages, ..]| u64::from(*pages)).sum()
        }
        _ => u64::from(dump.pages),
    };
    if pages > 0 {
        let file = File::create(folder.join("pages-1.img")).expect("a file");
        file.set_len(pages * PAGE_BYTES).expect("room in memory");
    }
    read(folder);
    fs::remove_dir_all(folder).expect("its own folder");
});
