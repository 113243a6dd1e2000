//! Bringing back what nobody has asked for, while there is memory for it and nothing else to do: then nothing is missed any more.
//!
//! It is the giving back of [`super::push`], of everything that is missing, a window at a time.

use medes_dedup::page::PAGE_BYTES;

use super::fault::FaultError;
use super::park::Paged;
use super::space::Space;
use super::working_set::Hot;

/// Pages of a window: a few milliseconds.
const WINDOW: u64 = 1024;

/// What became of the next window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Its missing pages are to be given back now.
    Begun,
    /// The process is changing its mappings, or pages of an earlier one are still on their way.
    Waits,
    /// There is none any more.
    Over,
}

impl Paged {
    /// Brings everything back, in the background.
    pub fn fill(&self) {
        self.spaces.iter().for_each(|space| self.pager.fill(space));
    }

    /// Whether all of it was brought back, or is being, since some of it was last taken.
    pub fn is_filling(&self) -> bool {
        self.spaces.iter().all(|space| space.lock().filled_to > 0)
    }
}

impl Space {
    /// From the beginning on. Whoever stops the process ends it ([`Space::stop_push`]).
    pub(super) fn begin_fill(&self) {
        self.lock().filled_to = 1;
    }

    /// Has the missing pages of the next window given back.
    pub(super) fn fill_window(&self) -> Result<Next, FaultError> {
        let mut state = self.lock();
        if !state.changes.is_empty() || !state.push.is_empty() {
            return Ok(Next::Waits);
        }
        // Without marks nobody could tell what is missing; it comes when it is touched.
        if state.filled_to == 0 || !state.is_marked || !self.has_pagemap() {
            return Ok(Next::Over);
        }
        let Some(range) = state.store().table().range_from(state.filled_to) else { return Ok(Next::Over) };
        let window = range.start..range.end.min(range.start + WINDOW);
        state.filled_to = window.end;
        let address = |page: u64| page * PAGE_BYTES as u64;
        let place = address(window.start)..address(window.end);
        let missing = self.marks(std::slice::from_ref(&place))?;
        let rank = state.working_set.rank_behind(0);
        state.push.extend(missing.into_iter().flatten().map(|page| Hot { page, written: false, rank }));
        state.push.reverse();
        // Also where nothing is missing: who waits for a page is served in between.
        Ok(Next::Begun)
    }
}
