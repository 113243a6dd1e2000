//! What the kernel programs and the agent agree on: names, bits, bounds, and how records lie in maps.
//!
//! Every record is a row of 64-bit words, so that neither side needs a promise about the layout of a struct.
//!
//! The agent links only this library. It must never link `aya-ebpf`, whose exported `memcpy` would
//! take the place of libc's and halve the speed of page copies; the kernel side is therefore a
//! binary (`main.rs`) that exists for the bpf target alone.
#![no_std]

/// Programs, each on the BTF tracepoint of its name.
pub mod program {
    /// A CPU goes over to another task.
    pub const SCHED_SWITCH: &str = "sched_switch";
    /// A task becomes runnable.
    pub const SCHED_WAKEUP: &str = "sched_wakeup";
    /// A new task becomes runnable for the first time.
    pub const SCHED_WAKEUP_NEW: &str = "sched_wakeup_new";
    /// A task begets another.
    pub const SCHED_PROCESS_FORK: &str = "sched_process_fork";
    /// A task ends.
    pub const SCHED_PROCESS_EXIT: &str = "sched_process_exit";
    /// A timer goes off on this CPU...
    pub const HRTIMER_EXPIRE_ENTRY: &str = "hrtimer_expire_entry";
    /// ... and has done what it had to do.
    pub const HRTIMER_EXPIRE_EXIT: &str = "hrtimer_expire_exit";
    /// A program touched a page that is not there, or not in that way. Not on every architecture.
    pub const PAGE_FAULT_USER: &str = "page_fault_user";
    /// The kernel did so on behalf of a program (`read` into a buffer).
    pub const PAGE_FAULT_KERNEL: &str = "page_fault_kernel";
}

/// Maps.
pub mod map {
    /// Sandbox key → [`super::ActivityWords`]. The agent puts a sandbox in and takes it out.
    pub const SANDBOXES: &str = "SANDBOXES";
    /// Sandbox key → [`super::WantedWords`].
    pub const WANTED: &str = "WANTED";
    /// Process number (the kernel's tgid) → sandbox key, of the processes that were there when the watch of their
    /// sandbox began; only used without a cgroup v2 hierarchy.
    pub const MEMBERS: &str = "MEMBERS";
    /// Address of a task → [`super::TaskWords`].
    pub const TASKS: &str = "TASKS";
    /// Address of a task → key of the sandbox it was counted in as runnable.
    pub const RUNNABLE: &str = "RUNNABLE";
    /// Events of faults, oldest first.
    pub const FAULTS: &str = "FAULTS";
    /// [`super::HeatWords`], each at one of the two places that [`super::heat_place`] names.
    pub const HEAT: &str = "HEAT";
    /// One count per [`super::Lost`], per CPU.
    pub const LOST: &str = "LOST";
}

/// Variables the agent sets before it loads the programs.
pub mod variable {
    /// 1: a sandbox is a cgroup, its key the cgroup's id. 0: a sandbox is what [`super::map::MEMBERS`] says.
    pub const BY_CGROUP: &str = "BY_CGROUP";
}

/// Sandboxes watched at once.
pub const SANDBOXES_MAX: u32 = 4096;
/// Processes of sandboxes there when their watch began, without cgroup v2.
pub const MEMBERS_MAX: u32 = 16_384;
/// Tasks of sandboxes known at once.
pub const TASKS_MAX: u32 = 65_536;
/// Tasks of sandboxes that are runnable at once.
pub const RUNNABLE_MAX: u32 = 16_384;
/// Pages whose heat is kept, a power of two: of three that want the same two places the coldest gives way.
pub const HEAT_MAX: u32 = 65_536;
/// Bytes of fault events that may wait for the agent.
pub const FAULTS_BYTES: u32 = 1 << 20;

/// A sandbox that a timer woke has not worked until it has used this much CPU time, in nanoseconds.
pub const TIMER_WORK_NS: u64 = 2_000_000;

/// A task that only ticks found on a CPU has left the sandbox, or its CPU unseen, if none found it for so long: many ticks,
/// in nanoseconds.
pub const SEEN_FOR_NS: u64 = 100_000_000;

/// Whether a task that is not counted is on a CPU: a tick found one lately, and none has left a CPU since.
#[inline(always)]
#[must_use]
pub const fn is_seen(seen_ns: u64, last_ran_ns: u64, now_ns: u64) -> bool {
    seen_ns > last_ran_ns && now_ns.saturating_sub(seen_ns) < SEEN_FOR_NS
}

/// What is wanted of a sandbox's faults, bits of [`wants`]; and how many were seen since that was said.
pub type WantedWords = [u64; 2];

/// What the agent wants to know of a sandbox's faults.
pub mod wants {
    /// An event for each.
    pub const EVENTS: u64 = 1;
    /// The heat of each page.
    pub const HEAT: u64 = 2;
}

/// Whose a task is: sandbox key, process number (the kernel's tgid; 0 for one that has not run yet).
pub type TaskWords = [u64; 2];

/// What happened to the tasks of one sandbox.
pub type ActivityWords = [u64; 13];

/// Which word of [`ActivityWords`] is what.
pub mod word {
    /// Tasks that are runnable or run now; two's complement.
    pub const RUNNABLE: usize = 0;
    /// How often the sandbox as a whole became runnable.
    pub const WAKES: usize = 1;
    /// How often of these it was by a timer.
    pub const TIMER_WAKES: usize = 2;
    /// How often one of its tasks went off a CPU.
    pub const SWITCHES: usize = 3;
    /// Time its tasks spent on CPUs, in nanoseconds; a stretch counts when it ends.
    pub const RUN_NS: usize = 4;
    /// When one of its tasks last went off a CPU: nanoseconds of `CLOCK_MONOTONIC`.
    pub const LAST_RAN_NS: usize = 5;
    /// The same, without what timers woke for less than [`super::TIMER_WORK_NS`].
    pub const LAST_WORK_NS: usize = 6;
    /// CPU time since it last became runnable, in nanoseconds.
    pub const STRETCH_NS: usize = 7;
    /// 1 while nothing but timers has woken it since then.
    pub const STRETCH_BY_TIMER: usize = 8;
    /// Processes and threads begun.
    pub const FORKS: usize = 9;
    /// Processes and threads ended.
    pub const EXITS: usize = 10;
    /// When the last of its tasks that could run ceased to: nanoseconds of `CLOCK_MONOTONIC`.
    pub const IDLE_NS: usize = 11;
    /// When a timer's interrupt last found one of its tasks on a CPU while none was counted: nanoseconds of
    /// `CLOCK_MONOTONIC`.
    pub const SEEN_NS: usize = 12;
}

/// One fault: sandbox key, address, `CLOCK_MONOTONIC` nanoseconds, and process number with the [`fault`] bits above.
pub type FaultWords = [u64; 4];

/// Bits of the last word of [`FaultWords`], above the 32 of the process number.
pub mod fault {
    /// It was a write.
    pub const WRITE: u64 = 1 << 32;
    /// In the kernel, on behalf of the process.
    pub const IN_KERNEL: u64 = 1 << 33;
    /// All bits that may be set.
    pub const ALL: u64 = WRITE | IN_KERNEL | u32::MAX as u64;
}

/// Sandbox key, process number, page number (address / 4096).
pub type HeatKey = [u64; 3];
/// A [`HeatKey`]; its touches and writes, in 256ths and decayed; when last. The key of a place that is free is zeros.
pub type HeatWords = [u64; 6];

/// The first of the two neighbouring places where the heat of a page may be.
#[inline(always)]
#[must_use]
pub const fn heat_place(page: &HeatKey) -> u32 {
    // Any odd numbers that spread their arguments over all bits will do.
    let [key, process, page] = *page;
    let mixed = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ process.wrapping_mul(0xC2B2_AE3D_27D4_EB4F) ^ page;
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32 & (HEAT_MAX - 2)
}

/// A heat halves in this many nanoseconds, as a power of two (8.6 s).
pub const HEAT_HALF_LIFE_LOG2_NS: u32 = 33;
/// One touch.
pub const HEAT_ONE: u64 = 256;

/// What a heat has become after a time.
#[inline(always)]
#[must_use]
pub const fn decayed(heat: u64, age_ns: u64) -> u64 {
    let halvings = age_ns >> HEAT_HALF_LIFE_LOG2_NS;
    if halvings > 63 { 0 } else { heat >> halvings }
}

/// Things that did not fit, by place in [`map::LOST`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Fault events: the ring was full.
    Faults = 0,
    /// Runnable tasks: the table was full.
    Tasks = 1,
    /// Tasks to be known: the table was full.
    Members = 2,
}

/// Number of kinds of [`Lost`].
pub const LOST_KINDS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_halves_with_each_half_life_and_ends_at_nothing() {
        let life = 1u64 << HEAT_HALF_LIFE_LOG2_NS;
        assert_eq!(decayed(HEAT_ONE, life - 1), HEAT_ONE);
        assert_eq!(decayed(HEAT_ONE, life), HEAT_ONE / 2);
        assert_eq!(decayed(u64::MAX, 63 * life), 1);
        assert_eq!(decayed(u64::MAX, u64::MAX), 0);
    }

    #[test]
    fn the_pages_of_a_process_are_spread_over_the_places() {
        let mut used = [false; HEAT_MAX as usize];
        (0..1_u64 << 12).for_each(|page| used[heat_place(&[7, 42, 0x7f00_0000 + page]) as usize] = true);
        let places = used.iter().filter(|used| **used).count();
        // By chance 4096 balls hit some 3850 of 32768 places.
        assert!(places > 3_600, "{places}");
        assert!(used.iter().skip(1).step_by(2).all(|used| !used), "the second place is the next one");
    }
}
