//! Park and unpark, from top to bottom.

use std::sync::Arc;
use std::time::Duration;

use medes_dedup::image::PageClasses;
use medes_dedup::page::SnapshotId;
use medes_proto::sandbox::Phase;
use tokio::{sync::oneshot, time::timeout};
use tokio_util::sync::CancellationToken;

use super::counts::Counts;
use super::fault::{FaultError, Lost};
use super::handler::Pager;
use super::recipes::{Recipes, StorePagesError};
use super::saved::Saved;
use super::space::{Hands, Space};
use super::stopped::{How, ParkError, Stopped, Zapped};
use super::store::{ParkedImage, Store};
use super::take::Take;
use crate::account::Images;
use crate::faults::Step;
use crate::roads::{Stopwatch, blocking};
use crate::sandbox::cgroup::{CgroupError, SandboxCgroup};

/// Memory of a sandbox that was parked at least once: wherever pages of it are missing, they are served. Cheap to clone.
///
/// Dropping it ends nothing: the service goes on until the processes have ended, or until all is back ([`Paged::release`]).
#[derive(Debug, Clone)]
pub struct Paged {
    pub(super) pager: Pager,
    cgroup: SandboxCgroup,
    pub(super) spaces: Vec<Arc<Space>>,
    lost: Arc<Lost>,
}

/// Longest that a sandbox waits for what it will probably touch before it may run.
const HEAD_WAIT: Duration = Duration::from_secs(1);

/// What was done, and what the sandbox is stored as now.
#[derive(Debug, Clone)]
pub struct ParkReport {
    /// All bytes kept for it: images and tables.
    pub stored_bytes: u64,
    /// Pages kept for it.
    pub pages: u64,
    /// Pages that were stored this time: those written since the last time.
    pub saved_pages: u64,
    /// Pages that were taken over as they were stored.
    pub reused_pages: u64,
    /// Pages that are kept as they are for now: see [`Paged::shrink`].
    pub plain_pages: u64,
    /// What all pages that are kept are stored as.
    pub classes: PageClasses,
    /// Base snapshots that its pages are made from.
    pub bases: Vec<SnapshotId>,
    /// Pages of mappings that cannot be parked: locked ones, those of devices.
    pub left_out_pages: u64,
    /// Pages that stay: because the next request will touch them, or because they are not cold.
    pub resident_pages: u64,
    /// Pages that were there and are not any more, of one that goes on.
    pub taken_pages: u64,
    /// There are more of these.
    pub has_more: bool,
    /// For how long it stood still.
    pub stood: Duration,
    /// How long each step took.
    pub phases: Vec<Phase>,
}

/// A sandbox without memory of its own.
pub type Parked = (Paged, ParkReport);

/// Takes the memory of an idle sandbox, whose processes stay, frozen. `before`: what is left of the last time.
///
/// After an error it is warm as it was, unless its processes have ended. Cancelled, it is so within milliseconds, unless its
/// memory is being given up already: then it is parked.
///
/// Dropping the future leaves the work to be finished by itself.
pub async fn park(
    pager: &Pager,
    cgroup: &SandboxCgroup,
    before: Option<Paged>,
    (recipes, resident_percent): (Arc<Recipes>, u32),
    cancelled: &CancellationToken,
) -> Result<Parked, ParkError> {
    let (paged, mut report) =
        take((pager, cgroup), before, (recipes, Take::All { resident_percent }), cancelled).await?;
    let mut watch = Stopwatch::start();
    paged.cgroup.freeze().await.unwrap_or_else(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "a parked sandbox is not frozen");
    });
    watch.step("freeze");
    report.phases.extend(watch.phases());
    Ok((paged, report))
}

/// Takes at most so many pages of a sandbox that goes on: pages that it has neither written since the last time nor ever missed. The
/// first time none is taken: from then on it shows which are written.
///
/// Errors and cancelling are as for [`park`].
pub async fn trim(
    pager: &Pager,
    cgroup: &SandboxCgroup,
    before: Option<Paged>,
    (recipes, pages_max): (Arc<Recipes>, usize),
    cancelled: &CancellationToken,
) -> Result<Parked, ParkError> {
    take((pager, cgroup), before, (recipes, Take::Cold { pages_max }), cancelled).await
}

async fn take(
    (pager, cgroup): (&Pager, &SandboxCgroup),
    before: Option<Paged>,
    (recipes, take): (Arc<Recipes>, Take),
    cancelled: &CancellationToken,
) -> Result<Parked, ParkError> {
    let mut watch = Stopwatch::start();
    let lost = match &before {
        Some(paged) => paged.lost.clone(),
        None => Arc::new(Lost::new(cgroup.clone(), recipes.faults.clone())),
    };
    let known = before.map(|paged| paged.spaces).unwrap_or_default();
    let (taker, group, losing) = (pager.clone(), cgroup.clone(), lost.clone());
    let wanted = cancelled.clone();
    let threads = recipes.engine.threads;
    let taking = move || {
        let how = How { lost: &losing, cancelled: &wanted, take, threads };
        Stopped::take(&taker, &group, &known, how)
    };
    let mut stopped = blocking(taking).await?;
    watch.step("stop");
    let saved = stopped.take_saved();
    let saved_pages = saved.iter().map(|saved| saved.fresh as u64).sum();
    let faults = recipes.faults.clone();
    let storing = blocking(move || store(&recipes, saved));
    let stored = tokio::select! {
        stored = storing => stored.map_err(ParkError::from),
        () = cancelled.cancelled() => Err(ParkError::Cancelled),
    };
    let stored = stored.and_then(|stored| {
        faults.pass(Step::ParkZap).map_err(StorePagesError::from)?;
        Ok(stored)
    });
    let stored = match stored {
        Ok(stored) => stored,
        Err(error) => {
            blocking(move || stopped.abort()).await?;
            return Err(error);
        }
    };
    watch.step("store");
    let zapped = blocking(move || stopped.zap(stored, take)).await?;
    watch.step("zap");
    Ok(zapped.report((pager, cgroup), lost, (saved_pages, watch.phases())))
}

impl Zapped {
    /// What serves it from now on, and what was done.
    fn report(
        self,
        (pager, cgroup): (&Pager, &SandboxCgroup),
        lost: Arc<Lost>,
        (saved_pages, phases): (u64, Vec<Phase>),
    ) -> Parked {
        let Self { spaces, stood, left_out_pages, resident_pages, taken_pages, has_more } = self;
        let paged = Paged::of(pager, cgroup, spaces, lost);
        let Stored { bytes: stored_bytes, pages, plain_pages, bases, classes } = paged.stored();
        let reused_pages = pages.saturating_sub(saved_pages);
        let report = ParkReport {
            stored_bytes,
            pages,
            saved_pages,
            reused_pages,
            plain_pages,
            classes,
            bases,
            left_out_pages,
            resident_pages,
            taken_pages,
            has_more,
            stood,
            phases,
        };
        (paged, report)
    }
}

/// For each process what it is stored as from now on, if that is something else than before.
fn store(recipes: &Recipes, saved: Vec<Saved>) -> Result<Vec<Option<Store>>, StorePagesError> {
    saved.into_iter().map(|saved| recipes.store(saved)).collect()
}

/// What is kept for a sandbox.
#[derive(Debug, Default)]
struct Stored {
    bytes: u64,
    pages: u64,
    plain_pages: u64,
    bases: Vec<SnapshotId>,
    classes: PageClasses,
}

fn add(sum: &mut PageClasses, more: PageClasses) {
    sum.zero += more.zero;
    sum.same += more.same;
    sum.delta += more.delta;
    sum.whole += more.whole;
}

/// Why the memory of a sandbox could not be brought back as a whole. It is ended if a page is lost.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    /// It could not be made to stand still.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A page of it is lost.
    #[error(transparent)]
    Fault(#[from] FaultError),
}

impl Paged {
    /// Memory that is served by `spaces`.
    pub(super) fn of(
        pager: &Pager,
        cgroup: &SandboxCgroup,
        spaces: Vec<Arc<Space>>,
        lost: Arc<Lost>,
    ) -> Self {
        Self { pager: pager.clone(), cgroup: cgroup.clone(), spaces, lost }
    }

    /// Gives back what it will touch, and returns when it may run: most of that, or all, is there. The rest comes while it does.
    pub async fn push(&self) {
        self.give_back(false).await;
    }

    /// The same for one whose processes are all stopped.
    pub async fn push_to_stopped(&self) {
        self.give_back(true).await;
    }

    async fn give_back(&self, is_stopped: bool) {
        let (head, given) = oneshot::channel();
        let paged = self.clone();
        // Sorting what a large process will touch takes milliseconds.
        blocking(move || {
            let head = Arc::new(head);
            // One that could not be frozen runs while it is parked.
            let stands = is_stopped || paged.cgroup.is_frozen();
            paged.spaces.iter().for_each(|space| paged.pager.push(space, head.clone(), stands));
        })
        .await;
        // Nothing is ever sent: this ends when nobody has it any more.
        if timeout(HEAD_WAIT, given).await.is_err() {
            tracing::warn!(
                "what a sandbox will touch takes long to come back; it goes on with what is there"
            );
            let spaces = self.spaces.clone();
            blocking(move || spaces.iter().for_each(|space| space.run_on())).await;
        }
    }

    /// Lets a parked sandbox go on, with what it touched last time; the rest comes as it is touched. Dropped before, it stays parked.
    ///
    /// # Errors
    /// It cannot be thawed.
    pub async fn unpark(&self) -> Result<(), CgroupError> {
        self.push().await;
        self.cgroup.thaw()
    }

    /// Brings everything back and ends the service: the sandbox is as if it had never been parked. It stands still
    /// meanwhile, and runs afterwards.
    pub async fn release(self) -> Result<(), ReleaseError> {
        if let Err(error) = self.cgroup.freeze().await {
            self.cgroup.thaw()?;
            return Err(error.into());
        }
        let Self { pager, cgroup, spaces, lost } = self;
        blocking(move || {
            let mut hands = Hands::new();
            for space in spaces {
                if let Err(error) = space.wait_settled() {
                    lost.end_quietly();
                    return Err(FaultError::from(error).into());
                }
                for one in pager.children(&space).into_iter().chain([space]) {
                    if let Err(error) = one.fill(&mut hands) {
                        lost.end_quietly();
                        return Err(error.into());
                    }
                    pager.release(&one);
                }
            }
            Ok(cgroup.thaw()?)
        })
        .await
    }

    /// Why it was ended, if a page of it could not be had.
    pub fn why_lost(&self) -> Option<&FaultError> {
        self.lost.why()
    }

    /// What was done for it since it was first parked.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for space in &self.spaces {
            counts += space.lock().counts;
        }
        counts
    }

    fn stored(&self) -> Stored {
        let mut stored = Stored::default();
        // Of a sandbox that was not parked yet, all processes have one image.
        let mut seen: Vec<*const ParkedImage> = Vec::new();
        for space in &self.spaces {
            let state = space.lock();
            stored.bytes += state.store().table().memory_bytes() as u64;
            stored.pages += state.store().table().pages();
            if let Some(plain) = state.store().plain() {
                stored.bytes += plain.file().len() as u64;
                let (classes, plain_pages) = state.store().classes();
                stored.plain_pages += plain_pages;
                add(&mut stored.classes, classes);
            }
            let image = state.store().image().filter(|image| !seen.contains(&Arc::as_ptr(image)));
            if let Some(image) = image {
                seen.push(Arc::as_ptr(image));
                stored.bytes += image.image().stored_bytes();
                stored.bases.extend(image.image().bases());
                if state.store().plain().is_none() {
                    add(&mut stored.classes, image.image().classes());
                }
            }
        }
        stored.bases.sort_unstable();
        stored.bases.dedup();
        stored
    }

    /// What is kept for it, file by file.
    pub fn images(&self) -> Images {
        let mut images = Images::default();
        for space in &self.spaces {
            let state = space.lock();
            images.add_table(state.store().table().memory_bytes() as u64);
            if let Some(plain) = state.store().plain() {
                images.add_plain(plain.file());
            }
            if let Some(image) = state.store().image() {
                images.add(image.image());
                image.held().iter().for_each(|base| images.hold(base));
            }
        }
        images
    }

    /// What it is stored as now: all bytes, the bases its pages are made from, and what these are stored as.
    pub fn kept_as(&self) -> (u64, Vec<SnapshotId>, PageClasses) {
        let Stored { bytes, bases, classes, .. } = self.stored();
        (bytes, bases, classes)
    }

    /// Bytes kept for it now.
    pub fn stored_bytes(&self) -> u64 {
        self.stored().bytes
    }

    /// Base snapshots that its pages are made from.
    pub fn bases(&self) -> Vec<SnapshotId> {
        self.stored().bases
    }
}
