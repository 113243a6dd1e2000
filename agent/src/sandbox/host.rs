//! What a node has once, and every sandbox shares: the private run directory, /dev, the control group, the keeper.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::criu::run_dir;
use crate::keeper::{Before, Keeper, KeeperError, KeeperOrder, Key, Left, Starting};
use crate::pager::Guard;
use crate::reaper::{ExitStatus, Reaper};

use super::cgroup::{CgroupError, NodeCgroup, Usage};
use super::claim::{Claim, Place, Standing};
use super::housing;
use super::mounts::{self, MountError};
use super::netns::Door;
use super::scope::{self, Scope, ScopeError};
use super::spec::{SpecError, is_plain};

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
    /// systemd has no place for the node.
    #[error("have a scope of systemd")]
    Scope(#[from] ScopeError),
}

impl HostError {
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// The keeper, where it is to be; what it is to do it is told later. A node that stands already has its groups.
async fn start_keeper(
    config: &HostConfig,
    stands: bool,
    reaper: &Reaper,
) -> Result<(Starting, Option<Scope>), HostError> {
    if config.in_scope {
        scope::check_slice()?;
    }
    if !config.in_scope || stands {
        return Ok((Starting::new(reaper, Command::new(&config.program))?, None));
    }
    let starting = Starting::new(reaper, scope::command(&config.program, &config.node))?;
    let scope = scope::entered(starting.pid()).await?;
    Ok((starting, Some(scope)))
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
    have_private_mounts()
}

/// The same, for who is in a mount namespace of its own already.
pub(super) fn have_private_mounts() -> Result<(), HostError> {
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
    /// Whether the node's control groups are in a scope of systemd beside the agent's service, instead of below it.
    pub in_scope: bool,
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
    /// What the agent before left, until somebody takes it, and who waits for that.
    left: Mutex<(Vec<Left>, Option<Before>)>,
    _name_lock: UnixListener,
}

/// The node, as sandboxes see it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Host {
    pub(crate) shared: Arc<Shared>,
}

impl Host {
    /// Takes the node's name and sets it up.
    ///
    /// Not cancel-safe; a start that was dropped half way is cleaned up by the next one.
    pub async fn start(config: HostConfig, reaper: Reaper, tasks: TaskTracker) -> Result<Self, HostError> {
        let node = config.node.clone();
        let claim = run_blocking(move || Claim::new(&node)).await?;
        if claim.standing.is_some() {
            return Err(HostError::NotPrivate);
        }
        Self::start_claimed(config, claim, &reaper, &tasks).await
    }

    /// Sets the node up: leftovers removed but for what is taken over, run directory, control groups, keeper.
    ///
    /// Not cancel-safe; a start that was dropped half way is cleaned up by the next one.
    pub async fn start_claimed(
        mut config: HostConfig,
        claim: Claim,
        reaper: &Reaper,
        tasks: &TaskTracker,
    ) -> Result<Self, HostError> {
        if !is_plain(&config.run_dir) {
            return Err(HostError::RunDir { path: config.run_dir });
        }
        if !PRIVATE_MOUNTS.load(Ordering::Acquire) {
            return Err(HostError::NotPrivate);
        }
        let Claim { lock, left, before, standing } = claim;
        let (starting, scope) = start_keeper(&config, standing.is_some(), reaper).await?;
        let (config, cgroup, dev, sandboxes, before) = run_blocking(move || -> Result<_, HostError> {
            let begun = before.as_ref().map_or(Ok(()), Before::begin);
            begun.map_err(HostError::io("take over what the agent before left"))?;
            let (cgroup, (dev, sandboxes)) = match standing {
                None => {
                    let cgroup = NodeCgroup::create(&format!("medes-{}", config.node), scope.as_ref())?;
                    (cgroup, prepare_run_dir(&config)?)
                }
                Some(Standing { place, .. }) => {
                    config.run_dir = place.run_dir;
                    (NodeCgroup::take_over(place.branches, config.in_scope)?, folders(&config.run_dir))
                }
            };
            Ok((config, cgroup, dev, sandboxes, before))
        })
        .await?;
        let door = Door::open().map_err(HostError::io("start the namespace thread"))?;
        let order = KeeperOrder {
            place: Place { branches: cgroup.branches().to_vec(), run_dir: config.run_dir.clone() },
            sandboxes: sandboxes.clone(),
            node: config.node.clone(),
            takeover: config.takeover,
            in_scope: config.in_scope,
        };
        let keeper = Arc::new(starting.on_guard(&order).await?);
        let left = Mutex::new((left, before));
        let (reaper, tasks, _name_lock) = (reaper.clone(), tasks.clone(), lock);
        let shared = Shared { config, cgroup, dev, sandboxes, door, reaper, tasks, keeper, left, _name_lock };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The agent's own program.
    pub(crate) fn program(&self) -> &Path {
        &self.shared.config.program
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

    /// From now on nothing is left to anybody: all ends with this agent.
    pub(crate) fn leave_nothing(&self) {
        self.shared.keeper.leave_nothing();
    }

    /// What the agent before left, and who is to hear when all of it is served; nothing the second time.
    pub(crate) fn left(&self) -> (Vec<Left>, Option<Before>) {
        std::mem::take(&mut self.shared.left.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends and removes all sandboxes but those of these names: what an agent before left and nobody takes over. Blocking.
    pub(crate) fn end_others(&self, names: &[String]) -> Result<(), CgroupError> {
        self.shared.cgroup.end_others(names)?;
        housing::clear_others(
            &self.shared.sandboxes,
            |name| names.iter().any(|other| other == name),
            |error| {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "something of a sandbox of the agent before stays behind");
            },
        );
        Ok(())
    }

    /// The keeper's process number.
    pub fn keeper_pid(&self) -> nix::unistd::Pid {
        self.shared.keeper.pid()
    }
}

/// What all sandboxes share below a run directory, and the folder of their own ones.
fn folders(run_dir: &Path) -> (PathBuf, PathBuf) {
    (run_dir.join("dev"), run_dir.join("sandboxes"))
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
        let (dev, sandboxes) = folders(run_dir);
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
