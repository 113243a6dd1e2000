//! The road away: a warm sandbox becomes a dedup image, and its memory is given back.
//!
//! ```text
//! sandbox ─► dump ─► pages ─► (those unchanged since the image it came back from are taken over, hot ones kept whole)
//!                          ─► words of a base ─► image
//!              (those not short so) ─► fingerprint ─► registry lookup ─► read base pages ─► delta ─► image
//!         ─► sealed, opened again, every base acquired ─► only now are the processes ended
//! ```
//!
//! Until the last step nothing is lost: after any failure the sandbox is resumed and warm as before.

pub mod shrink;
mod sort;
mod words;

use std::{collections::BTreeSet, fmt, io, sync::Arc};

use medes_dedup::{
    candidate::{self, FanOut},
    delta::Level,
    encode::{EncodeRules, EncodedPage, EncodedRun, PageClass},
    fingerprint::Fingerprint,
    image::{self, BuildImageError, DedupImage, ImageBuilder, OpenImageError},
    key::DomainKey,
    page::{BasePage, Page, SnapshotId},
};
use medes_proto::{
    failure::{Failure, FailureKind},
    ids::{NodeId, SandboxId},
    registry::Hint,
    sandbox::PageClasses,
};
use nix::sys::statvfs::statvfs;

use crate::{
    bases::{HeldPages, ReadBasesError},
    criu::{Leave, tree},
    digest::{DigestError, digest},
    driver::{DedupOrder, Deduped},
    dump::{self, Dump, DumpSandboxError},
    earlier::Origin,
    engine::Engine,
    faults::{Injected, Step},
    memory_file::{MappedFile, MemoryFile},
    page_work::{self, MissingBasePage, words::is_worth_asking},
    registry::{Hints, RegistryError},
    roads::{HotPages, NoEngine, Roads, Stopwatch, Stored, Warm, blocking},
    skeleton::{self, PackError},
};
use sort::{Fate, Sorted};
use words::Words;

/// How hard to work on hot pages: they will be different next time.
const HOT_LEVEL: Level = Level::FASTEST;

/// Why a sandbox was not deduplicated.
#[derive(Debug, thiserror::Error)]
pub enum DedupError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// No dump.
    #[error(transparent)]
    Dump(#[from] DumpSandboxError),
    /// It could be put away, and never come back here.
    #[error("its pages take {bytes} bytes, and the folder that a restore lays them out in has {room}")]
    NoWayBack {
        /// What its pages take.
        bytes: u64,
        /// All that fits into the folder.
        room: u64,
    },
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
            Self::NoWayBack { .. } => FailureKind::NoSpace,
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
    origin: Origin,
    deduped: Deduped,
    watch: Stopwatch,
}

async fn make_image(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    order: DedupOrder,
) -> Result<Made, DedupError> {
    let engine = roads.engine(&warm.spec.tenant)?;
    let mut watch = Stopwatch::start();
    let windows = warm.past.end_tracking().await;
    let dump = Arc::new(dump_to_come_back(roads, warm).await?);
    watch.step("dump");
    let mut memory_digest = None;
    if order.digest_memory {
        memory_digest = Some(digest_stopped(warm, &dump).await?);
        watch.step("digest");
    }
    let sorted = Arc::new(sort::sort(roads, sandbox, warm, &dump, (&engine, windows)).await);
    watch.step("compare");
    let words = words::encode(roads, sandbox, warm, &dump, (&engine, order.base, &sorted)).await;
    watch.step("words");
    let rest = rest(&sorted, words.as_ref());
    let fingerprints = fingerprint(&dump, rest.clone(), &engine).await;
    watch.step("fingerprint");
    roads.faults.pass(Step::Lookup)?;
    let mut hints = match rest.is_empty() {
        true => Hints::default(),
        false => roads.registry.lookup(sandbox, &fingerprints).await?,
    };
    let (looked_up, aligned_with) = (rest.len() as u64, words.as_ref().map(|words| words.place.snapshot));
    let referred = add_known(&mut hints, &sorted, words.as_ref());
    watch.step("lookup");
    let choices = choose(&hints, &referred, roads.bases.node(), &engine);
    let wanted = Vec::from_iter(choices.iter().flatten().copied().collect::<BTreeSet<BasePage>>());
    roads.faults.pass(Step::ReadBases)?;
    let bases = roads.bases.read(&wanted, &hints.places).await?;
    watch.step("read_bases");
    let (files, taken) = (dump.page_files().to_vec(), sorted.taken());
    let aligned_with = aligned_with.or_else(|| sorted.base().map(|place| place.snapshot));
    let (how, parts) = ((engine, roads.hot_pages), Parts { sorted, words, rest, choices });
    let (key, bytes, hot_skipped) = encode(dump, how, parts, bases).await?;
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
    let aligned_with = aligned_with.filter(|snapshot| bases.contains(snapshot));
    let origin = Origin { places, files, aligned_with };
    let deduped = Deduped {
        stored_bytes: image_bytes,
        bases,
        pages: counted(classes, hot_skipped, taken),
        looked_up,
        aligned_with,
        phases: Vec::new(),
        memory_digest,
        in_place: false,
        shrinks: true,
    };
    tracing::debug!(%sandbox, ?deduped, "dedup image made");
    Ok(Made { image, origin, deduped, watch })
}

/// A dump needs no file system, but an eager restore has all its pages in files. Whether there is room for them at the moment it will see; here it is
/// told if there never is.
async fn dump_to_come_back(roads: &Roads, warm: &Warm) -> Result<Dump, DedupError> {
    let dump = Dump::take(roads, warm, Leave::Stopped).await?;
    // Without an answer the restore has to see.
    let Ok(folder) = statvfs(&warm.housing.work_dir()) else { return Ok(dump) };
    let room = folder.blocks().saturating_mul(folder.fragment_size());
    let bytes = dump.files().iter().map(|file| file.len() as u64).sum();
    if bytes > room { Err(DedupError::NoWayBack { bytes, room }) } else { Ok(dump) }
}

/// Where the bases are that the image refers to whatever the registry says; names them.
fn add_known(hints: &mut Hints, sorted: &Sorted, words: Option<&Words>) -> Vec<SnapshotId> {
    let earlier = sorted.earlier.iter().flat_map(|earlier| &earlier.origin.places);
    let earlier = earlier.map(|(snapshot, place)| (*snapshot, place.clone()));
    let known: Vec<_> =
        words.map(|words| (words.place.snapshot, words.place.clone())).into_iter().chain(earlier).collect();
    let names = known.iter().map(|(snapshot, _)| *snapshot).collect();
    // The registry has just said where they are, which may be another place than the one they were at.
    for (snapshot, place) in known {
        hints.places.entry(snapshot).or_insert(place);
    }
    names
}

pub(crate) fn counted(classes: image::PageClasses, hot_skipped: u64, reused: u64) -> PageClasses {
    PageClasses {
        zero: classes.zero.into(),
        same: classes.same.into(),
        delta: classes.delta.into(),
        whole: u64::from(classes.whole).saturating_sub(hot_skipped),
        hot_skipped,
        reused,
    }
}

/// The point of no return: ends the processes. What they wrote to /tmp stays, and counts as stored.
async fn give_back(warm: Warm, made: Made) -> (Stored, Deduped) {
    let Warm { spec, housing, tree, past, .. } = warm;
    let Made { image, origin, mut deduped, mut watch } = made;
    if let Err(error) = tree.kill().await {
        // It is stopped and will not run again; the housing's removal tries once more.
        tracing::error!(error = &error as &dyn std::error::Error, "processes of a deduplicated sandbox stay");
    }
    watch.step("end");
    deduped.stored_bytes += housing.private_bytes();
    deduped.phases = watch.phases();
    let (tracked, learnt) = (past.tracked, past.learnt);
    (Stored { spec, housing, image, origin, tracked, learnt }, deduped)
}

async fn digest_stopped(warm: &Warm, dump: &Arc<Dump>) -> Result<[u8; 32], DedupError> {
    let pids: Vec<i32> = tree::members(warm.tree.pid())?.into_iter().map(nix::unistd::Pid::as_raw).collect();
    let dump = dump.clone();
    Ok(blocking(move || digest(&pids, &dump.masks())).await?)
}

/// Positions of the pages that the registry is asked about: all to be encoded that are not made of words, or not short so.
fn rest(sorted: &Sorted, words: Option<&Words>) -> Vec<usize> {
    let words = words.into_iter().flat_map(Words::encoded);
    let mut short = words.filter(|(_, page)| !is_worth_asking(page)).map(|(at, _)| at).peekable();
    let fresh = (0..sorted.fates.len()).filter(|at| sorted.is_fresh(*at));
    fresh.filter(|at| short.next_if_eq(at).is_none()).collect()
}

async fn fingerprint(dump: &Arc<Dump>, positions: Vec<usize>, engine: &Engine) -> Vec<Fingerprint> {
    let fingerprinter = engine.fingerprinter();
    let (dump, threads) = (dump.clone(), engine.threads);
    blocking(move || page_work::fingerprint(&at(&dump, &positions), &fingerprinter, threads)).await
}

/// The pages at these positions.
fn at<'d>(dump: &'d Dump, positions: &[usize]) -> Vec<&'d Page> {
    let pages = dump.pages();
    positions.iter().filter_map(|at| pages.get(*at).copied()).collect()
}

/// The base pages to try for each page, within what one image may depend on.
/// `referred`: what it refers to anyway.
fn choose(hints: &Hints, referred: &[SnapshotId], local: &NodeId, engine: &Engine) -> Vec<Vec<BasePage>> {
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
    for place in referred.iter().filter_map(|base| hints.places.get(base)) {
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

/// All pages, by how they are stored.
struct Parts {
    sorted: Arc<Sorted>,
    words: Option<Words>,
    /// Positions of the pages that the registry was asked about, and the base pages to try for each.
    rest: Vec<usize>,
    choices: Vec<Vec<BasePage>>,
}

/// Encodes what is left to encode and builds the image file; gives the tenant's key along, to open it with, and how
/// many pages were kept whole because they are hot.
async fn encode(
    dump: Arc<Dump>,
    (engine, hot_pages): (Engine, HotPages),
    Parts { sorted, words, rest, choices }: Parts,
    bases: HeldPages,
) -> Result<(DomainKey, Vec<u8>, u64), DedupError> {
    let key = engine.key().clone();
    blocking(move || {
        let rules = engine.encode_rules();
        let runs = page_work::encode(&at(&dump, &rest), &choices, &bases, (&key, rules), engine.threads)?;
        let hot = sorted.hot();
        let whole_level = if hot_pages == HotPages::Raw { None } else { Some(HOT_LEVEL) };
        let (alone, rules) = (vec![Vec::new(); hot.len()], EncodeRules { whole_level, ..rules });
        let whole = page_work::encode(&at(&dump, &hot), &alone, &bases, (&key, rules), engine.threads)?;
        let mut image = ImageBuilder::new(&key);
        put_together(&mut image, &sorted, words.as_ref(), [(&rest, &runs), (&hot, &whole)])?;
        skeleton::pack(&dump, &mut image)?;
        let hot_skipped =
            whole.iter().flat_map(EncodedRun::iter).filter(|page| page.class() == PageClass::Whole).count();
        Ok((key.clone(), image.finish()?, hot_skipped as u64))
    })
    .await
}

/// Positions of pages, and the pages encoded.
type Placed<'e> = (&'e [usize], &'e [EncodedRun]);

/// The pages with their positions.
fn placed<'e>((positions, runs): Placed<'e>) -> impl Iterator<Item = (usize, EncodedPage<'e>)> {
    positions.iter().copied().zip(runs.iter().flat_map(EncodedRun::iter))
}

/// Adds all pages in order: as they were, or as words, or the registry's way, or whole; the shorter where there are two.
fn put_together(
    image: &mut ImageBuilder,
    sorted: &Sorted,
    words: Option<&Words>,
    [registry, hot]: [Placed<'_>; 2],
) -> Result<(), DedupError> {
    let earlier = sorted.earlier.as_ref().map(|earlier| earlier.pages()).unwrap_or_default();
    let mut by_words = words.into_iter().flat_map(Words::encoded).peekable();
    let (mut by_registry, mut whole) = (placed(registry).peekable(), placed(hot).peekable());
    for (page, fate) in sorted.fates.iter().enumerate() {
        let taken = match fate {
            Fate::Taken(at) => earlier.get(*at).copied(),
            Fate::Hot | Fate::Fresh => None,
        };
        let at_page = |(at, _): &(usize, _)| *at == page;
        // Words win among equals: the image refers to their base anyway.
        let ways = [by_words.next_if(at_page), by_registry.next_if(at_page), whole.next_if(at_page)];
        let encoded = ways.into_iter().flatten().map(|(_, encoded)| encoded);
        let shorter = taken.into_iter().chain(encoded).min_by_key(|encoded| encoded.stored_bytes());
        image.push(&shorter.ok_or(DedupError::Unencoded { page })?)?;
    }
    for (snapshot, relation) in sorted.earlier.iter().flat_map(|earlier| earlier.image.relations()) {
        image.relation(snapshot, relation);
    }
    if let Some(words) = words {
        image.relation(words.worded.snapshot, &words.worded.relation);
    }
    Ok(())
}

fn seal(bytes: &[u8]) -> io::Result<MappedFile> {
    MemoryFile::sealed("medes-image", bytes)
}
