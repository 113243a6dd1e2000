//! Named places where a test can make dedup or restore fail, to see that nothing is lost.
//!
//! Off unless the agent is started with `--fault STEP` (hidden). The steps are those of the two roads.

use std::sync::atomic::{AtomicU32, Ordering};

/// A step of [`crate::dedupe`] or [`crate::restore`] that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// Before the sandbox is touched.
    Preflight,
    /// Right after CRIU has written its images.
    Dump,
    /// Before a base is looked for to align the sandbox with; it is then stored without.
    FindBase,
    /// Before the sandbox is aligned; it is then stored without.
    Align,
    /// Before the registry is asked.
    Lookup,
    /// Before base pages are read for a dedup.
    ReadBases,
    /// After the pages are encoded.
    Encode,
    /// After the image is sealed and checked.
    Seal,
    /// After the snapshots are acquired, before the processes are ended.
    Acquire,
    /// After the pages of a sandbox that is being parked are encoded.
    ParkEncode,
    /// After they are sealed and proven, before its memory is given up.
    ParkZap,
    /// When a page that a sandbox waits for is rebuilt.
    GiveBack,
    /// When a page that a sandbox waits for is rebuilt: it takes for ever.
    GiveBackLate,
    /// When the kernel tells of moved memory: nobody hears it.
    HearMove,
    /// Before the image is opened for a restore.
    Open,
    /// Before base pages are read for a restore.
    ReadBack,
    /// After the pages are rebuilt.
    Rebuild,
    /// Right before CRIU is asked to restore.
    CriuRestore,
    /// After CRIU has restored, before the sandbox runs.
    Resume,
}

/// Which step fails, and how often.
#[derive(Debug, Default)]
pub struct Faults {
    step: Option<Step>,
    left: AtomicU32,
}

/// A failure that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fault injected at {0:?}")]
pub struct Injected(pub Step);

impl Faults {
    /// `step` fails the first `times` times it is reached.
    pub const fn new(step: Option<Step>, times: u32) -> Self {
        Self { step, left: AtomicU32::new(times) }
    }

    /// From now on the step fails so many times more.
    pub fn arm(&self, times: u32) {
        self.left.fetch_add(times, Ordering::Relaxed);
    }

    /// Fails if this step was chosen and has not failed often enough yet.
    pub fn pass(&self, step: Step) -> Result<(), Injected> {
        if self.step != Some(step) {
            return Ok(());
        }
        let take = |left: u32| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Err(Injected(step)),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_chosen_step_fails_and_only_so_often() {
        let faults = Faults::new(Some(Step::Seal), 2);
        assert_eq!(faults.pass(Step::Dump), Ok(()));
        assert_eq!(faults.pass(Step::Seal), Err(Injected(Step::Seal)));
        assert_eq!(faults.pass(Step::Seal), Err(Injected(Step::Seal)));
        assert_eq!(faults.pass(Step::Seal), Ok(()));
        assert_eq!(Faults::default().pass(Step::Seal), Ok(()));
    }
}
