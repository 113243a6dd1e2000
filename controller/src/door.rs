//! Where callers of the gateway and people at the page come in: over HTTP, or over HTTPS with a certificate that they know.

use std::{io, net::SocketAddr, pin::Pin};

use axum::{
    Router,
    serve::{Listener, ListenerExt as _},
};
use futures::{Stream, StreamExt as _, future::ready, stream};
use medes_identity::{security::HANDSHAKES_MAX, web::WebCertificate};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// A listener that lets nobody in any more once it is closed. The socket stays as it is: who comes waits.
pub(crate) struct Door {
    listener: TcpListener,
    closed: CancellationToken,
}

impl Door {
    pub(crate) const fn new(listener: TcpListener, closed: CancellationToken) -> Self {
        Self { listener, closed }
    }

    /// Serves who comes until `stop`, then lets those that are in go on to their end. `name`: what is served, for the log.
    pub(crate) fn serve(
        self,
        (name, router): (&'static str, Router),
        web: Option<WebCertificate>,
        tracker: &TaskTracker,
        stop: CancellationToken,
    ) {
        let told = stop.cancelled_owned();
        let ended = move |ended: io::Result<()>| {
            if let Err(error) = ended {
                tracing::error!(%error, "{name} is no longer served");
            }
        };
        match web {
            None => {
                let server = axum::serve(self.tap_io(at_once), router).with_graceful_shutdown(told);
                tracker.spawn(async move { ended(server.await) });
            }
            Some(web) => {
                let server = axum::serve(TlsDoor::new(self, web), router).with_graceful_shutdown(told);
                tracker.spawn(async move { ended(server.await) });
            }
        }
    }
}

/// Small answers must not wait for the caller's delayed acknowledgement (40 ms).
fn at_once(stream: &mut TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a caller's connection stays slow");
    }
}

impl Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => std::future::pending().await,
            caller = Listener::accept(&mut self.listener) => caller,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

type Caller = (TlsStream<TcpStream>, SocketAddr);

/// A door behind which TLS is spoken. One caller's handshake does not keep another waiting.
struct TlsDoor {
    callers: Pin<Box<dyn Stream<Item = Caller> + Send>>,
    address: io::Result<SocketAddr>,
}

impl TlsDoor {
    fn new(door: Door, web: WebCertificate) -> Self {
        let address = door.local_addr();
        let come = stream::unfold(door, async |mut door| Some((door.accept().await, door)));
        let callers = come.map(move |(mut stream, from)| {
            let web = web.clone();
            async move {
                at_once(&mut stream);
                match web.accept(stream).await {
                    Ok(stream) => Some((stream, from)),
                    Err(error) => {
                        // Anybody can cause it, as often as they like.
                        let error = &error as &dyn std::error::Error;
                        tracing::debug!(error, %from, "no handshake with a caller");
                        None
                    }
                }
            }
        });
        Self { callers: Box::pin(callers.buffer_unordered(HANDSHAKES_MAX).filter_map(ready)), address }
    }
}

impl Listener for TlsDoor {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Caller {
        match self.callers.next().await {
            Some(caller) => caller,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.address.as_ref().copied().map_err(|error| error.kind().into())
    }
}
