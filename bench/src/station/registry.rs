//! The controller's registry table behind the Registry service, without the controller around it: no node is ever
//! lost here and no snapshot dropped while it is used, so nothing has to be counted.

use std::{collections::BTreeSet, pin::Pin, sync::Arc};

use anyhow::{Context, Result};
use futures::{Stream, StreamExt};
use medes_controller::registry::{Registry as _, Table};
use medes_proto::{
    ids::NodeId,
    limits::MESSAGE_BYTES_MAX,
    registry::{LookupBatch, LookupReply, RegisterBatch, SnapshotPlace},
    wire::{
        self, AcquireReply, AcquireRequest, RegisterReply,
        registry_server::{Registry, RegistryServer},
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

/// Serves one table. All snapshots in it are on one node.
#[derive(Debug, Clone)]
struct Service {
    table: Arc<Table>,
    holder: NodeId,
}

/// Starts the service on a free port and connects to it, so that a lookup costs what it costs an agent.
pub(super) fn serve(
    table: Arc<Table>,
    holder: NodeId,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> Result<Channel> {
    let any = "127.0.0.1:0".parse().context("an address")?;
    // Without it a reply of several packets waits for a delayed acknowledgement of the first: 40 ms.
    let incoming = TcpIncoming::bind(any).context("listen for registry calls")?.with_nodelay(Some(true));
    let address = incoming.local_addr().context("learn the registry's port")?;
    let service = RegistryServer::new(Service { table, holder }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let serving = Server::builder().add_service(service);
    tasks.spawn(async move {
        if let Err(error) = serving.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await {
            eprintln!("the registry ended: {error}");
        }
    });
    Ok(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy())
}

type Replies = Pin<Box<dyn Stream<Item = Result<wire::LookupReply, Status>> + Send>>;

#[tonic::async_trait]
impl Registry for Service {
    type LookupStream = Replies;

    async fn lookup(
        &self,
        request: Request<Streaming<wire::LookupBatch>>,
    ) -> Result<Response<Replies>, Status> {
        let Self { table, holder } = self.clone();
        let answer = move |batch: Result<wire::LookupBatch, Status>| {
            let batch = LookupBatch::try_from(batch?)?;
            let hints = table.lookup(&batch.fingerprints, &|_| true);
            let named: BTreeSet<_> = hints.iter().flatten().map(|hint| hint.base.snapshot).collect();
            let place = |snapshot| SnapshotPlace { snapshot, node: holder.clone(), address: String::new() };
            Ok(LookupReply { hints, places: named.into_iter().map(place).collect() }.into())
        };
        Ok(Response::new(Box::pin(request.into_inner().map(answer))))
    }

    async fn register(
        &self,
        request: Request<Streaming<wire::RegisterBatch>>,
    ) -> Result<Response<RegisterReply>, Status> {
        let mut batches = request.into_inner();
        let (mut entries_added, mut entries_refused) = (0, 0);
        while let Some(batch) = batches.message().await? {
            let batch = RegisterBatch::try_from(batch)?;
            let done = self.table.register(batch.snapshot, batch.first_page, &batch.fingerprints);
            entries_added += done.added;
            entries_refused += done.refused;
        }
        Ok(Response::new(RegisterReply { entries_added, entries_refused }))
    }

    async fn locate(
        &self,
        _request: Request<wire::LocateRequest>,
    ) -> Result<Response<wire::LocateReply>, Status> {
        // One node holds all there is.
        Ok(Response::new(wire::LocateReply::default()))
    }

    async fn acquire(&self, _: Request<AcquireRequest>) -> Result<Response<AcquireReply>, Status> {
        Ok(Response::new(AcquireReply {}))
    }
}
