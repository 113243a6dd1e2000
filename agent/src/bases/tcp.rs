//! Pages of one other node, over a few long connections to its page service.
//!
//! A read is cut into requests of neighbouring and scattered pages; many are under way at once, on all connections, and
//! their answers are checked and copied to their places while the next ones arrive. A connection is one task: it writes
//! requests as they come and reads answers in the same order. When it breaks, everybody who waits on it hears why, and
//! what was asked on a connection that had been open for long is asked once more on a new one.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt, future::BoxFuture, stream};
use medes_dedup::page::{BasePage, Page, SnapshotId};
use medes_identity::{
    access::Service,
    security::{self, Security},
};
use medes_proto::ids::{HolderName, NodeId};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::{
    base_pages::{BasePages, ReadPagesError},
    frame::{
        self, ANSWER_HEAD_BYTES, AnswerHead, Content, Exposed, FrameError, Refusal, Request, SUM_BYTES,
        Token, Verdict, WELCOME_BYTES,
    },
};
use crate::metrics;

/// Connections to one holder. More than one, so that a large answer does not hold up a small one every time.
const CONNECTIONS: usize = 2;
/// Pages in one request: enough that a request costs nothing by the page, and few enough that an answer is checked and
/// copied while it is in the cache.
const REQUEST_PAGES: usize = 64;
/// Requests that one read has under way.
const READ_REQUESTS_MAX: usize = 16;
/// Requests under way on one connection; later ones wait.
const CONNECTION_REQUESTS_MAX: usize = 32;
/// Buffers kept for the next answers.
const BUFFERS_MAX: usize = 32;

const _: () = assert!(REQUEST_PAGES <= frame::REQUEST_PAGES_MAX && REQUEST_PAGES <= frame::REQUEST_RUNS_MAX);

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// It broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// The holder does not keep the rules.
    #[error("understand the holder")]
    Frame(#[from] FrameError),
    /// It answers something that was not asked.
    #[error("the holder answers {answered}, not {asked}")]
    Order {
        /// What comes next.
        asked: u32,
        /// What came.
        answered: u32,
    },
    /// It sends something else, or another number of pages, than it was asked for.
    #[error("the holder sends {sent:?}, not {asked:?}")]
    Content {
        /// Asked for.
        asked: Content,
        /// Sent.
        sent: Content,
    },
    /// It does not answer.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// There was nobody left who reads.
    #[error("closed")]
    Closed,
}

/// Memory that answers arrive in, used again.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    fn take(&self, bytes: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        buffer
    }

    fn give(&self, buffer: Vec<u8>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() < BUFFERS_MAX {
            all.push(buffer);
        }
    }
}

/// What was asked for, as it came: pages are not checked yet, all else is.
#[derive(Debug)]
struct Answer {
    /// At least as long as the content.
    buffer: Vec<u8>,
    content: Content,
}

impl Answer {
    fn body(&self) -> &[u8] {
        self.buffer.get(..self.content.bytes()).unwrap_or_default()
    }
}

/// A request that waits for its turn or its answer.
#[derive(Debug)]
struct Job {
    request: Request,
    reply: oneshot::Sender<Result<Result<Answer, Refusal>, Arc<ConnectionError>>>,
}

/// An open connection: the way to its task. It closes when the last clone is dropped.
#[derive(Debug, Clone)]
struct Connection(mpsc::Sender<Job>);

impl Connection {
    async fn ask(&self, request: Request) -> Result<Result<Answer, Refusal>, Arc<ConnectionError>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Job { request, reply }).await.map_err(|_closed| Arc::new(ConnectionError::Closed))?;
        answer.await.unwrap_or_else(|_dropped| Err(Arc::new(ConnectionError::Closed)))
    }
}

/// The pages of one holder.
#[derive(Debug)]
pub struct TcpPages {
    address: SocketAddr,
    token: Token,
    security: Security,
    /// Whose certificate it must show; `None`: that of any agent.
    holder: Option<HolderName>,
    /// An answer, or a connection, that takes longer does not come.
    patience: Duration,
    slots: [tokio::sync::Mutex<Option<Connection>>; CONNECTIONS],
    next: AtomicUsize,
    buffers: Arc<Buffers>,
    tasks: TaskTracker,
}

impl TcpPages {
    /// Pages of the holder there, who told us its token. Nothing is connected yet.
    pub fn new(
        (address, token): (SocketAddr, Token),
        patience: Duration,
        buffers: Arc<Buffers>,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            address,
            token,
            security: Security::Plaintext,
            holder: None,
            patience,
            slots: Default::default(),
            next: AtomicUsize::new(0),
            buffers,
            tasks,
        }
    }

    /// The same, from a holder that we know, and that knows us, by a certificate.
    #[must_use]
    pub fn secured(self, security: Security, holder: &NodeId) -> Self {
        Self { security, holder: Some(holder.into()), ..self }
    }

    /// One request, on one of the connections.
    async fn ask(&self, request: Request) -> Result<Answer, ReadPagesError> {
        let slot = &self.slots[self.next.fetch_add(1, Ordering::Relaxed) % CONNECTIONS];
        let (connection, was_open) = self.connection(slot).await?;
        let snapshot = request.snapshot;
        let refused = |source| ReadPagesError::Refused { snapshot, source };
        match connection.ask(request.clone()).await {
            Ok(answer) => return answer.map_err(refused),
            Err(source) => {
                self.forget(slot, &connection).await;
                if !was_open {
                    return Err(ReadPagesError::Connection { address: self.address, source });
                }
            }
        }
        // It may have been closed long ago, with a holder that has started again since.
        let (connection, _) = self.connection(slot).await?;
        let asked = connection.ask(request).await;
        if asked.is_err() {
            self.forget(slot, &connection).await;
        }
        asked.map_err(|source| ReadPagesError::Connection { address: self.address, source })?.map_err(refused)
    }

    /// A slot's connection, and whether it was open before.
    async fn connection(
        &self,
        slot: &tokio::sync::Mutex<Option<Connection>>,
    ) -> Result<(Connection, bool), ReadPagesError> {
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.0.is_closed()) {
            return Ok((connection.clone(), true));
        }
        let address = self.address;
        let connect = |source| ReadPagesError::Connect { address, source };
        let (patience, buffers) = (self.patience, self.buffers.clone());
        let opened = async {
            let mut stream = TcpStream::connect(address).await.map_err(connect)?;
            stream.set_nodelay(true).map_err(connect)?;
            let Security::Mutual(credentials) = &self.security else {
                greet(&mut stream, address, &self.token).await?;
                return Ok(open(stream.into_split(), patience, buffers, &self.tasks));
            };
            let stream = security::connect(credentials, stream, Service::Pages, self.holder.clone()).await;
            let mut stream =
                stream.map_err(|source| ReadPagesError::Handshake { address, source: Box::new(source) })?;
            greet(&mut stream, address, &self.token).await?;
            Ok(open(tokio::io::split(stream), patience, buffers, &self.tasks))
        };
        let opened = timeout(patience, opened).await;
        let connection = opened.unwrap_or_else(|_elapsed| Err(connect(io::ErrorKind::TimedOut.into())))?;
        *slot = Some(connection.clone());
        Ok((connection, false))
    }

    async fn forget(&self, slot: &tokio::sync::Mutex<Option<Connection>>, broken: &Connection) {
        let mut slot = slot.lock().await;
        if slot.as_ref().is_some_and(|connection| connection.0.same_channel(&broken.0)) {
            *slot = None;
        }
    }

    /// Has the holder expose a snapshot to the RDMA connection `session`, which is ours.
    pub async fn expose(&self, snapshot: SnapshotId, session: u64) -> Result<Exposed, ReadPagesError> {
        let answer = self.ask(Request::to_expose(0, snapshot, session)).await?;
        let body = answer.body().try_into().map_err(|_length| FrameError::Value("the length of an answer"));
        let exposed = body.and_then(frame::parse_exposed);
        self.buffers.give(answer.buffer);
        let (address, senseless) = (self.address, |error: FrameError| Arc::new(error.into()));
        exposed.map_err(|error| ReadPagesError::Connection { address, source: senseless(error) })
    }

    async fn read_all(&self, wanted: &[BasePage], into: &mut [Page]) -> Result<(), ReadPagesError> {
        let requests = requests(&wanted[..wanted.len().min(into.len())]);
        let asks = requests.into_iter().map(async |(at, request)| Ok((at, self.ask(request).await?)));
        let mut answers = std::pin::pin!(stream::iter(asks).buffer_unordered(READ_REQUESTS_MAX));
        while let Some(answer) = answers.next().await {
            let (at, answer): (usize, Answer) = answer?;
            let took = take(&answer, &wanted[at..], &mut into[at..]);
            self.buffers.give(answer.buffer);
            took?;
        }
        metrics::remote_pages("tcp", wanted.len().min(into.len()));
        Ok(())
    }
}

impl BasePages for TcpPages {
    fn read<'a>(
        &'a self,
        wanted: &'a [BasePage],
        into: &'a mut [Page],
    ) -> BoxFuture<'a, Result<(), ReadPagesError>> {
        Box::pin(self.read_all(wanted, into))
    }
}

/// What is asked for at once: where it begins in `wanted`, and the request, all of one snapshot.
fn requests(wanted: &[BasePage]) -> Vec<(usize, Request)> {
    let mut at = 0;
    let pieces = wanted.chunk_by(|a, b| a.snapshot == b.snapshot).flat_map(|run| run.chunks(REQUEST_PAGES));
    let requests = pieces.filter_map(|piece| {
        let start = at;
        at += piece.len();
        let request = Request::new(0, piece[0].snapshot, piece.iter().map(|base| base.page));
        Some((start, request?))
    });
    requests.collect()
}

/// Checks pages and copies them to their places.
fn take(answer: &Answer, wanted: &[BasePage], into: &mut [Page]) -> Result<(), ReadPagesError> {
    let split = match answer.content {
        Content::Pages(pages) => frame::split_body(answer.body(), pages),
        Content::Exposed => None,
    };
    // Looked at when it came, so it is there; were it not, nothing would be in `into`.
    let (sums, pages) = split.ok_or(ReadPagesError::Damaged { page: wanted[0] })?;
    let sums = sums.as_chunks::<SUM_BYTES>().0;
    for (((page, sum), into), wanted) in pages.iter().zip(sums).zip(into).zip(wanted) {
        if frame::sum(page) != u64::from_le_bytes(*sum) {
            return Err(ReadPagesError::Damaged { page: *wanted });
        }
        *into = *page;
    }
    Ok(())
}

/// Introduces us.
async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    address: SocketAddr,
    token: &Token,
) -> Result<(), ReadPagesError> {
    let connect = |source| ReadPagesError::Connect { address, source };
    stream.write_all(&frame::greeting(token)).await.map_err(connect)?;
    stream.flush().await.map_err(connect)?;
    let mut welcome = [0; WELCOME_BYTES];
    stream.read_exact(&mut welcome).await.map_err(connect)?;
    match frame::parse_welcome(&welcome) {
        Ok(Verdict::Welcome) => Ok(()),
        Ok(verdict) => Err(ReadPagesError::NotWelcome { address, verdict }),
        Err(source) => Err(ReadPagesError::Greeting { address, source }),
    }
}

/// Starts the task of a connection over any stream on which we were welcomed.
fn open(
    (reader, writer): (impl AsyncRead + Unpin + Send + 'static, impl AsyncWrite + Unpin + Send + 'static),
    patience: Duration,
    buffers: Arc<Buffers>,
    tasks: &TaskTracker,
) -> Connection {
    let (to_task, mut jobs) = mpsc::channel(CONNECTION_REQUESTS_MAX);
    tasks.spawn(async move {
        let (to_reader, mut under_way) = mpsc::channel(CONNECTION_REQUESTS_MAX);
        let (mut left, why) = tokio::select! {
            ended = write_requests(writer, &mut jobs, to_reader) => (Vec::new(), ended),
            (unanswered, ended) = read_answers(reader, &mut under_way, patience, &buffers) => (unanswered, ended),
        };
        // Whoever still waits hears why; nobody new gets in.
        jobs.close();
        let why = Arc::new(why);
        while let Ok(job) = under_way.try_recv() {
            left.push(job);
        }
        while let Ok(job) = jobs.try_recv() {
            left.push(job);
        }
        for job in left {
            drop(job.reply.send(Err(why.clone())));
        }
    });
    Connection(to_task)
}

/// Sends requests as they come, numbered.
async fn write_requests(
    mut writer: impl AsyncWrite + Unpin,
    jobs: &mut mpsc::Receiver<Job>,
    under_way: mpsc::Sender<Job>,
) -> ConnectionError {
    let mut number = 0_u32;
    while let Some(mut job) = jobs.recv().await {
        job.request.number = number;
        number = number.wrapping_add(1);
        let frame = job.request.frame();
        // First: an answer may come before the write returns.
        if under_way.send(job).await.is_err() {
            break;
        }
        let written = async {
            writer.write_all(&frame).await?;
            // What TLS has taken is not yet on its way.
            writer.flush().await
        };
        if let Err(error) = written.await {
            return error.into();
        }
    }
    ConnectionError::Closed
}

/// Reads answers for those who wait, in their order. Returns whose answer did not come, and why.
async fn read_answers(
    mut reader: impl AsyncRead + Unpin,
    under_way: &mut mpsc::Receiver<Job>,
    patience: Duration,
    buffers: &Buffers,
) -> (Vec<Job>, ConnectionError) {
    while let Some(job) = under_way.recv().await {
        let answer = timeout(patience, read_answer(&mut reader, &job.request, buffers)).await;
        match answer.unwrap_or(Err(ConnectionError::Silent(patience))) {
            // Who asked may have gone.
            Ok(answer) => drop(job.reply.send(Ok(answer))),
            Err(error) => return (vec![job], error),
        }
    }
    (Vec::new(), ConnectionError::Closed)
}

async fn read_answer(
    reader: &mut (impl AsyncRead + Unpin),
    request: &Request,
    buffers: &Buffers,
) -> Result<Result<Answer, Refusal>, ConnectionError> {
    let mut head = [0; ANSWER_HEAD_BYTES];
    reader.read_exact(&mut head).await?;
    let AnswerHead { number, content } = AnswerHead::parse(&head)?;
    if number != request.number {
        return Err(ConnectionError::Order { asked: request.number, answered: number });
    }
    let content = match content {
        Ok(content) => content,
        Err(refusal) => {
            frame::check_answer(&head, &[])?;
            return Ok(Err(refusal));
        }
    };
    // What was asked for is little, so what is taken for the answer is.
    let asked =
        request.session().map_or_else(|| Content::Pages(request.pages()), |_session| Content::Exposed);
    if content != asked {
        return Err(ConnectionError::Content { asked, sent: content });
    }
    let mut buffer = buffers.take(content.bytes());
    reader.read_exact(&mut buffer[..content.bytes()]).await?;
    frame::check_answer(&head, &buffer[..content.checked_bytes()])?;
    Ok(Ok(Answer { buffer, content }))
}
