//! A base snapshot of a warm sandbox: the same dump, copied into a sealed memory file, told to the registry.
//!
//! The sandbox runs on (the paper's way, section 4.1.3). Of one that has served requests only the pages are wanted; of one that
//! has just become ready ([`make_init`]) the rest is kept as well: new sandboxes are made of it.

use std::{io, sync::Arc};

use medes_dedup::fingerprint::Fingerprint;
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{InitState, Level, SnapshotReport},
    ids::{SandboxId, SnapshotId},
    layout::ProcessLayout,
    limits::CLONE_BYTES_MAX,
    sandbox::Phase,
};

use crate::{
    bases::local::{Init, Snapshot},
    criu::{Leave, tree},
    dump::{self, Dump, DumpSandboxError},
    engine::Engine,
    init::{self, Besides, InitImageError},
    memory_file::{MappedFile, MemoryFile},
    page_work, private_files,
    registry::RegistryError,
    roads::{NoEngine, Roads, Stopwatch, Warm, blocking},
};

/// Private files of more bytes do not compress so well that an image for clones could have them.
const PACKED_BYTES_MAX: usize = CLONE_BYTES_MAX.saturating_mul(4);

/// Why there is no base snapshot. The sandbox is warm as before.
#[derive(Debug, thiserror::Error)]
pub enum MakeBaseError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// No dump.
    #[error(transparent)]
    Dump(#[from] DumpSandboxError),
    /// There was no memory for the pages.
    #[error("keep its pages")]
    Keep(#[source] io::Error),
    /// More pages than a snapshot can have.
    #[error("it has {bytes} bytes of pages, more than a snapshot can hold")]
    TooLarge {
        /// Its pages in bytes.
        bytes: u64,
    },
    /// The registry did not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl MakeBaseError {
    /// As the controller hears of it.
    pub fn failure(&self, sandbox: SandboxId) -> Failure {
        let kind = match self {
            Self::Dump(error) => error.kind(),
            Self::Keep(source) if source.kind() == io::ErrorKind::StorageFull => FailureKind::NoSpace,
            _ => FailureKind::DedupFailed,
        };
        let mut failure = Failure::from_error(kind, self);
        failure.message = format!("make a base of {sandbox}: {}", failure.message);
        failure
    }
}

/// Makes base snapshot `id` of a warm sandbox. From the moment this returns other nodes may read it.
pub async fn make_base(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    id: SnapshotId,
) -> Result<(SnapshotReport, Vec<Phase>), MakeBaseError> {
    let engine = roads.engine(&warm.spec.tenant)?;
    let mut watch = Stopwatch::start();
    warm.past.end_tracking().await;
    let dump = take(roads, sandbox, warm, Leave::Running).await?;
    watch.step("dump");
    let (snapshot, _dump, _order) = snapshot(id, warm, dump).await?;
    watch.step("copy");
    publish(roads, engine, snapshot, watch).await
}

/// The same of a sandbox that has become ready and has served no request yet: new sandboxes can be made of it, if its program agrees.
///
/// It stands still a little longer, while its private files are read: they have to go with its memory.
pub async fn make_init(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    (id, revision): (SnapshotId, u64),
) -> Result<(SnapshotReport, Vec<Phase>), MakeBaseError> {
    let engine = roads.engine(&warm.spec.tenant)?;
    let mut watch = Stopwatch::start();
    let hooks = init::ask(&warm.housing, warm.spec.start).await.unwrap_or_else(|error| {
        tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "no clones of its init snapshot");
        None
    });
    watch.step("hook");
    warm.past.end_tracking().await;
    let (dump, files) = take_whole(roads, sandbox, warm).await?;
    watch.step("dump");
    let (snapshot, dump, order) = snapshot(id, warm, dump).await?;
    watch.step("copy");
    let (encoding, of) = (engine.clone(), snapshot.clone());
    let made = blocking(move || {
        let besides = Besides { hooks: hooks?, files: files? };
        Some(init::image(&dump, (&of, &order), (&encoding, encoding.key()), besides))
    });
    let image = made.await.and_then(|made| {
        let failed = |error: &InitImageError| {
            tracing::warn!(%sandbox, error = error as &dyn std::error::Error, "no clones of its init snapshot");
        };
        made.inspect_err(failed).ok()
    });
    snapshot.is_init(Init::new(revision, image));
    watch.step("skeleton");
    publish(roads, engine, snapshot, watch).await
}

/// A dump; what CRIU may have left half done is ended.
async fn take(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    leave: Leave,
) -> Result<Dump, DumpSandboxError> {
    let taken = Dump::take(roads, warm, leave).await;
    if taken.as_ref().is_err_and(DumpSandboxError::leaves_doubt) {
        dump::end_doubtful(sandbox, warm).await;
    }
    taken
}

/// A dump and the private files that go with it. The sandbox runs again.
async fn take_whole(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
) -> Result<(Dump, Option<Vec<u8>>), MakeBaseError> {
    let dump = take(roads, sandbox, warm, Leave::Stopped).await;
    if dump.as_ref().is_err_and(DumpSandboxError::leaves_doubt) {
        return Ok((dump?, None));
    }
    let folder = warm.housing.private_dir().to_owned();
    let files = match dump.is_ok() {
        true => blocking(move || private_files::pack(&folder, PACKED_BYTES_MAX)).await.inspect_err(|error| {
            tracing::warn!(%sandbox, %error, "its private files are not read: no clones of it");
        }),
        false => Ok(Vec::new()),
    };
    if let Err(error) = tree::resume(warm.tree.pid()) {
        tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "resume after an init snapshot");
    }
    Ok((dump?, files.ok()))
}

/// The snapshot of a dump, the dump, and its files in the order of the snapshot's pages.
async fn snapshot(
    id: SnapshotId,
    warm: &Warm,
    dump: Dump,
) -> Result<(Arc<Snapshot>, Dump, Vec<usize>), MakeBaseError> {
    let (copied, dump) = blocking(move || (copy(&dump), dump)).await;
    let Copied { bytes, processes, order } = copied.map_err(MakeBaseError::Keep)?;
    let too_large = MakeBaseError::TooLarge { bytes: bytes.len() as u64 };
    let (function, tenant) = (warm.spec.name.clone(), warm.spec.tenant.clone());
    let snapshot = Snapshot::new(id, function, tenant, bytes, processes).ok_or(too_large)?;
    Ok((Arc::new(snapshot), dump, order))
}

/// Takes it in and tells of it.
async fn publish(
    roads: &Roads,
    engine: Engine,
    snapshot: Arc<Snapshot>,
    mut watch: Stopwatch,
) -> Result<(SnapshotReport, Vec<Phase>), MakeBaseError> {
    let id = snapshot.id;
    let aligned = engine.level() != Level::None;
    let fingerprints = fingerprint(snapshot.clone(), engine).await;
    watch.step("fingerprint");
    if aligned {
        // Else the first sandbox to be stored with it would wait for this, or the first one to come back.
        let studied = snapshot.clone();
        blocking(move || studied.facts().memory_bytes()).await;
        watch.step("study");
    }
    // Here first, there second: whoever hears of it can read it.
    roads.bases.local.insert(snapshot.clone());
    if let Err(error) = roads.registry.register(id, &fingerprints).await {
        roads.bases.local.remove(id);
        return Err(error.into());
    }
    watch.step("register");
    Ok((report(&snapshot), watch.phases()))
}

/// A snapshot as the controller hears of it.
pub fn report(snapshot: &Snapshot) -> SnapshotReport {
    SnapshotReport {
        id: snapshot.id,
        function: snapshot.function.clone(),
        pages: snapshot.page_count().into(),
        bytes: snapshot.len_bytes(),
        init: snapshot
            .init()
            .map(|Init { revision, image, .. }| InitState { revision: *revision, clonable: image.is_some() }),
    }
}

/// Tells the registry of every base of this node once more. It lives in the controller's memory: that of a new
/// controller is empty, and one that had given this node up has forgotten its bases. What it knows, it passes over.
///
/// Cancel-safe. A base that could not be told of is only not found; images that refer to it do not need the registry.
pub async fn register_again(roads: Arc<Roads>) {
    for snapshot in roads.bases.local.all() {
        // Whose key is not here finds nothing here either.
        let Ok(engine) = roads.engine(&snapshot.tenant) else { continue };
        let id = snapshot.id;
        let fingerprints = fingerprint(snapshot, engine).await;
        match roads.registry.register(id, &fingerprints).await {
            Ok(()) => tracing::info!(snapshot = %id, pages = fingerprints.len(), "base registered again"),
            Err(error) => {
                tracing::warn!(snapshot = %id, error = &error as &dyn std::error::Error, "base not registered again");
            }
        }
    }
}

async fn fingerprint(snapshot: Arc<Snapshot>, engine: Engine) -> Vec<Fingerprint> {
    blocking(move || {
        let fingerprinter = engine.fingerprinter();
        let pages: Vec<_> = snapshot.pages().collect();
        page_work::fingerprint(&pages, &fingerprinter, engine.threads)
    })
    .await
}

/// The pages of a dump, as a snapshot has them.
struct Copied {
    bytes: MappedFile,
    processes: Vec<ProcessLayout>,
    /// The dump's files, in the order in which they were copied.
    order: Vec<usize>,
}

/// Processes first, and the one with most pages before the others.
fn copy(dump: &Dump) -> io::Result<Copied> {
    use io::Write;
    let processes = dump.processes().unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "a base without a layout: no sandbox can be aligned with it");
        Vec::new()
    });
    let of_processes: Vec<usize> = processes.iter().map(|(file, _)| *file).collect();
    let others = (0..dump.files().len()).filter(|file| !of_processes.contains(file));
    let order: Vec<usize> = of_processes.iter().copied().chain(others).collect();
    let mut file = MemoryFile::create("medes-base")?;
    for &at in &order {
        file.write_all(dump.files()[at].as_ref())?;
    }
    let processes = processes.into_iter().map(|(_, layout)| layout).collect();
    Ok(Copied { bytes: file.seal()?, processes, order })
}
