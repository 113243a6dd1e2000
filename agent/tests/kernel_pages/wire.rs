//! Two hosts: threads in network namespaces of their own, a pair of virtual devices between them.

use std::{net::SocketAddr, process::Command, sync::Arc, thread};

use medes_agent::bases::{frame::Token, local::LocalBases, serve::PageServer};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{geteuid, gettid},
};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The holder, as the reader's host knows it.
pub(crate) struct Holder {
    pub(crate) address: SocketAddr,
    pub(crate) token: Token,
}

impl Holder {
    /// Does something to the reader's end of the wire, called `reader`.
    #[allow(clippy::unused_self, reason = "only who has a holder has a wire")]
    pub(crate) fn wire(&self, arguments: &[&str]) {
        ip(arguments);
    }
}

/// In the namespace of the calling thread.
fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("start ip");
    assert!(status.success(), "ip {}", arguments.join(" "));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// Runs a test on one host while the other holds these bases; says so and does nothing without root.
pub(crate) fn at_both_ends(name: &str, held: Arc<LocalBases>, test: impl AsyncFnOnce(Holder) + Send) {
    if !geteuid().is_root() {
        println!("SKIPPED {name}: not root");
        return;
    }
    // The holder's thread says who it is; hears that its wire is there; says where it listens; hears that it is over.
    let (is, who) = oneshot::channel();
    let (connected, wire) = oneshot::channel();
    let (listens, place) = oneshot::channel();
    let (over, end) = oneshot::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            is.send(gettid()).expect("a reader");
            runtime().block_on(async {
                wire.await.expect("a wire");
                ip(&["addr", "add", "10.99.0.1/24", "dev", "holder"]);
                ip(&["link", "set", "holder", "up"]);
                let listen = "10.99.0.1:0".parse().expect("an address");
                let server =
                    PageServer::start(held, listen, &TaskTracker::new(), CancellationToken::new()).await;
                let server = server.expect("listen");
                let holder = Holder { address: server.address(), token: server.access().token };
                assert!(listens.send(holder).is_ok(), "a reader");
                drop(end.await);
            });
        });
        scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            let holder = who.blocking_recv().expect("a holder").to_string();
            ip(&["link", "add", "reader", "type", "veth", "peer", "name", "holder", "netns", &holder]);
            ip(&["addr", "add", "10.99.0.2/24", "dev", "reader"]);
            ip(&["link", "set", "reader", "up"]);
            connected.send(()).expect("a holder");
            runtime().block_on(async {
                test(place.await.expect("a place")).await;
            });
            drop(over);
        });
    });
}
