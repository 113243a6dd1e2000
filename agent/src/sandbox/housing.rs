//! What outlives the processes of a sandbox: folder, mounts, control group, log pipe, network namespace.
//!
//! A sandbox that has been dumped has a housing and no processes; a restore moves new ones in.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MntFlags, umount2};
use nix::unistd::Pid;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::cgroup::{CgroupError, Limits, SandboxCgroup, Usage};
use super::host::{Host, StopOnDrop, run_blocking};
use super::http::{self, Request, RequestError, Response};
use super::log::{Log, Pipe};
use super::mounts::{ExternalMount, Layout, MountError, ROOT, SHOWN, TMPFS};
use super::netns;
use super::spec::{LaunchSpec, SandboxId, SpecError};
use super::tree::{AdoptError, Tree};

/// Why a housing could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The specification is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The node has a sandbox of this name.
    #[error("{id:?} exists already")]
    Exists {
        /// The name.
        id: SandboxId,
    },
    /// Its folder could not be made (the node's tmpfs is full).
    #[error("make folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its file systems could not be prepared.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// Its control group could not be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Its network namespace could not be made.
    #[error("make a network namespace")]
    Network {
        /// What the system said.
        source: io::Error,
    },
    /// Its log pipe could not be made.
    #[error("make the log pipe")]
    Log {
        /// What the system said.
        source: io::Error,
    },
}

/// Why a housing is still there, or parts of it.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Processes or control groups would not go.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A folder would not go.
    #[error("remove folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The housing of one sandbox. Remove it with [`Housing::remove`]; dropping it leaves mounts and control group to the
/// next start or the keeper.
#[derive(Debug)]
pub struct Housing {
    pub(crate) host: Host,
    id: SandboxId,
    pub(crate) spec: Arc<LaunchSpec>,
    dir: PathBuf,
    layout: Layout,
    external: Vec<ExternalMount>,
    pub(crate) cgroup: SandboxCgroup,
    pub(super) network: Arc<OwnedFd>,
    pub(super) log: Log,
    requests: Semaphore,
    /// Ends the task that reads the log.
    stop: StopOnDrop,
}

impl Housing {
    /// Makes everything a sandbox needs before its first process. When it fails, nothing is left.
    ///
    /// Not cancel-safe: dropped half way, the parts stay until the node is shut down.
    pub async fn create(host: &Host, id: &SandboxId, spec: &LaunchSpec) -> Result<Self, CreateError> {
        spec.check()?;
        let stop = CancellationToken::new();
        let log = open_log(host, spec, stop.clone()).map_err(|source| CreateError::Log { source })?;
        let stop = StopOnDrop(stop);
        let (host, id, spec) = (host.clone(), id.clone(), Arc::new(spec.clone()));
        run_blocking(move || {
            let dir = host.shared.sandboxes.join(id.as_str());
            fs::create_dir(&dir).map_err(|source| match source.kind() {
                io::ErrorKind::AlreadyExists => CreateError::Exists { id: id.clone() },
                _ => CreateError::Folder { path: dir.clone(), source },
            })?;
            let parts = make_parts(&host, &id, &dir, &spec);
            let (cgroup, layout, network) = parts.inspect_err(|_error| {
                // What cannot be removed now would be a second error about the same trouble.
                let _first_error_counts = remove_folders(&dir);
            })?;
            let external = layout.external();
            let requests = Semaphore::new(spec.requests_max as usize);
            let network = Arc::new(network);
            Ok(Self { host, id, spec, dir, layout, external, cgroup, network, log, requests, stop })
        })
        .await
    }

    /// All of it that the next agent needs, which finds the rest where it is.
    pub(crate) fn kept(&self) -> io::Result<KeptHousing> {
        let layout = serde_json::to_vec(&self.layout)?;
        Ok(KeptHousing { layout, network: self.network.try_clone()?, pipe: self.log.pipe()? })
    }

    /// One that an agent before has left, with its processes.
    pub(crate) fn take_over(
        host: &Host,
        id: &SandboxId,
        spec: &LaunchSpec,
        kept: KeptHousing,
    ) -> io::Result<Self> {
        let KeptHousing { layout, network, pipe } = kept;
        let layout: Layout = serde_json::from_slice(&layout)?;
        let stop = CancellationToken::new();
        let log = Log::of(pipe, &host.shared.tasks, stop.clone())?;
        Ok(Self {
            host: host.clone(),
            id: id.clone(),
            spec: Arc::new(spec.clone()),
            dir: host.shared.sandboxes.join(id.as_str()),
            external: layout.external(),
            layout,
            cgroup: host.shared.cgroup.group_of(id.as_str()),
            network: Arc::new(network),
            log,
            requests: Semaphore::new(spec.requests_max as usize),
            stop: StopOnDrop(stop),
        })
    }

    /// Takes a tree that CRIU has restored inside this housing. Its processes must be in the control group
    /// ([`SandboxCgroup::procs_files`]).
    pub fn adopt(&self, pid: Pid) -> Result<Tree, AdoptError> {
        let oom_kills = self.cgroup.oom_kills();
        let tree = Tree::take(&self.host.shared.reaper, pid, self.cgroup.clone(), oom_kills)?;
        if tree.pids()?.contains(&pid) { Ok(tree) } else { Err(AdoptError::NotInside { pid }) }
    }

    /// Sends one request in. Cancel-safe: dropping it closes the connection.
    pub async fn request(&self, request: Request) -> Result<Response, RequestError> {
        let requests_max = self.spec.requests_max;
        let _permit = self.requests.try_acquire().map_err(|_full| RequestError::Busy { requests_max })?;
        let port = self.spec.port;
        http::exchange(self.host.shared.door.connect(&self.network, port), port, request).await
    }

    /// Kills what still runs and removes everything. May be repeated; what is gone already is fine.
    ///
    /// Cancel-safe in the sense that repeating it finishes the work.
    pub async fn remove(&self) -> Result<(), RemoveError> {
        self.cgroup.kill().await?;
        self.stop.0.cancel();
        self.layout.unmount();
        self.cgroup.remove().await?;
        let dir = self.dir.clone();
        run_blocking(move || remove_folders(&dir)).await
    }

    /// The sandbox's name.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// What it runs.
    pub fn spec(&self) -> &LaunchSpec {
        &self.spec
    }

    /// Folder for whatever the agent wants to keep with this sandbox (CRIU's images), on the node's tmpfs.
    pub fn work_dir(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    /// Root directory for CRIU: a mount point in the agent's mount namespace.
    pub fn root(&self) -> &Path {
        self.layout.root()
    }

    /// The private writable folders (tmp, var-tmp, run, shm), as the agent sees them.
    pub fn private_dir(&self) -> &Path {
        self.layout.tmpfs()
    }

    /// Writes the sandbox's number where its program finds it: in a clone it is another one than its memory knows. No process of it may
    /// run yet.
    pub fn number(&self, number: u64) -> io::Result<()> {
        write_number(&self.private_dir().join("run"), number)
    }

    /// Mounts that CRIU must take from outside, parents before children.
    pub fn external_mounts(&self) -> &[ExternalMount] {
        &self.external
    }

    /// Fds that a restored process must be given: `pipe:[INODE]` as CRIU names it, and the fd.
    pub fn inherited_fds(&self) -> io::Result<Vec<(String, Arc<OwnedFd>)>> {
        Ok(vec![(self.log.pipe_name()?, self.log.sink())])
    }

    /// The network namespace: CRIU's worker enters it before it restores or dumps.
    pub fn network(&self) -> BorrowedFd<'_> {
        self.network.as_fd()
    }

    /// The control group: kill, freeze, id for eBPF, files for CRIU's worker.
    pub fn cgroup(&self) -> &SandboxCgroup {
        &self.cgroup
    }

    /// What it prints.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// What it uses now.
    pub fn usage(&self) -> Usage {
        self.cgroup.usage()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }
}

/// What of a housing is nowhere but in its agent.
#[derive(Debug)]
pub(crate) struct KeptHousing {
    /// Where its mounts are.
    pub(crate) layout: Vec<u8>,
    pub(crate) network: OwnedFd,
    /// What its processes write to.
    pub(crate) pipe: Pipe,
}

/// Removes what is left of a housing, whose processes are gone, for who has nothing but its folder.
fn clear(dir: &Path) -> Result<(), RemoveError> {
    let shown = fs::read_dir(dir.join(SHOWN)).into_iter().flatten().flatten().map(|entry| entry.path());
    for point in shown.chain([dir.join(ROOT), dir.join(TMPFS)]) {
        // Not mounted is fine; what still is makes the folder stay.
        let _not_mounted = umount2(&point, MntFlags::MNT_DETACH);
    }
    remove_folders(dir)
}

/// The same for all sandboxes below a folder but those of these names; `failed` hears of what stays.
pub(crate) fn clear_others(
    sandboxes: &Path,
    stays: impl Fn(&str) -> bool,
    mut failed: impl FnMut(RemoveError),
) {
    for folder in fs::read_dir(sandboxes).into_iter().flatten().flatten() {
        if !folder.file_name().to_str().is_some_and(&stays)
            && let Err(error) = clear(&folder.path())
        {
            failed(error);
        }
    }
}

/// `run` is ours; what a program has left in it may be anything, links to the host's files included, and is not followed.
fn write_number(run: &Path, number: u64) -> io::Result<()> {
    let gone_is_fine = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    let folder = run.join("medes");
    if !fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) {
        gone_is_fine(fs::remove_file(&folder))?;
        fs::create_dir(&folder)?;
        // For the sandbox's user, whatever the umask.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    }
    let path = folder.join("generation");
    gone_is_fine(fs::remove_file(&path))?;
    // A link is never followed by this.
    let mut file = fs::File::create_new(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(format!("{number}\n").as_bytes())
}

/// Folder of CRIU's images and the like.
const WORK: &str = "work";

fn open_log(host: &Host, spec: &LaunchSpec, stop: CancellationToken) -> io::Result<Log> {
    let pipe = Pipe::new()?;
    pipe.give_to(spec.uid, spec.gid)?;
    Log::of(pipe, &host.shared.tasks, stop)
}

fn make_parts(
    host: &Host,
    id: &SandboxId,
    dir: &Path,
    spec: &LaunchSpec,
) -> Result<(SandboxCgroup, Layout, OwnedFd), CreateError> {
    let work = dir.join(WORK);
    fs::create_dir(&work).map_err(|source| CreateError::Folder { path: work, source })?;
    let network = netns::create().map_err(|source| CreateError::Network { source })?;
    let layout = Layout::prepare(dir, &host.shared.dev, spec)?;
    let limits = Limits { memory_bytes_max: spec.memory_bytes_max, pids_max: spec.pids_max };
    match host.shared.cgroup.sandbox(id, limits) {
        Ok(cgroup) => Ok((cgroup, layout, network)),
        Err(error) => {
            layout.unmount();
            Err(error.into())
        }
    }
}

/// Removes the folders of a sandbox, whose mounts are gone.
///
/// Only the work folder is removed with its contents. The others are mount points: if a mount were still there,
/// removing contents would reach into the host's root.
fn remove_folders(dir: &Path) -> Result<(), RemoveError> {
    let absent_is_fine = |path: PathBuf, result: io::Result<()>| match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RemoveError::Folder { path, source }),
        _ => Ok(()),
    };
    let work = dir.join(WORK);
    let result = fs::remove_dir_all(&work);
    absent_is_fine(work, result)?;
    let shown = dir.join(SHOWN);
    let points = fs::read_dir(&shown).into_iter().flatten().flatten().map(|entry| entry.path());
    for path in points.chain([shown.clone(), dir.join(ROOT), dir.join(TMPFS), dir.to_owned()]) {
        let result = fs::remove_dir(&path);
        absent_is_fine(path, result)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_link_that_a_program_left_leads_out() {
        let (run, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let number = || fs::read_to_string(run.path().join("medes/generation")).unwrap();
        write_number(run.path(), 7).unwrap();
        write_number(run.path(), 8).unwrap();
        assert_eq!(number(), "8\n");
        fs::remove_file(run.path().join("medes/generation")).unwrap();
        std::os::unix::fs::symlink(host.path().join("made"), run.path().join("medes/generation")).unwrap();
        write_number(run.path(), 9).unwrap();
        assert_eq!(number(), "9\n");
        fs::remove_dir_all(run.path().join("medes")).unwrap();
        std::os::unix::fs::symlink(host.path(), run.path().join("medes")).unwrap();
        write_number(run.path(), 10).unwrap();
        assert_eq!(number(), "10\n");
        assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
    }
}
