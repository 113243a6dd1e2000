//! Requests into a sandbox and reads of base pages, as an agent serves them.

use std::{num::NonZeroU16, time::Duration};

use bytes::Bytes;

use crate::{
    WireError,
    failure::Failure,
    ids::SandboxId,
    limits::{BODY_BYTES_MAX, HEADERS_MAX},
    wire,
};

/// An HTTP header, name in lower case.
pub type Header = (String, Bytes);

/// An HTTP request for a sandbox.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET, POST...
    pub method: String,
    /// Path and query, beginning with '/'.
    pub path: String,
    /// End-to-end headers.
    pub headers: Vec<Header>,
    /// The body, whole.
    pub body: Bytes,
}

/// A sandbox's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// End-to-end headers.
    pub headers: Vec<Header>,
    /// The body, whole.
    pub body: Bytes,
    /// From the connection to the last byte.
    pub took: Duration,
}

/// A request, for which sandbox, and how long it may take.
#[derive(Debug, Clone)]
pub struct Invoke {
    /// Which sandbox.
    pub sandbox: SandboxId,
    /// What it is asked.
    pub request: Request,
    /// How long it may take.
    pub deadline: Duration,
}

/// Headers as a message carries them.
pub fn headers_to_wire(headers: Vec<Header>) -> Vec<wire::Header> {
    headers.into_iter().map(|(name, value)| wire::Header { name, value }).collect()
}

fn headers_from_wire(raw: Vec<wire::Header>) -> Result<Vec<Header>, WireError> {
    if raw.len() > HEADERS_MAX {
        return Err(WireError::invalid("headers", "too many"));
    }
    Ok(raw.into_iter().map(|header| (header.name, header.value)).collect())
}

/// Checks the parts of a request that every way in has in common.
pub fn request_from_wire(
    method: String,
    path: String,
    headers: Vec<wire::Header>,
    body: Bytes,
) -> Result<Request, WireError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(WireError::invalid("body", "too large"));
    }
    if !path.starts_with('/') || path.len() > 8 << 10 {
        return Err(WireError::invalid("path", "does not begin with '/', or too long"));
    }
    if method.is_empty() || method.len() > 16 || !method.bytes().all(|c| c.is_ascii_uppercase()) {
        return Err(WireError::invalid("method", "not an HTTP method"));
    }
    Ok(Request { method, path, headers: headers_from_wire(headers)?, body })
}

impl From<Invoke> for wire::InvokeRequest {
    fn from(invoke: Invoke) -> Self {
        let Invoke { sandbox, request: Request { method, path, headers, body }, deadline } = invoke;
        Self {
            sandbox: sandbox.get(),
            method,
            path,
            headers: headers_to_wire(headers),
            body,
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<wire::InvokeRequest> for Invoke {
    type Error = WireError;

    fn try_from(raw: wire::InvokeRequest) -> Result<Self, WireError> {
        let wire::InvokeRequest { sandbox, method, path, headers, body, deadline_ms } = raw;
        Ok(Self {
            sandbox: SandboxId::from_wire(sandbox, "invoke.sandbox")?,
            request: request_from_wire(method, path, headers, body)?,
            deadline: Duration::from_millis(deadline_ms),
        })
    }
}

impl From<Answer> for wire::HttpAnswer {
    fn from(answer: Answer) -> Self {
        let Answer { status, headers, body, took } = answer;
        Self {
            status: status.into(),
            headers: headers_to_wire(headers),
            body,
            micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<wire::HttpAnswer> for Answer {
    type Error = WireError;

    fn try_from(raw: wire::HttpAnswer) -> Result<Self, WireError> {
        let wire::HttpAnswer { status, headers, body, micros } = raw;
        let status = u16::try_from(status)
            .ok()
            .filter(|status| (100..1000).contains(status))
            .ok_or(WireError::invalid("answer.status", "not an HTTP status"))?;
        Ok(Self { status, headers: headers_from_wire(headers)?, body, took: Duration::from_micros(micros) })
    }
}

/// What an Invoke came to, as the wire has it.
pub fn reply_to_wire(result: Result<Answer, Failure>) -> wire::InvokeReply {
    let result = match result {
        Ok(answer) => wire::invoke_reply::Result::Answer(answer.into()),
        Err(failure) => wire::invoke_reply::Result::Failure(failure.into()),
    };
    wire::InvokeReply { result: Some(result) }
}

/// What an Invoke came to.
pub fn reply_from_wire(raw: wire::InvokeReply) -> Result<Result<Answer, Failure>, WireError> {
    Ok(match raw.result.ok_or(WireError::missing("reply.result"))? {
        wire::invoke_reply::Result::Answer(answer) => Ok(answer.try_into()?),
        wire::invoke_reply::Result::Failure(failure) => Err(failure.try_into()?),
    })
}

/// How a node's base pages are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageAccess {
    /// Where its page service listens, on the host of its Node service.
    pub port: NonZeroU16,
    /// What a reader shows there.
    pub token: [u8; 32],
}

impl From<PageAccess> for wire::PageAccessReply {
    fn from(access: PageAccess) -> Self {
        Self { port: access.port.get().into(), token: access.token.to_vec().into() }
    }
}

impl TryFrom<wire::PageAccessReply> for PageAccess {
    type Error = WireError;

    fn try_from(raw: wire::PageAccessReply) -> Result<Self, WireError> {
        let wire::PageAccessReply { port, token } = raw;
        let port = u16::try_from(port).ok().and_then(NonZeroU16::new);
        let token =
            token[..].try_into().map_err(|_length| WireError::invalid("access.token", "not 32 bytes"))?;
        Ok(Self { port: port.ok_or(WireError::invalid("access.port", "not a port"))?, token })
    }
}
