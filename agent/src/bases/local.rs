//! Base snapshots that this node holds: sealed memory, one file each.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::future::{BoxFuture, ready};
use medes_dedup::{
    page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId},
    words::{Facts, Memory},
};
use medes_proto::{
    ids::{FunctionName, TenantName},
    layout::{InitSnapshot, ProcessLayout, SnapshotLayout},
};

use super::{
    base_pages::{BasePages, ReadPagesError},
    frame::{self, Exposed, Refusal},
};
use crate::{memory_file::MappedFile, pager::School};

/// One base snapshot. Immutable.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number.
    pub id: SnapshotId,
    /// Taken from a sandbox of this function.
    pub function: FunctionName,
    /// Whose bytes these are.
    pub tenant: TenantName,
    bytes: MappedFile,
    processes: Vec<ProcessLayout>,
    hash: OnceLock<[u8; 32]>,
    facts: OnceLock<Facts>,
    init: OnceLock<Init>,
    /// The pages' sums for other nodes, 0 where not counted yet: a page is sent often and never changes.
    sums: Box<[AtomicU64]>,
}

/// What an init snapshot is besides pages.
#[derive(Debug)]
pub struct Init {
    /// Of which text of the function's file.
    pub revision: u64,
    /// An image of its sandbox ([`crate::init`]); `None`: no sandbox may be made of it.
    pub image: Option<MappedFile>,
    /// What clones touch first.
    pub touched: School,
}

impl Init {
    /// One of which no sandbox was made yet.
    pub fn new(revision: u64, image: Option<MappedFile>) -> Self {
        Self { revision, image, touched: School::default() }
    }
}

/// The process of a snapshot that sandboxes are aligned with: its largest one, whose pages are the snapshot's first.
///
/// An image names base pages by their numbers in the snapshot, and the engine by their numbers in the process. Being
/// the first makes these the same.
#[derive(Debug)]
pub struct MainProcess<'s> {
    /// Where its pages were.
    pub layout: &'s ProcessLayout,
    /// Its pages.
    pub pages: Vec<&'s Page>,
}

impl Snapshot {
    /// A snapshot of whole pages, those of `processes` first and in their order; `None` if `bytes` is not that.
    pub fn new(
        id: SnapshotId,
        function: FunctionName,
        tenant: TenantName,
        bytes: MappedFile,
        processes: Vec<ProcessLayout>,
    ) -> Option<Self> {
        let pages = bytes.len() / PAGE_BYTES;
        let whole = bytes.len().is_multiple_of(PAGE_BYTES) && u32::try_from(pages).is_ok();
        let placed: usize = processes.iter().map(ProcessLayout::pages).sum();
        (whole && placed <= pages).then_some(Self {
            id,
            function,
            tenant,
            bytes,
            processes,
            hash: OnceLock::new(),
            facts: OnceLock::new(),
            init: OnceLock::new(),
            sums: (0..pages).map(|_| AtomicU64::new(0)).collect(),
        })
    }

    /// How many pages it has.
    pub fn page_count(&self) -> u32 {
        u32::try_from(self.bytes.len() / PAGE_BYTES).unwrap_or(u32::MAX)
    }

    /// How many bytes it holds, with what has been found out about them.
    pub fn len_bytes(&self) -> u64 {
        let facts = self.facts.get().map_or(0, Facts::memory_bytes);
        let image = self.init().and_then(|init| init.image.as_ref()).map_or(0, MappedFile::len);
        (self.bytes.len() + facts + image + self.sums.len() * size_of::<AtomicU64>()) as u64
    }

    /// What it is besides, if it is an init snapshot.
    pub fn init(&self) -> Option<&Init> {
        self.init.get()
    }

    /// It is an init snapshot: said once, before anybody else holds it.
    pub fn is_init(&self, init: Init) {
        self.init.get_or_init(|| init);
    }

    /// Its processes, in the order of their pages.
    pub fn processes(&self) -> &[ProcessLayout] {
        &self.processes
    }

    /// The sum that one page travels with.
    pub fn sum(&self, page: PageIndex) -> Option<u64> {
        let place = self.sums.get(usize::try_from(page.0).ok()?)?;
        match place.load(Ordering::Relaxed) {
            0 => {
                let sum = frame::sum(self.page(page)?);
                place.store(sum, Ordering::Relaxed);
                Some(sum)
            }
            sum => Some(sum),
        }
    }

    /// The sealed file its pages lie in, from its first byte on.
    pub fn file(&self) -> &File {
        self.bytes.file()
    }

    /// Neighbouring pages, as bytes.
    pub fn range(&self, first: PageIndex, pages: u32) -> Option<&[u8]> {
        let start = usize::try_from(first.0).ok()?.checked_mul(PAGE_BYTES)?;
        let bytes = usize::try_from(pages).ok()?.checked_mul(PAGE_BYTES)?;
        self.bytes.as_ref().get(start..start.checked_add(bytes)?)
    }

    /// One page.
    pub fn page(&self, page: PageIndex) -> Option<&Page> {
        let start = usize::try_from(page.0).ok()?.checked_mul(PAGE_BYTES)?;
        self.bytes.as_ref().get(start..start.checked_add(PAGE_BYTES)?)?.try_into().ok()
    }

    /// All pages, in order.
    pub fn pages(&self) -> impl Iterator<Item = &Page> {
        self.bytes.as_ref().as_chunks::<PAGE_BYTES>().0.iter()
    }

    /// The process that sandboxes are aligned with, if it is known where its pages were.
    pub fn main_process(&self) -> Option<MainProcess<'_>> {
        let layout = self.processes.first()?;
        Some(MainProcess { layout, pages: self.pages().take(layout.pages()).collect() })
    }

    /// What its main process says about itself: part of what sandboxes are aligned by, and what some of their pages need to
    /// come back. Reads all its pages the first time: call it from a blocking thread.
    pub fn facts(&self) -> &Facts {
        self.facts.get_or_init(|| {
            let Some(main) = self.main_process() else { return Facts::none() };
            let (addresses, mappings) = (main.layout.addresses(), main.layout.mappings());
            // Pages that are not in order are no memory of a process: nothing is known about them.
            Memory::new(&main.pages, &addresses, &mappings).map_or_else(|_| Facts::none(), Facts::study)
        })
    }

    /// What another node needs besides the pages. Hashes them all the first time: call it from a blocking thread.
    pub fn layout(&self) -> SnapshotLayout {
        SnapshotLayout {
            tenant: self.tenant.clone(),
            function: self.function.clone(),
            pages: self.page_count(),
            hash: *self.hash.get_or_init(|| *blake3::hash(self.bytes.as_ref()).as_bytes()),
            processes: self.processes.clone(),
            init: self.init().map(|Init { revision, image, .. }| InitSnapshot {
                revision: *revision,
                image: image.as_ref().map(|image| image.as_ref().to_vec()).unwrap_or_default(),
            }),
        }
    }
}

/// Opens snapshots to single RDMA connections of readers on other nodes.
pub trait Expose: fmt::Debug + Send + Sync {
    /// Opens a snapshot to a connection, or renews that. Pins its memory the first time: call it from a blocking thread.
    fn expose(&self, session: u64, snapshot: &Snapshot) -> Result<Exposed, Refusal>;

    /// Nobody may read it any more.
    fn revoke(&self, snapshot: SnapshotId);
}

/// The snapshots of this node. Readers keep what they read: dropping one here frees it when they are done.
#[derive(Debug, Default)]
pub struct LocalBases {
    snapshots: RwLock<BTreeMap<SnapshotId, Arc<Snapshot>>>,
    exposer: OnceLock<Arc<dyn Expose>>,
}

impl LocalBases {
    /// A snapshot, if it is here.
    pub fn get(&self, id: SnapshotId) -> Option<Arc<Snapshot>> {
        self.snapshots.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The newest snapshot of a function.
    pub fn of_function(&self, function: &FunctionName, tenant: &TenantName) -> Option<Arc<Snapshot>> {
        let all = self.snapshots.read().unwrap_or_else(PoisonError::into_inner);
        let own = |snapshot: &&Arc<Snapshot>| snapshot.function == *function && snapshot.tenant == *tenant;
        all.values().rev().find(own).cloned()
    }

    /// Takes a snapshot in.
    pub fn insert(&self, snapshot: Arc<Snapshot>) {
        self.snapshots.write().unwrap_or_else(PoisonError::into_inner).insert(snapshot.id, snapshot);
    }

    /// Forgets a snapshot. Nobody reads it from elsewhere any more.
    pub fn remove(&self, id: SnapshotId) {
        self.snapshots.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        if let Some(exposer) = self.exposer.get() {
            exposer.revoke(id);
        }
    }

    /// From now on snapshots can be exposed, by this one. Said once: a second one is not heard.
    pub fn expose_by(&self, exposer: Arc<dyn Expose>) {
        self.exposer.get_or_init(|| exposer);
    }

    /// Opens a snapshot to an RDMA connection. Call it from a blocking thread.
    pub fn expose(&self, session: u64, id: SnapshotId) -> Result<Exposed, Refusal> {
        let exposer = self.exposer.get().ok_or(Refusal::NotExposed)?;
        let snapshot = self.get(id).ok_or(Refusal::NoSnapshot)?;
        let exposed = exposer.expose(session, &snapshot)?;
        // Removed meanwhile, perhaps after it was revoked: nobody else would revoke it now.
        if self.get(id).is_none() {
            exposer.revoke(id);
            return Err(Refusal::NoSnapshot);
        }
        Ok(exposed)
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Snapshot>> {
        self.snapshots.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        let all = self.snapshots.read().unwrap_or_else(PoisonError::into_inner);
        all.values().map(|snapshot| snapshot.len_bytes()).sum()
    }
}

impl BasePages for LocalBases {
    fn read<'a>(
        &'a self,
        wanted: &'a [BasePage],
        into: &'a mut [Page],
    ) -> BoxFuture<'a, Result<(), ReadPagesError>> {
        let read = || {
            let (mut wanted, mut into) = (wanted, into);
            while let Some(first) = wanted.first().filter(|_| !into.is_empty()) {
                let snapshot = first.snapshot;
                let of_it = wanted.iter().take_while(|place| place.snapshot == snapshot).count();
                let refused = |source| ReadPagesError::Refused { snapshot, source };
                let held = self.get(snapshot).ok_or_else(|| refused(Refusal::NoSnapshot))?;
                let of_it = of_it.min(into.len());
                let (these, more) = wanted.split_at(of_it);
                for (place, into) in these.iter().zip(into.split_off_mut(..of_it).unwrap_or_default()) {
                    *into = *held.page(place.page).ok_or_else(|| refused(Refusal::NoPage))?;
                }
                wanted = more;
            }
            Ok(())
        };
        Box::pin(ready(read()))
    }
}
