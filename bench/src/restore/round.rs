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

use anyhow::{Context, Result, ensure};
use medes_agent::{
    base,
    bases::local::Snapshot,
    criu::{self, DumpRequest, Inherited, Leave, RestoreRequest, Seat, Worker, preflight},
    dedupe,
    driver::DedupOrder,
    dump::Folder,
    restore,
    roads::{Stopwatch, Warm, blocking},
    sandbox::{self, Housing, Intake, Request, Tree},
};
use medes_proto::{
    function::FunctionSpec,
    sandbox::{PageClasses, Phase},
};
use serde_json::{Value, json};

use super::{
    compare::{self, Compared},
    station::Station,
};
use crate::stats::Spread;

const WARM_REQUESTS: u64 = 5;
/// The request whose times are compared, the same for every way. Apart from the others, so that no cache can know it.
const COMPARED: u64 = 1_000_007;
/// Covers the largest function on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// How long a connection may take to close after the last answer, and when to look again.
const SETTLE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(5));

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
        let PageClasses { zero, same, delta, whole } = self.pages;
        (zero + same + delta + whole) * 4096
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
        ask(&warm, COMPARED).await?;
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
        let cold_answer = ask(&warm, COMPARED).await?;
        watch.step("answer");
        let cold = timed(began, watch);
        let warm_ms = warm_requests(&warm).await?;
        // What the next answer is held against.
        let before = ask(&warm, COMPARED).await?;
        let mut answers_match = cold_answer.result == before.result;

        let images = dump(station, &warm).await.context("dump it")?;
        let Warm { spec, mut housing, tree } = warm;
        tree.kill().await?;
        let (criu, tree, answer) = plain(station, &mut housing, &images, true).await.context("plain CRIU")?;
        answers_match &= before.continues_in(&answer);
        tree.kill().await?;
        let (criu_exec, tree, answer) =
            plain(station, &mut housing, &images, false).await.context("plain CRIU with exec")?;
        answers_match &= before.continues_in(&answer);
        drop(images);

        let warm = Warm { spec, housing, tree };
        let began = Instant::now();
        let (stored, deduped) =
            match dedupe::dedup(&station.roads, sandbox, warm, DedupOrder::default()).await {
                Ok(done) => done,
                Err(not) => return Err(not.error).context("dedup"),
            };
        let dedup = Timed { ms: millis(began.elapsed()), phases: deduped.phases };
        // Copied, so that the comparison can come after the restore and warms no cache for it.
        let image = (!self.compared).then(|| (stored.image.as_ref().to_vec(), stored.places.clone()));
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

/// The images of a sandbox on the node's tmpfs, as CRIU writes them.
struct Images {
    folder: Folder,
    /// Its output pipe, by the name these images have for it: each restore takes a new pipe in its place.
    pipe: String,
}

/// Dumps a sandbox. It stands still afterwards.
async fn dump(station: &Station, warm: &Warm) -> Result<Images> {
    let pid = warm.tree.pid();
    let deadline = Instant::now() + SETTLE.0;
    while let Err(error) = preflight::check_dumpable(pid) {
        ensure!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(SETTLE.1).await;
    }
    let folder = Folder::create(warm.housing.work_dir().join("plain")).context("make a folder for images")?;
    let worker = Worker::start_beside(&station.roads.criu, &station.roads.reaper, pid).await?;
    let request = DumpRequest {
        pid,
        images: folder.path(),
        mounts: warm.housing.external_mounts(),
        leave: Leave::Stopped,
        timeout: station.roads.limits.criu,
        verbose: false,
    };
    criu::dump(worker, &request).await?;
    let pipes = warm.housing.inherited_fds().context("name its output pipe")?;
    let (pipe, _) = pipes.into_iter().next().context("it has no output pipe")?;
    Ok(Images { folder, pipe })
}

/// Restores images as CRIU wrote them, and asks.
async fn plain(
    station: &Station,
    housing: &mut Housing,
    images: &Images,
    waiting: bool,
) -> Result<(Timed, Tree, Reply)> {
    let roads = &station.roads;
    let began = Instant::now();
    let mut watch = Stopwatch::start();
    let (worker, intake) = match waiting {
        true => roads.pool.take(roads.limits.worker).await?,
        false => fresh_worker(station).await?,
    };
    watch.step("worker");
    housing.move_in(intake).context("join its log to its new processes")?;
    let request = RestoreRequest {
        images: images.folder.path(),
        root: housing.root(),
        mounts: housing.external_mounts(),
        cgroup_procs: &housing.cgroup().procs_files(),
        inherited: &[(images.pipe.clone(), Inherited::Stdout)],
        leave_stopped: false,
        timeout: roads.limits.criu,
        verbose: false,
    };
    let restored = criu::restore(worker, &roads.reaper, &request).await?;
    let tree = housing.adopt(restored.pid)?;
    watch.step("criu");
    let answer = answer(&housing.request(request_of(COMPARED)).await?)?;
    watch.step("answer");
    Ok((timed(began, watch), tree, answer))
}

/// What the command line costs: a namespace to restore into, and a program that starts.
async fn fresh_worker(station: &Station) -> Result<(Worker, Intake)> {
    let seat = blocking(sandbox::seat).await.context("make a network namespace")?;
    let Seat { netns, output, keep } = seat;
    Ok((Worker::start(&station.roads.criu, &station.roads.reaper, netns, output).await?, keep))
}

async fn medes(station: &Station, stored: medes_agent::roads::Stored) -> Result<(Timed, Warm, Reply)> {
    let began = Instant::now();
    let (warm, restored) = match restore::restore(&station.roads, stored, false).await {
        Ok(done) => done,
        Err(not) => return Err(not.error).context("restore"),
    };
    let back = Instant::now();
    let answer = ask(&warm, COMPARED).await?;
    let mut phases = restored.phases;
    phases.push(Phase::new("answer", back.elapsed()));
    Ok((Timed { ms: millis(began.elapsed()), phases }, warm, answer))
}

/// Asks several times; the median time.
async fn warm_requests(warm: &Warm) -> Result<f64> {
    let mut times = Vec::new();
    for n in 1..=WARM_REQUESTS {
        let began = Instant::now();
        ask(warm, n).await?;
        times.push(millis(began.elapsed()));
    }
    Ok(Spread::of(times).p50)
}

/// An answer of one of our functions.
#[derive(Debug)]
struct Reply {
    result: Value,
    seed: u64,
    served: u64,
}

impl Reply {
    /// Whether `next` is what the same process answers to the same request, right after this one.
    fn continues_in(&self, next: &Self) -> bool {
        self.result == next.result && self.seed == next.seed && self.served + 1 == next.served
    }
}

async fn ask(warm: &Warm, n: u64) -> Result<Reply> {
    answer(&warm.housing.request(request_of(n)).await?)
}

fn request_of(n: u64) -> Request {
    let mut request = Request::get("/", ANSWER_MAX, ANSWER_BYTES_MAX);
    request.method = hyper::Method::POST;
    request.body = json!({ "n": n }).to_string().into();
    request
}

fn answer(response: &sandbox::Response) -> Result<Reply> {
    let text = String::from_utf8_lossy(&response.body);
    ensure!(response.status.is_success(), "the function answered {}: {text}", response.status);
    let mut value: Value = serde_json::from_str(&text).context("read the answer")?;
    let number =
        |value: &Value, key: &str| value[key].as_u64().with_context(|| format!("the answer has no {key}"));
    let (seed, served) = (number(&value, "seed")?, number(&value, "served")?);
    Ok(Reply { result: value["result"].take(), seed, served })
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
            dedup: nothing(),
            restore: nothing(),
            pages: PageClasses { zero: 1, same: 2, delta: 3, whole: 4 },
            stored_bytes: 4096,
            compared: None,
            answers_match: true,
        };
        assert_eq!((round.page_bytes(), round.stored_fraction()), (40_960, 0.1));
        assert!(!round.to_string().contains("DIFFER"));
        assert!(Round { answers_match: false, ..round }.to_string().contains("DIFFER"));
    }

    #[test]
    fn another_process_does_not_continue() {
        let reply = |result: u64, seed, served| Reply { result: json!(result), seed, served };
        assert!(reply(5, 1, 7).continues_in(&reply(5, 1, 8)));
        for other in [reply(6, 1, 8), reply(5, 2, 8), reply(5, 1, 7)] {
            assert!(!reply(5, 1, 7).continues_in(&other), "{other:?}");
        }
    }
}
