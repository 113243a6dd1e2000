//! What has been stored fast is stored small while it waits: the image of level `fast` becomes one of level `small`.
//!
//! ```text
//! image ─► pages rebuilt, as for a restore ─► aligned twice with the same base ─► what was words, or whole, anew
//!       ─► everything else as it was ─► sealed, opened again, every page rebuilt ─► in the place of the first, if smaller
//! ```
//!
//! Nobody waits for it. The first image stays valid all the time, so a restore may begin in the middle, and whatever fails
//! costs nothing but time.

use std::{collections::BTreeMap, io, num::NonZeroUsize};

use medes_dedup::{
    delta::DeltaCodec,
    encode::{EncodedPage, PageClass},
    image::{BuildImageError, DedupImage, ImageBuilder, OpenImageError, PageClasses},
    key::DomainKey,
    page::{PageIndex, SnapshotId, ZERO_PAGE},
    rebuild::RebuildError,
};
use medes_proto::{
    fleet::Level,
    ids::{SandboxId, TenantName},
    registry::SnapshotPlace,
    sandbox::Phase,
};

use super::{
    seal,
    sort::{Fate, Sorted},
    words::{self, NotAligned, Words},
};
use crate::{
    bases::{HeldPages, replicas::FetchError},
    criu::images::ReadImagesError,
    dump::Dump,
    earlier::Origin,
    memory_file::MappedFile,
    page_work,
    restore::{self, RestoreError},
    roads::{NoEngine, Roads, Stopwatch, blocking},
    skeleton::{self, PackError},
};

/// It has all the time there is.
const THREADS: NonZeroUsize = NonZeroUsize::MIN;

/// An image that wins less than this part of its size is not worth another one in memory.
const GAIN_PART: u64 = 64;

/// A smaller image of the same sandbox.
#[derive(Debug)]
pub struct Shrunk {
    /// The image, sealed.
    pub image: MappedFile,
    /// Bytes it stores.
    pub stored_bytes: u64,
    /// Base snapshots it refers to: those of the first image, or some of them.
    pub bases: Vec<SnapshotId>,
    /// What became of the pages.
    pub classes: PageClasses,
    /// How long each step took.
    pub phases: Vec<Phase>,
}

/// Why an image stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum ShrinkError {
    /// No key and no settings.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// The image, the bases, or the room for its pages.
    #[error("lay out its pages")]
    Restore(#[from] RestoreError),
    /// The base did not come here.
    #[error("fetch its base")]
    Fetch(#[from] FetchError),
    /// What was laid out is no dump.
    #[error("read what was laid out")]
    Dump(#[from] ReadImagesError),
    /// Its pages do not lie as they did.
    #[error("its pages were laid out in another order than they were stored in")]
    Order,
    /// It cannot be aligned with its base any more.
    #[error("align it again")]
    Align(#[from] NotAligned),
    /// The new image has more of something than an image may have.
    #[error("build the smaller image")]
    Build(#[from] BuildImageError),
    /// The skeleton could not be kept.
    #[error("keep its skeleton")]
    Skeleton(#[from] PackError),
    /// There was no memory for it.
    #[error("keep the smaller image")]
    Seal(#[source] io::Error),
    /// A page of the new image does not come back.
    #[error("rebuild the smaller image's pages")]
    Proof(#[source] RebuildError),
    /// The new image does not open.
    #[error("open the smaller image")]
    Open(#[from] OpenImageError),
}

/// A smaller image, or `None` if there is none.
pub async fn shrink(
    roads: &Roads,
    sandbox: SandboxId,
    tenant: &TenantName,
    (image, origin): (MappedFile, Origin),
) -> Result<Option<Shrunk>, ShrinkError> {
    let engine = roads.engine(tenant)?;
    let Some(place) = origin.aligned_with.and_then(|base| origin.places.get(&base)) else { return Ok(None) };
    let mut watch = Stopwatch::start();
    let key = engine.key().clone();
    let opening = key.clone();
    let image = blocking(move || DedupImage::open(image, &opening)).await.map_err(RestoreError::from)?;
    let base = roads.bases.whole(place, tenant).await?;
    let pages = restore::read_bases(roads, tenant, &image, &origin.places).await?;
    let (dump, image) = blocking(move || lay_out(&image, &pages).map(|dump| (dump, image))).await?;
    watch.step("rebuild");
    let (place, bases, rules) = (place.clone(), roads.bases.clone(), engine.encode_rules());
    let files = origin.files;
    let made = blocking(move || {
        // What stays as it was must stay where it was.
        if dump.page_files() != files {
            return Err(ShrinkError::Order);
        }
        let sorted = Sorted { fates: fates(&image, &dump, base.id)?, earlier: None };
        let (pages, worded) = words::align((&dump, &sorted), &base, &bases.indexes, |memory, base| {
            page_work::words::encode(memory, base, (Level::Small, None, &[]), (&key, rules), THREADS)
        })?;
        let bytes = build(&image, &dump, &Words { place, pages, worded }, &key)?;
        watch.step("encode");
        let (shrunk, opened) = sealed(&bytes, &key)?;
        let is_worth_it = shrunk.stored_bytes + shrunk.stored_bytes / GAIN_PART < image.stored_bytes();
        watch.step("seal");
        Ok::<_, ShrinkError>(is_worth_it.then_some((shrunk, opened, watch)))
    });
    let Some((shrunk, opened, mut watch)) = made.await? else { return Ok(None) };
    prove(roads, tenant, opened, &origin.places).await?;
    watch.step("prove");
    let made = Some(Shrunk { phases: watch.phases(), ..shrunk });
    tracing::debug!(%sandbox, ?made, "made smaller");
    Ok(made)
}

/// The dump that the image was made of.
fn lay_out(image: &DedupImage<MappedFile>, bases: &HeldPages) -> Result<Dump, ShrinkError> {
    let laid = skeleton::unpack_in_memory(&image.sections().map_err(RestoreError::from)?, image.pages());
    let mut laid = laid.map_err(RestoreError::from)?;
    let pages = laid.pages.iter_mut().flat_map(|file| file.as_mut().as_chunks_mut().0);
    page_work::rebuild(image, bases, &mut pages.collect::<Vec<_>>(), THREADS).map_err(RestoreError::from)?;
    let pipe = laid.pipe.clone();
    Ok(Dump::open(laid.finish().map_err(ShrinkError::Seal)?, pipe)?)
}

/// Rebuilds every page as a restore would: what was taken over must go with what was made anew.
async fn prove(
    roads: &Roads,
    tenant: &TenantName,
    image: DedupImage<MappedFile>,
    places: &BTreeMap<SnapshotId, SnapshotPlace>,
) -> Result<(), ShrinkError> {
    let bases = restore::read_bases(roads, tenant, &image, places).await?;
    blocking(move || {
        let (mut codec, mut page) = (DeltaCodec::new(), ZERO_PAGE);
        (0..image.pages()).try_for_each(|at| image.rebuild_from(&mut codec, PageIndex(at), &bases, &mut page))
    })
    .await
    .map_err(ShrinkError::Proof)
}

/// Pages of the largest process that are words of the base, or by themselves, are made anew; all others stay.
fn fates(image: &DedupImage<MappedFile>, dump: &Dump, base: SnapshotId) -> Result<Vec<Fate>, ShrinkError> {
    let main = dump.processes().map_err(NotAligned::from)?.first().map(|(file, _)| dump.pages_of(*file).0);
    let main = main.unwrap_or_default();
    let fate = |(at, page): (usize, EncodedPage<'_>)| {
        let words = page.is_words() && page.base().is_some_and(|page| page.snapshot == base);
        let again = words || page.class() == PageClass::Whole;
        if again && main.contains(&at) { Fate::Fresh } else { Fate::Taken(at) }
    };
    Ok(image.encoded().enumerate().map(fate).collect())
}

fn build(
    image: &DedupImage<MappedFile>,
    dump: &Dump,
    words: &Words,
    key: &DomainKey,
) -> Result<Vec<u8>, ShrinkError> {
    let mut builder = ImageBuilder::new(key);
    let mut anew = words.encoded().peekable();
    for (at, stored) in image.encoded().enumerate() {
        let page = anew.next_if(|(fresh, _)| *fresh == at).map_or(stored, |(_, page)| page);
        builder.push(&page)?;
    }
    for (snapshot, relation) in image.relations().filter(|(base, _)| *base != words.worded.snapshot) {
        builder.relation(snapshot, relation);
    }
    builder.relation(words.worded.snapshot, &words.worded.relation);
    skeleton::pack(dump, &mut builder)?;
    Ok(builder.finish()?)
}

fn sealed(bytes: &[u8], key: &DomainKey) -> Result<(Shrunk, DedupImage<MappedFile>), ShrinkError> {
    let image = seal(bytes).map_err(ShrinkError::Seal)?;
    let opened = DedupImage::open(image.clone(), key)?;
    let shrunk = Shrunk {
        stored_bytes: opened.stored_bytes(),
        bases: opened.bases().to_vec(),
        classes: opened.classes(),
        phases: Vec::new(),
        image,
    };
    Ok((shrunk, opened))
}
