//! Who is there: processes of this machine, by what /proc says of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    parent: i32,
    line: String,
    groups: String,
    environment: Vec<u8>,
}

/// All of them at about one moment.
#[derive(Debug)]
pub(crate) struct Census(Vec<Process>);

impl Census {
    pub(crate) fn take() -> Self {
        let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // Who ended meanwhile is not there.
        Self(pids.filter_map(Process::read).collect())
    }

    /// Children of a process, and theirs, whose command line has all these words.
    pub(crate) fn below(&self, ancestor: i32, words: &[&str]) -> Vec<i32> {
        let mut family = BTreeSet::from([ancestor]);
        // A child may stand before its parent: as often as there are generations.
        loop {
            let before = family.len();
            family.extend(
                self.0
                    .iter()
                    .filter(|one| family.contains(&one.parent))
                    .map(|one| one.pid)
                    .collect::<Vec<_>>(),
            );
            if family.len() == before {
                break;
            }
        }
        let said = |one: &&Process| words.iter().all(|word| one.line.contains(word));
        let below = self.0.iter().filter(|one| one.pid != ancestor && family.contains(&one.pid));
        below.filter(said).map(|one| one.pid).collect()
    }

    /// Processes of functions of a cluster.
    pub(crate) fn functions<'c>(&'c self, mark: &str) -> impl Iterator<Item = &'c Process> {
        let mark = format!("MARK={mark}").into_bytes();
        self.0.iter().filter(move |one| one.environment.split(|&byte| byte == 0).any(|word| word == mark))
    }

    /// On which nodes each sandbox of a cluster has processes.
    pub(crate) fn nodes_of_sandboxes(&self, mark: &str) -> BTreeMap<String, BTreeSet<String>> {
        let mut nodes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (node, sandbox) in self.functions(mark).filter_map(Process::home) {
            nodes.entry(sandbox).or_default().insert(node);
        }
        nodes
    }

    /// Processes of one sandbox.
    pub(crate) fn of_sandbox(&self, mark: &str, sandbox: &str) -> Vec<i32> {
        let its = self.functions(mark).filter(|one| one.home().is_some_and(|(_, home)| home == sandbox));
        its.map(|one| one.pid).collect()
    }
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let folder = Path::new("/proc").join(pid.to_string());
        let line = fs::read(folder.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let status = fs::read_to_string(folder.join("status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()?;
        let groups = fs::read_to_string(folder.join("cgroup")).ok()?;
        let environment = fs::read(folder.join("environ")).unwrap_or_default();
        Some(Self { pid, parent, line, groups, environment })
    }

    /// Its node and its sandbox, by its control group: the two last parts of a path such as `/medes-NODE/sandbox-SANDBOX`.
    fn home(&self) -> Option<(String, String)> {
        let paths = self.groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        paths.filter_map(home_of).next()
    }
}

fn home_of(path: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = path.split('/').collect();
    let (at, sandbox) =
        parts.iter().enumerate().find_map(|(at, part)| Some((at, part.strip_prefix("sandbox-")?)))?;
    let node = parts[..at].iter().rev().find_map(|part| part.strip_prefix("medes-"))?;
    Some((node.to_owned(), sandbox.to_owned()))
}

/// Memory and descriptors of one process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uses {
    /// Its own, as the kernel counts it (RssAnon), in bytes.
    pub(crate) memory: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

/// What a process uses just now; nothing if it has ended.
pub(crate) fn uses(pid: i32) -> Uses {
    let folder = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(folder.join("status")).unwrap_or_default();
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default()
    };
    let descriptors = fs::read_dir(folder.join("fd")).map_or(0, |entries| entries.count() as u64);
    Uses { memory: number("RssAnon:") << 10, descriptors, threads: number("Threads:") }
}

/// Children of a process whose command line has all these words. Quick, to find one that does not live for long.
pub(crate) fn children(pid: i32, words: &[&str]) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children = lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>());
    let said = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        words.iter().all(|word| line.contains(word))
    };
    children.filter(said).collect()
}

/// Threads of a process by the beginning of their names.
pub(crate) fn threads(pid: i32, name: &str) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let named = tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name)));
    named.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_control_group_says_node_and_sandbox() {
        let home = |node: &str, sandbox: &str| Some((node.to_owned(), sandbox.to_owned()));
        assert_eq!(home_of("/medes-faults-1-a/sandbox-sb-1-7"), home("faults-1-a", "sb-1-7"));
        assert_eq!(home_of("/x/medes-n/sandbox-sb-1-7/below"), home("n", "sb-1-7"));
        assert_eq!(home_of("/medes-n/keeper"), None);
        assert_eq!(home_of("/sandbox-sb-1-7"), None);
    }

    #[test]
    fn this_process_is_there() {
        let own = i32::try_from(std::process::id()).unwrap();
        let uses = uses(own);
        assert!(uses.memory > 0 && uses.descriptors >= 3 && uses.threads > 0, "{uses:?}");
        assert!(Census::take().0.iter().any(|one| one.pid == own));
    }
}
