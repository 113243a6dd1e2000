//! The road back: a dedup image becomes a warm sandbox again.
//!
//! ```text
//! image opened and checked ─► read base pages ─► rebuild pages, each against its hash ─► lay out CRIU's files
//!                          ─► CRIU restores ─► sandbox
//! ```
//!
//! Eager, as the paper has it: every page is in place before the first instruction runs. Or late, where the node is told so and can
//! ([`crate::late`]). After a failure there is no sandbox: half of one is killed, and what is left is removed by the caller.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    num::NonZeroUsize,
    sync::Arc,
};

use medes_dedup::{
    image::{DedupImage, OpenImageError, ReadSectionsError},
    page::{BasePage, PAGE_BYTES, Page, SnapshotId},
    rebuild::RebuildError,
};
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NodeId, SandboxId, TenantName},
    registry::SnapshotPlace,
};

use crate::{
    bases::{HeldPages, ReadBasesError, replicas::FetchError},
    criu::{
        self, RestoreRequest, TakeWorkerError,
        images::{ImageSet, PagesFile, ReadImagesError},
        tree,
    },
    digest::{DigestError, Mask, digest},
    driver::Restored,
    dump::Folder,
    earlier::Earlier,
    faults::{Injected, Step},
    late,
    memory_file::MappedFile,
    page_work,
    pager::{self, Missing, Paged, Pager, ParkError},
    roads::{NoEngine, Past, Roads, Stopwatch, Stored, Warm, blocking},
    sandbox::{AdoptError, Housing, Tree},
    skeleton::{self, UnpackError},
};

/// Addresses that may not deliver before a restore is given up.
const HOLDERS_MAX: usize = 3;

/// Why a sandbox did not come back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// The image is not what was stored.
    #[error("open its dedup image")]
    Open(#[from] OpenImageError),
    /// Its skeleton cannot be read.
    #[error("read the skeleton in its dedup image")]
    Sections(#[from] ReadSectionsError),
    /// Base pages could not be read.
    #[error("read base pages for it")]
    Bases(#[from] ReadBasesError),
    /// A base that is needed as a whole is not to be had.
    #[error("fetch a base for it")]
    Fetch(#[from] FetchError),
    /// A page did not come out as it was stored.
    #[error("rebuild its pages")]
    Rebuild(#[from] RebuildError),
    /// There is no place for CRIU's files.
    #[error("make a folder for its images")]
    Folder(#[source] io::Error),
    /// CRIU's files could not be laid out.
    #[error("lay out its images")]
    Unpack(#[from] UnpackError),
    /// CRIU's files make no sense.
    #[error("read its images")]
    Images(#[from] ReadImagesError),
    /// No CRIU.
    #[error("restore it")]
    Worker(#[from] TakeWorkerError),
    /// Its log cannot be joined to its new processes.
    #[error("join its log to its new processes")]
    MoveIn(#[source] io::Error),
    /// CRIU failed.
    #[error("restore it")]
    Criu(#[from] criu::RestoreError),
    /// Its processes cannot be watched.
    #[error("take over its processes")]
    Adopt(#[from] AdoptError),
    /// Its memory could not be hashed as asked.
    #[error("hash its memory")]
    Digest(#[from] DigestError),
    /// Its memory could not be given to the pager.
    #[error("serve its memory as it is touched")]
    Bring(#[from] ParkError),
    /// It could not be let run.
    #[error("let it run")]
    Resume(#[from] tree::TreeError),
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl RestoreError {
    /// What kind of failure it is for the controller.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Open(_) | Self::Rebuild(_) | Self::Sections(_) => FailureKind::Corrupt,
            Self::Fetch(error) => error.kind(),
            Self::Bases(_) => FailureKind::BaseLost,
            Self::Folder(source) | Self::Unpack(UnpackError::Write { source, .. })
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                FailureKind::NoSpace
            }
            _ => FailureKind::RestoreFailed,
        }
    }

    /// As the controller hears of it.
    pub fn failure(&self, sandbox: SandboxId) -> Failure {
        let mut failure = Failure::from_error(self.kind(), self);
        failure.message = format!("restore {sandbox}: {}", failure.message);
        failure
    }

    /// The node that did not deliver a base, if it is that: another may hold it, too.
    const fn holder(&self) -> Option<&NodeId> {
        match self {
            Self::Bases(ReadBasesError::Remote { node, .. }) => Some(node),
            Self::Fetch(error) => error.holder(),
            _ => None,
        }
    }
}

/// A restore that did not work. What is left of the sandbox is only good for removal.
pub struct NotRestored {
    /// Its housing; a process of half a restore may still be in it.
    pub housing: Housing,
    /// Why.
    pub error: RestoreError,
}

impl fmt::Debug for NotRestored {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NotRestored").field("error", &self.error).finish_non_exhaustive()
    }
}

/// Gives a sandbox its memory and its processes back.
pub async fn restore(
    roads: &Roads,
    stored: Stored,
    digest_memory: bool,
) -> Result<(Warm, Restored), Box<NotRestored>> {
    restore_with(roads, stored, (digest_memory, roads.late_restores.clone())).await
}

/// The same. `late`: what gives its memory back as it is touched, if that is to be so and can be.
pub(crate) async fn restore_with(
    roads: &Roads,
    stored: Stored,
    (digest_memory, late): (bool, Option<Pager>),
) -> Result<(Warm, Restored), Box<NotRestored>> {
    let Stored { spec, mut housing, image, mut origin, tracked, learnt } = stored;
    let engine = match roads.engine(&spec.tenant) {
        Ok(engine) => engine,
        Err(error) => return Err(Box::new(NotRestored { housing, error: error.into() })),
    };
    let mut watch = Stopwatch::start();
    let key = engine.key().clone();
    let opened = async {
        roads.faults.pass(Step::Open)?;
        let image = blocking(move || DedupImage::open(image, &key)).await?;
        watch.step("open");
        roads.faults.pass(Step::ReadBack)?;
        let bases = read_bases(roads, &spec.tenant, &image, &origin.places).await?;
        watch.step("read_bases");
        let folder = Folder::create(housing.work_dir().join("restore")).map_err(RestoreError::Folder)?;
        let named = image.bases().to_vec();
        // What is hashed must be there.
        let late = late.filter(|_| !digest_memory).zip(bases.whole());
        let laid = match late {
            Some((pager, whole)) => {
                let laid = late::lay_out(engine.threads, image, (bases, whole, learnt.clone()), folder).await;
                laid.map(|(laid, missing)| (laid, missing.image.clone(), Some((pager, missing))))
            }
            None => {
                let laid = lay_out(engine.threads, image, bases, folder).await;
                laid.map(|(laid, image)| (laid, Arc::new(image), None))
            }
        };
        let (laid, image, missing) = laid.inspect_err(|error| {
            if matches!(error, RestoreError::Rebuild(_)) {
                named.iter().for_each(|base| roads.bases.distrust(*base));
            }
        })?;
        if !laid.files.is_empty() {
            origin.files.clone_from(&laid.files);
        } else if origin.files.is_empty() {
            // A clone: its image came without.
            origin.files = ImageSet::read(laid.folder.path())?.pages;
        }
        roads.faults.pass(Step::Rebuild)?;
        watch.step("rebuild");
        Ok((laid, image, missing))
    };
    let restored = match opened.await {
        Ok((laid, image, missing)) => {
            let revived = revive(roads, &mut housing, laid, (digest_memory, missing), &mut watch).await;
            revived.map(|revived| (revived, image))
        }
        Err(error) => Err(error),
    };
    match restored {
        Ok((Revived { tree, memory_digest, paged }, image)) => {
            let in_place = paged.is_some();
            let restored = Restored { phases: watch.phases(), memory_digest, in_place };
            // Never to be restored again: only to tell what has changed since.
            let past = Past { tracked, earlier: Earlier::keep(&roads.earlier, image, origin), learnt };
            Ok((Warm { spec, housing, tree, past, paged }, restored))
        }
        Err(error) => Err(Box::new(NotRestored { housing, error })),
    }
}

/// Reads what the image's pages are made of, from where it was when the image was made; if a node does not deliver, from whoever the
/// controller says holds it now.
pub(crate) async fn read_bases(
    roads: &Roads,
    tenant: &TenantName,
    image: &DedupImage<MappedFile>,
    places: &BTreeMap<SnapshotId, SnapshotPlace>,
) -> Result<HeldPages, RestoreError> {
    let mut places = places.clone();
    let mut silent = BTreeSet::new();
    loop {
        let error = match read_from(roads, tenant, image, &places).await {
            Ok(bases) => return Ok(bases),
            Err(error) => error,
        };
        // Each turn leaves one more address out: it ends. An agent that took over from another one of its node is at a new one.
        let Some(holder) = error.holder().cloned() else { return Err(error) };
        let before = silent.len();
        silent
            .extend(places.values().filter(|place| place.node == holder).map(|place| place.address.clone()));
        if silent.len() == before || silent.len() > HOLDERS_MAX {
            return Err(error);
        }
        let located = match roads.registry.locate(image.bases()).await {
            Ok(located) => located,
            Err(unknown) => {
                tracing::warn!(%holder, error = &unknown as &dyn std::error::Error, "ask who else holds a base");
                return Err(error);
            }
        };
        for (snapshot, place) in &mut places {
            if silent.contains(&place.address) {
                let other =
                    located.iter().find(|one| one.snapshot == *snapshot && !silent.contains(&one.address));
                let Some(other) = other else { return Err(error) };
                tracing::info!(%snapshot, %holder, instead = %other.node, address = other.address, "a base is read from elsewhere");
                *place = other.clone();
            }
        }
    }
}

/// Reads what the image's pages are made of. Most bases are here as a whole, or are wanted so; of others only what is needed.
async fn read_from(
    roads: &Roads,
    tenant: &TenantName,
    image: &DedupImage<MappedFile>,
    places: &BTreeMap<SnapshotId, SnapshotPlace>,
) -> Result<HeldPages, RestoreError> {
    let mut whole = Vec::new();
    for snapshot in image.facts_needed() {
        let place = places.get(&snapshot).ok_or(ReadBasesError::Unknown(snapshot))?;
        whole.push(roads.bases.whole(place, tenant).await?);
    }
    let wanted: Vec<BasePage> = image.reads().iter().map(|read| read.base).collect();
    let mut bases = roads.bases.read(&wanted, places).await?;
    whole.into_iter().for_each(|snapshot| bases.hold(snapshot));
    Ok(bases)
}

/// What CRIU reads, laid out.
#[derive(Debug)]
pub(crate) struct LaidOut {
    /// Where.
    pub(crate) folder: Folder,
    /// Memory that the kernel changes by itself.
    pub(crate) masks: Vec<Mask>,
    /// The pipe its output went to, as CRIU's files name it.
    pub(crate) pipe: String,
    /// Whose pages the image has and where they were, in the order of its pages; empty if nobody had to look.
    pub(crate) files: Vec<PagesFile>,
}

/// A sandbox with its processes.
struct Revived {
    tree: Tree,
    memory_digest: Option<[u8; 32]>,
    /// What serves its missing pages, if it came back late.
    paged: Option<Paged>,
}

/// Rebuilds every page where CRIU will read it.
pub(crate) async fn lay_out(
    threads: NonZeroUsize,
    image: DedupImage<MappedFile>,
    bases: HeldPages,
    folder: Folder,
) -> Result<(LaidOut, DedupImage<MappedFile>), RestoreError> {
    blocking(move || {
        let mut laid = skeleton::unpack(&image.sections()?, image.pages(), folder.path())?;
        let mut pages: Vec<&mut Page> =
            laid.pages.iter_mut().flat_map(|file| file.as_mut().as_chunks_mut::<PAGE_BYTES>().0).collect();
        page_work::rebuild(&image, &bases, &mut pages, threads)?;
        Ok((LaidOut { folder, masks: laid.masks, pipe: laid.pipe, files: Vec::new() }, image))
    })
    .await
}

/// Has CRIU make the processes. They run when this returns.
async fn revive(
    roads: &Roads,
    housing: &mut Housing,
    LaidOut { folder, masks, pipe, .. }: LaidOut,
    (digest_memory, missing): (bool, Option<(Pager, Missing)>),
    watch: &mut Stopwatch,
) -> Result<Revived, RestoreError> {
    let (worker, intake) = roads.pool.take(roads.limits.worker).await?;
    watch.step("worker");
    roads.faults.pass(Step::CriuRestore)?;
    // Named as in the images: a clone's own pipe was never the one of the sandbox it is a clone of.
    let inherited = housing.move_in(intake).map_err(RestoreError::MoveIn)?;
    let inherited: Vec<_> = inherited.into_iter().map(|(_, end)| (pipe.clone(), end)).collect();
    let request = RestoreRequest {
        images: folder.path(),
        root: housing.root(),
        mounts: housing.external_mounts(),
        cgroup_procs: &housing.cgroup().procs_files(),
        inherited: &inherited,
        leave_stopped: digest_memory || missing.is_some(),
        timeout: roads.limits.criu,
        verbose: false,
    };
    let restored = criu::restore(worker, &roads.reaper, &request).await?;
    watch.step("criu");
    let tree = housing.adopt(restored.pid)?;
    roads.faults.pass(Step::Resume)?;
    if let Some((pager, missing)) = missing {
        let paged = pager::bring(&pager, housing.cgroup(), missing, roads.faults.clone()).await?;
        watch.step("bring");
        paged.push_to_stopped().await;
        watch.step("push");
        tree::resume(restored.pid)?;
        return Ok(Revived { tree, memory_digest: None, paged: Some(paged) });
    }
    if !digest_memory {
        return Ok(Revived { tree, memory_digest: None, paged: None });
    }
    let pids: Vec<i32> = tree::members(restored.pid)?.into_iter().map(nix::unistd::Pid::as_raw).collect();
    let memory = blocking(move || digest(&pids, &masks)).await?;
    watch.step("digest");
    tree::resume(restored.pid)?;
    Ok(Revived { tree, memory_digest: Some(memory), paged: None })
}
