//! The Node service: what other agents must know to read base pages, requests and logs to the controller.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use medes_dedup::key::KeyId;
use medes_identity::guard::speaks_as;
use medes_proto::{
    WireError,
    failure::{Failure, FailureKind},
    ids::{NameError, NodeId, SandboxId, SnapshotId, snapshot_from_wire},
    moving::{ImageRequest, OfferedSandbox},
    node::{Invoke, PageAccess, reply_to_wire},
    wire::{
        self, AccountRequest, ForgetTenantReply, ForgetTenantRequest, GiveUpReply, HeatReply, HeatRequest,
        ImagePart, InvokeReply, InvokeRequest, LogsReply, LogsRequest, NodeAccount, PageAccessReply,
        PageAccessRequest, ReadImageRequest, ReadLayoutRequest, SnapshotLayout, node_server::Node,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    bases::{Bases, local::Snapshot},
    node::{Dropped, NodeHandle},
    roads::blocking,
};

/// Serves one node.
#[derive(Debug)]
pub struct NodeService {
    bases: Arc<Bases>,
    node: NodeHandle,
    access: PageAccess,
}

impl NodeService {
    /// Layouts from `bases`, whose pages are read by `access`; requests and logs through `node`.
    pub const fn new(bases: Arc<Bases>, access: PageAccess, node: NodeHandle) -> Self {
        Self { bases, node, access }
    }

    fn snapshot(&self, id: SnapshotId) -> Result<Arc<Snapshot>, Status> {
        self.bases.local.get(id).ok_or_else(|| Status::not_found(format!("{id} is not on this node")))
    }
}

type Parts = Pin<Box<dyn Stream<Item = Result<ImagePart, Status>> + Send>>;

/// What is offered to a node goes to nobody else.
fn from_taker<Raw: Clone, Asked: TryFrom<Raw, Error = WireError>>(
    request: &Request<Raw>,
    taker: impl FnOnce(&Asked) -> &NodeId,
) -> Result<Asked, Status> {
    let asked = Asked::try_from(request.get_ref().clone())?;
    speaks_as(request, taker(&asked))?;
    Ok(asked)
}

fn refused(why: Failure) -> Status {
    match why.kind {
        FailureKind::NotFound => Status::not_found(why.message),
        FailureKind::Busy => Status::failed_precondition(why.message),
        _ => Status::internal(why.message),
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn page_access(
        &self,
        _request: Request<PageAccessRequest>,
    ) -> Result<Response<PageAccessReply>, Status> {
        Ok(Response::new(self.access.into()))
    }

    async fn read_layout(
        &self,
        request: Request<ReadLayoutRequest>,
    ) -> Result<Response<SnapshotLayout>, Status> {
        let snapshot = snapshot_from_wire(request.into_inner().snapshot, "layout.snapshot")?;
        let snapshot = self.snapshot(snapshot)?;
        let layout = blocking(move || snapshot.layout()).await;
        Ok(Response::new(layout.into()))
    }

    type ReadImageStream = Parts;

    async fn read_image(&self, request: Request<ReadImageRequest>) -> Result<Response<Parts>, Status> {
        let request = from_taker(&request, |asked: &ImageRequest| &asked.offered.to)?;
        let sandbox = request.offered.sandbox;
        let parcel = self.node.parcel(request.offered.clone()).await.map_err(refused)?;
        let packed = blocking(move || parcel.pack()).await;
        let packed = packed.map_err(|error| Status::internal(format!("pack {sandbox}: {error}")))?;
        let broken = move |error| Status::internal(format!("send {sandbox}: {error}"));
        let parts = packed.parts(&request).map_err(broken)?;
        Ok(Response::new(Box::pin(parts.map(move |part| part.map_err(broken)))))
    }

    async fn give_up(&self, request: Request<wire::OfferedSandbox>) -> Result<Response<GiveUpReply>, Status> {
        let offered = from_taker(&request, |offered: &OfferedSandbox| &offered.to)?;
        self.node.give_up(offered).await.map_err(refused)?;
        Ok(Response::new(GiveUpReply {}))
    }

    async fn invoke(&self, request: Request<InvokeRequest>) -> Result<Response<InvokeReply>, Status> {
        let invoke = Invoke::try_from(request.into_inner())?;
        Ok(Response::new(reply_to_wire(self.node.invoke(invoke).await)))
    }

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        let sandbox = SandboxId::from_wire(request.into_inner().sandbox, "logs.sandbox")?;
        match self.node.logs(sandbox).await {
            Some((lines, dropped)) => Ok(Response::new(LogsReply { lines, dropped })),
            None => Err(Status::not_found(format!("{sandbox} is not on this node"))),
        }
    }

    async fn heat(&self, request: Request<HeatRequest>) -> Result<Response<HeatReply>, Status> {
        let sandbox = SandboxId::from_wire(request.into_inner().sandbox, "heat.sandbox")?;
        match self.node.heat(sandbox).await {
            Ok(map) => Ok(Response::new(map.into())),
            Err(why) if why.kind == FailureKind::Busy => Err(Status::failed_precondition(why.message)),
            Err(why) => Err(Status::internal(why.message)),
        }
    }

    async fn forget_tenant(
        &self,
        request: Request<ForgetTenantRequest>,
    ) -> Result<Response<ForgetTenantReply>, Status> {
        let ForgetTenantRequest { tenant, key_id } = request.into_inner();
        let tenant =
            tenant.parse().map_err(|error: NameError| Status::invalid_argument(error.to_string()))?;
        let dropped = self.node.forget_tenant(tenant, KeyId(key_id)).await;
        let Dropped { sandboxes, snapshots } = dropped.map_err(|why| Status::unavailable(why.message))?;
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(ForgetTenantReply { sandboxes: count(sandboxes), snapshots: count(snapshots) }))
    }

    async fn account(&self, _request: Request<AccountRequest>) -> Result<Response<NodeAccount>, Status> {
        match self.node.account().await {
            Ok(account) => Ok(Response::new(account.into())),
            Err(why) if why.kind == FailureKind::Unsupported => Err(Status::failed_precondition(why.message)),
            Err(why) => Err(Status::unavailable(why.message)),
        }
    }
}

#[cfg(test)]
mod tests {
    use medes_identity::security::Peer;
    use tonic::Code;

    use super::*;

    #[test]
    fn what_is_offered_to_a_node_no_other_one_asks_for() {
        let ask = |who: &str, to: &str| {
            let mut request = Request::new(wire::OfferedSandbox { sandbox: 7, to: to.into() });
            request.extensions_mut().insert(Peer::Known(Arc::new(who.parse().unwrap())));
            from_taker(&request, |offered: &OfferedSandbox| &offered.to).map_err(|status| status.code())
        };
        let own = ask("spiffe://main/agent/n2", "n2").unwrap();
        assert_eq!((own.sandbox.get(), own.to.as_str()), (7, "n2"));
        assert_eq!(ask("spiffe://main/agent/n3", "n2"), Err(Code::PermissionDenied));
        assert_eq!(ask("spiffe://main/operator/n2", "n2"), Err(Code::PermissionDenied));
        assert_eq!(ask("spiffe://main/agent/n2", ""), Err(Code::InvalidArgument));
    }
}
