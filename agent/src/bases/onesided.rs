//! Pages of one other node by one-sided reads, with its page service behind them.
//!
//! The holder exposes a snapshot to our connection when asked over the page service, for as long as the lease says; then
//! its processor has no part in a read any more. Nothing waits for that to come about: until a connection is open and a
//! snapshot exposed, pages come over TCP. What does not come in time is asked over TCP as well, and the first answer
//! counts. When a connection breaks, the reads on it go to TCP, and a new one is made after a rest.
//!
//! Pages have no sums here, as they have on the page service. The transport checks its packets from end to end against
//! errors of the wire; beyond that, as for any page, the keyed hash of what is made of it is checked before anybody may
//! see it, and the hash of a whole snapshot when it is fetched. So a wrong page can spoil an image or a restore, which
//! is noticed then, and never a sandbox.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::{BoxFuture, Either, select, try_join_all};
use medes_dedup::page::{BasePage, PAGE_BYTES, Page, SnapshotId};
use tokio::time::{Instant, timeout};
use tokio_util::task::TaskTracker;

use super::{
    base_pages::{BasePages, ReadPagesError},
    frame::{Exposed, Refusal},
    tcp::TcpPages,
};
use crate::metrics;

/// Pages of one piece.
pub const PIECE_PAGES_MAX: usize = 16;
/// Pages of one call.
const CALL_PAGES: usize = 1024;
/// A read gets so much more time before it is late, for each page: that is 80 MB/s.
const HEDGE_PAGE: Duration = Duration::from_micros(50);

/// When something is too late, or too early.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A read that takes longer, and a little more for each page, is asked over TCP as well.
    pub hedge: Duration,
    /// After a connection broke or did not come about, none is made for so long.
    pub rest: Duration,
    /// How long a holder keeps a snapshot exposed that nobody renews.
    pub lease: Duration,
}

impl Timing {
    /// For cards that answer within microseconds, unless packets are lost: the transport tries again after 67 ms.
    pub const DEFAULT: Self = Self {
        hedge: Duration::from_millis(100),
        rest: Duration::from_secs(10),
        lease: Duration::from_secs(120),
    };
}

/// Why one-sided reads do not work, for the log.
pub type Cause = Box<dyn Error + Send + Sync>;

/// Neighbouring bytes of a snapshot, those of at most [`PIECE_PAGES_MAX`] pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: usize,
}

/// A connection on which one holder's memory is read.
pub trait Line: fmt::Debug + Send + Sync {
    /// What the holder calls it.
    fn session(&self) -> u64;

    /// Whether it is of no more use.
    fn is_over(&self) -> bool;

    /// Reads pieces; returns them one behind the other. Takes a bounded time; cancel-safe. After an error the connection is
    /// over.
    fn read(&self, exposed: Exposed, pieces: Vec<Piece>) -> BoxFuture<'_, Result<Vec<u8>, Cause>>;
}

/// Makes connections to one holder.
pub trait Dial: fmt::Debug + Send + Sync {
    /// Makes one. Takes a bounded time.
    fn dial(&self) -> BoxFuture<'_, Result<Arc<dyn Line>, Cause>>;
}

/// The pages of one holder.
#[derive(Debug)]
pub struct OneSidedPages {
    tcp: Arc<TcpPages>,
    dial: Arc<dyn Dial>,
    state: Arc<Mutex<State>>,
    timing: Timing,
    tasks: TaskTracker,
}

/// How things stand with the holder.
#[derive(Debug)]
enum State {
    /// No connection, and none is made before that.
    Apart(Option<Instant>),
    /// One is being made.
    Dialing,
    /// There is one.
    Open(Open),
}

#[derive(Debug)]
struct Open {
    line: Arc<dyn Line>,
    leases: BTreeMap<SnapshotId, Lease>,
}

/// What we know of a snapshot there.
#[derive(Debug, Clone, Copy)]
struct Lease {
    /// Where it is exposed, and until when at least.
    exposed: Option<(Exposed, Instant)>,
    asked: Asked,
}

/// Whether the holder is asked to expose a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// It is not.
    No,
    /// It is being asked.
    Now,
    /// It could not, and is not asked again before that.
    Denied(Instant),
}

impl Lease {
    /// Whether anything has to be remembered of it.
    fn is_of_use(&self, now: Instant) -> bool {
        let is_exposed = self.exposed.is_some_and(|(_, until)| now < until);
        is_exposed || !self.may_be_asked(now)
    }

    fn may_be_asked(&self, now: Instant) -> bool {
        match self.asked {
            Asked::No => true,
            Asked::Now => false,
            Asked::Denied(until) => until <= now,
        }
    }
}

/// Everything a read needs.
#[derive(Debug)]
struct Ready {
    line: Arc<dyn Line>,
    calls: Vec<(Exposed, Vec<Piece>)>,
}

impl OneSidedPages {
    /// Pages of a holder that `dial` connects to, and whose page service is `tcp`. Nothing is connected yet.
    pub fn new(tcp: TcpPages, dial: Arc<dyn Dial>, timing: Timing, tasks: TaskTracker) -> Self {
        let state = Arc::new(Mutex::new(State::Apart(None)));
        Self { tcp: Arc::new(tcp), dial, state, timing, tasks }
    }

    /// What is needed to read these pages one-sided; `None` while that is not there, which is then seen to.
    fn ready(&self, wanted: &[BasePage], now: Instant) -> Option<Ready> {
        let mut state = lock(&self.state);
        if let State::Open(open) = &*state
            && open.line.is_over()
        {
            // Nobody read when it ended, or who read told already.
            *state = State::Apart(Some(now + self.timing.rest));
        }
        match &mut *state {
            State::Open(open) => self.calls(open, wanted, now),
            State::Apart(rests_until) if rests_until.is_none_or(|until| until <= now) => {
                *state = State::Dialing;
                self.tasks.spawn(connect(self.dial.clone(), self.state.clone(), self.timing.rest));
                None
            }
            State::Apart(_) | State::Dialing => None,
        }
    }

    fn calls(&self, open: &mut Open, wanted: &[BasePage], now: Instant) -> Option<Ready> {
        let mut calls = Some(Vec::new());
        for run in wanted.chunk_by(|a, b| a.snapshot == b.snapshot) {
            let snapshot = run[0].snapshot;
            let known = open.leases.get(&snapshot);
            let exposed = known.and_then(|lease| lease.exposed).filter(|(_, until)| now < *until);
            let may_be_asked = known.is_none_or(|lease| lease.may_be_asked(now));
            // Renewed when half of it is over: long before the holder forgets.
            let is_young = exposed.is_some_and(|(_, until)| now + self.timing.lease / 2 < until);
            if !is_young && may_be_asked {
                open.leases.retain(|_, lease| lease.is_of_use(now));
                open.leases.insert(snapshot, Lease { exposed, asked: Asked::Now });
                let ask =
                    ask(self.tcp.clone(), (open.line.clone(), snapshot), self.state.clone(), self.timing);
                self.tasks.spawn(ask);
            }
            // Pages that are not there are refused by the page service.
            let of_run = exposed.and_then(|(exposed, _)| {
                let within = |call: &[BasePage]| Some((exposed, pieces(call, exposed.bytes)?));
                run.chunks(CALL_PAGES).map(within).collect::<Option<Vec<_>>>()
            });
            calls = calls.zip(of_run).map(|(calls, of_run)| [calls, of_run].concat());
        }
        calls.map(|calls| Ready { line: open.line.clone(), calls })
    }

    async fn read_all(&self, wanted: &[BasePage], into: &mut [Page]) -> Result<(), ReadPagesError> {
        let wanted = &wanted[..wanted.len().min(into.len())];
        let into = &mut into[..wanted.len()];
        let Some(Ready { line, calls }) = self.ready(wanted, Instant::now()) else {
            return self.tcp.read(wanted, into).await;
        };
        let reads = calls.into_iter().map(|(exposed, pieces)| line.read(exposed, pieces));
        let mut one_sided = pin!(try_join_all(reads.collect::<Vec<_>>()));
        let pages = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
        match timeout(self.timing.hedge + HEDGE_PAGE * pages, &mut one_sided).await {
            Ok(Ok(parts)) => return self.take(&line, &parts, wanted, into).await,
            Ok(Err(error)) => {
                self.broke(&line, &*error);
                return self.tcp.read(wanted, into).await;
            }
            Err(_late) => metrics::fallback("late"),
        }
        let parts = match select(one_sided, self.tcp.read(wanted, into)).await {
            Either::Left((Ok(parts), by_tcp)) => {
                drop(by_tcp);
                parts
            }
            Either::Left((Err(error), by_tcp)) => {
                self.broke(&line, &*error);
                return by_tcp.await;
            }
            Either::Right((Ok(()), _)) => return Ok(()),
            // All that is left.
            Either::Right((Err(by_tcp), one_sided)) => match one_sided.await {
                Ok(parts) => parts,
                Err(error) => {
                    self.broke(&line, &*error);
                    return Err(by_tcp);
                }
            },
        };
        self.take(&line, &parts, wanted, into).await
    }

    /// Copies pages to their places.
    async fn take(
        &self,
        line: &Arc<dyn Line>,
        parts: &[Vec<u8>],
        wanted: &[BasePage],
        into: &mut [Page],
    ) -> Result<(), ReadPagesError> {
        let bytes: usize = parts.iter().map(Vec::len).sum();
        if bytes != size_of_val(into) {
            self.broke(line, &BadLength { bytes, wanted: size_of_val(into) });
            return self.tcp.read(wanted, into).await;
        }
        let pages = parts.iter().flat_map(|part| part.as_chunks::<PAGE_BYTES>().0);
        into.iter_mut().zip(pages).for_each(|(into, page)| *into = *page);
        metrics::remote_pages("rdma", into.len());
        Ok(())
    }

    /// A connection is of no more use. Whoever says so first has it told.
    fn broke(&self, line: &Arc<dyn Line>, error: &(dyn Error + 'static)) {
        metrics::fallback("broken");
        part(&mut lock(&self.state), Some(line), error, self.timing.rest);
    }
}

impl BasePages for OneSidedPages {
    fn read<'a>(
        &'a self,
        wanted: &'a [BasePage],
        into: &'a mut [Page],
    ) -> BoxFuture<'a, Result<(), ReadPagesError>> {
        Box::pin(self.read_all(wanted, into))
    }
}

/// A connection brought more or less than it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{bytes} bytes came, not {wanted}")]
struct BadLength {
    bytes: usize,
    wanted: usize,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets go of a connection that broke, or of the hope for one, for some time.
fn part(state: &mut State, line: Option<&Arc<dyn Line>>, error: &(dyn Error + 'static), rest: Duration) {
    let is_it = match (&*state, line) {
        (State::Open(open), Some(line)) => Arc::ptr_eq(&open.line, line),
        (State::Dialing, None) => true,
        _ => false,
    };
    if is_it {
        tracing::info!(error, ?rest, "base pages of a node come over TCP, not by RDMA, for now");
        *state = State::Apart(Some(Instant::now() + rest));
    }
}

async fn connect(dial: Arc<dyn Dial>, state: Arc<Mutex<State>>, rest: Duration) {
    match dial.dial().await {
        Ok(line) => *lock(&state) = State::Open(Open { line, leases: BTreeMap::new() }),
        Err(error) => part(&mut lock(&state), None, &*error, rest),
    }
}

/// Has the holder expose a snapshot to our connection, or renew that.
async fn ask(
    tcp: Arc<TcpPages>,
    (line, snapshot): (Arc<dyn Line>, SnapshotId),
    state: Arc<Mutex<State>>,
    Timing { lease, rest, .. }: Timing,
) {
    // Counted from before the holder begins to count.
    let until = Instant::now() + lease;
    let asked = tcp.expose(snapshot, line.session()).await;
    let mut state = lock(&state);
    if let Err(error @ ReadPagesError::Refused { source: Refusal::NoConnection, .. }) = &asked {
        return part(&mut state, Some(&line), error, rest);
    }
    let State::Open(open) = &mut *state else { return };
    if !Arc::ptr_eq(&open.line, &line) {
        return;
    }
    let lease = match asked {
        Ok(exposed) => Lease { exposed: Some((exposed, until)), asked: Asked::No },
        // It is gone, it does not fit, or the page service does not answer: who reads over TCP hears the same.
        Err(_) => Lease { exposed: None, asked: Asked::Denied(Instant::now() + rest) },
    };
    open.leases.insert(snapshot, lease);
}

/// Neighbouring pages are one piece; `None` if they do not lie within so many bytes.
fn pieces(call: &[BasePage], bytes: u64) -> Option<Vec<Piece>> {
    let neighbours = call.chunk_by(|a, b| a.page.0.checked_add(1) == Some(b.page.0));
    let runs = neighbours.flat_map(|pages| pages.chunks(PIECE_PAGES_MAX));
    let piece = |pages: &[BasePage]| {
        let (offset, length) = (u64::from(pages[0].page.0) * PAGE_BYTES as u64, pages.len() * PAGE_BYTES);
        (offset + length as u64 <= bytes).then_some(Piece { offset, bytes: length })
    };
    runs.map(piece).collect()
}

#[cfg(test)]
mod tests {
    use medes_dedup::page::PageIndex;

    use super::*;

    #[test]
    fn neighbouring_pages_are_one_piece_up_to_its_size() {
        let place = |page| BasePage { snapshot: SnapshotId::new(1).unwrap(), page: PageIndex(page) };
        let wanted: Vec<BasePage> = [1, 2, 3, 7].into_iter().chain(100..120).map(place).collect();
        let page = PAGE_BYTES as u64;
        let piece = |first: u64, pages: usize| Piece { offset: first * page, bytes: pages * PAGE_BYTES };
        let all = [piece(1, 3), piece(7, 1), piece(100, 16), piece(116, 4)];
        assert_eq!(pieces(&wanted, 120 * page).as_deref(), Some(&all[..]));
        assert_eq!(pieces(&wanted, 120 * page - 1), None, "the last page is not there");
        assert_eq!(pieces(&[place(u32::MAX)], u64::MAX).map(|all| all.len()), Some(1));
    }
}
