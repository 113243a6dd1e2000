//! The road of a clone: an init snapshot becomes one more sandbox of its function.
//!
//! ```text
//! snapshot, here or fetched ─► its image ─► a new housing with the first sandbox's files ─► restored ─► told who it is
//! ```
//!
//! Nothing is lost when it fails: what is left is removed by the caller, and the request gets a cold start.

use std::{collections::BTreeMap, fmt, io, sync::Arc};

use medes_dedup::image::{DedupImage, OpenImageError, ReadSectionsError};
use medes_proto::{
    failure::{Failure, FailureKind},
    function::FunctionSpec,
    ids::SandboxId,
    registry::SnapshotPlace,
    sandbox::Phase,
};

use crate::{
    bases::{local::Snapshot, replicas::FetchError},
    earlier::Origin,
    faults::{Injected, Step},
    init::{self, HookError},
    restore::{self, RestoreError},
    roads::{NoEngine, Roads, Stopwatch, Stored, Warm, blocking},
    sandbox::{self, CreateError, Host, Housing, LaunchSpec},
};

/// Why there is no clone.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// The snapshot is not to be had.
    #[error("fetch the init snapshot")]
    Fetch(#[from] FetchError),
    /// No sandbox may be made of it.
    #[error("the snapshot is not one that sandboxes are made of")]
    NotClonable,
    /// Its image is not what was stored.
    #[error("open the image of the init snapshot")]
    Open(#[from] OpenImageError),
    /// Its image cannot be read.
    #[error("read the image of the init snapshot")]
    Sections(#[from] ReadSectionsError),
    /// There is no housing for it.
    #[error("make a housing")]
    Create(#[from] CreateError),
    /// The private files could not be put there.
    #[error("unpack the private files")]
    Files(#[source] io::Error),
    /// It was not restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// It did not answer when it was told who it is.
    #[error("tell the clone who it is")]
    Hook(#[from] HookError),
}

impl CloneError {
    /// As the controller hears of it.
    pub fn failure(&self, sandbox: SandboxId) -> Failure {
        let kind = match self {
            Self::Fetch(error) => error.kind(),
            Self::Open(_) | Self::Sections(_) => FailureKind::Corrupt,
            Self::Restore(error) => error.kind(),
            Self::Files(source) if source.kind() == io::ErrorKind::StorageFull => FailureKind::NoSpace,
            // Says nothing of the snapshot: another node, or the same one later, may do better.
            Self::NoEngine(_) | Self::Create(_) => FailureKind::Internal,
            _ => FailureKind::RestoreFailed,
        };
        let mut failure = Failure::from_error(kind, self);
        failure.message = format!("clone {sandbox}: {}", failure.message);
        failure
    }
}

/// A clone that did not come about.
pub struct NotCloned {
    /// What is left of it, only good for removal.
    pub housing: Option<Housing>,
    /// Why.
    pub error: CloneError,
}

impl fmt::Debug for NotCloned {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NotCloned").field("error", &self.error).finish_non_exhaustive()
    }
}

/// Makes a new sandbox of a function's init snapshot.
pub async fn clone(
    roads: &Roads,
    (host, launch): (&Host, &LaunchSpec),
    (sandbox, spec): (SandboxId, Arc<FunctionSpec>),
    place: &SnapshotPlace,
) -> Result<(Warm, Vec<Phase>), Box<NotCloned>> {
    let nothing_left = |error| Box::new(NotCloned { housing: None, error });
    let mut watch = Stopwatch::start();
    let source = source(roads, &spec, place).await.map_err(nothing_left)?;
    watch.step("source");
    let id = sandbox::SandboxId::new(sandbox.to_string()).map_err(CreateError::from);
    let id = id.map_err(|error| nothing_left(error.into()))?;
    let housing = Housing::create(host, &id, launch).await.map_err(|error| nothing_left(error.into()))?;
    let Source { snapshot, image, sections, hooks } = source;
    let folder = housing.private_dir().to_owned();
    let unpacked = blocking(move || init::unpack_files(&sections, &folder)).await;
    if let Err(error) = unpacked.and_then(|()| housing.number(sandbox.get())) {
        return Err(Box::new(NotCloned { housing: Some(housing), error: CloneError::Files(error) }));
    }
    watch.step("house");
    let mut phases = watch.phases();
    let places = BTreeMap::from([(place.snapshot, place.clone())]);
    let origin = Origin { places, files: Vec::new(), aligned_with: None };
    let learnt = snapshot.init().map(|init| init.touched.learnt()).unwrap_or_default();
    let stored = Stored { spec, housing, image, origin, tracked: None, learnt };
    let late = roads.late_clones.clone();
    let (warm, restored) = match restore::restore_with(roads, stored, (false, late)).await {
        Ok(restored) => restored,
        Err(not) => {
            let restore::NotRestored { housing, error } = *not;
            return Err(Box::new(NotCloned { housing: Some(housing), error: error.into() }));
        }
    };
    phases.extend(restored.phases);
    if let (Some(init), Some(paged)) = (snapshot.init(), &warm.paged) {
        paged.goes_to(&init.touched);
    }
    let mut watch = Stopwatch::start();
    if let Err(error) = init::tell_restored(&warm.housing, hooks, sandbox).await {
        return Err(Box::new(NotCloned { housing: Some(warm.housing), error: error.into() }));
    }
    watch.step("hook");
    phases.extend(watch.phases());
    Ok((warm, phases))
}

/// What a clone is made of, besides pages.
struct Source {
    snapshot: Arc<Snapshot>,
    image: crate::memory_file::MappedFile,
    sections: medes_dedup::image::Sections,
    hooks: init::Hooks,
}

async fn source(roads: &Roads, spec: &FunctionSpec, place: &SnapshotPlace) -> Result<Source, CloneError> {
    roads.faults.pass(Step::Clone)?;
    let engine = roads.engine(&spec.tenant)?;
    let snapshot = roads.bases.whole(place, &spec.tenant).await?;
    if snapshot.function != spec.name {
        return Err(CloneError::NotClonable);
    }
    let image = snapshot.init().and_then(|init| init.image.clone()).ok_or(CloneError::NotClonable)?;
    let opened = image.clone();
    blocking(move || {
        let sections = DedupImage::open(opened, engine.key())?.sections()?;
        let hooks = init::hooks(&sections).ok_or(CloneError::NotClonable)?;
        Ok(Source { snapshot, image, sections, hooks })
    })
    .await
}
