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
struct Exposed {
    exposure: Exposure,
    renewed: Instant,
}

#[derive(Debug)]
struct Session {
    /// Memory is registered with it while nobody holds the lock.
    pair: Arc<QueuePair>,
    /// Reads it may have under way.
    depth: u8,
    /// By the number its owner gave.
    exposed: BTreeMap<u64, Exposed>,
    /// When something was last exposed to it, or it came.
    used: Instant,
}

#[derive(Debug, Default)]
struct Sessions {
    all: BTreeMap<u64, Session>,
    next: u64,
}

/// Whether something is exposed to a reader.
enum Renewed {
    /// Yes, and it stays so.
    Already(Remote),
    /// No; with this it can be.
    Unknown(Arc<QueuePair>),
}

impl Sessions {
    fn renew(&mut self, session: u64, number: u64, now: Instant) -> Result<Renewed, ExposeError> {
        let session = self.all.get_mut(&session).ok_or(ExposeError::NoSession(session))?;
        session.used = now;
        Ok(match session.exposed.get_mut(&number) {
            Some(known) => {
                known.renewed = now;
                Renewed::Already(remote(&known.exposure))
            }
            None => Renewed::Unknown(session.pair.clone()),
        })
    }
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
        let pair = match self.lock().renew(session, number, now)? {
            Renewed::Already(place) => return Ok(place),
            Renewed::Unknown(pair) => pair,
        };
        let exposure = pair.expose(file)?;
        let mut sessions = self.lock();
        // Another call may have been faster: then what was registered just now goes again.
        if let Renewed::Already(place) = sessions.renew(session, number, now)? {
            drop(sessions);
            return Ok(place);
        }
        let place = remote(&exposure);
        if let Some(session) = sessions.all.get_mut(&session) {
            session.exposed.insert(number, Exposed { exposure, renewed: now });
        }
        Ok(place)
    }

    /// Nobody may read this any more.
    pub fn revoke(&self, number: u64) {
        let all = |sessions: &mut Sessions| -> Vec<Exposed> {
            sessions.all.values_mut().filter_map(|session| session.exposed.remove(&number)).collect()
        };
        // Taken down without the lock: it waits for the card.
        let gone = all(&mut self.lock());
        drop(gone);
    }

    /// Revokes what nobody has renewed for `age`, and closes connections for which nothing was renewed in twice that time:
    /// of a reader's host that is gone nobody else tells.
    pub fn revoke_older(&self, age: Duration, now: Instant) {
        let is_older = |since: Instant, age| now.saturating_duration_since(since) >= age;
        let mut sessions = self.lock();
        let closed: Vec<(u64, Session)> =
            sessions.all.extract_if(.., |_, session| is_older(session.used, age * 2)).collect();
        let of_session = |session: &mut Session| -> Vec<(u64, Exposed)> {
            session.exposed.extract_if(.., |_, it| is_older(it.renewed, age)).collect()
        };
        let revoked: Vec<(u64, Exposed)> = sessions.all.values_mut().flat_map(of_session).collect();
        drop(sessions);
        drop((closed, revoked));
    }

    fn lock(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a reader in, or not.
    fn enter(
        &self,
        id: Id,
        (depth, data): (u8, &[u8]),
        word: &[u8; WORD_BYTES],
        now: Instant,
    ) -> Result<(), VerbsError> {
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
        let (pair, exposed) = (Arc::new(pair), BTreeMap::new());
        sessions.all.insert(number, Session { pair, depth, exposed, used: now });
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
                if let Err(error) = holder.enter(id, (depth, &data), &word, Instant::now()) {
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
