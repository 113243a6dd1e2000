//! One-sided reads without a card: what is read one-sided is the holder's memory itself, and whatever becomes of that,
//! pages come, and the right ones. `lab_pages` does the same by RDMA.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use medes_agent::bases::{
    ReadPagesError,
    frame::{Exposed, Refusal},
    local::{Expose, LocalBases, Snapshot},
    onesided::{Cause, Dial, Line, OneSidedPages, Piece, Timing},
    serve::PageServer,
};
use medes_dedup::page::{BasePage, SnapshotId};
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::support::{PATIENCE, any_port, assert_right, bases, place, read, reader_of, server};

/// What a connection does when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Good,
    /// Answers nothing until it is let go on.
    Silent,
    /// Ends.
    Broken,
    /// Brings less than it was asked for.
    Short,
}

/// A card of the holder, and what readers did with it.
#[derive(Debug)]
struct Card {
    held: Arc<LocalBases>,
    mood: Mutex<Mood>,
    go_on: Notify,
    dials: AtomicUsize,
    reads: AtomicUsize,
    /// Connections that there are, and what is open to them.
    sessions: Mutex<BTreeSet<u64>>,
    exposed: Mutex<BTreeSet<(u64, SnapshotId)>>,
}

impl Card {
    fn new(held: Arc<LocalBases>) -> Arc<Self> {
        let (dials, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let (sessions, exposed) = (Mutex::default(), Mutex::default());
        let mood = Mutex::new(Mood::Good);
        Arc::new(Self { held, mood, go_on: Notify::new(), dials, reads, sessions, exposed })
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().expect("works") = mood;
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    fn dials(&self) -> usize {
        self.dials.load(Ordering::SeqCst)
    }
}

/// The holder's end of it.
#[derive(Debug)]
struct AtHolder(Arc<Card>);

impl Expose for AtHolder {
    fn expose(&self, session: u64, snapshot: &Snapshot) -> Result<Exposed, Refusal> {
        if !self.0.sessions.lock().expect("works").contains(&session) {
            return Err(Refusal::NoConnection);
        }
        self.0.exposed.lock().expect("works").insert((session, snapshot.id));
        let bytes = u64::from(snapshot.page_count()) * 4096;
        Ok(Exposed { address: snapshot.id.get() << 40, bytes, key: 1 })
    }

    fn revoke(&self, snapshot: SnapshotId) {
        self.0.exposed.lock().expect("works").retain(|(_, it)| *it != snapshot);
    }
}

/// The reader's end.
#[derive(Debug)]
struct AtReader(Arc<Card>);

impl Dial for AtReader {
    fn dial(&self) -> BoxFuture<'_, Result<Arc<dyn Line>, Cause>> {
        let session = self.0.dials.fetch_add(1, Ordering::SeqCst) as u64;
        self.0.sessions.lock().expect("works").insert(session);
        let line = Connection { card: self.0.clone(), session, is_over: AtomicBool::new(false) };
        Box::pin(async { Ok(Arc::new(line) as Arc<dyn Line>) })
    }
}

#[derive(Debug)]
struct Connection {
    card: Arc<Card>,
    session: u64,
    is_over: AtomicBool,
}

impl Connection {
    async fn read(&self, exposed: Exposed, pieces: Vec<Piece>) -> Result<Vec<u8>, Cause> {
        self.card.reads.fetch_add(1, Ordering::SeqCst);
        let mood = *self.card.mood.lock().expect("works");
        if mood == Mood::Silent {
            self.card.go_on.notified().await;
        }
        let id = SnapshotId::new(exposed.address >> 40).expect("works");
        let may = self.card.exposed.lock().expect("works").contains(&(self.session, id));
        let snapshot = self.card.held.get(id).filter(|_| may && mood != Mood::Broken);
        let Some(snapshot) = snapshot else {
            self.is_over.store(true, Ordering::SeqCst);
            return Err("it broke".into());
        };
        let piece = |Piece { offset, bytes }: Piece| {
            let (first, pages) = (u32::try_from(offset / 4096), u32::try_from(bytes / 4096));
            let first = medes_dedup::page::PageIndex(first.expect("works"));
            snapshot.range(first, pages.expect("works")).expect("no piece lies outside").to_vec()
        };
        let mut bytes = pieces.into_iter().map(piece).collect::<Vec<_>>().concat();
        if mood == Mood::Short {
            bytes.pop();
        }
        Ok(bytes)
    }
}

impl Line for Connection {
    fn session(&self) -> u64 {
        self.session
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    fn read(&self, exposed: Exposed, pieces: Vec<Piece>) -> BoxFuture<'_, Result<Vec<u8>, Cause>> {
        Box::pin(Connection::read(self, exposed, pieces))
    }
}

/// Nothing is late but what never comes, and what broke stays so.
const PATIENT: Timing = Timing { hedge: PATIENCE, rest: Duration::from_secs(3600), lease: PATIENCE };
/// Everything is late.
const HASTY: Timing = Timing { hedge: Duration::ZERO, ..PATIENT };

async fn with_card(snapshots: &[(u64, u32)], timing: Timing) -> (PageServer, Arc<Card>, OneSidedPages) {
    let held = bases(snapshots);
    let card = Card::new(held.clone());
    held.expose_by(Arc::new(AtHolder(card.clone())));
    let server = server(held).await;
    let dial = Arc::new(AtReader(card.clone()));
    let pages = OneSidedPages::new(reader_of(&server), dial, timing, TaskTracker::new());
    (server, card, pages)
}

/// Reads until a read has been one-sided.
async fn until_one_sided(pages: &OneSidedPages, card: &Card, wanted: &[BasePage]) {
    let before = card.reads();
    let reading = async {
        while card.reads() == before {
            assert_right(wanted, &read(pages, wanted).await.expect("works"));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("a read is one-sided at last");
}

fn all(snapshot: u64, pages: u32) -> Vec<BasePage> {
    (0..pages).map(|page| place(snapshot, page)).collect()
}

#[tokio::test]
async fn pages_come_over_tcp_at_first_and_then_without_the_holders_processor() {
    let (server, card, pages) = with_card(&[(1, 3000), (2, 77)], PATIENT).await;
    let both = [place(1, 3), place(2, 4)];
    assert_right(&both, &read(&pages, &both).await.expect("works"));
    assert_eq!((server.pages_sent(), card.reads()), (2, 0), "nothing is open yet");
    until_one_sided(&pages, &card, &both).await;
    let sent = server.pages_sent();
    for wanted in [all(1, 3000), vec![place(1, 2999)], [all(1, 3000), all(2, 77)].concat(), vec![]] {
        assert_right(&wanted, &read(&pages, &wanted).await.expect("works"));
    }
    assert_eq!((server.pages_sent(), card.dials()), (sent, 1));
}

#[tokio::test]
async fn pages_that_are_not_there_are_refused_and_the_connection_goes_on() {
    let (_server, card, pages) = with_card(&[(1, 10)], PATIENT).await;
    until_one_sided(&pages, &card, &all(1, 10)).await;
    for (wanted, refusal) in [
        (place(1, 10), Refusal::NoPage),
        (place(1, u32::MAX), Refusal::NoPage),
        (place(9, 0), Refusal::NoSnapshot),
    ] {
        match read(&pages, &[place(1, 3), wanted]).await {
            Err(ReadPagesError::Refused { source, .. }) => assert_eq!(source, refusal),
            other => panic!("{other:?}"),
        }
    }
    until_one_sided(&pages, &card, &all(1, 10)).await;
    assert_eq!(card.dials(), 1);
}

#[tokio::test]
async fn what_does_not_come_in_time_comes_over_tcp() {
    let (server, card, pages) = with_card(&[(1, 100)], HASTY).await;
    until_one_sided(&pages, &card, &all(1, 100)).await;
    card.be(Mood::Silent);
    let sent = server.pages_sent();
    assert_right(&all(1, 100), &read(&pages, &all(1, 100)).await.expect("works"));
    assert_eq!(server.pages_sent(), sent + 100);
    card.be(Mood::Good);
    until_one_sided(&pages, &card, &all(1, 100)).await;
    assert_eq!(card.dials(), 1, "late is not broken");
}

#[tokio::test]
async fn what_is_late_counts_all_the_same_when_tcp_has_nothing() {
    let (held, tasks, stop) = (bases(&[(1, 100)]), TaskTracker::new(), CancellationToken::new());
    let card = Card::new(held.clone());
    held.expose_by(Arc::new(AtHolder(card.clone())));
    let server = PageServer::start(held, any_port(), &tasks, stop.clone()).await.expect("works");
    let dial = Arc::new(AtReader(card.clone()));
    let pages = OneSidedPages::new(reader_of(&server), dial, HASTY, TaskTracker::new());
    until_one_sided(&pages, &card, &all(1, 100)).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    card.be(Mood::Silent);
    let (reads, wanted) = (card.reads(), all(1, 100));
    let late = async {
        while card.reads() == reads {
            tokio::task::yield_now().await;
        }
        card.go_on.notify_one();
    };
    let (late_pages, ()) = tokio::join!(read(&pages, &wanted), late);
    assert_right(&wanted, &late_pages.expect("works"));
    // And when that breaks too, what TCP says is told.
    card.be(Mood::Broken);
    let error = read(&pages, &wanted).await.expect_err("nobody is left");
    assert!(matches!(error, ReadPagesError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn a_connection_that_breaks_is_left_for_tcp_and_rests() {
    for mood in [Mood::Broken, Mood::Short] {
        let (server, card, pages) = with_card(&[(1, 100)], PATIENT).await;
        until_one_sided(&pages, &card, &all(1, 100)).await;
        card.be(mood);
        let (sent, reads) = (server.pages_sent(), card.reads());
        for _ in 0..3 {
            assert_right(&all(1, 100), &read(&pages, &all(1, 100)).await.expect("works"));
        }
        assert_eq!(server.pages_sent(), sent + 300, "{mood:?}");
        assert_eq!((card.reads(), card.dials()), (reads + 1, 1), "not tried again: {mood:?}");
    }
}

#[tokio::test]
async fn a_connection_that_broke_is_made_again_after_its_rest() {
    let restless = Timing { rest: Duration::ZERO, ..PATIENT };
    let (_server, card, pages) = with_card(&[(1, 100)], restless).await;
    for lives in 1..4 {
        card.be(Mood::Good);
        until_one_sided(&pages, &card, &all(1, 100)).await;
        assert_eq!(card.dials(), lives);
        card.be(Mood::Broken);
        assert_right(&all(1, 100), &read(&pages, &all(1, 100)).await.expect("works"));
    }
}

#[tokio::test]
async fn a_snapshot_that_is_dropped_is_revoked() {
    let (_server, card, pages) = with_card(&[(1, 100), (2, 10)], PATIENT).await;
    until_one_sided(&pages, &card, &[all(1, 100), all(2, 10)].concat()).await;
    card.held.remove(place(1, 0).snapshot);
    assert_eq!(*card.exposed.lock().expect("works"), [(0, place(2, 0).snapshot)].into());
    match read(&pages, &all(1, 100)).await {
        Err(ReadPagesError::Refused { source: Refusal::NoSnapshot, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_connection_that_the_holder_has_forgotten_is_made_again() {
    // A lease of no length: the holder is asked before every read, and none is one-sided.
    let timing = Timing { rest: Duration::ZERO, lease: Duration::ZERO, ..PATIENT };
    let (_server, card, pages) = with_card(&[(1, 100)], timing).await;
    let again = async {
        while card.dials() < 3 {
            assert_right(&all(1, 100), &read(&pages, &all(1, 100)).await.expect("works"));
            card.sessions.lock().expect("works").clear();
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("it is dialed again");
    assert_eq!(card.reads(), 0, "never beyond the lease");
}

#[tokio::test]
async fn a_holder_without_a_card_exposes_nothing() {
    let server = server(bases(&[(1, 10)])).await;
    let pages = reader_of(&server);
    match pages.expose(place(1, 0).snapshot, 0).await {
        Err(ReadPagesError::Refused { source: Refusal::NotExposed, .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_right(&all(1, 10), &read(&pages, &all(1, 10)).await.expect("works"));
}
