//! `medes invoke`: one request to a function, through the controller.

use std::{
    fs::File,
    io::{IsTerminal as _, Read, stdin, stdout},
    str::FromStr,
    time::Duration,
};

use bytes::Bytes;
use medes_proto::{
    WireError,
    ids::{FunctionName, SandboxId},
    limits::BODY_BYTES_MAX,
    node::Answer,
    sandbox::{Phase, StartKind, phases_from_wire},
    units::Span,
    wire::{self, invoke_function_reply::Result as Outcome},
};
use serde::Serialize;

use crate::{
    client::Client,
    error::{CliError, Ended},
    human,
    output::{Output, plain},
    view::{self, PhaseView},
};

/// Beyond the request's own deadline: the controller answers then, this is for the way.
const GRACE: Duration = Duration::from_secs(10);
/// When the controller's default deadline applies, which is not known here.
const PATIENCE: Duration = Duration::from_secs(900);

#[derive(Debug, clap::Args)]
pub(crate) struct InvokeArgs {
    /// The function
    function: FunctionName,
    /// The body: text, @FILE, or - for standard input
    #[arg(long, short, value_name = "TEXT|@FILE|-")]
    data: Option<Data>,
    /// The HTTP method
    #[arg(long, short = 'X', default_value = "POST")]
    method: Method,
    /// Path and query
    #[arg(long, default_value = "/")]
    path: HttpPath,
    /// A header; may be given several times
    #[arg(long, short = 'H', value_name = "NAME:VALUE")]
    header: Vec<Header>,
    /// How long the request may take, queue and start included [default: the controller's]
    #[arg(long, value_name = "TIME")]
    deadline: Option<Span>,
    /// Say on standard error how the sandbox came to be ready and how long each step took
    #[arg(long, short)]
    include: bool,
}

#[derive(Debug, Clone)]
enum Data {
    Text(String),
    File(std::path::PathBuf),
    Stdin,
}

impl From<&str> for Data {
    fn from(text: &str) -> Self {
        match text.strip_prefix('@') {
            Some(path) => Self::File(path.into()),
            None if text == "-" => Self::Stdin,
            None => Self::Text(text.into()),
        }
    }
}

/// A part of the request that HTTP would not accept.
#[derive(Debug, thiserror::Error)]
enum PartError {
    #[error("a method is 1 to 16 letters")]
    Method,
    #[error("a path begins with '/' and has no spaces")]
    Path,
    #[error("a header is NAME:VALUE")]
    Header,
}

#[derive(Debug, Clone)]
struct Method(String);

impl FromStr for Method {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, PartError> {
        let good = (1..=16).contains(&text.len()) && text.bytes().all(|c| c.is_ascii_alphabetic());
        if good { Ok(Self(text.to_ascii_uppercase())) } else { Err(PartError::Method) }
    }
}

#[derive(Debug, Clone)]
struct HttpPath(String);

impl FromStr for HttpPath {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, PartError> {
        let good = text.starts_with('/') && text.bytes().all(|c| c.is_ascii_graphic());
        if good { Ok(Self(text.into())) } else { Err(PartError::Path) }
    }
}

#[derive(Debug, Clone)]
struct Header {
    name: String,
    value: String,
}

impl FromStr for Header {
    type Err = PartError;

    fn from_str(text: &str) -> Result<Self, PartError> {
        let (name, value) = text.split_once(':').ok_or(PartError::Header)?;
        let (name, value) = (name.trim().to_ascii_lowercase(), value.trim().to_owned());
        let name_ok =
            !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.".contains(&c));
        let value_ok = !value.contains(|c: char| c.is_control() && c != '\t');
        if name_ok && value_ok { Ok(Self { name, value }) } else { Err(PartError::Header) }
    }
}

#[derive(Serialize)]
struct HeaderView {
    name: String,
    value: String,
}

#[derive(Serialize)]
struct AnswerView {
    function: String,
    status: u16,
    headers: Vec<HeaderView>,
    /// The body, when it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body, when it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    start: &'static str,
    sandbox: String,
    node: String,
    function_ms: f64,
    total_ms: f64,
    phases: Vec<PhaseView>,
}

struct Answered {
    http: Answer,
    start: StartKind,
    sandbox: SandboxId,
    node: String,
    phases: Vec<Phase>,
}

pub(crate) async fn run(
    args: InvokeArgs,
    connect: impl AsyncFnOnce() -> Result<Client, CliError>,
    output: &Output,
) -> Result<Ended, CliError> {
    let body = args.data.as_ref().map(read).transpose()?.unwrap_or_default();
    let deadline = args.deadline.map(|span| span.0);
    let request = wire::InvokeFunctionRequest {
        function: args.function.to_string(),
        method: args.method.0.clone(),
        path: args.path.0.clone(),
        headers: args.header.iter().map(header_to_wire).collect(),
        body,
        deadline_ms: deadline.map_or(0, |span| u64::try_from(span.as_millis()).unwrap_or(u64::MAX)),
    };
    let client = connect().await?;
    let doing = format!("invoke {}", args.function);
    let within = deadline.map_or(PATIENCE, |span| span.saturating_add(GRACE));
    let reply =
        client.call(&doing, within, async |mut control| control.invoke_function(request).await).await?;
    let answered = match reply.result {
        Some(Outcome::Answer(raw)) => checked(raw),
        Some(Outcome::Failure(raw)) => match raw.try_into() {
            Ok(failure) => return Err(CliError::Failed { doing, failure }),
            Err(error) => Err(error),
        },
        None => Err(WireError::missing("reply.result")),
    };
    let answered = answered.map_err(|source| CliError::Reply { doing, source })?;
    print(&args, answered, output)
}

fn header_to_wire(header: &Header) -> wire::Header {
    wire::Header { name: header.name.clone(), value: Bytes::from(header.value.clone()) }
}

fn read(data: &Data) -> Result<Bytes, CliError> {
    let all = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(BODY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map(|_length| bytes)
    };
    let bytes = match data {
        Data::Text(text) => text.clone().into_bytes(),
        Data::Stdin => all(&mut stdin().lock()).map_err(|source| CliError::ReadStdin { source })?,
        Data::File(path) => File::open(path)
            .and_then(|mut file| all(&mut file))
            .map_err(|source| CliError::ReadFile { path: path.clone(), source })?,
    };
    if bytes.len() > BODY_BYTES_MAX {
        return Err(CliError::BodyTooLarge { max: BODY_BYTES_MAX });
    }
    Ok(bytes.into())
}

fn checked(raw: wire::InvokeFunctionAnswer) -> Result<Answered, WireError> {
    let wire::InvokeFunctionAnswer { http, start, sandbox, node, phases } = raw;
    Ok(Answered {
        http: http.ok_or(WireError::missing("answer.http"))?.try_into()?,
        start: StartKind::try_from(start).unwrap_or_default(),
        sandbox: SandboxId::from_wire(sandbox, "answer.sandbox")?,
        node,
        phases: phases_from_wire(phases)?,
    })
}

fn print(args: &InvokeArgs, answered: Answered, output: &Output) -> Result<Ended, CliError> {
    let Answered { http, start, sandbox, node, phases } = answered;
    let ended = if http.status < 400 { Ended::Well } else { Ended::Badly };
    if output.json() {
        let total: Duration = phases.iter().map(|phase| phase.took).sum();
        let (body, body_base64) = match std::str::from_utf8(&http.body) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_binary) => (None, Some(base64(&http.body))),
        };
        let header = |(name, value): &(String, Bytes)| HeaderView {
            name: name.clone(),
            value: String::from_utf8_lossy(value).into_owned(),
        };
        let view = AnswerView {
            function: args.function.to_string(),
            status: http.status,
            headers: http.headers.iter().map(header).collect(),
            body,
            body_base64,
            start: start.word(),
            sandbox: sandbox.to_string(),
            node,
            function_ms: human::millis(http.took),
            total_ms: human::millis(total),
            phases: view::phases(&phases),
        };
        output.answer(&view, String::new)?;
        return Ok(ended);
    }
    output.bytes(&http.body)?;
    if stdout().is_terminal() && !http.body.ends_with(b"\n") && !http.body.is_empty() {
        output.bytes(b"\n")?;
    }
    if ended == Ended::Badly {
        eprintln!("medes: {} answered with status {}", args.function, http.status);
    }
    if args.include {
        eprintln!("status {} from {sandbox} on {}, start {}", http.status, plain(&node), start.word());
        eprintln!("{}", plain(&human::phases(&phases)));
    }
    Ok(ended)
}

/// Bytes that are not text, for JSON (RFC 4648, with padding).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let mut group = [0; 4];
        group[1..=three.len()].copy_from_slice(three);
        let group = u32::from_be_bytes(group);
        for digit in 0..4 {
            let value = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit <= three.len() { char::from(DIGITS[value as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_agrees_with_the_rfc() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(base64(&[0xff, 0xfe, 0xfd]), "//79");
    }

    #[test]
    fn headers_are_split_at_the_first_colon() {
        let header: Header = "X-Url: http://a:1/".parse().unwrap();
        assert_eq!((header.name.as_str(), header.value.as_str()), ("x-url", "http://a:1/"));
        for bad in ["x", ":v", "a b: c", "x: a\r\nevil: 1"] {
            assert!(bad.parse::<Header>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn data_may_be_text_a_file_or_stdin() {
        assert!(matches!(Data::from("-"), Data::Stdin));
        assert!(matches!(Data::from("@-"), Data::File(_)));
        assert!(matches!(Data::from("a@b"), Data::Text(_)));
    }

    #[test]
    fn a_body_larger_than_the_wire_takes_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(BODY_BYTES_MAX as u64 + 1).unwrap();
        assert!(matches!(read(&Data::File(file.path().into())), Err(CliError::BodyTooLarge { .. })));
        file.as_file().set_len(BODY_BYTES_MAX as u64).unwrap();
        assert_eq!(read(&Data::File(file.path().into())).unwrap().len(), BODY_BYTES_MAX);
    }
}
