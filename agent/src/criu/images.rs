//! What a dump consists of: the files that hold pages with the addresses of these pages, and all the others.
//!
//! CRIU wrote these files, but a dedup image may have travelled since, so every number is checked before it is used.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;

use super::files::{self, FILES_MAX, Files, holds_pages};
use super::image_file::{CORE_MAGIC, Entries, LARGE_BYTES_MAX, PAGEMAP_MAGIC, PSTREE_MAGIC, SMALL_BYTES_MAX};
pub use super::image_file::{FormatError, ImageFileError};
use super::wire::images as wire;

/// Bytes in one page. Pages files are whole pages one after the other.
pub const PAGE_BYTES: u64 = 4096;

/// Linux gives user space 47 bits (56 with five levels, which CRIU does not use); shared memory counts from zero.
const ADDRESS_MAX: u64 = 1 << 56;
const RUNS_MAX: usize = 4_000_000;
const THREADS_MAX: usize = 100_000;
/// CRIU's flags of a run: in an earlier dump, and in this one.
const IN_PARENT: u32 = 1;
pub(super) const PRESENT: u32 = 4;

/// Whose pages they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The private memory of the process with this number (as the sandbox sees it).
    Process {
        /// The process.
        pid: u32,
    },
    /// A piece of shared memory; addresses are offsets in it.
    Shared {
        /// CRIU's number of it.
        id: u64,
    },
}

/// Pages at consecutive addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Address of the first page.
    pub address: u64,
    /// How many pages; at least one.
    pub pages: u64,
}

/// One pages file and what lies in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PagesFile {
    /// Whose pages they are.
    pub owner: Owner,
    /// Name of the file in the folder.
    pub name: String,
    /// What lies in it, in the order of its bytes. Ascending, without overlap.
    pub runs: Vec<Run>,
    /// Pages in it. Zero if there is no such file because there was nothing to write.
    pub pages: u64,
}

impl PagesFile {
    /// Address of each page, in the order of the file.
    pub fn addresses(&self) -> impl Iterator<Item = u64> {
        self.runs.iter().flat_map(|run| (0..run.pages).map(|page| run.address + page * PAGE_BYTES))
    }
}

/// Where a thread has its restartable-sequences area: the kernel writes there (the number of the CPU), so these
/// bytes differ between two looks at memory that nobody has touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RseqArea {
    /// The process it is in, as the sandbox sees it.
    pub pid: u32,
    /// Where it is.
    pub address: u64,
    /// How long it is.
    pub bytes: u32,
}

/// A dump, read and checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageSet {
    /// The files that hold pages.
    pub pages: Vec<PagesFile>,
    /// Names of all other files that a restore needs.
    pub skeleton: Vec<String>,
    /// Bytes of memory that change by themselves.
    pub rseq: Vec<RseqArea>,
    /// The processes, as the sandbox sees them.
    pub pids: Vec<u32>,
}

/// Why a folder is not a dump we can take apart.
#[derive(Debug, thiserror::Error)]
pub enum ReadImagesError {
    /// The folder cannot be listed.
    #[error("list the images in {path}")]
    List {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file makes no sense.
    #[error("understand an image file")]
    File(#[from] ImageFileError),
    /// The dump continues another one.
    #[error("the images in {path} build on an earlier dump")]
    HasParent {
        /// The folder.
        path: PathBuf,
    },
    /// A file has a name CRIU would not give.
    #[error("{path} holds a file with an unexpected name or kind: {name}")]
    Name {
        /// The folder.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// A pages file is not as long as its page map says.
    #[error("{name} has {bytes} bytes, but its page map promises {pages} pages")]
    PagesLength {
        /// The pages file.
        name: String,
        /// Its length.
        bytes: u64,
        /// What was promised.
        pages: u64,
    },
    /// Two page maps refer to one pages file, or one file to none.
    #[error("{name} does not belong to exactly one page map")]
    PagesOwner {
        /// The pages file.
        name: String,
    },
    /// There are too many files.
    #[error("{path} holds more than {FILES_MAX} files")]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
}

impl ImageSet {
    /// Reads everything but the pages.
    pub fn read(files: &(impl Files + ?Sized)) -> Result<Self, ReadImagesError> {
        let names = files.names()?;
        let mut set = Self::default();
        let mut pages_names = BTreeSet::new();
        for name in names {
            if holds_pages(&name) {
                pages_names.insert(name);
                continue;
            }
            if let Some(owner) = pagemap_owner(&name) {
                set.pages.extend(read_pages_file(files, &name, owner)?);
            }
            set.skeleton.push(name);
        }
        for file in &set.pages {
            // A page map without pages has no pages file.
            if !pages_names.remove(&file.name) && file.pages > 0 {
                return Err(ReadImagesError::PagesOwner { name: file.name.clone() });
            }
        }
        if let Some(name) = pages_names.pop_first() {
            return Err(ReadImagesError::PagesOwner { name });
        }
        set.read_threads(files)?;
        Ok(set)
    }

    /// Fills `pids` and `rseq` from the process tree and the core images.
    fn read_threads(&mut self, files: &(impl Files + ?Sized)) -> Result<(), ReadImagesError> {
        let threads = files::parse(files, "pstree.img", LARGE_BYTES_MAX, parse_pstree)?;
        for (pid, tid) in threads {
            if self.pids.last() != Some(&pid) {
                self.pids.push(pid);
            }
            let name = format!("core-{tid}.img");
            // A process that has ended and was not yet waited for has no threads to restore, but does have a core.
            if let Some((address, bytes)) = files::parse(files, &name, SMALL_BYTES_MAX, parse_core)? {
                self.rseq.push(RseqArea { pid, address, bytes });
            }
        }
        Ok(())
    }
}

fn pagemap_owner(name: &str) -> Option<Owner> {
    let id = name.strip_prefix("pagemap-")?.strip_suffix(".img")?;
    match id.strip_prefix("shmem-") {
        Some(id) => Some(Owner::Shared { id: id.parse().ok()? }),
        None => Some(Owner::Process { pid: id.parse().ok()? }),
    }
}

fn read_pages_file(
    files: &(impl Files + ?Sized),
    pagemap: &str,
    owner: Owner,
) -> Result<Option<PagesFile>, ReadImagesError> {
    let (id, runs) = files::parse(files, pagemap, LARGE_BYTES_MAX, parse_pagemap)?;
    let name = format!("pages-{id}.img");
    let pages: u64 = runs.iter().map(|run| run.pages).sum();
    let bytes = match files.pages_bytes(&name) {
        Err(error) if pages == 0 && error.kind() == io::ErrorKind::NotFound => return Ok(None),
        found => found.map_err(|source| ReadImagesError::List { path: files.place().join(&name), source })?,
    };
    // Runs do not overlap, so the sum is at most the pages of an address space; the product is checked all the same.
    if pages.checked_mul(PAGE_BYTES) != Some(bytes) {
        return Err(ReadImagesError::PagesLength { name, bytes, pages });
    }
    Ok(Some(PagesFile { owner, name, runs, pages }))
}

/// Number of the pages file, and what lies in it.
fn parse_pagemap(bytes: &[u8]) -> Result<(u32, Vec<Run>), FormatError> {
    let mut head = Entries::<wire::PagemapHead>::image(bytes, PAGEMAP_MAGIC)?;
    let id = head.next().ok_or(FormatError::Missing { what: "head" })??.pages_id;
    let mut runs: Vec<Run> = Vec::new();
    let mut free_from = 0;
    for entry in head.then::<wire::PagemapEntry>() {
        let wire::PagemapEntry { vaddr: address, compat_nr_pages, in_parent, flags, nr_pages } = entry?;
        let pages = nr_pages.unwrap_or(compat_nr_pages.into());
        // Before flags, everything that was not in the parent was present.
        let flags = flags.unwrap_or(PRESENT) | if in_parent == Some(true) { IN_PARENT } else { 0 };
        if flags & IN_PARENT != 0 || flags & PRESENT == 0 {
            return Err(FormatError::Elsewhere { address, flags });
        }
        let end = pages.checked_mul(PAGE_BYTES).and_then(|len| address.checked_add(len));
        let end = end.filter(|end| pages > 0 && *end <= ADDRESS_MAX && address.is_multiple_of(PAGE_BYTES));
        let end = end.ok_or(FormatError::Run { address, pages })?;
        if address < free_from {
            return Err(FormatError::Order { address });
        }
        if runs.len() == RUNS_MAX {
            return Err(FormatError::TooMany { what: "runs of pages", max: RUNS_MAX });
        }
        free_from = end;
        runs.push(Run { address, pages });
    }
    Ok((id, runs))
}

/// Every thread of the sandbox with its process.
fn parse_pstree(bytes: &[u8]) -> Result<Vec<(u32, u32)>, FormatError> {
    let mut threads = Vec::new();
    for entry in Entries::<wire::PstreeEntry>::image(bytes, PSTREE_MAGIC)? {
        let wire::PstreeEntry { pid, threads: tids, .. } = entry?;
        if threads.len() + tids.len() > THREADS_MAX {
            return Err(FormatError::TooMany { what: "threads", max: THREADS_MAX });
        }
        threads.extend(tids.into_iter().map(|tid| (pid, tid)));
    }
    if threads.is_empty() {
        return Err(FormatError::Missing { what: "process" });
    }
    Ok(threads)
}

/// Address and length of the thread's restartable-sequences area, if it has one.
fn parse_core(bytes: &[u8]) -> Result<Option<(u64, u32)>, FormatError> {
    let mut entries = Entries::<wire::CoreEntry>::image(bytes, CORE_MAGIC)?;
    let core = entries.next().ok_or(FormatError::Missing { what: "entry" })??;
    let area = core.thread_core.and_then(|thread| thread.rseq_entry);
    let area = area.map(|area| (area.rseq_abi_pointer, area.rseq_abi_size));
    Ok(area.filter(|(address, bytes)| *address != 0 && *bytes != 0))
}

#[cfg(test)]
#[path = "images_tests.rs"]
mod tests;
