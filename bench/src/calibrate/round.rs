//! The ways of one function, gone once each, and what they came to.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, ensure};
use medes_agent::{
    clone,
    criu::tree,
    dedupe,
    driver::DedupOrder,
    launch_spec::launch_spec,
    pager::Pager,
    park::{self, ParkOrder},
    restore,
    roads::Warm,
    sandbox::Usage,
    watch::{
        heat::HeatSettings,
        tracked::{Tracked, Tracking},
        writes,
    },
};
use medes_controller::driver::Keeping;
use medes_proto::{function::FunctionSpec, ids::SandboxId, registry::SnapshotPlace};
use tokio_util::sync::CancellationToken;

use crate::{
    model::{Dirty, FunctionModel, Held, Samples, Start},
    station::{
        Station,
        ask::{Reply, ask},
    },
};

/// Requests before a sandbox is as it stays.
const REQUESTS: u64 = 3;
/// The request whose times are compared, the same for every way.
const COMPARED: u64 = 1_000_007;

/// Milliseconds since then.
pub(super) fn ms(began: Instant) -> f64 {
    began.elapsed().as_secs_f64() * 1e3
}

/// A start in milliseconds: until ready, and the first request after it.
#[derive(Debug, Default)]
pub(super) struct Begun {
    ready: Vec<f64>,
    first: Vec<f64>,
}

/// What a function came to. Times are in milliseconds.
#[derive(Debug, Default)]
pub(super) struct Found {
    cold: Begun,
    clone: Begun,
    restore: Begun,
    unpark: Begun,
    request: Vec<f64>,
    dedup: Vec<f64>,
    first_park: Vec<f64>,
    park: Vec<f64>,
    purge: Vec<f64>,
    pub(super) init: Vec<f64>,
    pub(super) base: Vec<f64>,
    pub(super) base_bytes: u64,
    pub(super) init_bytes: u64,
    index_bytes: u64,
    warm: Vec<Usage>,
    cloned: Vec<Usage>,
    parked: Vec<Usage>,
    stored_bytes: Vec<u64>,
    alone_bytes: Vec<u64>,
    parked_stored_bytes: Vec<u64>,
    dirty: Dirty,
}

/// One function on the node.
pub(super) struct Bench<'b> {
    pub(super) station: &'b mut Station,
    pub(super) pager: &'b Pager,
    pub(super) spec: Arc<FunctionSpec>,
    pub(super) found: Found,
}

/// The middle one, the lower of an even number.
fn middle<T: Copy>(values: &[T], key: impl Fn(&T) -> u64) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by_key(|value| key(value));
    sorted.get(sorted.len().saturating_sub(1) / 2).copied()
}

fn held(usages: &[Usage]) -> Held {
    let usage = middle(usages, Usage::held_bytes).unwrap_or_default();
    Held { private_bytes: usage.anon_bytes, all_bytes: usage.held_bytes() }
}

impl Begun {
    /// A first request's time is what it takes longer than a usual one.
    fn start(&self, usual: f64) -> Start {
        Start {
            ready_ms: Samples::of(self.ready.iter().copied()),
            first_ms: Samples::of(self.first.iter().map(|first| first - usual)),
        }
    }
}

impl Found {
    pub(super) fn model(self, function: &str) -> Result<FunctionModel> {
        let request_ms = Samples::of(self.request);
        let usual = request_ms.p50();
        let bytes = |all: &[u64]| middle(all, |bytes| *bytes).context("a size was not measured");
        Ok(FunctionModel {
            function: function.into(),
            cold: self.cold.start(usual),
            clone: (!self.clone.ready.is_empty()).then(|| self.clone.start(usual)),
            restore: self.restore.start(usual),
            unpark: self.unpark.start(usual),
            request_ms,
            dedup_ms: Samples::of(self.dedup),
            first_park_ms: Samples::of(self.first_park),
            park_ms: Samples::of(self.park),
            init_ms: Samples::of(self.init),
            base_ms: Samples::of(self.base),
            purge_ms: Samples::of(self.purge),
            warm: held(&self.warm),
            cloned: held(if self.cloned.is_empty() { &self.warm } else { &self.cloned }),
            parked: held(&self.parked),
            stored_bytes: bytes(&self.stored_bytes)?,
            alone_bytes: bytes(&self.alone_bytes)?,
            parked_stored_bytes: bytes(&self.parked_stored_bytes)?,
            base_bytes: self.base_bytes,
            init_bytes: self.init_bytes,
            index_bytes: self.index_bytes,
            dirty: self.dirty,
        })
    }
}

/// Times a request, and checks that it is the next one of the same process.
async fn timed(warm: &Warm, last: &mut Option<Reply>) -> Result<f64> {
    let began = Instant::now();
    let reply = ask(&warm.housing, COMPARED).await?;
    let took = ms(began);
    ensure!(last.as_ref().is_none_or(|last| last.continues_in(&reply)), "an answer of another process");
    *last = Some(reply);
    Ok(took)
}

impl Bench<'_> {
    /// A new sandbox that has served some requests.
    async fn served(&mut self) -> Result<(SandboxId, Warm, Option<Reply>)> {
        let (sandbox, _) = self.station.number()?;
        let began = Instant::now();
        let warm = self.station.start(sandbox, &self.spec).await?;
        self.found.cold.ready.push(ms(began));
        let mut last = None;
        self.found.cold.first.push(timed(&warm, &mut last).await?);
        for _ in 1..REQUESTS {
            self.found.request.push(timed(&warm, &mut last).await?);
        }
        self.found.warm.push(warm.housing.usage());
        Ok((sandbox, warm, last))
    }

    async fn purge(&mut self, sandbox: SandboxId, warm: &Warm) -> Result<()> {
        let began = Instant::now();
        self.station.remove(sandbox, &warm.housing).await?;
        self.found.purge.push(ms(began));
        Ok(())
    }

    /// A dedup where there is no base of the function.
    pub(super) async fn alone(&mut self) -> Result<()> {
        let (sandbox, warm, _) = self.served().await?;
        let stored = dedupe::dedup(&self.station.roads, sandbox, warm, DedupOrder::default()).await;
        let (stored, deduped) = stored.map_err(|not| not.error).context("dedup")?;
        self.found.alone_bytes.push(deduped.stored_bytes);
        self.station.remove(sandbox, &stored.housing).await
    }

    /// A cold start, then away into an image whose base is the init snapshot, and back.
    pub(super) async fn away(&mut self, base: &SnapshotPlace) -> Result<()> {
        let (sandbox, warm, mut last) = self.served().await?;
        let order = DedupOrder { base: Some(base.clone()), ..DedupOrder::default() };
        let began = Instant::now();
        let stored = dedupe::dedup(&self.station.roads, sandbox, warm, order).await;
        let (stored, deduped) = stored.map_err(|not| not.error).context("dedup")?;
        self.found.dedup.push(ms(began));
        self.found.stored_bytes.push(deduped.stored_bytes);
        let indexes = self.station.roads.bases.indexes.bytes_by_snapshot();
        let its = indexes.into_iter().find(|(snapshot, _)| *snapshot == base.snapshot);
        self.found.index_bytes = its.map_or(0, |(_, bytes)| bytes);
        let began = Instant::now();
        let restored = restore::restore(&self.station.roads, stored, false).await;
        let (warm, _) = restored.map_err(|not| not.error).context("restore")?;
        self.found.restore.ready.push(ms(began));
        self.found.restore.first.push(timed(&warm, &mut last).await?);
        self.purge(sandbox, &warm).await
    }

    /// A clone of the init snapshot. `false`: none is made of it.
    pub(super) async fn clone(&mut self, of: &SnapshotPlace) -> Result<bool> {
        let (sandbox, _) = self.station.number()?;
        let launch = launch_spec(&self.spec, sandbox, self.station.roads.bases.node());
        let (roads, host) = (&self.station.roads, &self.station.host);
        let began = Instant::now();
        let cloned = clone::clone(roads, (host, &launch), (sandbox, self.spec.clone()), of).await;
        let warm = match cloned.map_err(|not| not.error) {
            Ok((warm, _)) => warm,
            Err(clone::CloneError::NotClonable) => return Ok(false),
            Err(error) => return Err(error).context("clone"),
        };
        self.found.clone.ready.push(ms(began));
        let mut last = None;
        self.found.clone.first.push(timed(&warm, &mut last).await?);
        for _ in 1..REQUESTS {
            timed(&warm, &mut last).await?;
        }
        self.found.cloned.push(warm.housing.usage());
        self.purge(sandbox, &warm).await?;
        Ok(true)
    }

    /// One sandbox that stays where it is, parked again and again as agents do it by default; and some that are parked once.
    pub(super) async fn park(&mut self, base: &SnapshotPlace, rounds: u32) -> Result<()> {
        for _ in 0..rounds.min(super::FEW) {
            self.parks(base, 1).await?;
        }
        self.parks(base, rounds.max(2)).await
    }

    async fn parks(&mut self, base: &SnapshotPlace, times: u32) -> Result<()> {
        let (sandbox, mut warm, mut last) = self.served().await?;
        let resident_percent = Keeping::default().parked_resident_percent;
        let never = CancellationToken::new();
        for time in 0..times {
            let order = ParkOrder { base: Some(base.clone()), resident_percent };
            let began = Instant::now();
            let parked = park::park(&self.station.roads, self.pager, sandbox, warm, (order, &never)).await;
            let (parked, deduped) = parked.map_err(|not| not.error).context("park")?;
            let took = ms(began);
            warm = parked;
            if time == 0 { &mut self.found.first_park } else { &mut self.found.park }.push(took);
            self.found.parked.push(warm.housing.usage());
            let stored = self.station.shrink_parked(&warm).await?.unwrap_or(deduped.stored_bytes);
            self.found.parked_stored_bytes.push(stored);
            let began = Instant::now();
            warm.paged.as_ref().context("it is parked")?.unpark().await.context("unpark it")?;
            self.found.unpark.ready.push(ms(began));
            self.found.unpark.first.push(timed(&warm, &mut last).await?);
        }
        self.station.remove(sandbox, &warm.housing).await
    }

    /// Pages that requests write, as an agent tracks them.
    pub(super) async fn dirty(&mut self, rounds: u32) -> Result<()> {
        let (sandbox, warm, mut last) = self.served().await?;
        let tracking = Tracking {
            reaper: self.station.roads.reaper.clone(),
            program: self.station.program.clone(),
            settings: HeatSettings::default(),
            way: writes::Way::Protection,
        };
        let tracked = Tracked::new(tracking);
        let pids = tree::members(warm.tree.pid())?;
        tracked.look(&pids, None).await;
        for _ in 0..rounds.max(HeatSettings::default().windows_min + 1) {
            tracked.note_request();
            timed(&warm, &mut last).await?;
            tracked.look(&pids, None).await;
        }
        let summary = tracked.summary();
        ensure!(summary.windows > 0, "its writes cannot be tracked");
        let (hot_pages, written_pages) = (summary.hot, summary.written);
        self.found.dirty =
            Dirty { hot_pages, written_pages, touched_pages: summary.touched.max(written_pages) };
        tracked.end().await;
        self.station.remove(sandbox, &warm.housing).await
    }
}
