//! The Node service: what other agents must know to read base pages, requests and logs to the controller.

use std::sync::Arc;

use medes_proto::{
    failure::FailureKind,
    ids::{SandboxId, SnapshotId, snapshot_from_wire},
    node::{Invoke, PageAccess, reply_to_wire},
    wire::{
        HeatReply, HeatRequest, InvokeReply, InvokeRequest, LogsReply, LogsRequest, PageAccessReply,
        PageAccessRequest, ReadLayoutRequest, SnapshotLayout, node_server::Node,
    },
};
use tonic::{Request, Response, Status};

use crate::{
    bases::{Bases, local::Snapshot},
    node::NodeHandle,
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
}
