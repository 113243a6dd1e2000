//! Both sides keep the rules.

use std::time::Duration;

use futures::future::join_all;
use medes_agent::bases::{
    Bases, Budgets, ReadPagesError,
    frame::{Refusal, Verdict},
    serve::serve_stream,
};
use medes_dedup::page::BasePage;
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::{
    holder::{self, Wire},
    support::{
        PATIENCE, any_port, assert_right, bases, place, read, reader, reader_of, scattered, server, snapshot,
    },
};

/// One page, neighbours, scattered ones, the last one, and several snapshots at once.
fn selections() -> Vec<Vec<BasePage>> {
    let neighbours = (0..4096).map(|page| place(1, page)).collect();
    let apart = scattered(1500, 4096).into_iter().map(|page| place(1, page)).collect();
    let both = (0..3000).step_by(7).map(|page| place(1, page)).chain((0..77).map(|page| place(2, page)));
    vec![vec![], vec![place(1, 5)], neighbours, apart, vec![place(1, 4095), place(2, 76)], both.collect()]
}

#[tokio::test]
async fn every_page_is_what_it_is_at_its_holder() {
    let held = bases(&[(1, 4096), (2, 77)]);
    let server = server(held.clone()).await;
    let pages = reader_of(&server);
    for wanted in selections() {
        assert_right(&wanted, &read(&pages, &wanted).await.expect("works"));
        // The same from memory.
        assert_right(&wanted, &read(&*held, &wanted).await.expect("works"));
    }
    let total: usize = selections().iter().map(Vec::len).sum();
    assert_eq!(server.pages_sent(), total as u64, "none more often than asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_at_once_get_their_own() {
    let server = server(bases(&[(1, 2048), (2, 2048)])).await;
    let pages = reader_of(&server);
    let readers = (0..40_u32).map(|number| {
        let pages = &pages;
        async move {
            let snapshot = u64::from(number % 2 + 1);
            let wanted: Vec<_> =
                (number * 3..number * 3 + 900).step_by(3).map(|at| place(snapshot, at)).collect();
            assert_right(&wanted, &read(pages, &wanted).await.expect("works"));
        }
    });
    join_all(readers).await;
}

/// Where TLS will be: nothing is taken from the socket's abilities.
#[tokio::test]
async fn any_stream_will_do() {
    let listener = TcpListener::bind(any_port()).await.expect("works");
    let (address, token, held) =
        (listener.local_addr().expect("works"), [9; 32], bases(&[(1, 4096), (2, 77)]));
    let tasks = TaskTracker::new();
    tasks.clone().spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let held = held.clone();
            tasks.spawn(async move { serve_stream(stream, held, &token).await });
        }
    });
    let pages = reader(address, token, PATIENCE);
    for wanted in selections() {
        assert_right(&wanted, &read(&pages, &wanted).await.expect("works"));
    }
}

#[tokio::test]
async fn what_a_holder_has_not_is_refused_and_the_connection_goes_on() {
    let server = server(bases(&[(1, 10)])).await;
    let pages = reader_of(&server);
    for (wanted, expected) in [
        (place(7, 0), Refusal::NoSnapshot),
        (place(1, 10), Refusal::NoPage),
        (place(1, u32::MAX), Refusal::NoPage),
    ] {
        match read(&pages, &[place(1, 3), wanted]).await {
            Err(ReadPagesError::Refused { source, .. }) => assert_eq!(source, expected),
            other => panic!("{other:?}"),
        }
        assert_right(&[place(1, 3)], &read(&pages, &[place(1, 3)]).await.expect("works"));
    }
}

#[tokio::test]
async fn a_stranger_reads_nothing() {
    let server = server(bases(&[(1, 10)])).await;
    let pages = reader(server.address(), [0; 32], PATIENCE);
    match read(&pages, &[place(1, 3)]).await {
        Err(ReadPagesError::NotWelcome { verdict, .. }) => assert_eq!(verdict, Verdict::Stranger),
        other => panic!("{other:?}"),
    }
    assert_eq!(server.pages_sent(), 0);
}

#[tokio::test]
async fn a_page_of_another_node_is_read_once_for_all_sandboxes() {
    let (here, there) = (snapshot(1, 64), snapshot(2, 64));
    let (first, first_pages) = holder::serve_counted(here, Wire::Good).await;
    let (second, second_pages) = holder::serve_counted(there, Wire::Good).await;
    let places = [(first.snapshot, first), (second.snapshot, second)].into();
    let bases = Bases::new("reader".parse().expect("works"), Duration::from_secs(60), Budgets::DEFAULT);
    let wanted: Vec<_> = [(1, 3), (1, 4), (1, 60), (2, 0), (2, 63)].map(|(s, p)| place(s, p)).into();
    let sent = || {
        let sent = [&first_pages, &second_pages].map(|pages| pages.as_ref().expect("works").pages_sent());
        sent.iter().sum::<u64>()
    };
    for _ in 0..2 {
        let held = bases.read(&wanted, &places).await.expect("works");
        let got: Vec<_> = wanted.iter().map(|place| *held.page(*place).expect("works")).collect();
        assert_right(&wanted, &got);
        assert_eq!(sent(), 5);
    }
    // One more of each: only these travel.
    let more = [place(1, 3), place(1, 5), place(2, 0), place(2, 1)];
    let held = bases.read(&more, &places).await.expect("works");
    assert!(more.iter().all(|place| held.page(*place).is_some()));
    assert_eq!(sent(), 7);
    // What was made of them was wrong: they come again.
    bases.distrust(first_pages_snapshot());
    bases.read(&more, &places).await.expect("works");
    assert_eq!(sent(), 9);
}

fn first_pages_snapshot() -> medes_dedup::page::SnapshotId {
    place(1, 0).snapshot
}

#[tokio::test]
async fn a_reader_that_reads_into_less_gets_less() {
    use medes_agent::bases::BasePages;
    let server = server(bases(&[(1, 10)])).await;
    let mut into = [[0xee; 4096]; 2];
    let wanted = [place(1, 1), place(1, 2), place(1, 3)];
    reader_of(&server).read(&wanted, &mut into).await.expect("works");
    assert_right(&wanted[..2], &into);
}
