//! One round: a new sandbox goes through every way to a first answer, and each answer is checked.
//!
//! ```text
//! cold start ─► requests while warm ─► dump ─► restore by a waiting CRIU ─► restore by a CRIU that has to start
//!            ─► dedup ─► Medes restore
//! ```
//!
//! Time runs from the wish to have an answer to its last byte. A dump is not in any of the times, a dedup has its own.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use medes_agent::{
    base,
    bases::local::Snapshot,
    dedupe,
    driver::DedupOrder,
    restore,
    roads::{Stopwatch, Warm},
    sandbox::{Housing, Tree},
};
use medes_proto::{
    function::FunctionSpec,
    sandbox::{PageClasses, Phase},
};

use super::compare::{self, Compared};
use crate::{
    station::{
        Station,
        ask::{Reply, ask},
        plain::{self, Images},
    },
    stats::Spread,
};

const WARM_REQUESTS: u64 = 5;
/// The request whose times are compared, the same for every way. Apart from the others, so that no cache can know it.
const COMPARED: u64 = 1_000_007;

/// A way to an answer, with its steps.
#[derive(Debug)]
pub(super) struct Timed {
    pub(super) ms: f64,
    pub(super) phases: Vec<Phase>,
}

/// What one round brought.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) cold: Timed,
    pub(super) warm_ms: f64,
    /// Plain CRIU, its worker waiting as ours does.
    pub(super) criu: Timed,
    /// Plain CRIU, started when it is needed.
    pub(super) criu_exec: Timed,
    /// CRIU's dump into files on tmpfs; that of the dedup, its first step, writes none.
    pub(super) dump_to_files_ms: f64,
    pub(super) dedup: Timed,
    pub(super) restore: Timed,
    pub(super) pages: PageClasses,
    /// All that the dedup image takes, skeleton and private files included.
    pub(super) stored_bytes: u64,
    /// Other ways to store the same pages; in the first round only.
    pub(super) compared: Option<Compared>,
    pub(super) answers_match: bool,
}

impl Round {
    pub(super) fn page_bytes(&self) -> u64 {
        self.pages.bytes()
    }

    pub(super) fn stored_fraction(&self) -> f64 {
        self.stored_bytes as f64 / self.page_bytes().max(1) as f64
    }
}

impl fmt::Display for Round {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "cold {:.0}, criu {:.0}, criu with exec {:.0}, restore {:.0}, warm {:.1} ms; dedup {:.0} ms to {:.1} %{}",
            self.cold.ms,
            self.criu.ms,
            self.criu_exec.ms,
            self.restore.ms,
            self.warm_ms,
            self.dedup.ms,
            self.stored_fraction() * 100.0,
            if self.answers_match { "" } else { "; ANSWERS DIFFER" },
        )
    }
}

/// The rounds of one function.
pub(super) struct Series<'s> {
    station: &'s mut Station,
    spec: Arc<FunctionSpec>,
    base: Arc<Snapshot>,
    /// Whether the other ways to store pages have been tried.
    compared: bool,
}

impl<'s> Series<'s> {
    /// Makes the base snapshot: of a sandbox of its own, warm as those that will be compared with it.
    pub(super) async fn begin(station: &'s mut Station, spec: FunctionSpec) -> Result<Self> {
        let spec = Arc::new(spec);
        let (sandbox, snapshot) = station.number()?;
        let warm = station.start(sandbox, &spec).await?;
        ask(&warm.housing, COMPARED).await?;
        warm_requests(&warm).await?;
        base::make_base(&station.roads, sandbox, &warm, snapshot).await?;
        station.remove(sandbox, &warm.housing).await?;
        let base = station.roads.bases.local.get(snapshot).context("the base snapshot is gone")?;
        Ok(Self { station, spec, base, compared: false })
    }

    pub(super) async fn round(&mut self) -> Result<Round> {
        let station = &mut *self.station;
        let (sandbox, _) = station.number()?;

        let began = Instant::now();
        let mut watch = Stopwatch::start();
        let warm = station.start(sandbox, &self.spec).await?;
        watch.step("start");
        let cold_answer = ask(&warm.housing, COMPARED).await?;
        watch.step("answer");
        let cold = timed(began, watch);
        let warm_ms = warm_requests(&warm).await?;
        // What the next answer is held against.
        let before = ask(&warm.housing, COMPARED).await?;
        let mut answers_match = cold_answer.result == before.result;

        let began = Instant::now();
        let images = plain::dump(station, &warm.housing, &warm.tree, "plain").await.context("dump it")?;
        let dump_to_files_ms = millis(began.elapsed());
        let Warm { spec, mut housing, tree, .. } = warm;
        tree.kill().await?;
        let (criu, tree, answer) =
            by_criu(station, &mut housing, &images, true).await.context("plain CRIU")?;
        answers_match &= before.continues_in(&answer);
        tree.kill().await?;
        let (criu_exec, tree, answer) =
            by_criu(station, &mut housing, &images, false).await.context("plain CRIU with exec")?;
        answers_match &= before.continues_in(&answer);
        drop(images);

        let warm = Warm::new(spec, housing, tree);
        let began = Instant::now();
        let (stored, deduped) =
            match dedupe::dedup(&station.roads, sandbox, warm, DedupOrder::default()).await {
                Ok(done) => done,
                Err(not) => return Err(not.error).context("dedup"),
            };
        let dedup = Timed { ms: millis(began.elapsed()), phases: deduped.phases };
        // Copied, so that the comparison can come after the restore and warms no cache for it.
        let image = (!self.compared).then(|| (stored.image.as_ref().to_vec(), stored.origin.places.clone()));
        let (restore, warm, after) = medes(station, stored).await?;
        answers_match &= answer.continues_in(&after);
        let private_bytes = warm.housing.private_bytes();
        let compared = match image {
            Some((image, places)) => {
                Some(compare::compare(station, &self.base, image, &places, private_bytes).await?)
            }
            None => None,
        };
        self.compared = true;
        station.remove(sandbox, &warm.housing).await?;
        let (pages, stored_bytes) = (deduped.pages, deduped.stored_bytes);
        Ok(Round {
            cold,
            warm_ms,
            criu,
            criu_exec,
            dump_to_files_ms,
            dedup,
            restore,
            pages,
            stored_bytes,
            compared,
            answers_match,
        })
    }
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn timed(began: Instant, watch: Stopwatch) -> Timed {
    Timed { ms: millis(began.elapsed()), phases: watch.phases() }
}

/// Restores images as CRIU wrote them, and asks.
async fn by_criu(
    station: &Station,
    housing: &mut Housing,
    images: &Images,
    waiting: bool,
) -> Result<(Timed, Tree, Reply)> {
    let began = Instant::now();
    let mut watch = Stopwatch::start();
    let tree = plain::restore(station, housing, images, waiting, &mut watch).await?;
    let answer = ask(housing, COMPARED).await?;
    watch.step("answer");
    Ok((timed(began, watch), tree, answer))
}

async fn medes(station: &Station, stored: medes_agent::roads::Stored) -> Result<(Timed, Warm, Reply)> {
    let began = Instant::now();
    let (warm, restored) = match restore::restore(&station.roads, stored, false).await {
        Ok(done) => done,
        Err(not) => return Err(not.error).context("restore"),
    };
    let back = Instant::now();
    let answer = ask(&warm.housing, COMPARED).await?;
    let mut phases = restored.phases;
    phases.push(Phase::new("answer", back.elapsed()));
    Ok((Timed { ms: millis(began.elapsed()), phases }, warm, answer))
}

/// Asks several times; the median time.
async fn warm_requests(warm: &Warm) -> Result<f64> {
    let mut times = Vec::new();
    for n in 1..=WARM_REQUESTS {
        let began = Instant::now();
        ask(&warm.housing, n).await?;
        times.push(millis(began.elapsed()));
    }
    Ok(Spread::of(times).p50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_of_all_pages() {
        let nothing = || Timed { ms: 1.0, phases: Vec::new() };
        let round = Round {
            cold: nothing(),
            warm_ms: 1.0,
            criu: nothing(),
            criu_exec: nothing(),
            dump_to_files_ms: 1.0,
            dedup: nothing(),
            restore: nothing(),
            pages: PageClasses { zero: 1, same: 2, delta: 3, whole: 4, ..PageClasses::default() },
            stored_bytes: 4096,
            compared: None,
            answers_match: true,
        };
        assert_eq!((round.page_bytes(), round.stored_fraction()), (40_960, 0.1));
        assert!(!round.to_string().contains("DIFFER"));
        assert!(Round { answers_match: false, ..round }.to_string().contains("DIFFER"));
    }
}
