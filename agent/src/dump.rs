//! A sandbox as CRIU dumped it, in memory: its pages and its skeleton.
//!
//! First step of both roads that begin at a warm sandbox, [`crate::dedupe`] and [`crate::base`].

use std::{
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use medes_dedup::page::{PAGE_BYTES, Page};
use medes_proto::{failure::FailureKind, ids::SandboxId, layout::ProcessLayout};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::{
    criu::{
        self, DumpError, DumpRequest, Leave,
        files::InMemory,
        images::{ImageSet, Owner, PagesFile, ReadImagesError},
        preflight::{self, NotDumpable},
    },
    digest::Mask,
    earlier,
    faults::{Injected, Step},
    layout::{self, UnknownLayout},
    memory_file::MappedFile,
    roads::{Roads, Warm},
};

/// A folder for the images of one dump or restore; removed with all that is in it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// A new, empty folder. What an attempt that was killed has left there is removed.
    pub fn create(path: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "images of a dump stay behind");
        }
    }
}

/// How long a connection may take to close after the answer to the last request.
const SETTLE: Duration = Duration::from_millis(250);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Checks that CRIU will not refuse. A server closes its end of the last connection a moment after the client has
/// its answer: that moment is waited for.
async fn settle(pid: Pid) -> Result<(), NotDumpable> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match preflight::check_dumpable(pid) {
            Err(NotDumpable::OpenConnection { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            checked => return checked,
        }
    }
}

/// Ends a sandbox that CRIU may have left in the middle of something. Its next request finds another one.
pub async fn end_doubtful(sandbox: SandboxId, warm: &Warm) {
    tracing::error!(%sandbox, "CRIU was gone before it had put everything back; ending the sandbox");
    if let Err(error) = warm.tree.kill().await {
        tracing::error!(%sandbox, error = &error as &dyn std::error::Error, "and it does not end");
    }
}

/// The pages and the skeleton of a dumped sandbox.
#[derive(Debug)]
pub struct Dump {
    memory: InMemory,
    images: ImageSet,
    files: Vec<MappedFile>,
    pipe: String,
}

/// Why there is no dump. Unless it says otherwise the sandbox runs as before.
#[derive(Debug, thiserror::Error)]
pub enum DumpSandboxError {
    /// Something about it cannot be dumped now; seen before it was touched.
    #[error("it cannot be dumped as it is")]
    NotDumpable(#[from] NotDumpable),
    /// There is no place for the images.
    #[error("make a folder for its images at {path}")]
    Folder {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// CRIU failed or refused.
    #[error("dump it")]
    Criu(#[from] DumpError),
    /// CRIU's images make no sense.
    #[error("read its images")]
    Images(#[from] ReadImagesError),
    /// Where its output goes is not known.
    #[error("name its output pipe")]
    Pipe(#[source] io::Error),
    /// It ended meanwhile.
    #[error("the sandbox ended")]
    Ended,
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
}

impl DumpSandboxError {
    /// Whether nobody can promise that the sandbox is as it was.
    pub fn leaves_doubt(&self) -> bool {
        matches!(self, Self::Criu(error) if error.leaves_doubt())
    }

    /// What kind of failure it is for the controller.
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::NotDumpable(_) | Self::Criu(DumpError::Refused { .. }) => FailureKind::DumpRefused,
            Self::Criu(error) if error.is_no_space() => FailureKind::NoSpace,
            Self::Folder { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                FailureKind::NoSpace
            }
            _ => FailureKind::DedupFailed,
        }
    }
}

impl earlier::Pages for Dump {
    fn pages(&self) -> Vec<&Page> {
        self.pages()
    }

    fn files(&self) -> &[PagesFile] {
        self.page_files()
    }
}

impl Dump {
    /// Dumps a warm sandbox. With [`Leave::Stopped`] it stands still afterwards, also after some errors: the
    /// caller resumes it.
    pub async fn take(roads: &Roads, warm: &Warm, leave: Leave) -> Result<Self, DumpSandboxError> {
        let pid = warm.tree.pid();
        roads.faults.pass(Step::Preflight)?;
        settle(pid).await?;
        let path = warm.housing.work_dir().join("dump");
        let folder =
            Folder::create(path.clone()).map_err(|source| DumpSandboxError::Folder { path, source })?;
        let request = DumpRequest {
            pid,
            images: folder.path(),
            mounts: warm.housing.external_mounts(),
            leave,
            timeout: roads.limits.criu,
            verbose: false,
        };
        let (_, memory) = criu::dump_to_memory(&roads.criu, &roads.reaper, &request).await?;
        roads.faults.pass(Step::Dump)?;
        let pipe = warm.housing.log().pipe_name().map_err(DumpSandboxError::Pipe)?;
        Ok(Self::open(memory, pipe)?)
    }

    /// What CRIU has dumped, or what was laid out as it would have; `pipe` is where its output went.
    pub fn open(memory: InMemory, pipe: String) -> Result<Self, ReadImagesError> {
        let images = ImageSet::read(&memory)?;
        let with_pages = images.pages.iter().filter(|file| file.pages > 0);
        let files = with_pages.filter_map(|file| memory.pages(&file.name).cloned()).collect();
        Ok(Self { memory, images, files, pipe })
    }

    /// The pipe its output went to, as CRIU's files name it.
    pub fn pipe(&self) -> &str {
        &self.pipe
    }

    /// All pages, in the order of the pages files and of the bytes in them.
    pub fn pages(&self) -> Vec<&Page> {
        self.files.iter().flat_map(|file| file.as_ref().as_chunks::<PAGE_BYTES>().0).collect()
    }

    /// The pages of one of the [files](Self::files), and their positions among [all](Self::pages).
    pub fn pages_of(&self, file: usize) -> (Range<usize>, Vec<&Page>) {
        let count = |file: &MappedFile| file.len() / PAGE_BYTES;
        let start: usize = self.files.iter().take(file).map(count).sum();
        let pages = self.files.get(file).map(|file| file.as_ref().as_chunks::<PAGE_BYTES>().0);
        let pages: Vec<&Page> = pages.unwrap_or_default().iter().collect();
        (start..start + pages.len(), pages)
    }

    /// The pages files: name and number of pages, in the order of [`Dump::pages`]. Some are empty, and CRIU wants
    /// these back as well.
    pub fn pages_files(&self) -> impl Iterator<Item = (&str, u64)> {
        self.images.pages.iter().map(|file| (file.name.as_str(), file.pages))
    }

    /// Whose pages they are and where they were, in the order of [`Dump::pages`].
    pub fn page_files(&self) -> &[PagesFile] {
        &self.images.pages
    }

    /// The bytes of all pages files, one after the other.
    pub fn files(&self) -> &[MappedFile] {
        &self.files
    }

    /// The processes, those with most pages first: position of their pages file among the [files](Self::files), and
    /// where its pages were.
    pub fn processes(&self) -> Result<Vec<(usize, ProcessLayout)>, UnknownLayout> {
        let mappings = self.images.mappings(&self.memory)?;
        let paths = self.images.file_paths(&self.memory)?;
        let names = layout::names(paths);
        let with_pages = self.images.pages.iter().filter(|file| file.pages > 0);
        let owned = with_pages.enumerate().filter_map(|(at, file)| match file.owner {
            Owner::Process { pid } => Some((at, &file.runs, mappings.get(&pid)?)),
            Owner::Shared { .. } => None,
        });
        let process = |(at, runs, mappings): (usize, &Vec<_>, _)| {
            Ok::<_, UnknownLayout>((at, layout::process(runs, mappings, &names)?))
        };
        let mut processes: Vec<(usize, ProcessLayout)> = owned.map(process).collect::<Result<_, _>>()?;
        // Stable: among equals the order of their numbers stays.
        processes.sort_by_key(|(_, layout)| std::cmp::Reverse(layout.pages()));
        Ok(processes)
    }

    /// Memory that the kernel changes by itself.
    pub fn masks(&self) -> Vec<Mask> {
        let areas = self.images.rseq.iter();
        areas
            .filter_map(|area| {
                let end = area.address.checked_add(u64::from(area.bytes))?;
                Some(Mask { pid: i32::try_from(area.pid).ok()?, range: area.address..end })
            })
            .collect()
    }

    /// The files that are not pages: what CRIU needs besides them to make the sandbox again.
    pub fn skeleton(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.memory.others()
    }
}
