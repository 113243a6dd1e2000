//! Where the pages of a snapshot were: for each process its addresses and what was mapped there.
//!
//! The engine aligns a sandbox with a base by this. Files travel as paths, because only paths mean the same on every node.

use std::{collections::BTreeMap, sync::Arc};

use medes_dedup::{
    image::PAGES_MAX,
    mapping::{self, FileName, MAPPINGS_MAX, Mapping, Mappings, MappingsError},
    page::PAGE_BYTES,
};

use crate::{
    WireError,
    ids::{FunctionName, TenantName},
    limits::{CLONE_BYTES_MAX, LAYOUT_PROCESSES_MAX, LAYOUT_RUNS_MAX, PATH_BYTES_MAX},
    wire,
};

/// What a node says of a snapshot it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotLayout {
    /// Whose bytes it holds.
    pub tenant: TenantName,
    /// Taken from a sandbox of this function.
    pub function: FunctionName,
    /// How many pages it has.
    pub pages: u32,
    /// blake3 of all pages, one after the other.
    pub hash: [u8; 32],
    /// Its processes, in the order of their pages.
    pub processes: Vec<ProcessLayout>,
    /// Its sandbox had served no request.
    pub init: Option<InitSnapshot>,
}

/// What an init snapshot is, besides pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitSnapshot {
    /// Of which text of the function's file.
    pub revision: u64,
    /// A dedup image of its sandbox whose pages are those of the snapshot; empty: no sandbox may be made of it.
    pub image: Vec<u8>,
}

/// Pages at consecutive addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page.
    pub address: u64,
    /// How many pages; at least one.
    pub pages: u32,
}

/// What was mapped from one address to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// What is there.
    pub backing: Backing,
}

/// What memory is behind a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A file.
    File {
        /// Its path, as the process saw it.
        path: Arc<[u8]>,
        /// Where in it the region begins, in bytes.
        offset: u64,
    },
    /// The heap that grows by `brk`.
    Heap,
    /// The main thread's stack.
    Stack,
    /// Any other memory without a file.
    Anonymous,
}

/// The pages of one process. Its runs and regions are in order and make sense by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessLayout {
    runs: Vec<Run>,
    regions: Vec<Region>,
}

/// Why something is not the layout of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// More pages or runs than any process that can be stored.
    #[error("too many pages, or runs of pages")]
    TooMany,
    /// A run is empty, not at a page's address, out of order or leaves the address space.
    #[error("no run of {pages} pages can be at {address:#x}")]
    Run {
        /// Where it would begin.
        address: u64,
        /// How long it would be.
        pages: u32,
    },
    /// A path is longer than Linux allows.
    #[error("a path of {bytes} bytes")]
    Path {
        /// How long.
        bytes: usize,
    },
    /// The regions are not the mappings of a process.
    #[error("its mappings")]
    Mappings(#[from] MappingsError),
}

impl ProcessLayout {
    /// Checks it.
    pub fn new(runs: Vec<Run>, mut regions: Vec<Region>) -> Result<Self, LayoutError> {
        let mut free_from = 0;
        let mut total = 0usize;
        for &Run { address, pages } in &runs {
            let bytes = u64::from(pages) * PAGE_BYTES as u64;
            let end = address
                .checked_add(bytes)
                .filter(|_| pages > 0 && address >= free_from && address.is_multiple_of(PAGE_BYTES as u64));
            free_from = end.ok_or(LayoutError::Run { address, pages })?;
            total = total.saturating_add(usize::try_from(pages).unwrap_or(usize::MAX));
        }
        if total > PAGES_MAX || runs.len() > LAYOUT_RUNS_MAX {
            return Err(LayoutError::TooMany);
        }
        let mut paths = regions.iter().filter_map(|region| region.backing.path());
        if let Some(long) = paths.find(|path| path.len() > PATH_BYTES_MAX) {
            return Err(LayoutError::Path { bytes: long.len() });
        }
        regions.sort_unstable_by_key(|region| region.start);
        let layout = Self { runs, regions };
        layout.try_mappings()?;
        Ok(layout)
    }

    /// Path of the file mapped at its lowest address, which is the program it runs.
    pub fn program(&self) -> Option<&[u8]> {
        self.regions.iter().find_map(|region| region.backing.path()).map(AsRef::as_ref)
    }

    /// How many pages it has.
    pub fn pages(&self) -> usize {
        self.runs.iter().map(|run| usize::try_from(run.pages).unwrap_or(usize::MAX)).sum()
    }

    /// The address of each of its pages, in order.
    pub fn addresses(&self) -> Vec<u64> {
        let pages = |run: &Run| {
            let address = run.address;
            (0..u64::from(run.pages)).map(move |page| address + page * PAGE_BYTES as u64)
        };
        self.runs.iter().flat_map(pages).collect()
    }

    /// What was mapped, as the engine compares it.
    pub fn mappings(&self) -> Mappings {
        // Checked when this was made.
        self.try_mappings().unwrap_or_default()
    }

    fn try_mappings(&self) -> Result<Mappings, MappingsError> {
        let mapping = |region: &Region| Mapping {
            start: region.start,
            end: region.end,
            backing: match &region.backing {
                Backing::File { path, offset } => {
                    mapping::Backing::File { name: FileName::of(path), offset: *offset }
                }
                Backing::Heap => mapping::Backing::Heap,
                Backing::Stack => mapping::Backing::Stack,
                Backing::Anonymous => mapping::Backing::Anonymous,
            },
        };
        Mappings::new(self.regions.iter().map(mapping))
    }
}

impl Backing {
    const fn path(&self) -> Option<&Arc<[u8]>> {
        match self {
            Self::File { path, .. } => Some(path),
            Self::Heap | Self::Stack | Self::Anonymous => None,
        }
    }
}

impl From<LayoutError> for WireError {
    fn from(error: LayoutError) -> Self {
        match error {
            LayoutError::TooMany => Self::invalid("process.run_pages", "too many"),
            LayoutError::Run { .. } => {
                Self::invalid("process.run_pages", "out of order or of the address space")
            }
            LayoutError::Path { .. } => Self::invalid("process.files", "a path that is too long"),
            LayoutError::Mappings(_) => Self::invalid("process.mappings", "not the mappings of a process"),
        }
    }
}

impl From<ProcessLayout> for wire::ProcessLayout {
    fn from(layout: ProcessLayout) -> Self {
        let ProcessLayout { runs, regions } = layout;
        let mut free_from = 0;
        let gap = |run: &Run| {
            let gap = (run.address - free_from) / PAGE_BYTES as u64;
            free_from = run.address + u64::from(run.pages) * PAGE_BYTES as u64;
            gap
        };
        let run_gaps = runs.iter().map(gap).collect();
        let mut numbers: BTreeMap<Arc<[u8]>, u32> = BTreeMap::new();
        let mut files = Vec::new();
        let mut number = |path: Arc<[u8]>| {
            *numbers.entry(path.clone()).or_insert_with(|| {
                files.push(path.to_vec().into());
                u32::try_from(files.len() - 1).unwrap_or(u32::MAX)
            })
        };
        let mapping = |region: Region| {
            let (backing, file, offset) = match region.backing {
                Backing::File { path, offset } => (wire::mapping_layout::Backing::File, number(path), offset),
                Backing::Heap => (wire::mapping_layout::Backing::Heap, 0, 0),
                Backing::Stack => (wire::mapping_layout::Backing::Stack, 0, 0),
                Backing::Anonymous => (wire::mapping_layout::Backing::Anonymous, 0, 0),
            };
            let Region { start, end, .. } = region;
            wire::MappingLayout { start, end, backing: backing.into(), file, offset }
        };
        let mappings = regions.into_iter().map(mapping).collect();
        let run_pages = runs.iter().map(|run| run.pages).collect();
        Self { run_gaps, run_pages, files, mappings }
    }
}

impl TryFrom<wire::ProcessLayout> for ProcessLayout {
    type Error = WireError;

    fn try_from(raw: wire::ProcessLayout) -> Result<Self, WireError> {
        let wire::ProcessLayout { run_gaps, run_pages, files, mappings } = raw;
        if run_gaps.len() != run_pages.len() {
            return Err(WireError::invalid("process.run_gaps", "not as many as run_pages"));
        }
        if run_pages.len() > LAYOUT_RUNS_MAX || mappings.len() > MAPPINGS_MAX || files.len() > mappings.len()
        {
            return Err(WireError::invalid("process", "too many runs, mappings or files"));
        }
        let mut free_from = 0u64;
        let mut runs = Vec::with_capacity(run_pages.len());
        for (gap, pages) in run_gaps.into_iter().zip(run_pages) {
            let bytes = |pages: u64| pages.checked_mul(PAGE_BYTES as u64);
            let address = bytes(gap).and_then(|gap| free_from.checked_add(gap));
            let address = address.ok_or(WireError::invalid("process.run_gaps", "too large"))?;
            free_from = address.saturating_add(u64::from(pages) * PAGE_BYTES as u64);
            runs.push(Run { address, pages });
        }
        let files: Vec<Arc<[u8]>> = files.iter().map(|path| Arc::from(&path[..])).collect();
        let regions = mappings.iter().map(|raw| region(raw, &files));
        Ok(Self::new(runs, regions.collect::<Result<_, _>>()?)?)
    }
}

fn region(raw: &wire::MappingLayout, files: &[Arc<[u8]>]) -> Result<Region, WireError> {
    use wire::mapping_layout::Backing as Raw;
    let wire::MappingLayout { start, end, backing, file, offset } = *raw;
    let backing = match Raw::try_from(backing) {
        Ok(Raw::File) => {
            let path = usize::try_from(file).ok().and_then(|file| files.get(file));
            let path = path.ok_or(WireError::invalid("mapping.file", "not in files"))?.clone();
            Backing::File { path, offset }
        }
        Ok(Raw::Heap) => Backing::Heap,
        Ok(Raw::Stack) => Backing::Stack,
        Ok(Raw::Anonymous) => Backing::Anonymous,
        _ => return Err(WireError::invalid("mapping.backing", "unknown")),
    };
    Ok(Region { start, end, backing })
}

impl From<SnapshotLayout> for wire::SnapshotLayout {
    fn from(layout: SnapshotLayout) -> Self {
        let SnapshotLayout { tenant, function, pages, hash, processes, init } = layout;
        let init =
            init.map(|InitSnapshot { revision, image }| wire::InitSnapshot { revision, image: image.into() });
        Self {
            init,
            tenant: tenant.into(),
            function: function.into(),
            pages,
            hash: hash.to_vec().into(),
            processes: processes.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::SnapshotLayout> for SnapshotLayout {
    type Error = WireError;

    fn try_from(raw: wire::SnapshotLayout) -> Result<Self, WireError> {
        let wire::SnapshotLayout { tenant, function, pages, hash, processes, init } = raw;
        if init.as_ref().is_some_and(|init| init.image.len() > CLONE_BYTES_MAX) {
            return Err(WireError::invalid("layout.init.image", "too large"));
        }
        if processes.len() > LAYOUT_PROCESSES_MAX {
            return Err(WireError::invalid("layout.processes", "too many"));
        }
        let processes: Vec<ProcessLayout> =
            processes.into_iter().map(TryInto::try_into).collect::<Result<_, WireError>>()?;
        let total = processes.iter().fold(0usize, |sum, process| sum.saturating_add(process.pages()));
        if usize::try_from(pages).map_or(true, |pages| pages > PAGES_MAX || total > pages) {
            return Err(WireError::invalid("layout.pages", "too many, or fewer than its processes have"));
        }
        Ok(Self {
            tenant: tenant
                .parse()
                .map_err(|_name| WireError::invalid("layout.tenant", "not a tenant name"))?,
            function: function
                .parse()
                .map_err(|_name| WireError::invalid("layout.function", "not a function name"))?,
            pages,
            hash: hash[..].try_into().map_err(|_length| WireError::invalid("layout.hash", "not 32 bytes"))?,
            processes,
            init: init
                .map(|wire::InitSnapshot { revision, image }| InitSnapshot { revision, image: image.into() }),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = PAGE_BYTES as u64;

    /// Runs and regions side by side in one address space, with gaps between them.
    fn processes() -> impl Strategy<Value = ProcessLayout> {
        let run = (0u64..1 << 20, 1u32..50);
        let region = (1u64..50, 0u8..5, 0u64..9);
        let parts = (prop::collection::vec(run, 0..40), prop::collection::vec(region, 0..40));
        parts.prop_map(|(runs, regions)| {
            let mut at = 0;
            let runs = runs.into_iter().map(|(gap, pages)| {
                let address = at + gap * PAGE;
                at = address + u64::from(pages) * PAGE;
                Run { address, pages }
            });
            let runs = runs.collect();
            let mut at = 0;
            let regions = regions.into_iter().map(|(pages, kind, offset)| {
                let start = at + offset * PAGE;
                at = start + pages * PAGE;
                let path = |name: &str| Arc::from(name.as_bytes());
                let backing = match kind {
                    0 => Backing::Heap,
                    1 => Backing::Stack,
                    2 => Backing::Anonymous,
                    3 => Backing::File { path: path("/lib/a.so"), offset },
                    _ => Backing::File { path: path("/lib/b.so"), offset },
                };
                Region { start, end: at, backing }
            });
            ProcessLayout::new(runs, regions.collect()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_layout_comes_back(processes in prop::collection::vec(processes(), 0..4), more in 0u32..9, hash: [u8; 32], init in prop::option::of((any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)))) {
            let pages: usize = processes.iter().map(ProcessLayout::pages).sum();
            let sent = SnapshotLayout {
                tenant: "t".parse().unwrap(),
                function: "f".parse().unwrap(),
                pages: u32::try_from(pages).unwrap() + more,
                hash,
                processes,
                init: init.map(|(revision, image)| InitSnapshot { revision, image }),
            };
            prop_assert_eq!(SnapshotLayout::try_from(wire::SnapshotLayout::from(sent.clone())), Ok(sent));
        }

        /// Whatever arrives is a layout or refused, and an accepted one has an address for each page.
        #[test]
        fn nothing_that_arrives_makes_trouble(
            gaps in prop::collection::vec(any::<u64>(), 0..4),
            pages in prop::collection::vec(any::<u32>(), 0..4),
            starts in prop::collection::vec((any::<u64>(), any::<u64>(), 0..7i32, 0u32..3), 0..3),
        ) {
            let mapping = |(start, end, backing, file)| wire::MappingLayout { start, end, backing, file, offset: 0 };
            let raw = wire::ProcessLayout {
                run_gaps: gaps,
                run_pages: pages,
                files: vec![],
                mappings: starts.into_iter().map(mapping).collect(),
            };
            if let Ok(layout) = ProcessLayout::try_from(raw) {
                prop_assert_eq!(layout.addresses().len(), layout.pages());
            }
        }
    }

    #[test]
    fn what_is_no_layout_is_refused() {
        let good = || wire::SnapshotLayout {
            tenant: "t".into(),
            function: "f".into(),
            pages: 3,
            hash: vec![0; 32].into(),
            processes: vec![wire::ProcessLayout {
                run_gaps: vec![4, 1],
                run_pages: vec![1, 2],
                files: vec![b"/lib/a"[..].into()],
                mappings: vec![wire::MappingLayout {
                    start: PAGE,
                    end: 2 * PAGE,
                    backing: 1,
                    file: 0,
                    offset: 0,
                }],
            }],
            init: None,
        };
        assert!(SnapshotLayout::try_from(good()).is_ok());
        let bad: [fn(&mut wire::SnapshotLayout); 10] = [
            |raw| raw.tenant = "T!".into(),
            |raw| raw.pages = 2,
            |raw| raw.hash = vec![0; 31].into(),
            |raw| raw.processes[0].run_gaps = vec![4],
            |raw| raw.processes[0].run_gaps[1] = u64::MAX / PAGE + 1,
            |raw| raw.processes[0].run_pages[0] = 0,
            |raw| raw.processes[0].mappings[0].file = 1,
            |raw| raw.processes[0].mappings[0].end = PAGE,
            |raw| raw.processes[0].files[0] = vec![b'a'; PATH_BYTES_MAX + 1].into(),
            |raw| {
                let image = vec![0; CLONE_BYTES_MAX + 1].into();
                raw.init = Some(wire::InitSnapshot { revision: 1, image });
            },
        ];
        for (at, change) in bad.iter().enumerate() {
            let mut raw = good();
            change(&mut raw);
            assert!(SnapshotLayout::try_from(raw).is_err(), "change {at} went unseen");
        }
    }
}
