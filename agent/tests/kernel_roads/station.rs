//! A node with roads: everything the agent has but the link to a controller.

use std::{num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use medes_agent::{
    base,
    bases::{Bases, Budgets},
    clone::{self, NotCloned},
    criu::{Criu, Pool},
    dedupe::{self, NotDeduped},
    driver::{DedupOrder, Deduped, Restored},
    faults::{Faults, Step},
    keys::Fits,
    pager::Pager,
    park::{self, ParkOrder},
    reaper::Reaper,
    registry::Registry,
    restore::{self, NotRestored},
    roads::{HowRestored, Roads, Stored, Warm},
    sandbox::{self, Host, HostConfig, LaunchSpec, enter_private_mounts},
};
use medes_dedup::key::DomainKey;
use medes_proto::{
    fleet::{EngineSettings, SnapshotReport, TenantKey},
    function::FunctionSpec,
    ids::{NodeId, SandboxId, SnapshotId},
    registry::SnapshotPlace,
    sandbox::Phase,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{node, registry::TestRegistry};

/// A node and its roads.
pub(crate) struct Station {
    pub(crate) host: Host,
    pub(crate) roads: Roads,
    pub(crate) registry: TestRegistry,
    next: u32,
}

/// Runs a test on a station; says so and does nothing where there is no CRIU.
pub(crate) fn at_station<F: Future<Output = ()>>(scratch_bytes: u64, test: impl FnOnce(Station) -> F) {
    enter_private_mounts().expect("private mounts");
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/criu");
    let copy = Some(copy).filter(|path| path.exists() && std::env::var_os("MEDES_CRIU").is_none());
    let criu = match Criu::find(copy.as_deref()) {
        Ok(criu) => criu,
        Err(error) => {
            println!("SKIPPED {}: {error}", std::env::var(crate::runner::ONE).unwrap_or_default());
            return;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        test(Station::open(criu, scratch_bytes).await).await;
    });
}

impl Station {
    async fn open(criu: Criu, scratch_bytes: u64) -> Self {
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let reaper = Reaper::start(&tasks, stop.clone()).expect("reaper");
        let name: NodeId = format!("roads-{}", std::process::id()).parse().expect("a name");
        let config = HostConfig { run_bytes_max: scratch_bytes, ..node::config(name.as_str()) };
        let host = Host::start(config, reaper.clone(), tasks.clone()).await.expect("host");
        criu.check(&reaper, host.run_dir()).await.expect("CRIU looks at the kernel, as an agent has it do");
        let (test_registry, channel) = TestRegistry::start(&name).await;
        let pool = Pool::start(criu.clone(), reaper.clone(), 1, &tasks, stop, sandbox::seat);
        let bases = Arc::new(Bases::new(name, Duration::from_secs(20), Budgets::DEFAULT));
        let registry = Registry::new(channel, Duration::from_secs(20));
        let roads = Roads::new((criu, pool), reaper, bases, registry, Arc::new(Faults::default()));
        let station = Self { host, roads, registry: test_registry, next: 1 };
        station.set(EngineSettings::default());
        station
    }

    /// Other settings of the engine from now on.
    pub(crate) fn set(&self, settings: EngineSettings) {
        let threads = NonZeroUsize::MIN.saturating_add(1);
        self.roads.set_engine(settings, threads);
        self.learn("default", 7);
    }

    /// From now on this is a tenant's key.
    pub(crate) fn learn(&self, tenant: &str, byte: u8) -> Fits {
        let key = DomainKey::from_bytes([byte; 32]);
        self.roads.keys.learn(TenantKey { tenant: tenant.parse().expect("a name"), key })
    }

    /// From now on sandboxes come back late.
    pub(crate) fn be_late(&mut self) {
        let program = std::path::PathBuf::from(env!("CARGO_BIN_EXE_medes-agent"));
        let pager = Pager::start(2, self.host.guard(), (self.roads.reaper.clone(), program));
        self.roads.bring_back(HowRestored::Late, Some(&pager.expect("a pager")));
    }

    /// A restore without a look at the memory, which would have to be there for that.
    pub(crate) async fn restore_unseen(&self, stored: Stored) -> Result<(Warm, Restored), Box<NotRestored>> {
        restore::restore(&self.roads, stored, false).await
    }

    /// Takes a sandbox's memory and leaves its processes.
    pub(crate) async fn park(&self, id: SandboxId, warm: Warm) -> (Warm, Deduped) {
        let pager = self.roads.late_clones.as_ref().expect("a pager");
        let (order, never) = (ParkOrder::default(), CancellationToken::new());
        let parked = park::park(&self.roads, pager, id, warm, (order, &never)).await;
        parked.expect("parked")
    }

    /// From now on this step fails, once.
    pub(crate) fn fail_once(&mut self, step: Step) {
        self.roads.faults = Arc::new(Faults::new(Some(step), 1));
    }

    /// A warm sandbox of the test function.
    pub(crate) async fn start(&mut self) -> (SandboxId, Warm) {
        self.start_as("probe").await
    }

    /// One that is started in another way, and whose function file has these lines more.
    pub(crate) async fn start_with(&mut self, launch: &LaunchSpec, lines: &str) -> (SandboxId, Warm) {
        let id = self.id();
        let (housing, tree) = node::launch(&self.host, &id.to_string(), launch).await;
        (id, Warm::new(spec(lines), housing, tree))
    }

    /// A number that no sandbox has.
    pub(crate) fn id(&mut self) -> SandboxId {
        let id = SandboxId::of(1, self.next).expect("an id");
        self.next += 1;
        id
    }

    /// The init snapshot of a sandbox.
    pub(crate) async fn init(&mut self, sandbox: SandboxId, warm: &Warm) -> SnapshotReport {
        let id = SnapshotId::new(u64::from(self.next)).expect("an id");
        self.next += 1;
        let made = base::make_init(&self.roads, sandbox, warm, (id, 3)).await;
        made.expect("an init snapshot").0
    }

    /// One more sandbox of an init snapshot of this node.
    pub(crate) async fn clone_of(
        &self,
        id: SandboxId,
        of: SnapshotId,
        launch: &LaunchSpec,
        lines: &str,
    ) -> Result<(Warm, Vec<Phase>), Box<NotCloned>> {
        let place =
            SnapshotPlace { snapshot: of, node: self.roads.bases.node().clone(), address: String::new() };
        clone::clone(&self.roads, (&self.host, launch), (id, spec(lines)), &place).await
    }

    /// The same under another function's name.
    pub(crate) async fn start_as(&mut self, function: &str) -> (SandboxId, Warm) {
        let id = SandboxId::of(1, self.next).expect("an id");
        self.next += 1;
        let (housing, tree) = node::launch(&self.host, &id.to_string(), &node::function()).await;
        let spec =
            FunctionSpec::from_toml(&format!("name = '{function}'\ncommand = ['x']")).expect("a function");
        (id, Warm::new(Arc::new(spec), housing, tree))
    }

    /// A base snapshot of a new sandbox, which is then ended.
    pub(crate) async fn base(&mut self) -> SnapshotReport {
        let (sandbox, warm) = self.start().await;
        let id = SnapshotId::new(u64::from(self.next)).expect("an id");
        let (report, _) = base::make_base(&self.roads, sandbox, &warm, id).await.expect("a base snapshot");
        assert_eq!(value(&warm, "1 + 1").await, "2", "a base's sandbox runs on");
        warm.housing.remove().await.expect("removed");
        report
    }

    pub(crate) async fn dedup(
        &self,
        id: SandboxId,
        warm: Warm,
    ) -> Result<(Stored, Deduped), Box<NotDeduped>> {
        self.dedup_with(id, warm, None).await
    }

    /// With a base that the controller named.
    pub(crate) async fn dedup_with(
        &self,
        id: SandboxId,
        warm: Warm,
        base: Option<SnapshotPlace>,
    ) -> Result<(Stored, Deduped), Box<NotDeduped>> {
        dedupe::dedup(&self.roads, id, warm, DedupOrder { digest_memory: true, base }).await
    }

    pub(crate) async fn restore(&self, stored: Stored) -> Result<(Warm, Restored), Box<NotRestored>> {
        restore::restore(&self.roads, stored, true).await
    }
}

fn spec(lines: &str) -> Arc<FunctionSpec> {
    Arc::new(
        FunctionSpec::from_toml(&format!("name = 'probe'\ncommand = ['x']\n{lines}")).expect("a function"),
    )
}

/// What code may use; `kept` is state that lives as long as the process.
const PRELUDE: &str = "import builtins as kept, os, socket, threading, time\n";

/// Runs code in the test function.
pub(crate) async fn run(warm: &Warm, code: &str) {
    node::result(&warm.housing, &format!("{PRELUDE}{code}")).await;
}

/// What an expression is in the test function, as text.
pub(crate) async fn value(warm: &Warm, expression: &str) -> String {
    node::result(&warm.housing, &format!("{PRELUDE}result = {expression}")).await
}

/// The bytes that an expression is in the test function.
pub(crate) async fn bytes(warm: &Warm, expression: &str) -> Vec<u8> {
    let hex = value(warm, &format!("({expression}).hex()")).await;
    let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// Whether one has the other somewhere.
pub(crate) fn shows(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|at| at == part)
}
