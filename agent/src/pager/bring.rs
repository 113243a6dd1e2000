//! A sandbox that has just been made and stands before its first instruction, with next to nothing in its memory: what is missing is stored, and
//! comes as it is touched. As if it had been parked here.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use medes_dedup::image::DedupImage;
use nix::unistd::Pid;

use super::fault::Lost;
use super::handler::Pager;
use super::learnt::Learnt;
use super::park::Paged;
use super::stopped::{ParkError, Stopped};
use super::store::{Contents, ParkedImage, Store};
use crate::bases::local::Snapshot;
use crate::faults::Faults;
use crate::memory_file::MappedFile;
use crate::roads::blocking;
use crate::sandbox::cgroup::SandboxCgroup;

/// What a sandbox is stored as of which most is missing.
#[derive(Debug)]
pub struct Missing {
    /// The image, opened.
    pub image: Arc<DedupImage<MappedFile>>,
    /// All bases that it needs, whole.
    pub bases: Vec<Arc<Snapshot>>,
    /// Of each process, by the number it has in the sandbox: the numbers (address / 4096) of the pages that are missing, in order, and where
    /// in the image they are.
    pub pages: BTreeMap<u32, Vec<(u64, u32)>>,
    /// What it will touch, as far as that is known.
    pub learnt: Learnt,
}

/// Takes the memory of a stopped sandbox into our hands. It stands as before when this returns.
///
/// # Errors
/// The sandbox is then good for nothing: whoever let it run would have it read zeros.
pub async fn bring(
    pager: &Pager,
    cgroup: &SandboxCgroup,
    missing: Missing,
    faults: Arc<Faults>,
) -> Result<Paged, ParkError> {
    let (pager, cgroup) = (pager.clone(), cgroup.clone());
    blocking(move || {
        let lost = Arc::new(Lost::new(cgroup.clone(), faults));
        let Missing { image, bases, mut pages, mut learnt } = missing;
        let contents = Contents::of(Arc::new(ParkedImage::new(image, bases)));
        let mut stopped = Stopped::hold(&pager, &cgroup)?;
        for pid in stopped.pids.clone() {
            let inside = number_inside(pid).map_err(|source| ParkError::Look { pid, source })?;
            let pages = pages.remove(&inside).unwrap_or_default();
            let store = Store::of(contents.clone(), pages.into_iter());
            stopped.begin(pid, &lost, (store, learnt.take(inside)))?;
        }
        if let Some((inside, _)) = pages.pop_first() {
            return Err(ParkError::Absent { inside });
        }
        let spaces = stopped.let_stand()?;
        Ok(Paged::of(&pager, &cgroup, spaces, lost))
    })
    .await
}

/// The number of a process in the innermost namespace it is in.
pub(super) fn number_inside(pid: Pid) -> std::io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let last = numbers.and_then(|numbers| numbers.split_ascii_whitespace().next_back()?.parse().ok());
    last.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}
