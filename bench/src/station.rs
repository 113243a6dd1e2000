//! A node in this process: everything an agent has but the link to a controller.
//!
//! An experiment that has one must enter its mount namespace before any thread exists.

pub(crate) mod ask;
pub(crate) mod plain;
mod registry;

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use medes_agent::{
    bases::{Bases, Budgets},
    criu::{Criu, Pool},
    faults::Faults,
    launch_spec::launch_spec,
    pager::Pager,
    park,
    reaper::Reaper,
    registry::Registry,
    roads::{HowRestored, Roads, Warm},
    sandbox::{self, Host, HostConfig, Housing, cgroup::SandboxCgroup, enter_private_mounts},
};
use medes_controller::registry::{Registry as _, Table, TableSettings};
use medes_dedup::{key::DomainKey, page::SnapshotId};
use medes_proto::{
    fleet::{EngineSettings, TenantKey},
    function::FunctionSpec,
    ids::{NodeId, SandboxId},
};
use nix::mount::{MntFlags, umount2};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::scratch::Scratch;

/// As the agent has them by default.
const IMAGES_BYTES_MAX: u64 = 4 << 30;
const RESTORE_WORKERS: usize = 2;
const THREADS_MAX: usize = 8;
const PAGER_THREADS: usize = 2;
/// A call to the registry that takes longer has failed.
const REGISTRY_MAX: Duration = Duration::from_secs(20);
const STOP_MAX: Duration = Duration::from_secs(15);

/// The tenant's key; any will do.
pub(crate) const KEY: DomainKey = DomainKey::from_bytes([0x42; 32]);

/// A node and its roads.
pub(crate) struct Station {
    pub(crate) host: Host,
    pub(crate) roads: Arc<Roads>,
    /// The agent's program.
    pub(crate) program: PathBuf,
    table: Arc<Table>,
    scratch: Scratch,
    /// Control groups of the sandboxes of this function, in case something of them is left.
    cgroups: BTreeMap<SandboxId, SandboxCgroup>,
    next: u32,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Threads for the work on one sandbox's pages.
pub(crate) fn threads() -> NonZeroUsize {
    let most = NonZeroUsize::new(THREADS_MAX).unwrap_or(NonZeroUsize::MIN);
    std::thread::available_parallelism().map_or(NonZeroUsize::MIN, |found| found.min(most))
}

/// Does something on a node that exists for as long as it takes. Call it before any thread exists.
pub(crate) fn at<T>(program: PathBuf, work: impl AsyncFnOnce(&mut Station) -> Result<T>) -> Result<T> {
    enter_private_mounts()?;
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    runtime.block_on(async {
        let mut station = Station::open(program).await?;
        let done = work(&mut station).await;
        // The first error is the one to tell.
        let closed = station.close().await;
        done.and_then(|done| closed.map(|()| done))
    })
}

impl Station {
    /// Sets the node up. `program` is the agent's: the first step of a sandbox is a process of it.
    async fn open(program: PathBuf) -> Result<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let reaper = Reaper::start(&tasks, stop.clone()).context("start the reaper")?;
        let node: NodeId = format!("bench-{}", std::process::id()).parse().context("name the node")?;
        let scratch = Scratch::make()?;
        let config = HostConfig {
            node: node.to_string(),
            run_dir: scratch.path().join("run"),
            run_bytes_max: IMAGES_BYTES_MAX,
            program: program.clone(),
            takeover: Duration::ZERO,
            in_scope: false,
        };
        let host = Host::start(config, reaper.clone(), tasks.clone()).await.context("set a node up")?;
        let criu = Criu::find(None)?;
        criu.check(&reaper, host.run_dir()).await.context("try CRIU")?;
        let pool =
            Pool::start(criu.clone(), reaper.clone(), RESTORE_WORKERS, &tasks, stop.clone(), sandbox::seat);
        let table = Arc::new(Table::new(TableSettings::default()));
        let channel = registry::serve(table.clone(), node.clone(), &tasks, stop.clone())?;
        let bases = Arc::new(Bases::new(node, REGISTRY_MAX, Budgets::DEFAULT));
        let registry = Registry::new(channel, REGISTRY_MAX);
        let roads = Roads::new((criu, pool), reaper, bases, registry, Arc::new(Faults::default()));
        roads.set_engine(EngineSettings::default(), threads());
        roads.keys.learn(TenantKey { tenant: "default".parse().context("name the tenant")?, key: KEY });
        let roads = Arc::new(roads);
        Ok(Self { host, roads, program, table, scratch, cgroups: BTreeMap::new(), next: 1, stop, tasks })
    }

    /// A number no sandbox and no snapshot had before.
    pub(crate) fn number(&mut self) -> Result<(SandboxId, SnapshotId)> {
        let number = self.next;
        self.next += 1;
        let (sandbox, snapshot) = (SandboxId::of(1, number), SnapshotId::new(number.into()));
        sandbox.zip(snapshot).context("numbers start at one")
    }

    /// A cold start, until the function says it is ready.
    pub(crate) async fn start(&mut self, sandbox: SandboxId, spec: &Arc<FunctionSpec>) -> Result<Warm> {
        let id = sandbox::SandboxId::new(sandbox.to_string())?;
        let housing = Housing::create(&self.host, &id, &launch_spec(spec, sandbox, self.roads.bases.node()))
            .await
            .context("house a sandbox")?;
        self.cgroups.insert(sandbox, housing.cgroup().clone());
        let tree = housing.launch().await.context("start a sandbox")?;
        Ok(Warm::new(spec.clone(), housing, tree))
    }

    /// A pager of this node.
    pub(crate) fn pager(&self) -> Result<Pager> {
        let starter = (self.roads.reaper.clone(), self.program.clone());
        Pager::start(PAGER_THREADS, self.host.guard(), starter).context("start the pager")
    }

    /// From now on sandboxes have their memory when this says.
    pub(crate) fn bring_back(&mut self, how: HowRestored, pager: &Pager) -> Result<()> {
        let roads = Arc::get_mut(&mut self.roads).context("change the roads while somebody is on them")?;
        roads.bring_back(how, Some(pager));
        Ok(())
    }

    /// From now on sandboxes have their memory as they touch it, or all of it before they run.
    pub(crate) fn be_late(&mut self, pager: Option<&Pager>) -> Result<()> {
        let roads = Arc::get_mut(&mut self.roads).context("change the roads while somebody is on them")?;
        roads.bring_back(HowRestored::Late, pager);
        Ok(())
    }

    /// Stores a parked sandbox small, as agents do once it has waited; what is then kept for it, if that is something else.
    pub(crate) async fn shrink_parked(&self, warm: &Warm) -> Result<Option<u64>> {
        let paged = warm.paged.clone().context("it is parked")?;
        let shrunk = park::shrink(&self.roads, &warm.spec.tenant, paged).await;
        Ok(shrunk.context("store it small")?.map(|(smaller, _)| smaller.stored_bytes))
    }

    /// Ends a sandbox and frees all that is left of it.
    pub(crate) async fn remove(&mut self, sandbox: SandboxId, housing: &Housing) -> Result<()> {
        housing.remove().await.with_context(|| format!("remove {sandbox}"))?;
        self.cgroups.remove(&sandbox);
        Ok(())
    }

    /// Ends what a failure left running, and forgets every base snapshot.
    pub(crate) async fn clear(&mut self) -> Result<()> {
        while let Some((sandbox, cgroup)) = self.cgroups.pop_first() {
            cgroup.kill().await.with_context(|| format!("end {sandbox}"))?;
        }
        for snapshot in (1..self.next).filter_map(|number| SnapshotId::new(number.into())) {
            self.roads.bases.local.remove(snapshot);
            self.table.forget(snapshot);
        }
        Ok(())
    }

    /// Ends the node. What it leaves behind after an error goes with this process.
    async fn close(mut self) -> Result<()> {
        self.clear().await?;
        let run_dir = self.host.run_dir().to_owned();
        self.stop.cancel();
        drop((self.host, self.roads));
        self.tasks.close();
        if tokio::time::timeout(STOP_MAX, self.tasks.wait()).await.is_err() {
            eprintln!("{} tasks did not end within {} s", self.tasks.len(), STOP_MAX.as_secs());
        }
        umount2(&run_dir, MntFlags::MNT_DETACH).with_context(|| format!("unmount {}", run_dir.display()))?;
        self.scratch.remove()
    }
}
