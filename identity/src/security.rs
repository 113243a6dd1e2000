//! Connections that prove who is at both ends, or, where that is not wanted, plain ones.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt};
use hyper_util::rt::TokioIo;
use medes_proto::ids::HolderName;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint, Uri, server::Connected};

use crate::{
    access::Service,
    certificate,
    credentials::{Credentials, LoadError},
    identity::{Identity, Role},
};

/// A handshake that takes longer does not come to an end.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// Handshakes at a time at one door; who comes then waits in the queue of the socket.
pub const HANDSHAKES_MAX: usize = 256;

/// How a program speaks with others.
#[derive(Debug, Clone)]
pub enum Security {
    /// With everybody who comes, readable for everybody on the way.
    Plaintext,
    /// With those that the cluster's authority knows.
    Mutual(Credentials),
}

/// A program that does not know how to speak with others.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// Its credentials.
    #[error("load the certificate")]
    Load(#[from] LoadError),
    /// Somebody else's.
    #[error("{found} is no certificate for {wanted}")]
    Other {
        /// Whose it is.
        found: Box<Identity>,
        /// Who needs one.
        wanted: String,
    },
    /// Others than this machine could come in.
    #[error("{0} is not a loopback address: give a certificate (--identity), or say --plaintext")]
    Open(SocketAddr),
}

/// Who is at the other end of a connection to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Nobody was asked: the connection is plain.
    Unknown,
    /// Has shown a certificate.
    Known(Arc<Identity>),
}

/// A connection to us.
#[derive(Debug)]
pub struct Connection {
    stream: Either<TcpStream, Box<server::TlsStream<TcpStream>>>,
    peer: Peer,
}

/// A connection that did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Ours broke, or the peer is not who it should be, or we are not for it.
    #[error("shake hands")]
    Io(#[from] io::Error),
    /// Our own certificates.
    #[error("set TLS up")]
    Tls(#[from] rustls::Error),
    /// The peer does nothing.
    #[error("no handshake within {HANDSHAKE_MAX:?}")]
    Slow,
    /// It was let in, and still is nobody.
    #[error("understand the peer's certificate")]
    Certificate(#[from] certificate::CertificateError),
    /// It did not say what it wants to speak.
    #[error("the peer speaks something else")]
    Protocol,
}

impl Security {
    /// By the certificate in a file, or else plain. Plain speech is for loopback, unless it is `wanted`.
    ///
    /// `listens`: where others can come in.
    pub fn choose(
        identity: Option<&Path>,
        wanted: bool,
        listens: &[SocketAddr],
        now: SystemTime,
    ) -> Result<Self, SecurityError> {
        if let Some(file) = identity {
            return Ok(Self::Mutual(Credentials::load(file, now)?));
        }
        match listens.iter().find(|address| !address.ip().is_loopback()) {
            Some(address) if !wanted => Err(SecurityError::Open(*address)),
            Some(_) => {
                tracing::warn!("plaintext: whoever reaches this machine may do everything");
                Ok(Self::Plaintext)
            }
            None => {
                tracing::info!("plaintext on loopback: whoever is on this machine may do everything");
                Ok(Self::Plaintext)
            }
        }
    }

    /// Who we are, if anybody has said so.
    pub fn identity(&self) -> Option<Identity> {
        match self {
            Self::Plaintext => None,
            Self::Mutual(credentials) => Some(credentials.identity()),
        }
    }

    /// Refuses a certificate of somebody else than a program needs one of. Plain connections are nobody's.
    pub fn must_be(&self, role: Role, name: Option<&str>) -> Result<(), SecurityError> {
        match self.identity() {
            Some(found) if found.role != role || name.is_some_and(|name| name != found.name.as_str()) => {
                let wanted = name.map_or(role.to_string(), |name| format!("{role} {name}"));
                Err(SecurityError::Other { found: Box::new(found), wanted })
            }
            _ => Ok(()),
        }
    }

    /// A channel that connects when it is first used, and again when it must. `name`: whose door it must be.
    pub fn channel_lazy(&self, endpoint: &Endpoint, service: Service, name: Option<HolderName>) -> Channel {
        match self {
            Self::Plaintext => endpoint.connect_lazy(),
            Self::Mutual(credentials) => {
                endpoint.connect_with_connector_lazy(connector(credentials.clone(), service, name))
            }
        }
    }

    /// A channel that is connected.
    pub async fn channel(
        &self,
        endpoint: &Endpoint,
        service: Service,
        name: Option<HolderName>,
    ) -> Result<Channel, tonic::transport::Error> {
        match self {
            Self::Plaintext => endpoint.connect().await,
            Self::Mutual(credentials) => {
                endpoint.connect_with_connector(connector(credentials.clone(), service, name)).await
            }
        }
    }

    /// Shows our certificate to one who comes, and looks at theirs.
    pub async fn accept(&self, stream: TcpStream, service: Service) -> Result<Connection, HandshakeError> {
        let Self::Mutual(credentials) = self else {
            return Ok(Connection { stream: Either::Left(stream), peer: Peer::Unknown });
        };
        let acceptor = TlsAcceptor::from(credentials.server(service)?);
        let stream = timeout(HANDSHAKE_MAX, acceptor.accept(stream));
        let stream = stream.await.map_err(|_elapsed| HandshakeError::Slow)??;
        let (_, tls) = stream.get_ref();
        if tls.alpn_protocol() != Some(service.protocol()) {
            return Err(HandshakeError::Protocol);
        }
        let shown = tls.peer_certificates().and_then(<[_]>::first);
        let shown = shown.ok_or(certificate::CertificateError::Empty)?;
        let peer = Peer::Known(Arc::new(certificate::identity(shown)?));
        Ok(Connection { stream: Either::Right(Box::new(stream)), peer })
    }

    /// All who come to a door and are let in. Who is not is told of in the log.
    pub fn incoming(
        self,
        listener: TcpListener,
        service: Service,
    ) -> impl Stream<Item = io::Result<Connection>> {
        let accept = move |stream: io::Result<TcpStream>| {
            let security = self.clone();
            async move {
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => return Some(Err(error)),
                };
                // Small answers must not wait for the caller's delayed acknowledgement (40 ms).
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a caller's connection stays slow");
                }
                let address = stream.peer_addr().ok();
                match security.accept(stream, service).await {
                    Ok(connection) => Some(Ok(connection)),
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, ?address, ?service, "refused a connection");
                        None
                    }
                }
            }
        };
        TcpListenerStream::new(listener)
            .map(accept)
            .buffer_unordered(HANDSHAKES_MAX)
            .filter_map(std::future::ready)
    }
}

/// Connects to a door and looks at who keeps it.
pub async fn connect(
    credentials: &Credentials,
    stream: TcpStream,
    service: Service,
    name: Option<HolderName>,
) -> Result<client::TlsStream<TcpStream>, HandshakeError> {
    let connector = TlsConnector::from(credentials.client(service, name)?);
    // Not looked at, and not sent.
    let nowhere = ServerName::from(std::net::IpAddr::from([0, 0, 0, 0]));
    let stream = timeout(HANDSHAKE_MAX, connector.connect(nowhere, stream));
    let stream = stream.await.map_err(|_elapsed| HandshakeError::Slow)??;
    if stream.get_ref().1.alpn_protocol() != Some(service.protocol()) {
        return Err(HandshakeError::Protocol);
    }
    Ok(stream)
}

type Dialled = TokioIo<client::TlsStream<TcpStream>>;

fn connector(
    credentials: Credentials,
    service: Service,
    name: Option<HolderName>,
) -> impl tower::Service<
    Uri,
    Response = Dialled,
    Error = HandshakeError,
    Future = impl Future<Output = Result<Dialled, HandshakeError>> + Send,
> + Send {
    tower::service_fn(move |uri: Uri| {
        let (credentials, name) = (credentials.clone(), name.clone());
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(connect(&credentials, stream, service, name).await?))
        }
    })
}

impl Connection {
    /// Who is at the other end.
    pub const fn peer(&self) -> &Peer {
        &self.peer
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
