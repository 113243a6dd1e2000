//! Which hierarchies this machine has, and where this process is in each of them.

use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::sandbox::mounts::mountinfo::{self, MountLine};

use super::files;

/// What a hierarchy is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// cgroup v2: membership, kill, freeze, the id eBPF sees; limits too if the controllers are here.
    Unified,
    /// cgroup v1 memory controller.
    Memory1,
    /// cgroup v1 pids controller.
    Pids1,
    /// cgroup v1 freezer; only used where there is no unified hierarchy.
    Freezer1,
}

/// One directory in one hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Branch {
    /// What it is used for.
    pub kind: Kind,
    /// The group's directory.
    pub dir: PathBuf,
    /// The top of the hierarchy as far as it is visible here.
    pub top: PathBuf,
}

impl Branch {
    /// A directory below this one.
    pub fn child(&self, name: &str) -> Self {
        Self { kind: self.kind, dir: self.dir.join(name), top: self.top.clone() }
    }

    /// The directory that this one is in; the top is in itself.
    pub fn parent(&self) -> Self {
        let parent = self.dir.parent().filter(|_| self.dir != self.top);
        Self { kind: self.kind, dir: parent.unwrap_or(&self.dir).to_owned(), top: self.top.clone() }
    }

    /// Moves the calling process here.
    pub fn join(&self) -> io::Result<()> {
        files::write(&self.procs_file(), "0")
    }

    /// Moves a process here.
    pub(crate) fn admit(&self, process: Pid) -> io::Result<()> {
        files::write(&self.procs_file(), &process.to_string())
    }

    /// The file that a process number is written to in order to move it here.
    pub fn procs_file(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

/// Finds the groups the calling process is in now, one per hierarchy worth using.
pub(crate) fn own_groups() -> io::Result<Vec<Branch>> {
    groups_in("/proc/self/cgroup")
}

/// The same, of another process.
pub(crate) fn groups_of(process: Pid) -> io::Result<Vec<Branch>> {
    groups_in(&format!("/proc/{process}/cgroup"))
}

fn groups_in(path: &str) -> io::Result<Vec<Branch>> {
    Ok(find(&mountinfo::read()?, &std::fs::read_to_string(path)?))
}

fn find(mounts: &[MountLine], groups: &str) -> Vec<Branch> {
    let v1 = |controller: &str| {
        mounts
            .iter()
            .find(|mount| mount.kind == "cgroup" && mount.super_options.split(',').any(|it| it == controller))
    };
    let branch = |kind, controller: &str, mount: Option<&MountLine>| {
        let mount = mount?;
        let own = own_path(groups, controller)?;
        Some(Branch { kind, dir: below(mount, own), top: mount.mount_point.clone() })
    };
    let unified = branch(Kind::Unified, "", mounts.iter().find(|mount| mount.kind == "cgroup2"));
    let freezer = if unified.is_none() { branch(Kind::Freezer1, "freezer", v1("freezer")) } else { None };
    let memory = branch(Kind::Memory1, "memory", v1("memory"));
    let pids = branch(Kind::Pids1, "pids", v1("pids"));
    [unified, freezer, memory, pids].into_iter().flatten().collect()
}

/// The path after `ID:controllers:` in /proc/PID/cgroup. The unified hierarchy has no controllers there.
fn own_path<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let (_id, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|it| it == controller).then_some(path)
    })
}

/// Where `own` is below the mount. A path outside of what is mounted (a foreign cgroup namespace) reads as its top.
fn below(mount: &MountLine, own: &str) -> PathBuf {
    let relative = Path::new(own).strip_prefix(&mount.root).unwrap_or_else(|_outside| Path::new(""));
    let ordinary = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let dir = mount.mount_point.join(if ordinary { relative } else { Path::new("") });
    if dir.is_dir() { dir } else { mount.mount_point.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, point: &str, options: &str) -> MountLine {
        MountLine {
            root: PathBuf::from("/"),
            mount_point: PathBuf::from(point),
            kind: kind.to_owned(),
            super_options: options.to_owned(),
        }
    }

    #[test]
    fn hybrid_gives_unified_memory_and_pids_but_no_freezer() {
        let mounts = [
            mount("cgroup", "/none/memory", "rw,memory"),
            mount("cgroup", "/none/pids", "rw,pids"),
            mount("cgroup", "/none/freezer", "rw,freezer"),
            mount("cgroup2", "/none/unified", "rw"),
        ];
        let groups = "8:pids:/\n6:freezer:/\n4:memory:/a/b\n0::/\n";
        let found: Vec<_> =
            find(&mounts, groups).into_iter().map(|branch| (branch.kind, branch.dir)).collect();
        assert_eq!(
            found,
            [
                (Kind::Unified, PathBuf::from("/none/unified")),
                // The directory does not exist on the test machine, so the top is taken.
                (Kind::Memory1, PathBuf::from("/none/memory")),
                (Kind::Pids1, PathBuf::from("/none/pids")),
            ]
        );
    }

    #[test]
    fn own_path_matches_whole_controller_names() {
        let groups = "3:cpuset,memory:/x\n2:cpu,cpuacct:/y:z\n0::/u\n";
        assert_eq!(own_path(groups, "memory"), Some("/x"));
        assert_eq!(own_path(groups, "cpuacct"), Some("/y:z"));
        assert_eq!(own_path(groups, ""), Some("/u"));
        assert_eq!(own_path(groups, "mem"), None);
    }

    #[test]
    fn a_group_outside_of_the_mount_reads_as_its_top() {
        let mut inner = mount("cgroup2", "/proc", "rw");
        inner.root = PathBuf::from("/inner");
        assert_eq!(below(&inner, "/../outer"), PathBuf::from("/proc"));
        assert_eq!(below(&inner, "/inner/self"), PathBuf::from("/proc/self"));
    }
}
