//! A base snapshot of a warm sandbox: the same dump, copied into a sealed memory file, told to the registry.
//!
//! The sandbox runs on (the paper's way, section 4.1.3): only its pages are wanted, the skeleton is thrown away.

use std::{io, sync::Arc};

use medes_dedup::fingerprint::Fingerprint;
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::{Level, SnapshotReport},
    ids::{SandboxId, SnapshotId},
    layout::ProcessLayout,
    sandbox::Phase,
};

use crate::{
    bases::local::Snapshot,
    criu::Leave,
    dump::{self, Dump, DumpSandboxError},
    engine::Engine,
    memory_file::{MappedFile, MemoryFile},
    page_work,
    registry::RegistryError,
    roads::{NotWelcomed, Roads, Stopwatch, Warm, blocking},
};

/// Why there is no base snapshot. The sandbox is warm as before.
#[derive(Debug, thiserror::Error)]
pub enum MakeBaseError {
    /// No key and no settings yet.
    #[error(transparent)]
    NotWelcomed(#[from] NotWelcomed),
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
    let engine = roads.engine()?;
    let mut watch = Stopwatch::start();
    warm.past.end_tracking().await;
    let dump = match Dump::take(roads, warm, Leave::Running).await {
        Err(error) if error.leaves_doubt() => {
            dump::end_doubtful(sandbox, warm).await;
            return Err(error.into());
        }
        taken => taken?,
    };
    watch.step("dump");
    let (bytes, processes) = blocking(move || copy(&dump)).await.map_err(MakeBaseError::Keep)?;
    let too_large = MakeBaseError::TooLarge { bytes: bytes.len() as u64 };
    let (function, tenant) = (warm.spec.name.clone(), warm.spec.tenant.clone());
    let snapshot = Arc::new(Snapshot::new(id, function, tenant, bytes, processes).ok_or(too_large)?);
    watch.step("copy");
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
    }
}

/// Tells the registry of every base of this node once more. It lives in the controller's memory: that of a new
/// controller is empty, and one that had given this node up has forgotten its bases. What it knows, it passes over.
///
/// Cancel-safe. A base that could not be told of is only not found; images that refer to it do not need the registry.
pub async fn register_again(roads: Arc<Roads>) {
    for snapshot in roads.bases.local.all() {
        let Ok(engine) = roads.engine() else { return };
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
        let fingerprinter = engine.fingerprinter(&engine.key(&snapshot.tenant));
        let pages: Vec<_> = snapshot.pages().collect();
        page_work::fingerprint(&pages, &fingerprinter, engine.threads)
    })
    .await
}

/// The pages, processes first and the one with most pages before the others, as a snapshot has them.
fn copy(dump: &Dump) -> io::Result<(MappedFile, Vec<ProcessLayout>)> {
    use io::Write;
    let processes = dump.processes().unwrap_or_else(|error| {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "a base without a layout: no sandbox can be aligned with it");
        Vec::new()
    });
    let of_processes: Vec<usize> = processes.iter().map(|(file, _)| *file).collect();
    let others = (0..dump.files().len()).filter(|file| !of_processes.contains(file));
    let mut file = MemoryFile::create("medes-base")?;
    for at in of_processes.iter().copied().chain(others) {
        file.write_all(dump.files()[at].as_ref())?;
    }
    Ok((file.seal()?, processes.into_iter().map(|(_, layout)| layout).collect()))
}
