//! Plain CRIU on the station: a sandbox's images as CRIU writes them, and a sandbox made of them again.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use medes_agent::{
    criu::{self, DumpRequest, Inherited, Leave, RestoreRequest, Seat, Worker, preflight},
    dump::Folder,
    roads::{Stopwatch, blocking},
    sandbox::{self, Housing, Intake, Tree},
};

use super::Station;

/// How long a connection may take to close after the last answer, and when to look again.
const SETTLE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(5));

/// The images of a sandbox on the node's tmpfs. Gone when it is dropped.
#[derive(Debug)]
pub(crate) struct Images {
    folder: Folder,
    /// Its output pipe, by the name these images have for it: each restore takes a new pipe in its place.
    pipe: String,
}

impl Images {
    /// Images that somebody has put into a folder again, with the name of the pipe they had.
    pub(crate) fn again(folder: Folder, pipe: String) -> Self {
        Self { folder, pipe }
    }

    /// Bytes of all its files.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let mut sum = 0;
        let doing = || format!("measure {}", self.path().display());
        for entry in std::fs::read_dir(self.path()).with_context(doing)? {
            let entry = entry.with_context(doing)?;
            sum += entry.metadata().with_context(doing)?.len();
        }
        Ok(sum)
    }

    /// The name of its output pipe.
    pub(crate) fn pipe(&self) -> &str {
        &self.pipe
    }

    /// Where they are.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Dumps a sandbox into a folder of this name. It stands still afterwards.
pub(crate) async fn dump(station: &Station, housing: &Housing, tree: &Tree, name: &str) -> Result<Images> {
    let pid = tree.pid();
    let deadline = Instant::now() + SETTLE.0;
    while let Err(error) = preflight::check_dumpable(pid) {
        ensure!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(SETTLE.1).await;
    }
    let folder = Folder::create(housing.work_dir().join(name)).context("make a folder for images")?;
    let worker = Worker::start_beside(&station.roads.criu, &station.roads.reaper, pid).await?;
    let request = DumpRequest {
        pid,
        images: folder.path(),
        mounts: housing.external_mounts(),
        leave: Leave::Stopped,
        timeout: station.roads.limits.criu,
        verbose: false,
    };
    criu::dump(worker, &request).await?;
    let pipes = housing.inherited_fds().context("name its output pipe")?;
    let (pipe, _) = pipes.into_iter().next().context("it has no output pipe")?;
    Ok(Images { folder, pipe })
}

/// Restores images as CRIU wrote them into the housing they were dumped in, which must be empty.
pub(crate) async fn restore(
    station: &Station,
    housing: &mut Housing,
    images: &Images,
    waiting: bool,
    watch: &mut Stopwatch,
) -> Result<Tree> {
    let roads = &station.roads;
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
    Ok(tree)
}

/// What the command line costs: a namespace to restore into, and a program that starts.
async fn fresh_worker(station: &Station) -> Result<(Worker, Intake)> {
    let seat = blocking(sandbox::seat).await.context("make a network namespace")?;
    let Seat { netns, output, keep } = seat;
    Ok((Worker::start(&station.roads.criu, &station.roads.reaper, netns, output).await?, keep))
}
