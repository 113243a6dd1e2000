//! Dump: a running process tree becomes image files, and goes on living, stopped or running.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::Pid;

use super::capture::CaptureError;
use super::log::{LEVEL_DEBUG, LEVEL_ERRORS, Reason};
use super::wire::rpc;
use super::worker::{CallError, StartWorkerError, Worker};
use super::{ExternalMount, LOG_FILE, log_path, stats};

/// Unlinked files that are still open are carried inside the images up to this size each. CRIU's own limit of 1 MiB
/// is less than what one NumPy scratch file takes.
pub(super) const GHOST_FILE_BYTES_MAX: u32 = 256 << 20;

/// What becomes of the tree after a dump that worked. After one that did not, it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Every process is stopped; [`super::tree::resume`] lets them run, killing them ends them.
    Stopped,
    /// It runs on.
    Running,
}

/// What to dump, and where to.
#[derive(Debug)]
pub struct DumpRequest<'a> {
    /// The root process of the tree, as the agent sees it.
    pub pid: Pid,
    /// An existing empty folder for the image files; of a dump to memory, for CRIU's log and what little else it leaves.
    pub images: &'a Path,
    /// Every mount of the sandbox but its root and `/proc`.
    pub mounts: &'a [ExternalMount],
    /// What becomes of the tree.
    pub leave: Leave,
    /// When this is over the worker is killed.
    pub timeout: Duration,
    /// Write all CRIU has to say to the log beside the images, instead of errors only.
    pub verbose: bool,
}

/// A dump that worked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dumped {
    /// Time to stop every thread.
    pub freezing: Duration,
    /// Time the tree stood still for CRIU, the following two included.
    pub frozen: Duration,
    /// Time to collect the pages.
    pub collecting: Duration,
    /// Time to write the pages.
    pub writing: Duration,
    /// Pages written.
    pub pages: u64,
}

/// Why there is no dump, and what state the sandbox is in.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The folder for the images is of no use. The sandbox was not touched.
    #[error("open the folder {path} for images of process {pid}")]
    Folder {
        /// The sandbox's root process.
        pid: Pid,
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no CRIU to do it. The sandbox was not touched.
    #[error("start CRIU beside process {pid}")]
    Start {
        /// The sandbox's root process.
        pid: Pid,
        /// Why not.
        #[source]
        source: StartWorkerError,
    },
    /// The sandbox holds something CRIU cannot carry over. It runs on; trying again only helps after it changed.
    #[error("process {pid} cannot be dumped: {reason}")]
    Refused {
        /// The sandbox's root process.
        pid: Pid,
        /// CRIU's own words.
        reason: Reason,
    },
    /// The images do not fit. The sandbox runs on.
    #[error("no space for images of process {pid}: {reason}")]
    NoSpace {
        /// The sandbox's root process.
        pid: Pid,
        /// CRIU's own words.
        reason: Reason,
    },
    /// CRIU failed and says that the sandbox runs on.
    #[error("dump process {pid}: {reason}")]
    Failed {
        /// The sandbox's root process.
        pid: Pid,
        /// CRIU's own words.
        reason: Reason,
    },
    /// CRIU gave the images away, but they did not arrive. The sandbox stands as it should after a dump, or runs on.
    #[error("take the images of process {pid}")]
    Capture {
        /// The sandbox's root process.
        pid: Pid,
        /// Why not.
        #[source]
        source: CaptureError,
    },
    /// CRIU ended in the middle or had to be killed.
    #[error("dump process {pid}")]
    Worker {
        /// The sandbox's root process.
        pid: Pid,
        /// What happened to it.
        #[source]
        source: CallError,
    },
}

impl DumpError {
    /// Whether the sandbox may have been left in the middle of something: CRIU was gone before it had put everything
    /// back. Usually it runs on, but nobody can promise that, so it should be purged.
    #[must_use]
    pub fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Worker { .. })
    }

    /// Whether another try may work while the sandbox stays as it is.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::NoSpace { .. }
                | Self::Failed { .. }
                | Self::Folder { .. }
                | Self::Start { .. }
                | Self::Capture { .. }
        )
    }

    /// Whether there was no room for the images.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Capture { source, .. } => source.is_no_space(),
            _ => false,
        }
    }
}

/// Dumps a tree with a worker that lives in the tree's network namespace ([`Worker::start_beside`]).
///
/// Not cancel-safe: dropping the future kills CRIU in the middle, see [`DumpError::leaves_doubt`].
pub async fn dump(mut worker: Worker, request: &DumpRequest<'_>) -> Result<Dumped, DumpError> {
    let pid = request.pid;
    let folder = open(request)?;
    let message = rpc::Request {
        r#type: rpc::RequestType::Dump.into(),
        opts: Some(options(request, &folder)),
        notify_success: None,
    };
    let response = worker
        .call(&message, request.timeout, |_| ())
        .await
        .map_err(|source| DumpError::Worker { pid, source })?;
    worker.finish().await;
    match response.success {
        true => Ok(phases(request.images)),
        false => Err(refusal(request, &folder, response.cr_errmsg.as_deref())),
    }
}

/// The folder of the images, which must be there.
pub(super) fn open(request: &DumpRequest<'_>) -> Result<File, DumpError> {
    let path = request.images;
    File::open(path).map_err(|source| DumpError::Folder { pid: request.pid, path: path.to_owned(), source })
}

/// Why CRIU did not dump it, by its log and its last word.
pub(super) fn refusal(request: &DumpRequest<'_>, folder: &File, last_word: Option<&str>) -> DumpError {
    let pid = request.pid;
    let reason = Reason::read(&log_path(request.images), last_word);
    if reason.is_no_space() || is_full(folder) {
        DumpError::NoSpace { pid, reason }
    } else if reason.is_refusal() {
        DumpError::Refused { pid, reason }
    } else {
        DumpError::Failed { pid, reason }
    }
}

fn options(request: &DumpRequest<'_>, folder: &File) -> rpc::Options {
    rpc::Options {
        images_dir_fd: folder.as_raw_fd(),
        pid: Some(request.pid.as_raw()),
        leave_running: Some(request.leave == Leave::Running),
        leave_stopped: Some(request.leave == Leave::Stopped),
        log_level: Some(if request.verbose { LEVEL_DEBUG } else { LEVEL_ERRORS }),
        log_file: Some(LOG_FILE.into()),
        external: request.mounts.iter().map(super::named).collect(),
        // The sandbox's cgroup is the agent's business.
        manage_cgroups_mode: Some(rpc::CgroupMode::CgroupIgnore.into()),
        // Nobody talks to an idle sandbox, and the lock costs a dozen helper programs.
        network_lock: Some(rpc::NetworkLock::Skip.into()),
        file_locks: Some(true),
        link_remap: Some(true),
        ghost_limit: Some(GHOST_FILE_BYTES_MAX),
        timeout: Some(alarm(request)),
        ..Default::default()
    }
}

/// CRIU's own alarm while it stops the tree, in seconds: unlike ours it lets go of what it has stopped.
pub(super) fn alarm(request: &DumpRequest<'_>) -> u32 {
    u32::try_from(request.timeout.as_secs()).unwrap_or(u32::MAX).max(1)
}

pub(super) fn phases(images: &Path) -> Dumped {
    let Some(counted) = stats::read(images, "stats-dump").and_then(|stats| stats.dump) else {
        return Dumped::default();
    };
    Dumped {
        freezing: stats::micros(counted.freezing_time),
        frozen: stats::micros(counted.frozen_time),
        collecting: stats::micros(counted.memdump_time),
        writing: stats::micros(counted.memwrite_time),
        pages: counted.pages_written,
    }
}

/// A short write is not always reported as ENOSPC, and a full folder has no room for the log either.
fn is_full(folder: &File) -> bool {
    nix::sys::statvfs::fstatvfs(folder).is_ok_and(|fs| fs.blocks_available() == 0)
}
