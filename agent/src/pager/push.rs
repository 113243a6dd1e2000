//! Giving the working set of a process back, some pages at a time, by several threads if it is large.
//!
//! Most of it comes back before the process runs ([`Head`]): a page that is missed costs several times one that is given back, and who
//! is given back to in the order of its needs would miss most of them. What is behind that comes in the order in which it is needed, while it runs.
//!
//! The lock is not held while pages are rebuilt, so that who misses one is served meanwhile. What was rebuilt is put in its place
//! only if that is still what is stored there: programs unmap and move memory all the time, mostly other memory.

use std::sync::{Arc, PoisonError};

use medes_dedup::page::ZERO_PAGE;
use tokio::sync::oneshot;

use super::counts::Counts;
use super::fault::FaultError;
use super::put::Put;
use super::space::{BATCH, Hands, Space, State};
use super::store::Contents;
use super::working_set::Hot;
use crate::uffd::How;

/// Pages given back at once: so few that who misses one meanwhile is soon served.
const PUSHED: usize = 16;
/// The same while nobody runs who could miss one.
const PUSHED_BEFORE: usize = BATCH;
/// Most pages of a process that are given back before it runs: some ten milliseconds. It will not need all of a larger working set at once.
const HEAD_MAX: usize = 8192;

/// Whoever waits for the first part of working sets waits until nobody has this any more: no such page is left, or under way.
pub(super) type Head = Arc<oneshot::Sender<()>>;

/// What a turn of giving back came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There are more pages.
    More,
    /// There are more, once what the process does to its mappings is clear.
    Waits,
    /// All are given back, or taken by somebody else to be.
    Over,
}

/// Some pages on their way back.
struct Batch {
    /// In the order in which they are given back.
    runs: Vec<Run>,
    /// What those that are stored are made from.
    contents: Contents,
    /// Somebody waits for them.
    head: Option<Head>,
    /// Nobody runs before this is let go of.
    stands: bool,
    /// [`State::round`] when they were taken: it has the same contents as long as that is the same.
    round: u64,
}

/// Neighbours, in order, that are neighbours in what they are made from, too.
struct Run {
    pages: Vec<Hot>,
    /// Where the first one is in that; `None`: these are zeros.
    place: Option<u32>,
}

impl Run {
    fn first(&self) -> u64 {
        self.pages.first().map_or(0, |first| first.page)
    }
}

impl Space {
    /// Begins to give the working set back; how many pages it has. `head`: to be let go of when the process may run. `stands`: it does not run before.
    pub(super) fn begin_push(&self, head: Head, stands: bool) -> usize {
        let mut state = self.lock();
        state.stands = stands;
        let mut push = state.working_set.begin();
        let before = push.len().min(HEAD_MAX);
        push[..before].sort_unstable_by_key(|hot| hot.page);
        push.reverse();
        state.behind = push.len() - before;
        state.head = (before > 0).then_some(head);
        state.push = push;
        state.round += 1;
        state.push.len()
    }

    /// Whether somebody waits for what is given back, and nobody runs before it is there.
    pub(super) fn is_before(&self) -> bool {
        self.lock().is_before()
    }

    /// The process is to run although not all that it was to wait for is there. The rest is given back while it does, but for pages that are on their way.
    pub(super) fn run_on(&self) {
        let _nobody = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.round += 1;
        state.head = None;
    }

    /// Ends the giving back, and returns when no page is on its way any more. What was done so far.
    pub(super) fn stop_push(&self) -> Counts {
        let _nobody = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.lock().stop_push()
    }

    /// Gives back some pages of the working set; ends the sandbox if one cannot be had. Several threads may do so: the lock is not held while
    /// pages are rebuilt.
    pub(super) fn push_some(&self, hands: &mut Hands) -> Turn {
        let taken = {
            let mut state = self.lock();
            if !state.changes.is_empty() {
                return Turn::Waits;
            }
            state.take_some()
        };
        let Some(mut batch) = taken else { return Turn::Over };
        // Whoever waits for these pages waits until they are there, or nobody runs any more.
        let _until_done = batch.head.take();
        self.give_back(batch, hands).unwrap_or_else(|error| {
            self.lost.end(error);
            self.lock().stop_push();
            Turn::Over
        })
    }

    fn give_back(&self, batch: Batch, hands: &mut Hands) -> Result<Turn, FaultError> {
        let Batch { mut runs, contents, round, stands, .. } = batch;
        let _under_way = hands.under_way.begin(runs.first().map_or(0, Run::first), &self.lost);
        self.lost.pass()?;
        let mut rest = &mut hands.pages[..];
        for run in &runs {
            let out = rest.split_off_mut(..run.pages.len()).unwrap_or_default();
            match run.place {
                Some(place) => {
                    contents.rebuild(&mut hands.codec, place, out).map_err(FaultError::Rebuild)?;
                }
                None => out.fill(ZERO_PAGE),
            }
        }
        // What does not run changes nothing of its memory, and who would change it waits until the gate is free: so other threads need not
        // wait for this one.
        let gate = stands.then(|| self.gate.read().unwrap_or_else(PoisonError::into_inner));
        let mut state = self.lock();
        if state.round != round {
            return Ok(state.turn());
        }
        if !state.changes.is_empty() {
            state.take_back(runs);
            return Ok(Turn::Waits);
        }
        let mut bytes = &hands.pages[..];
        let mut wanted = Vec::with_capacity(runs.len());
        for run in runs.drain(..) {
            let of_run = bytes.split_off(..run.pages.len()).unwrap_or_default();
            // What of it is still missing otherwise will be missed.
            if self.is_wanted(&state, &run)? {
                wanted.push((run, of_run));
            }
        }
        let held = gate.is_none().then_some(state);
        let (mut done, mut is_gone) = (0, false);
        for (mut run, bytes) in wanted {
            let (written, wake) = (run.pages.first().is_some_and(|hot| hot.written), gate.is_none());
            let put = match (run.place, written) {
                (None, false) => self.put_zeros(run.first(), bytes, wake),
                (place, _) => {
                    let protected = place.is_some() && !written;
                    self.put(run.first(), bytes, How { protected, wake })
                }
            };
            let put = match put? {
                Put::Busy => 0,
                Put::Done { pages } => pages.min(run.pages.len()),
                Put::Gone => {
                    is_gone = true;
                    break;
                }
            };
            done += put;
            run.pages.drain(..put);
            runs.push(run);
        }
        let mut state = held.unwrap_or_else(|| self.lock());
        state.counts.pushed += done as u64;
        if is_gone {
            state.stop_push();
            return Ok(Turn::Over);
        }
        state.take_back(runs);
        Ok(state.turn())
    }

    /// Whether what was rebuilt is still what belongs there.
    fn is_wanted(&self, state: &State, run: &Run) -> Result<bool, FaultError> {
        let pages = run.pages.len();
        match (state.store().find(run.first()), run.place) {
            (Some((found, next)), Some(place)) => Ok(found == place && next as usize >= pages),
            // Zeros, unless it is marked: see there.
            (None, None) => Ok(self.unmarked(state, run.first(), pages)? == pages),
            _ => Ok(false),
        }
    }
}

impl State {
    const fn is_before(&self) -> bool {
        self.stands && self.head.is_some()
    }

    const fn turn(&self) -> Turn {
        if self.push.is_empty() { Turn::Over } else { Turn::More }
    }

    /// Takes the next pages that are to be given back together.
    fn take_some(&mut self) -> Option<Batch> {
        let stands = self.is_before();
        let most = if stands { PUSHED_BEFORE } else { PUSHED };
        let (mut runs, mut left) = (Vec::new(), most);
        while left > 0
            && let Some(run) = self.take_run(left)
        {
            left -= run.pages.len();
            runs.push(run);
        }
        if runs.is_empty() {
            return None;
        }
        let head = if self.push.len() <= self.behind { self.head.take() } else { self.head.clone() };
        Some(Batch { runs, contents: self.store().contents().clone(), head, stands, round: self.round })
    }

    fn take_run(&mut self, most: usize) -> Option<Run> {
        let first = self.push.last().copied()?;
        let neighbours = self.push.iter().rev().zip(first.page..).take(most);
        let mut count =
            neighbours.take_while(|(hot, page)| hot.page == *page && hot.written == first.written).count();
        let found = self.store().find(first.page);
        count = count.min(found.map_or(1, |(_, run)| usize::try_from(run).unwrap_or(1)));
        let mut pages = self.push.split_off(self.push.len() - count);
        pages.reverse();
        Some(Run { pages, place: found.map(|(place, _)| place) })
    }

    /// They were not given back after all.
    fn take_back(&mut self, runs: Vec<Run>) {
        for run in runs.into_iter().rev() {
            self.push.extend(run.pages.into_iter().rev());
        }
    }

    /// The rank of a page that is missed now.
    pub(super) fn rank_now(&self) -> u32 {
        let next = self.push.last().map(|next| next.rank);
        next.unwrap_or_else(|| self.working_set.rank_behind(self.missed.len()))
    }

    /// Ends the giving back, of what is wanted and of the rest, but for pages that are on their way. Returns what was done so far.
    fn stop_push(&mut self) -> Counts {
        self.round += 1;
        self.filled_to = 0;
        self.push.clear();
        self.head = None;
        self.counts
    }
}
