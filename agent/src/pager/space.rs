//! The memory of one process: its userfaultfd, what its missing pages are made from, and who waits for them.
//!
//! One lock is held from the reading of a message to the end of what it means, so that nobody acts on a table that the
//! kernel has already told is out of date.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use medes_dedup::delta::DeltaCodec;
use medes_dedup::page::{PAGE_BYTES, Page, ZERO_PAGE};
use nix::unistd::Pid;

use super::changes::{self, Change, Unclear};
use super::counts::Counts;
use super::deadline::{DEADLINE, UnderWay};
use super::fault::{FaultError, Lost};
use super::learnt::Pupil;
use super::push::Head;
use super::put::Put;
use super::ranges::{is_in, pages};
use super::store::Store;
use super::working_set::{Hot, WorkingSet};
use crate::maps::FilePart;
use crate::uffd::{self, How, Message, Uffd};

/// Pages copied at once where nobody waits.
pub(super) const BATCH: usize = 32;
/// Pages brought with one that is missed while it is not known which ones will be.
const AROUND: usize = 8;
/// Most new pages of zeros given at once to who takes one after the other.
const ZEROS_MAX: usize = 32;
/// Pages that were missed and are remembered.
const MISSED_MAX: usize = 1 << 17;
/// Changes of mappings told of while there was always another one under way.
const CHANGES_MAX: usize = 1 << 12;

/// How often who waits for what was told to be done looks whether it is.
const SETTLE_LOOK: Duration = Duration::from_micros(200);

/// The mappings of a process that stands still are still said to change.
#[derive(Debug, thiserror::Error)]
#[error("its mappings do not come to rest")]
pub struct Unsettled;

/// What a thread that serves faults works with.
pub(super) struct Hands {
    pub(super) codec: DeltaCodec,
    pub(super) pages: Box<[Page; BATCH]>,
    zeros: Box<[Page; ZEROS_MAX]>,
    /// The page it is at.
    pub(super) under_way: Arc<UnderWay>,
}

impl Hands {
    pub(super) fn new() -> Self {
        let pages = Box::new([ZERO_PAGE; BATCH]);
        let zeros = Box::new([ZERO_PAGE; ZEROS_MAX]);
        Self { codec: DeltaCodec::new(), pages, zeros, under_way: Arc::default() }
    }
}

/// A fault that cannot be served at the moment.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    page: u64,
    write: bool,
    since: Instant,
}

/// What changes under the lock.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What its pages are made from.
    store: Store,
    /// What it will touch.
    pub(super) working_set: WorkingSet,
    /// What it has missed since it was last parked.
    pub(super) missed: Vec<Hot>,
    /// How many of these a look has seen.
    missed_seen: usize,
    /// Pages that were seen to be written, and are marked as if they had not been: what is stored of them is old. Perhaps some more.
    pub(super) rewritten: BTreeSet<u64>,
    /// Pages that were stored and given up: they may be marked as if they still were.
    pub(super) given_up: BTreeSet<u64>,
    /// What is being given back, last page first.
    pub(super) push: Vec<Hot>,
    /// Held until so many of these are left, because somebody waits for the others.
    pub(super) head: Option<Head>,
    pub(super) behind: usize,
    /// Whether nobody runs while that is held.
    pub(super) stands: bool,
    /// Goes on whenever everything is stored anew, or the giving back begins or ends: what somebody has taken to give it back
    /// before is not to be given back any more.
    pub(super) round: u64,
    waiting: Vec<Waiting>,
    /// What was told and is not in the store yet: something else may have happened before it.
    pub(super) changes: Vec<Change>,
    /// Whether everything that was stored was marked in the page table.
    pub(super) is_marked: bool,
    /// What its memory without a file stands for where it had changed pages of files; `None`: that was never looked at.
    pub(super) files: Option<Vec<FilePart>>,
    /// Whether it shows which pages were written since some were last taken of it while it goes on.
    pub(super) watches_writes: bool,
    /// Where the next are looked for.
    pub(super) trimmed_to: u64,
    /// How far everything was brought back; 0: nobody wanted that.
    pub(super) filled_to: u64,
    /// To whom it hands on what it knows when it ends.
    pub(super) pupil: Option<Pupil>,
    /// The page behind the last one of zeros it was given, and how many it was given.
    zeros: (u64, usize),
    /// What was done.
    pub(super) counts: Counts,
}

/// The memory of one process.
#[derive(Debug)]
pub(super) struct Space {
    /// Number of it, for the threads that serve and for the keeper.
    pub(super) id: u64,
    pub(super) uffd: Uffd,
    /// Whose. Not known of a child that was forked while pages were missing.
    pub(super) pid: Option<Pid>,
    /// Its page map, if that is known.
    pagemap: Option<File>,
    /// Whom to end if a page cannot be had.
    pub(super) lost: Arc<Lost>,
    /// Read by those who put pages in their place without the lock, while the process does not run; taken before it.
    pub(super) gate: RwLock<()>,
    state: Mutex<State>,
}

impl Drop for Space {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(pupil) = state.pupil.take() {
            pupil.leave(state);
        }
    }
}

impl Space {
    /// `of`: its process and page map.
    pub(super) fn new(
        id: u64,
        (uffd, state): (Uffd, State),
        of: Option<(Pid, File)>,
        lost: Arc<Lost>,
    ) -> Self {
        let (pid, pagemap) = of.unzip();
        Self { id, uffd, pid, pagemap, lost, gate: RwLock::default(), state: Mutex::new(state) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what the kernel has to tell and does it. Children that were forked are given to `born`.
    pub(super) fn serve(&self, hands: &mut Hands, born: &mut Vec<(Uffd, State)>) -> Result<(), FaultError> {
        let mut state = self.lock();
        loop {
            let messages = self.uffd.read().map_err(FaultError::Read)?;
            let is_all = messages.is_empty();
            for message in messages {
                if !matches!(message, Message::Remap { .. }) || self.lost.hears_of_moves() {
                    state.hear(message)?;
                }
            }
            if let Some(late) = state.waiting.iter().find(|waiting| waiting.since.elapsed() > DEADLINE) {
                return Err(FaultError::Late { page: late.page });
            }
            if self.settle(&mut state, born)? {
                for waiting in std::mem::take(&mut state.waiting) {
                    self.fault(&mut state, hands, waiting)?;
                }
            }
            if is_all {
                return Ok(());
            }
        }
    }

    /// Does what was told, once the kernel has no more changes under way; whether that is so.
    fn settle(&self, state: &mut State, born: &mut Vec<(Uffd, State)>) -> Result<bool, FaultError> {
        if state.changes.is_empty() {
            return Ok(true);
        }
        if self.uffd.is_changing() {
            return if state.changes.len() < CHANGES_MAX { Ok(false) } else { Err(FaultError::Unclear) };
        }
        let places = changes::in_question(&state.changes);
        let (mut told, mut marks) = (Vec::new(), Vec::new());
        if places.is_empty() {
            told = std::mem::take(&mut state.changes);
        } else {
            if !state.is_marked {
                return Err(FaultError::Unclear);
            }
            marks = self.marks(&places)?;
            // Nothing has changed while it was looked at, or it is looked again.
            if self.uffd.is_changing() {
                return Ok(false);
            }
            let order = changes::order(&state.changes, state.store.table(), &marks)
                .map_err(|Unclear| FaultError::Unclear)?;
            let mut heard: Vec<_> = std::mem::take(&mut state.changes).into_iter().map(Some).collect();
            told.extend(order.into_iter().filter_map(|at| heard.get_mut(at)?.take()));
        }
        for change in told {
            match change {
                Change::Moved { from, to } => state.moved(&from, to),
                Change::Removed(range) => state.give_up(&pages(&range)),
                Change::Unmapped(range) => drop(state.forget(&pages(&range))),
                Change::Forked(uffd) => born.push((uffd, state.child())),
            }
        }
        places.iter().for_each(|place| state.believe(&pages(place), &marks));
        Ok(true)
    }

    /// Pages of some places that are stored, as the page table has it.
    pub(super) fn marks(&self, places: &[Range<u64>]) -> Result<Vec<Range<u64>>, FaultError> {
        let pagemap = self.pagemap.as_ref().ok_or(FaultError::Unclear)?;
        let mut marks = Vec::new();
        for place in places {
            uffd::marked(pagemap, place.clone(), |range| marks.push(pages(&range)))
                .map_err(FaultError::Read)?;
        }
        Ok(marks)
    }

    /// How many of these pages, of which none is stored, are zeros: those in front of the first that is marked as if it were. `madvise`
    /// leaves the mark for a while, or for ever (MADV_FREE); if that was not it, nobody knows what the page is.
    pub(super) fn unmarked(&self, state: &State, first: u64, count: usize) -> Result<usize, FaultError> {
        if !state.is_marked || self.pagemap.is_none() {
            return Ok(count);
        }
        let address = |page: u64| page * PAGE_BYTES as u64;
        let place = address(first)..address(first + count as u64);
        let marks = self.marks(std::slice::from_ref(&place))?;
        let unclear = marks.into_iter().flatten().find(|page| !state.given_up.contains(page));
        Ok(unclear.and_then(|page| usize::try_from(page - first).ok()).unwrap_or(count))
    }

    /// Whether it can be asked what is there.
    pub(super) const fn has_pagemap(&self) -> bool {
        self.pagemap.is_some()
    }

    /// Waits until everything that was told is done. For who has stopped the process, so that nothing more is told.
    pub(super) fn wait_settled(&self) -> Result<(), Unsettled> {
        let since = Instant::now();
        while !self.lock().changes.is_empty() {
            if since.elapsed() > DEADLINE {
                return Err(Unsettled);
            }
            std::thread::sleep(SETTLE_LOOK);
        }
        Ok(())
    }

    /// Whether something waits for the process to be done with its mappings.
    pub(super) fn is_waiting(&self) -> bool {
        let state = self.lock();
        !state.waiting.is_empty() || !state.changes.is_empty()
    }

    fn fault(&self, state: &mut State, hands: &mut Hands, waiting: Waiting) -> Result<(), FaultError> {
        let Waiting { page, write, .. } = waiting;
        let _under_way = hands.under_way.begin(page, &self.lost);
        let copied = match state.store.find(page) {
            None => {
                let wanted = state.zeros_wanted(page);
                let count = self.unmarked(state, page, wanted)?;
                if count == 0 {
                    // Something may have been moved there just now, which will be heard.
                    if !self.uffd.is_changing() {
                        return Err(FaultError::Unclear);
                    }
                    state.waiting.push(waiting);
                    return Ok(());
                }
                state.counts.zeros += 1;
                let zeros = &hands.zeros[..count];
                if write {
                    self.put(page, zeros, How { protected: false, wake: true })
                } else {
                    self.put_zeros(page, zeros, true)
                }
            }
            Some((place, run)) => {
                state.counts.missed += 1;
                state.counts.unforeseen += u64::from(!state.working_set.contains(page));
                self.lost.pass()?;
                let count = state.around().min(usize::try_from(run).unwrap_or(1));
                let out = &mut hands.pages[..count];
                state.store.rebuild(&mut hands.codec, place, out).map_err(FaultError::Rebuild)?;
                self.put(page, out, How { protected: !write || count > 1, wake: true })
            }
        };
        match copied? {
            Put::Busy => state.waiting.push(waiting),
            Put::Done { .. } if state.missed.len() < MISSED_MAX => {
                let rank = state.rank_now();
                state.missed.push(Hot { page, written: write, rank });
            }
            Put::Done { .. } | Put::Gone => {}
        }
        Ok(())
    }

    /// Gives back everything. Nothing of the process may run meanwhile.
    pub(super) fn fill(&self, hands: &mut Hands) -> Result<(), FaultError> {
        self.stop_push();
        let state = self.lock();
        let ranges: Vec<Range<u64>> = state.store.table().ranges().collect();
        for range in ranges {
            let mut page = range.start;
            while page < range.end {
                let Some((place, run)) = state.store.find(page) else { break };
                let count = usize::try_from(run).unwrap_or(BATCH).min(BATCH);
                let out = &mut hands.pages[..count];
                state.store.rebuild(&mut hands.codec, place, out).map_err(FaultError::Rebuild)?;
                match self.put(page, out, How { protected: true, wake: true })? {
                    Put::Busy => return Err(FaultError::Late { page }),
                    Put::Gone => return Ok(()),
                    Put::Done { pages } => page += pages as u64,
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// What its pages are made from.
    pub(super) const fn store(&self) -> &Store {
        &self.store
    }

    /// Numbers of pages of a child that has just been forked: the same.
    fn child(&self) -> Self {
        let (store, working_set) = (self.store.clone(), self.working_set.clone());
        Self { store, working_set, rewritten: self.rewritten.clone(), ..Self::default() }
    }

    /// Stores everything as something else from now on.
    pub(super) fn replace(&mut self, store: Store) {
        self.round += 1;
        self.store = store;
        self.rewritten.clear();
        self.given_up.clear();
    }

    /// Stores the same pages as something else, unless any of them has changed since `round`, or is being given back: what is under way
    /// would be in vain. Whether it does.
    pub(super) fn store_as(&mut self, store: Store, (round, before): (u64, &Store)) -> bool {
        let is_same = self.round == round && self.store.is(before);
        if is_same {
            self.store = store;
        }
        is_same
    }

    /// Whether what is stored of a page is what is there, as far as the mark in its page table can be believed.
    pub(super) fn is_as_stored(&self, page: u64) -> bool {
        self.store.find(page).is_some() && !self.rewritten.contains(&page)
    }

    /// Pages that were missed since the last look.
    pub(super) fn missed_since_look(&mut self) -> Vec<u64> {
        let new = self.missed.get(self.missed_seen..).unwrap_or_default();
        let mut new: Vec<u64> = new.iter().map(|hot| hot.page).collect();
        self.missed_seen = self.missed.len();
        new.sort_unstable();
        new.dedup();
        new
    }

    /// What it misses from now on is learnt for the next time.
    pub(super) fn begin_missing(&mut self) {
        self.missed.clear();
        self.missed_seen = 0;
    }

    /// Of these pages nothing is stored any more: the ranges of those of which something was.
    pub(super) fn forget(&mut self, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
        self.working_set.forget(pages);
        self.push.retain(|hot| !pages.contains(&hot.page));
        self.store.forget(pages)
    }

    /// Contents of these pages are zeros from now on, whatever is marked.
    fn give_up(&mut self, pages: &Range<u64>) {
        let stored = self.forget(pages);
        self.given_up.extend(stored.flatten());
    }

    /// Takes note of what the kernel tells.
    fn hear(&mut self, message: Message) -> Result<(), FaultError> {
        match message {
            Message::Fault { address, write } => {
                let page = address / PAGE_BYTES as u64;
                self.waiting.push(Waiting { page, write, since: Instant::now() });
            }
            Message::Fork(uffd) => self.changes.push(Change::Forked(uffd)),
            Message::Remap { from, to, bytes } => {
                self.changes.push(Change::Moved { from: from..from + bytes, to });
            }
            Message::Removed(range) => self.changes.push(Change::Removed(range)),
            Message::Unmapped(range) => self.changes.push(Change::Unmapped(range)),
            Message::Unknown(event) => return Err(FaultError::Unknown { event }),
        }
        Ok(())
    }

    fn moved(&mut self, from: &Range<u64>, to: u64) {
        let old = pages(from);
        let to = to / PAGE_BYTES as u64;
        self.store.moved(old.start, to, old.end - old.start);
        // The marks have gone with the pages. Where they were they stay: too many does no harm.
        for set in [&mut self.rewritten, &mut self.given_up] {
            let moved: Vec<u64> = set.range(old.clone()).map(|page| page - old.start + to).collect();
            set.extend(moved);
        }
        self.working_set.forget(&old);
        self.push.retain(|hot| !old.contains(&hot.page));
    }

    /// Of these pages none is stored that is not marked, whatever was told.
    fn believe(&mut self, place: &Range<u64>, marks: &[Range<u64>]) {
        for page in place.clone().filter(|page| !is_in(marks, *page)) {
            drop(self.forget(&(page..page + 1)));
        }
    }

    /// How many pages to bring for one that is missed.
    const fn around(&self) -> usize {
        if self.working_set.is_learnt() { 1 } else { AROUND }
    }

    /// How many pages of zeros to give: more and more to who takes one after the other.
    fn zeros_wanted(&mut self, page: u64) -> usize {
        let (next, last) = self.zeros;
        let wanted = if page == next { (2 * last).clamp(1, ZEROS_MAX) } else { 1 };
        let free = (page..).take(wanted).take_while(|page| self.store.find(*page).is_none()).count();
        self.zeros = (page + free as u64, free);
        free
    }
}
