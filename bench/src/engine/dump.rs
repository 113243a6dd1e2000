//! A dump in memory, and which dumps in a folder belong together.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use medes_agent::criu::images::{ImageSet, Owner};
use medes_dedup::{
    mapping::Mappings,
    page::{PAGE_BYTES, Page},
};

/// The memory of a sandbox: all pages of all its pages files, one after the other.
#[derive(Debug, Default)]
pub(crate) struct Dump {
    pub(crate) bytes: Vec<u8>,
    /// One for each process and for each piece of shared memory.
    pub(crate) parts: Vec<Part>,
}

/// Pages that share an address space.
#[derive(Debug)]
pub(crate) struct Part {
    /// Which pages of the dump.
    pub(crate) pages: Range<usize>,
    /// Address of each page, rising.
    pub(crate) addresses: Vec<u64>,
    pub(crate) mappings: Mappings,
}

impl Dump {
    /// Reads a folder as CRIU leaves it.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let images = ImageSet::read(folder)?;
        let mut mappings = images.mappings(folder)?;
        let mut dump = Self::default();
        for file in images.pages.iter().filter(|file| file.pages > 0) {
            let path = folder.join(&file.name);
            let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let mappings = match file.owner {
                Owner::Process { pid } => mappings.remove(&pid).unwrap_or_default(),
                // Addresses are offsets here, and nothing points into it by these.
                Owner::Shared { .. } => Mappings::default(),
            };
            dump.push(&bytes, file.addresses().collect(), mappings);
        }
        ensure!(!dump.parts.is_empty(), "a dump without pages");
        Ok(dump)
    }

    /// Adds pages that share an address space.
    pub(crate) fn push(&mut self, bytes: &[u8], addresses: Vec<u64>, mappings: Mappings) {
        let first = self.bytes.len() / PAGE_BYTES;
        self.bytes.extend_from_slice(bytes);
        self.parts.push(Part { pages: first..first + addresses.len(), addresses, mappings });
    }

    /// All pages.
    pub(crate) fn pages(&self) -> &[Page] {
        self.bytes.as_chunks().0
    }
}

/// Whose the data in the sandboxes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Data {
    /// Each sandbox drew its own.
    Own,
    /// All have the same: it was deployed with the function.
    Shared,
}

/// How the sandboxes came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Origin {
    /// Each from nothing.
    Independent,
    /// Restored from one that was ready and had served nothing.
    Clones,
}

/// Dumps that are stored against one base.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Series {
    pub(super) program: String,
    pub(super) data: Data,
    pub(super) origin: Origin,
    pub(super) base: PathBuf,
    /// In order of their numbers; at least one.
    pub(super) targets: Vec<PathBuf>,
}

/// What marks a name whose data is shared.
const SHARED: &str = "@shared";

/// What can be measured in a folder, of these programs or of all if none is named.
pub(super) fn find(folder: &Path, wanted: &[String]) -> Result<Vec<Series>> {
    let list = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.with_context(|| format!("list {}", folder.display()))?;
        if entry.path().is_dir() {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    let mut found = group(names.iter().map(String::as_str));
    found.retain(|series| wanted.is_empty() || wanted.contains(&series.program));
    for series in &mut found {
        series.base = folder.join(&series.base);
        series.targets.iter_mut().for_each(|target| *target = folder.join(&*target));
    }
    Ok(found)
}

/// Puts names of folders together: `-1` is the base of `-2`, `-3`, ..., `-init` that of `-clone-*`.
fn group<'n>(names: impl Iterator<Item = &'n str>) -> Vec<Series> {
    let mut bases = BTreeMap::new();
    let mut targets: BTreeMap<_, BTreeMap<u32, &str>> = BTreeMap::new();
    for name in names {
        let Some((front, last)) = name.rsplit_once('-') else { continue };
        let clone = front.strip_suffix("-clone");
        let (front, origin) = match (clone, last) {
            (Some(front), _) => (front, Origin::Clones),
            (None, "init") => (front, Origin::Clones),
            (None, _) => (front, Origin::Independent),
        };
        let (program, data) = match front.strip_suffix(SHARED) {
            Some(program) => (program, Data::Shared),
            None => (front, Data::Own),
        };
        let key = (origin, data, program);
        match (last.parse::<u32>(), clone) {
            (Ok(1), None) => drop(bases.insert(key, name)),
            (Ok(number), _) => drop(targets.entry(key).or_default().insert(number, name)),
            (Err(_), _) if last == "init" => drop(bases.insert(key, name)),
            (Err(_), _) => {}
        }
    }
    let series = |(key, base): (_, &str)| {
        let (origin, data, program): (_, _, &str) = key;
        let targets: Vec<PathBuf> = targets.get(&key)?.values().map(PathBuf::from).collect();
        Some(Series { program: program.to_owned(), data, origin, base: base.into(), targets })
    };
    bases.into_iter().filter_map(series).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_belongs_together() {
        let names = [
            "html-3",
            "html-1",
            "html-2",
            "html@shared-1",
            "html@shared-2",
            "model-serve-init",
            "model-serve-clone-2",
            "model-serve-clone-1",
            "lonely-1",
            "baseless-2",
            "notes",
            "model-serve-new",
        ];
        let series = |program: &str, data, origin, base: &str, targets: &[&str]| Series {
            program: program.into(),
            data,
            origin,
            base: base.into(),
            targets: targets.iter().map(PathBuf::from).collect(),
        };
        assert_eq!(
            group(names.into_iter()),
            [
                series("html", Data::Own, Origin::Independent, "html-1", &["html-2", "html-3"]),
                series("html", Data::Shared, Origin::Independent, "html@shared-1", &["html@shared-2"]),
                series(
                    "model-serve",
                    Data::Own,
                    Origin::Clones,
                    "model-serve-init",
                    &["model-serve-clone-1", "model-serve-clone-2"]
                ),
            ]
        );
    }

    #[test]
    fn parts_follow_each_other() {
        let mut dump = Dump::default();
        dump.push(&[1; 2 * PAGE_BYTES], vec![0x1000, 0x2000], Mappings::default());
        dump.push(&[2; PAGE_BYTES], vec![0x1000], Mappings::default());
        assert_eq!(dump.parts.iter().map(|part| part.pages.clone()).collect::<Vec<_>>(), [0..2, 2..3]);
        assert_eq!(dump.pages().iter().map(|page| page[0]).collect::<Vec<_>>(), [1, 1, 2]);
    }
}
