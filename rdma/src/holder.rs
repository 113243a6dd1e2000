//! The side whose memory is read: lets readers in and decides what each may read, and until when.
//!
//! A reader that is let in can read nothing yet. What is exposed to it is registered in a protection domain of its own,
//! for reading only, and can be revoked: a read with a revoked key ends that reader's connection, and nobody else's.

use std::{
    collections::BTreeMap,
    fs::File,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    reader::Remote,
    verbs::{Channel, Event, Exposure, Id, Key, QueuePair, VerbsError},
};

/// Bytes of the word that readers show.
pub const WORD_BYTES: usize = 32;
/// Readers at a time.
const SESSIONS_MAX: usize = 256;
/// Connection requests that may wait.
const BACKLOG: i32 = 64;

/// What was not exposed.
#[derive(Debug, thiserror::Error)]
pub enum ExposeError {
    /// There is no such connection, or no longer.
    #[error("no RDMA connection {0}")]
    NoSession(u64),
    /// The library.
    #[error("register memory for RDMA")]
    Verbs(#[from] VerbsError),
}

/// Something exposed to one reader.
#[derive(Debug)]
pub struct Exposed {
    exposure: Exposure,
    renewed: Instant,
}

#[derive(Debug)]
struct Session {
    pair: QueuePair,
    /// Reads it may have under way.
    depth: u8,
    /// By the number its owner gave.
    exposed: BTreeMap<u64, Exposed>,
}

#[derive(Debug, Default)]
struct Sessions {
    all: BTreeMap<u64, Session>,
    next: u64,
}

/// Serves memory of this host. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Holder {
    port: u16,
    sessions: Arc<Mutex<Sessions>>,
}

impl Holder {
    /// Listens for readers that show `word`. The future that comes with the holder is the task that lets them in: it must
    /// be run; it ends only with an error.
    pub fn listen(
        address: SocketAddr,
        word: [u8; WORD_BYTES],
    ) -> Result<(Self, impl Future<Output = VerbsError> + Send + 'static), VerbsError> {
        crate::available()?;
        let channel = Channel::new()?;
        let id = Id::new(&channel)?;
        id.listen(address, BACKLOG)?;
        let holder = Self { port: id.port(), sessions: Arc::default() };
        Ok((holder.clone(), serve(holder, channel, id, word)))
    }

    /// Where it listens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// How many readers there are.
    pub fn readers(&self) -> usize {
        self.lock().all.len()
    }

    /// How many reads a reader may have under way.
    pub fn depth(&self, session: u64) -> Option<u8> {
        self.lock().all.get(&session).map(|session| session.depth)
    }

    /// Lets one reader read a sealed memory file, which its owner calls `number`; again, it renews that. Pins all of it:
    /// call it from a blocking thread.
    pub fn expose(
        &self,
        session: u64,
        number: u64,
        file: &File,
        now: Instant,
    ) -> Result<Remote, ExposeError> {
        let mut sessions = self.lock();
        let Session { pair, exposed, .. } =
            sessions.all.get_mut(&session).ok_or(ExposeError::NoSession(session))?;
        if let Some(known) = exposed.get_mut(&number) {
            known.renewed = now;
            return Ok(remote(&known.exposure));
        }
        let exposure = pair.expose(file)?;
        let place = remote(&exposure);
        exposed.insert(number, Exposed { exposure, renewed: now });
        Ok(place)
    }

    /// Nobody may read this any more.
    pub fn revoke(&self, number: u64) {
        self.lock().all.values_mut().for_each(|session| drop(session.exposed.remove(&number)));
    }

    /// Revokes what nobody has renewed for `age`.
    pub fn revoke_older(&self, age: Duration, now: Instant) {
        let is_young = |exposed: &Exposed| now.saturating_duration_since(exposed.renewed) < age;
        self.lock().all.values_mut().for_each(|session| session.exposed.retain(|_, it| is_young(it)));
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a reader in, or not.
    fn enter(&self, id: Id, depth: u8, data: &[u8], word: &[u8; WORD_BYTES]) -> Result<(), VerbsError> {
        // All bytes are looked at, whichever differs: how long it takes tells nothing about the word.
        let shown = data.first_chunk::<WORD_BYTES>();
        let differs =
            shown.is_none_or(|shown| shown.iter().zip(word).fold(0, |all, (a, b)| all | (a ^ b)) != 0);
        let mut sessions = self.lock();
        if differs || sessions.all.len() >= SESSIONS_MAX {
            return id.reject();
        }
        let pair = QueuePair::new(id, 0, 0)?;
        sessions.next += 1;
        let number = sessions.next;
        pair.accept(depth, &number.to_le_bytes())?;
        sessions.all.insert(number, Session { pair, depth, exposed: BTreeMap::new() });
        Ok(())
    }

    fn leave(&self, key: Key) {
        let gone: Vec<Session> =
            self.lock().all.extract_if(.., |_, it| it.pair.key() == key).map(|it| it.1).collect();
        // Taken down without the lock: it waits for the card.
        drop(gone);
    }
}

fn remote(exposure: &Exposure) -> Remote {
    let (address, key, bytes) = exposure.place();
    Remote { address, key, bytes }
}

async fn serve(holder: Holder, channel: Arc<Channel>, _listening: Id, word: [u8; WORD_BYTES]) -> VerbsError {
    let events = match channel.waiter() {
        Ok(events) => events,
        Err(error) => return error,
    };
    loop {
        match channel.next() {
            Ok(Some((_, Event::Request { id, depth, data }))) => {
                if let Err(error) = holder.enter(id, depth, &data, &word) {
                    tracing::warn!(error = &error as &dyn std::error::Error, "let a reader in by RDMA");
                }
            }
            Ok(Some((key, Event::Disconnected | Event::Failed(_)))) => holder.leave(key),
            Ok(Some(_)) => {}
            Ok(None) => {
                if let Err(error) = events.ready().await {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}
