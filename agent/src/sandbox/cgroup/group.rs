//! The control group of one sandbox: limits, usage, kill, freeze, removal.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::branch::{Branch, Kind};
use super::files::{keyed, make_dir, read, read_number, read_procs, write};
use super::{CgroupError, node};

/// How long killed processes may take to go away.
pub(crate) const KILL_WAIT: Duration = Duration::from_secs(5);
/// How long a group may take to freeze.
const FREEZE_WAIT: Duration = Duration::from_secs(2);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(2);

/// What a sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all kinds.
    pub memory_bytes_max: u64,
    /// Processes and threads.
    pub pids_max: u32,
}

/// What a group uses, as the kernel counts it. Zero where the kernel has no memory controller for us.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Everything charged to the group, page cache included.
    pub total_bytes: u64,
    /// Anonymous memory.
    pub anon_bytes: u64,
    /// tmpfs and shared memory: private /tmp, memfds.
    pub shmem_bytes: u64,
    /// Page cache of files, tmpfs not included: it can be dropped at any time.
    pub file_bytes: u64,
    /// Kernel memory: page tables, stacks, slab.
    pub kernel_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

impl Usage {
    /// What cannot be dropped: anonymous, tmpfs and kernel memory.
    pub fn held_bytes(&self) -> u64 {
        self.anon_bytes.saturating_add(self.shmem_bytes).saturating_add(self.kernel_bytes)
    }
}

/// The control group of one sandbox.
#[derive(Debug, Clone)]
pub struct SandboxCgroup {
    branches: Vec<Branch>,
}

impl SandboxCgroup {
    /// The group as it is, or would be: nothing is made.
    pub(crate) fn at(node: &[Branch], name: &str) -> Self {
        Self { branches: node.iter().map(|branch| branch.child(name)).collect() }
    }

    pub(crate) fn create(node: &[Branch], name: &str, limits: Limits) -> Result<Self, CgroupError> {
        let group = Self::at(node, name);
        for branch in &group.branches {
            make_dir(&branch.dir).map_err(CgroupError::io("create cgroup", &branch.dir))?;
        }
        group.limit(limits)?;
        Ok(group)
    }

    fn limit(&self, limits: Limits) -> Result<(), CgroupError> {
        let set = |path: PathBuf, value: String| match write(&path, &value) {
            // A controller that is not there is reported by `medes doctor`, it does not stop a sandbox.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(CgroupError::io("set limit", path)(error)),
            Ok(()) => Ok(true),
        };
        let bytes = limits.memory_bytes_max.to_string();
        for branch in &self.branches {
            let dir = &branch.dir;
            match branch.kind {
                Kind::Unified => {
                    if set(dir.join("memory.max"), bytes.clone())? {
                        set(dir.join("memory.swap.max"), "0".to_owned())?;
                        // One process killed for memory leaves a broken function behind: all go.
                        set(dir.join("memory.oom.group"), "1".to_owned())?;
                    }
                    set(dir.join("pids.max"), limits.pids_max.to_string())?;
                }
                Kind::Memory1 => {
                    set(dir.join("memory.limit_in_bytes"), bytes.clone())?;
                    set(dir.join("memory.memsw.limit_in_bytes"), bytes.clone())?;
                }
                Kind::Pids1 => {
                    set(dir.join("pids.max"), limits.pids_max.to_string())?;
                }
                Kind::Freezer1 => {}
            }
        }
        Ok(())
    }

    /// Files to write a process number to (`0` is the writer itself) in order to put it into this group.
    pub fn procs_files(&self) -> Vec<PathBuf> {
        self.branches.iter().map(Branch::procs_file).collect()
    }

    /// The cgroup2 id, as `bpf_get_current_cgroup_id` reports it. `None` without a unified hierarchy.
    pub fn id(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt;
        let unified = self.branches.iter().find(|branch| branch.kind == Kind::Unified)?;
        Some(std::fs::metadata(&unified.dir).ok()?.ino())
    }

    /// All processes in the group, by their number in the agent's pid namespace.
    pub fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        let dir = self.main_dir();
        let pids = read_procs(dir).map_err(CgroupError::io("read processes of", dir))?;
        Ok(pids.into_iter().map(Pid::from_raw).collect())
    }

    /// The directory that decides who is in the group.
    pub fn main_dir(&self) -> &Path {
        // `NodeCgroup` never makes a group without a branch.
        self.branches.first().map_or(Path::new("/"), |branch| &branch.dir)
    }

    /// What the group uses now.
    pub fn usage(&self) -> Usage {
        usage(&self.branches)
    }

    /// How many processes the kernel has killed here for want of memory, ever.
    pub fn oom_kills(&self) -> u64 {
        let count = |branch: &Branch| {
            let file = match branch.kind {
                Kind::Unified => "memory.events",
                Kind::Memory1 => "memory.oom_control",
                Kind::Pids1 | Kind::Freezer1 => return None,
            };
            keyed(&read(&branch.dir.join(file)).ok()?, "oom_kill")
        };
        self.branches.iter().find_map(count).unwrap_or(0)
    }

    /// Kills every process and waits until the group is empty. Cancel-safe; may be repeated.
    pub async fn kill(&self) -> Result<(), CgroupError> {
        let mut waited = Duration::ZERO;
        loop {
            // Again in every round: without cgroup.kill a fork can slip through between read and kill.
            kill_once(&self.branches);
            let left = self.pids()?.len();
            if left == 0 {
                return Ok(());
            }
            if waited >= KILL_WAIT {
                let waited_ms = waited.as_millis().try_into().unwrap_or(u64::MAX);
                return Err(CgroupError::StillPopulated {
                    path: self.main_dir().into(),
                    processes: left,
                    waited_ms,
                });
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
    }

    /// Stops every process where it is and waits until all have stopped. Cancelled half way it may end up frozen or not.
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)?;
        let mut waited = Duration::ZERO;
        while !self.is_frozen() {
            if waited >= FREEZE_WAIT {
                let waited_ms = waited.as_millis().try_into().unwrap_or(u64::MAX);
                return Err(CgroupError::NotFrozen { path: self.main_dir().into(), waited_ms });
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
        Ok(())
    }

    /// Has every process stop where it is as soon as it can, and does not wait for that.
    pub(crate) fn begin_freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)
    }

    /// Kills every process, and does not wait for their end.
    pub(crate) fn kill_now(&self) {
        kill_once(&self.branches);
    }

    /// Lets the processes go on.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let (path, value) = match self.freezer() {
            Some(Branch { kind: Kind::Unified, dir, .. }) => {
                (dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            }
            Some(Branch { dir, .. }) => (dir.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" }),
            None => return Err(CgroupError::NoHierarchy),
        };
        write(&path, value).map_err(CgroupError::io("freeze or thaw", path))
    }

    pub(crate) fn is_frozen(&self) -> bool {
        match self.freezer() {
            Some(Branch { kind: Kind::Unified, dir, .. }) => {
                read(&dir.join("cgroup.events")).is_ok_and(|text| keyed(&text, "frozen") == Some(1))
            }
            Some(Branch { dir, .. }) => {
                read(&dir.join("freezer.state")).is_ok_and(|text| text.trim() == "FROZEN")
            }
            None => false,
        }
    }

    fn freezer(&self) -> Option<&Branch> {
        self.branches.iter().find(|branch| matches!(branch.kind, Kind::Unified | Kind::Freezer1))
    }

    /// Removes the directories; kill first. Ended processes take a moment to leave, so it retries for a bounded time.
    pub(crate) async fn remove(&self) -> Result<(), CgroupError> {
        let mut waited = Duration::ZERO;
        loop {
            match node::remove_dirs(&self.branches) {
                Ok(()) => return Ok(()),
                Err(error) if waited >= KILL_WAIT => return Err(error),
                Err(_busy) => {}
            }
            tokio::time::sleep(POLL).await;
            waited += POLL;
        }
    }
}

/// One attempt to kill everything in a group.
pub(crate) fn kill_once(branches: &[Branch]) {
    for branch in branches {
        if branch.kind == Kind::Unified && write(&branch.dir.join("cgroup.kill"), "1").is_ok() {
            continue;
        }
        // Beside a unified hierarchy this finds who was stopped between joining one group and the next.
        for pid in read_procs(&branch.dir).unwrap_or_default() {
            // Gone already is as good as killed; anything else shows when the caller looks again.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if branch.kind == Kind::Freezer1 {
            // A frozen v1 group does not even die.
            let _not_frozen = write(&branch.dir.join("freezer.state"), "THAWED");
        }
    }
}

pub(crate) fn usage(branches: &[Branch]) -> Usage {
    let mut usage = Usage::default();
    for branch in branches {
        let dir = &branch.dir;
        match branch.kind {
            Kind::Unified => {
                if let Ok(stat) = read(&dir.join("memory.stat")) {
                    usage = Usage { pids: usage.pids, ..from_stat2(&stat) };
                    usage.total_bytes = read_number(&dir.join("memory.current")).unwrap_or(0);
                }
                usage.pids = read_number(&dir.join("pids.current")).unwrap_or(usage.pids);
            }
            Kind::Memory1 => {
                let stat = read(&dir.join("memory.stat")).unwrap_or_default();
                usage = Usage { pids: usage.pids, ..from_stat1(&stat) };
                usage.kernel_bytes = read_number(&dir.join("memory.kmem.usage_in_bytes")).unwrap_or(0);
                usage.total_bytes = read_number(&dir.join("memory.usage_in_bytes")).unwrap_or(0);
            }
            Kind::Pids1 => usage.pids = read_number(&dir.join("pids.current")).unwrap_or(0),
            Kind::Freezer1 => {}
        }
    }
    usage
}

fn from_stat2(stat: &str) -> Usage {
    let value = |key| keyed(stat, key).unwrap_or(0);
    let shmem_bytes = value("shmem");
    Usage {
        anon_bytes: value("anon"),
        shmem_bytes,
        // v2 counts tmpfs as file memory too.
        file_bytes: value("file").saturating_sub(shmem_bytes),
        kernel_bytes: value("kernel"),
        ..Usage::default()
    }
}

fn from_stat1(stat: &str) -> Usage {
    // The total_ values include the groups below, as v2 always does.
    let value = |key| keyed(stat, key).unwrap_or(0);
    let shmem_bytes = value("total_shmem");
    Usage {
        anon_bytes: value("total_rss"),
        shmem_bytes,
        file_bytes: value("total_cache").saturating_sub(shmem_bytes),
        ..Usage::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tmpfs_is_counted_once_in_both_versions() {
        let v2 = from_stat2("anon 100\nfile 50\nkernel 7\nshmem 20\n");
        assert_eq!((v2.anon_bytes, v2.shmem_bytes, v2.file_bytes, v2.kernel_bytes), (100, 20, 30, 7));
        let v1 = from_stat1("cache 1\nrss 1\nshmem 1\ntotal_cache 50\ntotal_rss 100\ntotal_shmem 20\n");
        assert_eq!((v1.anon_bytes, v1.shmem_bytes, v1.file_bytes), (100, 20, 30));
        assert_eq!(v2.held_bytes(), 127);
    }

    /// The version 2 files cannot be had on a hybrid machine, so a folder plays the group.
    #[test]
    fn v2_limits_and_events_use_the_right_files() {
        let dir = tempfile::tempdir().expect("folder");
        let group = dir.path().join("sandbox-x");
        std::fs::create_dir(&group).expect("group");
        for file in ["memory.max", "memory.swap.max", "memory.oom.group", "pids.max"] {
            std::fs::write(group.join(file), "").expect("file");
        }
        std::fs::write(group.join("memory.events"), "oom 2\noom_kill 1\n").expect("file");
        std::fs::write(group.join("memory.stat"), "anon 5\nfile 0\nkernel 1\nshmem 0\n").expect("file");
        std::fs::write(group.join("memory.current"), "6\n").expect("file");
        std::fs::write(group.join("cgroup.procs"), "12\n13\n0\n").expect("file");
        let node = [Branch { kind: Kind::Unified, dir: dir.path().to_owned(), top: dir.path().to_owned() }];
        let limits = Limits { memory_bytes_max: 4096, pids_max: 3 };
        let group_made = SandboxCgroup::create(&node, "sandbox-x", limits).expect("group");
        assert_eq!(std::fs::read_to_string(group.join("memory.max")).expect("file"), "4096");
        assert_eq!(std::fs::read_to_string(group.join("memory.oom.group")).expect("file"), "1");
        assert_eq!(std::fs::read_to_string(group.join("pids.max")).expect("file"), "3");
        assert_eq!(group_made.oom_kills(), 1);
        assert_eq!(group_made.usage().total_bytes, 6);
        assert_eq!(group_made.pids().expect("pids").len(), 2);
    }
}
