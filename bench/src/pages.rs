//! `bench pages`: base pages from memory, over the page service (loopback, and a wire between two network namespaces),
//! and one gRPC call for each, against a plain copy. All in one run.

mod grpc;
mod hosts;
mod iperf;
mod report;

use std::{
    fs,
    hint::black_box,
    io::Write,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Args;
use medes_agent::{
    bases::{
        BasePages,
        local::{LocalBases, Snapshot},
        serve::PageServer,
        tcp::TcpPages,
    },
    memory_file::MemoryFile,
};
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, PageIndex, SnapshotId, ZERO_PAGE};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::report::{Report, Row};
use crate::record::write_json;

/// Pages of the snapshot: more than the caches hold.
const PAGES: u32 = 65_536;
/// Pages asked for at once.
const COUNTS: [usize; 3] = [1, 64, 4096];
const PATIENCE: Duration = Duration::from_secs(20);

/// How long to measure, and where to leave the figures.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Milliseconds for each figure
    #[arg(long, default_value_t = 2_000)]
    each_ms: u64,
    /// Folder for the report
    #[arg(long, default_value = "target/bench", value_name = "DIR")]
    out: PathBuf,
}

/// A way to read pages.
trait Way {
    async fn read(&self, wanted: &[BasePage], into: &mut [Page]) -> Result<()>;
}

/// One call for all pages.
struct Batched<P>(P);

impl<P: BasePages> Way for Batched<P> {
    async fn read(&self, wanted: &[BasePage], into: &mut [Page]) -> Result<()> {
        self.0.read(wanted, into).await.context("read pages")
    }
}

/// What a copy costs that knows where everything is.
struct Copy<'s>(&'s [u8]);

impl Way for Copy<'_> {
    async fn read(&self, wanted: &[BasePage], into: &mut [Page]) -> Result<()> {
        for (wanted, into) in wanted.iter().zip(into) {
            let start = wanted.page.0 as usize * PAGE_BYTES;
            into.copy_from_slice(self.0.get(start..start + PAGE_BYTES).context("a page")?);
        }
        Ok(())
    }
}

pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its times say little; use `cargo xtask bench pages`");
    }
    fs::create_dir_all(&options.out).with_context(|| format!("create {}", options.out.display()))?;
    let snapshot = snapshot()?;
    let bases = Arc::new(LocalBases::default());
    bases.insert(snapshot.clone());
    let each = Duration::from_millis(options.each_ms);
    let mut report = Report::new();
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let bytes: Vec<u8> = snapshot.pages().flatten().copied().collect();
    runtime.block_on(async {
        measure("memcpy", &Copy(&bytes), &snapshot, each, &mut report).await?;
        measure("local", &Batched(Shared(bases.clone())), &snapshot, each, &mut report).await?;
        let listen = "127.0.0.1:0".parse().context("an address")?;
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let server = PageServer::start(bases.clone(), listen, &tasks, stop).await;
        let server = server.context("start the page service")?;
        measure("tcp loopback", &Batched(reader(&server)), &snapshot, each, &mut report).await?;
        let grpc = grpc::start(snapshot.clone()).await?;
        measure("grpc per page", &grpc, &snapshot, each, &mut report).await
    })?;
    drop(runtime);
    match hosts::between(bases, each, &snapshot, &mut report) {
        Ok(()) => {}
        Err(error) => println!("SKIPPED two network namespaces: {error:#}"),
    }
    match iperf::measure(each) {
        Ok(rates) => rates.into_iter().for_each(|rate| report.add(rate)),
        Err(error) => println!("SKIPPED iperf3: {error:#}"),
    }
    report.judge();
    write_json(&options.out.join("pages.json"), &report)?;
    println!("{}", report.tables());
    Ok(ExitCode::SUCCESS)
}

/// The node's own bases behind the same interface as everybody else's.
#[derive(Debug)]
struct Shared(Arc<LocalBases>);

impl BasePages for Shared {
    fn read<'a>(
        &'a self,
        wanted: &'a [BasePage],
        into: &'a mut [Page],
    ) -> futures::future::BoxFuture<'a, Result<(), medes_agent::bases::ReadPagesError>> {
        self.0.read(wanted, into)
    }
}

fn reader(server: &PageServer) -> TcpPages {
    let place = (server.address(), server.access().token);
    TcpPages::new(place, PATIENCE, Arc::default(), TaskTracker::new())
}

/// Pages that all differ.
fn snapshot() -> Result<Arc<Snapshot>> {
    let mut file = MemoryFile::create("bench").context("make a memory file")?;
    for page in 0..PAGES {
        let mut bytes = ZERO_PAGE;
        for (at, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let seed = u64::from(page) << 32 | at as u64;
            *word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        }
        file.write_all(&bytes).context("fill a memory file")?;
    }
    let id = SnapshotId::new(1).context("an id")?;
    let pages = file.seal().context("seal a memory file")?;
    let snapshot = Snapshot::new(id, "bench".parse()?, "bench".parse()?, pages, Vec::new());
    Ok(Arc::new(snapshot.context("whole pages")?))
}

/// Which pages are asked for: each time others, for as long as there are.
fn selection(count: usize, scattered: bool, round: u64) -> Vec<BasePage> {
    let snapshot = SnapshotId::new(1);
    let pages = u64::from(PAGES);
    let step = if scattered { pages / count as u64 } else { 1 };
    let first = round.wrapping_mul(0x9e37_79b9) % (pages - step * (count as u64 - 1));
    let place = |at: u64| {
        let page = PageIndex(u32::try_from(first + at * step).unwrap_or(0));
        snapshot.map(|snapshot| BasePage { snapshot, page })
    };
    (0..count as u64).filter_map(place).collect()
}

/// Every size and shape of read over one way.
async fn measure(
    name: &'static str,
    way: &impl Way,
    snapshot: &Snapshot,
    each: Duration,
    report: &mut Report,
) -> Result<()> {
    for (count, scattered) in COUNTS.into_iter().flat_map(|count| [(count, false), (count, true)]) {
        if count == 1 && scattered {
            continue;
        }
        let mut into = vec![ZERO_PAGE; count];
        let mut times = Vec::new();
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < each || times.len() < 3 {
            let wanted = selection(count, scattered, round);
            let start = Instant::now();
            way.read(&wanted, black_box(&mut into)).await?;
            times.push(start.elapsed());
            round += 1;
            // What is fast and wrong is of no use. Not timed.
            let same = |(wanted, got): (&BasePage, &Page)| snapshot.page(wanted.page) == Some(got);
            ensure!(wanted.iter().zip(&into).all(same), "{name}: a wrong page");
        }
        report.add(Row::of(name, count, scattered, &times));
    }
    Ok(())
}
