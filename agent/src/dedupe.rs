//! The road away: a warm sandbox becomes a dedup image, and its memory is given back.
//!
//! ```text
//! sandbox ─► dump ─► pages ─► words of a base ─► image
//!              (those not short so) ─► fingerprint ─► registry lookup ─► read base pages ─► delta ─► image
//!         ─► sealed, opened again, every base acquired ─► only now are the processes ended
//! ```
//!
//! Until the last step nothing is lost: after any failure the sandbox is resumed and warm as before.

mod words;

use std::{collections::BTreeMap, fmt, io, io::Write, sync::Arc};

use medes_dedup::{
    candidate::{self, FanOut},
    encode::EncodedRun,
    fingerprint::Fingerprint,
    image::{BuildImageError, DedupImage, ImageBuilder, OpenImageError},
    key::DomainKey,
    page::{BasePage, PAGE_BYTES, Page, SnapshotId},
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
    driver::{DedupOrder, Deduped},
    dump::{self, Dump, DumpSandboxError},
    engine::Engine,
    faults::{Injected, Step},
    memory_file::{MappedFile, MemoryFile},
    page_work::{self, MissingBasePage, words::is_worth_asking},
    registry::{Hints, RegistryError},
    roads::{NotWelcomed, Roads, Stopwatch, Stored, Warm, blocking},
    skeleton::{self, PackError},
};
use words::Words;

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
    /// A page was encoded in no way at all.
    #[error("page {page} was not encoded")]
    Unencoded {
        /// Its position.
        page: usize,
    },
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
    order: DedupOrder,
) -> Result<(Stored, Deduped), Box<NotDeduped>> {
    match make_image(roads, sandbox, &warm, order).await {
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
    order: DedupOrder,
) -> Result<Made, DedupError> {
    let engine = roads.engine()?;
    let mut watch = Stopwatch::start();
    let dump = Arc::new(Dump::take(roads, warm, Leave::Stopped).await?);
    watch.step("dump");
    let mut memory_digest = None;
    if order.digest_memory {
        memory_digest = Some(digest_stopped(warm, &dump).await?);
        watch.step("digest");
    }
    let words = words::encode(roads, sandbox, warm, &dump, (&engine, order.base)).await;
    watch.step("words");
    let rest = rest(&dump, words.as_ref());
    let fingerprints = fingerprint(&dump, rest.clone(), &engine, &warm.spec.tenant).await;
    watch.step("fingerprint");
    roads.faults.pass(Step::Lookup)?;
    let mut hints = match rest.is_empty() {
        true => Hints::default(),
        false => roads.registry.lookup(sandbox, &fingerprints).await?,
    };
    let (looked_up, aligned_with) = (rest.len() as u64, words.as_ref().map(|words| words.place.snapshot));
    hints.places.extend(words.as_ref().map(|words| (words.place.snapshot, words.place.clone())));
    watch.step("lookup");
    let choices = choose(&hints, aligned_with, roads.bases.node(), &engine);
    let mut wanted: Vec<BasePage> = choices.iter().flatten().copied().collect();
    wanted.sort_unstable();
    wanted.dedup();
    roads.faults.pass(Step::ReadBases)?;
    let bases = roads.bases.read(&wanted, &hints.places).await?;
    watch.step("read_bases");
    let (key, bytes) = encode(dump, engine, &warm.spec.tenant, words, (rest, choices), bases).await?;
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
        looked_up,
        aligned_with,
        phases: Vec::new(),
        memory_digest,
    };
    tracing::debug!(%sandbox, ?deduped, "dedup image made");
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

/// Positions of the pages that the registry is asked about: all that are not made of words, or not short so.
fn rest(dump: &Dump, words: Option<&Words>) -> Vec<usize> {
    let all = 0..dump.files().iter().map(|file| file.len() / PAGE_BYTES).sum();
    let Some(Words { pages, worded, .. }) = words else { return all.collect() };
    let encoded = pages.clone().zip(worded.runs.iter().flat_map(EncodedRun::iter));
    let long = encoded.filter(|(_, page)| is_worth_asking(page)).map(|(at, _)| at);
    (all.start..pages.start).chain(long).chain(pages.end..all.end).collect()
}

async fn fingerprint(
    dump: &Arc<Dump>,
    positions: Vec<usize>,
    engine: &Engine,
    tenant: &TenantName,
) -> Vec<Fingerprint> {
    let fingerprinter = engine.fingerprinter(&engine.key(tenant));
    let (dump, threads) = (dump.clone(), engine.threads);
    blocking(move || page_work::fingerprint(&at(&dump, &positions), &fingerprinter, threads)).await
}

/// The pages at these positions.
fn at<'d>(dump: &'d Dump, positions: &[usize]) -> Vec<&'d Page> {
    let pages = dump.pages();
    positions.iter().filter_map(|at| pages.get(*at).copied()).collect()
}

/// The base pages to try for each page, within what one image may depend on.
/// `base`: what it refers to anyway.
fn choose(hints: &Hints, base: Option<SnapshotId>, local: &NodeId, engine: &Engine) -> Vec<Vec<BasePage>> {
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
    if let Some(place) = base.and_then(|base| hints.places.get(&base)) {
        fan_out.admit(place.snapshot, number(&place.node));
    }
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
    words: Option<Words>,
    (rest, choices): (Vec<usize>, Vec<Vec<BasePage>>),
    bases: BasePages,
) -> Result<(DomainKey, Vec<u8>), DedupError> {
    let key = engine.key(tenant);
    blocking(move || {
        let rules = (&key, engine.encode_rules());
        let runs = page_work::encode(&at(&dump, &rest), &choices, &bases, rules, engine.threads)?;
        let mut image = ImageBuilder::new(&key);
        put_together(&mut image, dump.pages().len(), words.as_ref(), (&rest, &runs))?;
        skeleton::pack(&dump, &mut image)?;
        let bytes = image.finish()?;
        Ok((key, bytes))
    })
    .await
}

/// Adds all pages in order: each as words, or the registry's way, or the shorter of both.
fn put_together(
    image: &mut ImageBuilder,
    pages: usize,
    words: Option<&Words>,
    (rest, runs): (&[usize], &[EncodedRun]),
) -> Result<(), DedupError> {
    let mut by_registry = rest.iter().zip(runs.iter().flat_map(EncodedRun::iter)).peekable();
    let by_words = words
        .into_iter()
        .flat_map(|words| words.pages.clone().zip(words.worded.runs.iter().flat_map(EncodedRun::iter)));
    let mut by_words = by_words.peekable();
    for page in 0..pages {
        let one = by_words.next_if(|(at, _)| *at == page).map(|(_, encoded)| encoded);
        let other = by_registry.next_if(|(at, _)| **at == page).map(|(_, encoded)| encoded);
        // Words win among equals: the image refers to their base anyway.
        let shorter = one.into_iter().chain(other).min_by_key(|encoded| encoded.stored_bytes());
        image.push(&shorter.ok_or(DedupError::Unencoded { page })?)?;
    }
    if let Some(words) = words {
        image.relation(words.worded.snapshot, &words.worded.relation);
    }
    Ok(())
}

fn seal(bytes: &[u8]) -> io::Result<MappedFile> {
    let mut file = MemoryFile::create("medes-image")?;
    file.write_all(bytes)?;
    file.seal()
}
