//! The short way: a warm sandbox gives its memory away and stays where it is, frozen, until it is wanted.
//!
//! ```text
//! base of its function, acquired ─► pager: stop ─► copy what was written ─► recipes, proven ─► zap ─► frozen
//! ```
//!
//! Until the zap nothing is lost: after any failure before, the sandbox is warm as it was.

use std::{fmt, num::NonZeroUsize, sync::Arc};

use medes_dedup::page::SnapshotId;
use medes_proto::{
    failure::{Failure, FailureKind},
    fleet::Level,
    ids::{SandboxId, TenantName},
    registry::SnapshotPlace,
    sandbox::Phase,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bases::local::Snapshot,
    dedupe,
    driver::{Deduped, Smaller},
    engine::Engine,
    pager::{self, Paged, Pager, ParkError, ParkReport, Recipes, ShrinkParkedError},
    registry::RegistryError,
    roads::{NoEngine, Roads, Stopwatch, Warm, blocking},
};

/// Why a sandbox was not parked.
#[derive(Debug, thiserror::Error)]
pub enum ParkSandboxError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// The base could not be acquired.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The pager could not do it.
    #[error(transparent)]
    Park(#[from] ParkError),
}

impl ParkSandboxError {
    /// As the controller hears of it.
    pub fn failure(&self, sandbox: SandboxId) -> Failure {
        let kind = match self {
            Self::Park(ParkError::Forked | ParkError::Watched { .. } | ParkError::Pinned { .. }) => {
                FailureKind::DumpRefused
            }
            Self::Park(ParkError::Cancelled) => FailureKind::Cancelled,
            _ => FailureKind::DedupFailed,
        };
        let mut failure = Failure::from_error(kind, self);
        failure.message = format!("park {sandbox}: {}", failure.message);
        failure
    }
}

/// A park that did not work, and the sandbox as it was.
pub struct NotParked {
    /// Warm, unless its processes ended meanwhile, which their watcher tells.
    pub warm: Warm,
    /// Why.
    pub error: ParkSandboxError,
}

impl fmt::Debug for NotParked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("NotParked").field("error", &self.error).finish_non_exhaustive()
    }
}

/// How a sandbox is to be parked.
#[derive(Debug, Clone, Default)]
pub struct ParkOrder {
    /// A base of its function, if the controller knows one.
    pub base: Option<SnapshotPlace>,
    /// Of a hundred of its pages so many may stay: those that the next request will touch.
    pub resident_percent: u32,
}

/// Takes the memory of an idle sandbox, whose processes stay.
/// Cancelled, because it is wanted back, it is warm within milliseconds, unless its memory is being given up already.
pub async fn park(
    roads: &Roads,
    pager: &Pager,
    sandbox: SandboxId,
    mut warm: Warm,
    (order, cancelled): (ParkOrder, &CancellationToken),
) -> Result<(Warm, Deduped), Box<NotParked>> {
    let ParkOrder { base, resident_percent } = order;
    let recipes = match recipes(roads, sandbox, &warm, (base, cancelled)).await {
        Ok(recipes) => recipes,
        Err(error) => return Err(Box::new(NotParked { warm, error })),
    };
    let aligned_with = recipes.base.as_ref().map(|base| base.id);
    let cgroup = warm.housing.cgroup().clone();
    warm.past.end_tracking().await;
    let how = (recipes, resident_percent);
    match pager::park(pager, &cgroup, warm.paged.clone(), how, cancelled).await {
        Ok((paged, report)) => {
            warm.paged = Some(paged);
            let deduped = deduped(&report, aligned_with);
            tracing::debug!(%sandbox, ?report, "parked");
            Ok((warm, deduped))
        }
        Err(error) => Err(Box::new(NotParked { warm, error: error.into() })),
    }
}

fn deduped(report: &ParkReport, aligned_with: Option<SnapshotId>) -> Deduped {
    Deduped {
        stored_bytes: report.stored_bytes,
        bases: report.bases.clone(),
        pages: dedupe::counted(report.classes, 0, report.reused_pages),
        looked_up: 0,
        aligned_with,
        phases: report.phases.clone(),
        memory_digest: None,
        in_place: true,
        shrinks: report.plain_pages > 0,
    }
}

/// Why a parked sandbox is not stored smaller.
#[derive(Debug, thiserror::Error)]
pub enum ShrinkError {
    /// No settings yet, or no key.
    #[error(transparent)]
    NoEngine(#[from] NoEngine),
    /// The pager could not do it.
    #[error("store what was kept as it is")]
    Shrink(#[from] ShrinkParkedError),
}

/// Stores what was kept of a parked sandbox as it is smaller, if it still is parked; `None`: it is stored as it was.
/// Bases that it is made from are those that it had.
pub async fn shrink(
    roads: &Roads,
    tenant: &TenantName,
    paged: Paged,
) -> Result<Option<(Smaller, Vec<Phase>)>, ShrinkError> {
    // Nobody waits for it.
    let engine = roads.engine(tenant)?.with_threads(NonZeroUsize::MIN);
    let (bases, faults) = (roads.bases.clone(), roads.faults.clone());
    let recipes = Recipes { engine, base: None, bases, faults };
    let mut watch = Stopwatch::start();
    let shrunk =
        blocking(move || Ok::<_, ShrinkParkedError>(paged.shrink(&recipes)?.then_some(paged))).await?;
    watch.step("store");
    let Some(paged) = shrunk else { return Ok(None) };
    let (stored_bytes, bases, classes) = paged.kept_as();
    let smaller = Smaller { stored_bytes, bases, pages: dedupe::counted(classes, 0, 0) };
    tracing::debug!(?smaller, "stored smaller");
    Ok(Some((smaller, watch.phases())))
}

/// How its pages are to be stored. A base that is to be had as a whole is acquired before anything refers to it.
///
/// Fetching a base can take long, and may be given up anywhere.
pub(crate) async fn recipes(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    (named, cancelled): (Option<SnapshotPlace>, &CancellationToken),
) -> Result<Arc<Recipes>, ParkSandboxError> {
    tokio::select! {
        recipes = acquire(roads, sandbox, warm, named) => recipes,
        () = cancelled.cancelled() => Err(ParkError::Cancelled.into()),
    }
}

async fn acquire(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    named: Option<SnapshotPlace>,
) -> Result<Arc<Recipes>, ParkSandboxError> {
    let engine = roads.engine(&warm.spec.tenant)?;
    let base = base(roads, sandbox, warm, (&engine, named)).await;
    // What it is stored as already it holds on to for as long as it lives here.
    let held = warm.paged.as_ref().map(Paged::bases).unwrap_or_default();
    if let Some(base) = base.as_ref().filter(|base| !held.contains(&base.id)) {
        roads.registry.acquire(sandbox, &[base.id]).await?;
    }
    let (bases, faults) = (roads.bases.clone(), roads.faults.clone());
    Ok(Arc::new(Recipes { engine, base, bases, faults }))
}

async fn base(
    roads: &Roads,
    sandbox: SandboxId,
    warm: &Warm,
    (engine, named): (&Engine, Option<SnapshotPlace>),
) -> Option<Arc<Snapshot>> {
    if engine.level() == Level::None {
        return None;
    }
    let (name, tenant) = (&warm.spec.name, &warm.spec.tenant);
    let Some(place) = named else { return roads.bases.local.of_function(name, tenant) };
    let whole = roads.bases.whole(&place, tenant).await;
    whole
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(%sandbox, error, "parked without a base to align with");
        })
        .ok()
}
