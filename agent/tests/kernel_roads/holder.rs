//! Another node that holds a base: serves its pages and layout over the real Node service, as they are or with
//! something wrong.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::Stream;
use medes_agent::bases::local::Snapshot;
use medes_proto::{
    limits::PART_PAGES_MAX,
    node::ReadPages,
    registry::SnapshotPlace,
    wire::{
        InvokeReply, InvokeRequest, LogsReply, LogsRequest, PagesPart, ReadLayoutRequest, ReadPagesRequest,
        SnapshotLayout,
        node_server::{Node, NodeServer},
    },
};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// What is wrong with its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    /// Nothing.
    Good,
    /// One bit of every page.
    FlippedBit,
    /// One bit of one page.
    OneFlippedBit,
    /// The last page is missing.
    Short,
    /// Mappings of no process.
    WrongLayout,
    /// More pages than there are.
    TooManyPages,
    /// Another tenant's name.
    OtherTenant,
    /// It does not answer that.
    NoLayout,
}

struct Holder {
    snapshot: Arc<Snapshot>,
    wire: Wire,
    pages_sent: Arc<AtomicUsize>,
}

/// Starts a holder of this snapshot and says where it is.
pub(crate) async fn serve(snapshot: Arc<Snapshot>, wire: Wire) -> SnapshotPlace {
    serve_counted(snapshot, wire).await.0
}

/// The same, and how many pages it has sent.
pub(crate) async fn serve_counted(snapshot: Arc<Snapshot>, wire: Wire) -> (SnapshotPlace, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address").to_string();
    let place = SnapshotPlace { snapshot: snapshot.id, node: "elsewhere".parse().expect("a name"), address };
    let pages_sent = Arc::new(AtomicUsize::new(0));
    let holder = Holder { snapshot, wire, pages_sent: pages_sent.clone() };
    let server = tonic::transport::Server::builder().add_service(NodeServer::new(holder));
    tokio_util::task::TaskTracker::new().spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (place, pages_sent)
}

#[tonic::async_trait]
impl Node for Holder {
    type ReadPagesStream = Pin<Box<dyn Stream<Item = Result<PagesPart, Status>> + Send>>;

    async fn read_pages(
        &self,
        request: Request<ReadPagesRequest>,
    ) -> Result<Response<Self::ReadPagesStream>, Status> {
        let ReadPages { pages, .. } = request.into_inner().try_into()?;
        self.pages_sent.fetch_add(pages.len(), Ordering::SeqCst);
        let mut parts = Vec::new();
        for part in pages.chunks(PART_PAGES_MAX) {
            let mut bytes = Vec::new();
            for &page in part {
                let index = page.0;
                let mut page =
                    *self.snapshot.page(page).ok_or_else(|| Status::out_of_range("no such page"))?;
                let flip = match self.wire {
                    Wire::FlippedBit => true,
                    Wire::OneFlippedBit => index == 3,
                    _ => false,
                };
                page[77] ^= u8::from(flip);
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

    async fn read_layout(&self, _: Request<ReadLayoutRequest>) -> Result<Response<SnapshotLayout>, Status> {
        let mut layout = SnapshotLayout::from(self.snapshot.layout());
        match self.wire {
            Wire::WrongLayout => layout.processes[0].mappings[1].start = 0,
            Wire::TooManyPages => layout.pages += 1,
            Wire::OtherTenant => layout.tenant = "somebody-else".into(),
            Wire::NoLayout => return Err(Status::unimplemented("what is a layout?")),
            Wire::Good | Wire::FlippedBit | Wire::OneFlippedBit | Wire::Short => {}
        }
        Ok(Response::new(layout))
    }

    async fn invoke(&self, _: Request<InvokeRequest>) -> Result<Response<InvokeReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }
}
