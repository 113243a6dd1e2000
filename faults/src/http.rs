//! One request through the gateway, on a connection of its own, and what came of it. It always ends: at the latest some time after its deadline.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

/// What the gateway is told to have the answer by.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);
/// What the product says that it may take beyond: `answer_slack` of the controller's driver, and a second for a busy machine.
pub(crate) const LATE: Duration = Duration::from_secs(3);
/// Nobody waits for longer, to be able to tell.
const GIVEN_UP: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(2);
const BODY_MAX: usize = 1 << 20;

/// An answer of the function.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// warm, unpark, restore, clone, cold.
    pub(crate) start: String,
    pub(crate) sandbox: String,
    pub(crate) life: String,
    pub(crate) count: u64,
    pub(crate) sound: bool,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    Answered(Answer),
    /// The gateway says why not.
    Refused {
        status: u16,
        kind: String,
        message: String,
    },
    /// Nobody answered: no connection, or it broke.
    Broken(String),
    /// Nothing came, long after the deadline.
    Hung,
}

/// A request and its end.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    pub(crate) end: End,
}

impl Asked {
    pub(crate) fn answer(&self) -> Option<&Answer> {
        match &self.end {
            End::Answered(answer) => Some(answer),
            _ => None,
        }
    }

    /// Whether it took longer than the product promises.
    pub(crate) fn overdue(&self) -> bool {
        matches!(self.end, End::Hung) || self.took > DEADLINE + LATE
    }

    /// One word: the start kind, or why not.
    pub(crate) fn word(&self) -> String {
        match &self.end {
            End::Answered(answer) => answer.start.clone(),
            End::Refused { kind, .. } => kind.clone(),
            End::Broken(_) => "no connection".into(),
            End::Hung => "hung".into(),
        }
    }
}

/// Asks a function. `prefer`: a sandbox to have it.
pub(crate) fn ask(gateway: SocketAddr, path: &str, prefer: Option<&str>) -> Asked {
    let at = Instant::now();
    let end = match exchange(gateway, path, prefer) {
        Ok((status, headers, body)) => understand(status, &headers, &body),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock || at.elapsed() >= GIVEN_UP => End::Hung,
        Err(error) => End::Broken(error.to_string()),
    };
    Asked { at, took: at.elapsed(), end }
}

fn understand(status: u16, headers: &BTreeMap<String, String>, body: &Value) -> End {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    if status != 200 {
        return End::Refused { status, kind: text(&body["kind"]), message: text(&body["error"]) };
    }
    End::Answered(Answer {
        start: header("x-medes-start"),
        sandbox: header("x-medes-sandbox"),
        life: text(&body["life"]),
        count: body["count"].as_u64().unwrap_or_default(),
        sound: body["sound"] == true,
    })
}

type Parts = (u16, BTreeMap<String, String>, Value);

fn exchange(gateway: SocketAddr, path: &str, prefer: Option<&str>) -> io::Result<Parts> {
    let mut stream = TcpStream::connect_timeout(&gateway, CONNECT)?;
    stream.set_read_timeout(Some(GIVEN_UP))?;
    let mut head = format!(
        "POST /invoke/{path} HTTP/1.1\r\nhost: medes\r\nconnection: close\r\ncontent-length: 0\r\nx-medes-deadline-ms: {}\r\n",
        DEADLINE.as_millis()
    );
    if let Some(sandbox) = prefer {
        head += &format!("x-medes-prefer-sandbox: {sandbox}\r\n");
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let bad = |what: &str| io::Error::new(io::ErrorKind::UnexpectedEof, what.to_owned());
    let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(|| bad("no status"))?;
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length: usize = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length.min(BODY_MAX)];
    reader.read_exact(&mut body)?;
    Ok((status, headers, serde_json::from_slice(&body).unwrap_or_default()))
}
