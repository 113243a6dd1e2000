//! A connection on which another host's memory is read.
//!
//! One task owns the queue pair. Reads are cut into pieces; up to [`READS_MAX`] are under way, each into a slot of the
//! landing memory, and copied from there when they end. Work under way belongs to the task, not to who asked: dropping a
//! read is always safe. The task sleeps on the completion channel. After any error the connection is over: whoever
//! waits hears of it, and a new one must be made.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep_until, timeout},
};

use crate::{
    holder::WORD_BYTES,
    verbs::{Channel, Event, Id, Posting, QueuePair, VerbsError, Waiter},
};

/// Reads under way on one connection.
pub const READS_MAX: usize = 64;
/// Bytes of one read.
pub const PIECE_BYTES_MAX: usize = 64 << 10;
/// Bytes that one call may ask for.
const CALL_BYTES_MAX: usize = 16 << 20;
/// Calls being worked on; later ones wait.
const CALLS_MAX: usize = 32;

/// No connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The library or the other side.
    #[error("connect by RDMA")]
    Verbs(#[from] VerbsError),
    /// Another event than the one that is due.
    #[error("the connection manager is out of step")]
    Order,
    /// It took too long.
    #[error("no connection within {0:?}")]
    Deadline(Duration),
}

/// Bytes did not come.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// They lie outside of what the holder exposes, or are too many.
    #[error("a read outside of the exposed memory")]
    Bounds,
    /// The connection is over.
    #[error("the connection is over")]
    Over(#[source] Arc<VerbsError>),
    /// Nothing came for too long; the connection is over.
    #[error("nothing came for {0:?}")]
    Silent(Duration),
    /// The connection was over before.
    #[error("the connection was closed")]
    Closed,
}

/// Memory that a holder exposes to this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    /// Where it begins, over there.
    pub address: u64,
    /// The key that opens it.
    pub key: u32,
    /// How many bytes it has.
    pub bytes: u64,
}

/// Neighbouring bytes of it, at most [`PIECE_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin.
    pub offset: u64,
    /// How many.
    pub bytes: usize,
}

#[derive(Debug)]
struct Call {
    remote: Remote,
    pieces: Vec<Piece>,
    reply: oneshot::Sender<Result<Vec<u8>, ReadError>>,
}

/// The way to the task that reads. The connection ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Reader {
    calls: mpsc::Sender<Call>,
    session: u64,
}

impl Reader {
    /// Connects to a holder and shows it the word. The future that comes with the reader is the task: it must be run.
    /// `patience`: how long nothing may come while reads are under way.
    pub async fn connect(
        address: SocketAddr,
        word: &[u8; WORD_BYTES],
        deadline: Duration,
        patience: Duration,
    ) -> Result<(Self, impl Future<Output = ()> + Send + 'static), ConnectError> {
        let connected = timeout(deadline, connect(address, word, deadline)).await;
        let (pair, channel, session) = connected.unwrap_or(Err(ConnectError::Deadline(deadline)))?;
        let (calls, inbox) = mpsc::channel(CALLS_MAX);
        Ok((Self { calls, session }, drive(pair, channel, inbox, patience)))
    }

    /// What the holder calls this connection.
    pub const fn session(&self) -> u64 {
        self.session
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        self.calls.is_closed()
    }

    /// Reads pieces; returns them one behind the other.
    pub async fn read(&self, remote: Remote, pieces: Vec<Piece>) -> Result<Vec<u8>, ReadError> {
        let fits = |piece: &Piece| {
            let end = piece.offset.checked_add(piece.bytes as u64);
            (1..=PIECE_BYTES_MAX).contains(&piece.bytes) && end.is_some_and(|end| end <= remote.bytes)
        };
        let total: usize = pieces.iter().map(|piece| piece.bytes.min(PIECE_BYTES_MAX)).sum();
        if pieces.is_empty() || total > CALL_BYTES_MAX || !pieces.iter().all(fits) {
            return Err(ReadError::Bounds);
        }
        let (reply, answer) = oneshot::channel();
        let call = Call { remote, pieces, reply };
        self.calls.send(call).await.map_err(|_closed| ReadError::Closed)?;
        answer.await.unwrap_or(Err(ReadError::Closed))
    }
}

async fn connect(
    address: SocketAddr,
    word: &[u8; WORD_BYTES],
    deadline: Duration,
) -> Result<(QueuePair, Arc<Channel>, u64), ConnectError> {
    let channel = Channel::new()?;
    let events = channel.waiter()?;
    let step_ms = i32::try_from(deadline.as_millis()).unwrap_or(i32::MAX);
    let id = Id::new(&channel)?;
    id.resolve_address(address, step_ms)?;
    let Event::AddressResolved = due(&events, &channel).await? else { return Err(ConnectError::Order) };
    id.shorten_timeout();
    id.resolve_route(step_ms)?;
    let Event::RouteResolved = due(&events, &channel).await? else { return Err(ConnectError::Order) };
    let pair = QueuePair::new(id, READS_MAX, PIECE_BYTES_MAX)?;
    pair.connect(u8::try_from(READS_MAX).unwrap_or(u8::MAX), word)?;
    let Event::Established { data } = due(&events, &channel).await? else { return Err(ConnectError::Order) };
    let session = data.first_chunk().ok_or(ConnectError::Order)?;
    Ok((pair, channel, u64::from_le_bytes(*session)))
}

/// The next event, whose failure is an error.
async fn due(events: &Waiter, channel: &Arc<Channel>) -> Result<Event, ConnectError> {
    loop {
        if let Some((_, event)) = channel.next()? {
            return match event {
                Event::Failed(error) => Err(error.into()),
                event => Ok(event),
            };
        }
        events.ready().await?;
    }
}

/// A call whose pieces are being read.
struct Work {
    call: Call,
    bytes: Vec<u8>,
    /// The next piece to begin, and where its bytes go.
    next: (usize, usize),
    /// Pieces that have not ended.
    left: usize,
}

/// What is under way.
#[derive(Default)]
struct Desk {
    works: BTreeMap<u64, Work>,
    /// Works that have pieces to begin.
    waiting: VecDeque<u64>,
    /// For each slot in use: whose piece, and where its bytes go.
    slots: BTreeMap<usize, (u64, usize, usize)>,
    number: u64,
}

impl Desk {
    fn add(&mut self, call: Call) {
        let total = call.pieces.iter().map(|piece| piece.bytes).sum();
        let left = call.pieces.len();
        self.number += 1;
        self.works.insert(self.number, Work { call, bytes: vec![0; total], next: (0, 0), left });
        self.waiting.push_back(self.number);
    }

    /// Pieces for the slots that are free, the calls taking turns.
    fn begin(&mut self) -> Vec<Posting> {
        let mut postings = Vec::new();
        let free: Vec<usize> = (0..READS_MAX).filter(|slot| !self.slots.contains_key(slot)).collect();
        for slot in free {
            // Who waits has a piece to begin.
            let Some(number) = self.waiting.pop_front() else { break };
            let Some(work) = self.works.get_mut(&number) else { continue };
            let (at, start) = work.next;
            let Some(Piece { offset, bytes }) = work.call.pieces.get(at).copied() else { continue };
            let (address, key) = (work.call.remote.address + offset, work.call.remote.key);
            postings.push(Posting { slot, address, key, bytes });
            self.slots.insert(slot, (number, start, bytes));
            work.next = (at + 1, start + bytes);
            if work.next.0 < work.call.pieces.len() {
                self.waiting.push_back(number);
            }
        }
        postings
    }

    /// Takes what has landed, and answers whose last piece it was.
    fn land(&mut self, pair: &QueuePair, slots: &[usize]) -> Result<(), VerbsError> {
        for slot in slots {
            let Some((number, start, bytes)) = self.slots.remove(slot) else { continue };
            let Some(work) = self.works.get_mut(&number) else { continue };
            pair.copy_out(*slot, &mut work.bytes[start..start + bytes])?;
            work.left -= 1;
            if work.left == 0
                && let Some(Work { call, bytes, .. }) = self.works.remove(&number)
            {
                // Who asked may have gone.
                drop(call.reply.send(Ok(bytes)));
            }
        }
        Ok(())
    }
}

async fn drive(
    mut pair: QueuePair,
    channel: Arc<Channel>,
    mut calls: mpsc::Receiver<Call>,
    patience: Duration,
) {
    let mut desk = Desk::default();
    let why = match work(&mut pair, &channel, &mut calls, &mut desk, patience).await {
        Ok(()) => ReadError::Closed,
        Err(why) => why,
    };
    tracing::debug!(error = &why as &dyn std::error::Error, "an RDMA connection is over");
    calls.close();
    for (_, work) in desk.works {
        drop(work.call.reply.send(Err(why.clone())));
    }
    while let Ok(call) = calls.try_recv() {
        drop(call.reply.send(Err(why.clone())));
    }
}

/// Until nobody reads any more, or something breaks.
async fn work(
    pair: &mut QueuePair,
    channel: &Arc<Channel>,
    calls: &mut mpsc::Receiver<Call>,
    desk: &mut Desk,
    patience: Duration,
) -> Result<(), ReadError> {
    let over = |error: VerbsError| ReadError::Over(Arc::new(error));
    let (completions, events) = (pair.waiter().map_err(over)?, channel.waiter().map_err(over)?);
    let mut progress = Instant::now();
    let mut ended = Vec::new();
    loop {
        let idle = desk.slots.is_empty();
        let begun = desk.begin();
        if !begun.is_empty() {
            pair.post(&begun).map_err(over)?;
            if idle {
                progress = Instant::now();
            }
        }
        tokio::select! {
            call = calls.recv(), if desk.works.len() < CALLS_MAX => match call {
                Some(call) => desk.add(call),
                // Who still waits holds no reader: nobody hears an answer.
                None => return Ok(()),
            },
            ready = completions.ready() => {
                ready.map_err(over)?;
                pair.completed(&mut ended).map_err(over)?;
                desk.land(pair, &ended).map_err(over)?;
                ended.clear();
                progress = Instant::now();
            }
            ready = events.ready() => {
                ready.map_err(over)?;
                while let Some((_, event)) = channel.next().map_err(over)? {
                    match event {
                        Event::Failed(error) => return Err(over(error)),
                        Event::Disconnected => {
                            let event = "that the holder is gone".to_owned();
                            return Err(over(VerbsError::Event { event, status: 0 }));
                        }
                        _ => {}
                    }
                }
            }
            () = sleep_until(progress + patience), if !desk.slots.is_empty() => {
                return Err(ReadError::Silent(patience));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_begins_once_however_few_slots_are_free() {
        let mut desk = Desk::default();
        let remote = Remote { address: 1 << 40, key: 7, bytes: 1 << 20 };
        let mut answers = Vec::new();
        for first in 0..3 {
            let (reply, answer) = oneshot::channel();
            let pieces = (0..READS_MAX as u64).map(|at| Piece { offset: (first * 1000 + at) * 8, bytes: 8 });
            desk.add(Call { remote, pieces: pieces.collect(), reply });
            answers.push(answer);
        }
        let mut begun = Vec::new();
        loop {
            let postings = desk.begin();
            assert!(postings.len() + desk.slots.len() <= 2 * READS_MAX && desk.slots.len() <= READS_MAX);
            if postings.is_empty() && desk.slots.is_empty() {
                break;
            }
            begun.extend(postings.iter().map(|posting| (posting.address - remote.address) / 8));
            // Every other read ends, and the last ones when there is nothing left to begin.
            let slots: Vec<usize> = desk.slots.keys().copied().collect();
            let ended = slots.iter().filter(|slot| *slot % 2 == 0 || postings.is_empty());
            for slot in ended {
                desk.slots.remove(slot);
            }
        }
        begun.sort_unstable();
        let all = (0..3).flat_map(|first| (0..READS_MAX as u64).map(move |at| first * 1000 + at));
        assert_eq!(begun, all.collect::<Vec<_>>());
    }
}
