//! Reader and holder in network namespaces of their own, a pair of virtual devices between them.

use std::{process::Command, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use medes_agent::bases::{
    local::{LocalBases, Snapshot},
    serve::PageServer,
};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Pid, gettid},
};
use tokio::sync::oneshot;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Batched, measure, reader, report::Report};

/// Measures between two hosts. Needs root and `ip`.
pub(super) fn between(
    bases: Arc<LocalBases>,
    each: Duration,
    snapshot: &Snapshot,
    report: &mut Report,
) -> Result<()> {
    let (is, who) = oneshot::channel();
    let (connected, wire) = oneshot::channel();
    let (listens, place) = oneshot::channel();
    let (over, end) = oneshot::channel::<()>();
    thread::scope(|scope| {
        let holder = scope.spawn(move || hold(bases, is, wire, listens, end));
        let reading = scope.spawn(move || {
            let done = read(who, connected, place, (each, snapshot), report);
            drop(over);
            done
        });
        let lost = |_panic| anyhow!("a thread panicked");
        reading.join().map_err(lost)?.and(holder.join().map_err(lost)?)
    })
}

fn hold(
    bases: Arc<LocalBases>,
    is: oneshot::Sender<Pid>,
    wire: oneshot::Receiver<()>,
    listens: oneshot::Sender<PageServer>,
    end: oneshot::Receiver<()>,
) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    is.send(gettid()).map_err(|_gone| anyhow!("no reader"))?;
    runtime()?.block_on(async {
        wire.await.context("wait for the wire")?;
        ip(&["addr", "add", "10.99.0.1/24", "dev", "holder"])?;
        ip(&["link", "set", "holder", "up"])?;
        let listen = "10.99.0.1:0".parse().context("an address")?;
        let server = PageServer::start(bases, listen, &TaskTracker::new(), CancellationToken::new()).await;
        listens.send(server.context("start the page service")?).map_err(|_gone| anyhow!("no reader"))?;
        drop(end.await);
        Ok(())
    })
}

fn read(
    who: oneshot::Receiver<Pid>,
    connected: oneshot::Sender<()>,
    place: oneshot::Receiver<PageServer>,
    (each, snapshot): (Duration, &Snapshot),
    report: &mut Report,
) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let holder = who.blocking_recv().context("wait for the holder")?.to_string();
    ip(&["link", "add", "reader", "type", "veth", "peer", "name", "holder", "netns", &holder])?;
    ip(&["addr", "add", "10.99.0.2/24", "dev", "reader"])?;
    ip(&["link", "set", "reader", "up"])?;
    connected.send(()).map_err(|()| anyhow!("no holder"))?;
    runtime()?.block_on(async {
        let server = place.await.context("wait for the page service")?;
        measure("tcp namespaces", &Batched(reader(&server)), snapshot, each, report).await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")
}

/// In the namespace of the calling thread.
fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status().context("start ip")?;
    ensure!(status.success(), "ip {} failed ({status})", arguments.join(" "));
    Ok(())
}
