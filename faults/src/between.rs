//! Who stands between B and A: passes on what each sends, and now and then does it harm.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::hosts::{Hosts, Place};

/// What is done to bytes on their way from A to B.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    None,
    /// One bit of each piece that is large enough to have pages in it is another one.
    Flip,
    /// Each piece is late.
    Delay(Duration),
}

/// Smaller pieces are greetings and heads. Those are checked as well, but pages are what matters here.
const PIECE_MIN: usize = 2048;
const PIECE: usize = 64 << 10;
const CONNECT: Duration = Duration::from_secs(2);

/// The one between.
#[derive(Debug, Clone)]
pub(crate) struct Between {
    /// 0: none, 1: flip, 2: delay.
    what: Arc<AtomicU8>,
    delay_ms: Arc<AtomicU64>,
    harmed: Arc<AtomicU64>,
}

impl Between {
    /// Listens on these ports in A's place, for as long as this program lives.
    pub(crate) fn start(hosts: &Hosts, ports: &[u16]) -> Result<Self> {
        let between = Self { what: Arc::default(), delay_ms: Arc::default(), harmed: Arc::default() };
        for &port in ports {
            let address = SocketAddr::from((hosts.address(Place::A), port));
            let listener = listen(hosts, address)?;
            let between = between.clone();
            // Ends with this program: nobody waits for it.
            thread::spawn(move || {
                for caller in listener.incoming().flatten() {
                    let between = between.clone();
                    thread::spawn(move || between.pass_on(&caller, address));
                }
            });
        }
        Ok(between)
    }

    /// From now on this is done.
    pub(crate) fn does(&self, harm: Harm) {
        let (what, delay) = match harm {
            Harm::None => (0, Duration::ZERO),
            Harm::Flip => (1, Duration::ZERO),
            Harm::Delay(delay) => (2, delay),
        };
        self.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
        self.what.store(what, Ordering::Relaxed);
    }

    /// Pieces that it did harm to.
    pub(crate) fn harmed(&self) -> u64 {
        self.harmed.load(Ordering::Relaxed)
    }

    fn pass_on(&self, caller: &TcpStream, address: SocketAddr) {
        // This thread is on this program's own host, from where A is where it is.
        let Ok(holder) = TcpStream::connect_timeout(&address, CONNECT) else { return };
        thread::scope(|scope| {
            scope.spawn(|| pump(caller, &holder, |_| ()));
            scope.spawn(|| pump(&holder, caller, |piece| self.harm(piece)));
        });
    }

    fn harm(&self, piece: &mut [u8]) {
        match self.what.load(Ordering::Relaxed) {
            1 if piece.len() >= PIECE_MIN => {
                let at = piece.len() / 2;
                piece[at] ^= 0x10;
                self.harmed.fetch_add(1, Ordering::Relaxed);
            }
            2 => {
                self.harmed.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(self.delay_ms.load(Ordering::Relaxed)));
            }
            _ => {}
        }
    }
}

fn pump(mut from: &TcpStream, mut to: &TcpStream, mut harm: impl FnMut(&mut [u8])) {
    let mut piece = vec![0; PIECE];
    while let Ok(read @ 1..) = from.read(&mut piece) {
        let piece = &mut piece[..read];
        harm(piece);
        if to.write_all(piece).is_err() {
            break;
        }
    }
    // Whoever is gone already needs not be told.
    to.shutdown(Shutdown::Write).ok();
    from.shutdown(Shutdown::Read).ok();
}

/// A socket stays on the host where it was made, whoever accepts on it.
fn listen(hosts: &Hosts, address: SocketAddr) -> Result<TcpListener> {
    let made = thread::scope(|scope| {
        let there = scope.spawn(|| -> Result<TcpListener> {
            hosts.go_to(Place::Between)?;
            Ok(TcpListener::bind(address)?)
        });
        there.join()
    });
    made.map_err(|_panic| io::Error::other("a thread panicked"))?.context("listen in A's place")
}
