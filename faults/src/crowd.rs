//! Everybody else: a caller of another function, one request after the other, all the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{desk::Desk, http::Asked};

const PAUSE: Duration = Duration::from_millis(60);
/// More answers than any cell takes; a soak keeps none.
const ASKED_MAX: usize = 100_000;

/// A caller at work.
#[derive(Debug)]
pub(crate) struct Crowd {
    stop: Arc<AtomicBool>,
    caller: JoinHandle<Vec<Asked>>,
}

impl Crowd {
    /// Begins to ask.
    pub(crate) fn start(desk: &Desk, path: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (desk, path, told) = (desk.clone(), path.to_owned(), stop.clone());
        let caller = thread::spawn(move || {
            let mut all = Vec::new();
            while !told.load(Ordering::Relaxed) && all.len() < ASKED_MAX {
                all.push(desk.post(&path, None));
                thread::sleep(PAUSE);
            }
            all
        });
        Self { stop, caller }
    }

    /// Asks no more; all that was asked. Waits for the request under way, which ends by itself.
    pub(crate) fn end(self) -> Result<Vec<Asked>> {
        self.stop.store(true, Ordering::Relaxed);
        self.caller.join().ok().context("a caller panicked")
    }
}
