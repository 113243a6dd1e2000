//! The ways to keep a sandbox that nobody uses just now: some sandboxes of one function are put away and come back, and answer.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use medes_agent::{
    base, clone, dedupe,
    driver::DedupOrder,
    launch_spec::launch_spec,
    pager::Pager,
    park::{self, ParkOrder},
    restore,
    roads::{Stopwatch, Stored, Warm, blocking},
    sandbox::{Housing, cgroup::SandboxCgroup},
};
use medes_controller::driver::Keeping;
use medes_dedup::page::SnapshotId;
use medes_proto::{function::FunctionSpec, ids::SandboxId, registry::SnapshotPlace};
use tokio_util::sync::CancellationToken;

use super::{
    ksm::{self, Ksm},
    packed::Packed,
    spent,
    swap::{self, Zram},
};
use crate::station::{
    Station,
    ask::{Reply, ask},
    plain::{self, Images},
};

/// Requests before a sandbox is as it stays.
const REQUESTS: u64 = 3;
/// The request whose times are compared, the same for every way.
const COMPARED: u64 = 1_000_007;
/// Parks that teach what is touched, and are not counted.
const LESSONS: usize = 2;

/// What becomes of an idle sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It ends, and another one is started.
    Cold,
    /// It ends, and another one is made of its function's init snapshot.
    Clone,
    /// It stays as it is.
    KeepAlive,
    /// It stays, and the kernel merges equal pages.
    Ksm,
    /// It stays, and the kernel swaps it to compressed memory, with this algorithm.
    Zram(&'static str),
    /// Its images stay as CRIU wrote them, in memory.
    Criu,
    /// The same, compressed by zstd at this level.
    CriuZstd(i32),
    /// Ours: it stays without its memory.
    Parked,
    /// Ours: a dedup image stays.
    Dedup,
}

/// All, in the order of the report. What changes the machine comes last.
pub(super) const WAYS: [Way; 11] = [
    Way::Cold,
    Way::KeepAlive,
    Way::Criu,
    Way::CriuZstd(1),
    Way::CriuZstd(3),
    Way::Clone,
    Way::Parked,
    Way::Dedup,
    Way::Zram("lzo-rle"),
    Way::Zram("lz4"),
    Way::Ksm,
];

impl Way {
    pub(super) fn name(self) -> String {
        match self {
            Self::Cold => "cold".into(),
            Self::Clone => "clone".into(),
            Self::KeepAlive => "keep-alive".into(),
            Self::Ksm => "ksm".into(),
            Self::Zram(algorithm) => format!("zram-{algorithm}"),
            Self::Criu => "criu".into(),
            Self::CriuZstd(level) => format!("criu-zstd-{level}"),
            Self::Parked => "parked".into(),
            Self::Dedup => "dedup".into(),
        }
    }

    /// It is part of Medes, and keeps the sandbox.
    pub(super) const fn is_ours(self) -> bool {
        matches!(self, Self::Parked | Self::Dedup)
    }

    /// The sandbox that comes back is the one that went.
    pub(super) const fn keeps_the_sandbox(self) -> bool {
        !matches!(self, Self::Cold | Self::Clone)
    }

    /// It changes settings of the machine.
    pub(super) const fn is_host_wide(self) -> bool {
        matches!(self, Self::Ksm | Self::Zram(_))
    }

    const fn uses_snapshot(self) -> bool {
        matches!(self, Self::Clone | Self::Parked | Self::Dedup)
    }
}

/// What a way came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Measured {
    /// Of each sandbox while it was away, each time: the kernel's account of its group, and all that is stored for it.
    pub(super) held_bytes: Vec<u64>,
    /// Held once for all sandboxes of the function.
    pub(super) shared_bytes: u64,
    /// Putting one away.
    pub(super) away_ms: Vec<f64>,
    /// From the order to the last byte of the first answer.
    pub(super) answer_ms: Vec<f64>,
    /// Processor time of putting one away, and of bringing one back and its answer, means of each time.
    pub(super) away_cpu_ms: Vec<f64>,
    pub(super) back_cpu_ms: Vec<f64>,
}

/// A function on a node, and how often to measure.
pub(super) struct Bench<'b> {
    pub(super) station: &'b mut Station,
    pub(super) pager: &'b Pager,
    pub(super) spec: Arc<FunctionSpec>,
    pub(super) sandboxes: usize,
    pub(super) cycles: usize,
}

/// Where a sandbox is.
enum Place {
    Warm(Warm),
    Images(Housing, Arc<FunctionSpec>, Images),
    Packed(Housing, Arc<FunctionSpec>, Packed),
    Image(Box<Stored>),
}

/// What is known of a sandbox wherever it is.
struct Guest {
    id: SandboxId,
    group: SandboxCgroup,
    last: Reply,
    /// What is stored for it outside of its group.
    stored_bytes: u64,
}

/// What the whole machine does for a way.
enum Help {
    None,
    Ksm(Ksm),
    Zram(Zram),
}

impl Bench<'_> {
    /// Goes a way with some sandboxes, all at once away, several times.
    pub(super) async fn measure(&mut self, way: Way) -> Result<Measured> {
        let snapshot = match way.uses_snapshot() {
            true => Some(self.snapshot().await.context("make an init snapshot")?),
            false => None,
        };
        let mut measured = Measured::default();
        if let Some((_, bytes)) = &snapshot {
            measured.shared_bytes = *bytes;
        }
        let base = snapshot.map(|(place, _)| place);
        if !way.keeps_the_sandbox() {
            for _ in 0..self.cycles * self.sandboxes {
                self.fresh(base.as_ref(), &mut measured).await?;
            }
            return Ok(measured);
        }
        let help = match way {
            Way::Ksm => Help::Ksm(Ksm::start()?),
            Way::Zram(algorithm) => Help::Zram(Zram::start(algorithm)?),
            _ => Help::None,
        };
        let mut guests = self.guests(way).await?;
        let lessons = if way == Way::Parked { LESSONS } else { 0 };
        for cycle in 0..lessons + self.cycles {
            let mut found = if cycle < lessons { Measured::default() } else { std::mem::take(&mut measured) };
            guests = self.there_and_back(way, (guests, base.as_ref(), &help), &mut found).await?;
            if cycle >= lessons {
                measured = found;
            }
        }
        for (guest, warm) in guests {
            self.station.remove(guest.id, &warm.housing).await?;
        }
        Ok(measured)
    }

    /// New sandboxes that have served some requests.
    async fn guests(&mut self, way: Way) -> Result<Vec<(Guest, Warm)>> {
        let spec = match way {
            Way::Ksm => Arc::new(ksm::asking(&self.spec)),
            _ => self.spec.clone(),
        };
        let mut guests = Vec::new();
        for number in 0..self.sandboxes as u64 {
            let (id, _) = self.station.number()?;
            let warm = self.station.start(id, &spec).await?;
            for request in 1..=REQUESTS {
                ask(&warm.housing, number * REQUESTS + request).await?;
            }
            let last = ask(&warm.housing, COMPARED).await?;
            let group = warm.housing.cgroup().clone();
            guests.push((Guest { id, group, last, stored_bytes: 0 }, warm));
        }
        Ok(guests)
    }

    /// All go, and are counted; all come back, and answer.
    async fn there_and_back(
        &mut self,
        way: Way,
        (guests, base, help): (Vec<(Guest, Warm)>, Option<&SnapshotPlace>, &Help),
        measured: &mut Measured,
    ) -> Result<Vec<(Guest, Warm)>> {
        let count = guests.len() as f64;
        let groups: Vec<SandboxCgroup> = guests.iter().map(|(guest, _)| guest.group.clone()).collect();
        let before = spent::so_far(&groups) + help.spent();
        let mut away = Vec::new();
        for (mut guest, warm) in guests {
            let began = Instant::now();
            let place = self.put_away(way, &mut guest, warm, base).await;
            let place = place.with_context(|| format!("put {} away", guest.id))?;
            measured.away_ms.push(millis(began));
            away.push((guest, place));
        }
        if let Help::Ksm(ksm) = help {
            ksm.settle().await?;
        }
        measured.away_cpu_ms.push((spent::so_far(&groups) + help.spent() - before) / count);
        // The device was empty before there was a sandbox: all it holds is theirs.
        let swapped = help.swapped_bytes()? / away.len().max(1) as u64;
        if let Help::Ksm(_) = help {
            let pids = groups.iter().flat_map(|group| group.pids().unwrap_or_default());
            measured.shared_bytes = pids.map(|pid| ksm::item_bytes(pid.as_raw())).sum();
        }
        for (guest, place) in &away {
            measured.held_bytes.push(place.held_bytes() + guest.stored_bytes + swapped);
        }
        let before = spent::so_far(&groups);
        let mut back = Vec::new();
        for (mut guest, place) in away {
            if let Way::Zram(_) = way {
                swap::cache_files(&guest.group)?;
            }
            let began = Instant::now();
            let warm = self.bring_back(place).await.with_context(|| format!("bring {} back", guest.id))?;
            let reply = ask(&warm.housing, COMPARED).await?;
            measured.answer_ms.push(millis(began));
            ensure!(guest.last.continues_in(&reply), "{} answers as another process", guest.id);
            (guest.last, guest.stored_bytes) = (reply, 0);
            back.push((guest, warm));
        }
        measured.back_cpu_ms.push((spent::so_far(&groups) - before) / count);
        Ok(back)
    }

    async fn put_away(
        &mut self,
        way: Way,
        guest: &mut Guest,
        warm: Warm,
        base: Option<&SnapshotPlace>,
    ) -> Result<Place> {
        let roads = &self.station.roads;
        match way {
            Way::Criu | Way::CriuZstd(_) => {
                let images = plain::dump(self.station, &warm.housing, &warm.tree, "plain").await?;
                let Warm { spec, housing, tree, .. } = warm;
                tree.kill().await?;
                let Way::CriuZstd(level) = way else {
                    guest.stored_bytes = images.bytes()?;
                    return Ok(Place::Images(housing, spec, images));
                };
                let packed = blocking(move || Packed::of(images, level)).await?;
                guest.stored_bytes = packed.bytes();
                Ok(Place::Packed(housing, spec, packed))
            }
            Way::Parked => {
                let resident_percent = Keeping::default().parked_resident_percent;
                let (order, never) =
                    (ParkOrder { base: base.cloned(), resident_percent }, CancellationToken::new());
                let parked = park::park(roads, self.pager, guest.id, warm, (order, &never)).await;
                let (warm, deduped) = parked.map_err(|not| not.error).context("park it")?;
                let stored = self.station.shrink_parked(&warm).await?;
                guest.stored_bytes = stored.unwrap_or(deduped.stored_bytes);
                Ok(Place::Warm(warm))
            }
            Way::Dedup => {
                let order = DedupOrder { base: base.cloned(), ..DedupOrder::default() };
                let stored = dedupe::dedup(roads, guest.id, warm, order).await;
                let (stored, deduped) = stored.map_err(|not| not.error).context("dedup it")?;
                guest.stored_bytes = deduped.stored_bytes;
                Ok(Place::Image(Box::new(stored)))
            }
            Way::Zram(_) => {
                let group = guest.group.clone();
                blocking(move || swap::reclaim(&group)).await?;
                Ok(Place::Warm(warm))
            }
            Way::Cold | Way::Clone | Way::KeepAlive | Way::Ksm => Ok(Place::Warm(warm)),
        }
    }

    async fn bring_back(&mut self, place: Place) -> Result<Warm> {
        let (mut housing, spec, images) = match place {
            Place::Warm(warm) => {
                if let Some(paged) = &warm.paged {
                    paged.unpark().await.context("unpark it")?;
                }
                return Ok(warm);
            }
            Place::Image(stored) => {
                let restored = restore::restore(&self.station.roads, *stored, false).await;
                let (warm, _) = restored.map_err(|not| not.error).context("restore it")?;
                return Ok(warm);
            }
            Place::Images(housing, spec, images) => (housing, spec, images),
            Place::Packed(housing, spec, packed) => (housing, spec, blocking(move || packed.unpack()).await?),
        };
        let mut watch = Stopwatch::start();
        let tree = plain::restore(self.station, &mut housing, &images, true, &mut watch).await?;
        Ok(Warm::new(spec, housing, tree))
    }

    /// An init snapshot, of a sandbox that is gone; and its bytes.
    async fn snapshot(&mut self) -> Result<(SnapshotPlace, u64)> {
        let (sandbox, snapshot): (_, SnapshotId) = self.station.number()?;
        let warm = self.station.start(sandbox, &self.spec).await?;
        let (report, _) = base::make_init(&self.station.roads, sandbox, &warm, (snapshot, 1)).await?;
        self.station.remove(sandbox, &warm.housing).await?;
        let node = self.station.roads.bases.node().clone();
        Ok((SnapshotPlace { snapshot: report.id, node, address: String::new() }, report.bytes))
    }

    /// Nothing was kept: another sandbox is started, or made of the snapshot.
    async fn fresh(&mut self, of: Option<&SnapshotPlace>, measured: &mut Measured) -> Result<()> {
        let (sandbox, _) = self.station.number()?;
        let before = spent::so_far([]);
        let began = Instant::now();
        let warm = match of {
            None => self.station.start(sandbox, &self.spec).await?,
            Some(place) => {
                let launch = launch_spec(&self.spec, sandbox, self.station.roads.bases.node());
                let which = (sandbox, self.spec.clone());
                let made =
                    clone::clone(&self.station.roads, (&self.station.host, &launch), which, place).await;
                made.map_err(|not| not.error).context("clone it")?.0
            }
        };
        ask(&warm.housing, COMPARED).await?;
        measured.answer_ms.push(millis(began));
        let group = warm.housing.cgroup().clone();
        measured.back_cpu_ms.push(spent::so_far([&group]) - before);
        measured.away_cpu_ms.push(0.0);
        measured.held_bytes.push(0);
        self.station.remove(sandbox, &warm.housing).await
    }
}

impl Help {
    fn spent(&self) -> f64 {
        if let Self::Ksm(ksm) = self { ksm.spent() } else { 0.0 }
    }

    fn swapped_bytes(&self) -> Result<u64> {
        if let Self::Zram(zram) = self { zram.used_bytes() } else { Ok(0) }
    }
}

impl Place {
    /// As the kernel counts its group, without what can be dropped at any time.
    fn held_bytes(&self) -> u64 {
        match self {
            Self::Warm(warm) => warm.housing.usage().held_bytes(),
            Self::Images(housing, ..) | Self::Packed(housing, ..) => housing.usage().held_bytes(),
            // Its private files are part of what is told to be stored.
            Self::Image(stored) => {
                let usage = stored.housing.usage();
                usage.anon_bytes + usage.kernel_bytes
            }
        }
    }
}

fn millis(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}
