//! Processor time that work on sandboxes takes: in this process, in its helpers, in the sandboxes themselves.
//!
//! A sandbox that ends moves its time to what ended children took, so the sum never counts anything twice.

use std::fs;

use medes_agent::sandbox::cgroup::SandboxCgroup;
use nix::time::{ClockId, clock_gettime};

/// The kernel tells times of ended children in hundredths of a second, on every machine.
const TICK_MS: f64 = 10.0;

/// Milliseconds so far of this process, of its children that have ended, and of the processes in these groups.
pub(super) fn so_far<'g>(groups: impl IntoIterator<Item = &'g SandboxCgroup>) -> f64 {
    let own = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0.0, |time| time.tv_sec() as f64 * 1e3 + time.tv_nsec() as f64 / 1e6);
    let ended = ended_children(&fs::read_to_string("/proc/self/stat").unwrap_or_default());
    let pids = groups.into_iter().flat_map(|group| group.pids().unwrap_or_default());
    own + ended + pids.map(|pid| of_process(pid.as_raw())).sum::<f64>()
}

/// Milliseconds that a process and all its threads have run. Nothing if it is gone.
pub(super) fn of_process(pid: i32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ran = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<f64>().ok()
    });
    ran.sum::<f64>() / 1e6
}

/// Fields 16 and 17 of the file (proc(5)); the name in front may have spaces and parentheses.
fn ended_children(stat: &str) -> f64 {
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    let ticks = after_name.split(' ').skip(13).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() * TICK_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_that_have_ended_are_found_behind_any_name() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 900 800 0 0 11 12 130 40 20 0 1 0 5000 1 2";
        assert_eq!(ended_children(stat), 1700.0);
        assert_eq!(ended_children(""), 0.0);
    }

    #[test]
    fn work_shows() {
        let before = so_far([]);
        let mut sum = 0_u64;
        while so_far([]) < before + 5.0 {
            sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
        }
        assert!(of_process(std::process::id().cast_signed()) > 0.0);
        assert_eq!(of_process(-5), 0.0);
    }
}
