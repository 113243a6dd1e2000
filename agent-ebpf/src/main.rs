//! The kernel's side of the watch: counts, per cgroup, how often and how long its tasks run.
//!
//! One program on the BTF tracepoint `sched_switch`. It reads no kernel struct, only helpers, so
//! nothing in it depends on the layout of a particular kernel.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "helpers and map values are raw in the kernel")]

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{LruPerCpuHashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use medes_agent_ebpf::{Activity, CGROUPS_MAX};

/// Bounded: a new cgroup pushes out the one not seen for longest. One value per CPU, so no update
/// waits for another CPU.
#[map]
static ACTIVITY: LruPerCpuHashMap<u64, Activity> = LruPerCpuHashMap::with_max_entries(CGROUPS_MAX, 0);

/// When the task now on this CPU came onto it.
#[map]
static ON_CPU_SINCE_NS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Runs when a CPU goes over to another task. `current` is still the task that leaves.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: the helper takes no argument and touches no memory of ours.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let Some(since) = ON_CPU_SINCE_NS.get_ptr_mut(0) else { return 0 };
    // SAFETY: the map gave this CPU's slot, which lives as long as the map, and nothing else runs
    // on this CPU inside a switch, so this is the only access.
    let came_ns = unsafe { core::ptr::replace(since, now_ns) };

    // The idle task (process 0) belongs to nobody's sandbox.
    if bpf_get_current_pid_tgid() == 0 {
        return 0;
    }
    // Zero: first switch this CPU shows us; how long the task ran is not known.
    let ran_ns = if came_ns == 0 { 0 } else { now_ns.saturating_sub(came_ns) };
    // SAFETY: the helper takes no argument and touches no memory of ours.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    count(&ctx, cgroup, ran_ns, now_ns);
    0
}

#[inline(always)]
fn count(ctx: &BtfTracePointContext, cgroup: u64, ran_ns: u64, now_ns: u64) {
    if let Some(seen) = ACTIVITY.get_ptr_mut(cgroup) {
        // SAFETY: the map gave this CPU's value of the entry, valid until the program ends, and
        // nothing else runs on this CPU inside a switch, so no other reference exists.
        let seen = unsafe { &mut *seen };
        seen.switches += 1;
        seen.run_ns += ran_ns;
        seen.last_ran_ns = now_ns;
        return;
    }
    let first = Activity { switches: 1, run_ns: ran_ns, last_ran_ns: now_ns };
    // NOEXIST: when another CPU was quicker, its entry stays and only this one switch is lost.
    if let Err(code) = ACTIVITY.insert(cgroup, first, u64::from(BPF_NOEXIST)) {
        debug!(ctx, "cgroup {} not counted: error {}", cgroup, code);
    }
}

/// The kernel reads the licence from here. None of the helpers above asks for a particular one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

/// Never reached: the verifier refuses a program that could panic. The language wants it to exist.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
