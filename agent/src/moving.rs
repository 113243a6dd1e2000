//! The road of a sandbox in dedup from one node to another: its image and its private files travel, nothing of it runs meanwhile.
//!
//! ```text
//! offered by its node ─► read, part by part decrypted ─► image opened, end to end ─► a housing with its files ─► given up there ─► here
//! ```
//!
//! What travels is encrypted for the node that asks, with a key of its tenant, whatever the connection does (`encryption`).
//!
//! It is never on two nodes that could both let it run: this node has it only once the other one has said that it has given it up.
//! Until then any failure leaves it where it was.

pub mod encryption;
pub mod send;

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use encryption::{DecryptError, Decryptor};
use futures::{Stream, StreamExt};
use medes_dedup::{
    image::{DedupImage, OpenImageError},
    key::DomainKey,
};
use medes_proto::{
    WireError,
    failure::{Failure, FailureKind},
    function::FunctionSpec,
    ids::SandboxId,
    moving::{ImageHead, ImagePart, ImageRequest, OfferedSandbox},
    wire,
};
use nix::time::{ClockId, clock_gettime};
use prost::{DecodeError, Message};

use crate::{
    bases::remote::{Holder, ReadRemoteError},
    driver::Taken,
    earlier::Origin,
    faults::{Injected, Step},
    memory_file::{MappedFile, MemoryFile},
    pager::Learnt,
    private_files,
    roads::{NoEngine, Roads, Stopwatch, Stored, blocking},
    sandbox::{self, CreateError, Host, Housing, LaunchSpec},
};

/// What an image may have besides the memory of its sandbox: tables, CRIU's files.
const IMAGE_SLACK_BYTES: u64 = 64 << 20;

/// Why a sandbox was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
    /// Its node did not deliver.
    #[error(transparent)]
    Remote(#[from] ReadRemoteError),
    /// The stream of its bytes broke off.
    #[error("read its bytes")]
    Broken(#[source] Box<tonic::Status>),
    /// What came makes no sense.
    #[error("understand what its node sends")]
    Wire(#[from] WireError),
    /// Its node sends more or less than it said, or more than the function can have.
    #[error("its node sends {0}")]
    Length(&'static str),
    /// The kernel gave no random bytes for a question.
    #[error("draw a challenge")]
    Challenge,
    /// It is not what its node sent here just now, or not all of it.
    #[error("decrypt it")]
    Decrypt(#[from] DecryptError),
    /// Its node, which has the key, says what it is in a way that is not understood.
    #[error("understand its head")]
    Head(#[source] DecodeError),
    /// Its program would see time go back: the kernel here has no time namespaces.
    #[error("this node's clock is {behind:?} behind that of its node: its program would see time go back")]
    Clock {
        /// How far.
        behind: Duration,
    },
    /// There was no memory for it.
    #[error("keep its image")]
    Keep(#[source] io::Error),
    /// The image is not what was sealed.
    #[error("open its image")]
    Open(#[from] OpenImageError),
    /// There is no housing for it.
    #[error("make a housing")]
    Create(#[from] CreateError),
    /// The private files could not be put there.
    #[error("unpack the private files")]
    Files(#[source] io::Error),
}

impl TakeError {
    /// As the controller hears of it.
    pub fn failure(&self, sandbox: SandboxId) -> Failure {
        let kind = match self {
            Self::Decrypt(_) | Self::Open(_) => FailureKind::Corrupt,
            Self::Clock { .. } => FailureKind::Unsupported,
            Self::Keep(source) | Self::Files(source) if source.kind() == io::ErrorKind::StorageFull => {
                FailureKind::NoSpace
            }
            _ => FailureKind::Internal,
        };
        let mut failure = Failure::from_error(kind, self);
        failure.message = format!("take over {sandbox}: {}", failure.message);
        failure
    }
}

/// A sandbox that was not taken over.
pub struct NotTaken {
    /// What is left of it here, only good for removal.
    pub housing: Option<Housing>,
    /// Why.
    pub error: TakeError,
}

impl fmt::Debug for NotTaken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NotTaken").field("error", &self.error).finish_non_exhaustive()
    }
}

/// Takes over a sandbox that `from` offers to this node.
///
/// Not cancel-safe: a housing that was made stays until the node is shut down.
pub async fn take(
    roads: &Roads,
    (host, launch): (&Host, &LaunchSpec),
    (sandbox, spec): (SandboxId, Arc<FunctionSpec>),
    from: Holder<'_>,
) -> Result<(Stored, Taken), Box<NotTaken>> {
    let nothing_left = |error| Box::new(NotTaken { housing: None, error });
    let offered = OfferedSandbox { sandbox, to: roads.bases.node().clone() };
    let mut watch = Stopwatch::start();
    let arrived = fetch(roads, &spec, &offered, from).await.map_err(nothing_left)?;
    watch.step("fetch");
    let Arrived { head, image, files } = arrived;
    let opened = open(roads, &spec, &image).await.map_err(nothing_left)?;
    watch.step("open");
    let housing = house(host, launch, sandbox).await.map_err(|error| nothing_left(error.into()))?;
    let moved_in = async {
        let folder = housing.private_dir().to_owned();
        let unpacked = blocking(move || private_files::unpack(&files, &folder)).await;
        unpacked.and_then(|()| housing.number(sandbox.get())).map_err(TakeError::Files)?;
        roads.faults.pass(Step::GiveUp)?;
        roads.bases.peers().give_up(from, offered).await?;
        Ok(roads.faults.pass(Step::GivenUp)?)
    };
    if let Err(error) = moved_in.await {
        return Err(Box::new(NotTaken { housing: Some(housing), error }));
    }
    watch.step("hand over");
    let stored_bytes = opened.image_bytes.saturating_add(housing.private_bytes());
    let taken = Taken {
        stored_bytes,
        bases: opened.bases,
        pages: head.pages,
        requests: head.requests,
        starts_from_dedup: head.starts_from_dedup,
        phases: watch.phases(),
    };
    let places = head.places.into_iter().map(|place| (place.snapshot, place)).collect::<BTreeMap<_, _>>();
    let origin = Origin { places, files: Vec::new(), aligned_with: head.aligned_with };
    let stored = Stored { spec, housing, image, origin, tracked: None, learnt: Learnt::default() };
    Ok((stored, taken))
}

/// All of a sandbox that came from another node, as it was sent.
struct Arrived {
    head: ImageHead,
    image: MappedFile,
    files: Vec<u8>,
}

async fn fetch(
    roads: &Roads,
    spec: &FunctionSpec,
    offered: &OfferedSandbox,
    from: Holder<'_>,
) -> Result<Arrived, TakeError> {
    roads.faults.pass(Step::Take)?;
    let key = roads.engine(&spec.tenant)?.key().clone();
    let challenge = encryption::challenge().ok_or(TakeError::Challenge)?;
    let request = ImageRequest { offered: offered.clone(), challenge };
    let parts = roads.bases.peers().read_image(from, request.clone()).await?;
    let receive = receive(parts, (&key, spec), &request);
    let deadline = roads.limits.criu;
    tokio::time::timeout(deadline, receive)
        .await
        .unwrap_or_else(|_elapsed| Err(ReadRemoteError::Deadline { address: from.1.into(), deadline }.into()))
}

/// Puts together what comes, and looks whether it is what was promised.
async fn receive(
    parts: impl Stream<Item = Result<wire::ImagePart, tonic::Status>>,
    (key, spec): (&DomainKey, &FunctionSpec),
    request: &ImageRequest,
) -> Result<Arrived, TakeError> {
    let mut parts = std::pin::pin!(parts);
    let Some(ImagePart::Salt(salt)) = next(&mut parts).await? else {
        return Err(TakeError::Length("no salt"));
    };
    let mut decryptor = Decryptor::new(key, &spec.name, &salt, request)?;
    let head = decrypted(&mut parts, &mut decryptor).await?;
    let head = ImageHead::try_from(wire::ImageHead::decode(head).map_err(TakeError::Head)?)?;
    if head.image_bytes > spec.memory_bytes.saturating_add(IMAGE_SLACK_BYTES) {
        return Err(TakeError::Length("more than such a sandbox can have"));
    }
    if let Some(behind) = behind(head.monotonic, monotonic(), has_time_namespaces()) {
        return Err(TakeError::Clock { behind });
    }
    let mut image = MemoryFile::create("medes-image").map_err(TakeError::Keep)?;
    let (mut image_left, mut files_left) = (head.image_bytes, head.file_bytes);
    let mut files = Vec::new();
    while image_left > 0 || files_left > 0 {
        let bytes = decrypted(&mut parts, &mut decryptor).await?;
        let of_image = bytes.len().min(usize::try_from(image_left).unwrap_or(usize::MAX));
        let (of_image, of_files) = bytes.split_at(of_image);
        if bytes.is_empty() || of_files.len() as u64 > files_left {
            return Err(TakeError::Length("parts that do not fit together"));
        }
        image.write_all(of_image).map_err(TakeError::Keep)?;
        files.extend_from_slice(of_files);
        image_left -= of_image.len() as u64;
        files_left -= of_files.len() as u64;
    }
    decryptor.finish()?;
    let image = blocking(move || image.seal()).await.map_err(TakeError::Keep)?;
    Ok(Arrived { head, image, files })
}

/// The next piece of what was encrypted. There must be one.
async fn decrypted(
    parts: &mut (impl Stream<Item = Result<wire::ImagePart, tonic::Status>> + Unpin),
    decryptor: &mut Decryptor,
) -> Result<Bytes, TakeError> {
    match next(parts).await? {
        Some(ImagePart::Encrypted(part)) => Ok(decryptor.decrypt(part)?),
        Some(ImagePart::Salt(_)) => Err(TakeError::Length("two salts")),
        None => {
            decryptor.finish()?;
            Err(TakeError::Length("too little"))
        }
    }
}

async fn next(
    parts: &mut (impl Stream<Item = Result<wire::ImagePart, tonic::Status>> + Unpin),
) -> Result<Option<ImagePart>, TakeError> {
    match parts.next().await {
        Some(Ok(part)) => Ok(Some(part.try_into()?)),
        Some(Err(status)) => Err(TakeError::Broken(Box::new(status))),
        None => Ok(None),
    }
}

/// What its own bytes say of an image.
struct Opened {
    bases: Vec<medes_proto::ids::SnapshotId>,
    image_bytes: u64,
}

/// Opening checks it from end to end, as a restore will.
async fn open(roads: &Roads, spec: &FunctionSpec, image: &MappedFile) -> Result<Opened, TakeError> {
    let key = roads.engine(&spec.tenant)?.key().clone();
    let image = image.clone();
    let opened = blocking(move || {
        let opened = DedupImage::open(image, &key)?;
        Ok::<_, OpenImageError>(Opened { bases: opened.bases().to_vec(), image_bytes: opened.stored_bytes() })
    });
    Ok(opened.await?)
}

async fn house(host: &Host, launch: &LaunchSpec, sandbox: SandboxId) -> Result<Housing, CreateError> {
    let id = sandbox::SandboxId::new(sandbox.to_string())?;
    Housing::create(host, &id, launch).await
}

/// The clock that programs measure time by. It is another one on each machine.
pub(crate) fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// With them CRIU gives whatever it restores a clock of its own, which goes on where it stood at the dump (time_namespaces(7)).
fn has_time_namespaces() -> bool {
    Path::new("/proc/self/ns/time").exists()
}

/// By how much a program would see time go back.
fn behind(theirs: Duration, mine: Duration, own_clocks: bool) -> Option<Duration> {
    let behind = theirs.saturating_sub(mine);
    (!own_clocks && !behind.is_zero()).then_some(behind)
}

#[cfg(test)]
mod tests;
