//! A node with a pager, and sandboxes on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use medes_agent::{
    bases::{Bases, Budgets, local::Snapshot},
    engine::Engine,
    faults::{Faults, Step},
    pager::{self, Paged, Pager, ParkError, Parked, Recipes, Seen, ShrinkParkedError},
    sandbox::{Host, Housing, LaunchSpec, Request, RequestError, Tree},
};
use medes_dedup::key::DomainKey;
use medes_proto::fleet::EngineSettings;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::node::{self, LIMIT};

/// The tenant's key; any will do.
const KEY: DomainKey = DomainKey::from_bytes([9; 32]);

/// A node with a pager.
pub(crate) struct Desk {
    pub(crate) host: Host,
    pub(crate) pager: Pager,
    pub(crate) base: Option<Arc<Snapshot>>,
    pub(crate) resident_percent: u32,
    bases: Arc<Bases>,
    faults: Arc<Faults>,
}

/// A sandbox, which may have been parked.
pub(crate) struct Guest {
    pub(crate) housing: Housing,
    pub(crate) tree: Tree,
    pub(crate) paged: Option<Paged>,
}

/// Runs a test at a desk.
pub(crate) fn at_desk<F: Future<Output = ()>>(test: impl FnOnce(Desk) -> F) {
    node::on_node(async |host| {
        test(Desk::on(host)).await;
    });
}

impl Desk {
    pub(crate) fn on(host: Host) -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_medes-agent"));
        // So many that large working sets are given back by all of them.
        let pager = Pager::start(3, host.guard(), (host.reaper().clone(), program)).unwrap();
        let bases = Bases::new("desk".parse().unwrap(), Duration::from_secs(5), Budgets::DEFAULT);
        Self { host, pager, base: None, resident_percent: 0, bases: Arc::new(bases), faults: Arc::default() }
    }

    pub(crate) async fn start(&self, id: &str, spec: &LaunchSpec) -> Guest {
        let (housing, tree) = node::launch(&self.host, id, spec).await;
        Guest { housing, tree, paged: None }
    }

    /// From now on this step fails, once.
    pub(crate) fn fail_once(&mut self, step: Step) {
        self.faults = Arc::new(Faults::new(Some(step), 1));
    }

    /// This step will fail, once it is armed.
    pub(crate) fn may_fail(&mut self, step: Step) -> Arc<Faults> {
        self.faults = Arc::new(Faults::new(Some(step), 0));
        self.faults.clone()
    }

    pub(crate) fn recipes(&self) -> Arc<Recipes> {
        let threads = NonZeroUsize::MIN.saturating_add(1);
        let engine = Engine::new(KEY, EngineSettings::default(), threads);
        let (base, bases, faults) = (self.base.clone(), self.bases.clone(), self.faults.clone());
        Arc::new(Recipes { engine, base, bases, faults })
    }

    pub(crate) async fn try_park(
        &self,
        guest: &Guest,
        cancelled: &CancellationToken,
    ) -> Result<Parked, ParkError> {
        let cgroup = guest.housing.cgroup();
        let how = (self.recipes(), self.resident_percent);
        pager::park(&self.pager, cgroup, guest.paged.clone(), how, cancelled).await
    }

    /// Takes at most so many pages of it while it goes on, and gives what was done.
    pub(crate) async fn trim(&self, guest: &mut Guest, pages_max: usize) -> pager::ParkReport {
        let (cgroup, never) = (guest.housing.cgroup(), CancellationToken::new());
        let how = (self.recipes(), pages_max);
        let trimmed = pager::trim(&self.pager, cgroup, guest.paged.clone(), how, &never).await;
        let (paged, report) = trimmed.unwrap_or_else(|error| panic!("{error}: {error:?}"));
        guest.paged = Some(paged);
        report
    }

    /// Begins to store small what was kept of it as it is; whether anything was.
    pub(crate) fn shrink(&self, guest: &Guest) -> JoinHandle<Result<bool, ShrinkParkedError>> {
        let (paged, recipes) = (guest.paged.clone().unwrap(), self.recipes());
        spawn_blocking(move || paged.shrink(&recipes))
    }

    /// Parks it, and gives what was done.
    pub(crate) async fn park(&self, guest: &mut Guest) -> pager::ParkReport {
        let parked = self.try_park(guest, &CancellationToken::new()).await;
        let (paged, report) = parked.unwrap_or_else(|error| panic!("{error}: {error:?}"));
        guest.paged = Some(paged);
        report
    }
}

impl Guest {
    pub(crate) async fn unpark(&self) {
        self.paged.as_ref().unwrap().unpark().await.unwrap();
    }

    /// What it has written and missed since the last look, as what serves its memory tells; nothing before it was parked.
    pub(crate) fn look(&self) -> Seen {
        let window = self.paged.as_ref().and_then(|paged| paged.window(self.tree.pid()));
        let pagemap = std::fs::File::open(format!("/proc/{}/pagemap", self.tree.pid())).unwrap();
        window.map(|window| window.take(&pagemap, 0..(1 << 47) - 4096).unwrap()).unwrap_or_default()
    }

    /// Asks a program of ours.
    pub(crate) async fn ask(&self, path: &str) -> String {
        self.try_ask(path).await.unwrap_or_else(|error| panic!("{path}: {error}: {error:?}"))
    }

    /// Asks one that may have ended.
    pub(crate) async fn try_ask(&self, path: &str) -> Result<String, RequestError> {
        let response = self.housing.request(Request::get(path, LIMIT, 1 << 20)).await?;
        Ok(String::from_utf8(response.body.to_vec()).unwrap())
    }

    /// Anonymous memory that it has, in kB, as the kernel counts it.
    pub(crate) fn anonymous_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.tree.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// All its private pages, by address. It must stand still; what is missing is served.
    pub(crate) fn memory(&self, of: Option<&Memory>) -> Memory {
        let pid = self.tree.pid();
        let wanted: Vec<u64> = match of {
            Some(memory) => memory.keys().copied().collect(),
            None => present(pid),
        };
        let page = |address: u64| {
            let mut bytes = vec![0; 4096];
            let remote = RemoteIoVec { base: address.try_into().unwrap(), len: 4096 };
            let read = process_vm_readv(pid, &mut [IoSliceMut::new(&mut bytes)], &[remote]);
            (address, if read == Ok(4096) { bytes } else { Vec::new() })
        };
        wanted.into_iter().map(page).collect()
    }
}

/// Pages by address.
pub(crate) type Memory = BTreeMap<u64, Vec<u8>>;

/// Pages that differ, but for the 32 bytes in each that the kernel may write by itself for a thread (rseq).
pub(crate) fn differences(before: &Memory, after: &Memory) -> Vec<u64> {
    let differs = |(address, bytes): (&u64, &Vec<u8>)| {
        let other = after.get(address)?;
        let pairs = bytes.iter().zip(other).enumerate();
        let blocks: BTreeSet<usize> = pairs.filter(|(_, (a, b))| a != b).map(|(at, _)| at / 32).collect();
        (blocks.len() > 1 || bytes.len() != other.len()).then_some(*address)
    };
    before.iter().filter_map(differs).collect()
}

/// Addresses of private pages that are there.
fn present(pid: Pid) -> Vec<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let pagemap = std::fs::File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let mut found = Vec::new();
    for line in maps.lines().filter(|line| !line.contains("[v")) {
        let range = line.split(' ').next().unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).unwrap());
        for address in (start..end).step_by(4096) {
            let mut entry = [0; 8];
            pagemap.read_exact_at(&mut entry, address / 512).unwrap();
            // Present, and not of a file.
            if u64::from_ne_bytes(entry) >> 61 == 0b100 {
                found.push(address);
            }
        }
    }
    found
}
