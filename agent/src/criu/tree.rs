//! The processes of a sandbox as the kernel lists them, and letting a stopped tree run again.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A sandbox has a pids limit far below; this bounds the walk whatever /proc says.
const MEMBERS_MAX: usize = 32 * 1024;

/// Why a tree cannot be walked or resumed.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The list of children cannot be read.
    #[error("list the children of process {pid}")]
    Children {
        /// The parent.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There are too many.
    #[error("process {root} has more than {MEMBERS_MAX} descendants")]
    TooMany {
        /// The root of the tree.
        root: Pid,
    },
    /// A process cannot be signalled.
    #[error("let process {pid} run")]
    Signal {
        /// The process.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The root and all its descendants, parents first. The root must not be collected by anyone meanwhile.
/// Exact for a stopped tree; for a running one it is a moment's view.
pub fn members(root: Pid) -> Result<Vec<Pid>, TreeError> {
    let mut members = vec![root];
    let mut at = 0;
    while let Some(pid) = members.get(at).copied() {
        at += 1;
        children(pid, &mut members).map_err(|source| TreeError::Children { pid, source })?;
        if members.len() > MEMBERS_MAX {
            return Err(TreeError::TooMany { root });
        }
    }
    Ok(members)
}

/// Children belong to the thread that made them, so every thread is asked.
fn children(pid: Pid, into: &mut Vec<Pid>) -> io::Result<()> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let listed = match fs::read_to_string(thread?.path().join("children")) {
            Ok(listed) => listed,
            // A thread that ended since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
            Err(error) => return Err(error),
        };
        into.extend(
            listed
                .split_ascii_whitespace()
                .filter_map(|n| n.parse().ok())
                .map(Pid::from_raw)
                .take(MEMBERS_MAX),
        );
    }
    Ok(())
}

/// Lets every process of a stopped tree run, children before their parents.
pub fn resume(root: Pid) -> Result<(), TreeError> {
    for pid in members(root)?.into_iter().rev() {
        match kill(pid, Signal::SIGCONT) {
            // The out-of-memory killer takes stopped processes too.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(TreeError::Signal { pid, source: errno.into() }),
        }
    }
    Ok(())
}

/// Whether every process of the tree is stopped (or ended).
pub fn is_stopped(root: Pid) -> Result<bool, TreeError> {
    for pid in members(root)? {
        let (state, _group) = state_and_group(pid).map_err(|source| TreeError::Children { pid, source })?;
        if !matches!(state, 'T' | 't' | 'Z' | 'X') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The living processes of a process group that are in a certain network namespace (by inode).
///
/// Both are asked for because the number of a group whose processes have all ended may come to mean another.
pub(super) fn group_members(group: Pid, netns: u64) -> Vec<Pid> {
    let listed = fs::read_dir("/proc").into_iter().flatten().take(MEMBERS_MAX);
    let pids = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok().map(Pid::from_raw));
    pids.filter(|pid| state_and_group(*pid).is_ok_and(|(state, of)| of == group && state != 'Z'))
        .filter(|pid| fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs.ino() == netns))
        .collect()
}

/// State and process group from the kernel's one-line description of a process.
fn state_and_group(pid: Pid) -> io::Result<(char, Pid)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let parse = || {
        // They follow the name, which stands in parentheses and may contain anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        Some((state, Pid::from_raw(fields.nth(1)?.parse().ok()?)))
    };
    parse().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "cannot understand /proc/PID/stat"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_in_its_group_and_namespace_only() {
        let netns = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let (state, group) = state_and_group(Pid::this()).unwrap();
        assert!(matches!(state, 'R' | 'S' | 'D'), "{state}");
        assert_eq!(group, nix::unistd::getpgrp());
        assert!(group_members(group, netns).contains(&Pid::this()));
        assert!(group_members(group, netns + 1).is_empty());
        assert!(members(Pid::this()).unwrap().contains(&Pid::this()));
    }
}
