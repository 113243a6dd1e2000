//! The memory of a CPython process, made up: strings that carry their hashes, dicts with index tables, a key that each
//! process draws. With what the base says about itself the hashes of a second process follow from its key.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod common;

use common::{KEY, Numbers, Process, base};
use medes_dedup::delta::DeltaCodec;
use medes_dedup::encode::{EncodeRules, Encoder, WordRules, WordsOf};
use medes_dedup::image::{DedupImage, ImageBuilder};
use medes_dedup::mapping::{Backing, FileName, Mapping, Mappings};
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE};
use medes_dedup::rebuild::{BasePages, RebuildError};
use medes_dedup::words::{Aligner, BaseIndex, Facts, Memory};

const DATA_PAGES: u64 = 2;
const STRINGS: usize = 2000;
/// Entries of one dict with 256 slots; 170 would fit.
const DICT_ENTRIES: usize = 160;
const DICT_SLOTS: usize = 256;

/// SipHash-1-3, written from its paper: one round for each word, three at the end.
fn siphash(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut a = key[0] ^ u64::from_be_bytes(*b"somepseu");
    let mut b = key[1] ^ u64::from_be_bytes(*b"dorandom");
    let mut c = key[0] ^ u64::from_be_bytes(*b"lygenera");
    let mut d = key[1] ^ u64::from_be_bytes(*b"tedbytes");
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len() / 8 * 8 + 7, 0);
    padded.push(bytes.len() as u8);
    let mut words: Vec<Option<u64>> =
        padded.chunks(8).map(|word| Some(u64::from_le_bytes(word.try_into().unwrap()))).collect();
    words.extend([None; 3]);
    let mut ending = false;
    for word in words {
        if word.is_none() && !ending {
            c ^= 0xff;
            ending = true;
        }
        d ^= word.unwrap_or(0);
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        a ^= word.unwrap_or(0);
    }
    a ^ b ^ c ^ d
}

/// The reference key, for which the hash of SipHash-1-3 of nothing is known.
#[test]
fn the_hash_is_siphash() {
    let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
    assert_eq!(siphash(key, b"").to_le_bytes(), [0xdc, 0xc4, 0x0f, 0x05, 0x58, 0x01, 0xac, 0xab]);
}

/// Starts the program: the key in the library's data, strings and dicts in the heap, at random addresses.
fn start(seed: u64) -> Process {
    let mut numbers = Numbers(seed);
    let key = [numbers.next(), numbers.next()];
    let data = 0x7f00_0000_0000 + ((numbers.next() & 0xff_ffff) << 12);
    let heap = 0x5500_0000_0000 + ((numbers.next() & 0xff_ffff) << 12);
    let kind = data + 0x400;
    let mut data_words = vec![0u64; DATA_PAGES as usize * 512];
    data_words[0x300..0x302].copy_from_slice(&key);
    data_words[0x80] = 1 << 20;

    let mut words: Vec<u64> = Vec::new();
    let mut program = Numbers(77);
    // Of each string its address and its hash.
    let strings: Vec<(u64, u64)> = (0..STRINGS)
        .map(|number| {
            let text = format!("name_{number}_{:x}", program.next() >> (program.next() % 40));
            let hash = siphash(key, text.as_bytes());
            let at = heap + words.len() as u64 * 8;
            words.extend([1 + program.next() % 9, kind, text.len() as u64, hash, 0xe4, 0]);
            let mut bytes = text.into_bytes();
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            words.extend(bytes.chunks(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())));
            (at, hash)
        })
        .collect();
    for entries in strings.chunks_exact(DICT_ENTRIES) {
        let usable = DICT_SLOTS * 2 / 3 - entries.len();
        // 2^8 slots of 2 bytes each, keys of any kind.
        words.extend([1, 8 | 9 << 8, usable as u64, entries.len() as u64]);
        let mut slots = [u16::MAX; DICT_SLOTS];
        for (number, (_, hash)) in (0u16..).zip(entries) {
            let (mut perturb, mut slot) = (*hash, *hash as usize % DICT_SLOTS);
            while slots[slot] != u16::MAX {
                perturb >>= 5;
                slot = (slot * 5 + perturb as usize + 1) % DICT_SLOTS;
            }
            slots[slot] = number;
        }
        let slots: Vec<u8> = slots.iter().flat_map(|slot| slot.to_le_bytes()).collect();
        words.extend(slots.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
        words.extend(entries.iter().flat_map(|(address, hash)| [*hash, *address, heap + 64]));
    }
    words.resize(words.len().next_multiple_of(512), 0);

    let file = Backing::File { name: FileName::of(b"/lib/libpython.so"), offset: 0x5000 };
    let heap_end = heap + words.len() as u64 * 8;
    let data_end = data + DATA_PAGES * PAGE_BYTES as u64;
    let mappings = Mappings::new([
        Mapping { start: heap, end: heap_end, backing: Backing::Heap },
        Mapping { start: data, end: data_end, backing: file },
    ]);
    let mut made = Process { mappings: mappings.unwrap(), addresses: Vec::new(), pages: Vec::new() };
    for (start, words) in [(heap, words), (data, data_words)] {
        for (page, words) in (0u64..).zip(words.as_chunks::<512>().0) {
            let mut bytes = ZERO_PAGE;
            for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
            made.addresses.push(start + page * PAGE_BYTES as u64);
            made.pages.push(bytes);
        }
    }
    made
}

fn study(process: &Process) -> Facts {
    Facts::study(Memory::new(&process.pages(), &process.addresses, &process.mappings).unwrap())
}

fn image(target: &Process, from: &Process, facts: &Facts) -> DedupImage<Vec<u8>> {
    let (base_pages, pages) = (from.pages(), target.pages());
    let index = BaseIndex::new(Memory::new(&base_pages, &from.addresses, &from.mappings).unwrap());
    let memory = Memory::new(&pages, &target.addresses, &target.mappings).unwrap();
    let aligner = Aligner::new(memory, &index, &base_pages, facts);
    let plan = aligner.plan([aligner.part(0..pages.len())]);
    let snapshot = base(1, 0).snapshot;
    let words = WordsOf { snapshot, pages: &base_pages, facts, plan: &plan, rules: WordRules::FAST };
    let mut encoder = Encoder::new(&KEY, EncodeRules::default());
    let mut builder = ImageBuilder::new(&KEY);
    for (at, page) in (0u32..).map(PageIndex).zip(&pages) {
        builder.push(&encoder.encode_planned(page, at, &words)).unwrap();
    }
    assert_eq!(encoder.distrusted(), 0);
    builder.relation(snapshot, plan.relation());
    DedupImage::open(builder.finish().unwrap(), &KEY).unwrap()
}

/// All pages of a base, and what is said to be known about it.
struct Known<'b>(&'b Process, Option<Facts>);

impl BasePages for Known<'_> {
    fn base_page(&self, page: BasePage) -> Option<&Page> {
        self.0.pages.get(page.page.0 as usize)
    }

    fn facts(&self, _: SnapshotId) -> Option<&Facts> {
        self.1.as_ref()
    }
}

#[test]
fn a_process_with_another_key_takes_little_and_comes_back() {
    let (from, target) = (start(1), start(2));
    let facts = study(&from);
    assert!(facts.memory_bytes() > STRINGS * 8, "strings were found");
    let [with, without] = [&facts, &Facts::none()].map(|facts| image(&target, &from, facts));
    let bytes = |image: &DedupImage<_>| image.classes().delta_bytes + image.classes().whole_bytes;
    assert!(bytes(&with) * 5 < bytes(&without), "{} of {} bytes", bytes(&with), bytes(&without));
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    for (image, facts) in [(with, Some(facts)), (without, None)] {
        let known = Known(&from, facts);
        for (at, page) in (0u32..).map(PageIndex).zip(&target.pages) {
            image.rebuild_from(&mut codec, at, &known, &mut out).unwrap();
            assert!(out == *page, "page {at}");
        }
    }
}

#[test]
fn a_process_with_the_same_key_at_the_same_place_needs_no_facts() {
    let from = start(1);
    let mut target = from.clone();
    target.pages[0][9] ^= 1;
    let image = image(&target, &from, &study(&from));
    assert_eq!(image.facts_needed().count(), 0);
    let (mut codec, mut out) = (DeltaCodec::new(), ZERO_PAGE);
    for (at, page) in (0u32..).map(PageIndex).zip(&target.pages) {
        image.rebuild_from(&mut codec, at, &Known(&from, None), &mut out).unwrap();
        assert!(out == *page, "page {at}");
    }
}

#[test]
fn without_the_facts_nothing_comes_out_and_with_wrong_ones_nothing_wrong() {
    let (from, target) = (start(1), start(2));
    let image = image(&target, &from, &study(&from));
    let mut codec = DeltaCodec::new();
    let mut out = ZERO_PAGE;
    let snapshot = base(1, 0).snapshot;
    let other = start(3);
    let mut wrong = 0;
    for (at, page) in (0u32..).map(PageIndex).zip(&target.pages) {
        let of_words = match image.recipe(at).unwrap().source {
            medes_dedup::recipe::Source::Delta { codec, .. } => codec.is_of_words(),
            _ => false,
        };
        let result = image.rebuild_from(&mut codec, at, &Known(&from, None), &mut out);
        if of_words {
            assert_eq!(result, Err(RebuildError::NoFacts { page: at, base: snapshot }));
            assert_eq!(out, ZERO_PAGE);
        } else {
            result.unwrap();
        }
        // None at all, those of another process, and those of a process that is not CPython.
        for facts in [Facts::none(), study(&other), study(&common::process(1, 2, 0))] {
            match image.rebuild_from(&mut codec, at, &Known(&from, Some(facts)), &mut out) {
                Ok(()) => assert!(out == *page, "page {at}"),
                Err(_) => {
                    assert_eq!(out, ZERO_PAGE);
                    wrong += 1;
                }
            }
        }
    }
    assert!(wrong > 0, "no page needed the facts");
}
