//! The Node service: base pages to other agents, requests and logs to the controller.

use std::{pin::Pin, sync::Arc};

use bytes::BytesMut;
use futures::Stream;
use medes_dedup::page::{PAGE_BYTES, PageIndex};
use medes_proto::{
    ids::{SandboxId, SnapshotId, snapshot_from_wire},
    limits::PART_PAGES_MAX,
    node::{Invoke, ReadPages, reply_to_wire},
    wire::{
        InvokeReply, InvokeRequest, LogsReply, LogsRequest, PagesPart, ReadLayoutRequest, ReadPagesRequest,
        SnapshotLayout, node_server::Node,
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
}

impl NodeService {
    /// Pages from `bases`, requests and logs through `node`.
    pub const fn new(bases: Arc<Bases>, node: NodeHandle) -> Self {
        Self { bases, node }
    }

    fn snapshot(&self, id: SnapshotId) -> Result<Arc<Snapshot>, Status> {
        self.bases.local.get(id).ok_or_else(|| Status::not_found(format!("{id} is not on this node")))
    }
}

/// Pages of one snapshot, a message at a time, so that a slow reader holds one message and not all pages.
struct Parts {
    snapshot: Arc<Snapshot>,
    pages: Vec<PageIndex>,
    sent: usize,
}

impl Iterator for Parts {
    type Item = Result<PagesPart, Status>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = &self.pages[self.sent..];
        let part = &rest[..rest.len().min(PART_PAGES_MAX)];
        if part.is_empty() {
            return None;
        }
        let mut bytes = BytesMut::with_capacity(part.len() * PAGE_BYTES);
        for &page in part {
            match self.snapshot.page(page) {
                Some(page) => bytes.extend_from_slice(page),
                None => {
                    self.sent = self.pages.len();
                    let snapshot = self.snapshot.id;
                    return Some(Err(Status::out_of_range(format!("{snapshot} has no page {}", page.0))));
                }
            }
        }
        self.sent += part.len();
        Some(Ok(PagesPart { bytes: bytes.freeze() }))
    }
}

#[tonic::async_trait]
impl Node for NodeService {
    type ReadPagesStream = Pin<Box<dyn Stream<Item = Result<PagesPart, Status>> + Send>>;

    async fn read_pages(
        &self,
        request: Request<ReadPagesRequest>,
    ) -> Result<Response<Self::ReadPagesStream>, Status> {
        let ReadPages { snapshot, pages } = request.into_inner().try_into()?;
        let parts = Parts { snapshot: self.snapshot(snapshot)?, pages, sent: 0 };
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
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
}
