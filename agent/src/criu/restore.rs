//! Restore: image files become a process tree again, in the worker's network namespace and a cgroup of the caller's.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::images::{ImageSet, ReadImagesError};
use super::log::{LEVEL_DEBUG, LEVEL_ERRORS, Reason};
use super::wire::rpc;
use super::worker::{CallError, Worker};
use super::{ExternalMount, LOG_FILE, log_path, stats, tree};
use crate::reaper::{ExitWatch, Reaper};

/// Which descriptor of the worker's [`super::Output`] takes the place of a pipe whose other end was outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inherited {
    /// [`super::Output::stdout`].
    Stdout,
    /// [`super::Output::stderr`].
    Stderr,
}

/// What to restore, and what of the outside it is joined to.
#[derive(Debug)]
pub struct RestoreRequest<'a> {
    /// The folder with the image files.
    pub images: &'a Path,
    /// What becomes the sandbox's root directory. Must be a mount point.
    pub root: &'a Path,
    /// The mounts that were named at dump.
    pub mounts: &'a [ExternalMount],
    /// The `cgroup.procs` files of the sandbox's cgroup, one per hierarchy. The worker is put there, so that every
    /// process it makes is born there.
    pub cgroup_procs: &'a [PathBuf],
    /// Pipes whose other end was outside, as `/proc/PID/fd` named them at dump (`pipe:[123]`), each at most once.
    /// Each end of [`super::Output`] can be used once.
    pub inherited: &'a [(String, Inherited)],
    /// Leave every process stopped, before its first instruction.
    pub leave_stopped: bool,
    /// When this is over the worker and what it made are killed.
    pub timeout: Duration,
    /// Write all CRIU has to say to the log beside the images, instead of errors only.
    pub verbose: bool,
}

/// A restore that worked.
#[derive(Debug)]
pub struct Restored {
    /// The root process, as the agent sees it. A child of the agent.
    pub pid: Pid,
    /// Time to make the processes.
    pub forking: Duration,
    /// Time to fill them.
    pub filling: Duration,
    /// Pages put back, if CRIU counted them.
    pub pages: Option<u64>,
}

/// Why nothing was restored. Nothing of it runs; the caller still empties the sandbox's cgroup to be sure.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The folder of the images cannot be opened.
    #[error("open the images in {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The images are broken.
    #[error("check the images before they are restored")]
    Images(#[from] ReadImagesError),
    /// The worker cannot be put into the sandbox's cgroup.
    #[error("move the CRIU worker into the cgroup of {path}")]
    Cgroup {
        /// A `cgroup.procs` file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CRIU cannot make sense of the images, or cannot make on this node what they describe.
    #[error("restore the images in {path}: {reason}")]
    Failed {
        /// The folder.
        path: PathBuf,
        /// CRIU's own words.
        reason: Reason,
    },
    /// CRIU ended in the middle or had to be killed.
    #[error("restore the images in {path}")]
    Worker {
        /// The folder.
        path: PathBuf,
        /// What happened to it.
        #[source]
        source: CallError,
    },
}

/// The tree while it is being made, so that a restore that breaks off in the middle leaves nothing behind. The root
/// is the first process of its pid namespace: the rest dies with it.
///
/// The root is born in the worker's process group. CRIU tells its number before it lets it take a session of its
/// own, and waits for us to have heard: so at every moment one of the two ways finds it.
struct HalfMade<'a> {
    reaper: &'a Reaper,
    root: Option<ExitWatch>,
    group: Pid,
    netns: u64,
    done: bool,
}

impl<'a> HalfMade<'a> {
    fn begin(reaper: &'a Reaper, worker: &Worker) -> Self {
        // No namespace has number 0: if the open descriptor could not be asked, nothing would match.
        let netns = nix::sys::stat::fstat(worker.netns()).map_or(0, |netns| netns.st_ino);
        Self { reaper, root: None, group: worker.pid(), netns, done: false }
    }

    fn told(&mut self, notify: &rpc::Notify) {
        if let Some(pid) = notify.pid.filter(|pid| *pid > 1)
            && self.root.is_none()
        {
            self.root = Some(self.reaper.claim(Pid::from_raw(pid)));
        }
    }
}

impl Drop for HalfMade<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let left = tree::group_members(self.group, self.netns);
        // A root that was not collected is our child, so the number is its own.
        let root = self.root.iter().filter(|root| root.now().is_none()).map(ExitWatch::pid);
        for pid in root.chain(left) {
            // The only error is that it is gone.
            let _gone = kill(pid, Signal::SIGKILL);
        }
    }
}

/// Restores a tree with a worker that lives in the network namespace the tree shall have.
///
/// Dropping the future kills the worker and the tree.
pub async fn restore(
    mut worker: Worker,
    reaper: &Reaper,
    request: &RestoreRequest<'_>,
) -> Result<Restored, RestoreError> {
    let path = || request.images.to_owned();
    let folder =
        File::open(request.images).map_err(|source| RestoreError::Folder { path: path(), source })?;
    check_images(request.images).await?;
    for procs in request.cgroup_procs {
        fs::write(procs, format!("{}\n", worker.pid()))
            .map_err(|source| RestoreError::Cgroup { path: procs.clone(), source })?;
    }
    let message = rpc::Request {
        r#type: rpc::RequestType::Restore.into(),
        opts: Some(options(request, &folder)),
        notify_success: None,
    };
    let mut half_made = HalfMade::begin(reaper, &worker);
    let response = worker
        .call(&message, request.timeout, |notify| half_made.told(notify))
        .await
        .map_err(|source| RestoreError::Worker { path: path(), source })?;
    worker.finish().await;
    match response.restore {
        Some(rpc::RestoreResponse { pid }) if response.success && pid > 1 => {
            half_made.done = true;
            Ok(finished(request.images, Pid::from_raw(pid)))
        }
        _ => {
            let reason = Reason::read(&log_path(request.images), response.cr_errmsg.as_deref());
            Err(RestoreError::Failed { path: path(), reason })
        }
    }
}

/// Where a pages file is too short, CRIU asks the kernel for the rest again and again, for ever. So lengths are
/// compared before it sees them, and the rest of what we understand with them.
async fn check_images(images: &Path) -> Result<(), ReadImagesError> {
    let folder = images.to_owned();
    let read = tokio::task::spawn_blocking(move || ImageSet::read(folder.as_path()).map(drop)).await;
    read.unwrap_or_else(|join| {
        Err(ReadImagesError::List { path: images.to_owned(), source: io::Error::other(join) })
    })
}

fn options(request: &RestoreRequest<'_>, folder: &File) -> rpc::Options {
    let inherit = |(key, from): &(String, Inherited)| rpc::InheritFd {
        key: key.clone(),
        fd: match from {
            Inherited::Stdout => 1,
            Inherited::Stderr => 2,
        },
    };
    rpc::Options {
        images_dir_fd: folder.as_raw_fd(),
        root: Some(request.root.display().to_string()),
        leave_stopped: Some(request.leave_stopped),
        log_level: Some(if request.verbose { LEVEL_DEBUG } else { LEVEL_ERRORS }),
        log_file: Some(LOG_FILE.into()),
        external: request.mounts.iter().map(super::found).collect(),
        inherit_fd: request.inherited.iter().map(inherit).collect(),
        manage_cgroups_mode: Some(rpc::CgroupMode::CgroupIgnore.into()),
        network_lock: Some(rpc::NetworkLock::Skip.into()),
        file_locks: Some(true),
        link_remap: Some(true),
        // A dump refuses live connections; what is left are sockets that were closed on both sides and are still
        // held open (by a child that inherited one, say). They come back closed.
        tcp_close: Some(true),
        // The root process becomes a child of the agent, not of the worker.
        rst_sibling: Some(true),
        // For the root's pid, see `HalfMade`.
        notify_scripts: Some(true),
        ..Default::default()
    }
}

fn finished(images: &Path, pid: Pid) -> Restored {
    let counted = stats::read(images, "stats-restore").and_then(|stats| stats.restore).unwrap_or_default();
    Restored {
        pid,
        forking: stats::micros(counted.forking_time),
        filling: stats::micros(counted.restore_time),
        pages: counted.pages_restored,
    }
}
