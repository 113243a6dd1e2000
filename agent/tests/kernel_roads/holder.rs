//! Another node that holds a base: serves its pages and layout over the real services, as they are or with
//! something wrong.

use std::{io::Write, num::NonZeroU16, sync::Arc};

use medes_agent::{
    bases::{
        frame::{self, GREETING_BYTES, Verdict},
        local::{LocalBases, Snapshot},
        serve::PageServer,
    },
    memory_file::MemoryFile,
};
use medes_dedup::page::Page;
use medes_proto::{
    node::PageAccess,
    registry::SnapshotPlace,
    wire::{
        AccountRequest, ForgetTenantReply, ForgetTenantRequest, GiveUpReply, HeatReply, HeatRequest,
        ImagePart, InvokeReply, InvokeRequest, LogsReply, LogsRequest, NodeAccount, OfferedSandbox,
        PageAccessReply, PageAccessRequest, ReadImageRequest, ReadLayoutRequest, SnapshotLayout,
        node_server::{Node, NodeServer},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
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
    /// It breaks off in the middle of the pages.
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
    access: PageAccess,
}

/// Starts a holder of this snapshot and says where it is.
pub(crate) async fn serve(snapshot: Arc<Snapshot>, wire: Wire) -> SnapshotPlace {
    serve_counted(snapshot, wire).await.0
}

/// The same, and what can tell how many pages it has sent.
pub(crate) async fn serve_counted(
    snapshot: Arc<Snapshot>,
    wire: Wire,
) -> (SnapshotPlace, Option<PageServer>) {
    let tasks = TaskTracker::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address").to_string();
    let place = SnapshotPlace { snapshot: snapshot.id, node: "elsewhere".parse().expect("a name"), address };
    let (access, pages) = match wire {
        Wire::Short => (break_off(&tasks).await, None),
        _ => {
            let bases = Arc::new(LocalBases::default());
            bases.insert(Arc::new(as_sent(&snapshot, wire)));
            let any = "127.0.0.1:0".parse().expect("an address");
            let pages =
                PageServer::start(bases, any, &tasks, CancellationToken::new()).await.expect("listen");
            (pages.access(), Some(pages))
        }
    };
    let holder = Holder { snapshot, wire, access };
    let server = tonic::transport::Server::builder().add_service(NodeServer::new(holder));
    tasks.spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    (place, pages)
}

/// The snapshot with what is wrong in its pages. Their sums are right: whoever lies about pages lies about sums too.
fn as_sent(snapshot: &Snapshot, wire: Wire) -> Snapshot {
    let mut file = MemoryFile::create("holder").expect("a memory file");
    for (index, page) in snapshot.pages().enumerate() {
        let mut page: Page = *page;
        let flip = match wire {
            Wire::FlippedBit => true,
            Wire::OneFlippedBit => index == 3,
            _ => false,
        };
        page[77] ^= u8::from(flip);
        file.write_all(&page).expect("room");
    }
    let (function, tenant) = (snapshot.function.clone(), snapshot.tenant.clone());
    let pages = file.seal().expect("sealed");
    Snapshot::new(snapshot.id, function, tenant, pages, Vec::new()).expect("whole pages")
}

/// A page service that answers every first request with less than the head of an answer.
async fn break_off(tasks: &TaskTracker) -> PageAccess {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let port = NonZeroU16::new(listener.local_addr().expect("address").port()).expect("a port");
    tasks.spawn(async move {
        while let Ok((mut reader, _)) = listener.accept().await {
            let mut greeting = [0; GREETING_BYTES];
            reader.read_exact(&mut greeting).await.expect("a greeting");
            reader.write_all(&frame::welcome(Verdict::Welcome)).await.expect("a reader");
            reader.read_u8().await.expect("a request");
            reader.write_all(&[0; 7]).await.expect("a reader");
        }
    });
    PageAccess { port, token: [0; 32], rdma: None }
}

#[tonic::async_trait]
impl Node for Holder {
    async fn page_access(&self, _: Request<PageAccessRequest>) -> Result<Response<PageAccessReply>, Status> {
        Ok(Response::new(self.access.into()))
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

    type ReadImageStream = futures::stream::Empty<Result<ImagePart, Status>>;

    async fn read_image(
        &self,
        _: Request<ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn give_up(&self, _: Request<OfferedSandbox>) -> Result<Response<GiveUpReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn invoke(&self, _: Request<InvokeRequest>) -> Result<Response<InvokeReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn heat(&self, _: Request<HeatRequest>) -> Result<Response<HeatReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn forget_tenant(
        &self,
        _: Request<ForgetTenantRequest>,
    ) -> Result<Response<ForgetTenantReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn account(&self, _: Request<AccountRequest>) -> Result<Response<NodeAccount>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        Err(Status::unavailable("this node only holds pages"))
    }
}
