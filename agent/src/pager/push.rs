//! Giving the working set of a process back, while it runs: some pages at a time, by several threads if it is large.
//!
//! The lock is not held while pages are rebuilt, so that who misses one is served meanwhile. What was rebuilt is put in its place
//! only if that is still what is stored there: programs unmap and move memory all the time, mostly other memory.

use std::sync::Arc;

use medes_dedup::page::ZERO_PAGE;

use super::fault::FaultError;
use super::space::{Counts, Hands, Put, Space, State};
use super::store::ParkedImage;
use super::working_set::Hot;

/// Pages given back at once: so few that who misses one meanwhile is soon served.
const PUSHED: usize = 16;

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

/// Some pages on their way back: neighbours, last page first, and where they are stored if they are.
struct Batch {
    pages: Vec<Hot>,
    from: Option<(Arc<ParkedImage>, u32)>,
    /// [`State::round`] when they were taken: it has the same image as long as that is the same.
    round: u64,
}

impl Space {
    /// Begins to give the working set back; how many pages it has.
    pub(super) fn begin_push(&self) -> usize {
        let mut state = self.lock();
        let mut push = state.working_set.begin();
        push.reverse();
        state.push = push;
        state.round += 1;
        state.push.len()
    }

    /// Gives back some pages of the working set. Several threads may do so: the lock is not held while pages are rebuilt.
    pub(super) fn push_some(&self, hands: &mut Hands) -> Result<Turn, FaultError> {
        let taken = {
            let mut state = self.lock();
            if !state.changes.is_empty() {
                return Ok(Turn::Waits);
            }
            state.take_some()
        };
        let Some(Batch { mut pages, from, round }) = taken else { return Ok(Turn::Over) };
        let Some(first) = pages.last().copied() else { return Ok(Turn::Over) };
        let _under_way = hands.under_way.begin(first.page, &self.lost);
        let out = &mut hands.pages[..pages.len()];
        let place = from.as_ref().map(|(_, place)| *place);
        match from {
            Some((image, place)) => {
                image.rebuild(&mut hands.codec, place, out).map_err(FaultError::Rebuild)?;
            }
            None => out.fill(ZERO_PAGE),
        }
        let mut state = self.lock();
        if state.round != round {
            return Ok(Turn::Over);
        }
        if !state.changes.is_empty() {
            state.push.append(&mut pages);
            return Ok(Turn::Waits);
        }
        if !state.is_still(first.page, pages.len(), place) {
            // What of it is still missing will be missed.
            return Ok(Turn::More);
        }
        if place.is_none() && self.unmarked(&state, first.page, pages.len())? < pages.len() {
            // Not zeros, whatever it is: see there.
            return Ok(Turn::More);
        }
        let done = match self.put(first.page, out, place.is_some() && !first.written)? {
            Put::Busy => 0,
            Put::Done { pages: done } => done.min(pages.len()),
            Put::Gone => {
                state.stop_push();
                return Ok(Turn::Over);
            }
        };
        state.counts.pushed += done as u64;
        pages.truncate(pages.len() - done);
        state.push.append(&mut pages);
        Ok(if state.push.is_empty() { Turn::Over } else { Turn::More })
    }
}

impl State {
    /// Takes the next pages that are to be given back together.
    fn take_some(&mut self) -> Option<Batch> {
        let first = self.push.last().copied()?;
        let neighbours = self.push.iter().rev().zip(first.page..).take(PUSHED);
        let mut count =
            neighbours.take_while(|(hot, page)| hot.page == *page && hot.written == first.written).count();
        let found = self.store().find(first.page);
        count = count.min(found.map_or(1, |(_, run)| usize::try_from(run).unwrap_or(1)));
        let from = found.and_then(|(place, _)| Some((self.store().image()?.clone(), place)));
        let pages = self.push.split_off(self.push.len() - count);
        Some(Batch { pages, from, round: self.round })
    }

    /// Are these pages still stored from this place on, or still not at all?
    fn is_still(&self, first: u64, pages: usize, place: Option<u32>) -> bool {
        match (self.store().find(first), place) {
            (Some((found, run)), Some(place)) => found == place && run as usize >= pages,
            (None, None) => true,
            _ => false,
        }
    }

    /// The rank of a page that is missed now.
    pub(super) fn rank_now(&self) -> u32 {
        let next = self.push.last().map(|next| next.rank);
        next.unwrap_or_else(|| self.working_set.rank_behind(self.missed.len()))
    }

    /// Ends the giving back, of what is wanted and of the rest. Returns what was done so far.
    pub(super) fn stop_push(&mut self) -> Counts {
        self.round += 1;
        self.filled_to = 0;
        self.push.clear();
        self.counts
    }
}
