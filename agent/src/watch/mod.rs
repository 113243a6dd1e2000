//! The kernel's view of the sandboxes: eBPF programs loaded, attached and read.
//!
//! Only this module and `agent-ebpf` know eBPF. The agent must run without it: [`Watch::start`]
//! says in a typed error what is missing, and its callers fall back to procfs.

mod error;

use std::fmt;

use aya::maps::{MapData, PerCpuHashMap};
use aya::programs::{BtfTracePoint, ProgramInfo};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
pub use error::WatchError;
use log::Log;
pub use medes_agent_ebpf::Activity;
use medes_agent_ebpf::{ACTIVITY, ActivityWords, SCHED_SWITCH};

/// The kernel programs as built with this agent; empty when no tool chain was there.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/medes-watch.o"));

/// Why `OBJECT` is empty.
const ABSENT: &str = env!("MEDES_EBPF_ABSENT");

/// Programs attached to the kernel, counting what the tasks of each cgroup do.
///
/// Dropping it detaches and unloads everything: nothing is pinned.
pub struct Watch {
    activity: PerCpuHashMap<MapData, u64, ActivityWords>,
    /// Reads the programs' log lines.
    log: Option<EbpfLogger<&'static dyn Log>>,
    /// Owns the programs and their attachments.
    programs: Ebpf,
}

/// Whether the kernel programs say what they could not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Diagnostics {
    /// Silent, and the log statements cost one comparison.
    #[default]
    Off,
    /// Lines wait in a ring of the kernel until [`Watch::pass_log_on`] is called.
    On,
}

impl fmt::Debug for Watch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Watch").field("programs", &self.program_ids()).finish_non_exhaustive()
    }
}

impl Watch {
    /// Loads and attaches, without diagnostics. Takes some milliseconds; blocks.
    ///
    /// # Errors
    /// What this kernel, this build or these rights do not allow.
    pub fn start() -> Result<Self, WatchError> {
        Self::start_with(Diagnostics::Off)
    }

    /// Loads and attaches.
    ///
    /// # Errors
    /// What this kernel, this build or these rights do not allow.
    pub fn start_with(diagnostics: Diagnostics) -> Result<Self, WatchError> {
        if OBJECT.is_empty() {
            return Err(WatchError::NotBuilt { reason: ABSENT });
        }
        let types = Btf::from_sys_fs().map_err(|source| WatchError::NoBtf { source })?;
        let level: u8 = match diagnostics {
            Diagnostics::Off => 0,
            Diagnostics::On => u8::MAX,
        };
        let mut programs = EbpfLoader::new()
            .btf(Some(&types))
            // A build without log statements has no such variable, and needs none.
            .override_global(aya_log::LEVEL, &level, false)
            .load(OBJECT)
            .map_err(WatchError::from_load)?;
        let log = match diagnostics {
            Diagnostics::Off => None,
            Diagnostics::On => {
                Some(EbpfLogger::init(&mut programs).map_err(|source| WatchError::Log { source })?)
            }
        };
        let map = programs.take_map(ACTIVITY).ok_or(WatchError::Foreign { lacks: ACTIVITY })?;
        let activity =
            PerCpuHashMap::try_from(map).map_err(|source| WatchError::Map { map: ACTIVITY, source })?;
        attach(&mut programs, SCHED_SWITCH, &types)?;
        Ok(Self { activity, log, programs })
    }

    /// What the tasks of this cgroup did since the watch started, summed over all CPUs.
    ///
    /// The id is that of the cgroup v2 hierarchy: the inode number of the cgroup's folder. `None`:
    /// no task of it was seen to leave a CPU, or so many cgroups are busy that it was pushed out.
    pub fn activity(&self, cgroup_id: u64) -> Option<Activity> {
        let cpus = self.activity.get(&cgroup_id, 0).ok()?;
        Some(cpus.iter().fold(Activity::default(), |sum, words| sum.plus(Activity::from(*words))))
    }

    /// Drops what was counted for a cgroup that is gone. Knowing nothing of it is no error.
    pub fn forget(&mut self, cgroup_id: u64) {
        // The only failure is "no such entry", and then there is nothing to drop.
        drop(self.activity.remove(&cgroup_id));
    }

    /// Gives the lines the kernel programs wrote so far to the `log` facade. Never blocks.
    pub fn pass_log_on(&mut self) {
        if let Some(reader) = &mut self.log {
            reader.flush();
        }
    }

    /// The kernel's ids of the programs that are loaded, as `bpftool prog` shows them.
    pub fn program_ids(&self) -> Vec<u32> {
        let loaded = self.programs.programs();
        loaded.filter_map(|(_, program)| program.info().ok().map(|info: ProgramInfo| info.id())).collect()
    }
}

fn attach(programs: &mut Ebpf, name: &'static str, types: &Btf) -> Result<(), WatchError> {
    let program = programs.program_mut(name).ok_or(WatchError::Foreign { lacks: name })?;
    let program: &mut BtfTracePoint =
        program.try_into().map_err(|source| WatchError::from_program(name, source))?;
    program.load(name, types).map_err(|source| WatchError::from_program(name, source))?;
    program.attach().map_err(|source| WatchError::from_program(name, source))?;
    Ok(())
}
