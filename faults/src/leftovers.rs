//! What a cluster that is gone has left on this machine.

use std::{fs, path::Path, time::Duration};

use crate::{census::Census, program::wait_for};

/// Deeper than any control group of a node.
const DEPTH: usize = 5;

/// Keepers clean up when their agents have ended.
const SOON: Duration = Duration::from_secs(5);

/// Processes and control groups that stay.
pub(crate) fn of(mark: &str) -> Vec<String> {
    match wait_for(SOON, || now(mark).is_empty().then_some(())) {
        Some(()) => Vec::new(),
        None => now(mark),
    }
}

fn now(mark: &str) -> Vec<String> {
    let census = Census::take();
    let mut left: Vec<String> = census.functions(mark).map(|one| format!("process {}", one.pid)).collect();
    groups(&format!("medes-{mark}"), Path::new("/sys/fs/cgroup"), DEPTH, &mut left);
    left
}

fn groups(prefix: &str, within: &Path, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(within).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(format!("control group {}", entry.path().display()));
        } else if depth > 0 {
            groups(prefix, &entry.path(), depth - 1, found);
        }
    }
}
