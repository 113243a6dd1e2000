//! The one way base pages are read, whatever is underneath: memory of this node, TCP, RDMA.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use medes_dedup::page::{BasePage, Page, SnapshotId};
use medes_identity::security::HandshakeError;

use super::{
    frame::{FrameError, Refusal, Verdict},
    tcp::ConnectionError,
};

/// Base pages that can be read, many at once, into memory of the caller.
pub trait BasePages: fmt::Debug + Send + Sync {
    /// Reads page `wanted[i]` into `into[i]`, as many as the shorter of the two has. `wanted` is sorted and without
    /// repeats. On an error, what is in `into` means nothing.
    ///
    /// Takes a bounded time. Cancel-safe: dropping it leaves nothing behind, and nothing is written to `into` later.
    fn read<'a>(
        &'a self,
        wanted: &'a [BasePage],
        into: &'a mut [Page],
    ) -> BoxFuture<'a, Result<(), ReadPagesError>>;
}

/// Base pages that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadPagesError {
    /// Nobody listens there, or nobody who understands us.
    #[error("connect to the pages of {address}")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is not who it should be, or does not know us.
    #[error("prove who we are to {address}")]
    Handshake {
        /// Where.
        address: SocketAddr,
        /// What is wrong.
        #[source]
        source: Box<HandshakeError>,
    },
    /// It listens, but says something else than it should.
    #[error("{address} is no holder of pages")]
    Greeting {
        /// Where.
        address: SocketAddr,
        /// What is wrong.
        #[source]
        source: FrameError,
    },
    /// It does not want us.
    #[error("{address} does not let us read: {verdict:?}")]
    NotWelcome {
        /// Where.
        address: SocketAddr,
        /// What it says.
        verdict: Verdict,
    },
    /// The connection broke, or its holder does not keep the rules.
    #[error("read pages of {address}")]
    Connection {
        /// Where.
        address: SocketAddr,
        /// What happened.
        #[source]
        source: Arc<ConnectionError>,
    },
    /// The holder has no such pages.
    #[error("read {snapshot}")]
    Refused {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// What it says.
        #[source]
        source: Refusal,
    },
    /// A page is not what its sum says.
    #[error("{page} was damaged on the way")]
    Damaged {
        /// Which page.
        page: BasePage,
    },
    /// It took too long.
    #[error("no pages within {deadline:?}")]
    Deadline {
        /// How long it had.
        deadline: Duration,
    },
}

impl ReadPagesError {
    /// Whether asking the same holder for the same again is without hope.
    pub const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}
