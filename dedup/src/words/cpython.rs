//! What the memory of a CPython process (3.11 and later) says about itself: which words are hashes of strings, and which
//! bytes are the index tables of dicts.
//!
//! Each process hashes strings with a key of its own, drawn when it starts. With the key of the target, 16 bytes, all hashes and
//! all index tables of the base can be made again as the target has them. Nothing here knows an address or a symbol: strings are
//! found by their shape, the key by trying which 16 bytes give the hashes that the strings carry. Whatever is found wrongly
//! makes a page larger, never wrong.

use std::collections::HashMap;

use super::facts::{Runtime, Secret, TableCache};
use super::index::Memory;
use super::siphash::string_hash;
use super::token::{PAGE_WORDS, WORD_BYTES, word};
use super::translation::Translation;
use crate::page::{PAGE_BYTES, Page};

/// Strings whose hashes are predicted, most of them.
const STRINGS_MAX: usize = 1 << 22;

/// The longest string whose hash is predicted. Longer ones are texts, and no keys.
const STRING_BYTES_MAX: usize = 1024;

/// A base has strings of CPython if it has so many that look alike.
const STRINGS_MIN: u32 = 64;

/// Strings that a key must fit.
const PROOFS: usize = 4;

/// Index tables have from 2^3 to 2^20 slots.
const SLOTS_LOG2: std::ops::RangeInclusive<u8> = 3..=20;

/// Collisions that are followed while an index table is made, for each of its slots.
const STEPS_PER_SLOT_MAX: usize = 16;

/// Index tables up to this size are made anew for every page that holds a part of them.
const SMALL_TABLE_WORDS: usize = 64;

/// Words of a dict's header before the index table.
const DICT_HEADER_WORDS: usize = 4;

/// Where the bytes of an ASCII string begin, in words: 3.11, and from 3.12 on.
const ASCII_WORDS: [usize; 2] = [6, 5];

/// The key that a process hashes its strings with.
type HashKey = Secret;

/// What a hash is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hashed {
    /// A string, by number.
    String(u32),
    /// The address of the key object.
    Pointer(u64),
    /// Something without secrets.
    Plain(u64),
    /// Nothing: the entry was deleted.
    Deleted,
}

/// A word that is a hash.
#[derive(Debug, Clone, Copy)]
struct Site {
    word: u32,
    string: u32,
}

/// The index table of a dict.
#[derive(Debug, Clone, Copy)]
struct Table {
    /// Its first word, and how many.
    word: u32,
    words: u32,
    slots_log2: u8,
    /// Its entries, in the list of all.
    first: u32,
    entries: u32,
}

impl Table {
    const fn end(&self) -> usize {
        self.word as usize + self.words as usize
    }
}

/// What was found in a base.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    /// The base's key, and where it keeps it.
    key: HashKey,
    key_address: u64,
    /// The bytes of all strings, one after the other, and where each ends.
    bytes: Vec<u8>,
    ends: Vec<u32>,
    sites: Vec<Site>,
    tables: Vec<Table>,
    entries: Vec<Hashed>,
    /// For each page, the first site in it or behind it, and the first table that ends in it or behind it.
    by_page: Vec<(u32, u32)>,
}

/// The words of a base, as if they lay one after the other.
struct Words<'m> {
    memory: Memory<'m>,
    count: usize,
}

impl<'m> Words<'m> {
    fn get(&self, at: usize) -> u64 {
        self.memory.pages().get(at / PAGE_WORDS).map_or(0, |page| word(page, at % PAGE_WORDS))
    }

    fn address(&self, at: usize) -> u64 {
        let page = self.memory.addresses().get(at / PAGE_WORDS).copied().unwrap_or_default();
        page + (at % PAGE_WORDS * WORD_BYTES) as u64
    }

    /// The word at an address.
    fn at(&self, address: u64) -> Option<usize> {
        let page = self.memory.addresses().binary_search(&(address & !(PAGE_BYTES as u64 - 1))).ok()?;
        Some(page * PAGE_WORDS + address as usize % PAGE_BYTES / WORD_BYTES)
    }

    /// Do these words lie next to each other in the process, too?
    fn adjoin(&self, first: usize, words: usize) -> bool {
        let last = first + words.max(1) - 1;
        last < self.count
            && self.address(last).wrapping_sub(self.address(first)) == ((last - first) * WORD_BYTES) as u64
    }

    /// Bytes from a word on, if they adjoin.
    fn bytes(&self, first: usize, count: usize, out: &mut Vec<u8>) -> bool {
        out.clear();
        if !self.adjoin(first, count.div_ceil(WORD_BYTES)) {
            return false;
        }
        let mut from = first * WORD_BYTES;
        let mut left = count;
        while left > 0 {
            let part = left.min(PAGE_BYTES - from % PAGE_BYTES);
            let page: &Page = self.memory.pages()[from / PAGE_BYTES];
            out.extend_from_slice(&page[from % PAGE_BYTES..][..part]);
            from += part;
            left -= part;
        }
        true
    }
}

/// A string object: where its bytes are.
#[derive(Debug, Clone, Copy)]
struct Shape {
    hash: u64,
    data: usize,
    bytes: usize,
}

/// The string whose object begins at this word, if it looks like one.
fn shape(words: &Words<'_>, at: usize, ascii_words: usize) -> Option<Shape> {
    let (length, hash, state) = (words.get(at + 2), words.get(at + 3), words.get(at + 4));
    let (kind, compact, ascii) = ((state >> 2 & 7) as usize, state >> 5 & 1, state >> 6 & 1);
    if length == 0 || length as usize > STRING_BYTES_MAX || compact == 0 || !matches!(kind, 1 | 2 | 4) {
        return None;
    }
    let bytes = length as usize * kind;
    // What is not ASCII has its UTF-8 form and its length, and until 3.11 another length.
    let data = at + if ascii == 1 { ascii_words } else { 2 * ascii_words - 3 };
    let end = data * WORD_BYTES + bytes;
    let last = words.get(end / WORD_BYTES) >> (end % WORD_BYTES * 8) & 0xff;
    (last == 0 && bytes <= STRING_BYTES_MAX && words.adjoin(at, data - at + bytes / WORD_BYTES + 1))
        .then_some(Shape { hash, data, bytes })
}

impl Findings {
    /// Reads the whole base once or twice. `None` if there is no CPython in it.
    pub(super) fn search(memory: Memory<'_>) -> Option<Self> {
        let words = Words { memory, count: memory.pages().len() * PAGE_WORDS };
        let (kind, ascii_words) = string_type(&words)?;
        let (key, key_address) = find_key(&words, kind, ascii_words)?;
        let mut findings = Self { key, key_address, ..Self::default() };
        let by_hash = findings.strings(&words, (kind, ascii_words), key);
        findings.sites(&words, &by_hash);
        findings.dicts(&words, &by_hash, key);
        findings.by_page = findings.pages(memory.pages().len());
        Some(findings)
    }

    fn string(&self, number: u32) -> &[u8] {
        let number = number as usize;
        let start = number.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.bytes.get(start as usize..self.ends[number] as usize).unwrap_or_default()
    }

    fn pages(&self, pages: usize) -> Vec<(u32, u32)> {
        let first = |page: usize| {
            let word = page * PAGE_WORDS;
            let site = self.sites.partition_point(|site| (site.word as usize) < word);
            let table = self.tables.partition_point(|table| table.end() <= word);
            (site as u32, table as u32)
        };
        (0..pages).map(first).collect()
    }

    /// Collects the strings that carry the hash they should. Returns their numbers by hash.
    fn strings(
        &mut self,
        words: &Words<'_>,
        (kind, ascii_words): (u64, usize),
        key: HashKey,
    ) -> HashMap<u64, u32> {
        let mut by_hash = HashMap::new();
        let mut bytes = Vec::new();
        for at in 0..words.count.saturating_sub(8) {
            if words.get(at + 1) != kind {
                continue;
            }
            let Some(shape) = shape(words, at, ascii_words) else { continue };
            if by_hash.contains_key(&shape.hash) || !words.bytes(shape.data, shape.bytes, &mut bytes) {
                continue;
            }
            if string_hash(key, &bytes) == shape.hash && self.ends.len() < STRINGS_MAX {
                by_hash.insert(shape.hash, self.ends.len() as u32);
                self.bytes.extend_from_slice(&bytes);
                self.ends.push(self.bytes.len() as u32);
            }
        }
        by_hash
    }

    /// Finds the words that are hashes of these strings, wherever they stand.
    fn sites(&mut self, words: &Words<'_>, by_hash: &HashMap<u64, u32>) {
        for at in 0..words.count {
            let value = words.get(at);
            // Hardly any hash looks like a small number or an address.
            if value >> 47 != 0
                && let Some(string) = by_hash.get(&value)
            {
                self.sites.push(Site { word: at as u32, string: *string });
            }
        }
    }

    fn dicts(&mut self, words: &Words<'_>, by_hash: &HashMap<u64, u32>, key: HashKey) {
        let (mut index, mut made) = (Vec::new(), Vec::new());
        let mut at = 0;
        while at + DICT_HEADER_WORDS < words.count {
            at += 1;
            let Some(header) = Header::read(words, at) else { continue };
            let start = at + DICT_HEADER_WORDS;
            let index_words = header.index_bytes() / WORD_BYTES;
            if !words.bytes(start, header.index_bytes(), &mut index) {
                continue;
            }
            let first = self.entries.len();
            header.entries(words, start + index_words, by_hash, &mut self.entries);
            let table = Table {
                word: start as u32,
                words: index_words as u32,
                slots_log2: header.slots_log2,
                first: first as u32,
                entries: (self.entries.len() - first) as u32,
            };
            made.resize(header.index_bytes(), 0);
            self.table(&table, key, &Translation::default(), &mut made);
            let width = header.index_bytes() >> header.slots_log2;
            let same = index.chunks(width).zip(made.chunks(width));
            let used = same.clone().filter(|(is, _)| is.iter().any(|byte| *byte != 0xff)).count();
            let right = same.filter(|(is, made)| is == made && is.iter().any(|byte| *byte != 0xff)).count();
            // Entries that were deleted leave traces that cannot be made again.
            if used > 0 && right * 4 >= used * 3 {
                self.tables.push(table);
                at = start + index_words;
            } else {
                self.entries.truncate(first);
            }
        }
    }

    /// Makes an index table as a process with this key has it. `out` is as long as the table.
    fn table(&self, table: &Table, key: HashKey, translation: &Translation, out: &mut [u8]) {
        out.fill(0xff);
        let slots = 1usize << table.slots_log2;
        let width = out.len() / slots;
        let entries = &self.entries[table.first as usize..][..table.entries as usize];
        let mut steps = 0;
        for (number, entry) in entries.iter().enumerate() {
            let hash = match entry {
                Hashed::String(string) => string_hash(key, self.string(*string)),
                Hashed::Pointer(pointer) => translation.translate(*pointer).rotate_right(4),
                Hashed::Plain(hash) => *hash,
                Hashed::Deleted => continue,
            };
            let mut perturb = hash as usize;
            let mut slot = perturb & (slots - 1);
            // A free slot is found in the end, as there are more slots than entries; but memory may be made to look so
            // that it takes very long.
            while out[slot * width..][..width].iter().any(|byte| *byte != 0xff) {
                steps += 1;
                if steps > slots * STEPS_PER_SLOT_MAX {
                    return;
                }
                perturb >>= 5;
                slot = (slot * 5 + perturb + 1) & (slots - 1);
            }
            out[slot * width..][..width].copy_from_slice(&(number as u32).to_le_bytes()[..width]);
        }
    }
}

impl Runtime for Findings {
    fn secret_of(&self, target: &Memory<'_>, shift: &dyn Fn(u64) -> Option<u64>) -> Option<Secret> {
        let words = Words { memory: *target, count: target.pages().len() * PAGE_WORDS };
        let at = words.at(self.key_address.wrapping_add(shift(self.key_address)?))?;
        Some([words.get(at), words.get(at + 1)])
    }

    fn is_own(&self, secret: Secret) -> bool {
        secret == self.key
    }

    fn predict(
        &self,
        key: Secret,
        translation: &Translation,
        cache: &TableCache,
        first: usize,
        words: &mut [[u8; WORD_BYTES]],
    ) {
        let end = first + words.len();
        let Some((sites, tables)) = self.by_page.get(first / PAGE_WORDS) else { return };
        let sites = self.sites[*sites as usize..].iter().skip_while(|site| (site.word as usize) < first);
        for site in sites.take_while(|site| (site.word as usize) < end) {
            words[site.word as usize - first] = string_hash(key, self.string(site.string)).to_le_bytes();
        }
        let mut small = [0; SMALL_TABLE_WORDS * WORD_BYTES];
        for (number, table) in (*tables as usize..).zip(&self.tables[*tables as usize..]) {
            let start = table.word as usize;
            if start >= end {
                break;
            }
            if table.end() <= first {
                continue;
            }
            let bytes = table.words as usize * WORD_BYTES;
            let made = match small.get_mut(..bytes) {
                Some(small) => {
                    self.table(table, key, translation, small);
                    &*small
                }
                None => cache.get(number, self.tables.len(), || {
                    let mut large = vec![0; bytes].into_boxed_slice();
                    self.table(table, key, translation, &mut large);
                    large
                }),
            };
            let part = start.max(first)..table.end().min(end);
            let made = made.as_chunks::<WORD_BYTES>().0.get(part.start - start..part.end - start);
            if let Some(made) = made {
                words[part.start - first..part.end - first].copy_from_slice(made);
            }
        }
    }

    fn memory_bytes(&self) -> usize {
        self.bytes.len()
            + size_of_val(&self.ends[..])
            + size_of_val(&self.sites[..])
            + size_of_val(&self.tables[..])
            + size_of_val(&self.entries[..])
            + size_of_val(&self.by_page[..])
    }
}

/// What the words before an index table say.
struct Header {
    slots_log2: u8,
    general: bool,
    entries: usize,
}

impl Header {
    fn read(words: &Words<'_>, at: usize) -> Option<Self> {
        let [slots_log2, index_log2, kind, ..] = words.get(at + 1).to_le_bytes();
        let width_log2 = match slots_log2 {
            ..8 => 0,
            8..16 => 1,
            _ => 2,
        };
        if !SLOTS_LOG2.contains(&slots_log2) || index_log2 != slots_log2 + width_log2 || kind > 2 {
            return None;
        }
        let (references, usable, entries) = (words.get(at), words.get(at + 2), words.get(at + 3));
        let room = (2u64 << slots_log2) / 3;
        let fits = usable <= room && entries <= room && usable + entries <= room && entries > 0;
        (fits && references > 0 && references < 1 << 32).then_some(Self {
            slots_log2,
            general: kind == 0,
            entries: entries as usize,
        })
    }

    const fn index_bytes(&self) -> usize {
        let width_log2 = match self.slots_log2 {
            ..8 => 0,
            8..16 => 1,
            _ => 2,
        };
        1 << (self.slots_log2 + width_log2)
    }

    /// What each entry's hash is made of.
    fn entries(&self, words: &Words<'_>, start: usize, by_hash: &HashMap<u64, u32>, out: &mut Vec<Hashed>) {
        let stride = if self.general { 3 } else { 2 };
        if !words.adjoin(start, self.entries * stride) {
            return;
        }
        for entry in (0..self.entries).map(|entry| start + entry * stride) {
            let key = words.get(entry + stride - 2);
            let hash = match self.general {
                true => Some(words.get(entry)),
                false => words.at(key).map(|object| words.get(object + 3)),
            };
            out.push(match hash {
                _ if key == 0 => Hashed::Deleted,
                Some(hash) => match by_hash.get(&hash) {
                    Some(string) => Hashed::String(*string),
                    None if hash == key.rotate_right(4) => Hashed::Pointer(key),
                    None => Hashed::Plain(hash),
                },
                None => Hashed::Deleted,
            });
        }
    }
}

/// The word that all strings have in common, their type, and the layout of strings.
fn string_type(words: &Words<'_>) -> Option<(u64, usize)> {
    let mut seen: HashMap<(u64, usize), u32> = HashMap::new();
    for at in 0..words.count.saturating_sub(8) {
        let length = words.get(at + 2);
        if length == 0 || length > 64 || words.get(at + 4) & 0x7c != 0x64 {
            continue;
        }
        let kind = words.get(at + 1);
        if kind < PAGE_BYTES as u64 || words.memory.mappings().find(kind).is_none() {
            continue;
        }
        for ascii_words in ASCII_WORDS {
            if shape(words, at, ascii_words).is_some_and(|shape| is_text(words, &shape)) {
                *seen.entry((kind, ascii_words)).or_default() += 1;
            }
        }
    }
    let ((kind, ascii_words), count) = seen.into_iter().max_by_key(|(_, count)| *count)?;
    (count >= STRINGS_MIN).then_some((kind, ascii_words))
}

/// Do the bytes hold no zero and no byte above ASCII?
fn is_text(words: &Words<'_>, shape: &Shape) -> bool {
    let mut bytes = Vec::new();
    words.bytes(shape.data, shape.bytes, &mut bytes) && bytes.iter().all(|byte| (1..0x80).contains(byte))
}

/// The key, and its address: 16 bytes near the type of strings that give the hashes of some strings.
fn find_key(words: &Words<'_>, kind: u64, ascii_words: usize) -> Option<(HashKey, u64)> {
    let mut proofs: Vec<(Vec<u8>, u64)> = Vec::new();
    for at in 0..words.count.saturating_sub(8) {
        if words.get(at + 1) != kind {
            continue;
        }
        let Some(shape) = shape(words, at, ascii_words) else { continue };
        let mut bytes = Vec::new();
        let hashed = shape.hash >> 47 != 0 && shape.hash != u64::MAX && shape.bytes > 1;
        if hashed && is_text(words, &shape) && words.bytes(shape.data, shape.bytes, &mut bytes) {
            proofs.push((bytes, shape.hash));
            if proofs.len() == PROOFS {
                break;
            }
        }
    }
    let (first, others) = proofs.split_first()?;
    let mappings = words.memory.mappings().as_slice();
    let here = mappings.iter().position(|mapping| (mapping.start..mapping.end).contains(&kind))?;
    // Static data is in the file's mapping and in what follows it without a gap.
    let end = mappings[here..]
        .windows(2)
        .find(|pair| pair[0].end != pair[1].start)
        .map_or(mappings.last()?.end, |pair| pair[0].end);
    let start = mappings[here].start;
    let from = words.memory.addresses().partition_point(|address| *address < start) * PAGE_WORDS;
    let to = words.memory.addresses().partition_point(|address| *address < end) * PAGE_WORDS;
    (from..to.saturating_sub(1)).find_map(|at| {
        let key = [words.get(at), words.get(at + 1)];
        let proves = |(bytes, hash): &(Vec<u8>, u64)| string_hash(key, bytes) == *hash;
        (proves(first) && others.iter().all(proves)).then(|| (key, words.address(at)))
    })
}
