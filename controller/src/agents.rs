//! Channels to agents' Node services, one per agent, and what is asked over them. With certificates, whoever listens at an agent's address
//! must show that of its node.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use medes_dedup::key::KeyId;
use medes_identity::{access::Service, security::Security};
use medes_proto::{
    WireError,
    account::NodeAccount,
    failure::Failure,
    ids::{NodeId, SandboxId, TenantName},
    limits,
    node::{Answer, Invoke, Request, reply_from_wire},
    wire::{self, node_client::NodeClient},
};
use tonic::transport::{Channel, Endpoint};

/// Addresses kept. More than `nodes_max` means that nodes came and went; any of them can be dropped.
const CHANNELS_MAX: usize = 2_048;
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// On top of a request's deadline: its agent knows better why, and should be the one to say so.
const SLACK: Duration = Duration::from_secs(5);

/// An agent: its node, and host:port of its Node service.
type Agent<'a> = (&'a NodeId, &'a str);

fn key((node, address): Agent<'_>) -> (NodeId, String) {
    (node.clone(), address.to_owned())
}

/// A pool of channels. A channel reconnects by itself and carries many requests at a time.
#[derive(Debug)]
pub struct Agents {
    security: Security,
    channels: Mutex<BTreeMap<(NodeId, String), Channel>>,
}

/// Why a sandbox's answer did not come.
#[derive(Debug, thiserror::Error)]
pub enum InvokeError {
    /// The agent says why.
    #[error(transparent)]
    Failed(Failure),
    /// The agent could not be reached: the request never left.
    #[error("connect to the agent at {address}")]
    NotSent {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The request left; its answer did not come back whole.
    #[error("wait for the answer of the agent at {address}")]
    Lost {
        /// Where.
        address: String,
        /// What the transport says.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The agent's answer makes no sense.
    #[error("read the answer of the agent at {address}")]
    Nonsense {
        /// Where.
        address: String,
        /// What is wrong with it.
        #[source]
        source: WireError,
    },
}

impl Agents {
    /// None is connected yet.
    pub fn new(security: Security) -> Self {
        Self { security, channels: Mutex::default() }
    }

    /// A connected channel. Cancel-safe.
    async fn channel(&self, agent: Agent<'_>) -> Result<Channel, InvokeError> {
        if let Some(channel) = self.known(agent) {
            return Ok(channel);
        }
        let (node, address) = agent;
        let error = |source| InvokeError::NotSent { address: address.to_owned(), source };
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(error)?
            .connect_timeout(CONNECT_MAX)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20);
        let whose = Some(node.into());
        let channel = self.security.channel(&endpoint, Service::Node, whose).await.map_err(error)?;
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if channels.len() >= CHANNELS_MAX {
            channels.pop_first();
        }
        channels.insert(key(agent), channel.clone());
        Ok(channel)
    }

    fn known(&self, agent: Agent<'_>) -> Option<Channel> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).get(&key(agent)).cloned()
    }

    /// The next call connects anew, and so learns whether the agent can be reached before anything is sent.
    fn forget(&self, agent: Agent<'_>) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(agent));
    }

    fn client(channel: Channel) -> NodeClient<Channel> {
        NodeClient::new(channel)
            .max_decoding_message_size(limits::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::MESSAGE_BYTES_MAX)
    }

    /// Has a sandbox answer a request. Dropping the future resets the stream; the sandbox may have seen the request.
    pub async fn invoke(
        &self,
        agent: Agent<'_>,
        sandbox: SandboxId,
        request: Request,
        deadline: Duration,
    ) -> Result<Answer, InvokeError> {
        let channel = self.channel(agent).await?;
        let mut message =
            tonic::Request::new(wire::InvokeRequest::from(Invoke { sandbox, request, deadline }));
        message.set_timeout(deadline.saturating_add(SLACK));
        let reply = match Self::client(channel).invoke(message).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => {
                self.forget(agent);
                return Err(InvokeError::Lost { address: agent.1.to_owned(), source: Box::new(status) });
            }
        };
        let nonsense = |source| InvokeError::Nonsense { address: agent.1.to_owned(), source };
        reply_from_wire(reply).map_err(nonsense)?.map_err(InvokeError::Failed)
    }

    /// Where a sandbox's memory is.
    pub async fn heat(&self, agent: Agent<'_>, sandbox: SandboxId) -> Result<wire::HeatReply, InvokeError> {
        let channel = self.channel(agent).await?;
        let mut message = tonic::Request::new(wire::HeatRequest { sandbox: sandbox.get() });
        message.set_timeout(SLACK);
        let reply = Self::client(channel).heat(message).await;
        reply
            .map(tonic::Response::into_inner)
            .map_err(|status| InvokeError::Lost { address: agent.1.to_owned(), source: Box::new(status) })
    }

    /// Whom a node's memory is held for.
    pub async fn account(&self, agent: Agent<'_>) -> Result<NodeAccount, InvokeError> {
        let channel = self.channel(agent).await?;
        let mut message = tonic::Request::new(wire::AccountRequest {});
        message.set_timeout(SLACK);
        let reply = Self::client(channel).account(message).await.map_err(|status| {
            self.forget(agent);
            InvokeError::Lost { address: agent.1.to_owned(), source: Box::new(status) }
        })?;
        let nonsense = |source| InvokeError::Nonsense { address: agent.1.to_owned(), source };
        reply.into_inner().try_into().map_err(nonsense)
    }

    /// Has a node forget a tenant's key and drop all it holds of that tenant. Returns what that was.
    pub async fn forget_tenant(
        &self,
        agent: Agent<'_>,
        (tenant, id): (&TenantName, KeyId),
    ) -> Result<wire::ForgetTenantReply, InvokeError> {
        let channel = self.channel(agent).await?;
        let request = wire::ForgetTenantRequest { tenant: tenant.to_string(), key_id: id.0 };
        let mut message = tonic::Request::new(request);
        message.set_timeout(SLACK);
        let reply = Self::client(channel).forget_tenant(message).await;
        reply.map(tonic::Response::into_inner).map_err(|status| {
            self.forget(agent);
            InvokeError::Lost { address: agent.1.to_owned(), source: Box::new(status) }
        })
    }

    /// A sandbox's output.
    pub async fn logs(&self, agent: Agent<'_>, sandbox: SandboxId) -> Result<wire::LogsReply, InvokeError> {
        let channel = self.channel(agent).await?;
        let mut message = tonic::Request::new(wire::LogsRequest { sandbox: sandbox.get() });
        message.set_timeout(SLACK);
        let reply = Self::client(channel).logs(message).await;
        reply.map(tonic::Response::into_inner).map_err(|status| {
            if status.code() != tonic::Code::NotFound {
                self.forget(agent);
            }
            InvokeError::Lost { address: agent.1.to_owned(), source: Box::new(status) }
        })
    }
}
