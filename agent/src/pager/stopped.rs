//! A sandbox that stands still while its memory is taken: what is there, copied out, then zapped.
//!
//! Until [`Stopped::zap`] nothing of it has changed. From there on its memory is what the store says: should a mapping
//! not let itself be registered again, its pages are written back.

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use super::fault::Lost;
use super::handler::Pager;
use super::process::{Process, SCRATCH_BYTES};
use super::recipes::StorePagesError;
use super::saved::Saved;
use super::space::{Space, State, Unsettled};
use super::store::Store;
use super::take::Take;
use super::working_set::WorkingSet;
use crate::inject::{ForWhat, InjectError, Operation, OperatorError, Stage, make_userfaultfd};
use crate::sandbox::cgroup::{CgroupError, SandboxCgroup};
use crate::uffd::{PAGING, Uffd};

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
    /// Memory is stored of a process that is not there.
    #[error("there is no process {inside} in it")]
    Absent {
        /// Its number in the sandbox.
        inside: u32,
    },
    /// A page is stored where nothing can be missing.
    #[error("page {page:#x} of process {pid} cannot be served")]
    Unserved {
        /// The process.
        pid: Pid,
        /// Its number.
        page: u64,
    },
}

/// Rounds of looking for processes.
const ROUNDS_MAX: usize = 8;

/// How a sandbox is taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct How<'t> {
    /// Whom to end if a page is lost.
    pub(super) lost: &'t Arc<Lost>,
    /// It is wanted back.
    pub(super) cancelled: &'t CancellationToken,
    /// What of it.
    pub(super) take: Take,
    /// For the work on its pages.
    pub(super) threads: NonZeroUsize,
}

/// A sandbox that stands still. Dropped, it goes on as it was.
#[derive(Debug)]
pub(super) struct Stopped {
    operation: Operation,
    pager: Pager,
    cgroup: SandboxCgroup,
    /// All of its processes.
    pub(super) pids: Vec<Pid>,
    processes: Vec<Process>,
    left_out_pages: u64,
}

impl Stopped {
    /// Stops a sandbox and copies the pages that were written since it was last parked. `known`: its processes then.
    pub(super) fn take(
        pager: &Pager,
        cgroup: &SandboxCgroup,
        known: &[Arc<Space>],
        how: How<'_>,
    ) -> Result<Self, ParkError> {
        let mut stopped = Self::hold(pager, cgroup)?;
        known.iter().try_for_each(|space| space.wait_settled())?;
        if known.iter().flat_map(|space| pager.children(space)).any(|child| !child.uffd.is_orphaned()) {
            return Err(ParkError::Forked);
        }
        match stopped.pids.clone().into_iter().try_for_each(|pid| stopped.look_at(pid, known, how)) {
            Ok(()) => Ok(stopped),
            Err(error) => {
                if let Err(error) = stopped.abort() {
                    tracing::warn!(error = &error as &dyn std::error::Error, "leave a sandbox as it was");
                }
                Err(error)
            }
        }
    }

    /// Stops a sandbox.
    pub(super) fn hold(pager: &Pager, cgroup: &SandboxCgroup) -> Result<Self, ParkError> {
        let mut operation = pager.operators().begin()?;
        let pids = hold_all(&mut operation, cgroup)?;
        let (pager, cgroup) = (pager.clone(), cgroup.clone());
        Ok(Self { operation, pager, cgroup, pids, processes: Vec::new(), left_out_pages: 0 })
    }

    /// What is stored of a process is not there from the beginning.
    pub(super) fn begin(
        &mut self,
        pid: Pid,
        lost: &Arc<Lost>,
        (store, working_set): (Store, WorkingSet),
    ) -> Result<(), ParkError> {
        let mut process = self.process(pid, &[], lost)?;
        process.register(false)?;
        process.begin(store)?;
        process.space.lock().working_set = working_set;
        self.processes.push(process);
        Ok(())
    }

    /// Lets go of a sandbox whose memory is served from now on; it stands as it did before.
    pub(super) fn let_stand(mut self) -> Result<Vec<Arc<Space>>, ParkError> {
        self.unmap()?;
        self.operation.let_go()?;
        Ok(self.processes.into_iter().map(|process| process.space).collect())
    }

    /// Takes away what was ours in its processes.
    fn unmap(&mut self) -> Result<(), OperatorError> {
        for process in &self.processes {
            let unmap = [process.scratch, SCRATCH_BYTES];
            self.operation.call(process.pid, libc::SYS_munmap, &unmap, Stage::Call)?;
        }
        Ok(())
    }

    fn look_at(&mut self, pid: Pid, known: &[Arc<Space>], how: How<'_>) -> Result<(), ParkError> {
        let How { lost, cancelled, take, threads } = how;
        let process = self.process(pid, known, lost)?;
        self.processes.push(process);
        let Some(process) = self.processes.last_mut() else { return Ok(()) };
        // Of files nothing is taken of one that goes on: it would lose mappings' names for little.
        self.left_out_pages += process.register(matches!(take, Take::All { .. }))?;
        process.look(take)?;
        process.copy(threads, cancelled)
    }

    fn process(&mut self, pid: Pid, known: &[Arc<Space>], lost: &Arc<Lost>) -> Result<Process, ParkError> {
        let files = Process::open(pid)?;
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
                    self.pager.begin((uffd, pid), State::default(), lost.clone()).map_err(ParkError::Hold)
                }),
        };
        let space = match space {
            Ok(space) => space,
            Err(error) => {
                self.operation.call(pid, libc::SYS_munmap, &[scratch, SCRATCH_BYTES], Stage::Call)?;
                return Err(error);
            }
        };
        let counts = space.stop_push();
        tracing::debug!(%pid, ?counts, "stopped; counted since it was first parked");
        Ok(Process::new(pid, space, before.is_none(), files, scratch))
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

    /// Gives the memory up, freezes the sandbox unless it goes on, and lets go of it. `stored`: for each process, what it is stored as from now on,
    /// if that is something else than before.
    ///
    /// # Errors
    /// The sandbox is then being ended: nobody could say what its memory is.
    pub(super) fn zap(mut self, stored: Vec<Option<Store>>, take: Take) -> Result<Zapped, ParkError> {
        let zapped = self.try_zap(stored, take);
        if zapped.is_err() {
            self.cgroup.kill_now();
        }
        let stood = zapped.and_then(|()| Ok(self.operation.let_go()?));
        Ok(Zapped {
            stood: stood.inspect_err(|_error| self.cgroup.kill_now())?,
            resident_pages: self.processes.iter().map(|process| process.stay.len() as u64).sum(),
            taken_pages: self.processes.iter().map(|process| process.cold.pages.len() as u64).sum(),
            has_more: self.processes.iter().any(|process| process.cold.more),
            spaces: self.processes.into_iter().map(|process| process.space).collect(),
            left_out_pages: self.left_out_pages,
        })
    }

    fn try_zap(&mut self, stored: Vec<Option<Store>>, take: Take) -> Result<(), ParkError> {
        for (process, stored) in self.processes.iter_mut().zip(stored) {
            process.commit(stored);
            process.give_up(&mut self.operation)?;
            if let Take::Cold { .. } = take {
                process.watch_writes();
            }
        }
        self.unmap()?;
        self.operation.put_back()?;
        if matches!(take, Take::All { .. })
            && let Err(error) = self.cgroup.begin_freeze()
        {
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
    /// Pages that stay: because the next request will touch them, or because they are not cold.
    pub(super) resident_pages: u64,
    /// Cold pages that were taken, and whether there are more.
    pub(super) taken_pages: u64,
    pub(super) has_more: bool,
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
