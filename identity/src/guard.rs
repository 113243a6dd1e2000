//! Stands before a gRPC server and lets through what the [table](crate::access) allows.

use std::{
    future::{Ready, ready},
    task::{Context, Poll},
};

use futures::future::Either;
use medes_proto::ids::NodeId;
use tonic::Status;
use tower::{Layer, Service};

use crate::{access::may_call, identity::Role, security::Peer};

/// Puts a guard before every service of a server.
#[derive(Debug, Clone, Copy)]
pub struct Guard;

/// A service behind the guard.
#[derive(Debug, Clone)]
pub struct Guarded<S>(S);

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded(inner)
    }
}

impl<S, B, R> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<R>>,
    R: Default,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match admit(request.extensions().get(), request.uri().path()) {
            Ok(()) => Either::Left(self.0.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

fn admit(peer: Option<&Peer>, path: &str) -> Result<(), Box<Status>> {
    match peer {
        Some(Peer::Unknown) => Ok(()),
        Some(Peer::Known(identity)) if may_call(identity.role, path) => Ok(()),
        Some(Peer::Known(identity)) => {
            tracing::warn!(%identity, path, "refused a call");
            Err(Box::new(Status::permission_denied(format!("{identity} may not call {path}"))))
        }
        // A server that forgot to ask is a mistake of ours, and no way in.
        None => Err(Box::new(Status::unauthenticated("nobody knows who calls"))),
    }
}

/// Whether the caller may speak as a node: its own agent may, and on a plain connection anybody.
pub fn speaks_as<T>(request: &tonic::Request<T>, node: &NodeId) -> Result<(), Status> {
    match request.extensions().get::<Peer>() {
        Some(peer) if peer.is_node(node.as_str()) => Ok(()),
        Some(Peer::Known(identity)) => {
            tracing::warn!(%identity, %node, "refused to speak as another node");
            Err(Status::permission_denied(format!("{identity} may not speak as node {node}")))
        }
        _ => Err(Status::unauthenticated("nobody knows who calls")),
    }
}

impl Peer {
    /// Whether it may speak as a node.
    pub fn is_node(&self, node: &str) -> bool {
        match self {
            Self::Unknown => true,
            Self::Known(identity) => identity.role == Role::Agent && identity.name.as_str() == node,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::Code;

    use super::*;

    #[test]
    fn only_what_is_allowed_gets_through() {
        let peer = |text: &str| Peer::Known(Arc::new(text.parse().unwrap()));
        let (agent, operator) = (peer("spiffe://main/agent/a"), peer("spiffe://main/operator/a"));
        let list = "/medes.v1.Control/ListNodes";
        assert!(admit(Some(&operator), list).is_ok());
        assert_eq!(admit(Some(&agent), list).unwrap_err().code(), Code::PermissionDenied);
        assert_eq!(admit(None, list).unwrap_err().code(), Code::Unauthenticated);
        assert!(admit(Some(&Peer::Unknown), list).is_ok());
        assert_eq!(admit(Some(&operator), "/x").unwrap_err().code(), Code::PermissionDenied);
    }

    #[test]
    fn a_node_speaks_for_itself() {
        let peer = |text: &str| Peer::Known(Arc::new(text.parse().unwrap()));
        assert!(peer("spiffe://main/agent/a").is_node("a"));
        assert!(!peer("spiffe://main/agent/a").is_node("b"));
        assert!(!peer("spiffe://main/operator/a").is_node("a"));
        let nobody = speaks_as(&tonic::Request::new(()), &"a".parse().unwrap());
        assert_eq!(nobody.unwrap_err().code(), Code::Unauthenticated);
    }
}
