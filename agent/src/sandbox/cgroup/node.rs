//! The control group of the node: where the agent, the keeper and all sandboxes are.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sandbox::scope::Scope;
use crate::sandbox::spec::SandboxId;

use super::CgroupError;
use super::branch::{Branch, Kind, own_groups};
use super::files::{make_dir, read, read_procs, write};
use super::group::{KILL_WAIT, Limits, SandboxCgroup, Usage, kill_once, usage};

/// Name of the group the agent itself is in, with its CRIU workers.
const AGENT: &str = "agent";
/// Name of the group the keeper is in; it removes everything else, so it must be apart.
pub(crate) const KEEPER: &str = "keeper";
/// Directories looked at when searching for leftovers.
const SEARCH_DIRS_MAX: usize = 20_000;

/// The control group of the node.
#[derive(Debug, Clone)]
pub struct NodeCgroup {
    branches: Vec<Branch>,
    /// Where the agent is, with its helpers: below these, or in its service's.
    agent: Vec<Branch>,
    /// What counts everything of the node: the same as `branches`, or the slice of the service.
    whole: Vec<Branch>,
}

impl NodeCgroup {
    /// Removes what an earlier agent left under this name, makes the groups and moves the calling process
    /// (all its threads) into the agent's one. With a scope they are made there, its keeper moves, and the agent stays where it is. `name` must be
    /// unique to the node; the caller holds its lock.
    ///
    /// Blocking; for the start of the agent.
    pub(crate) fn create(name: &str, scope: Option<&Scope>) -> Result<Self, CgroupError> {
        let anchors = match scope {
            Some(scope) => scope.branches.clone(),
            None => own_groups().map_err(CgroupError::io("read cgroups of", "/proc/self/cgroup"))?,
        };
        if anchors.is_empty() {
            return Err(CgroupError::NoHierarchy);
        }
        for anchor in &anchors {
            for dir in find_dirs(&anchor.top, name) {
                let leftover = Branch { kind: anchor.kind, dir, top: anchor.top.clone() };
                tracing::warn!(dir = %leftover.dir.display(), "removing a cgroup that an earlier agent left");
                kill_and_remove(std::slice::from_ref(&leftover), &[])?;
            }
        }
        let mut branches = Vec::with_capacity(anchors.len());
        for anchor in &anchors {
            branches.push(match scope {
                Some(scope) => {
                    let node = anchor.child(name);
                    make(&node)?;
                    let keeper = node.child(KEEPER);
                    let moved = keeper.admit(scope.keeper);
                    moved.map_err(CgroupError::io("move the keeper to", &keeper.dir))?;
                    enable_controllers(anchor, &node)?;
                    node
                }
                None => open_branch(anchor, name)?,
            });
        }
        Self::of(branches, scope.is_some())
    }

    /// Blocking.
    fn of(branches: Vec<Branch>, in_scope: bool) -> Result<Self, CgroupError> {
        if in_scope {
            let agent = own_groups().map_err(CgroupError::io("read cgroups of", "/proc/self/cgroup"))?;
            let whole = agent.iter().map(Branch::parent).collect();
            return Ok(Self { branches, agent, whole });
        }
        let agent = branches.iter().map(|branch| branch.child(AGENT)).collect();
        Ok(Self { agent, whole: branches.clone(), branches })
    }

    /// The groups that an agent before has left, with sandboxes in them, and moves the calling process into the agent's one, unless they are
    /// in a scope.
    ///
    /// Blocking; for the start of the agent.
    pub(crate) fn take_over(branches: Vec<Branch>, in_scope: bool) -> Result<Self, CgroupError> {
        for branch in &branches {
            make(branch)?;
            if !in_scope {
                join(&branch.child(AGENT))?;
            }
        }
        Self::of(branches, in_scope)
    }

    /// Ends all sandboxes but those of these names. Blocking.
    pub(crate) fn end_others(&self, names: &[String]) -> Result<(), CgroupError> {
        let sandboxes = names.iter().map(|name| group_name(name));
        let spare: Vec<String> = sandboxes.chain([AGENT, KEEPER].map(str::to_owned)).collect();
        kill_and_remove(&self.branches, &spare)
    }

    /// The node's directories, one per hierarchy.
    pub fn branches(&self) -> &[Branch] {
        &self.branches
    }

    /// Whether memory limits hold here.
    pub fn limits_memory(&self) -> bool {
        self.branches
            .iter()
            .any(|branch| branch.kind == Kind::Memory1 || has_controller(&branch.dir, "memory"))
    }

    /// Whether the number of processes is limited here.
    pub fn limits_pids(&self) -> bool {
        self.branches.iter().any(|branch| branch.kind == Kind::Pids1 || has_controller(&branch.dir, "pids"))
    }

    /// Makes the group of one sandbox.
    pub(crate) fn sandbox(&self, id: &SandboxId, limits: Limits) -> Result<SandboxCgroup, CgroupError> {
        SandboxCgroup::create(&self.branches, &group_name(id.as_str()), limits)
    }

    /// The group of a sandbox of this name, whoever works on it. What is not there uses nothing.
    pub fn group_of(&self, name: &str) -> SandboxCgroup {
        SandboxCgroup::at(&self.branches, &group_name(name))
    }

    /// What the node uses: agent, CRIU workers and all sandboxes together.
    pub fn usage(&self) -> Usage {
        usage(&self.whole)
    }

    /// What the agent and its helpers use, without the sandboxes.
    pub fn agent_usage(&self) -> Usage {
        usage(&self.agent)
    }

    /// What agent, helpers and keeper use together.
    pub fn own_usage(&self) -> Usage {
        let mut sum = Usage::default();
        let keeper: Vec<_> = self.branches.iter().map(|branch| branch.child(KEEPER)).collect();
        for group in [&self.agent, &keeper] {
            let used = usage(group);
            sum.total_bytes += used.total_bytes;
            sum.anon_bytes += used.anon_bytes;
            sum.shmem_bytes += used.shmem_bytes;
            sum.file_bytes += used.file_bytes;
            sum.kernel_bytes += used.kernel_bytes;
            sum.pids += used.pids;
        }
        sum
    }
}

/// The group of a sandbox of this name.
pub(crate) fn group_name(sandbox: &str) -> String {
    format!("sandbox-{sandbox}")
}

/// Makes `anchor/name` with the agent and keeper groups and moves this process in.
///
/// Version 2 allows controllers only where no process is, so if the group we come from cannot pass its controllers
/// on (somebody else is in it), the node goes to the top of the hierarchy, where that rule does not hold.
fn open_branch(anchor: &Branch, name: &str) -> Result<Branch, CgroupError> {
    let node = anchor.child(name);
    match make_and_join(anchor, &node) {
        Err(_no_controllers) if anchor.kind == Kind::Unified && anchor.dir != anchor.top => {
            let top = Branch { kind: anchor.kind, dir: anchor.top.clone(), top: anchor.top.clone() };
            let higher = top.child(name);
            make_and_join(&top, &higher)?;
            // This process has just left it, so it is empty; if not, the next start finds it.
            let _still_there = remove_dirs(std::slice::from_ref(&node));
            Ok(higher)
        }
        other => other.map(|()| node),
    }
}

fn make_and_join(anchor: &Branch, node: &Branch) -> Result<(), CgroupError> {
    make(node)?;
    join(&node.child(AGENT))?;
    enable_controllers(anchor, node)
}

fn make(node: &Branch) -> Result<(), CgroupError> {
    for branch in [node, &node.child(AGENT), &node.child(KEEPER)] {
        make_dir(&branch.dir).map_err(CgroupError::io("create cgroup", &branch.dir))?;
    }
    Ok(())
}

fn join(agent: &Branch) -> Result<(), CgroupError> {
    agent.join().map_err(CgroupError::io("move the agent to", &agent.dir))
}

/// No process may be in `anchor` itself by now.
fn enable_controllers(anchor: &Branch, node: &Branch) -> Result<(), CgroupError> {
    if anchor.kind == Kind::Unified {
        for controller in ["memory", "pids"] {
            for dir in [&anchor.dir, &node.dir] {
                if has_controller(dir, controller) {
                    let path = dir.join("cgroup.subtree_control");
                    write(&path, &format!("+{controller}"))
                        .map_err(CgroupError::io("enable controllers in", path))?;
                }
            }
        }
    }
    Ok(())
}

fn has_controller(dir: &Path, controller: &str) -> bool {
    read(&dir.join("cgroup.controllers")).is_ok_and(|text| text.split_whitespace().any(|it| it == controller))
}

/// Directories called `name` anywhere below `top`: an agent started elsewhere may have put them elsewhere.
fn find_dirs(top: &Path, name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = VecDeque::from([top.to_owned()]);
    for _ in 0..SEARCH_DIRS_MAX {
        let Some(dir) = todo.pop_front() else { break };
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name() == name {
                found.push(entry.path());
            } else {
                todo.push_back(entry.path());
            }
        }
    }
    found
}

/// Kills everything below the given node directories and removes them, but for these child groups; the directories themselves only if
/// there are none of these.
///
/// Blocking and bounded; used by the keeper and at the start of the agent.
pub fn kill_and_remove(nodes: &[Branch], spare: &[String]) -> Result<(), CgroupError> {
    const POLL: Duration = Duration::from_millis(5);
    let mut waited = Duration::ZERO;
    loop {
        let mut processes = 0;
        for name in child_names(nodes) {
            if spare.contains(&name) {
                continue;
            }
            let group: Vec<Branch> =
                nodes.iter().map(|node| node.child(&name)).filter(|it| it.dir.is_dir()).collect();
            // A frozen group is killed by cgroup.kill all the same.
            kill_once(&group);
            processes += group
                .iter()
                .map(|branch| read_procs(&branch.dir).map_or(0, |pids| pids.len()))
                .sum::<usize>();
            if processes == 0 {
                // Busy shows below: the node directory cannot go before its children.
                let _busy = remove_dirs(&group);
            }
        }
        let left: Vec<String> = child_names(nodes).into_iter().filter(|name| !spare.contains(name)).collect();
        if left.is_empty() {
            return if spare.is_empty() { remove_dirs(nodes) } else { Ok(()) };
        }
        if waited >= KILL_WAIT {
            let path = nodes.first().map_or_else(PathBuf::new, |node| node.dir.clone());
            let waited_ms = waited.as_millis().try_into().unwrap_or(u64::MAX);
            return Err(CgroupError::StillPopulated { path, processes, waited_ms });
        }
        std::thread::sleep(POLL);
        waited += POLL;
    }
}

/// Names of the groups below the given ones, each once.
fn child_names(nodes: &[Branch]) -> Vec<String> {
    let mut names: Vec<String> = nodes
        .iter()
        .flat_map(|node| std::fs::read_dir(&node.dir).into_iter().flatten().flatten())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Removes the directories of one group. Those that are gone already are fine; all are tried.
pub(crate) fn remove_dirs(group: &[Branch]) -> Result<(), CgroupError> {
    let mut first_error = Ok(());
    for branch in group {
        match std::fs::remove_dir(&branch.dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if first_error.is_ok() => {
                first_error = Err(CgroupError::io("remove cgroup", &branch.dir)(error));
            }
            Err(_second) => {}
        }
    }
    first_error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_are_found_at_any_depth_but_only_by_full_name() {
        let top = tempfile::tempdir().expect("folder");
        for dir in ["a/b/medes-x", "medes-x", "medes-xy", "c/medes-x/medes-x"] {
            std::fs::create_dir_all(top.path().join(dir)).expect("folder");
        }
        let mut found = find_dirs(top.path(), "medes-x");
        found.sort();
        let expected: Vec<_> =
            ["a/b/medes-x", "c/medes-x", "medes-x"].iter().map(|it| top.path().join(it)).collect();
        assert_eq!(found, expected);
    }
}
