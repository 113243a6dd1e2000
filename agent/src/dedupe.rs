//! The road away: a warm sandbox becomes a dedup image, and its memory is given back.
//!
//! ```text
//! sandbox ─► dump ─► pages ─► fingerprint ─► registry lookup ─► read base pages ─► delta ─► image
//!         ─► sealed, opened again, every base acquired ─► only now are the processes ended
//! ```
//!
//! Until the last step nothing is lost: after any failure the sandbox is resumed and warm as before.

use std::{collections::BTreeMap, fmt, io, io::Write, sync::Arc};

use medes_dedup::{
    candidate::{self, FanOut},
    fingerprint::Fingerprint,
    image::{BuildImageError, DedupImage, ImageBuilder, OpenImageError},
    key::DomainKey,
    page::{BasePage, SnapshotId},
};
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NodeId, SandboxId, TenantName},
    registry::{Hint, SnapshotPlace},
    sandbox::PageClasses,
};

use crate::{
    bases::{BasePages, ReadBasesError},
    criu::{Leave, tree},
    digest::{DigestError, digest},
    driver::Deduped,
    dump::{self, Dump, DumpSandboxError},
    engine::Engine,
    faults::{Injected, Step},
    memory_file::{MappedFile, MemoryFile},
    page_work::{self, MissingBasePage},
    registry::{Hints, RegistryError},
    roads::{NotWelcomed, Roads, Stopwatch, Stored, Warm, blocking},
    skeleton::{self, PackError},
};

/// Why a sandbox was not deduplicated.
#[derive(Debug, thiserror::Error)]
pub enum DedupError {
    /// No key and no settings yet.
    #[error(transparent)]
    NotWelcomed(#[from] NotWelcomed),
    /// No dump.
    #[error(transparent)]
    Dump(#[from] DumpSandboxError),
    /// Its memory could not be hashed as asked.
    #[error("hash its memory")]
    Digest(#[from] DigestError),
    /// Not all of its processes could be found, so a hash would prove nothing.
    #[error("find all its processes")]
    Members(#[from] tree::TreeError),
    /// No candidates, or the bases could not be acquired.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Base pages could not be read.
    #[error("read base pages for it")]
    Bases(#[from] ReadBasesError),
    /// A base page that was chosen was not read.
    #[error("encode its pages")]
    Encode(#[from] MissingBasePage),
    /// The image has more of something than an image may have.
    #[error("build its dedup image")]
    Build(#[from] BuildImageError),
    /// The skeleton could not be kept.
    #[error("keep its skeleton")]
    Skeleton(#[from] PackError),
    /// There was no memory for the image.
    #[error("keep its dedup image")]
    Seal(#[source] io::Error),
    /// The image just made does not open.
    #[error("open its dedup image again")]
    Reopen(#[from] OpenImageError),
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl DedupError {
    /// As the controller hears of it.
    pub fn failure(&self, sandbox: SandboxId) -> Failure {
        let kind = match self {
            Self::Dump(error) => error.kind(),
            Self::Seal(source) if source.kind() == io::ErrorKind::StorageFull => FailureKind::NoSpace,
            Self::Bases(_) => FailureKind::BaseLost,
            _ => FailureKind::DedupFailed,
        };
        let mut failure = Failure::from_error(kind, self);
        failure.message = format!("dedup {sandbox}: {}", failure.message);
        failure
    }
}

/// A dedup that did not work, and the sandbox as it was.
pub struct NotDeduped {
    /// Warm, and running again (unless its processes ended meanwhile, which their watcher tells).
    pub warm: Warm,
    /// Why.
    pub error: DedupError,
}

impl fmt::Debug for NotDeduped {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NotDeduped").field("error", &self.error).finish_non_exhaustive()
    }
}

/// Takes the memory of an idle sandbox.
///
/// Dropping the future ends nothing by itself: the sandbox may stay stopped. Only a node that is going down,
/// and its sandboxes with it, does so.
pub async fn dedup(
    roads: &Roads,
    sandbox: SandboxId,
    warm: Warm,
    digest_memory: bool,
) -> Result<(Stored, Deduped), Box<NotDeduped>> {
    match make_image(roads, sandbox, &warm, digest_memory).await {
        Ok(made) => Ok(give_back(warm, made).await),
        Err(error) => {
            match &error {
                DedupError::Dump(dump) if dump.leaves_doubt() => dump::end_doubtful(sandbox, &warm).await,
                _ => resume(sandbox, &warm),
            }
            Err(Box::new(NotDeduped { warm, error }))
        }
    }
}

fn resume(sandbox: SandboxId, warm: &Warm) {
    if let Err(error) = tree::resume(warm.tree.pid()) {
        tracing::warn!(%sandbox, error = &error as &dyn std::error::Error, "resume after a failed dedup");
    }
}

/// An image that is complete, checked and referenced.
struct Made {
    image: MappedFile,
    places: BTreeMap<SnapshotId, SnapshotPlace>,
    deduped: Deduped,
    watch: Stopwatch,
}

async fn make_image(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    digest_memory: bool,
) -> Result<Made, DedupError> {
    let engine = roads.engine()?;
    let mut watch = Stopwatch::start();
    let dump = Arc::new(Dump::take(roads, warm, Leave::Stopped).await?);
    watch.step("dump");
    let mut memory_digest = None;
    if digest_memory {
        memory_digest = Some(digest_stopped(warm, &dump).await?);
        watch.step("digest");
    }
    let fingerprints = fingerprint(&dump, &engine, &warm.spec.tenant).await;
    watch.step("fingerprint");
    roads.faults.pass(Step::Lookup)?;
    let hints = roads.registry.lookup(sandbox, &fingerprints).await?;
    watch.step("lookup");
    let choices = choose(&hints, roads.bases.node(), &engine);
    let mut wanted: Vec<BasePage> = choices.iter().flatten().copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    roads.faults.pass(Step::ReadBases)?;
    let bases = roads.bases.read(&wanted, &hints.places).await?;
    watch.step("read_bases");
    let (key, bytes) = encode(dump, engine, &warm.spec.tenant, choices, bases).await?;
    roads.faults.pass(Step::Encode)?;
    watch.step("encode");
    let image = seal(&bytes).map_err(DedupError::Seal)?;
    drop(bytes);
    // Opening checks the sealed bytes from end to end, as a restore will.
    let opened = DedupImage::open(image.as_ref(), &key)?;
    let (bases, classes, image_bytes) = (opened.bases().to_vec(), opened.classes(), opened.stored_bytes());
    drop(opened);
    roads.faults.pass(Step::Seal)?;
    watch.step("seal");
    roads.registry.acquire(sandbox, &bases).await?;
    roads.faults.pass(Step::Acquire)?;
    watch.step("acquire");
    let places = hints.places.into_iter().filter(|(snapshot, _)| bases.contains(snapshot)).collect();
    let deduped = Deduped {
        stored_bytes: image_bytes,
        bases,
        pages: PageClasses {
            zero: classes.zero.into(),
            same: classes.same.into(),
            delta: classes.delta.into(),
            whole: classes.whole.into(),
        },
        phases: Vec::new(),
        memory_digest,
    };
    Ok(Made { image, places, deduped, watch })
}

/// The point of no return: ends the processes. What they wrote to /tmp stays, and counts as stored.
async fn give_back(warm: Warm, made: Made) -> (Stored, Deduped) {
    let Warm { spec, housing, tree } = warm;
    let Made { image, places, mut deduped, mut watch } = made;
    if let Err(error) = tree.kill().await {
        // It is stopped and will not run again; the housing's removal tries once more.
        tracing::error!(error = &error as &dyn std::error::Error, "processes of a deduplicated sandbox stay");
    }
    watch.step("end");
    deduped.stored_bytes += housing.private_bytes();
    deduped.phases = watch.phases();
    (Stored { spec, housing, image, places }, deduped)
}

async fn digest_stopped(warm: &Warm, dump: &Arc<Dump>) -> Result<[u8; 32], DedupError> {
    let pids: Vec<i32> = tree::members(warm.tree.pid())?.into_iter().map(nix::unistd::Pid::as_raw).collect();
    let dump = dump.clone();
    Ok(blocking(move || digest(&pids, &dump.masks())).await?)
}

async fn fingerprint(dump: &Arc<Dump>, engine: &Engine, tenant: &TenantName) -> Vec<Fingerprint> {
    let fingerprinter = engine.fingerprinter(&engine.key(tenant));
    let (dump, threads) = (dump.clone(), engine.threads);
    blocking(move || page_work::fingerprint(&dump.pages(), &fingerprinter, threads)).await
}

/// The base pages to try for each page, within what one image may depend on.
fn choose(hints: &Hints, local: &NodeId, engine: &Engine) -> Vec<Vec<BasePage>> {
    // The engine knows nodes by number: this node is 0, the others follow in the order of their names.
    let mut nodes: Vec<&NodeId> = hints.places.values().map(|place| &place.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    let number = |node: &NodeId| match node == local {
        true => candidate::NodeId(0),
        false => candidate::NodeId(nodes.partition_point(|other| *other < node) as u64 + 1),
    };
    let known = |hint: &Hint| {
        let place = hints.places.get(&hint.base.snapshot)?;
        Some(candidate::Hint { base: hint.base, node: number(&place.node), votes: hint.votes.into() })
    };
    let pages: Vec<Vec<candidate::Hint>> =
        hints.pages.iter().map(|page| page.iter().filter_map(known).collect()).collect();
    let mut fan_out = FanOut::new(engine.candidate_rules(), candidate::NodeId(0));
    fan_out.plan(pages.iter().map(Vec::as_slice));
    let choose = |page: &Vec<candidate::Hint>| {
        let mut chosen = Vec::new();
        fan_out.choose(page, &mut chosen);
        chosen
    };
    pages.iter().map(choose).collect()
}

/// Encodes all pages and builds the image file; gives the tenant's key along, to open it with.
async fn encode(
    dump: Arc<Dump>,
    engine: Engine,
    tenant: &TenantName,
    choices: Vec<Vec<BasePage>>,
    bases: BasePages,
) -> Result<(DomainKey, Vec<u8>), DedupError> {
    let key = engine.key(tenant);
    blocking(move || {
        let rules = (&key, engine.encode_rules());
        let runs = page_work::encode(&dump.pages(), &choices, &bases, rules, engine.threads)?;
        let mut image = ImageBuilder::new(&key);
        runs.iter().try_for_each(|run| image.append(run))?;
        skeleton::pack(&dump, &mut image)?;
        let bytes = image.finish()?;
        Ok((key, bytes))
    })
    .await
}

fn seal(bytes: &[u8]) -> io::Result<MappedFile> {
    let mut file = MemoryFile::create("medes-image")?;
    file.write_all(bytes)?;
    file.seal()
}
