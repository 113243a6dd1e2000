//! Another node that holds a base: serves its pages over the real Node service, as they are or with a bit flipped.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use medes_agent::bases::local::Snapshot;
use medes_proto::{
    limits::PART_PAGES_MAX,
    node::ReadPages,
    registry::SnapshotPlace,
    wire::{
        InvokeReply, InvokeRequest, LogsReply, LogsRequest, PagesPart, ReadPagesRequest,
        node_server::{Node, NodeServer},
    },
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// What is wrong with the pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Nothing.
    Good,
    /// One bit of every page.
    FlippedBit,
    /// The last page is missing.
    Short,
}

struct Holder {
    snapshot: Arc<Snapshot>,
    wire: Wire,
}

/// Starts a holder of this snapshot and says where it is.
pub(crate) async fn serve(snapshot: Arc<Snapshot>, wire: Wire) -> SnapshotPlace {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address").to_string();
    let place = SnapshotPlace { snapshot: snapshot.id, node: "elsewhere".parse().expect("a name"), address };
    let server = tonic::transport::Server::builder().add_service(NodeServer::new(Holder { snapshot, wire }));
    tokio_util::task::TaskTracker::new().spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    place
}

#[tonic::async_trait]
impl Node for Holder {
    type ReadPagesStream = Pin<Box<dyn Stream<Item = Result<PagesPart, Status>> + Send>>;

    async fn read_pages(
        &self,
        request: Request<ReadPagesRequest>,
    ) -> Result<Response<Self::ReadPagesStream>, Status> {
        let ReadPages { pages, .. } = request.into_inner().try_into()?;
        let mut parts = Vec::new();
        for part in pages.chunks(PART_PAGES_MAX) {
            let mut bytes = Vec::new();
            for &page in part {
                let mut page =
                    *self.snapshot.page(page).ok_or_else(|| Status::out_of_range("no such page"))?;
                page[77] ^= u8::from(self.wire == Wire::FlippedBit);
                bytes.extend_from_slice(&page);
            }
            parts.push(Ok(PagesPart { bytes: bytes.into() }));
        }
        if self.wire == Wire::Short
            && let Some(Ok(last)) = parts.last_mut()
        {
            last.bytes.truncate(last.bytes.len() - 4096);
        }
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }

    async fn invoke(&self, _: Request<InvokeRequest>) -> Result<Response<InvokeReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }
}
