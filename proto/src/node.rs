//! Requests into a sandbox and reads of base pages, as an agent serves them.

use std::{net::SocketAddr, num::NonZeroU16, time::Duration};

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
    /// Where it listens for readers by RDMA, if it does; an unspecified address is the host of its Node service.
    pub rdma: Option<SocketAddr>,
}

impl From<PageAccess> for wire::PageAccessReply {
    fn from(access: PageAccess) -> Self {
        Self {
            port: access.port.get().into(),
            token: access.token.to_vec().into(),
            rdma_address: access.rdma.map_or_else(String::new, |address| address.to_string()),
        }
    }
}

impl TryFrom<wire::PageAccessReply> for PageAccess {
    type Error = WireError;

    fn try_from(raw: wire::PageAccessReply) -> Result<Self, WireError> {
        let wire::PageAccessReply { port, token, rdma_address } = raw;
        let port = u16::try_from(port).ok().and_then(NonZeroU16::new);
        let token =
            token[..].try_into().map_err(|_length| WireError::invalid("access.token", "not 32 bytes"))?;
        let no_address = || WireError::invalid("access.rdma_address", "not an address with a port");
        let rdma = match &*rdma_address {
            "" => None,
            text => Some(text.parse().ok().filter(|it: &SocketAddr| it.port() != 0).ok_or_else(no_address)?),
        };
        Ok(Self { port: port.ok_or(WireError::invalid("access.port", "not a port"))?, token, rdma })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_pages_are_read_comes_back_and_must_make_sense() {
        let port = NonZeroU16::new(7).unwrap();
        for rdma in [None, Some("10.0.0.1:7471"), Some("0.0.0.0:1"), Some("[fe80::1]:9")] {
            let rdma = rdma.map(|address| address.parse().unwrap());
            let access = PageAccess { port, token: [3; 32], rdma };
            assert_eq!(PageAccess::try_from(wire::PageAccessReply::from(access)), Ok(access));
        }
        for rdma_address in ["10.0.0.1", "10.0.0.1:0", "host:7", "10.0.0.1:70000", " "] {
            let reply = wire::PageAccessReply {
                port: 7,
                token: vec![3; 32].into(),
                rdma_address: rdma_address.into(),
            };
            let error = PageAccess::try_from(reply).unwrap_err();
            assert_eq!(error.field, "access.rdma_address", "{rdma_address:?}");
        }
    }
}
