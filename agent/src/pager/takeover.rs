//! A parked sandbox goes from one agent to the next on its node: its userfaultfds are the same, and what its missing pages are made from is
//! what the first one made.
//!
//! Nothing of it runs meanwhile: it is frozen. Who waits for a page all the same, because a message was read by an agent that is gone, is
//! woken and asks again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use medes_dedup::image::{DedupImage, OpenImageError};
use medes_dedup::key::DomainKey;
use medes_dedup::page::SnapshotId;
use nix::unistd::Pid;

use super::fault::Lost;
use super::handler::Pager;
use super::park::Paged;
use super::space::{Space, State};
use super::store::{Contents, ParkedImage, PlainPages, Store};
use super::working_set::{Hot, WorkingSet};
use crate::bases::local::Snapshot;
use crate::faults::Faults;
use crate::memory_file::MappedFile;
use crate::sandbox::cgroup::SandboxCgroup;
use crate::uffd::Uffd;

/// One process of a parked sandbox, as the next agent needs it.
#[derive(Debug)]
pub(crate) struct KeptProcess {
    pub(crate) record: ProcessRecord,
    pub(crate) uffd: OwnedFd,
    /// The image of its pages.
    pub(crate) image: OwnedFd,
    /// Pages that are kept as they are, if the record says so.
    pub(crate) plain: Option<OwnedFd>,
}

/// What is known of its pages.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ProcessRecord {
    #[prost(int32, tag = "1")]
    pid: i32,
    /// Runs of stored pages: the first one, how many, and the place of the first one in the image.
    #[prost(uint64, repeated, tag = "2")]
    firsts: Vec<u64>,
    #[prost(uint32, repeated, tag = "3")]
    pages: Vec<u32>,
    #[prost(uint32, repeated, tag = "11")]
    places: Vec<u32>,
    #[prost(bool, tag = "4")]
    is_marked: bool,
    #[prost(uint64, repeated, tag = "5")]
    given_up: Vec<u64>,
    #[prost(uint64, repeated, tag = "6")]
    rewritten: Vec<u64>,
    /// Parts of files that memory stands for, as JSON.
    #[prost(bytes, tag = "7")]
    files: Vec<u8>,
    /// Its working set.
    #[prost(uint64, repeated, tag = "8")]
    hot: Vec<u64>,
    #[prost(bool, repeated, tag = "9")]
    written: Vec<bool>,
    #[prost(uint32, repeated, tag = "10")]
    ranks: Vec<u32>,
    #[prost(bool, tag = "12")]
    pub(crate) has_plain: bool,
}

/// Why a parked sandbox cannot be taken over. It ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeOverError {
    /// The memory of its image could not be mapped.
    #[error("map the image of its pages")]
    Map(#[source] io::Error),
    /// The image does not open.
    #[error("open the image of its pages")]
    Open(#[from] OpenImageError),
    /// A base that it needs is not here.
    #[error("{0} is not here")]
    NoBase(SnapshotId),
    /// The record makes no sense.
    #[error("understand what is stored of it")]
    Record(#[from] serde_json::Error),
    /// A process is not what it was.
    #[error("process {pid} is not one of it")]
    Process {
        /// The process.
        pid: i32,
    },
    /// It could not be served.
    #[error("serve the missing pages of process {pid}")]
    Serve {
        /// The process.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
}

impl Paged {
    /// What the next agent needs of it; `None`: nobody could take it over as it is now.
    pub(crate) fn kept(&self) -> io::Result<Option<Vec<KeptProcess>>> {
        let mut kept = Vec::with_capacity(self.spaces.len());
        for space in &self.spaces {
            let is_alone = self.pager.children(space).is_empty() && !space.is_waiting();
            let Some(process) = keep(space)?.filter(|_| is_alone) else { return Ok(None) };
            kept.push(process);
        }
        Ok(Some(kept))
    }

    /// Bases that it needs.
    pub(crate) fn needs(&self) -> Vec<Arc<Snapshot>> {
        let held = |space: &Arc<Space>| {
            let state = space.lock();
            state.store().image().map(|image| image.held().to_vec()).unwrap_or_default()
        };
        self.spaces.iter().flat_map(held).collect()
    }

    /// Takes over a frozen sandbox, whose processes are served from now on. Blocks.
    pub(crate) fn take_over(
        pager: &Pager,
        cgroup: &SandboxCgroup,
        kept: Vec<KeptProcess>,
        (key, base, faults): (&DomainKey, impl Fn(SnapshotId) -> Option<Arc<Snapshot>>, Arc<Faults>),
    ) -> Result<Self, TakeOverError> {
        let inside = cgroup.pids().unwrap_or_default();
        let lost = Arc::new(Lost::new(cgroup.clone(), faults));
        let serve = |process: KeptProcess| {
            let KeptProcess { record, uffd, image, plain } = process;
            let pid = record.pid;
            if !inside.contains(&Pid::from_raw(pid)) {
                return Err(TakeOverError::Process { pid });
            }
            let image = MappedFile::received(image).map_err(TakeOverError::Map)?;
            let image = DedupImage::open(image, key)?;
            let held = image.bases().iter().map(|id| base(*id).ok_or(TakeOverError::NoBase(*id)));
            let held = held.collect::<Result<_, _>>()?;
            let image = Some(Arc::new(ParkedImage::new(Arc::new(image), held)));
            let plain = plain.map(MappedFile::received).transpose().map_err(TakeOverError::Map)?;
            let plain = plain.map(|plain| Arc::new(PlainPages::new(plain)));
            let state = record.state(Contents { image, plain })?;
            let failed = |source| TakeOverError::Serve { pid, source };
            let uffd = Uffd::taken_over(uffd);
            let space = pager.begin((uffd, Pid::from_raw(pid)), state, lost.clone()).map_err(failed)?;
            space.uffd.wake_all().map_err(failed)?;
            Ok(space)
        };
        let spaces = kept.into_iter().map(serve).collect::<Result<_, _>>()?;
        Ok(Self::of(pager, cgroup, spaces, lost))
    }
}

fn keep(space: &Space) -> io::Result<Option<KeptProcess>> {
    let state = space.lock();
    let (Some(pid), Some(image)) = (space.pid, state.store().image()) else { return Ok(None) };
    let (firsts, (pages, places)) = state.store().table().runs().unzip();
    let set = state.working_set.pages();
    let record = ProcessRecord {
        pid: pid.as_raw(),
        firsts,
        pages,
        places,
        is_marked: state.is_marked,
        given_up: state.given_up.iter().copied().collect(),
        rewritten: state.rewritten.iter().copied().collect(),
        files: serde_json::to_vec(&state.files)?,
        hot: set.iter().map(|hot| hot.page).collect(),
        written: set.iter().map(|hot| hot.written).collect(),
        ranks: set.iter().map(|hot| hot.rank).collect(),
        has_plain: state.store().plain().is_some(),
    };
    let image = image.image().source().file().try_clone()?.into();
    let plain = state.store().plain().map(|plain| plain.file().file().try_clone()).transpose()?;
    Ok(Some(KeptProcess { record, uffd: space.uffd.try_clone()?, image, plain: plain.map(OwnedFd::from) }))
}

impl ProcessRecord {
    fn state(self, contents: Contents) -> Result<State, TakeOverError> {
        let Self {
            firsts, pages, places, is_marked, given_up, rewritten, files, hot, written, ranks, ..
        } = self;
        let runs = firsts.into_iter().zip(pages).zip(places);
        let placed = runs.flat_map(|((first, pages), place)| (first..).zip(place..).take(pages as usize));
        let hot = hot.into_iter().zip(written).zip(ranks);
        let hot = hot.map(|((page, written), rank)| Hot { page, written, rank });
        let mut state = State::default();
        state.replace(Store::of(contents, placed));
        state.working_set = WorkingSet::of_pages(hot.collect());
        state.rewritten.extend(rewritten);
        state.given_up.extend(given_up);
        state.is_marked = is_marked;
        state.files = serde_json::from_slice(&files)?;
        Ok(state)
    }
}
