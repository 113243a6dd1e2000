//! What happens when a page cannot be had: the sandbox ends, and says why. It never runs with another page.

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use medes_dedup::rebuild::RebuildError;

use crate::faults::{Faults, Injected, Step};
use crate::sandbox::cgroup::SandboxCgroup;

/// Why a page could not be given back.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// It does not come back from what is stored.
    #[error("rebuild a page that the sandbox waits for")]
    Rebuild(#[source] RebuildError),
    /// The kernel would not take it.
    #[error("put page {page:#x} in its place: {}", io::Error::from_raw_os_error(*errno))]
    Copy {
        /// Its number.
        page: u64,
        /// The error number.
        errno: i32,
    },
    /// It could not be rebuilt, or the kernel did not take it, in time.
    #[error("page {page:#x} could not be given back in time")]
    Late {
        /// Its number.
        page: u64,
    },
    /// The kernel would not say what the sandbox waits for.
    #[error("read what the sandbox waits for")]
    Read(#[source] io::Error),
    /// Memory was moved and given up at the same places in an order that cannot be told any more, or a page is marked as stored and
    /// nobody knows as what.
    #[error("which of its pages are where is not clear any more")]
    Unclear,
    /// What it did to its mappings could not be taken note of in time.
    #[error(transparent)]
    Unsettled(#[from] super::space::Unsettled),
    /// The kernel says something of which nobody knows what it means for the pages.
    #[error("the kernel tells of event {event:#x}, which is unknown")]
    Unknown {
        /// Its number.
        event: u8,
    },
    /// A test wanted this.
    #[error(transparent)]
    Injected(#[from] Injected),
}

/// How often a page that a test wants to be late looks whether that was noticed.
const LATE_LOOK: Duration = Duration::from_millis(10);

/// The way to end a sandbox of which a page is lost, and why it was ended.
#[derive(Debug)]
pub(super) struct Lost {
    cgroup: SandboxCgroup,
    why: OnceLock<FaultError>,
    faults: Arc<Faults>,
}

impl Lost {
    pub(super) const fn new(cgroup: SandboxCgroup, faults: Arc<Faults>) -> Self {
        Self { cgroup, why: OnceLock::new(), faults }
    }

    /// Whether a move of memory is heard of: always, unless a test wants it not to be.
    pub(super) fn hears_of_moves(&self) -> bool {
        self.faults.pass(Step::HearMove).is_ok()
    }

    /// Fails where a test wants a page not to be had, or not to be had in time.
    pub(super) fn pass(&self) -> Result<(), FaultError> {
        if self.faults.pass(Step::GiveBackLate).is_err() {
            // As a rebuild that does not end would be.
            while self.why().is_none() {
                std::thread::sleep(LATE_LOOK);
            }
        }
        Ok(self.faults.pass(Step::GiveBack)?)
    }

    /// Ends it.
    pub(super) fn end(&self, why: FaultError) {
        tracing::error!(
            error = &why as &dyn std::error::Error,
            "a page of a sandbox cannot be had; ending it"
        );
        // The first reason is the one that counts.
        let _later = self.why.set(why);
        self.cgroup.kill_now();
    }

    /// Ends it for a reason that somebody else tells.
    pub(super) fn end_quietly(&self) {
        self.cgroup.kill_now();
    }

    /// Why it was ended, if it was.
    pub(super) fn why(&self) -> Option<&FaultError> {
        self.why.get()
    }
}
