//! The kernel's view of the sandboxes: who works, who is idle since when, which pages are touched.
//!
//! One interface, [`Watch`], with two ways to see: kernel programs (eBPF), and `/proc` where these do not load. The
//! choice is made at the start, and [`Watch::sight`] says which it was. Only this room and `agent-ebpf` know eBPF.
//! Which pages a sandbox writes is seen in other ways, [`writes`], and what follows from it is [`heat`]; [`tracked`]
//! is both for a whole sandbox.

mod ebpf;
mod error;
pub mod heat;
mod procfs;
mod record;
mod soft_dirty;
pub mod tracked;
pub mod writes;

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

pub use ebpf::{Cost, CostCount, Diagnostics, Lost, Membership, Options, Wants};
pub use error::WatchError;
pub use record::{Activity, Counts, Fault, PageHeat, RecordError};

use ebpf::Programs;
use procfs::Procfs;

/// What a watch calls a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(NonZeroU64);

impl Key {
    pub(crate) const fn new(number: u64) -> Option<Self> {
        match NonZeroU64::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number: the id of the cgroup where sandboxes are told apart by these.
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// The processes of a sandbox, as they are found from outside.
#[derive(Debug, Clone)]
pub struct Group {
    /// Id of its cgroup in the v2 hierarchy, if there is one.
    pub cgroup_id: Option<u64>,
    /// File that lists its processes, one number a line.
    pub procs: PathBuf,
}

impl Group {
    /// Its processes now; none when the group is gone.
    pub fn pids(&self) -> Vec<Pid> {
        let text = std::fs::read_to_string(&self.procs).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect()
    }
}

/// How a watch sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// By kernel programs, which tell sandboxes apart in this way.
    Ebpf(Membership),
    /// By looking at `/proc` from time to time.
    Procfs,
}

impl fmt::Display for Sight {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Ebpf(Membership::Cgroup) => "eBPF, sandboxes by cgroup",
            Self::Ebpf(Membership::Processes) => "eBPF, sandboxes by process tree",
            Self::Procfs => "procfs",
        })
    }
}

/// Watches sandboxes. Dropping it leaves nothing in the kernel: programs and maps go with it.
#[derive(Debug)]
pub struct Watch {
    eyes: Eyes,
    next: u64,
}

#[derive(Debug)]
enum Eyes {
    Kernel(Box<Programs>),
    Procfs(Procfs),
}

impl Watch {
    /// Starts the best watch this machine allows; the error says why it is not the kernel programs. Blocks for some
    /// ten milliseconds.
    pub fn start(options: Options) -> (Self, Option<WatchError>) {
        match Self::ebpf(options) {
            Ok(watch) => (watch, None),
            Err(error) => (Self::procfs(), Some(error)),
        }
    }

    /// A watch by kernel programs.
    ///
    /// # Errors
    /// What this kernel, this build or these rights do not allow.
    pub fn ebpf(options: Options) -> Result<Self, WatchError> {
        Ok(Self { eyes: Eyes::Kernel(Box::new(Programs::load(options)?)), next: 1 })
    }

    /// A watch that looks at `/proc`.
    pub fn procfs() -> Self {
        Self { eyes: Eyes::Procfs(Procfs::default()), next: 1 }
    }

    /// How it sees.
    pub fn sight(&self) -> Sight {
        match &self.eyes {
            Eyes::Kernel(programs) => Sight::Ebpf(programs.membership()),
            Eyes::Procfs(_) => Sight::Procfs,
        }
    }

    /// Begins to watch a sandbox. It counts as just having worked.
    ///
    /// # Errors
    /// The kernel's table is full, or the sandbox cannot be told from others.
    pub fn add(&mut self, group: Group, now_ns: u64) -> Result<Key, WatchError> {
        let by_cgroup = matches!(self.sight(), Sight::Ebpf(Membership::Cgroup));
        let number = if by_cgroup { group.cgroup_id.unwrap_or(0) } else { self.next };
        let key = Key::new(number).ok_or(WatchError::NoCgroup)?;
        self.next += 1;
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.add(key, &group, now_ns)?,
            Eyes::Procfs(procfs) => procfs.add(key, group, now_ns),
        }
        Ok(key)
    }

    /// Stops watching a sandbox. Knowing nothing of it is no error.
    pub fn remove(&mut self, key: Key) {
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.remove(key),
            Eyes::Procfs(procfs) => procfs.remove(key),
        }
    }

    /// What a sandbox did; `None` if it is not watched.
    pub fn activity(&mut self, key: Key, now_ns: u64) -> Option<Activity> {
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.activity(key, now_ns),
            Eyes::Procfs(procfs) => procfs.activity(key, now_ns),
        }
    }

    /// Makes it quick to say what is wanted of faults: the programs for it are loaded, and attached to nothing yet.
    /// Blocks for some milliseconds.
    ///
    /// # Errors
    /// There are no kernel programs, or none for faults on this architecture.
    pub fn load_faults(&mut self) -> Result<(), WatchError> {
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.load_faults(),
            Eyes::Procfs(_) => Err(WatchError::OnlyEbpf),
        }
    }

    /// Says what is wanted of a sandbox's faults. Faults cost nothing while nobody wants any.
    ///
    /// # Errors
    /// There are no kernel programs, or none for faults on this architecture.
    pub fn want_faults(&mut self, key: Key, wants: Wants) -> Result<(), WatchError> {
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.want_faults(key, wants),
            Eyes::Procfs(_) => Err(WatchError::OnlyEbpf),
        }
    }

    /// The oldest faults that wait, at most so many. Never blocks.
    pub fn faults(&mut self, most: usize) -> Vec<Fault> {
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.faults(most),
            Eyes::Procfs(_) => Vec::new(),
        }
    }

    /// The pages a sandbox has faulted on, with their heat now. Goes through the whole table.
    pub fn heat(&self, key: Key, now_ns: u64) -> Vec<PageHeat> {
        match &self.eyes {
            Eyes::Kernel(programs) => programs.heat(key, now_ns),
            Eyes::Procfs(_) => Vec::new(),
        }
    }

    /// What did not fit into tables and rings so far.
    pub fn lost(&self) -> Lost {
        match &self.eyes {
            Eyes::Kernel(programs) => programs.lost(),
            Eyes::Procfs(_) => Lost::default(),
        }
    }

    /// Throws out what belongs to tasks and sandboxes whose end was not seen. Returns how much that was.
    pub fn sweep(&mut self) -> usize {
        match &mut self.eyes {
            Eyes::Kernel(programs) => programs.sweep(),
            Eyes::Procfs(_) => 0,
        }
    }

    /// Gives the lines the kernel programs wrote so far to the `log` facade. Never blocks.
    pub fn pass_log_on(&mut self) {
        if let Eyes::Kernel(programs) = &mut self.eyes {
            programs.pass_log_on();
        }
    }

    /// What each kernel program has cost, as far as a [`CostCount`] was there.
    pub fn costs(&self) -> Vec<Cost> {
        match &self.eyes {
            Eyes::Kernel(programs) => programs.costs(),
            Eyes::Procfs(_) => Vec::new(),
        }
    }

    /// The kernel's ids of programs and maps, as `bpftool` shows them.
    pub fn kernel_ids(&self) -> (Vec<u32>, Vec<u32>) {
        match &self.eyes {
            Eyes::Kernel(programs) => programs.kernel_ids(),
            Eyes::Procfs(_) => (Vec::new(), Vec::new()),
        }
    }
}

/// The clock of all times here: nanoseconds of `CLOCK_MONOTONIC`.
pub fn now_ns() -> u64 {
    // It exists on every Linux.
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else { return 0 };
    let now = std::time::Duration::from(now);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
