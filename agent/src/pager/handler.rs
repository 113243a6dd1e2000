//! The threads that serve: faults first, then some pages of what is being given back, then faults again.
//!
//! A space is served by one thread until its process is gone or it was released; nothing else ends the service, so that no
//! missing page can turn into zeros because somebody forgot about it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::deadline;
use super::fault::Lost;
use super::fill::Next;
use super::push::{Head, Turn};
use super::space::{Hands, Space, State};
use crate::inject::Operators;
use crate::reaper::Reaper;
use crate::uffd::Uffd;

/// Who holds a second descriptor of each userfaultfd, so that pages stay missing, and their readers waiting, when this
/// process ends.
pub trait Guard: Send + Sync + std::fmt::Debug {
    /// Holds a descriptor under a number.
    fn hold(&self, number: u64, uffd: OwnedFd) -> io::Result<()>;
    /// Lets go of it.
    fn let_go(&self, number: u64);
}

/// How often it is looked which processes are gone.
const SWEEP: Duration = Duration::from_millis(SWEEP_MS as u64);
const SWEEP_MS: u8 = 250;
/// Messages of so many spaces are fetched at once.
const EVENTS: usize = 16;
/// How long to let processes go on with what they do to their mappings: they may need this processor.
const PAUSE: Duration = Duration::from_micros(20);
/// From so many pages on all threads give back, not only the one that serves the process.
const SHARED_FROM: usize = 128;
/// While the program runs, only where there are more threads than this: on two processors they would take the program's own.
const ALONE_MAX: usize = 2;
/// Number of the event that only wakes a thread.
const WAKE: u64 = u64::MAX;

/// Serves the missing pages of all sandboxes of a node. Cheap to clone. Its threads end when the last clone is gone and no
/// space is left.
#[derive(Debug, Clone)]
pub struct Pager {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    servers: Vec<Arc<Server>>,
    next: AtomicU64,
    guard: Arc<dyn Guard>,
    operators: Operators,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for server in &self.servers {
            server.tell(|orders| orders.closing = true);
        }
    }
}

/// One thread's mailbox.
#[derive(Debug)]
struct Server {
    epoll: Epoll,
    wake: EventFd,
    orders: Mutex<Orders>,
    spaces: Mutex<BTreeMap<u64, Arc<Space>>>,
}

/// What a thread is told.
#[derive(Debug, Default)]
struct Orders {
    push: Vec<u64>,
    fill: Vec<u64>,
    help: Vec<Arc<Space>>,
    release: Vec<u64>,
    closing: bool,
}

impl Server {
    fn lock(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spaces(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Space>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, order: impl FnOnce(&mut Orders)) {
        order(&mut self.lock());
        // Fails only when the counter is full, and then the thread is about to wake anyway.
        let _counted = self.wake.write(1);
    }
}

impl Pager {
    /// Starts `threads` threads that serve. `program` is the agent's own; it is also what stops processes.
    ///
    /// # Errors
    /// When the system has no more descriptors or threads.
    pub fn start(
        threads: usize,
        guard: Arc<dyn Guard>,
        (reaper, program): (Reaper, PathBuf),
    ) -> io::Result<Self> {
        let operators = Operators::new(reaper, program);
        let (mut servers, mut under_way) = (Vec::with_capacity(threads.max(1)), Vec::new());
        for number in 0..threads.max(1) {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
            let server = Arc::new(Server { epoll, wake, orders: Mutex::default(), spaces: Mutex::default() });
            let service = Service::new(server.clone(), guard.clone(), threads <= ALONE_MAX);
            under_way.push(Arc::downgrade(&service.hands.under_way));
            thread::Builder::new().name(format!("pager-{number}")).spawn(move || service.run())?;
            servers.push(server);
        }
        deadline::watch(under_way)?;
        Ok(Self { shared: Arc::new(Shared { servers, next: AtomicU64::new(0), guard, operators }) })
    }

    /// Begins to serve a process, of which this is known. Its userfaultfd is held by the guard from now on.
    pub(super) fn begin(
        &self,
        (uffd, pid): (Uffd, Pid),
        state: State,
        lost: Arc<Lost>,
    ) -> io::Result<Arc<Space>> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed) << FORK_BITS;
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        self.shared.guard.hold(number, uffd.try_clone()?)?;
        let space = Arc::new(Space::new(number, (uffd, state), Some((pid, pagemap)), lost));
        let server = self.server(number);
        server.spaces().insert(number, space.clone());
        if let Err(errno) = server.epoll.add(&space.uffd, EpollEvent::new(EpollFlags::EPOLLIN, number)) {
            server.spaces().remove(&number);
            self.shared.guard.let_go(number);
            return Err(errno.into());
        }
        // It may sleep as if there were nobody.
        server.tell(|_nothing| {});
        Ok(space)
    }

    /// Gives the working set of a process back. `head`: to be let go of when it may run. `stands`: it does not before.
    pub(super) fn push(&self, space: &Arc<Space>, head: Head, stands: bool) {
        let pages = space.begin_push(head, stands);
        let server = self.server(space.id);
        server.tell(|orders| orders.push.push(space.id));
        if pages >= SHARED_FROM {
            let others = self.shared.servers.iter().filter(|other| !Arc::ptr_eq(other, server));
            others.for_each(|other| other.tell(|orders| orders.help.push(space.clone())));
        }
    }

    /// Brings everything of a process back, behind everything else that is to be done.
    pub(super) fn fill(&self, space: &Space) {
        space.begin_fill();
        self.server(space.id).tell(|orders| orders.fill.push(space.id));
    }

    /// Ends the service: nothing is missing any more.
    pub(super) fn release(&self, space: &Space) {
        self.server(space.id).tell(|orders| orders.release.push(space.id));
    }

    /// Children that were forked while pages of this process were missing, or of its children.
    pub(super) fn children(&self, space: &Space) -> Vec<Arc<Space>> {
        let family = space.id..(space.id >> FORK_BITS << FORK_BITS) + FAMILY;
        let spaces = self.server(space.id).spaces();
        spaces.range(family).map(|(_, child)| child.clone()).filter(|child| child.pid.is_none()).collect()
    }

    /// Who stops processes.
    pub(super) fn operators(&self) -> &Operators {
        &self.shared.operators
    }

    fn server(&self, number: u64) -> &Arc<Server> {
        let at = usize::try_from(number >> FORK_BITS).unwrap_or(0) % self.shared.servers.len();
        &self.shared.servers[at]
    }
}

/// The children of a process are served by the same thread, and numbered behind it.
const FORK_BITS: u32 = 24;
const FAMILY: u64 = 1 << FORK_BITS;

/// One thread's work.
struct Service {
    server: Arc<Server>,
    guard: Arc<dyn Guard>,
    /// Those that have pages to be given back, or a fault that could not be served.
    busy: Vec<u64>,
    /// Those of which everything is to be brought back, while nobody is busy.
    filling: Vec<u64>,
    /// Those that another thread serves, and that have many pages to be given back.
    helped: Vec<Arc<Space>>,
    /// Of these only what is given back before they run.
    alone: bool,
    hands: Hands,
    swept: Instant,
    /// No more spaces are to come.
    closing: bool,
}

impl Service {
    fn new(server: Arc<Server>, guard: Arc<dyn Guard>, alone: bool) -> Self {
        let (busy, filling, helped, hands) = (Vec::new(), Vec::new(), Vec::new(), Hands::new());
        Self { server, guard, busy, filling, helped, alone, hands, swept: Instant::now(), closing: false }
    }

    fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let is_idle = self.busy.is_empty() && self.helped.is_empty() && self.filling.is_empty();
            let patience = match (is_idle, self.server.spaces().is_empty() && !self.closing) {
                (false, _) => EpollTimeout::ZERO,
                (true, false) => EpollTimeout::from(SWEEP_MS),
                (true, true) => EpollTimeout::NONE,
            };
            let found = match self.server.epoll.wait(&mut events, patience) {
                Ok(found) => found,
                Err(Errno::EINTR) => 0,
                Err(errno) => {
                    // Without it nobody can be served: better ended than stuck for ever.
                    tracing::error!(%errno, "the pager cannot wait for faults");
                    self.end_all(errno);
                    return;
                }
            };
            for event in &events[..found] {
                match event.data() {
                    WAKE => drop(self.server.wake.read()),
                    number => self.serve(number),
                }
            }
            self.take_orders();
            if self.closing && self.server.spaces().is_empty() {
                return;
            }
            self.work_on();
            if self.swept.elapsed() >= SWEEP {
                self.swept = Instant::now();
                self.sweep();
            }
        }
    }

    fn take_orders(&mut self) {
        let Orders { push, fill, help, release, closing } = std::mem::take(&mut *self.server.lock());
        self.busy.extend(push);
        self.filling.extend(fill);
        self.helped.extend(help);
        release.into_iter().for_each(|number| self.forget(number));
        self.closing |= closing;
    }

    fn space(&self, number: u64) -> Option<Arc<Space>> {
        self.server.spaces().get(&number).cloned()
    }

    fn serve(&mut self, number: u64) {
        let Some(space) = self.space(number) else { return };
        let mut born = Vec::new();
        if let Err(error) = space.serve(&mut self.hands, &mut born) {
            space.lost.end(error);
            // It is ended. Until its memory is gone nobody needs to hear of it any more.
            let _was_there = self.server.epoll.delete(&space.uffd);
        } else if space.is_waiting() {
            self.busy.push(number);
        }
        for (uffd, state) in born {
            self.adopt(&space, uffd, state);
        }
    }

    /// A child has been forked: it has the same pages.
    fn adopt(&mut self, parent: &Space, uffd: Uffd, state: State) {
        let family = parent.id >> FORK_BITS << FORK_BITS;
        let last = self.server.spaces().range(family..family + FAMILY).next_back().map(|(last, _)| *last);
        let number = last.unwrap_or(family).saturating_add(1);
        let held = uffd.try_clone().and_then(|copy| self.guard.hold(number, copy));
        let space = Arc::new(Space::new(number, (uffd, state), None, parent.lost.clone()));
        let added = self.server.epoll.add(&space.uffd, EpollEvent::new(EpollFlags::EPOLLIN, number));
        if let Err(error) = held.and(added.map_err(io::Error::from)) {
            space.lost.end(super::fault::FaultError::Read(error));
        }
        self.server.spaces().insert(number, space);
    }

    /// One turn for everybody who has something to get; but of those that do not run before they have it, only for who came first. If all of them
    /// came back at the same pace, all would be there as late as the last one.
    fn work_on(&mut self) {
        let mut seen = HashSet::new();
        self.busy.retain(|number| seen.insert(*number));
        let (mut waiting, mut is_first) = (Vec::new(), true);
        for number in std::mem::take(&mut self.busy) {
            let Some(space) = self.space(number) else { continue };
            let has_turn = !space.is_before() || std::mem::take(&mut is_first);
            if !has_turn || space.push_some(&mut self.hands) != Turn::Over {
                self.busy.push(number);
            }
            if space.is_waiting() {
                waiting.push(number);
            }
        }
        let (hands, alone, mut is_first) = (&mut self.hands, self.alone, true);
        self.helped.retain(|space| {
            let has_turn = !space.is_before() || std::mem::take(&mut is_first);
            !has_turn || (space.push_some(hands) == Turn::More && (!alone || space.is_before()))
        });
        if !waiting.is_empty() {
            thread::sleep(PAUSE);
            waiting.into_iter().for_each(|number| self.serve(number));
        }
        if self.busy.is_empty() && self.helped.is_empty() {
            self.fill_on();
        }
    }

    /// One window of one of those of which everything is to be brought back.
    fn fill_on(&mut self) {
        let Some(number) = self.filling.last().copied() else { return };
        let window = self.space(number).map(|space| (space.fill_window(), space));
        match window {
            Some((Ok(Next::Begun), _)) => self.busy.push(number),
            Some((Ok(Next::Waits), _)) => {
                self.filling.rotate_right(1);
                thread::sleep(PAUSE);
            }
            Some((Err(error), space)) => {
                space.lost.end(error);
                self.filling.pop();
            }
            Some((Ok(Next::Over), _)) | None => drop(self.filling.pop()),
        }
    }

    /// Lets go of processes that are gone.
    fn sweep(&mut self) {
        let gone = |(number, space): (&u64, &Arc<Space>)| space.uffd.is_orphaned().then_some(*number);
        let gone: Vec<u64> = self.server.spaces().iter().filter_map(gone).collect();
        gone.into_iter().for_each(|number| self.forget(number));
    }

    fn forget(&mut self, number: u64) {
        let space = self.server.spaces().remove(&number);
        if let Some(space) = space {
            // It may be gone from there already.
            let _was_there = self.server.epoll.delete(&space.uffd);
            self.guard.let_go(number);
        }
    }

    fn end_all(&mut self, errno: Errno) {
        for space in self.server.spaces().values() {
            space.lost.end(super::fault::FaultError::Read(errno.into()));
        }
    }
}
