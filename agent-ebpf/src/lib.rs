//! What the kernel programs and the agent agree on: record layouts, map names and sizes.
//!
//! The agent links only this library. It must never link `aya-ebpf`, whose exported `memcpy` would
//! take the place of libc's and halve the speed of page copies; the kernel side is therefore a
//! binary (`main.rs`) that exists for the bpf target alone.
#![no_std]

/// Name of the program on the `sched_switch` tracepoint.
pub const SCHED_SWITCH: &str = "sched_switch";

/// Name of the map from cgroup id to [`Activity`], one value per CPU.
pub const ACTIVITY: &str = "ACTIVITY";

/// How many cgroups are counted at once. The least recently seen one gives way to a new one.
pub const CGROUPS_MAX: u32 = 4096;

/// What the tasks of one cgroup did, on one CPU or summed over all.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// How often one of its tasks went off a CPU.
    pub switches: u64,
    /// Time its tasks spent on a CPU, in nanoseconds. A stretch counts when it ends.
    pub run_ns: u64,
    /// When a task of it last went off a CPU: nanoseconds of `CLOCK_MONOTONIC`.
    pub last_ran_ns: u64,
}

/// The words of an [`Activity`] as they lie in the map. The agent reads these, so that it needs no
/// promise about the layout of a struct.
pub type ActivityWords = [u64; 3];

const _: () = assert!(size_of::<Activity>() == size_of::<ActivityWords>());

impl From<ActivityWords> for Activity {
    fn from([switches, run_ns, last_ran_ns]: ActivityWords) -> Self {
        Self { switches, run_ns, last_ran_ns }
    }
}

impl Activity {
    /// Adds what another CPU saw.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            switches: self.switches.saturating_add(other.switches),
            run_ns: self.run_ns.saturating_add(other.run_ns),
            last_ran_ns: self.last_ran_ns.max(other.last_ran_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_add_up_and_the_latest_run_wins() {
        let first = Activity::from([2, 100, 900]);
        let second = Activity::from([3, 50, 700]);
        assert_eq!(first.plus(second), Activity { switches: 5, run_ns: 150, last_ran_ns: 900 });
    }

    #[test]
    fn a_full_counter_stays_full() {
        let full = Activity::from([u64::MAX, u64::MAX, 1]);
        assert_eq!(full.plus(Activity::from([1, 1, 2])), Activity::from([u64::MAX, u64::MAX, 2]));
    }
}
