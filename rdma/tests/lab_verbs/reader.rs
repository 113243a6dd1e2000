//! The host that reads.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, TcpStream},
    time::{Duration, Instant},
};

use medes_rdma::{ConnectError, Piece, ReadError, Reader, Remote};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::task::LocalSet;

use crate::{ORDER_PORT, PAGE, PAGES, RDMA_PORT, WORD, word_at};

const DEADLINE: Duration = Duration::from_secs(20);

/// The holder's ear.
struct Orders(BufReader<TcpStream>);

impl Orders {
    fn open(address: IpAddr) -> Self {
        let until = Instant::now() + DEADLINE;
        loop {
            match TcpStream::connect((address, ORDER_PORT)) {
                Ok(stream) => return Self(BufReader::new(stream)),
                Err(error) => assert!(Instant::now() < until, "no holder: {error}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn give(&mut self, order: &str) -> String {
        self.0.get_mut().write_all(format!("{order}\n").as_bytes()).expect("an order");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        answer.trim_end().to_owned()
    }

    fn expose(&mut self, reader: &Reader, number: u64) -> Remote {
        let answer = self.give(&format!("expose {} {number}", reader.session()));
        let numbers: Vec<u64> = answer.split(' ').map_while(|word| word.parse().ok()).collect();
        let [address, key, bytes] = numbers[..] else { panic!("{answer}") };
        Remote { address, key: u32::try_from(key).expect("a key"), bytes }
    }
}

async fn connect(address: IpAddr, word: &[u8; 32]) -> Result<Reader, ConnectError> {
    let (reader, task) = Reader::connect((address, RDMA_PORT).into(), word, DEADLINE, DEADLINE).await?;
    tokio::task::spawn_local(task);
    Ok(reader)
}

fn pieces(first: usize, pages: usize, each: usize) -> Vec<Piece> {
    let starts = (first..first + pages).step_by(each);
    starts
        .map(|page| Piece { offset: (page * PAGE) as u64, bytes: each.min(first + pages - page) * PAGE })
        .collect()
}

fn verify(bytes: &[u8], first: usize, pages: usize) {
    assert_eq!(bytes.len(), pages * PAGE);
    for (at, got) in bytes.as_chunks::<8>().0.iter().enumerate() {
        let (page, word) = (first + at / (PAGE / 8), at % (PAGE / 8));
        assert_eq!(u64::from_le_bytes(*got), word_at(page, word), "page {page}, word {word}");
    }
}

/// Runs a test and counts it. One that fails ends everything.
async fn step(passed: &mut usize, name: &str, work: impl Future<Output = ()>) {
    let begun = Instant::now();
    work.await;
    println!("test {name} ... ok ({} ms)", begun.elapsed().as_millis());
    *passed += 1;
}

/// Everything, one after the other: the holder dies at the end.
pub(crate) async fn run(address: IpAddr, lossy: bool) {
    let mut orders = Orders::open(address);
    let mut count = 0;
    let passed = &mut count;
    LocalSet::new()
        .run_until(async {
            if lossy {
                step(passed, "every_page_comes_although_packets_are_lost", all_pages(address, &mut orders))
                    .await;
                return;
            }
            step(passed, "a_reader_without_the_word_is_sent_away", sent_away(address)).await;
            step(passed, "every_page_comes_as_it_is", all_pages(address, &mut orders)).await;
            step(passed, "many_calls_share_a_connection", many_calls(address, &mut orders)).await;
            step(passed, "what_lies_outside_is_not_asked_for", outside(address, &mut orders)).await;
            step(passed, "memory_that_may_change_is_not_exposed", not_sealed(address, &mut orders)).await;
            step(passed, "a_revoked_key_opens_nothing", revoked(address, &mut orders, "revoke 7")).await;
            step(passed, "an_expired_lease_opens_nothing", revoked(address, &mut orders, "expire")).await;
            step(passed, "a_connection_that_nobody_uses_is_closed", closed(address, &mut orders)).await;
            step(passed, "a_reader_that_leaves_is_forgotten", forgotten(address, &mut orders)).await;
            step(passed, "a_holder_that_dies_is_noticed", killed(address, &mut orders)).await;
        })
        .await;
    println!("test result: ok. {count} passed; 0 failed");
}

async fn sent_away(address: IpAddr) {
    let refused = connect(address, &[0; 32]).await;
    assert!(matches!(refused, Err(ConnectError::Verbs(_))), "{refused:?}");
}

async fn all_pages(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    // Mirrored wrongly this would be 0, and the first read would never end.
    let depth: u8 = orders.give(&format!("depth {}", reader.session())).parse().expect("a depth");
    assert!(depth >= 1, "reads the reader may have under way");
    let remote = orders.expose(&reader, 1);
    for each in [1, 3, 16] {
        let bytes = reader.read(remote, pieces(0, PAGES, each)).await.expect("all pages");
        verify(&bytes, 0, PAGES);
    }
    println!("    {depth} reads under way at most");
}

async fn many_calls(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let remote = orders.expose(&reader, 1);
    let mut calls = Vec::new();
    for number in 0..100 {
        let reader = reader.clone();
        calls.push(tokio::task::spawn_local(async move {
            let (first, pages) = (number * 17, number % 40 + 1);
            let read = reader.read(remote, pieces(first, pages, number % 16 + 1));
            if number % 10 == 9 {
                // Asked, and not waited for: nobody else may notice.
                drop(tokio::time::timeout(Duration::ZERO, read).await);
                return;
            }
            verify(&read.await.expect("pages"), first, pages);
        }));
    }
    for call in calls {
        call.await.expect("a call");
    }
}

async fn outside(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let remote = orders.expose(&reader, 1);
    for pieces in [
        vec![],
        vec![Piece { offset: remote.bytes, bytes: 1 }],
        vec![Piece { offset: u64::MAX, bytes: 1 }],
        vec![Piece { offset: 0, bytes: 0 }],
        vec![Piece { offset: 0, bytes: (64 << 10) + 1 }],
    ] {
        assert!(matches!(reader.read(remote, pieces).await, Err(ReadError::Bounds)));
    }
    // Who lies about the length hears from the holder's card.
    let longer = Remote { bytes: remote.bytes + 4096, ..remote };
    let read = reader.read(longer, vec![Piece { offset: remote.bytes, bytes: 4096 }]).await;
    assert!(matches!(read, Err(ReadError::Over(_))), "{read:?}");
}

async fn not_sealed(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let answer = orders.give(&format!("expose-open {} 1", reader.session()));
    assert!(answer.contains("not sealed"), "{answer}");
    let answer = orders.give(&format!("expose {} 1", reader.session() + 1000));
    assert!(answer.starts_with("refused"), "{answer}");
}

async fn revoked(address: IpAddr, orders: &mut Orders, order: &str) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let other = connect(address, &WORD).await.expect("a connection");
    let (remote, of_other) = (orders.expose(&reader, 7), orders.expose(&other, 8));
    verify(&reader.read(remote, pieces(5, 1, 1)).await.expect("a page"), 5, 1);
    // Nobody reads with another's key.
    assert_ne!(remote.key, of_other.key);
    orders.give(order);
    let read = reader.read(remote, pieces(5, 1, 1)).await;
    assert!(matches!(read, Err(ReadError::Over(_))), "{read:?}");
    let read = reader.read(remote, pieces(5, 1, 1)).await;
    assert!(matches!(read, Err(ReadError::Closed)), "the connection is of no more use: {read:?}");
    assert!(reader.is_over());
    if order.starts_with("revoke") {
        verify(&other.read(of_other, pieces(5, 1, 1)).await.expect("the other goes on"), 5, 1);
    }
    // A new one brings it back.
    let reader = connect(address, &WORD).await.expect("a connection");
    let remote = orders.expose(&reader, 7);
    verify(&reader.read(remote, pieces(5, 1, 1)).await.expect("a page"), 5, 1);
}

async fn closed(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let remote = orders.expose(&reader, 7);
    verify(&reader.read(remote, pieces(5, 1, 1)).await.expect("a page"), 5, 1);
    orders.give("close");
    let until = Instant::now() + DEADLINE;
    while !reader.is_over() {
        assert!(Instant::now() < until, "it is still open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(orders.give(&format!("depth {}", reader.session())), "none");
}

async fn forgotten(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let session = reader.session();
    assert_ne!(orders.give(&format!("depth {session}")), "none");
    drop(reader);
    let until = Instant::now() + DEADLINE;
    while orders.give(&format!("depth {session}")) != "none" {
        assert!(Instant::now() < until, "it is still there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn killed(address: IpAddr, orders: &mut Orders) {
    let reader = connect(address, &WORD).await.expect("a connection");
    let remote = orders.expose(&reader, 1);
    verify(&reader.read(remote, pieces(0, 64, 1)).await.expect("pages"), 0, 64);
    let pid = Pid::from_raw(orders.give("pid").parse().expect("a number"));
    let reading = async {
        loop {
            match reader.read(remote, pieces(0, PAGES, 16)).await {
                Ok(bytes) => verify(&bytes, 0, PAGES),
                Err(error) => return error,
            }
        }
    };
    let killing = async {
        tokio::task::yield_now().await;
        kill(pid, Signal::SIGKILL).expect("killed");
    };
    let (error, ()) = tokio::join!(reading, killing);
    assert!(!matches!(error, ReadError::Bounds), "{error:?}");
    println!("    {error:?}");
}
