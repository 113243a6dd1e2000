//! One request into a sandbox, with a deadline and a bounded answer.

use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Headers that describe one connection and must not travel on.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
];

/// What is sent to the function.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET, POST, ...
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Headers; those of the connection itself are set by the runtime.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Largest answer body that is taken.
    pub response_bytes_max: usize,
    /// From connecting to the last byte of the answer.
    pub deadline: Duration,
}

impl Request {
    /// A GET without headers.
    pub fn get(path: impl Into<String>, deadline: Duration, response_bytes_max: usize) -> Self {
        let (method, headers, body) = (Method::GET, HeaderMap::new(), Bytes::new());
        Self { method, path: path.into(), headers, body, response_bytes_max, deadline }
    }
}

/// What the function answered.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: StatusCode,
    /// Headers, without those of the connection.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// From connecting to the last byte.
    pub micros: u64,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// As many requests as the function allows are inside already.
    #[error("the sandbox is busy with {requests_max} requests")]
    Busy {
        /// The function's own limit.
        requests_max: u32,
    },
    /// The path cannot be sent.
    #[error("bad request path {path:?}")]
    BadPath {
        /// The path.
        path: String,
    },
    /// Nobody listens on the port, or the sandbox is gone.
    #[error("connect to port {port} of the sandbox")]
    Connect {
        /// The function's port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// No whole answer in time.
    #[error("no answer within {} ms", .after.as_millis())]
    Deadline {
        /// The deadline.
        after: Duration,
    },
    /// The answer is larger than asked for.
    #[error("the answer is larger than {bytes_max} bytes")]
    BodyTooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// The connection broke before the answer was whole: the function crashed or gave up.
    #[error("the function closed the connection before its answer was complete")]
    Closed {
        /// What broke.
        source: hyper::Error,
    },
    /// The answer is no HTTP.
    #[error("the answer is not HTTP")]
    Malformed {
        /// What is wrong with it.
        source: hyper::Error,
    },
}

/// Sends one request over a fresh connection. Cancel-safe: dropping it closes the connection.
pub(crate) async fn exchange(
    connect: impl Future<Output = io::Result<TcpStream>>,
    port: u16,
    request: Request,
) -> Result<Response, RequestError> {
    let after = request.deadline;
    let began = Instant::now();
    let answered = tokio::time::timeout(after, async {
        let stream = connect.await.map_err(|source| RequestError::Connect { port, source })?;
        over(stream, port, request).await
    });
    let mut response = answered.await.map_err(|_elapsed| RequestError::Deadline { after })??;
    response.micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    Ok(response)
}

async fn over(stream: TcpStream, port: u16, request: Request) -> Result<Response, RequestError> {
    let bytes_max = request.response_bytes_max;
    let request = to_wire(request, port)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut connection = pin!(connection);
    let mut answer = pin!(async move {
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = collect(body, bytes_max).await?;
        Ok(Response { status: head.status, headers: without_hops(head.headers), body, micros: 0 })
    });
    // The connection does the input and output; it lives in this task, so nothing is left running behind.
    tokio::select! {
        biased;
        response = &mut answer => return response,
        // Ended, well or badly. What it has already delivered is still in its channels, and so is its error.
        _over = &mut connection => {}
    }
    answer.await
}

fn to_wire(request: Request, port: u16) -> Result<hyper::Request<Full<Bytes>>, RequestError> {
    let Request { method, path, headers, body, .. } = request;
    let bad_path = || RequestError::BadPath { path: path.chars().take(200).collect() };
    let uri: Uri = path.parse().map_err(|_invalid| bad_path())?;
    if uri.path_and_query().is_none() || uri.authority().is_some() {
        return Err(bad_path());
    }
    let mut wire = hyper::Request::new(Full::new(body));
    *wire.method_mut() = method;
    *wire.uri_mut() = uri;
    *wire.headers_mut() = without_hops(headers);
    let host = HeaderValue::from_str(&format!("127.0.0.1:{port}")).map_err(|_invalid| bad_path())?;
    wire.headers_mut().insert(header::HOST, host);
    // One connection per request: an open connection could not be saved when the sandbox is put away.
    wire.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Ok(wire)
}

fn without_hops(mut headers: HeaderMap) -> HeaderMap {
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers
}

async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Bytes, RequestError> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        // Trailers are dropped.
        let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
        if whole.len() + data.len() > bytes_max {
            return Err(RequestError::BodyTooLarge { bytes_max });
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

fn broken(source: hyper::Error) -> RequestError {
    if source.is_parse() { RequestError::Malformed { source } } else { RequestError::Closed { source } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one connection with `answer` after having read the request, and gives back what was asked.
    async fn ask(
        answer: &'static [u8],
        change: impl FnOnce(&mut Request),
    ) -> (Result<Response, RequestError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address");
        let mut request = Request::get("/x?y=1", Duration::from_secs(10), 1000);
        change(&mut request);
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).await.expect("request");
                asked.push(byte[0]);
            }
            stream.write_all(answer).await.expect("answer");
            String::from_utf8(asked).expect("text")
        };
        tokio::join!(exchange(TcpStream::connect(address), 80, request), server)
    }

    #[tokio::test]
    async fn a_whole_answer_comes_back_and_connection_headers_do_not() {
        let answer = b"HTTP/1.0 201 Created\r\nX-A: b\r\nConnection: close\r\n\r\nbody until the end";
        let (response, asked) = ask(answer, |request| {
            request.headers.insert("x-b", HeaderValue::from_static("c"));
            request.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        })
        .await;
        let response = response.expect("an answer");
        assert_eq!(response.status, StatusCode::CREATED);
        assert_eq!(&response.body[..], b"body until the end");
        assert_eq!(response.headers.get("x-a"), Some(&HeaderValue::from_static("b")));
        assert!(!response.headers.contains_key(header::CONNECTION));
        let asked = asked.to_lowercase();
        assert!(asked.starts_with("get /x?y=1 http/1.1\r\n"), "{asked}");
        assert!(asked.contains("connection: close") && asked.contains("x-b: c"), "{asked}");
        assert!(!asked.contains("transfer-encoding"), "{asked}");
    }

    #[tokio::test]
    async fn a_short_answer_is_not_taken_for_a_whole_one() {
        let (response, _) = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this", |_| {}).await;
        assert!(matches!(response, Err(RequestError::Closed { .. })), "{response:?}");
        let (response, _) = ask(b"", |_| {}).await;
        assert!(matches!(response, Err(RequestError::Closed { .. })), "{response:?}");
    }

    #[tokio::test]
    async fn bounds_hold() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789";
        let (response, _) = ask(answer, |request| request.response_bytes_max = 8).await;
        assert!(matches!(response, Err(RequestError::BodyTooLarge { bytes_max: 8 })), "{response:?}");
        let (response, _) = ask(answer, |request| request.response_bytes_max = 9).await;
        assert!(response.is_ok(), "{response:?}");
        let (response, _) = ask(b"SMTP ready\r\n", |_| {}).await;
        assert!(matches!(response, Err(RequestError::Malformed { .. })), "{response:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_server_ends_at_the_deadline() {
        let request = Request::get("/", Duration::from_millis(50), 10);
        let response = exchange(std::future::pending(), 80, request).await;
        assert!(matches!(response, Err(RequestError::Deadline { .. })), "{response:?}");
    }

    #[test]
    fn paths_that_are_no_paths_are_refused() {
        for path in ["", "no slash ", "http://other/x", "/with space", "/x\r\ny"] {
            let request = Request::get(path, Duration::from_secs(1), 1);
            assert!(matches!(to_wire(request, 1), Err(RequestError::BadPath { .. })), "{path:?}");
        }
    }
}
