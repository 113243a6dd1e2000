//! Who a task is, without looking into it.
//!
//! The kernel lets only programs under the GPL read a `task_struct`, and these are not. So a task is an address that is
//! never followed: a name, which another task may get once this one has ended. Whose it is, is learnt while it runs,
//! when helpers tell the process and the cgroup of the running task, or at its birth, while its parent runs.

use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_get_current_pid_tgid};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, PerCpuArray};
use aya_ebpf::programs::BtfTracePointContext;
use medes_agent_ebpf::{MEMBERS_MAX, TASKS_MAX, TaskWords};

/// Without cgroup v2, the processes that were there when the agent began to watch; the agent puts them in.
#[map]
static MEMBERS: HashMap<u32, u64> = HashMap::with_max_entries(MEMBERS_MAX, 0);

/// Tasks of watched sandboxes. An entry is made and changed by its task alone, but for its parent at its birth.
#[map]
static TASKS: HashMap<u64, TaskWords> = HashMap::with_max_entries(TASKS_MAX, 0);

/// The task now on this CPU, and when it came onto it; zeros until the first switch.
#[map]
static ON_CPU: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Set by the agent before it loads the object, constant after that.
#[unsafe(no_mangle)]
static BY_CGROUP: u32 = 0;

/// Whether sandboxes are cgroups.
#[inline(always)]
fn by_cgroup() -> bool {
    // SAFETY: a reference is valid for reads. Volatile, so that the compiler does not take it for the 0 it sees.
    unsafe { core::ptr::read_volatile(&raw const BY_CGROUP) != 0 }
}

/// A task, by its address.
#[derive(Clone, Copy)]
pub(crate) struct Task(u64);

impl Task {
    /// Argument `n` of the tracepoint, which must be a task.
    #[inline(always)]
    pub(crate) fn argument(ctx: &BtfTracePointContext, n: usize) -> Self {
        Self(ctx.arg(n))
    }

    /// The task that was seen to come onto this CPU last; `None` until the first switch. It is not the one that runs now
    /// if a switch went untraced.
    #[inline(always)]
    pub(crate) fn running() -> Option<Self> {
        let &[task, _] = ON_CPU.get(0)?;
        (task != 0).then_some(Self(task))
    }

    /// Notes that it comes onto this CPU. Returns when the one before it had come; 0 when that was not seen.
    #[inline(always)]
    pub(crate) fn comes(self, now_ns: u64) -> u64 {
        let Some(slot) = ON_CPU.get_ptr_mut(0) else { return 0 };
        // SAFETY: the map gave this CPU's slot, which lives as long as the map, and nothing else runs on this CPU
        // inside a switch, so this is the only access.
        let [_, came_ns] = unsafe { core::ptr::replace(slot, [self.0, now_ns]) };
        came_ns
    }

    /// Its name in tables.
    #[inline(always)]
    pub(crate) const fn name(self) -> u64 {
        self.0
    }

    #[inline(always)]
    fn row(self) -> Option<TaskWords> {
        // SAFETY: entries are words; one that is replaced meanwhile is read as the old or the new one.
        unsafe { TASKS.get(self.0) }.copied()
    }

    /// The key of the sandbox it is known to be of; 0 for none.
    #[inline(always)]
    pub(crate) fn owner(self) -> u64 {
        self.row().map_or(0, |[owner, _]| owner)
    }

    /// Whether it, a task of a process that runs now, was known as another cgroup's than this process's is now.
    #[inline(always)]
    pub(crate) fn has_left(self, owner: u64, process: u32) -> bool {
        by_cgroup() && self.row().is_some_and(|[known, its]| its == u64::from(process) && known != owner)
    }

    /// Remembers whose it is; process 0 when that cannot be told yet. False when there is no room.
    #[inline(always)]
    pub(crate) fn remember(self, owner: u64, process: u32) -> bool {
        TASKS.insert(self.0, [owner, u64::from(process)], 0).is_ok()
    }

    /// Its address means nothing any more.
    #[inline(always)]
    pub(crate) fn forget(self) {
        // Not there any more is as good.
        let _gone = TASKS.remove(self.0);
    }
}

/// The key of the sandbox that the cgroup or the process of the task that runs now tells (0 for none), and its process.
/// Not told: processes that were begun since the watch, where sandboxes are no cgroups.
#[inline(always)]
pub(crate) fn interrupted() -> (u64, u32) {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    (told(process), process)
}

#[inline(always)]
fn told(process: u32) -> u64 {
    if by_cgroup() {
        // SAFETY: the helper takes no argument and touches no memory of ours.
        unsafe { bpf_get_current_cgroup_id() }
    } else {
        // SAFETY: entries are words; one that is replaced meanwhile is read as the old or the new one.
        unsafe { MEMBERS.get(process) }.copied().unwrap_or(0)
    }
}

/// The key of the sandbox the running task may be of (0 for none), and its process. Where sandboxes are cgroups, no table
/// is looked at.
#[inline(always)]
pub(crate) fn current() -> (u64, u32) {
    let (owner, process) = interrupted();
    if by_cgroup() || owner != 0 {
        return (owner, process);
    }
    // A child begun since the watch: only its address is known.
    let known = Task::running().and_then(Task::row);
    let owner = known.filter(|&[_, its]| its == 0 || its == u64::from(process)).map_or(0, |[owner, _]| owner);
    (owner, process)
}

/// What helpers and tables say about a task that an event names as the one that runs.
pub(crate) struct Running {
    /// Its process.
    pub(crate) process: u32,
    /// Whether it is the first thread of its process.
    pub(crate) first: bool,
    /// The key of the sandbox it may be of; 0 for none.
    pub(crate) owner: u64,
    /// The owner its address was remembered with; 0 for none.
    pub(crate) known: u64,
}

impl Running {
    /// `task` must be the one that runs now.
    #[inline(always)]
    pub(crate) fn ask(task: Task) -> Self {
        let numbers = bpf_get_current_pid_tgid();
        let (process, thread) = ((numbers >> 32) as u32, numbers as u32);
        let (mut known, mut same) = (0, false);
        if let Some(words) = TASKS.get_ptr_mut(task.0) {
            // SAFETY: the map gave a row of two words, valid until the program ends. Only events of this task change
            // it.
            let [owner, its_process] = unsafe { &mut *words };
            known = *owner;
            // Another process: the address has been given to a new task.
            same = *its_process == 0 || *its_process == u64::from(process);
            *its_process = u64::from(process);
        }
        let owner = if same && !by_cgroup() { known } else { told(process) };
        Self { process, first: process == thread, owner, known }
    }

    /// Its number will be given to another process.
    #[inline(always)]
    pub(crate) fn process_ends(&self) {
        if !by_cgroup() {
            // Most were never in it.
            let _gone = MEMBERS.remove(self.process);
        }
    }
}
