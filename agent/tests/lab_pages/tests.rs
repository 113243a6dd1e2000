//! The host that reads, and what it finds.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use medes_agent::bases::{
    ReadPagesError,
    frame::{Refusal, Token},
    onesided::{OneSidedPages, Timing},
    rdma,
};
use medes_dedup::page::BasePage;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio_util::task::TaskTracker;

use crate::{
    ORDER_PORT, PAGES,
    support::{PATIENCE, assert_right, place, read, reader, scattered},
};

/// The holder's ear.
struct Orders(BufReader<TcpStream>);

impl Orders {
    fn open(host: IpAddr) -> Self {
        let until = Instant::now() + PATIENCE;
        loop {
            match TcpStream::connect((host, ORDER_PORT)) {
                Ok(stream) => return Self(BufReader::new(stream)),
                Err(error) => assert!(Instant::now() < until, "no holder: {error}"),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn give(&mut self, order: &str) -> String {
        writeln!(self.0.get_mut(), "{order}").expect("an order");
        let mut answer = String::new();
        self.0.read_line(&mut answer).expect("an answer");
        answer.trim_end().to_owned()
    }

    fn sent(&mut self) -> u32 {
        self.give("sent").parse().expect("a number")
    }

    fn pages(&mut self, timing: Timing) -> OneSidedPages {
        let answer = self.give("where");
        let words: Vec<&str> = answer.split(' ').collect();
        let [tcp, by_rdma, token] = words[..] else { panic!("{answer}") };
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let token: Vec<u8> = token.split(',').map(|byte| byte.parse().expect("a byte")).collect();
        let (token, tasks): (Token, _) = (token.try_into().expect("a token"), TaskTracker::new());
        let dial = rdma::dial(address(by_rdma), token, &tasks).expect("a device");
        OneSidedPages::new(reader(address(tcp), token, PATIENCE), dial, timing, tasks)
    }
}

/// The machine is emulated: what is late says nothing, so hardly anything is.
const SLOW: Timing = Timing { hedge: PATIENCE, ..Timing::DEFAULT };

/// Reads a few pages until they come without the holder's processor.
async fn until_one_sided(pages: &OneSidedPages, orders: &mut Orders) {
    let (wanted, until) = ([place(1, 3), place(1, 70)], Instant::now() + PATIENCE);
    loop {
        let sent = orders.sent();
        assert_right(&wanted, &read(pages, &wanted).await.expect("pages"));
        if orders.sent() == sent {
            return;
        }
        assert!(Instant::now() < until, "no page comes by RDMA");
    }
}

async fn step(passed: &mut usize, name: &str, work: impl Future<Output = ()>) {
    let begun = Instant::now();
    work.await;
    println!("test {name} ... ok ({} ms)", begun.elapsed().as_millis());
    *passed += 1;
}

/// What is between the hosts.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Line<'a> {
    Good,
    /// Packets are lost and late.
    Lossy,
    /// What goes by RDMA can be slowed down, on this device.
    Slow {
        device: &'a str,
    },
}

/// Everything, one after the other: the holder dies at the end.
pub(crate) async fn run(host: IpAddr, line: Line<'_>) {
    let mut orders = Orders::open(host);
    let mut count = 0;
    let passed = &mut count;
    match line {
        Line::Lossy => {
            step(passed, "base_pages_come_although_packets_are_lost", lossily(&mut orders)).await;
        }
        Line::Slow { device } => {
            step(passed, "reads_that_rdma_does_not_answer_are_answered_by_tcp", slow(&mut orders, device))
                .await;
        }
        Line::Good => {
            step(passed, "base_pages_come_without_the_holders_processor", one_sided(&mut orders)).await;
            step(passed, "many_reads_are_under_way_at_once", together(&mut orders)).await;
            step(passed, "base_pages_that_are_late_come_over_tcp", hedged(&mut orders)).await;
            step(passed, "a_snapshot_that_is_dropped_is_read_no_more", dropped(&mut orders)).await;
            step(passed, "a_holder_that_dies_while_it_is_read_is_told", killed(&mut orders)).await;
        }
    }
    println!("test result: ok. {count} passed; 0 failed");
}

fn selections() -> [Vec<BasePage>; 3] {
    let everything = (0..PAGES).collect();
    [everything, scattered(300, PAGES), vec![PAGES - 1]]
        .map(|pages| pages.into_iter().map(|page| place(1, page)).collect())
}

async fn one_sided(orders: &mut Orders) {
    let pages = orders.pages(SLOW);
    until_one_sided(&pages, orders).await;
    let sent = orders.sent();
    for wanted in selections() {
        assert_right(&wanted, &read(&pages, &wanted).await.expect("pages"));
    }
    assert_eq!(orders.sent(), sent, "the page service has sent nothing");
}

/// Pages one by one, and the same pages in one call, which keeps 64 reads under way. Machine and card are emulated, so only
/// their ratio says something.
async fn together(orders: &mut Orders) {
    let pages = orders.pages(SLOW);
    until_one_sided(&pages, orders).await;
    let wanted: Vec<BasePage> = scattered(256, PAGES).into_iter().map(|page| place(1, page)).collect();
    let sent = orders.sent();
    let mut rates = [0.0; 2];
    for (rate, at_once) in rates.iter_mut().zip([1, wanted.len()]) {
        let (mut read_pages, begun) = (0, Instant::now());
        for part in [(); 3].into_iter().flat_map(|()| wanted.chunks(at_once)) {
            assert_right(part, &read(&pages, part).await.expect("pages"));
            read_pages += part.len();
        }
        *rate = read_pages as f64 / begun.elapsed().as_secs_f64();
    }
    assert_eq!(orders.sent(), sent, "all of it went by RDMA");
    let [alone, together] = rates;
    println!(
        "    figure: {alone:.0} pages/s with 1 read under way, {together:.0} with 64: {:.1} times",
        together / alone
    );
}

/// RDMA takes a minute, TCP does not: with the timing that agents have, a read is over long before RDMA could answer.
async fn slow(orders: &mut Orders, device: &str) {
    let pages = orders.pages(Timing::DEFAULT);
    until_one_sided(&pages, orders).await;
    let delay = ["qdisc", "add", "dev", device, "parent", "1:4", "handle", "40:", "netem", "delay", "60s"];
    let slowed = std::process::Command::new("tc").args(delay).status().expect("tc");
    assert!(slowed.success(), "{slowed}");
    for wanted in selections() {
        let (sent, begun) = (orders.sent(), Instant::now());
        assert_right(&wanted, &read(&pages, &wanted).await.expect("pages"));
        assert!(orders.sent() > sent, "TCP has answered");
        println!("    {} pages after {} ms", wanted.len(), begun.elapsed().as_millis());
    }
}

/// Nothing is in time: both ways are used at once, and whichever is faster.
async fn hedged(orders: &mut Orders) {
    let pages = orders.pages(Timing { hedge: Duration::ZERO, ..SLOW });
    let before = orders.sent();
    for _ in 0..3 {
        for wanted in selections() {
            assert_right(&wanted, &read(&pages, &wanted).await.expect("pages"));
        }
    }
    assert!(orders.sent() > before, "TCP was asked");
}

/// With the timing that agents have: what is lost on one way comes by the other.
async fn lossily(orders: &mut Orders) {
    let pages = orders.pages(Timing::DEFAULT);
    let until = Instant::now() + Duration::from_secs(10);
    let mut reads = 0;
    while Instant::now() < until || reads == 0 {
        for wanted in selections() {
            assert_right(&wanted, &read(&pages, &wanted).await.expect("pages"));
            reads += 1;
        }
    }
    println!("    {reads} reads, all right");
}

async fn dropped(orders: &mut Orders) {
    let pages = orders.pages(SLOW);
    until_one_sided(&pages, orders).await;
    orders.give("remove");
    let wanted = [place(1, 1), place(1, 2)];
    match read(&pages, &wanted).await {
        Err(ReadPagesError::Refused { source: Refusal::NoSnapshot, .. }) => {}
        other => panic!("{other:?}"),
    }
    // The revoked key has ended the connection, which rests; TCP does not.
    orders.give("insert");
    let sent = orders.sent();
    assert_right(&wanted, &read(&pages, &wanted).await.expect("pages"));
    assert_eq!(orders.sent(), sent + 2);
    // A new reader has a new connection.
    until_one_sided(&orders.pages(SLOW), orders).await;
}

async fn killed(orders: &mut Orders) {
    let pages = orders.pages(SLOW);
    until_one_sided(&pages, orders).await;
    let pid = Pid::from_raw(orders.give("pid").parse().expect("a number"));
    let wanted = &selections()[0];
    let reading = async {
        loop {
            match read(&pages, wanted).await {
                Ok(pages) => assert_right(wanted, &pages),
                Err(error) => return error,
            }
        }
    };
    let killing = async {
        tokio::task::yield_now().await;
        kill(pid, Signal::SIGKILL).expect("killed");
    };
    let (error, ()) = tokio::join!(reading, killing);
    let told = matches!(error, ReadPagesError::Connect { .. } | ReadPagesError::Connection { .. });
    assert!(told, "{error:?}");
}
