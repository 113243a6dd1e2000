//! Dumps as the measuring program reads them: a folder with `maps` (the text of /proc/PID/maps), `runs.bin` (address and
//! page count of each run, 8 bytes each) and `pages.bin` (the pages of all runs).

use std::{fs, path::Path};

use medes_dedup::mapping::{Backing, FileName, Mapping, Mappings};
use medes_dedup::page::{PAGE_BYTES, Page};

pub(crate) struct Dump {
    bytes: Vec<u8>,
    pub(crate) addresses: Vec<u64>,
    pub(crate) mappings: Mappings,
}

impl Dump {
    pub(crate) fn read(folder: &Path) -> Self {
        let text = fs::read_to_string(folder.join("maps")).unwrap();
        let mappings = Mappings::new(text.lines().filter_map(mapping)).unwrap();
        let runs = fs::read(folder.join("runs.bin")).unwrap();
        let mut addresses = Vec::new();
        for run in runs.as_chunks::<16>().0 {
            let (start, pages) = run.split_at(8);
            let [start, pages] = [start, pages].map(|half| u64::from_le_bytes(half.try_into().unwrap()));
            addresses.extend((0..pages).map(|page| start + page * PAGE_BYTES as u64));
        }
        let bytes = fs::read(folder.join("pages.bin")).unwrap();
        assert_eq!(bytes.len(), addresses.len() * PAGE_BYTES, "{}", folder.display());
        Self { bytes, addresses, mappings }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn pages(&self) -> Vec<&Page> {
        self.bytes.as_chunks::<PAGE_BYTES>().0.iter().collect()
    }
}

/// One line of /proc/PID/maps. The kernel's own mappings are no memory of the process.
fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.split_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).unwrap());
    let offset = u64::from_str_radix(fields.nth(1)?, 16).unwrap();
    let name = fields.nth(2).unwrap_or_default();
    let backing = match name {
        "[heap]" => Backing::Heap,
        "[stack]" => Backing::Stack,
        _ if name.starts_with("[v") => return None,
        _ if name.starts_with('/') => Backing::File { name: FileName::of(name.as_bytes()), offset },
        _ => Backing::Anonymous,
    };
    Some(Mapping { start, end, backing })
}
