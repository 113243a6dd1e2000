//! Requests through the HTTP gateway, as any client of Medes makes them, with what the answer's headers say.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{HeaderMap, Request, header};
use hyper_util::rt::TokioIo;
use medes_proto::ids::SandboxId;
use serde::Serialize;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

/// Covers a cold start of the largest function on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(120);
const ANSWER_BYTES_MAX: usize = 8 << 20;
const PHASES_MAX: usize = 64;

/// One answer, and how it came to be.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    /// warm, restore or cold.
    pub(crate) start: String,
    pub(crate) sandbox: SandboxId,
    /// Time by phase, as the gateway saw it.
    pub(crate) phases: Vec<Phase>,
    /// From before the connection to after the last byte, as a client sees it.
    pub(crate) wall_ms: f64,
}

/// One named part of a longer time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) ms: f64,
}

/// Sends one request to a function on a connection of its own. Asks for one sandbox, if one is named;
/// it is the caller's part to check that it was the one that answered.
pub(crate) async fn invoke(
    gateway: &str,
    function: &str,
    sandbox: Option<SandboxId>,
    body: String,
) -> Result<Answer> {
    timeout(ANSWER_MAX, exchange(gateway, function, sandbox, body))
        .await
        .with_context(|| format!("no answer within {} s", ANSWER_MAX.as_secs()))?
        .with_context(|| format!("invoke {function} through {gateway}"))
}

async fn exchange(gateway: &str, function: &str, sandbox: Option<SandboxId>, body: String) -> Result<Answer> {
    let mut request = Request::post(format!("/invoke/{function}"))
        .header(header::HOST, gateway)
        .header(header::CONNECTION, "close")
        .header(header::CONTENT_TYPE, "application/json");
    if let Some(sandbox) = sandbox {
        request = request.header("x-medes-prefer-sandbox", sandbox.to_string());
    }
    let request = request.body(Full::new(Bytes::from(body)))?;

    let started = Instant::now();
    let stream = TcpStream::connect(gateway).await.context("connect")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let answer = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?;
        anyhow::Ok((head, body.to_bytes()))
    };
    // The connection does the reading and writing; its errors come out of the answer.
    let (_, answer) = tokio::join!(connection, answer);
    let (head, body) = answer?;
    let wall_ms = started.elapsed().as_secs_f64() * 1e3;
    if !head.status.is_success() {
        let text: String = String::from_utf8_lossy(&body).chars().take(500).collect();
        bail!("{}: {text}", head.status);
    }
    let sandbox = text(&head.headers, "x-medes-sandbox")?.parse().context("header x-medes-sandbox")?;
    let start = text(&head.headers, "x-medes-start")?.to_owned();
    let phases = parse_phases(text(&head.headers, "x-medes-phases")?)?;
    Ok(Answer { body, start, sandbox, phases, wall_ms })
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<&'a str> {
    let value = headers.get(name).with_context(|| format!("the answer has no header {name}"))?;
    value.to_str().with_context(|| format!("header {name}"))
}

/// `queue=0.1,restore=35.2,function=12.0`, in milliseconds.
fn parse_phases(text: &str) -> Result<Vec<Phase>> {
    text.split(',')
        .filter(|part| !part.trim().is_empty())
        .take(PHASES_MAX)
        .map(|part| {
            let (name, ms) = part.trim().split_once('=')?;
            let ms = ms.parse().ok().filter(|ms: &f64| ms.is_finite() && *ms >= 0.0)?;
            Some(Phase { name: name.to_owned(), ms })
        })
        .collect::<Option<_>>()
        .with_context(|| format!("header x-medes-phases: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// Answers one request with `answer` and returns what was asked.
    async fn serve_once(answer: &str) -> (Result<Answer>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = Vec::new();
            while !asked.ends_with(br#"{"n": 1}"#) {
                assert_ne!(stream.read_buf(&mut asked).await.unwrap(), 0);
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(asked).unwrap()
        };
        tokio::join!(invoke(&address, "html", SandboxId::of(1, 5), r#"{"n": 1}"#.into()), server)
    }

    #[tokio::test]
    async fn an_answer_is_read_with_its_headers() {
        let (answer, asked) = serve_once(
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\nx-medes-start: restore\r\n\
             x-medes-sandbox: sb-1-5\r\nx-medes-phases: queue=0.1,restore=35.2\r\n\r\n{}",
        )
        .await;
        let answer = answer.unwrap();
        assert_eq!((&answer.body[..], &*answer.start), (&b"{}"[..], "restore"));
        assert_eq!(Some(answer.sandbox), SandboxId::of(1, 5));
        assert_eq!(answer.phases[1], Phase { name: "restore".into(), ms: 35.2 });
        assert!(asked.starts_with("POST /invoke/html HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("x-medes-prefer-sandbox: sb-1-5\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn a_refusal_is_an_error_with_its_reason() {
        let (answer, _) =
            serve_once("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 7\r\nconnection: close\r\n\r\ncrashed")
                .await;
        let text = format!("{:#}", answer.unwrap_err());
        assert!(text.contains("502") && text.contains("crashed"), "{text}");
    }

    #[tokio::test]
    async fn an_answer_cut_short_is_an_error() {
        let (answer, _) = serve_once("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}").await;
        answer.unwrap_err();
    }

    #[test]
    fn phases_that_make_no_sense_are_refused() {
        for bad in ["queue", "queue=", "queue=x", "queue=-1", "queue=inf", "queue=1;restore=2"] {
            assert!(parse_phases(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_phases("").unwrap(), []);
    }
}
