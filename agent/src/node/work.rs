//! Work that takes time: each piece owns the sandbox it works on and brings back what became of it.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::SnapshotReport,
    function::FunctionSpec,
    ids::{NodeId, SandboxId, SnapshotId, TenantName},
    limits::FAILURE_LINES_MAX,
    registry::SnapshotPlace,
    sandbox::Phase,
};

use tokio_util::sync::CancellationToken;

use super::{Tools, finished::Finished};
use crate::{
    base, clone,
    dedupe::{
        self,
        shrink::{self, Shrunk},
    },
    driver::{DedupOrder, Deduped, Restored, Smaller, Taken, Trimmed},
    earlier::Origin,
    faults::{Injected, Step},
    launch_spec::launch_spec,
    memory_file::MappedFile,
    metrics, moving,
    pager::{FaultError, Paged, Pager, ReleaseError},
    park::{self, ParkOrder},
    restore,
    roads::{Roads, Stopwatch, Stored, Warm, blocking},
    sandbox::{self, CreateError, Ended, Housing, LaunchError, Log},
    trim,
};

/// What was made, or what is left and why.
type Outcome<Made, Left> = Result<Made, (Left, Failure)>;

type Launched = (Box<Warm>, Vec<Phase>);

/// A sandbox of another node, or why it did not come.
pub(super) type Took = Outcome<(Box<Stored>, Taken), Option<Box<Housing>>>;

/// A sandbox whose memory was taken.
#[derive(Debug)]
pub(crate) enum PutAway {
    /// With its processes.
    Stored(Box<Stored>),
    /// Alone.
    Parked(Box<Warm>),
}

impl PutAway {
    fn into_housing(self) -> Housing {
        match self {
            Self::Stored(stored) => stored.housing,
            Self::Parked(warm) => warm.housing,
        }
    }
}

/// What work came to.
#[derive(Debug)]
pub(crate) enum Worked {
    /// A start, from nothing or as a clone.
    Launched { sandbox: SandboxId, is_clone: bool, result: Outcome<Launched, Option<Box<Housing>>> },
    /// A dedup.
    Deduped { sandbox: SandboxId, result: Outcome<(PutAway, Deduped), Option<Box<Warm>>> },
    /// A step of a trim; the sandbox comes back either way.
    Trimmed { sandbox: SandboxId, warm: Box<Warm>, result: Result<Trimmed, Failure> },
    /// A base snapshot; the sandbox comes back either way.
    BaseMade {
        sandbox: SandboxId,
        warm: Option<Box<Warm>>,
        result: Result<(SnapshotReport, Vec<Phase>), Failure>,
    },
    /// A restore.
    Restored { sandbox: SandboxId, result: Outcome<(Box<Warm>, Restored), Box<Housing>> },
    /// A base snapshot of another node was copied.
    Replicated { snapshot: SnapshotId, result: Result<SnapshotReport, Failure> },
    /// A sandbox of another node was taken over.
    Taken { sandbox: SandboxId, result: Took },
    /// The image `of` was made smaller, or there is no smaller one.
    Shrunk { sandbox: SandboxId, of: MappedFile, result: Result<Option<Box<Shrunk>>, Failure> },
    /// A parked sandbox is stored smaller, or as it was.
    ShrunkParked { sandbox: SandboxId, result: Result<Option<(Smaller, Vec<Phase>)>, Failure> },
    /// A removal.
    Removed { sandbox: SandboxId },
    /// The processes of a sandbox ended.
    Exited { sandbox: SandboxId, why: Failure },
    /// A request is over; `overdue` when the sandbox may still be working on it.
    Answered { sandbox: SandboxId, answered: bool, overdue: Option<Failure> },
}

/// What work has made that the next agent is to have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Leaves {
    Sandbox(SandboxId),
    Base(SnapshotId),
}

impl Worked {
    /// What of it the next agent is to have, if it is still there when it is taken in.
    pub(super) const fn leaves(&self) -> Option<Leaves> {
        match self {
            Self::Deduped { sandbox, result: Ok(_) }
            | Self::Taken { sandbox, result: Ok(_) }
            | Self::Shrunk { sandbox, result: Ok(Some(_)), .. }
            | Self::ShrunkParked { sandbox, result: Ok(Some(_)) } => Some(Leaves::Sandbox(*sandbox)),
            Self::BaseMade { result: Ok((report, _)), .. } | Self::Replicated { result: Ok(report), .. } => {
                Some(Leaves::Base(report.id))
            }
            _ => None,
        }
    }

    /// Whether it handled all pages of a sandbox.
    pub(super) const fn was_large(&self) -> bool {
        matches!(
            self,
            Self::Deduped { .. }
                | Self::BaseMade { .. }
                | Self::Restored { .. }
                | Self::Shrunk { .. }
                | Self::ShrunkParked { .. }
        )
    }

    /// What is told of it outside; `None` for what is no operation on a sandbox.
    pub(super) fn finished(&self) -> Option<Finished<'_>> {
        let (operation, sandbox, result): (_, _, Result<&[Phase], &Failure>) = match self {
            Self::Launched { sandbox, is_clone, result } => {
                let operation = if *is_clone { "clone" } else { "launch" };
                (operation, sandbox, result.as_ref().map(|(_, phases)| &phases[..]).map_err(|(_, why)| why))
            }
            Self::Deduped { sandbox, result } => {
                let result = result.as_ref().map(|(_, deduped)| &deduped.phases[..]);
                ("dedup", sandbox, result.map_err(|(_, why)| why))
            }
            Self::Trimmed { sandbox, result, .. } => {
                ("trim", sandbox, result.as_ref().map(|trimmed| &trimmed.phases[..]))
            }
            Self::BaseMade { sandbox, result, .. } => {
                ("base", sandbox, result.as_ref().map(|(_, phases)| &phases[..]))
            }
            Self::Restored { sandbox, result } => {
                let result = result.as_ref().map(|(_, restored)| &restored.phases[..]);
                ("restore", sandbox, result.map_err(|(_, why)| why))
            }
            Self::Taken { sandbox, result } => {
                let result = result.as_ref().map(|(_, taken)| &taken.phases[..]);
                ("take", sandbox, result.map_err(|(_, why)| why))
            }
            Self::Shrunk { result: Ok(None), .. } | Self::ShrunkParked { result: Ok(None), .. } => {
                return None;
            }
            Self::Shrunk { sandbox, result, .. } => {
                let phases =
                    result.as_ref().map(|shrunk| shrunk.as_ref().map_or(&[][..], |one| &one.phases[..]));
                ("shrink", sandbox, phases)
            }
            Self::ShrunkParked { sandbox, result } => {
                let phases =
                    result.as_ref().map(|shrunk| shrunk.as_ref().map_or(&[][..], |(_, phases)| phases));
                ("shrink", sandbox, phases)
            }
            Self::Replicated { .. } | Self::Removed { .. } | Self::Exited { .. } | Self::Answered { .. } => {
                return None;
            }
        };
        Some(Finished { operation, sandbox: *sandbox, result, at: SystemTime::now() })
    }

    /// What is to be removed when the node closes.
    pub(super) fn into_remains(self) -> Option<(SandboxId, Box<Housing>)> {
        Some(match self {
            Self::Launched { sandbox, result: Ok((warm, _)), .. }
            | Self::Restored { sandbox, result: Ok((warm, _)) }
            | Self::BaseMade { sandbox, warm: Some(warm), .. }
            | Self::Trimmed { sandbox, warm, .. }
            | Self::Deduped { sandbox, result: Err((Some(warm), _)) } => (sandbox, Box::new(warm.housing)),
            Self::Launched { sandbox, result: Err((ruin, _)), .. }
            | Self::Taken { sandbox, result: Err((ruin, _)) } => (sandbox, ruin?),
            Self::Taken { sandbox, result: Ok((stored, _)) } => (sandbox, Box::new(stored.housing)),
            Self::Restored { sandbox, result: Err((ruin, _)) } => (sandbox, ruin),
            Self::Deduped { sandbox, result: Ok((put_away, _)) } => {
                (sandbox, Box::new(put_away.into_housing()))
            }
            Self::Deduped { result: Err((None, _)), .. }
            | Self::BaseMade { warm: None, .. }
            | Self::Replicated { .. }
            | Self::Shrunk { .. }
            | Self::ShrunkParked { .. }
            | Self::Removed { .. }
            | Self::Exited { .. }
            | Self::Answered { .. } => return None,
        })
    }
}

/// Why a cold start did not even begin.
#[derive(Debug, thiserror::Error)]
enum NotHoused {
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// A cold start, until the function says it is ready.
pub(super) async fn launch(
    tools: Arc<Tools>,
    node: NodeId,
    sandbox: SandboxId,
    spec: Box<FunctionSpec>,
) -> Worked {
    let began = Instant::now();
    let doing =
        |failure: Failure| Failure { message: format!("start {sandbox}: {}", failure.message), ..failure };
    let created = async {
        tools.faults.pass(Step::Launch)?;
        let id = sandbox::SandboxId::new(sandbox.to_string()).map_err(CreateError::Spec)?;
        let housing = Housing::create(&tools.host, &id, &launch_spec(&spec, sandbox, &node)).await?;
        let numbered = housing.number(sandbox.get());
        let folder = |source| CreateError::Folder { path: housing.private_dir().to_owned(), source };
        numbered.map_err(folder)?;
        Ok::<_, NotHoused>(housing)
    };
    let housing = match created.await {
        Ok(housing) => housing,
        Err(error) => {
            let failure = doing(Failure::from_error(FailureKind::Internal, &error));
            return Worked::Launched { sandbox, is_clone: false, result: Err((None, failure)) };
        }
    };
    let housed = Instant::now();
    let result = match housing.launch().await {
        Ok(tree) => {
            let phases = vec![Phase::new("house", housed - began), Phase::new("launch", housed.elapsed())];
            Ok((Box::new(Warm::new(Arc::new(*spec), housing, tree)), phases))
        }
        Err(error) => {
            let kind = match &error {
                LaunchError::CommandNotFound { .. } | LaunchError::CommandNotExecutable { .. } => {
                    FailureKind::CommandNotFound
                }
                LaunchError::NeverReady { .. } | LaunchError::EndedBeforeReady { .. } => {
                    FailureKind::NeverReady
                }
                LaunchError::OutOfMemory { .. } => FailureKind::OutOfMemory,
                _ => FailureKind::Internal,
            };
            let failure = doing(Failure::from_error(kind, &error)).with_log(tail(housing.log()));
            Err((Some(Box::new(housing)), failure))
        }
    };
    Worked::Launched { sandbox, is_clone: false, result }
}

/// One more sandbox of a function's init snapshot.
pub(super) async fn clone(
    (tools, roads): (Arc<Tools>, Arc<Roads>),
    node: NodeId,
    (sandbox, spec): (SandboxId, Box<FunctionSpec>),
    place: SnapshotPlace,
) -> Worked {
    let launch = launch_spec(&spec, sandbox, &node);
    let cloned = clone::clone(&roads, (&tools.host, &launch), (sandbox, Arc::new(*spec)), &place).await;
    let result = match cloned {
        Ok((warm, phases)) => Ok((Box::new(warm), phases)),
        Err(not) => {
            let failure = not.error.failure(sandbox);
            let log = not.housing.as_ref().map(|housing| tail(housing.log())).unwrap_or_default();
            Err((not.housing.map(Box::new), failure.with_log(log)))
        }
    };
    Worked::Launched { sandbox, is_clone: true, result }
}

fn tail(log: &Log) -> Vec<String> {
    log.tail(FAILURE_LINES_MAX).lines.into_iter().map(|line| line.text).collect()
}

/// Why a sandbox was ended of which a page is lost.
pub(super) fn lost(why: &FaultError) -> Failure {
    Failure::from_error(FailureKind::Corrupt, why)
}

/// Why a sandbox ended that was not told to.
pub(super) fn ended(sandbox: SandboxId, ended: Ended, log: &Log) -> Failure {
    let kind = if ended.out_of_memory { FailureKind::OutOfMemory } else { FailureKind::Crashed };
    Failure::new(kind, format!("{sandbox} ended: {ended}")).with_log(tail(log))
}

pub(super) async fn dedup(
    roads: Arc<Roads>,
    sandbox: SandboxId,
    mut warm: Box<Warm>,
    order: DedupOrder,
) -> Worked {
    if let Err(failure) = whole(sandbox, &mut warm).await {
        return Worked::Deduped { sandbox, result: Err((Some(warm), failure)) };
    }
    let result = match dedupe::dedup(&roads, sandbox, *warm, order).await {
        Ok((stored, deduped)) => Ok((PutAway::Stored(Box::new(stored)), deduped)),
        Err(not) => Err((Some(Box::new(not.warm)), not.error.failure(sandbox))),
    };
    Worked::Deduped { sandbox, result }
}

/// Brings back what is missing of a sandbox that was parked: CRIU would take it for zeros.
async fn whole(sandbox: SandboxId, warm: &mut Warm) -> Result<(), Failure> {
    let Some(paged) = warm.paged.clone() else { return Ok(()) };
    warm.past.learnt = paged.learnt();
    if let Err(error) = paged.release().await {
        // Pages of it may still be missing, and somebody must know.
        let kind = match error {
            ReleaseError::Fault(_) => FailureKind::Corrupt,
            ReleaseError::Cgroup(_) => FailureKind::DedupFailed,
        };
        let mut failure = Failure::from_error(kind, &error);
        failure.message = format!("bring {sandbox} back from parked: {}", failure.message);
        return Err(failure);
    }
    warm.paged = None;
    Ok(())
}

pub(super) async fn park(
    (roads, pager): (Arc<Roads>, Pager),
    sandbox: SandboxId,
    warm: Box<Warm>,
    order: ParkOrder,
    cancelled: CancellationToken,
) -> Worked {
    let result = match park::park(&roads, &pager, sandbox, *warm, (order, &cancelled)).await {
        Ok((warm, deduped)) => Ok((PutAway::Parked(Box::new(warm)), deduped)),
        Err(not) => Err((Some(Box::new(not.warm)), not.error.failure(sandbox))),
    };
    Worked::Deduped { sandbox, result }
}

pub(super) async fn trim(
    (roads, pager): (Arc<Roads>, Pager),
    sandbox: SandboxId,
    warm: Box<Warm>,
    (pages_max, cancelled): (usize, CancellationToken),
) -> Worked {
    match trim::trim(&roads, &pager, sandbox, *warm, (pages_max, &cancelled)).await {
        Ok((warm, trimmed)) => Worked::Trimmed { sandbox, warm: Box::new(warm), result: Ok(trimmed) },
        Err(not) => {
            let failure = not.error.failure(sandbox);
            Worked::Trimmed { sandbox, warm: Box::new(not.warm), result: Err(failure) }
        }
    }
}

/// The sandbox runs when this returns, with what it will probably touch; what else it touches comes back as it does.
pub(super) async fn unpark(sandbox: SandboxId, warm: Box<Warm>) -> Worked {
    let mut watch = Stopwatch::start();
    if let Some(paged) = &warm.paged {
        paged.push().await;
        watch.step("push");
    }
    let (warm, thawed) = blocking(move || {
        let thawed = warm.housing.cgroup().thaw();
        (warm, thawed)
    })
    .await;
    watch.step("thaw");
    let result = match thawed {
        Ok(()) => Ok((warm, Restored { phases: watch.phases(), memory_digest: None, in_place: true })),
        Err(error) => {
            let failure = Failure::from_error(FailureKind::RestoreFailed, &error);
            Err((Box::new(warm.housing), failure))
        }
    };
    Worked::Restored { sandbox, result }
}

pub(super) async fn shrink(
    roads: Arc<Roads>,
    (sandbox, tenant): (SandboxId, TenantName),
    (image, origin): (MappedFile, Origin),
) -> Worked {
    let of = image.clone();
    let result = match shrink::shrink(&roads, sandbox, &tenant, (image, origin)).await {
        Ok(shrunk) => Ok(shrunk.map(Box::new)),
        Err(error) => Err(Failure::from_error(FailureKind::DedupFailed, &error)),
    };
    Worked::Shrunk { sandbox, of, result }
}

pub(super) async fn shrink_parked(
    roads: Arc<Roads>,
    (sandbox, tenant): (SandboxId, TenantName),
    paged: Paged,
) -> Worked {
    let result = match park::shrink(&roads, &tenant, paged).await {
        Ok(shrunk) => Ok(shrunk),
        Err(error) => Err(Failure::from_error(FailureKind::DedupFailed, &error)),
    };
    Worked::ShrunkParked { sandbox, result }
}

pub(super) async fn make_base(
    roads: Arc<Roads>,
    sandbox: SandboxId,
    mut warm: Box<Warm>,
    (snapshot, init): (SnapshotId, Option<u64>),
) -> Worked {
    if let Err(failure) = whole(sandbox, &mut warm).await {
        return Worked::BaseMade { sandbox, warm: Some(warm), result: Err(failure) };
    }
    let made = match init {
        Some(revision) => base::make_init(&roads, sandbox, &warm, (snapshot, revision)).await,
        None => base::make_base(&roads, sandbox, &warm, snapshot).await,
    };
    let result = made.map_err(|error| error.failure(sandbox));
    Worked::BaseMade { sandbox, warm: Some(warm), result }
}

/// Copies a base that another node holds.
pub(super) async fn replicate(tools: Arc<Tools>, place: SnapshotPlace) -> Worked {
    let snapshot = place.snapshot;
    let copied = async {
        let told = |told: Injected| Failure::from_error(FailureKind::Internal, &told);
        tools.faults.pass(Step::Replicate).map_err(told)?;
        let held = tools.bases.replicate(&place).await;
        let held = held.map_err(|error| Failure::from_error(error.kind(), &error))?;
        // What is known about its bytes is found out now: the first sandbox to come back would wait for it.
        let report = blocking(move || {
            held.facts();
            base::report(&held)
        });
        let report = report.await;
        tools.faults.pass(Step::Replicated).map_err(told)?;
        Ok(report)
    };
    let result = copied.await;
    metrics::operation("replicate", result.is_ok().then_some(&[]));
    Worked::Replicated { snapshot, result }
}

pub(super) async fn restore(
    roads: Arc<Roads>,
    sandbox: SandboxId,
    stored: Box<Stored>,
    digest_memory: bool,
) -> Worked {
    let result = match restore::restore(&roads, *stored, digest_memory).await {
        Ok((warm, restored)) => Ok((Box::new(warm), restored)),
        Err(not) => Err((Box::new(not.housing), not.error.failure(sandbox))),
    };
    Worked::Restored { sandbox, result }
}

/// Takes over a sandbox in dedup that another node offers.
pub(super) async fn take(
    (tools, roads): (Arc<Tools>, Arc<Roads>),
    node: NodeId,
    (sandbox, spec): (SandboxId, Box<FunctionSpec>),
    (from, address): (NodeId, String),
) -> Worked {
    let launch = launch_spec(&spec, sandbox, &node);
    let whose = (sandbox, Arc::new(*spec));
    let result = match moving::take(&roads, (&tools.host, &launch), whose, (&from, &address)).await {
        Ok((stored, taken)) => Ok((Box::new(stored), taken)),
        Err(not) => Err((not.housing.map(Box::new), not.error.failure(sandbox))),
    };
    Worked::Taken { sandbox, result }
}

/// The same as [`remove`], when a controller wants it.
pub(super) async fn remove_as_told(
    tools: Arc<Tools>,
    sandbox: SandboxId,
    remains: Option<Box<Housing>>,
) -> Worked {
    // It can only be made to wait.
    let _never_fails = tools.faults.pass(Step::Remove);
    remove(sandbox, remains).await
}

/// Ends what runs and frees all that is left.
pub(super) async fn remove(sandbox: SandboxId, remains: Option<Box<Housing>>) -> Worked {
    if let Some(housing) = remains
        && let Err(error) = housing.remove().await
    {
        tracing::error!(%sandbox, error = &error as &dyn std::error::Error, "something of a sandbox stays behind");
    }
    Worked::Removed { sandbox }
}
