//! A sandbox that stands still while its memory is taken: what is there, copied out, then zapped.
//!
//! Until [`Stopped::zap`] nothing of it has changed. From there on its memory is what the store says: should a mapping
//! not let itself be registered again, its pages are written back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use medes_dedup::delta::DeltaCodec;
use medes_dedup::page::{PAGE_BYTES, ZERO_PAGE};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use super::fault::Lost;
use super::handler::Pager;
use super::ranges::{is_in, joined, without};
use super::read::read;
use super::recipes::{Saved, StorePagesError};
use super::space::{Space, State, Unsettled, pages};
use super::store::Store;
use super::working_set::WorkingSet;
use crate::inject::{ForWhat, InjectError, Operation, OperatorError, Stage, make_userfaultfd};
use crate::maps;
use crate::sandbox::cgroup::{CgroupError, SandboxCgroup};
use crate::uffd::{self, MISSING, PAGING, PROTECT, Uffd};

/// Why a sandbox was not parked. It is warm, as it was, unless it says that it was lost.
#[derive(Debug, thiserror::Error)]
pub enum ParkError {
    /// Its processes could not be listed, or frozen.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// It starts processes faster than they can be stopped.
    #[error("it keeps starting processes")]
    Restless,
    /// It has no process.
    #[error("it has ended")]
    Ended,
    /// A process could not be stopped or made to do what is needed.
    #[error(transparent)]
    Operate(#[from] OperatorError),
    /// A child was forked while pages of its parent were missing. It can be parked when that child is gone.
    #[error("it has forked since it was unparked")]
    Forked,
    /// A process could not be looked at.
    #[error("look at the memory of process {pid}")]
    Look {
        /// The process.
        pid: Pid,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody else's userfaultfd is on its memory.
    #[error("memory of process {pid} is watched by another userfaultfd")]
    Watched {
        /// The process.
        pid: Pid,
    },
    /// The kernel itself writes to pages of it where they are now: ring buffers, devices.
    #[error("pages of process {pid} are pinned")]
    Pinned {
        /// The process.
        pid: Pid,
    },
    /// The kernel cannot do it.
    #[error("ask for missing pages and asynchronous write protection")]
    Api(#[source] io::Error),
    /// The descriptor could not be kept.
    #[error("hold the userfaultfd of a process")]
    Hold(#[source] io::Error),
    /// Its pages could not be stored.
    #[error(transparent)]
    Store(#[from] StorePagesError),
    /// Its memory was given up and could not be put under our hands again.
    #[error("its memory is lost")]
    Lost(#[source] io::Error),
    /// What it did to its mappings before it stood still is not known yet.
    #[error(transparent)]
    Unsettled(#[from] Unsettled),
    /// It was wanted back.
    #[error("it was wanted back before it was parked")]
    Cancelled,
}

/// Rounds of looking for processes.
const ROUNDS_MAX: usize = 8;
/// Pages copied between two looks whether it is wanted back: a millisecond or two.
const COPIED_AT_ONCE: usize = 512;
/// Ranges given to the kernel at once.
const VECTORS_MAX: usize = 1024;
/// For what is told to the kernel through memory of the process.
const SCRATCH_BYTES: u64 = 64 << 10;
const MADV_DONTNEED: u64 = libc::MADV_DONTNEED as u64;
/// `PIDFD_SELF_THREAD_GROUP`: the calling process, for calls that take a descriptor of one.
const SELF: u64 = (-10001_i64).cast_unsigned();
const PAGE: u64 = PAGE_BYTES as u64;

/// A process that stands still.
#[derive(Debug)]
struct Process {
    pid: Pid,
    space: Arc<Space>,
    /// It had no userfaultfd before: nothing of it is missing.
    is_new: bool,
    scratch: u64,
    memory: File,
    pagemap: File,
    /// What is registered, in order.
    registered: Vec<Range<u64>>,
    /// What of it has pages that are there.
    present: Vec<Range<u64>>,
    saved: Saved,
    /// Pages that stay, in order.
    stay: Vec<u64>,
    /// What the next request will touch, as it is known now.
    working_set: WorkingSet,
}

/// A sandbox that stands still. Dropped, it goes on as it was.
#[derive(Debug)]
pub(super) struct Stopped {
    operation: Operation,
    pager: Pager,
    cgroup: SandboxCgroup,
    processes: Vec<Process>,
    left_out_pages: u64,
}

impl Stopped {
    /// Stops a sandbox and copies the pages that were written since it was last parked. `known`: its processes then.
    pub(super) fn take(
        pager: &Pager,
        cgroup: &SandboxCgroup,
        known: &[Arc<Space>],
        (lost, cancelled, resident_percent): (&Arc<Lost>, &CancellationToken, u32),
    ) -> Result<Self, ParkError> {
        let mut operation = pager.operators().begin()?;
        let pids = hold_all(&mut operation, cgroup)?;
        known.iter().try_for_each(|space| space.wait_settled())?;
        if known.iter().flat_map(|space| pager.children(space)).any(|child| !child.uffd.is_orphaned()) {
            return Err(ParkError::Forked);
        }
        let (pager, cgroup) = (pager.clone(), cgroup.clone());
        let mut stopped = Self { operation, pager, cgroup, processes: Vec::new(), left_out_pages: 0 };
        match pids
            .into_iter()
            .try_for_each(|pid| stopped.look_at(pid, known, (lost, cancelled, resident_percent)))
        {
            Ok(()) => Ok(stopped),
            Err(error) => {
                if let Err(error) = stopped.abort() {
                    tracing::warn!(error = &error as &dyn std::error::Error, "leave a sandbox as it was");
                }
                Err(error)
            }
        }
    }

    fn look_at(
        &mut self,
        pid: Pid,
        known: &[Arc<Space>],
        (lost, cancelled, resident_percent): (&Arc<Lost>, &CancellationToken, u32),
    ) -> Result<(), ParkError> {
        let process = self.process(pid, known, lost)?;
        self.processes.push(process);
        let Some(process) = self.processes.last_mut() else { return Ok(()) };
        self.left_out_pages += process.register()?;
        process.look(resident_percent)?;
        process.copy(cancelled)
    }

    fn process(&mut self, pid: Pid, known: &[Arc<Space>], lost: &Arc<Lost>) -> Result<Process, ParkError> {
        let look = |source| ParkError::Look { pid, source };
        let open = |name: &str, write| {
            File::options().read(true).write(write).open(format!("/proc/{pid}/{name}")).map_err(look)
        };
        let (memory, pagemap) = (open("mem", true)?, open("pagemap", false)?);
        let kind = [0, SCRATCH_BYTES, (libc::PROT_READ | libc::PROT_WRITE) as u64];
        // Shared, so that it joins no mapping of the program's.
        let share = [(libc::MAP_SHARED | libc::MAP_ANONYMOUS) as u64, u64::MAX, 0];
        let map = [kind, share].concat();
        let scratch = self.operation.call(pid, libc::SYS_mmap, &map, Stage::Call)?;
        let before = known.iter().find(|space| space.pid == Some(pid) && !space.uffd.is_orphaned());
        let space = match before {
            Some(space) => Ok(space.clone()),
            None => make_userfaultfd(&mut self.operation, pid, ForWhat::Paging { scratch })
                .map_err(ParkError::from)
                .and_then(|fd| {
                    let uffd = Uffd::open(fd, PAGING).map_err(ParkError::Api)?;
                    self.pager.begin(uffd, pid, lost.clone()).map_err(ParkError::Hold)
                }),
        };
        let space = match space {
            Ok(space) => space,
            Err(error) => {
                self.operation.call(pid, libc::SYS_munmap, &[scratch, SCRATCH_BYTES], Stage::Call)?;
                return Err(error);
            }
        };
        space.lock().stop_push();
        Ok(Process {
            pid,
            space,
            is_new: before.is_none(),
            scratch,
            memory,
            pagemap,
            registered: Vec::new(),
            present: Vec::new(),
            saved: Saved::default(),
            stay: Vec::new(),
            working_set: WorkingSet::default(),
        })
    }

    /// What is to be stored, process by process.
    pub(super) fn take_saved(&mut self) -> Vec<Saved> {
        self.processes.iter_mut().map(|process| std::mem::take(&mut process.saved)).collect()
    }

    /// Lets the sandbox go on as it was.
    pub(super) fn abort(mut self) -> Result<(), OperatorError> {
        for process in &self.processes {
            if process.is_new {
                for range in &process.registered {
                    // What was unmapped meanwhile by nobody, since all stand still, cannot be: an error means that the
                    // process has ended.
                    let _ended = process.space.uffd.unregister(range);
                }
                self.pager.release(&process.space);
            }
            let unmap = [process.scratch, SCRATCH_BYTES];
            self.operation.call(process.pid, libc::SYS_munmap, &unmap, Stage::Call)?;
        }
        self.operation.let_go().map(drop)
    }

    /// Gives the memory up, freezes the sandbox and lets go of it. `stored`: for each process, what it is stored as from now on,
    /// if that is something else than before.
    ///
    /// # Errors
    /// The sandbox is then being ended: nobody could say what its memory is.
    pub(super) fn zap(mut self, stored: Vec<Option<Store>>) -> Result<Zapped, ParkError> {
        let zapped = self.try_zap(stored);
        if zapped.is_err() {
            self.cgroup.kill_now();
        }
        let stood = zapped.and_then(|()| Ok(self.operation.let_go()?));
        Ok(Zapped {
            stood: stood.inspect_err(|_error| self.cgroup.kill_now())?,
            resident_pages: self.processes.iter().map(|process| process.stay.len() as u64).sum(),
            spaces: self.processes.into_iter().map(|process| process.space).collect(),
            left_out_pages: self.left_out_pages,
        })
    }

    fn try_zap(&mut self, stored: Vec<Option<Store>>) -> Result<(), ParkError> {
        for (process, stored) in self.processes.iter_mut().zip(stored) {
            process.commit(stored);
            process.give_up(&mut self.operation)?;
        }
        for process in &self.processes {
            let unmap = [process.scratch, SCRATCH_BYTES];
            self.operation.call(process.pid, libc::SYS_munmap, &unmap, Stage::Call)?;
        }
        self.operation.put_back()?;
        if let Err(error) = self.cgroup.begin_freeze() {
            // It is parked all the same: who runs gets its pages.
            tracing::warn!(error = &error as &dyn std::error::Error, "a parked sandbox is not frozen");
        }
        Ok(())
    }
}

/// A sandbox without memory.
#[derive(Debug)]
pub(super) struct Zapped {
    pub(super) spaces: Vec<Arc<Space>>,
    /// For how long it stood still.
    pub(super) stood: Duration,
    /// Pages of mappings that were left alone.
    pub(super) left_out_pages: u64,
    /// Pages that stay because the next request will touch them.
    pub(super) resident_pages: u64,
}

/// Stops all processes of a group, also those that are started meanwhile.
fn hold_all(operation: &mut Operation, cgroup: &SandboxCgroup) -> Result<Vec<Pid>, ParkError> {
    let (mut held, mut gone) = (Vec::new(), Vec::new());
    for _round in 0..ROUNDS_MAX {
        let before = held.len();
        for pid in cgroup.pids()? {
            if held.contains(&pid) || gone.contains(&pid) {
                continue;
            }
            match operation.hold(pid) {
                Ok(()) => held.push(pid),
                // It has ended, and perhaps nobody has waited for it yet.
                Err(OperatorError::Inject { source: InjectError::Gone, .. }) => gone.push(pid),
                Err(error) => return Err(error.into()),
            }
        }
        if held.len() == before {
            return if held.is_empty() { Err(ParkError::Ended) } else { Ok(held) };
        }
    }
    Err(ParkError::Restless)
}

/// How many pages are stored and not there.
fn away(state: &State, there: &[Range<u64>]) -> u64 {
    state.store.table().places().filter(|(page, _)| !is_in(there, *page)).count() as u64
}

impl Process {
    fn failed(&self, source: io::Error) -> ParkError {
        ParkError::Look { pid: self.pid, source }
    }

    /// Registers everything that can be; how many pages cannot.
    fn register(&mut self) -> Result<u64, ParkError> {
        let maps = maps::read(self.pid).map_err(|error| self.failed(error))?;
        let locked = maps::locked(self.pid).map_err(|error| self.failed(error))?;
        if maps::has_pinned(self.pid).map_err(|error| self.failed(error))? {
            return Err(ParkError::Pinned { pid: self.pid });
        }
        let mut left_out = 0;
        for area in maps::areas(&maps).filter(maps::Area::is_anonymous) {
            let range = area.range();
            if locked.contains(&range) {
                left_out += (range.end - range.start) / PAGE;
                continue;
            }
            match self.space.uffd.register(&range, MISSING | PROTECT) {
                Ok(()) => match self.registered.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => self.registered.push(range),
                },
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    return Err(ParkError::Watched { pid: self.pid });
                }
                Err(error) => {
                    tracing::debug!(pid = %self.pid, ?range, %error, "stays resident");
                    left_out += (range.end - range.start) / PAGE;
                }
            }
        }
        self.saved.maps = maps;
        Ok(left_out)
    }

    /// Finds which pages are there, which of them stay, and which are to be stored.
    fn look(&mut self, resident_percent: u32) -> Result<(), ParkError> {
        let state = self.space.lock();
        let (mut numbers, mut zeros) = (Vec::new(), Vec::new());
        let (mut there, mut written) = (Vec::new(), Vec::new());
        for span in &self.registered {
            let mut any = false;
            let mut each = |range: Range<u64>, categories: u64| {
                any = true;
                if categories & uffd::ZERO_PAGE != 0 {
                    zeros.extend(range);
                    return;
                }
                there.push(range.clone());
                if categories & uffd::WRITTEN != 0 {
                    numbers.extend(range.clone());
                    written.push(range);
                } else {
                    numbers.extend(range.filter(|page| state.store.find(*page).is_none()));
                }
            };
            uffd::present(&self.pagemap, span.clone(), |range, categories| {
                let range = pages(&range);
                if categories & (uffd::SWAPPED | uffd::WRITTEN) != uffd::SWAPPED {
                    return each(range, categories);
                }
                // Those that are stored are only marked, or not written since and on a disk.
                for page in range.filter(|page| state.store.find(*page).is_none()) {
                    each(page..page + 1, categories);
                }
            })
            .map_err(|source| ParkError::Look { pid: self.pid, source })?;
            if any {
                self.present.push(span.clone());
            }
        }
        self.working_set = state.working_set.clone();
        // Before the first time everything was written.
        if !self.is_new {
            self.working_set.learn(state.missed.clone(), |page| is_in(&written, page));
        }
        let all = there.iter().map(|range| range.end - range.start).sum::<u64>() + away(&state, &there);
        let most = usize::try_from(all * u64::from(resident_percent.min(100)) / 100).unwrap_or(usize::MAX);
        let stay = self.working_set.stay(most, |page| is_in(&there, page)).to_vec();
        numbers.retain(|page| stay.binary_search(page).is_err());
        self.stay.clone_from(&stay);
        // It stands still: what it is stored as does not change until it is stored anew.
        let maps = std::mem::take(&mut self.saved.maps);
        self.saved = Saved { numbers, zeros, stay, maps, before: state.store.clone(), bytes: Vec::new() };
        Ok(())
    }

    /// Copies these pages out, some at a time: it may be wanted back meanwhile.
    fn copy(&mut self, cancelled: &CancellationToken) -> Result<(), ParkError> {
        self.saved.bytes = vec![0; self.saved.numbers.len() * PAGE_BYTES];
        let parts = self.saved.bytes.chunks_mut(COPIED_AT_ONCE * PAGE_BYTES);
        for (pages, out) in self.saved.numbers.chunks(COPIED_AT_ONCE).zip(parts) {
            if cancelled.is_cancelled() {
                return Err(ParkError::Cancelled);
            }
            read(self.pid, &self.memory, pages, out)
                .map_err(|source| ParkError::Look { pid: self.pid, source })?;
        }
        self.saved.leave_out_zeros();
        Ok(())
    }

    /// From now on the process's memory is what is stored.
    fn commit(&mut self, stored: Option<Store>) {
        let mut state = self.space.lock();
        if let Some(stored) = stored {
            state.store = stored;
        }
        state.missed.clear();
        state.working_set = std::mem::take(&mut self.working_set);
    }

    /// Zaps everything that is there. While nothing is registered nobody runs, so no event has to be waited for and
    /// nobody can see the zeros; when the process runs again everything is registered.
    fn give_up(&self, operation: &mut Operation) -> Result<(), ParkError> {
        let uffd = &self.space.uffd;
        let unregistered = self.registered.iter().try_for_each(|range| uffd.unregister(range));
        let zapped = unregistered.map_err(|error| self.failed(error)).and_then(|()| self.zap(operation));
        for range in &self.registered {
            if let Err(error) = uffd.register(range, MISSING | PROTECT) {
                tracing::warn!(pid = %self.pid, ?range, %error, "not registered again: written back");
                self.write_back(std::slice::from_ref(range))?;
            }
        }
        zapped?;
        self.mend()?;
        self.mark();
        Ok(())
    }

    /// Marks what is stored in the page table, so that it can be told whose a page is when the kernel's messages do not.
    fn mark(&self) {
        let state = self.space.lock();
        for range in joined(state.store.table().ranges()) {
            let range = range.start * PAGE..range.end * PAGE;
            if let Err(error) = self.space.uffd.mark(&range) {
                // Nothing depends on it, unless the messages come in a wrong order: then the sandbox is ended.
                tracing::debug!(pid = %self.pid, ?range, %error, "stored pages are not marked");
            }
        }
    }

    fn zap(&self, operation: &mut Operation) -> Result<(), ParkError> {
        for some in without(&self.present, &self.stay).chunks(VECTORS_MAX) {
            let vectors: Vec<u8> = some
                .iter()
                .flat_map(|range| [range.start, range.end - range.start])
                .flat_map(u64::to_ne_bytes)
                .collect();
            self.memory.write_all_at(&vectors, self.scratch).map_err(|error| self.failed(error))?;
            let arguments = [SELF, self.scratch, some.len() as u64, MADV_DONTNEED, 0];
            let done = operation.try_call(self.pid, libc::SYS_process_madvise, &arguments, Stage::Call)?;
            let bytes: u64 = some.iter().map(|range| range.end - range.start).sum();
            if u64::try_from(done) == Ok(bytes) {
                continue;
            }
            // An older kernel, or a range that will not: one by one. What stays is there, and as it is stored.
            for range in some {
                let arguments = [range.start, range.end - range.start, MADV_DONTNEED];
                operation.try_call(self.pid, libc::SYS_madvise, &arguments, Stage::Call)?;
            }
        }
        Ok(())
    }

    /// Pages that are there although they were zapped: what the kernel writes by itself on the way back to the program
    /// (cpu numbers, near the thread's own memory) came upon a page of zeros before it was registered again.
    fn mend(&self) -> Result<(), ParkError> {
        let mut there = Vec::new();
        for span in &self.present {
            uffd::present(&self.pagemap, span.clone(), |range, _| there.push(range))
                .map_err(|error| self.failed(error))?;
        }
        self.write_back(&there)
    }

    /// Writes stored pages to their places.
    fn write_back(&self, ranges: &[Range<u64>]) -> Result<(), ParkError> {
        let state = self.space.lock();
        let (mut codec, mut bytes) = (DeltaCodec::new(), Box::new([ZERO_PAGE]));
        for page in ranges.iter().flat_map(pages) {
            let Some((place, _)) = state.store.find(page) else { continue };
            let lost = |error| ParkError::Lost(io::Error::other(error));
            state.store.rebuild(&mut codec, place, &mut bytes[..]).map_err(lost)?;
            self.memory.write_all_at(bytes.as_flattened(), page * PAGE).map_err(ParkError::Lost)?;
        }
        Ok(())
    }
}
