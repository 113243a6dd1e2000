//! Whom this node's memory is held for, thing by thing, and what the kernel counts. Nothing is divided here: who refers to a base may be
//! on another node.
//!
//! Two sources. Memory that processes have is told by the control group of their sandbox. What the agent holds for sandboxes lies in
//! memory files, charged to the agent's group whoever they are for: each is listed by its owner, once, and its length is known. So
//! the sum of all that is listed can be held against the kernel's count of the whole node.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::Arc,
};

use medes_dedup::{
    image::DedupImage,
    page::{PAGE_BYTES, SnapshotId},
};
use medes_proto::{
    account::{KernelCount, NodeAccount, SandboxHolding, SnapshotHolding},
    ids::{FunctionName, SandboxId, TenantName},
    limits::ACCOUNT_SNAPSHOTS_MAX,
    sandbox::SandboxState,
};

use crate::{
    bases::{Bases, local::Snapshot},
    memory_file::MappedFile,
    roads::{Stored, Warm},
    sandbox::Host,
};

/// Processes whose page tables are looked at for one account; walking them takes time, and decides nothing.
const PROCESSES_MAX: usize = 4_096;

/// What the node's loop knows of its sandboxes: enough to look everything else up without it.
#[derive(Debug)]
pub struct Books {
    /// Where sandboxes live.
    pub host: Arc<Host>,
    /// Base snapshots.
    pub bases: Arc<Bases>,
    /// Every sandbox.
    pub sandboxes: Vec<Entry>,
}

/// A sandbox in the books.
#[derive(Debug)]
pub struct Entry {
    /// Which.
    pub id: SandboxId,
    /// Whose.
    pub tenant: TenantName,
    /// Of which function.
    pub function: FunctionName,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Base snapshots that what is stored of it refers to.
    pub bases: Vec<SnapshotId>,
    /// What it was said to be stored as, files included: all there is while it is being worked on.
    pub stored_bytes: u64,
    /// Its images, if nobody works on it.
    pub images: Option<Images>,
}

/// Memory that the agent holds for one sandbox.
#[derive(Debug, Default)]
pub struct Images {
    /// Memory files, by address.
    files: BTreeMap<usize, File>,
    /// Of the agent's own memory.
    table_bytes: u64,
    /// Bases that are held as a whole, whoever else holds them.
    held: Vec<Arc<Snapshot>>,
}

/// A memory file: its length, and the first base that the image in it refers to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct File {
    bytes: u64,
    base: Option<SnapshotId>,
}

impl Images {
    /// Those of a sandbox with processes.
    pub fn of_warm(warm: &Warm) -> Self {
        let mut images = warm.paged.as_ref().map(crate::pager::Paged::images).unwrap_or_default();
        if let Some(earlier) = &warm.past.earlier {
            images.add(&earlier.image);
        }
        images
    }

    /// That of one without.
    pub fn of_stored(stored: &Stored) -> Self {
        let mut images = Self::default();
        images.add_file(stored.image.as_ref(), stored.origin.places.keys().next().copied());
        images
    }

    /// An image that is open, with what is known of it.
    pub(crate) fn add(&mut self, image: &DedupImage<MappedFile>) {
        let file = image.file();
        if self.add_file(file, image.bases().first().copied()) {
            let beside = image.stored_bytes().saturating_sub(file.len() as u64);
            self.add_table(beside.saturating_add(image.table_bytes()));
        }
    }

    /// Pages that are kept as they are.
    pub(crate) fn add_plain(&mut self, pages: &MappedFile) {
        self.add_file(pages.as_ref(), None);
    }

    /// What finds pages in an image.
    pub(crate) fn add_table(&mut self, bytes: u64) {
        self.table_bytes = self.table_bytes.saturating_add(bytes);
    }

    /// A base that is held for it.
    pub(crate) fn hold(&mut self, base: &Arc<Snapshot>) {
        self.held.push(base.clone());
    }

    /// Whether it was not there yet.
    fn add_file(&mut self, bytes: &[u8], base: Option<SnapshotId>) -> bool {
        let file = File { bytes: whole_pages(bytes.len()), base };
        self.files.insert(address(bytes), file).is_none()
    }
}

/// Two that are mapped at one address are one.
fn address(bytes: &[u8]) -> usize {
    bytes.as_ptr() as usize
}

/// What a memory file of so many bytes is charged.
fn whole_pages(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(PAGE_BYTES as u64)
}

impl Books {
    /// Looks everything up. Blocks: it reads files of the kernel for every sandbox, and walks page tables.
    pub fn look(self) -> NodeAccount {
        let Self { host, bases, mut sandboxes } = self;
        let (whole, own) = (host.usage(), host.cgroup().own_usage());
        let kernel = KernelCount {
            anon_bytes: whole.anon_bytes,
            shared_bytes: whole.shmem_bytes,
            kernel_bytes: whole.kernel_bytes,
            agent_anon_bytes: own.anon_bytes,
            agent_kernel_bytes: own.kernel_bytes,
        };
        let (mut snapshots, clones) = snapshots(&bases, &sandboxes);
        snapshots.extend(claim(&mut sandboxes, &clones));
        snapshots.truncate(ACCOUNT_SNAPSHOTS_MAX);
        let mut processes = PROCESSES_MAX;
        let sandboxes = sandboxes.into_iter().map(|entry| holding(&host, entry, &mut processes)).collect();
        NodeAccount { kernel, sandboxes, snapshots }
    }
}

/// All snapshots of which something is here, and the addresses of the files that clones are made of.
fn snapshots(bases: &Bases, sandboxes: &[Entry]) -> (Vec<SnapshotHolding>, BTreeSet<usize>) {
    let in_use = sandboxes.iter().filter_map(|entry| entry.images.as_ref()).flat_map(|images| &images.held);
    let mut whole: BTreeMap<*const Snapshot, Arc<Snapshot>> = BTreeMap::new();
    for snapshot in bases.local.all().into_iter().chain(bases.replicas.all()).chain(in_use.cloned()) {
        whole.insert(Arc::as_ptr(&snapshot), snapshot);
    }
    let mut tables = bases.table_bytes();
    let mut holdings = Vec::new();
    let mut clones = BTreeSet::new();
    for snapshot in whole.into_values() {
        let image = snapshot.init().and_then(|init| init.image.as_ref());
        clones.extend(image.map(|image| address(image.as_ref())));
        let pages = u64::from(snapshot.page_count()) * PAGE_BYTES as u64;
        let own = pages + image.map_or(0, MappedFile::len) as u64;
        holdings.push(SnapshotHolding {
            id: snapshot.id,
            owner: Some((snapshot.tenant.clone(), snapshot.function.clone())),
            file_bytes: pages + image.map_or(0, |image| whole_pages(image.len())),
            table_bytes: snapshot.len_bytes().saturating_sub(own) + tables.remove(&snapshot.id).unwrap_or(0),
        });
    }
    let pages = tables.into_iter().map(|(id, table_bytes)| SnapshotHolding {
        id,
        owner: None,
        file_bytes: 0,
        table_bytes,
    });
    holdings.extend(pages);
    (holdings, clones)
}

/// Takes files out of the sandboxes' that are not one sandbox's alone: of `clones` there is a snapshot in the books, and another one that
/// several have was made to make clones of too; its snapshot has gone, and it is told as a piece of that.
fn claim(sandboxes: &mut [Entry], clones: &BTreeSet<usize>) -> Vec<SnapshotHolding> {
    let mut holders: BTreeMap<usize, usize> = BTreeMap::new();
    for images in sandboxes.iter().filter_map(|entry| entry.images.as_ref()) {
        images.files.keys().for_each(|at| *holders.entry(*at).or_default() += 1);
    }
    let mut pieces: BTreeMap<usize, SnapshotHolding> = BTreeMap::new();
    for entry in sandboxes {
        let Some(images) = &mut entry.images else { continue };
        images.files.retain(|at, file| match file.base {
            _ if clones.contains(at) => false,
            Some(id) if holders.get(at).is_some_and(|holders| *holders > 1) => {
                let owner = Some((entry.tenant.clone(), entry.function.clone()));
                pieces.insert(*at, SnapshotHolding { id, owner, file_bytes: file.bytes, table_bytes: 0 });
                false
            }
            _ => true,
        });
    }
    pieces.into_values().collect()
}

fn holding(host: &Host, entry: Entry, processes: &mut usize) -> SandboxHolding {
    let Entry { id, tenant, function, state, bases, stored_bytes, images } = entry;
    let name = id.to_string();
    let group = host.cgroup().group_of(&name);
    let (usage, private) = (group.usage(), host.private_bytes_of(&name));
    let (stored_bytes, table_bytes) = match images {
        Some(images) => (images.files.values().map(|file| file.bytes).sum(), images.table_bytes),
        None => (stored_bytes.saturating_sub(private), 0),
    };
    let pids = group.pids().unwrap_or_default();
    let looked_at = pids.len().min(*processes);
    *processes -= looked_at;
    let (mut mapped_anon_bytes, mut mapped_file_bytes) = (0, 0);
    for pid in &pids[..looked_at] {
        // It may have ended meanwhile: then it has no memory.
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
        mapped_anon_bytes += kilobytes(&text, "Pss_Anon:");
        mapped_file_bytes += kilobytes(&text, "Pss_File:");
    }
    SandboxHolding {
        anon_bytes: usage.anon_bytes,
        kernel_bytes: usage.kernel_bytes,
        // Files that the agent unpacked are charged to the agent; memory that is shared without a file lies in no folder.
        file_bytes: usage.shmem_bytes.max(private),
        stored_bytes,
        table_bytes,
        mapped_anon_bytes,
        mapped_file_bytes,
        bases,
        ..SandboxHolding::new(id, tenant, function, state)
    }
}

/// `Pss_Anon:      1234 kB`.
fn kilobytes(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB"));
    value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0).saturating_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u32, files: &[(usize, u64)]) -> Entry {
        let file = |&(at, bytes): &(usize, u64)| (at, File { bytes, base: SnapshotId::new(9) });
        Entry {
            id: SandboxId::of(1, number).unwrap(),
            tenant: "acme".parse().unwrap(),
            function: "html".parse().unwrap(),
            state: SandboxState::Warm,
            bases: Vec::new(),
            stored_bytes: 0,
            images: Some(Images { files: files.iter().map(file).collect(), ..Images::default() }),
        }
    }

    #[test]
    fn a_file_that_several_have_is_told_once() {
        let mut sandboxes = [
            entry(1, &[(0x1000, 10), (0x2000, 20)]),
            entry(2, &[(0x2000, 20), (0x3000, 30)]),
            entry(3, &[(0x4000, 40)]),
        ];
        let pieces = claim(&mut sandboxes, &BTreeSet::from([0x3000]));
        let left =
            |at: usize| sandboxes[at].images.as_ref().unwrap().files.keys().copied().collect::<Vec<_>>();
        assert_eq!((left(0), left(1), left(2)), (vec![0x1000], vec![], vec![0x4000]));
        assert_eq!(
            pieces.iter().map(|piece| (piece.id.get(), piece.file_bytes)).collect::<Vec<_>>(),
            [(9, 20)]
        );
    }

    #[test]
    fn lines_of_smaps_are_kilobytes() {
        let text = "00400000-7ffe ---p 00000000 00:00 0    [rollup]\nPss:     99 kB\nPss_Anon:      12 kB\nPss_File:  x kB\n";
        assert_eq!((kilobytes(text, "Pss_Anon:"), kilobytes(text, "Pss_File:")), (12 * 1024, 0));
        assert_eq!(kilobytes(text, "Pss_Shmem:"), 0);
    }

    #[test]
    fn a_file_of_one_byte_takes_a_page() {
        assert_eq!([0, 1, 4096, 4097].map(whole_pages), [0, 4096, 4096, 8192]);
    }
}
