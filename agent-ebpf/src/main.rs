//! The kernel's side of the watch: who runs, who sleeps, who woke whom, and which pages are touched.
//!
//! Programs on BTF tracepoints, and maps. They read no kernel struct, only helpers and the tracepoints' own numbers
//! ([`task`]), so nothing in them depends on the layout of a particular kernel.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(unsafe_code, reason = "helpers and map values are raw in the kernel")]

mod faults;
mod runs;
mod task;

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use aya_log_ebpf::debug;
use medes_agent_ebpf::{ActivityWords, LOST_KINDS, Lost, SANDBOXES_MAX};

use runs::Leaving;
use task::Task;

#[map]
static SANDBOXES: HashMap<u64, ActivityWords> = HashMap::with_max_entries(SANDBOXES_MAX, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(LOST_KINDS, 0);

/// Bit of a task's state: it has ended, and this is its last switch.
const DEAD: u32 = 0x80;

/// Arguments: preempted, the task that leaves, the task that comes, the state of the one that leaves. The first of the
/// two is still the one that runs.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let (preempted, state): (u8, u32) = (ctx.arg(0), ctx.arg(3));
    let leaving = if state & DEAD != 0 {
        Leaving::Dead
    } else if state == 0 || preempted != 0 {
        // One that is preempted on its way to sleep has a state already.
        Leaving::Preempted
    } else {
        Leaving::Asleep
    };
    runs::switches(Task::argument(&ctx, 1), Task::argument(&ctx, 2), leaving);
    0
}

/// Argument: the task.
#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    runs::wakes(Task::argument(&ctx, 0));
    0
}

/// Argument: the task.
#[btf_tracepoint(function = "sched_wakeup_new")]
fn sched_wakeup_new(ctx: BtfTracePointContext) -> i32 {
    runs::wakes(Task::argument(&ctx, 0));
    0
}

/// Arguments: parent, which runs, and child.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    if !runs::begets(Task::argument(&ctx, 0), Task::argument(&ctx, 1)) {
        debug!(&ctx, "no room for a child of task {}", bpf_get_current_pid_tgid() as u32);
    }
    0
}

/// Argument: the task, which runs.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    runs::ends(Task::argument(&ctx, 0));
    0
}

#[btf_tracepoint(function = "hrtimer_expire_entry")]
fn hrtimer_expire_entry(_ctx: BtfTracePointContext) -> i32 {
    runs::timer_begins();
    0
}

#[btf_tracepoint(function = "hrtimer_expire_exit")]
fn hrtimer_expire_exit(_ctx: BtfTracePointContext) -> i32 {
    runs::timer_ends();
    0
}

/// Arguments: address, registers, error code.
#[btf_tracepoint(function = "page_fault_user")]
fn page_fault_user(ctx: BtfTracePointContext) -> i32 {
    faults::seen(ctx.arg(0), ctx.arg(2), false);
    0
}

/// As above.
#[btf_tracepoint(function = "page_fault_kernel")]
fn page_fault_kernel(ctx: BtfTracePointContext) -> i32 {
    faults::seen(ctx.arg(0), ctx.arg(2), true);
    0
}

/// Counts something that did not fit.
#[inline(always)]
fn lose(what: Lost) {
    if let Some(count) = LOST.get_ptr_mut(what as u32) {
        // SAFETY: the map gave this CPU's slot, which lives as long as the map; a program that interrupts this one
        // here can only make the count one too small.
        unsafe { *count += 1 };
    }
}

/// The kernel reads the licence from here. Nothing above asks for a particular one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

/// Never reached: the verifier refuses a program that could panic. The language wants it to exist.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
