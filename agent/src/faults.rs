//! Named places where a test can make dedup or restore fail, to see that nothing is lost.
//!
//! Off unless the agent is started with `--fault STEP`, or with `--fault-file FILE` (both hidden), where what stands in the file at the
//! moment is what happens: `cargo xtask test faults` writes it from outside, and kills or cuts off whom it likes while a step waits.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum as _;

/// A step of one of the roads that can be made to fail, or to wait.
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
    /// After what was kept of a parked sandbox as it is was stored small, before that takes its place.
    ShrinkParked,
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
    /// Before a sandbox is started from nothing.
    Launch,
    /// Before a clone's snapshot is looked for.
    Clone,
    /// Before a base of another node is copied.
    Replicate,
    /// After it was copied, before anybody hears of it.
    Replicated,
    /// Before a sandbox of another node is read.
    Take,
    /// When all of it is here, before its node is asked to give it up.
    GiveUp,
    /// After its node has given it up, before anybody hears of it.
    GivenUp,
    /// When all that the agent before left is here, before any of it is served.
    TakeOver,
    /// Before what is left of a sandbox is removed. A removal cannot fail, only wait.
    Remove,
}

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum How {
    /// It fails.
    Fail,
    /// It waits until it is told to go on, and then goes on.
    Wait,
}

/// How long a step waits if nobody tells it to go on: whoever wanted it to may have died.
const WAIT_MAX: Duration = Duration::from_secs(90);
const WAIT_LOOK: Duration = Duration::from_millis(2);

/// Which step fails, and how often.
#[derive(Debug, Default)]
pub struct Faults {
    step: Option<Step>,
    left: AtomicU32,
    file: Option<PathBuf>,
}

/// A failure that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fault injected at {0:?}")]
pub struct Injected(pub Step);

impl Faults {
    /// `step` fails the first `times` times it is reached.
    pub const fn new(step: Option<Step>, times: u32) -> Self {
        Self { step, left: AtomicU32::new(times), file: None }
    }

    /// What happens is also what this file says, as `STEP HOW`, once: it is renamed to `FILE.reached` then. A step that waits goes on when that
    /// is removed.
    #[must_use]
    pub fn told_by(self, file: Option<PathBuf>) -> Self {
        Self { file, ..self }
    }

    /// From now on the step fails so many times more.
    pub fn arm(&self, times: u32) {
        self.left.fetch_add(times, Ordering::Relaxed);
    }

    /// Fails if this step was chosen and has not failed often enough yet.
    pub fn pass(&self, step: Step) -> Result<(), Injected> {
        self.as_told(step)?;
        if self.step != Some(step) {
            return Ok(());
        }
        let take = |left: u32| left.checked_sub(1);
        match self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Err(Injected(step)),
            Err(_) => Ok(()),
        }
    }

    fn as_told(&self, step: Step) -> Result<(), Injected> {
        let Some(file) = &self.file else { return Ok(()) };
        // Most steps are not asked for: then there is no file.
        let Ok(told) = fs::read_to_string(file) else { return Ok(()) };
        let mut words = told.split_whitespace();
        let name = words.next().unwrap_or_default();
        if Step::from_str(name, false) != Ok(step) {
            return Ok(());
        }
        let Ok(how) = How::from_str(words.next().unwrap_or_default(), false) else { return Ok(()) };
        let reached = file.with_added_extension("reached");
        // Of several that come here at once, one is it.
        if fs::rename(file, &reached).is_err() {
            return Ok(());
        }
        tracing::warn!(?step, ?how, "a fault that was asked for");
        match how {
            How::Fail => Err(Injected(step)),
            How::Wait => {
                let begun = Instant::now();
                let gone_on = || !reached.exists() || begun.elapsed() > WAIT_MAX;
                let wait = || {
                    while !gone_on() {
                        thread::sleep(WAIT_LOOK);
                    }
                };
                // Some steps are passed by tasks, which must not hold up all others.
                match tokio::runtime::Handle::try_current() {
                    Ok(_) => tokio::task::block_in_place(wait),
                    Err(_) => wait(),
                }
                Ok(())
            }
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

    #[test]
    fn a_file_says_what_happens_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fault");
        let faults = Faults::default().told_by(Some(file.clone()));
        assert_eq!(faults.pass(Step::Seal), Ok(()));
        for nonsense in ["", "seal", "seal perhaps", "nothing fail"] {
            fs::write(&file, nonsense).unwrap();
            assert_eq!(faults.pass(Step::Seal), Ok(()), "{nonsense}");
        }
        fs::write(&file, "seal fail").unwrap();
        assert_eq!(faults.pass(Step::Dump), Ok(()));
        assert_eq!(faults.pass(Step::Seal), Err(Injected(Step::Seal)));
        assert_eq!(faults.pass(Step::Seal), Ok(()));
    }

    #[test]
    fn a_step_waits_until_it_is_told_to_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fault");
        let reached = folder.path().join("fault.reached");
        let faults = Faults::default().told_by(Some(file.clone()));
        fs::write(&file, "give-up wait").unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| faults.pass(Step::GiveUp));
            while !reached.exists() {
                thread::yield_now();
            }
            assert!(!waiting.is_finished());
            fs::remove_file(&reached).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
    }
}
