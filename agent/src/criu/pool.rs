//! Workers kept ready, so that a restore does not wait for a program to start nor for a namespace to be made.
//!
//! The caller says what a worker is born with: a [`Seat`] is a fresh network namespace, the output a restored sandbox
//! shall have, and whatever the caller wants to keep beside them (the reading ends of that output, for instance).

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::find::Criu;
use super::worker::{Output, StartWorkerError, Worker};
use crate::reaper::Reaper;

/// Pause after a failed attempt; doubles up to the longest.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a worker is born into.
#[derive(Debug)]
pub struct Seat<T> {
    /// A network namespace nobody else uses, loopback up.
    pub netns: OwnedFd,
    /// Where a sandbox restored by this worker writes to.
    pub output: Option<Output>,
    /// What the caller keeps of it.
    pub keep: T,
}

/// A fixed number of idle workers, made in the background. Dropping the pool ends them.
pub struct Pool<T> {
    ready: Mutex<mpsc::Receiver<(Worker, T)>>,
    /// The last attempt to make a worker went well.
    fills: Arc<AtomicBool>,
}

/// Why there is no worker.
#[derive(Debug, thiserror::Error)]
pub enum TakeWorkerError {
    /// None came up in time; the log says why.
    #[error("no CRIU worker was ready within {} ms", limit.as_millis())]
    Timeout {
        /// What was allowed.
        limit: Duration,
    },
    /// The pool was told to stop.
    #[error("the pool of CRIU workers is closed")]
    Closed,
}

/// Why a place in the pool could not be filled.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error("make a network namespace for a CRIU worker")]
    Seat(#[source] io::Error),
    #[error(transparent)]
    Start(#[from] StartWorkerError),
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Pool<T> {
    /// Keeps `size` workers ready (at least one) until `stop`. `make_seat` may block for some milliseconds.
    pub fn start(
        criu: Criu,
        reaper: Reaper,
        size: usize,
        tasks: &TaskTracker,
        stop: CancellationToken,
        make_seat: impl Fn() -> io::Result<Seat<T>> + Send + Sync + 'static,
    ) -> Self {
        let (put, ready) = mpsc::channel(size.max(1));
        let make_seat = Arc::new(make_seat);
        let fills = Arc::new(AtomicBool::new(false));
        let told = fills.clone();
        tasks.spawn(async move {
            let filled = fill(&criu, &reaper, (&put, &told), make_seat);
            tokio::select! { () = filled => {}, () = stop.cancelled() => {} }
        });
        Self { ready: Mutex::new(ready), fills }
    }

    /// Whether workers come up: one has, and no attempt since has failed. None may be free just now.
    pub fn fills(&self) -> bool {
        self.fills.load(Ordering::Relaxed)
    }

    /// Takes a ready worker, waiting for one if need be. Workers that died while waiting are passed over; the
    /// background replaces them. Cancel-safe.
    pub async fn take(&self, limit: Duration) -> Result<(Worker, T), TakeWorkerError> {
        let take = async {
            let mut ready = self.ready.lock().await;
            loop {
                let (worker, keep) = ready.recv().await.ok_or(TakeWorkerError::Closed)?;
                if worker.is_alive() {
                    return Ok((worker, keep));
                }
                tracing::warn!(pid = %worker.pid(), "a CRIU worker died while it waited in the pool");
            }
        };
        tokio::time::timeout(limit, take).await.unwrap_or(Err(TakeWorkerError::Timeout { limit }))
    }
}

/// Fills every free place. Ends when the pool is gone.
async fn fill<T: Send + 'static, F>(
    criu: &Criu,
    reaper: &Reaper,
    (put, fills): (&mpsc::Sender<(Worker, T)>, &AtomicBool),
    make_seat: Arc<F>,
) where
    F: Fn() -> io::Result<Seat<T>> + Send + Sync + 'static,
{
    let mut pause = PAUSE_MIN;
    // The place is reserved first, so that never more than `size` workers exist.
    while let Ok(place) = put.reserve().await {
        let made = ready_worker(criu, reaper, Arc::clone(&make_seat)).await;
        fills.store(made.is_ok(), Ordering::Relaxed);
        match made {
            Ok(worker) => {
                place.send(worker);
                pause = PAUSE_MIN;
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "start a CRIU worker; will try again"
                );
                tokio::time::sleep(pause).await;
                pause = PAUSE_MAX.min(pause * 2);
            }
        }
    }
}

async fn ready_worker<T: Send + 'static, F>(
    criu: &Criu,
    reaper: &Reaper,
    make_seat: Arc<F>,
) -> Result<(Worker, T), FillError>
where
    F: Fn() -> io::Result<Seat<T>> + Send + Sync + 'static,
{
    let seat = tokio::task::spawn_blocking(move || make_seat()).await;
    let Seat { netns, output, keep } =
        seat.unwrap_or_else(|join| Err(io::Error::other(join))).map_err(FillError::Seat)?;
    Ok((Worker::start(criu, reaper, netns, output).await?, keep))
}
