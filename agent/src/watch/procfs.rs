//! The watch without eBPF: counters of `/proc`, looked at from time to time.
//!
//! It cannot see what happened between two looks: a sandbox that slept at both is told from one that worked by the
//! CPU time it has used. Who woke it, and which pages it touched, stays unknown.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::record::Activity;
use super::{Group, Key};

/// One sandbox: how it looked the last time.
#[derive(Debug)]
struct Seen {
    group: Group,
    ran_ns: u64,
    last_ran_ns: u64,
}

/// All sandboxes.
#[derive(Debug, Default)]
pub(super) struct Procfs {
    seen: BTreeMap<Key, Seen>,
}

impl Procfs {
    pub(super) fn add(&mut self, key: Key, group: Group, now_ns: u64) {
        self.seen.insert(key, Seen { group, ran_ns: 0, last_ran_ns: now_ns });
    }

    pub(super) fn remove(&mut self, key: Key) {
        self.seen.remove(&key);
    }

    /// Looks at all its tasks. Processes that end meanwhile take their CPU time along.
    pub(super) fn activity(&mut self, key: Key, now_ns: u64) -> Option<Activity> {
        let seen = self.seen.get_mut(&key)?;
        let (mut ran_ns, mut runnable) = (0u64, false);
        for pid in seen.group.pids() {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
                ran_ns = ran_ns.saturating_add(on_cpu_ns(&read("schedstat")));
                runnable |= can_run(&read("stat"));
            }
        }
        if runnable || ran_ns != seen.ran_ns {
            seen.last_ran_ns = now_ns;
        }
        seen.ran_ns = ran_ns;
        let last_ran_ns = seen.last_ran_ns;
        let ran = Duration::from_nanos(ran_ns);
        Some(Activity {
            runnable,
            ran,
            last_ran_ns,
            last_work_ns: last_ran_ns,
            idle_since_ns: None,
            counts: None,
        })
    }
}

/// First number of `schedstat`: nanoseconds on CPUs.
fn on_cpu_ns(schedstat: &str) -> u64 {
    schedstat.split_ascii_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// The state stands behind the name, which may hold anything, brackets too.
fn can_run(stat: &str) -> bool {
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('R'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_times_are_read_whatever_a_task_is_called() {
        assert!(can_run("7 (a) S b) R 1 2"));
        assert!(!can_run("7 (R) S 1 2") && !can_run(""));
        assert_eq!((on_cpu_ns("123 4 5\n"), on_cpu_ns("")), (123, 0));
    }
}
