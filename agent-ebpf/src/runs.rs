//! Which tasks of a sandbox are runnable, and what woke it.
//!
//! A task is counted once, by an entry in [`RUNNABLE`]: put in when it wakes or is seen preempted, taken out when it
//! goes to sleep or ends. So an event that never came, or came twice, does no lasting harm to the count.
//!
//! A task that was there before the watch is counted from the first time an event names it: a fork, its end, or when it
//! leaves the CPU. A timer's interrupt does not name a task, so it only notes that one of the sandbox is on this CPU. (That
//! it is the one whose coming was seen last is not certain: of some tasks no leaving is ever traced, here those of the
//! process 1 of a micro-VM.)

use core::arch::asm;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use medes_agent_ebpf::{ActivityWords, Lost, RUNNABLE_MAX, TIMER_WORK_NS, is_seen, word};

use crate::task::{Running, Task, interrupted};
use crate::{SANDBOXES, lose};

#[map]
static RUNNABLE: HashMap<u64, u64> = HashMap::with_max_entries(RUNNABLE_MAX, 0);

/// How many timers are at work on this CPU (one may interrupt another).
#[map]
static TIMERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// The kernel's EEXIST.
const EXISTS: i32 = -17;
/// The kernel's ENOENT.
const GONE: i32 = -2;

#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes no argument and touches no memory of ours.
    unsafe { bpf_ktime_get_ns() }
}

/// Adds to a word that all CPUs change at the same time; returns what it was.
///
/// # Safety
/// `word` must be valid for writes and aligned, as words of maps are.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, more: u64) -> u64 {
    let mut value = more;
    // SAFETY: one atomic addition to a word that the caller vouches for. The target has the instruction, only the core
    // library does not offer it there.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
            word = in(reg) word, value = inout(reg) value, options(nostack));
    }
    value
}

/// The words of one sandbox, which all CPUs change at the same time.
pub(crate) struct Sandbox(*mut ActivityWords);

impl Sandbox {
    #[inline(always)]
    pub(crate) fn find(key: u64) -> Option<Self> {
        if key == 0 {
            return None;
        }
        SANDBOXES.get_ptr_mut(key).map(Self)
    }

    #[inline(always)]
    fn word(&self, at: usize) -> *mut u64 {
        // SAFETY: the map gave a row of words, valid until the program ends; `at` is one of the constants of
        // `word`, all within the row.
        unsafe { self.0.cast::<u64>().add(at) }
    }

    #[inline(always)]
    pub(crate) fn get(&self, at: usize) -> u64 {
        // SAFETY: valid and aligned, see `word`. Other CPUs change it at the same time, but a word goes whole or
        // not at all; the target has no other kind of load for it.
        unsafe { self.word(at).read_volatile() }
    }

    #[inline(always)]
    fn set(&self, at: usize, value: u64) {
        // SAFETY: as for `get`.
        unsafe { self.word(at).write_volatile(value) }
    }

    /// Returns what it was.
    #[inline(always)]
    pub(crate) fn add(&self, at: usize, more: u64) -> u64 {
        // SAFETY: valid and aligned, see `word`.
        unsafe { add(self.word(at), more) }
    }

    /// One of its tasks was found on a CPU. Matters only while none is counted.
    #[inline(always)]
    fn seen(&self) {
        if self.get(word::RUNNABLE) as i64 > 0 {
            return;
        }
        let now_ns = now_ns();
        if !self.is_seen(now_ns) {
            self.begins(false);
        }
        self.set(word::SEEN_NS, now_ns);
    }

    #[inline(always)]
    fn is_seen(&self, now_ns: u64) -> bool {
        is_seen(self.get(word::SEEN_NS), self.get(word::LAST_RAN_NS), now_ns)
    }

    /// As a whole it becomes runnable.
    #[inline(always)]
    fn begins(&self, timer: bool) {
        self.add(word::WAKES, 1);
        self.set(word::STRETCH_NS, 0);
        self.set(word::STRETCH_BY_TIMER, u64::from(timer));
        if timer {
            self.add(word::TIMER_WAKES, 1);
        }
    }
}

#[inline(always)]
pub(crate) fn timer_begins() {
    // The tick, too, is such a timer: no task runs for long unseen.
    let (owner, process) = interrupted();
    if let Some(task) = Task::running()
        && task.has_left(owner, process)
    {
        task.forget();
        count_out(task);
    }
    if let Some(sandbox) = Sandbox::find(owner) {
        sandbox.seen();
    }
    if let Some(count) = TIMERS.get_ptr_mut(0) {
        // SAFETY: the map gave this CPU's slot; a timer that interrupts here takes back what it adds.
        unsafe { *count += 1 };
    }
}

pub(crate) fn timer_ends() {
    if let Some(count) = TIMERS.get_ptr_mut(0) {
        // SAFETY: as above. The first timer seen may be one whose beginning was before the watch.
        unsafe { *count = (*count).saturating_sub(1) };
    }
}

#[inline(always)]
fn by_timer() -> bool {
    // SAFETY: the map gives this CPU's slot.
    TIMERS.get(0).is_some_and(|count| *count > 0)
}

/// Makes a task known that an event says runs now, and counts it in if it was not. Returns its sandbox.
#[inline(always)]
fn notice(task: Task, running: &Running) -> Option<Sandbox> {
    let (key, known) = (running.owner, running.known);
    let sandbox = Sandbox::find(key);
    if known == key && sandbox.is_some() {
        return sandbox;
    }
    if known != 0 {
        // It has gone to another cgroup, or its address is a new task's.
        task.forget();
        count_out(task);
    }
    let sandbox = sandbox?;
    if task.remember(key, running.process) {
        count_in(&sandbox, key, task, false);
    } else {
        lose(Lost::Members);
    }
    Some(sandbox)
}

/// A task becomes runnable.
#[inline(always)]
pub(crate) fn wakes(task: Task) {
    let key = task.owner();
    if let Some(sandbox) = Sandbox::find(key) {
        count_in(&sandbox, key, task, by_timer());
    }
}

#[inline(always)]
fn count_in(sandbox: &Sandbox, key: u64, task: Task, timer: bool) {
    match RUNNABLE.insert(task.name(), key, u64::from(BPF_NOEXIST)) {
        Ok(()) => {}
        Err(EXISTS) => return,
        Err(_full) => return lose(Lost::Tasks),
    }
    // As a signed number: a sandbox that got its first task by other means may stand below zero for a moment.
    let before = sandbox.add(word::RUNNABLE, 1) as i64;
    if before <= 0 && !sandbox.is_seen(now_ns()) {
        sandbox.begins(timer);
    } else if !timer {
        sandbox.set(word::STRETCH_BY_TIMER, 0);
    }
}

/// Takes a task out of the count of the sandbox it was counted in.
#[inline(always)]
fn count_out(task: Task) {
    // SAFETY: entries are words; this task's is only changed by events of this task.
    let Some(key) = (unsafe { RUNNABLE.get(task.name()) }).copied() else { return };
    match RUNNABLE.remove(task.name()) {
        Ok(()) => {}
        Err(GONE) => return,
        Err(_busy) => return lose(Lost::Tasks),
    }
    if let Some(sandbox) = Sandbox::find(key) {
        // As a signed number, see above: it was the last.
        if sandbox.add(word::RUNNABLE, u64::MAX) as i64 <= 1 {
            sandbox.set(word::IDLE_NS, now_ns());
        }
    }
}

/// How a task leaves the CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// Only to make room: it could run on.
    Preempted,
    /// To sleep.
    Asleep,
    /// For good.
    Dead,
}

/// The task that runs on this CPU goes off it, and another comes.
#[inline(always)]
pub(crate) fn switches(task: Task, next: Task, leaving: Leaving) {
    let now_ns = now_ns();
    let came_ns = next.comes(now_ns);
    let running = Running::ask(task);
    let Some(sandbox) = notice(task, &running) else { return };
    // Zero: first switch this CPU shows us; how long the task ran is not known.
    let ran_ns = if came_ns == 0 { 0 } else { now_ns.saturating_sub(came_ns) };
    sandbox.add(word::SWITCHES, 1);
    sandbox.add(word::RUN_NS, ran_ns);
    sandbox.set(word::LAST_RAN_NS, now_ns);
    let stretch_ns = sandbox.add(word::STRETCH_NS, ran_ns).saturating_add(ran_ns);
    if sandbox.get(word::STRETCH_BY_TIMER) == 0 || stretch_ns > TIMER_WORK_NS {
        sandbox.set(word::LAST_WORK_NS, now_ns);
    }
    if leaving == Leaving::Dead {
        task.forget();
    }
    if leaving == Leaving::Preempted {
        count_in(&sandbox, running.owner, task, by_timer());
    } else {
        count_out(task);
    }
}

/// The task that runs now begets another, a thread or a process. False when the child could not be remembered.
#[inline(always)]
pub(crate) fn begets(parent: Task, child: Task) -> bool {
    let running = Running::ask(parent);
    let Some(sandbox) = notice(parent, &running) else { return true };
    sandbox.add(word::FORKS, 1);
    let remembered = child.remember(running.owner, 0);
    if !remembered {
        lose(Lost::Members);
    }
    remembered
}

/// The task that runs now ends: its last switch takes it out of the count.
#[inline(always)]
pub(crate) fn ends(task: Task) {
    let running = Running::ask(task);
    let Some(sandbox) = notice(task, &running) else { return };
    sandbox.add(word::EXITS, 1);
    if running.first {
        // Its threads, if any are left, are known as tasks.
        running.process_ends();
    }
}
