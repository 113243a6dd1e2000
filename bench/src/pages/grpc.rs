//! A page for each gRPC call: what the page service is held against.
//!
//! The call is one that carries a page as plain bytes both ways exist for (`Node.Invoke`, whose answer has a body): the
//! cost is that of HTTP/2 and of a message, not of this method.

use std::{pin::pin, sync::Arc};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::{StreamExt, stream};
use medes_agent::bases::local::Snapshot;
use medes_dedup::page::{BasePage, Page, PageIndex};
use medes_proto::wire::{
    AccountRequest, ForgetTenantReply, ForgetTenantRequest, GiveUpReply, HeatReply, HeatRequest, HttpAnswer,
    ImagePart, InvokeReply, InvokeRequest, LogsReply, LogsRequest, NodeAccount, OfferedSandbox,
    PageAccessReply, PageAccessRequest, ReadImageRequest, ReadLayoutRequest, SnapshotLayout, invoke_reply,
    node_client::NodeClient,
    node_server::{Node, NodeServer},
};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Server, server::TcpIncoming},
};

use super::Way;

/// Calls under way.
const CALLS_MAX: usize = 64;

/// A reader.
pub(super) struct PerPage(NodeClient<Channel>);

/// Starts a holder on loopback.
pub(super) async fn start(snapshot: Arc<Snapshot>) -> Result<PerPage> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("listen")?;
    let address = listener.local_addr().context("learn the port")?;
    let server = Server::builder().add_service(NodeServer::new(Holder(snapshot)));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    TaskTracker::new().spawn(server.serve_with_incoming(incoming));
    let channel = Channel::from_shared(format!("http://{address}")).context("an address")?;
    Ok(PerPage(NodeClient::new(channel.connect().await.context("connect")?)))
}

impl Way for PerPage {
    async fn read(&self, wanted: &[BasePage], into: &mut [Page]) -> Result<()> {
        let calls = wanted.iter().enumerate().map(|(at, wanted)| {
            let (mut client, page) = (self.0.clone(), wanted.page.0);
            async move {
                let request = InvokeRequest { deadline_ms: page.into(), ..InvokeRequest::default() };
                let reply = client.invoke(request).await.context("ask for a page")?.into_inner();
                match reply.result {
                    Some(invoke_reply::Result::Answer(answer)) => Ok((at, answer.body)),
                    _ => anyhow::bail!("no page"),
                }
            }
        });
        let mut answers = pin!(stream::iter(calls).buffer_unordered(CALLS_MAX));
        while let Some(answer) = answers.next().await {
            let (at, body) = answer?;
            into[at] = body[..].try_into().context("a whole page")?;
        }
        Ok(())
    }
}

struct Holder(Arc<Snapshot>);

#[tonic::async_trait]
impl Node for Holder {
    async fn page_access(&self, _: Request<PageAccessRequest>) -> Result<Response<PageAccessReply>, Status> {
        Err(Status::unimplemented("pages come one by one"))
    }

    async fn read_layout(&self, _: Request<ReadLayoutRequest>) -> Result<Response<SnapshotLayout>, Status> {
        Err(Status::unimplemented("only pages"))
    }

    type ReadImageStream = stream::Empty<Result<ImagePart, Status>>;

    async fn read_image(
        &self,
        _: Request<ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        Err(Status::unimplemented("only pages"))
    }

    async fn give_up(&self, _: Request<OfferedSandbox>) -> Result<Response<GiveUpReply>, Status> {
        Err(Status::unimplemented("only pages"))
    }

    async fn invoke(&self, request: Request<InvokeRequest>) -> Result<Response<InvokeReply>, Status> {
        let page =
            u32::try_from(request.into_inner().deadline_ms).map_err(|_large| Status::not_found("page"))?;
        let page = self.0.page(PageIndex(page)).ok_or_else(|| Status::not_found("page"))?;
        let answer = HttpAnswer { body: Bytes::copy_from_slice(page), ..HttpAnswer::default() };
        Ok(Response::new(InvokeReply { result: Some(invoke_reply::Result::Answer(answer)) }))
    }

    async fn heat(&self, _: Request<HeatRequest>) -> Result<Response<HeatReply>, Status> {
        Err(Status::unimplemented("only pages"))
    }

    async fn forget_tenant(
        &self,
        _: Request<ForgetTenantRequest>,
    ) -> Result<Response<ForgetTenantReply>, Status> {
        Err(Status::unimplemented("only pages"))
    }

    async fn account(&self, _: Request<AccountRequest>) -> Result<Response<NodeAccount>, Status> {
        Err(Status::unimplemented("only pages"))
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        Err(Status::unimplemented("only pages"))
    }
}
