//! One-sided reads, and what they read, by RDMA.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use medes_dedup::page::{PAGE_BYTES, SnapshotId};
use medes_rdma::{ExposeError, Holder, Reader, Remote};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::NoRdma;
use crate::bases::{
    frame::{Exposed, Refusal, Token},
    local::{Expose, Snapshot},
    onesided::{Cause, Dial, Line, PIECE_PAGES_MAX, Piece, Timing},
};

/// How long making a connection may take, and how long nothing may come while reads are under way.
const PATIENCE: Duration = Duration::from_secs(2);

const _: () = assert!(PIECE_PAGES_MAX * PAGE_BYTES <= medes_rdma::PIECE_BYTES_MAX);

/// Whether rdma-core is here and has a device.
pub fn available() -> Result<(), NoRdma> {
    medes_rdma::available().map_err(|error| NoRdma::Device(error.into()))
}

/// What connects to the holder that listens for RDMA at `address`, and whose page service has this token.
pub fn dial(address: SocketAddr, token: Token, tasks: &TaskTracker) -> Result<Arc<dyn Dial>, NoRdma> {
    available()?;
    Ok(Arc::new(RdmaDial { address, word: token, tasks: tasks.clone() }))
}

/// Lets readers in by RDMA who show the token of the page service, until `stop`. Returns what exposes snapshots to them,
/// and where it listens.
pub fn listen(
    address: SocketAddr,
    token: Token,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<(Arc<dyn Expose>, SocketAddr), NoRdma> {
    let listening = Holder::listen(address, token).map_err(|error| NoRdma::Device(error.into()));
    let (holder, serving) = listening?;
    let address = SocketAddr::new(address.ip(), holder.port());
    let (sweeper, lease) = (holder.clone(), Timing::DEFAULT.lease);
    tasks.spawn(async move {
        let sweeping = async {
            loop {
                tokio::time::sleep(lease / 4).await;
                sweeper.revoke_older(lease, std::time::Instant::now());
            }
        };
        tokio::select! {
            error = serving => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "no more readers are let in by RDMA");
            }
            () = sweeping => {}
            () = stop.cancelled() => {}
        }
    });
    Ok((Arc::new(Exposer(holder)), address))
}

/// Connects to one holder.
#[derive(Debug)]
struct RdmaDial {
    address: SocketAddr,
    word: Token,
    tasks: TaskTracker,
}

impl Dial for RdmaDial {
    fn dial(&self) -> BoxFuture<'_, Result<Arc<dyn Line>, Cause>> {
        Box::pin(async {
            let (reader, task) = Reader::connect(self.address, &self.word, PATIENCE, PATIENCE).await?;
            self.tasks.spawn(task);
            Ok(Arc::new(RdmaLine(reader)) as Arc<dyn Line>)
        })
    }
}

/// A connection to one holder.
#[derive(Debug)]
struct RdmaLine(Reader);

impl Line for RdmaLine {
    fn session(&self) -> u64 {
        self.0.session()
    }

    fn is_over(&self) -> bool {
        self.0.is_over()
    }

    fn read(&self, exposed: Exposed, pieces: Vec<Piece>) -> BoxFuture<'_, Result<Vec<u8>, Cause>> {
        let Exposed { address, bytes, key } = exposed;
        let pieces = pieces.into_iter().map(|Piece { offset, bytes }| medes_rdma::Piece { offset, bytes });
        let read = self.0.read(Remote { address, key, bytes }, pieces.collect());
        Box::pin(async { Ok(read.await?) })
    }
}

/// The holder's side: snapshots of this node, exposed to readers one by one.
#[derive(Debug)]
struct Exposer(Holder);

impl Expose for Exposer {
    fn expose(&self, session: u64, snapshot: &Snapshot) -> Result<Exposed, Refusal> {
        let now = std::time::Instant::now();
        match self.0.expose(session, snapshot.id.get(), snapshot.file(), now) {
            Ok(Remote { address, key, bytes }) => Ok(Exposed { address, key, bytes }),
            Err(ExposeError::NoSession(_)) => Err(Refusal::NoConnection),
            Err(error @ ExposeError::Verbs(_)) => {
                let (snapshot, error) = (snapshot.id, &error as &dyn std::error::Error);
                tracing::warn!(%snapshot, error, "a snapshot is not exposed by RDMA");
                Err(Refusal::NotExposed)
            }
        }
    }

    fn revoke(&self, snapshot: SnapshotId) {
        self.0.revoke(snapshot.get());
    }
}
