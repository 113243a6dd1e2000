//! The kernel programs: loaded, attached and read.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::mem;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use aya::programs::tp_btf::BtfTracePointLinkId;
use aya::programs::{BtfTracePoint, ProgramInfo};
use aya::sys::{Stats, enable_stats};
use aya::{Btf, Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use log::Log;
use medes_agent_ebpf::{
    ActivityWords, HeatWords, LOST_KINDS, Lost as LostKind, TaskWords, WantedWords, map, program, variable,
    wants, word,
};

use super::error::WatchError;
use super::record::{Activity, Fault, PageHeat};
use super::{Group, Key};

/// The kernel programs as built with this agent; empty when no tool chain was there.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/medes-watch.o"));
/// Why `OBJECT` is empty.
const ABSENT: &str = env!("MEDES_EBPF_ABSENT");
/// The number every kernel gives its first pid namespace.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

/// Attached from the beginning.
const ALWAYS: [&str; 7] = [
    program::SCHED_SWITCH,
    program::SCHED_WAKEUP,
    program::SCHED_WAKEUP_NEW,
    program::SCHED_PROCESS_FORK,
    program::SCHED_PROCESS_EXIT,
    program::HRTIMER_EXPIRE_ENTRY,
    program::HRTIMER_EXPIRE_EXIT,
];
/// Loaded when somebody wants faults for the first time, attached while somebody does: a fault is frequent, and a program that
/// only finds that nobody asks costs each of them a good part of a microsecond.
const FAULTS: [&str; 2] = [program::PAGE_FAULT_USER, program::PAGE_FAULT_KERNEL];

/// How tasks are told to be a sandbox's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Membership {
    /// By their cgroup in the v2 hierarchy.
    Cgroup,
    /// By their process: the first ones are told, forks and ends are followed.
    Processes,
}

/// Whether the kernel programs say what they could not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Diagnostics {
    /// Silent, and the log statements cost one comparison.
    #[default]
    Off,
    /// Lines wait in a ring of the kernel until [`super::Watch::pass_log_on`] is called.
    On,
}

/// How to watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `None`: by cgroup where a v2 hierarchy is mounted.
    pub membership: Option<Membership>,
    /// Off by default.
    pub diagnostics: Diagnostics,
}

/// What is wanted of a sandbox's faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// An event for each ([`super::Watch::faults`]).
    pub events: bool,
    /// The heat of each page ([`super::Watch::heat`]).
    pub heat: bool,
}

/// What did not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Fault events: the ring was full.
    pub faults: u64,
    /// Runnable tasks that were not counted.
    pub tasks: u64,
    /// Tasks that were not remembered as a sandbox's.
    pub members: u64,
    /// Events that made no sense.
    pub odd: u64,
}

type Words<K, V> = HashMap<MapData, K, V>;

/// Programs attached to the kernel, and their maps.
pub(super) struct Programs {
    membership: Membership,
    sandboxes: Words<u64, ActivityWords>,
    wanted: Words<u64, WantedWords>,
    members: Words<u32, u64>,
    tasks: Words<u64, TaskWords>,
    runnable: Words<u64, u64>,
    heat: Array<MapData, HeatWords>,
    faults: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    odd: u64,
    /// Sandboxes whose faults are or were wanted: whether they are, and how many were seen before that was last said.
    asked: BTreeMap<u64, (bool, u64)>,
    /// Tasks that ended unseen, by the sandbox they are still counted in.
    missed: BTreeMap<u64, i64>,
    faults_loaded: bool,
    /// Empty while nobody wants faults.
    faults_attached: Vec<(&'static str, BtfTracePointLinkId)>,
    types: Btf,
    log: Option<EbpfLogger<&'static dyn Log>>,
    /// Owns the programs and their attachments.
    programs: Ebpf,
}

impl fmt::Debug for Programs {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Programs").field("membership", &self.membership).finish_non_exhaustive()
    }
}

impl Programs {
    pub(super) fn load(options: Options) -> Result<Self, WatchError> {
        if OBJECT.is_empty() {
            return Err(WatchError::NotBuilt { reason: ABSENT });
        }
        let membership = options.membership.unwrap_or_else(usual_membership);
        if membership == Membership::Processes && !in_first_pid_namespace() {
            return Err(WatchError::NoCgroup);
        }
        let types = Btf::from_sys_fs().map_err(|source| WatchError::NoBtf { source })?;
        let by_cgroup = u32::from(membership == Membership::Cgroup);
        let level: u8 = if options.diagnostics == Diagnostics::On { u8::MAX } else { 0 };
        let mut loader = EbpfLoader::new();
        loader.btf(Some(&types)).override_global(variable::BY_CGROUP, &by_cgroup, true);
        // A build without log statements has no such variable, and needs none.
        loader.override_global(aya_log::LEVEL, &level, false);
        let mut programs = loader.load(OBJECT).map_err(WatchError::from_load)?;
        let log = match options.diagnostics {
            Diagnostics::Off => None,
            Diagnostics::On => {
                Some(EbpfLogger::init(&mut programs).map_err(|source| WatchError::Log { source })?)
            }
        };
        let mut watch = Self {
            membership,
            sandboxes: take(&mut programs, map::SANDBOXES)?,
            wanted: take(&mut programs, map::WANTED)?,
            members: take(&mut programs, map::MEMBERS)?,
            tasks: take(&mut programs, map::TASKS)?,
            runnable: take(&mut programs, map::RUNNABLE)?,
            heat: take(&mut programs, map::HEAT)?,
            faults: take(&mut programs, map::FAULTS)?,
            lost: take(&mut programs, map::LOST)?,
            odd: 0,
            asked: BTreeMap::new(),
            missed: BTreeMap::new(),
            faults_loaded: false,
            faults_attached: Vec::new(),
            types,
            log,
            programs,
        };
        for name in ALWAYS {
            watch.load_program(name)?;
            watch.attach(name)?;
        }
        Ok(watch)
    }

    fn load_program(&mut self, name: &'static str) -> Result<(), WatchError> {
        let Self { programs, types, .. } = self;
        program(programs, name)?.load(name, types).map_err(|source| WatchError::from_program(name, source))
    }

    fn attach(&mut self, name: &'static str) -> Result<BtfTracePointLinkId, WatchError> {
        program(&mut self.programs, name)?.attach().map_err(|source| WatchError::from_program(name, source))
    }

    pub(super) const fn membership(&self) -> Membership {
        self.membership
    }

    pub(super) fn add(&mut self, key: Key, group: &Group, now_ns: u64) -> Result<(), WatchError> {
        let mut words = ActivityWords::default();
        words[word::LAST_RAN_NS] = now_ns;
        words[word::LAST_WORK_NS] = now_ns;
        let insert = self.sandboxes.insert(key.get(), words, 0);
        insert.map_err(|source| WatchError::Map { map: map::SANDBOXES, source })?;
        if self.membership == Membership::Processes {
            // Twice, for those that fork between the look and the entry.
            for pid in [group.pids(), group.pids()].concat() {
                let insert = self.members.insert(pid.as_raw().cast_unsigned(), key.get(), 0);
                insert.map_err(|source| WatchError::Map { map: map::MEMBERS, source })?;
            }
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, key: Key) {
        // The only failure is "no such entry", and then there is nothing to drop.
        drop(self.sandboxes.remove(&key.get()));
        drop(self.wanted.remove(&key.get()));
        self.missed.remove(&key.get());
        if self.asked.remove(&key.get()).is_some() {
            // What stays attached finds nobody in the table.
            drop(self.attach_as_wanted());
        }
        retain(&mut self.members, |_, owner| *owner != key.get());
        retain(&mut self.tasks, |_, words| words[0] != key.get());
        retain(&mut self.runnable, |_, owner| *owner != key.get());
        // Keys are not given twice: what is left of its heat is nobody's, and gives way.
    }

    pub(super) fn activity(&self, key: Key, now_ns: u64) -> Option<Activity> {
        let words = self.sandboxes.get(&key.get(), 0).ok()?;
        let missed = self.missed.get(&key.get()).copied().unwrap_or(0);
        let faults = self.asked.get(&key.get()).map_or(0, |(_, before)| before + self.faults_now(key));
        Some(Activity::from_words(&words, missed, faults, now_ns))
    }

    /// Faults seen since it was last said what is wanted.
    fn faults_now(&self, key: Key) -> u64 {
        self.wanted.get(&key.get(), 0).map_or(0, |[_, faults]| faults)
    }

    pub(super) fn load_faults(&mut self) -> Result<(), WatchError> {
        if !self.faults_loaded {
            for name in FAULTS {
                self.load_program(name)?;
            }
            self.faults_loaded = true;
        }
        Ok(())
    }

    pub(super) fn want_faults(&mut self, key: Key, wanted: Wants) -> Result<(), WatchError> {
        let events = if wanted.events { wants::EVENTS } else { 0 };
        let heat = if wanted.heat { wants::HEAT } else { 0 };
        let bits = events | heat;
        let before = self.faults_now(key);
        let asked = self.asked.entry(key.get()).or_default();
        *asked = (bits != 0, asked.1 + before);
        match bits {
            // Nothing was wanted before either: then there is no entry.
            0 => drop(self.wanted.remove(&key.get())),
            bits => {
                let insert = self.wanted.insert(key.get(), [bits, 0], 0);
                insert.map_err(|source| WatchError::Map { map: map::WANTED, source })?;
            }
        }
        self.attach_as_wanted()
    }

    /// Attaches the programs for faults while anybody wants faults, and only then.
    fn attach_as_wanted(&mut self) -> Result<(), WatchError> {
        let wanted = self.asked.values().any(|(wanted, _)| *wanted);
        if !wanted {
            for (name, link) in mem::take(&mut self.faults_attached) {
                let program = program(&mut self.programs, name)?;
                program.detach(link).map_err(|source| WatchError::from_program(name, source))?;
            }
        } else if self.faults_attached.is_empty() {
            self.load_faults()?;
            for name in FAULTS {
                let link = self.attach(name)?;
                self.faults_attached.push((name, link));
            }
        }
        Ok(())
    }

    pub(super) fn faults(&mut self, most: usize) -> Vec<Fault> {
        let mut faults = Vec::new();
        while faults.len() < most
            && let Some(item) = self.faults.next()
        {
            match Fault::parse(&item) {
                Ok(fault) => faults.push(fault),
                Err(_counted) => self.odd += 1,
            }
        }
        faults
    }

    pub(super) fn heat(&self, key: Key, now_ns: u64) -> Vec<PageHeat> {
        let pages = self.heat.iter().flatten().filter(|words| words[0] == key.get());
        pages.filter_map(|words| PageHeat::from_words(&words, now_ns)).collect()
    }

    pub(super) fn lost(&self) -> Lost {
        let count = |kind: LostKind| -> u64 {
            debug_assert!((kind as u32) < LOST_KINDS);
            self.lost.get(&(kind as u32), 0).map_or(0, |cpus| cpus.iter().sum())
        };
        Lost {
            faults: count(LostKind::Faults),
            tasks: count(LostKind::Tasks),
            members: count(LostKind::Members),
            odd: self.odd,
        }
    }

    pub(super) fn sweep(&mut self) -> usize {
        if !in_first_pid_namespace() {
            // The kernel's numbers are not those seen here.
            return 0;
        }
        let gone = |process: u64| !Path::new(&format!("/proc/{process}")).exists();
        let members = retain(&mut self.members, |process, _| !gone(u64::from(*process))).len();
        // Of one that has not run yet, the process is not known: it will run.
        let tasks = retain(&mut self.tasks, |_, &[_, process]| process == 0 || !gone(process)).len();
        let known = &self.tasks;
        let counted = retain(&mut self.runnable, |task, _| known.get(task, 0).is_ok());
        for owner in counted {
            *self.missed.entry(owner).or_default() += 1;
        }
        members + tasks
    }

    pub(super) fn pass_log_on(&mut self) {
        if let Some(reader) = &mut self.log {
            reader.flush();
        }
    }

    pub(super) fn costs(&self) -> Vec<Cost> {
        let costs = self.programs.programs().filter_map(|(name, program)| {
            let info = program.info().ok()?;
            Some(Cost { program: name.to_owned(), runs: info.run_count(), time: info.run_time() })
        });
        costs.collect()
    }

    pub(super) fn kernel_ids(&self) -> (Vec<u32>, Vec<u32>) {
        let infos = self.programs.programs().filter_map(|(_, program)| program.info().ok());
        let mut maps: Vec<u32> = infos.filter_map(|info| info.map_ids().ok().flatten()).flatten().collect();
        maps.sort_unstable();
        maps.dedup();
        let programs = self.programs.programs();
        let ids = programs.filter_map(|(_, program)| program.info().ok().map(|info: ProgramInfo| info.id()));
        (ids.collect(), maps)
    }
}

/// While it lives, the kernel counts the time of all eBPF programs of the machine, which costs some itself.
#[derive(Debug)]
pub struct CostCount {
    _held: OwnedFd,
}

impl CostCount {
    /// Begins to count.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn begin() -> Result<Self, WatchError> {
        let held = enable_stats(Stats::RunTime).map_err(|source| WatchError::Count { source })?;
        Ok(Self { _held: held })
    }
}

/// What one kernel program has cost while it was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Its name.
    pub program: String,
    /// How often it ran.
    pub runs: u64,
    /// Time in it.
    pub time: Duration,
}

/// Removes entries; returns the values of those removed.
fn retain<K: aya::Pod, V: aya::Pod>(map: &mut Words<K, V>, keep: impl Fn(&K, &V) -> bool) -> Vec<V> {
    let doomed: Vec<(K, V)> = map.iter().flatten().filter(|(key, value)| !keep(key, value)).collect();
    // One that is gone meanwhile has been taken care of.
    doomed.into_iter().filter(|(key, _)| map.remove(key).is_ok()).map(|(_, value)| value).collect()
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut BtfTracePoint, WatchError> {
    let program = programs.program_mut(name).ok_or(WatchError::Foreign { lacks: name })?;
    program.try_into().map_err(|source| WatchError::from_program(name, source))
}

fn take<T: TryFrom<Map, Error = MapError>>(programs: &mut Ebpf, name: &'static str) -> Result<T, WatchError> {
    let map = programs.take_map(name).ok_or(WatchError::Foreign { lacks: name })?;
    T::try_from(map).map_err(|source| WatchError::Map { map: name, source })
}

fn usual_membership() -> Membership {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let unified = mounts.lines().any(|line| line.split(' ').nth(2) == Some("cgroup2"));
    if unified { Membership::Cgroup } else { Membership::Processes }
}

fn in_first_pid_namespace() -> bool {
    fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name == Path::new(FIRST_PID_NAMESPACE))
}
