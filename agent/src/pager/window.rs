//! Which pages a process writes and misses while its memory is served, window by window: what its heat is made of.
//!
//! One userfaultfd can be on a page, so who is parked or came back late is watched by what serves it. Its marks in the page table also say
//! what has to be stored anew at the next park; a look takes them off, so what it saw is remembered until then
//! (`State::rewritten`).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use medes_dedup::page::PAGE_BYTES;
use nix::unistd::Pid;

use super::park::Paged;
use super::ranges::pages;
use super::space::Space;
use crate::uffd;

/// One process. Its service may end at any time.
#[derive(Debug, Clone)]
pub struct Window(Weak<Space>);

/// Ranges of addresses, in order.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pages that were written since the last look.
    pub written: Vec<Range<u64>>,
    /// Pages that were missed since then: somebody waited for them.
    pub missed: Vec<Range<u64>>,
}

impl Paged {
    /// The process with this number, if its memory is served.
    pub fn window(&self, pid: Pid) -> Option<Window> {
        let space = self.spaces.iter().find(|space| space.pid == Some(pid))?;
        Some(Window(Arc::downgrade(space)))
    }
}

impl Window {
    /// What has happened since the last time within `span`, by the process's page map; from now on it is noticed anew. Faults wait meanwhile: a few milliseconds per 100 MB.
    ///
    /// # Errors
    /// `ESRCH`: the memory is not served any more, or is another program's.
    pub fn take(&self, pagemap: &File, span: Range<u64>) -> io::Result<Seen> {
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let space = self.0.upgrade().filter(|space| !space.uffd.is_orphaned()).ok_or_else(gone)?;
        let mut state = space.lock();
        let mut written = Vec::new();
        let scanned = uffd::take_written(pagemap, span, |range| {
            state.rewritten.extend(pages(&range));
            written.push(range);
            true
        });
        if scanned.is_err() {
            // Marks may have been taken off that were not told of: everything may have been written.
            let all: Vec<u64> = state.store().table().places().map(|(page, _)| page).collect();
            state.rewritten.extend(all);
        }
        scanned?;
        let address = |page: u64| page * PAGE_BYTES as u64;
        let missed = state.missed_since_look();
        let missed = missed.into_iter().map(|page| address(page)..address(page + 1)).collect();
        Ok(Seen { written, missed })
    }
}
