//! The page service of a node: other nodes read its snapshots over long connections, see [`frame`](super::frame).
//!
//! A connection is one task that reads a request, answers it, and reads the next: what a reader pipelines waits in the
//! socket. A plain socket takes pages out of the sealed memory file itself; any other way ([`Copying`]: TLS, since the
//! kernel's own is not used yet) gets them written. With certificates only agents get in, and the token is asked for all
//! the same: it says that the reader means this life of the holder. A reader that does not take its answers is let go.

use std::{
    fs::File,
    io::{self, IoSlice, Read},
    net::SocketAddr,
    num::NonZeroU16,
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use medes_dedup::page::{PAGE_BYTES, PageIndex};
use medes_identity::{
    access::Service,
    security::{HandshakeError, Security},
};
use medes_proto::node::PageAccess;
use nix::sys::{
    sendfile::sendfile64,
    socket::{MsgFlags, sendmsg},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    frame::{
        self, AnswerHead, FrameError, GREETING_BYTES, REQUEST_HEAD_BYTES, Refusal, Request, Run, Token,
        Verdict,
    },
    local::{LocalBases, Snapshot},
};
use crate::roads::blocking;

/// Connections at a time. Each holds a few kilobytes here.
const CONNECTIONS_MAX: usize = 1_024;
/// How long a greeting may take, and how long a reader may take nothing of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Runs from this length on go out of the memory file; shorter ones are copied by the kernel, many in one call.
const SENDFILE_PAGES_MIN: u32 = 8;
/// Pieces of memory one call may send.
const PIECES_MAX: usize = 64;

/// A connection that ended other than by its reader's wish.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// It broke.
    #[error("serve pages")]
    Io(#[from] io::Error),
    /// The reader does not keep the rules.
    #[error("understand a reader")]
    Frame(#[from] FrameError),
    /// The reader is not who it should be, or does not know us.
    #[error("let a reader in")]
    Handshake(#[from] HandshakeError),
    /// The reader stopped taking or sending.
    #[error("the reader stood still for {PATIENCE:?}")]
    Stuck,
}

/// Serves the snapshots of one node.
#[derive(Debug)]
pub struct PageServer {
    token: Token,
    address: SocketAddr,
    shelf: Arc<Shelf>,
}

/// What connections serve from, and what they have served.
#[derive(Debug)]
struct Shelf {
    bases: Arc<LocalBases>,
    pages_sent: AtomicU64,
}

impl PageServer {
    /// Listens, and serves whoever has the token until `stop`. Connections are tasks of `tasks`.
    pub async fn start(
        bases: Arc<LocalBases>,
        listen: SocketAddr,
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        Self::start_secured(bases, (listen, Security::Plaintext), tasks, stop).await
    }

    /// The same, for those whom the cluster's authority knows as agents.
    pub async fn start_secured(
        bases: Arc<LocalBases>,
        (listen, security): (SocketAddr, Security),
        tasks: &TaskTracker,
        stop: CancellationToken,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let mut token = Token::default();
        File::open("/dev/urandom")?.read_exact(&mut token)?;
        let shelf = Arc::new(Shelf { bases, pages_sent: AtomicU64::new(0) });
        tasks.spawn(accept((listener, security), shelf.clone(), token, (tasks.clone(), stop)));
        Ok(Self { token, address, shelf })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many pages it has sent.
    pub fn pages_sent(&self) -> u64 {
        self.shelf.pages_sent.load(Ordering::Relaxed)
    }

    /// What readers must know.
    pub fn access(&self) -> PageAccess {
        // A socket that listens has a port.
        let port = NonZeroU16::new(self.address.port()).unwrap_or(NonZeroU16::MIN);
        PageAccess { port, token: self.token, rdma: None }
    }
}

async fn accept(
    (listener, security): (TcpListener, Security),
    shelf: Arc<Shelf>,
    token: Token,
    (tasks, stop): (TaskTracker, CancellationToken),
) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, or a connection that was gone already: others may still come.
                tracing::warn!(%error, "accept a reader of pages");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let place = room.clone().try_acquire_owned();
        let (shelf, stop, security) = (shelf.clone(), stop.clone(), security.clone());
        tasks.spawn(async move {
            let full = place.is_err();
            let served = tokio::select! {
                served = serve_socket((stream, security), &shelf, &token, full) => served,
                () = stop.cancelled() => Ok(()),
            };
            if let Err(ServeError::Handshake(error)) = served {
                tracing::warn!(error = &error as &dyn std::error::Error, "refused a reader of pages");
            } else if let Err(error) = served {
                tracing::debug!(error = &error as &dyn std::error::Error, "a reader of pages is gone");
            }
            drop(place);
        });
    }
}

async fn serve_socket(
    (stream, security): (TcpStream, Security),
    shelf: &Shelf,
    token: &Token,
    full: bool,
) -> Result<(), ServeError> {
    // An answer's head must not wait for the next answer.
    stream.set_nodelay(true)?;
    if let Security::Mutual(_) = security {
        let connection = security.accept(stream, Service::Pages).await?;
        let (mut reader, writer) = tokio::io::split(connection);
        return serve(&mut reader, &mut Copying(writer), shelf, token, full).await;
    }
    let (mut reader, writer) = stream.into_split();
    serve(&mut reader, &mut Plain(writer), shelf, token, full).await
}

/// Where answers go.
trait Sink {
    /// Sends a frame, and after it pages of a snapshot. The runs are within it.
    async fn send(&mut self, head: &[u8], pages: Option<(&Snapshot, &[Run])>) -> io::Result<()>;
}

/// Talks to one reader until it leaves.
async fn serve<S: Sink>(
    reader: &mut (impl AsyncRead + Unpin),
    sink: &mut S,
    shelf: &Shelf,
    token: &Token,
    full: bool,
) -> Result<(), ServeError> {
    let mut greeting = [0; GREETING_BYTES];
    timeout(PATIENCE, reader.read_exact(&mut greeting)).await.map_err(|_elapsed| ServeError::Stuck)??;
    let shown = frame::parse_greeting(&greeting)?;
    // Compared by hash: how long that takes tells nothing about the token.
    let verdict = match blake3::hash(&shown) == blake3::hash(token) {
        true if full => Verdict::Full,
        true => Verdict::Welcome,
        false => Verdict::Stranger,
    };
    send(sink, &frame::welcome(verdict), None).await?;
    if verdict != Verdict::Welcome {
        return Ok(());
    }
    while let Some(request) = next(reader).await? {
        if let Some(session) = request.session() {
            let (bases, snapshot) = (shelf.bases.clone(), request.snapshot);
            let answer = match blocking(move || bases.expose(session, snapshot)).await {
                Ok(exposed) => AnswerHead::exposed(request.number, exposed),
                Err(refusal) => AnswerHead::refusal(request.number, refusal),
            };
            send(sink, &answer, None).await?;
            continue;
        }
        let snapshot = shelf.bases.get(request.snapshot);
        let found = snapshot.as_deref().ok_or(Refusal::NoSnapshot);
        match found.and_then(|snapshot| Ok((snapshot, sums(snapshot, &request).ok_or(Refusal::NoPage)?))) {
            Ok((snapshot, sums)) => {
                let head = AnswerHead::frame(request.number, &sums);
                send(sink, &head, Some((snapshot, request.runs()))).await?;
                shelf.pages_sent.fetch_add(sums.len() as u64, Ordering::Relaxed);
            }
            Err(refusal) => send(sink, &AnswerHead::refusal(request.number, refusal), None).await?,
        }
    }
    Ok(())
}

async fn send<S: Sink>(
    sink: &mut S,
    head: &[u8],
    pages: Option<(&Snapshot, &[Run])>,
) -> Result<(), ServeError> {
    Ok(timeout(PATIENCE, sink.send(head, pages)).await.map_err(|_elapsed| ServeError::Stuck)??)
}

/// The next request; `None` when the reader left between two. It may take any time to begin, but not to go on.
async fn next(reader: &mut (impl AsyncRead + Unpin)) -> Result<Option<Request>, ServeError> {
    let mut frame = vec![0; REQUEST_HEAD_BYTES];
    match reader.read(&mut frame).await? {
        0 => return Ok(None),
        begun => {
            let rest = async {
                reader.read_exact(&mut frame[begun..]).await?;
                let head = frame.first_chunk().ok_or(FrameError::Value("a short request"))?;
                frame.resize(REQUEST_HEAD_BYTES + Request::body_bytes(head)?, 0);
                reader.read_exact(&mut frame[REQUEST_HEAD_BYTES..]).await?;
                Ok::<_, ServeError>(())
            };
            timeout(PATIENCE, rest).await.map_err(|_elapsed| ServeError::Stuck)??;
        }
    }
    Ok(Some(Request::parse(&frame)?))
}

/// The sums of all pages asked for, if there are these pages.
fn sums(snapshot: &Snapshot, request: &Request) -> Option<Vec<u64>> {
    let mut sums = Vec::with_capacity(request.pages());
    for run in request.runs() {
        snapshot.range(run.first, run.pages)?;
        for page in run.first.0..run.first.0 + run.pages {
            sums.push(snapshot.sum(PageIndex(page))?);
        }
    }
    Some(sums)
}

/// A plain TCP socket: nothing is copied on the way to it.
struct Plain(OwnedWriteHalf);

impl Sink for Plain {
    async fn send(&mut self, head: &[u8], pages: Option<(&Snapshot, &[Run])>) -> io::Result<()> {
        let Some((snapshot, runs)) = pages else { return self.pieces(vec![head], false).await };
        let mut pieces = vec![head];
        for (at, run) in runs.iter().enumerate() {
            let more = at + 1 < runs.len();
            if run.pages >= SENDFILE_PAGES_MIN {
                self.pieces(std::mem::take(&mut pieces), true).await?;
                self.file(snapshot, *run).await?;
                continue;
            }
            pieces.push(snapshot.range(run.first, run.pages).ok_or(io::ErrorKind::InvalidInput)?);
            if pieces.len() == PIECES_MAX {
                self.pieces(std::mem::take(&mut pieces), more).await?;
            }
        }
        self.pieces(pieces, false).await
    }
}

impl Plain {
    /// Sends pieces of memory; `more` will follow at once.
    async fn pieces(&self, mut pieces: Vec<&[u8]>, more: bool) -> io::Result<()> {
        let more = MsgFlags::from_bits_retain(if more { libc::MSG_MORE } else { 0 });
        let flags = more | MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        while !pieces.is_empty() {
            let stream: &TcpStream = self.0.as_ref();
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let send = || {
                let fd = stream.as_raw_fd();
                Ok(sendmsg::<()>(fd, &slices, &[], flags, None)?)
            };
            let mut sent = stream.async_io(Interest::WRITABLE, send).await?;
            pieces.retain_mut(|piece| {
                let gone = sent.min(piece.len());
                (sent, *piece) = (sent - gone, &piece[gone..]);
                !piece.is_empty()
            });
        }
        Ok(())
    }

    /// Sends a run out of the snapshot's file.
    async fn file(&self, snapshot: &Snapshot, run: Run) -> io::Result<()> {
        let stream: &TcpStream = self.0.as_ref();
        let mut offset = i64::from(run.first.0) * PAGE_BYTES as i64;
        let mut left = run.pages as usize * PAGE_BYTES;
        while left > 0 {
            let send = || Ok(sendfile64(stream, snapshot.file(), Some(&mut offset), left)?);
            match stream.async_io(Interest::WRITABLE, send).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                sent => left -= sent,
            }
        }
        Ok(())
    }
}

/// Any stream, where pages are written like all other bytes.
#[derive(Debug)]
pub struct Copying<W>(pub W);

impl<W: AsyncWrite + Unpin> Sink for Copying<W> {
    async fn send(&mut self, head: &[u8], pages: Option<(&Snapshot, &[Run])>) -> io::Result<()> {
        self.0.write_all(head).await?;
        if let Some((snapshot, runs)) = pages {
            for run in runs {
                let bytes = snapshot.range(run.first, run.pages).ok_or(io::ErrorKind::InvalidInput)?;
                self.0.write_all(bytes).await?;
            }
        }
        self.0.flush().await
    }
}

/// Serves one reader over any stream. Ends when it leaves.
pub async fn serve_stream(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    bases: Arc<LocalBases>,
    token: &Token,
) -> Result<(), ServeError> {
    let (mut reader, writer) = tokio::io::split(stream);
    let shelf = Shelf { bases, pages_sent: AtomicU64::new(0) };
    serve(&mut reader, &mut Copying(writer), &shelf, token, false).await
}
