//! A holder that is a process of its own dies before, during and after a read.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use medes_agent::bases::{ReadPagesError, frame::Token};

use crate::support::{PATIENCE, assert_right, bases, place, read, reader, server};

const BE_HOLDER: &str = "MEDES_TEST_BE_HOLDER";
const PAGES: u32 = 16_384;

struct Holder {
    child: Child,
    address: std::net::SocketAddr,
    token: Token,
}

impl Holder {
    /// This test program again, as a holder.
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("works"))
            .args(["killed::be_a_holder", "--exact", "--nocapture"])
            .env(BE_HOLDER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("works");
        let lines = BufReader::new(child.stdout.take().expect("works")).lines();
        let mut words = lines
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("holder ").map(|it| it.1.to_owned()));
        let line = words.next().expect("a line of the holder");
        let (address, token) = line.split_once(' ').expect("works");
        let token: Vec<u8> = token.split(',').map(|byte| byte.parse().expect("works")).collect();
        Self { child, address: address.parse().expect("works"), token: token.try_into().expect("works") }
    }

    fn kill(&mut self) {
        self.child.kill().expect("works");
        self.child.wait().expect("works");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Not a test: what [`Holder::start`] runs. Ends when whoever started it does.
#[tokio::test]
async fn be_a_holder() {
    if std::env::var_os(BE_HOLDER).is_none() {
        return;
    }
    let server = server(bases(&[(1, PAGES)])).await;
    let token: Vec<String> = server.access().token.iter().map(ToString::to_string).collect();
    println!("\nholder {} {}", server.address(), token.join(","));
    std::io::stdout().flush().expect("works");
    let mut nothing = String::new();
    tokio::task::spawn_blocking(move || std::io::stdin().read_line(&mut nothing))
        .await
        .expect("works")
        .expect("works");
}

fn all() -> Vec<medes_dedup::page::BasePage> {
    (0..PAGES).map(|page| place(1, page)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_before_a_read_is_told() {
    let mut holder = Holder::start();
    let pages = reader(holder.address, holder.token, PATIENCE);
    assert_right(&[place(1, 1)], &read(&pages, &[place(1, 1)]).await.expect("works"));
    holder.kill();
    let error = read(&pages, &[place(1, 2)]).await.unwrap_err();
    assert!(matches!(error, ReadPagesError::Connect { .. }), "no new connection either: {error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_during_a_read_is_told() {
    // Whenever it dies: either all pages are there, and right, or there is an error.
    let mut cut = 0;
    for _ in 0..10 {
        let mut holder = Holder::start();
        let pages = reader(holder.address, holder.token, PATIENCE);
        assert_right(&[place(1, 1)], &read(&pages, &[place(1, 1)]).await.expect("works"));
        let wanted = all();
        let (read, ()) = tokio::join!(read(&pages, &wanted), async {
            tokio::task::spawn_blocking(move || holder.kill()).await.expect("works");
        });
        match read {
            Ok(pages) => assert_right(&wanted, &pages),
            Err(ReadPagesError::Connect { .. } | ReadPagesError::Connection { .. }) => cut += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!(cut > 0, "never cut");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_after_a_read_takes_nothing_back() {
    let mut holder = Holder::start();
    let pages = reader(holder.address, holder.token, PATIENCE);
    let wanted = all();
    let got = read(&pages, &wanted).await.expect("works");
    holder.kill();
    assert_right(&wanted, &got);
}
