//! The host whose pages are read.

use std::{
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr, TcpListener},
};

use medes_agent::bases::{rdma, serve::PageServer};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ORDER_PORT, PAGES,
    support::{bases, place, snapshot},
};

/// Serves until it is killed.
pub(crate) async fn run(host: IpAddr) {
    let held = bases(&[(1, PAGES)]);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let server = PageServer::start(held.clone(), (host, 0).into(), &tasks, stop.clone()).await;
    let server = server.expect("the page service");
    let token = server.access().token;
    let listening = rdma::listen(SocketAddr::new(host, 0), token, &tasks, stop);
    let (exposer, by_rdma) = listening.expect("a device");
    held.expose_by(exposer);
    let listener = TcpListener::bind((host, ORDER_PORT)).expect("listen for orders");
    println!("holder of pages is ready");
    let token: Vec<String> = token.iter().map(ToString::to_string).collect();
    let place_of_pages = format!("{} {by_rdma} {}", server.address(), token.join(","));
    let obey = move |order: &str| match order {
        "where" => place_of_pages.clone(),
        "sent" => server.pages_sent().to_string(),
        "remove" => {
            held.remove(place(1, 0).snapshot);
            "removed".into()
        }
        "insert" => {
            held.insert(snapshot(1, PAGES));
            "inserted".into()
        }
        "pid" => std::process::id().to_string(),
        other => panic!("{other}?"),
    };
    let listen = move || {
        for stream in listener.incoming() {
            let stream = stream.expect("a reader");
            let mut writer = stream.try_clone().expect("a stream");
            for order in BufReader::new(stream).lines().map_while(Result::ok) {
                if writeln!(writer, "{}", obey(&order)).is_err() {
                    break;
                }
            }
        }
    };
    tokio::task::spawn_blocking(listen).await.expect("orders");
}
