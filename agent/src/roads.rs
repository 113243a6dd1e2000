//! What both roads of a page carry with them, and the sandbox at either end.

use std::{
    num::NonZeroUsize,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use medes_proto::{fleet::EngineSettings, function::FunctionSpec, ids::TenantName, sandbox::Phase};
use tokio::time::Instant;

use crate::{
    bases::Bases,
    criu::{Criu, Pool},
    earlier::{Earlier, Origin, Room},
    engine::Engine,
    faults::Faults,
    keys::Keys,
    memory_file::MappedFile,
    pager::{Learnt, Paged, Pager},
    reaper::Reaper,
    registry::Registry,
    sandbox::{Housing, Intake, Tree},
    watch::tracked::Tracked,
};

/// A sandbox with its processes.
#[derive(Debug)]
pub struct Warm {
    /// What it runs.
    pub spec: Arc<FunctionSpec>,
    /// What outlives its processes.
    pub housing: Housing,
    /// Its processes.
    pub tree: Tree,
    /// What it brings along from before.
    pub past: Past,
    /// What serves its missing pages, if it was parked since it was started or restored.
    pub paged: Option<Paged>,
}

impl Warm {
    /// One that has just been started.
    pub fn new(spec: Arc<FunctionSpec>, housing: Housing, tree: Tree) -> Self {
        Self { spec, housing, tree, past: Past::default(), paged: None }
    }
}

/// What is known of a sandbox's memory from before: it makes the next dedup cheaper, and nothing depends on it.
#[derive(Debug, Default)]
pub struct Past {
    /// Its writes and the heat of its pages, through all its lives; `None`: not tracked.
    pub tracked: Option<Arc<Tracked>>,
    /// The image it came back from.
    pub earlier: Option<Arc<Earlier>>,
    /// What it touched when it came back late or was parked.
    pub learnt: Learnt,
}

impl Past {
    /// Ends the tracking of writes before the processes are stopped. Returns whether this life's are known.
    pub async fn end_tracking(&self) -> bool {
        match &self.tracked {
            Some(tracked) => tracked.end().await,
            None => false,
        }
    }
}

/// A sandbox without processes.
#[derive(Debug)]
pub struct Stored {
    /// What it runs.
    pub spec: Arc<FunctionSpec>,
    /// What outlived its processes.
    pub housing: Housing,
    /// The dedup image, sealed.
    pub image: MappedFile,
    /// What is known of the image.
    pub origin: Origin,
    /// Its heat, kept for its next life.
    pub tracked: Option<Arc<Tracked>>,
    /// What it will touch, if it comes back late.
    pub learnt: Learnt,
}

/// What a dedup does with pages that requests write all the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HotPages {
    /// As with all others.
    Encode,
    /// Keeps them whole, compressed by themselves.
    Pack,
    /// Keeps them as they are.
    Raw,
}

impl HotPages {
    /// What a node does if it is not told otherwise.
    pub const DEFAULT: Self = Self::Pack;
}

/// When a sandbox that is restored or cloned has its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HowRestored {
    /// All of it before it runs.
    Eager,
    /// A clone has each page when it is touched, where all bases are on the node; who is restored has all of it before it runs.
    Auto,
    /// Each page when it is touched, also of who is restored.
    Late,
}

/// How long a step may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A dump or a restore by CRIU.
    pub criu: Duration,
    /// A CRIU worker to become ready.
    pub worker: Duration,
}

impl Limits {
    /// Long enough for a sandbox of gigabytes on a busy node, short enough to notice a hang.
    pub const DEFAULT: Self = Self { criu: Duration::from_secs(60), worker: Duration::from_secs(10) };
}

/// What the roads need of the node.
#[derive(Debug)]
pub struct Roads {
    /// Freezes and thaws processes.
    pub criu: Criu,
    /// CRIU processes that wait for a restore, each in a network namespace of its own.
    pub pool: Pool<Intake>,
    /// Waits for all children.
    pub reaper: Reaper,
    /// Base pages, local and remote.
    pub bases: Arc<Bases>,
    /// The controller's registry.
    pub registry: Registry,
    /// Keys of the tenants that have something here.
    pub keys: Keys,
    /// How the engine is set, once the controller has said so, which it may again; and its threads.
    settings: RwLock<Option<(EngineSettings, NonZeroUsize)>>,
    /// How long steps may take.
    pub limits: Limits,
    /// What becomes of hot pages.
    pub hot_pages: HotPages,
    /// Room for the images of sandboxes that are warm again.
    pub earlier: Room,
    /// What gives memory to clones as they touch it; `None`: all of it before they run.
    pub late_clones: Option<Pager>,
    /// The same for sandboxes that are restored.
    pub late_restores: Option<Pager>,
    /// Failures that tests ask for.
    pub faults: Arc<Faults>,
}

/// What this node must be told before it does anything for a tenant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEngine {
    /// How pages are stored.
    #[error("no controller has welcomed this node yet")]
    NotWelcomed,
    /// The tenant's key.
    #[error("no controller has told this node the key of tenant {0}")]
    NoKey(TenantName),
}

impl Roads {
    /// With everything but the engine's settings and keys, which the controller brings.
    pub fn new(
        (criu, pool): (Criu, Pool<Intake>),
        reaper: Reaper,
        bases: Arc<Bases>,
        registry: Registry,
        faults: Arc<Faults>,
    ) -> Self {
        let (keys, settings, limits) = (Keys::default(), RwLock::new(None), Limits::DEFAULT);
        let (hot_pages, earlier) = (HotPages::DEFAULT, Room::new(Room::DEFAULT_BYTES));
        let (late_clones, late_restores) = (None, None);
        Self {
            criu,
            pool,
            reaper,
            bases,
            registry,
            keys,
            settings,
            limits,
            hot_pages,
            earlier,
            late_clones,
            late_restores,
            faults,
        }
    }

    /// From now on sandboxes have their memory when this says. Without a pager: all of it before they run.
    pub fn bring_back(&mut self, how: HowRestored, pager: Option<&Pager>) {
        self.late_clones = pager.filter(|_| how != HowRestored::Eager).cloned();
        self.late_restores = pager.filter(|_| how == HowRestored::Late).cloned();
    }

    /// The engine for what belongs to a tenant, as it is set now.
    ///
    /// # Errors
    /// The controller has not said how, or not with which key.
    pub fn engine(&self, tenant: &TenantName) -> Result<Engine, NoEngine> {
        let settings = *self.settings.read().unwrap_or_else(PoisonError::into_inner);
        let (settings, threads) = settings.ok_or(NoEngine::NotWelcomed)?;
        let key = self.keys.get(tenant).ok_or_else(|| NoEngine::NoKey(tenant.clone()))?;
        Ok(Engine::new(key, settings, threads))
    }

    /// Sets the engine for every dedup and restore that begins after this.
    pub fn set_engine(&self, settings: EngineSettings, threads: NonZeroUsize) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Some((settings, threads));
    }
}

/// Measures an operation step by step.
#[derive(Debug)]
pub struct Stopwatch {
    last: Instant,
    phases: Vec<Phase>,
}

impl Stopwatch {
    /// Starts now.
    pub fn start() -> Self {
        Self { last: Instant::now(), phases: Vec::with_capacity(12) }
    }

    /// What was done since the last step had this name.
    pub fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push(Phase::new(name, now - self.last));
        self.last = now;
    }

    /// All steps.
    pub fn phases(self) -> Vec<Phase> {
        self.phases
    }
}

/// Runs blocking work on a thread meant for it; a panic there is a panic here.
///
/// Not cancel-safe: the work goes on when the future is dropped, its result is lost.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going away and nobody will look at the result.
            Err(_cancelled) => std::future::pending().await,
        },
    }
}
