//! What was mapped where in the processes of a dump: from CRIU's memory images, with the names of mapped files.
//!
//! This only helps to predict pages, and every prediction is proven. So what is merely unknown, such as a file
//! without a name, counts as anonymous memory, while nonsense is an error.

use std::collections::BTreeMap;
use std::sync::Arc;

use medes_dedup::mapping::{Backing, FileName, Mapping, Mappings};

use super::files::{self, Files};
use super::image_file::{Entries, FILES_MAGIC, FormatError, ImageFileError, LARGE_BYTES_MAX, MM_MAGIC};
use super::images::ImageSet;
use super::wire::images as wire;

/// One mapping takes about 40 bytes, and a process has at most 65,530 unless the kernel is told otherwise.
pub(super) const MM_BYTES_MAX: u32 = 4 << 20;
/// Files of a sandbox, open or mapped.
const NAMES_MAX: usize = 1 << 18;

// CRIU's words for a mapping.
const STACK: u32 = 1 << 1;
pub(super) const VSYSCALL: u32 = 1 << 2;
pub(super) const VDSO: u32 = 1 << 3;
const HEAP: u32 = 1 << 5;
pub(super) const FILE: u32 = (1 << 6) | (1 << 7);
pub(super) const VVAR: u32 = 1 << 12;
/// Not a mapping: a part of one that must not be touched.
pub(super) const GUARD: u32 = 1 << 16;

/// Paths of regular files by CRIU's number.
type Names = BTreeMap<u64, Arc<[u8]>>;

impl ImageSet {
    /// The mappings of each process, by its number. `files` are those this set was read from.
    pub fn mappings(&self, files: &(impl Files + ?Sized)) -> Result<BTreeMap<u32, Mappings>, ImageFileError> {
        let names = files::parse(files, "files.img", LARGE_BYTES_MAX, parse_files)?;
        let read = |pid: u32| {
            let name = format!("mm-{pid}.img");
            Ok((pid, files::parse(files, &name, MM_BYTES_MAX.into(), |bytes| parse_mm(bytes, &names))?))
        };
        // A process that has ended and was not yet waited for has no memory, and no image of it.
        let with_memory = self.pids.iter().copied().filter(|pid| {
            let name = format!("mm-{pid}.img");
            self.skeleton.contains(&name)
        });
        with_memory.map(read).collect()
    }

    /// Paths of all regular files that are open or mapped, to turn file names back.
    pub fn file_paths(&self, files: &(impl Files + ?Sized)) -> Result<Vec<Arc<[u8]>>, ImageFileError> {
        let names = files::parse(files, "files.img", LARGE_BYTES_MAX, parse_files)?;
        Ok(names.into_values().collect())
    }
}

pub(super) fn parse_files(bytes: &[u8]) -> Result<Names, FormatError> {
    let mut names = Names::new();
    for entry in Entries::<wire::FileEntry>::image(bytes, FILES_MAGIC)? {
        let wire::FileEntry { id, reg } = entry?;
        if let Some(file) = reg {
            names.insert(id.into(), Arc::from(file.name.into_bytes()));
        }
        if names.len() > NAMES_MAX {
            return Err(FormatError::TooMany { what: "files", max: NAMES_MAX });
        }
    }
    Ok(names)
}

pub(super) fn parse_mm(bytes: &[u8], names: &Names) -> Result<Mappings, FormatError> {
    let entries = Entries::<wire::MmEntry>::image(bytes, MM_MAGIC)?;
    let mut entries = entries.up_to(MM_BYTES_MAX as usize);
    let wire::MmEntry { vmas } = entries.next().ok_or(FormatError::Missing { what: "entry" })??;
    let mappings = vmas.iter().filter_map(|vma| {
        let wire::VmaEntry { start, end, status, .. } = *vma;
        Some(Mapping { start, end, backing: backing(vma, names).filter(|_| status & GUARD == 0)? })
    });
    Mappings::new(mappings).map_err(FormatError::Mappings)
}

/// What is behind a mapping; nothing if it is not memory of the process.
fn backing(vma: &wire::VmaEntry, names: &Names) -> Option<Backing> {
    // The kernel's own pages are the same file in every process, with a name that no path has.
    let kernel = |name: &str| Backing::File { name: FileName::of(name.as_bytes()), offset: 0 };
    let is = |word| vma.status & word != 0;
    Some(match names.get(&vma.shmid) {
        _ if is(VSYSCALL) => return None,
        _ if is(HEAP) => Backing::Heap,
        _ if is(STACK) => Backing::Stack,
        _ if is(VDSO) => kernel("[vdso]"),
        _ if is(VVAR) => kernel("[vvar]"),
        Some(name) if is(FILE) => Backing::File { name: FileName::of(name), offset: vma.pgoff },
        _ => Backing::Anonymous,
    })
}
