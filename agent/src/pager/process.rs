//! One process of a sandbox that stands still: what of its memory is there, copied out, then zapped.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use medes_dedup::delta::DeltaCodec;
use medes_dedup::page::{PAGE_BYTES, ZERO_PAGE};
use nix::unistd::Pid;
use tokio_util::sync::CancellationToken;

use super::file_pages::{self, Changed};
use super::ranges::{is_in, joined, pages, without};
use super::read::read;
use super::saved::Saved;
use super::space::{Space, State};
use super::stopped::ParkError;
use super::store::Store;
use super::take::{Cold, Take};
use super::working_set::WorkingSet;
use crate::inject::{Operation, Stage};
use crate::maps;
use crate::pagemap;
use crate::uffd::{self, MISSING, PROTECT};

/// For what is told to the kernel through memory of the process.
pub(super) const SCRATCH_BYTES: u64 = 64 << 10;
/// Ranges given to the kernel at once.
const VECTORS_MAX: usize = 1024;
const MADV_DONTNEED: u64 = libc::MADV_DONTNEED as u64;
/// `PIDFD_SELF_THREAD_GROUP`: the calling process, for calls that take a descriptor of one.
const SELF: u64 = (-10001_i64).cast_unsigned();
const PAGE: u64 = PAGE_BYTES as u64;

/// A process that stands still.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: Pid,
    pub(super) space: Arc<Space>,
    /// It had no userfaultfd before: nothing of it is missing.
    pub(super) is_new: bool,
    pub(super) scratch: u64,
    memory: File,
    pagemap: File,
    /// What is registered, in order.
    pub(super) registered: Vec<Range<u64>>,
    /// What of it has pages that are there.
    present: Vec<Range<u64>>,
    /// Parts of files that it has changed, in order; `None`: nobody has looked.
    changed: Option<Vec<Changed>>,
    pub(super) saved: Saved,
    /// Pages that stay, in order.
    pub(super) stay: Vec<u64>,
    /// What is taken of one that goes on.
    pub(super) cold: Cold,
    /// What the next request will touch, as it is known now.
    working_set: WorkingSet,
}

/// How many pages are stored and not there.
fn away(state: &State, there: &[Range<u64>]) -> u64 {
    state.store().table().places().filter(|(page, _)| !is_in(there, *page)).count() as u64
}

/// Most pages that are kept as they are; and never more than half of all, since memory is to be won at once: 64 MiB.
const PLAIN_MAX: u64 = 1 << 14;

/// Whether so many fresh pages of `all` may be kept as they are, beside those that already are.
fn may_be_kept(state: &State, fresh: u64, all: u64) -> bool {
    let plain = state.store().plain().map_or(0, |plain| plain.pages().len() as u64);
    state.store().image().is_some() && fresh + plain <= (all / 2).min(PLAIN_MAX)
}

/// Why pages were not copied.
enum NotCopied {
    Cancelled,
    Failed(io::Error),
}

impl From<io::Error> for NotCopied {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Open files of a process.
#[derive(Debug)]
pub(super) struct Files {
    memory: File,
    pagemap: File,
}

impl Process {
    /// What is needed to look at a process and to write to it.
    pub(super) fn open(pid: Pid) -> Result<Files, ParkError> {
        let open = |name: &str, write| {
            let file = File::options().read(true).write(write).open(format!("/proc/{pid}/{name}"));
            file.map_err(|source| ParkError::Look { pid, source })
        };
        Ok(Files { memory: open("mem", true)?, pagemap: open("pagemap", false)? })
    }

    /// One that stands still. `scratch`: where [`SCRATCH_BYTES`] of it are ours.
    pub(super) fn new(pid: Pid, space: Arc<Space>, is_new: bool, files: Files, scratch: u64) -> Self {
        let Files { memory, pagemap } = files;
        let (saved, working_set) = (Saved::default(), WorkingSet::default());
        let (registered, present, changed, stay) = (Vec::new(), Vec::new(), None, Vec::new());
        Self {
            pid,
            space,
            is_new,
            scratch,
            memory,
            pagemap,
            registered,
            present,
            changed,
            saved,
            stay,
            cold: Cold::default(),
            working_set,
        }
    }

    fn failed(&self, source: io::Error) -> ParkError {
        ParkError::Look { pid: self.pid, source }
    }

    /// What it has mapped, and what of that is locked.
    fn mapped(&self) -> Result<(String, Vec<Range<u64>>), ParkError> {
        let maps = maps::read(self.pid).map_err(|error| self.failed(error))?;
        let locked = maps::locked(self.pid).map_err(|error| self.failed(error))?;
        if maps::has_pinned(self.pid).map_err(|error| self.failed(error))? {
            return Err(ParkError::Pinned { pid: self.pid });
        }
        Ok((maps, locked))
    }

    /// Registers everything that can be; how many pages cannot. Notes what is `changed` of files, if that is asked.
    pub(super) fn register(&mut self, changed: bool) -> Result<u64, ParkError> {
        let (maps, locked) = self.mapped()?;
        if changed {
            let all = self.space.lock().files.is_none();
            let changed = file_pages::changed((&self.memory, &self.pagemap), &maps, &locked, all);
            self.changed = Some(changed.map_err(|error| self.failed(error))?);
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
    pub(super) fn look(&mut self, take: Take) -> Result<(), ParkError> {
        let state = self.space.lock();
        let (mut numbers, mut zeros) = (Vec::new(), Vec::new());
        let (mut there, mut written) = (Vec::new(), Vec::new());
        for span in &self.registered {
            let (mut any, mut unclear) = (false, Vec::new());
            uffd::present(&self.pagemap, span.clone(), |range, categories| {
                let range = pages(&range);
                let is_old = |page: &u64| !state.is_as_stored(*page);
                if categories & uffd::ZERO_PAGE != 0 {
                    zeros.extend(range);
                } else if categories & uffd::WRITTEN != 0 {
                    there.push(range.clone());
                    numbers.extend(range.clone());
                    written.push(range);
                } else if categories & uffd::SWAPPED != 0 {
                    // Marked and missing, or on a disk: not one that stays.
                    return unclear.extend(range.filter(is_old));
                } else {
                    there.push(range.clone());
                    numbers.extend(range.filter(is_old));
                }
                any = true;
            })
            .map_err(|source| ParkError::Look { pid: self.pid, source })?;
            let unclear = self.to_be_read(&state, &unclear)?;
            any |= !unclear.is_empty();
            numbers.extend(unclear);
            if any {
                self.present.push(span.clone());
            }
        }
        numbers.sort_unstable();
        self.working_set = state.working_set.clone();
        let is_written = |page| is_in(&written, page) || state.rewritten.contains(&page);
        // Before the first time everything was written.
        if !self.is_new {
            self.working_set.learn(state.missed.clone(), is_written);
        }
        let all = there.iter().map(|range| range.end - range.start).sum::<u64>() + away(&state, &there);
        let stay = match take {
            Take::All { resident_percent } => {
                let most = all * u64::from(resident_percent.min(100)) / 100;
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                self.working_set.stay(most, |page| is_in(&there, page)).to_vec()
            }
            Take::Cold { pages_max } => {
                let is_cold =
                    |page| state.watches_writes && !is_written(page) && !self.working_set.contains(page);
                self.cold = Cold::of(&there, (state.trimmed_to, pages_max), is_cold);
                // What was not looked at yet may be cold.
                self.cold.more |= !state.watches_writes;
                numbers.retain(|page| self.cold.pages.binary_search(page).is_ok());
                self.present = self.cold.addresses();
                self.cold.others(&there)
            }
        };
        numbers.retain(|page| stay.binary_search(page).is_err());
        if let Some(changed) = &self.changed {
            numbers.extend(changed.iter().flat_map(|changed| pages(&changed.range())));
            numbers.sort_unstable();
        }
        self.stay.clone_from(&stay);
        // It stands still: what it is stored as does not change until it is stored anew.
        let (hot, maps) = (self.working_set.numbers(), std::mem::take(&mut self.saved.maps));
        let in_haste = matches!(take, Take::All { .. }) && may_be_kept(&state, numbers.len() as u64, all);
        let (before, files) = (state.store().clone(), state.files.clone());
        self.saved = Saved { numbers, zeros, stay, hot, maps, files, before, in_haste, ..Saved::default() };
        Ok(())
    }

    /// Of pages that are on a disk, or marked and missing, those that must be read. Nobody can read one that is missing, and what it is is known here: as
    /// it is stored (what is noted of writes may be about a page that has been moved away), or zeros since it was given up (MADV_FREE leaves the mark).
    fn to_be_read(&self, state: &State, unclear: &[u64]) -> Result<Vec<u64>, ParkError> {
        let mut known = Vec::new();
        for run in unclear.chunk_by(|a, b| a + 1 == *b) {
            let is_known = |page| state.store().find(page).is_some() || state.given_up.contains(&page);
            pagemap::entries(&self.pagemap, run[0], run.len() as u64, |page, entry| {
                if pagemap::is_mark(entry) && is_known(page) {
                    known.push(page);
                }
            })
            .map_err(|source| ParkError::Look { pid: self.pid, source })?;
        }
        Ok(unclear.iter().copied().filter(|page| known.binary_search(page).is_err()).collect())
    }

    /// Copies these pages out, some at a time: it may be wanted back meanwhile.
    pub(super) fn copy(
        &mut self,
        threads: NonZeroUsize,
        cancelled: &CancellationToken,
    ) -> Result<(), ParkError> {
        let (pid, memory) = (self.pid, &self.memory);
        let copied = self.saved.copy(threads, |pages, out| match cancelled.is_cancelled() {
            true => Err(NotCopied::Cancelled),
            false => Ok(read(pid, memory, pages, out)?),
        });
        copied.map_err(|not| match not {
            NotCopied::Cancelled => ParkError::Cancelled,
            NotCopied::Failed(source) => ParkError::Look { pid, source },
        })
    }

    /// From now on the process's memory is what is stored.
    pub(super) fn commit(&mut self, stored: Option<Store>) {
        let mut state = self.space.lock();
        if let Some(stored) = stored {
            state.replace(stored);
        }
        state.begin_missing();
        state.working_set = std::mem::take(&mut self.working_set);
        state.watches_writes = false;
        state.trimmed_to = self.cold.next;
    }

    /// From now on it shows which pages are written. Nothing of what is there is stored.
    pub(super) fn watch_writes(&self) {
        let mut state = self.space.lock();
        state.rewritten.clear();
        let mut ranges = self.registered.iter();
        let watched =
            ranges.try_for_each(|range| uffd::take_written(&self.pagemap, range.clone(), |_written| true));
        state.watches_writes = watched.is_ok();
        if let Err(error) = watched {
            // Nothing is taken of it the next time either.
            tracing::debug!(pid = %self.pid, %error, "its writes are not watched");
        }
    }

    /// Zaps everything that is there. While nothing is registered nobody runs, so no event has to be waited for and
    /// nobody can see the zeros; when the process runs again everything is registered.
    pub(super) fn give_up(&mut self, operation: &mut Operation) -> Result<(), ParkError> {
        let uffd = &self.space.uffd;
        let unregistered = self.registered.iter().try_for_each(|range| uffd.unregister(range));
        let zapped = unregistered.map_err(|error| self.failed(error)).and_then(|()| self.zap(operation));
        self.take_from_files(operation)?;
        let uffd = &self.space.uffd;
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

    /// Nothing of what is stored is there, from the beginning on. Pages that somebody has touched all the same get what is stored.
    pub(super) fn begin(&mut self, store: Store) -> Result<(), ParkError> {
        let served: Vec<Range<u64>> = self.registered.iter().map(pages).collect();
        if let Some((page, _)) = store.table().places().find(|(page, _)| !is_in(&served, *page)) {
            return Err(ParkError::Unserved { pid: self.pid, page });
        }
        self.space.lock().replace(store);
        self.present.clone_from(&self.registered);
        self.mend()?;
        self.mark();
        Ok(())
    }

    /// Marks what is stored in the page table, so that it can be told whose a page is when the kernel's messages do not.
    fn mark(&self) {
        let mut state = self.space.lock();
        let marked = joined(state.store().table().ranges())
            .map(|range| range.start * PAGE..range.end * PAGE)
            .try_for_each(|range| self.space.uffd.mark(&range));
        state.is_marked = marked.is_ok();
        if let Err(error) = marked {
            // Nothing depends on it, unless the messages come in a wrong order: then the sandbox is ended.
            tracing::debug!(pid = %self.pid, %error, "stored pages are not marked");
        }
    }

    /// Has memory without a file take the place of what it has changed of files.
    fn take_from_files(&mut self, operation: &mut Operation) -> Result<(), ParkError> {
        let Some(all) = self.changed.take() else { return Ok(()) };
        for changed in all {
            let is_taken = changed.take(self.pid, operation)?;
            let mut state = self.space.lock();
            if is_taken {
                self.registered.push(changed.range());
                self.present.push(changed.range());
                maps::add_part(state.files.get_or_insert_default(), changed.part);
            } else {
                // It has too many mappings. The pages are there, as if they had not been stored.
                tracing::debug!(pid = %self.pid, ?changed, "stays a part of its file");
                drop(state.forget(&pages(&changed.range())));
            }
        }
        self.space.lock().files.get_or_insert_default();
        Ok(())
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
            let Some((place, _)) = state.store().find(page) else { continue };
            let lost = |error| ParkError::Lost(io::Error::other(error));
            state.store().rebuild(&mut codec, place, &mut bytes[..]).map_err(lost)?;
            self.memory.write_all_at(bytes.as_flattened(), page * PAGE).map_err(ParkError::Lost)?;
        }
        Ok(())
    }
}
