//! Nobody waits for a page for ever: a thread looks whether those that serve are still at the same page, and ends the sandbox
//! whose page it is when that takes too long.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::fault::{FaultError, Lost};

/// How long a page may take: to be rebuilt, and to be put in its place while the process is changing its mappings.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// The page that one thread is at.
#[derive(Debug, Default)]
pub(super) struct UnderWay(Mutex<Option<At>>);

#[derive(Debug)]
struct At {
    page: u64,
    since: Instant,
    lost: Arc<Lost>,
}

impl UnderWay {
    /// A page is begun. It is under way until the guard is dropped.
    pub(super) fn begin(self: &Arc<Self>, page: u64, lost: &Arc<Lost>) -> Done {
        self.set(Some(At { page, since: Instant::now(), lost: lost.clone() }));
        Done(self.clone())
    }

    fn set(&self, at: Option<At>) -> Option<At> {
        std::mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), at)
    }

    /// Ends the sandbox whose page is overdue. It is told once.
    fn check(&self, now: Instant) {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = |at: &mut At| now.saturating_duration_since(at.since) > DEADLINE;
        if let Some(At { page, lost, .. }) = at.take_if(is_late) {
            drop(at);
            lost.end(FaultError::Late { page });
        }
    }
}

/// Ends it when dropped.
#[derive(Debug)]
pub(super) struct Done(Arc<UnderWay>);

impl Drop for Done {
    fn drop(&mut self) {
        drop(self.0.set(None));
    }
}

/// Watches threads until all of them have ended.
pub(super) fn watch(threads: Vec<Weak<UnderWay>>) -> io::Result<()> {
    let look = move || {
        loop {
            let living: Vec<_> = threads.iter().filter_map(Weak::upgrade).collect();
            if living.is_empty() {
                return;
            }
            living.iter().for_each(|one| one.check(Instant::now()));
            drop(living);
            thread::sleep(LOOK);
        }
    };
    thread::Builder::new().name("pager-deadline".into()).spawn(look).map(drop)
}
