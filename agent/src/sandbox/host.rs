//! What a node has once, and every sandbox shares: the private run directory, /dev, the control group, the keeper.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::criu::run_dir;
use crate::keeper::{self, Keeper, KeeperError, KeeperOrder, Key, Left};
use crate::pager::Guard;
use crate::reaper::{ExitStatus, Reaper};

use super::cgroup::{CgroupError, NodeCgroup, Usage};
use super::mounts::{self, MountError};
use super::netns::Door;
use super::spec::{SpecError, check_name, is_plain};

/// Set once this process has its own mount namespace.
static PRIVATE_MOUNTS: AtomicBool = AtomicBool::new(false);

/// Why a node could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The node's name or run directory cannot be used.
    #[error(transparent)]
    Name(#[from] SpecError),
    /// The run directory is not an absolute path without links to somewhere else.
    #[error("the run directory {path} must be absolute, without . and ..")]
    RunDir {
        /// The path.
        path: PathBuf,
    },
    /// `enter_private_mounts` was not called.
    #[error("the process has not entered a mount namespace of its own")]
    NotPrivate,
    /// Another agent of this name runs on this machine.
    #[error("a node named {node} is already running on this machine")]
    Taken {
        /// The name.
        node: String,
    },
    /// A system call refused.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// CRIU's notes would not survive a run.
    #[error(transparent)]
    Run(#[from] run_dir::PrivateRunError),
    /// The file systems could not be prepared.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The control groups could not be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The keeper did not start.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
}

impl HostError {
    fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Gives this process a mount namespace of its own and makes it the parent of its orphans.
///
/// First thing in `main`, before any thread: namespaces belong to threads, and only those started later follow.
/// Nothing outside of this process changes.
pub fn enter_private_mounts() -> Result<(), HostError> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| HostError::io("make a mount namespace")(errno.into()))?;
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .map_err(|errno| HostError::io("make all mounts private")(errno.into()))?;
    run_dir::ensure()?;
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|errno| HostError::io("become the parent of orphans")(errno.into()))?;
    PRIVATE_MOUNTS.store(true, Ordering::Release);
    Ok(())
}

/// How a node is set up.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Name of the node, unique on this machine.
    pub node: String,
    /// Where the node's tmpfs is mounted, for the agent's eyes only. Made if it is not there.
    pub run_dir: PathBuf,
    /// Size of that tmpfs (the private folders of sandboxes have their own).
    pub run_bytes_max: u64,
    /// The agent's own program, for `stage` and `keeper`.
    pub program: PathBuf,
    /// How long what needs no process waits for the next agent after this one's end, in whatever way; zero: nothing does.
    pub takeover: Duration,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: HostConfig,
    pub(crate) cgroup: NodeCgroup,
    pub(crate) dev: PathBuf,
    pub(crate) sandboxes: PathBuf,
    pub(crate) door: Door,
    pub(crate) reaper: Reaper,
    pub(crate) tasks: TaskTracker,
    keeper: Arc<Keeper>,
    /// What the agent before left, until somebody takes it.
    left: Mutex<Vec<Left>>,
    _name_lock: UnixListener,
}

/// The node, as sandboxes see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) shared: Arc<Shared>,
}

impl Host {
    /// Sets the node up: name lock, what an agent before left taken over and the rest of it removed, run directory, control groups, keeper.
    ///
    /// Not cancel-safe; a start that was dropped half way is cleaned up by the next one.
    pub async fn start(config: HostConfig, reaper: Reaper, tasks: TaskTracker) -> Result<Self, HostError> {
        check_name("node", &config.node)?;
        if !is_plain(&config.run_dir) {
            return Err(HostError::RunDir { path: config.run_dir });
        }
        if !PRIVATE_MOUNTS.load(Ordering::Acquire) {
            return Err(HostError::NotPrivate);
        }
        let name_lock = lock_name(&config.node)?;
        let (config, left, cgroup, dev, sandboxes) = run_blocking(move || -> Result<_, HostError> {
            // First, as the keeper of an agent before is among what is removed then.
            let left = keeper::receive(&config.node).unwrap_or_else(|error| {
                tracing::warn!(%error, "what the agent before left did not arrive");
                Vec::new()
            });
            let cgroup = NodeCgroup::create(&format!("medes-{}", config.node))?;
            let (dev, sandboxes) = prepare_run_dir(&config)?;
            Ok((config, left, cgroup, dev, sandboxes))
        })
        .await?;
        let door = Door::open().map_err(HostError::io("start the namespace thread"))?;
        let order = KeeperOrder {
            branches: cgroup.branches().to_vec(),
            run_dir: config.run_dir.clone(),
            sandboxes: sandboxes.clone(),
            node: config.node.clone(),
            takeover: config.takeover,
        };
        let keeper = Arc::new(Keeper::start(&reaper, &config.program, &order).await?);
        let (left, _name_lock) = (Mutex::new(left), name_lock);
        let shared = Shared { config, cgroup, dev, sandboxes, door, reaper, tasks, keeper, left, _name_lock };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The node's run directory: a private tmpfs.
    pub fn run_dir(&self) -> &Path {
        &self.shared.config.run_dir
    }

    /// The node's control group.
    pub fn cgroup(&self) -> &NodeCgroup {
        &self.shared.cgroup
    }

    /// What the node uses: agent, helpers and all sandboxes.
    pub fn usage(&self) -> Usage {
        self.shared.cgroup.usage()
    }

    /// Bytes of the private files of a sandbox of this name, whoever works on it.
    pub fn private_bytes_of(&self, name: &str) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let folder = self.shared.sandboxes.join(name).join(super::mounts::TMPFS);
        let device = |path: &Path| std::fs::metadata(path).ok().map(|found| found.dev());
        // Not mounted yet, or no more: then these are the node's files.
        match device(&folder) {
            Some(own) if device(&self.shared.sandboxes) != Some(own) => super::intake::used_bytes(&folder),
            _ => 0,
        }
    }

    /// The agent's reaper, for others who start processes.
    pub fn reaper(&self) -> &Reaper {
        &self.shared.reaper
    }

    /// Waits until the keeper has ended, which it never does while all is well. Cancel-safe.
    ///
    /// Without a keeper a killed agent leaves its sandboxes running: say so, and shut down in order.
    pub async fn keeper_died(&self) -> ExitStatus {
        self.shared.keeper.died().await
    }

    /// The keeper as who holds userfaultfds.
    pub fn guard(&self) -> Arc<dyn Guard> {
        self.shared.keeper.clone()
    }

    /// Whether anything is left to the next agent when this one ends.
    pub(crate) fn leaves(&self) -> bool {
        self.shared.keeper.leaves()
    }

    /// From now on the next agent is to have this, in place of what had the same key.
    pub(crate) fn leave(&self, key: Key, files: &[BorrowedFd<'_>]) {
        self.shared.keeper.leave(key, files);
    }

    /// From now on the next agent is not to have this.
    pub(crate) fn take_back(&self, key: Key) {
        self.shared.keeper.take_back(key);
    }

    /// What the agent before left; nothing the second time.
    pub(crate) fn left(&self) -> Vec<Left> {
        std::mem::take(&mut self.shared.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keeper's process number.
    pub fn keeper_pid(&self) -> nix::unistd::Pid {
        self.shared.keeper.pid()
    }
}

/// The name is taken for as long as the returned socket is open, in whatever way the process ends.
fn lock_name(node: &str) -> Result<UnixListener, HostError> {
    let address = SocketAddr::from_abstract_name(format!("medes-node-{node}"))
        .map_err(HostError::io("make the address of the node's name lock"))?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => HostError::Taken { node: node.to_owned() },
        _ => HostError::io("lock the node's name")(error),
    })
}

/// Mounts the run directory and what all sandboxes share in it.
fn prepare_run_dir(config: &HostConfig) -> Result<(PathBuf, PathBuf), HostError> {
    let run_dir = &config.run_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(run_dir)
        .map_err(MountError::io("create folder", run_dir))?;
    mounts::mount_tmpfs(run_dir, config.run_bytes_max, 0o700, MsFlags::MS_NOSUID)?;
    fs::set_permissions(run_dir, fs::Permissions::from_mode(0o700))
        .map_err(MountError::io("set mode of", run_dir))?;
    let prepared = (|| {
        let (dev, sandboxes) = (run_dir.join("dev"), run_dir.join("sandboxes"));
        for dir in [&dev, &sandboxes] {
            fs::create_dir(dir).map_err(MountError::io("create folder", dir))?;
        }
        mounts::make_dev(&dev)?;
        Ok((dev, sandboxes))
    })();
    if prepared.is_err() {
        // Takes everything mounted below along. If it fails too, the namespace ends with this process anyway.
        let _still_mounted = umount2(run_dir, MntFlags::MNT_DETACH);
    }
    prepared
}

/// Runs blocking work beside the runtime's own threads. Not cancel-safe: the work goes on when this is dropped.
pub(crate) async fn run_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// A token that stops a task when its owner is dropped.
#[derive(Debug)]
pub(crate) struct StopOnDrop(pub(crate) CancellationToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}
