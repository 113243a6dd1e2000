//! Base pages of other nodes, over their Node service.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use medes_dedup::page::{BasePage, PAGE_BYTES, SnapshotId};
use medes_proto::{
    WireError,
    layout::SnapshotLayout,
    limits::{MESSAGE_BYTES_MAX, READ_PAGES_MAX},
    node::ReadPages,
    wire::{ReadLayoutRequest, node_client::NodeClient},
};
use tonic::transport::{Channel, Endpoint};

/// Another node did not deliver its pages.
#[derive(Debug, thiserror::Error)]
pub enum ReadRemoteError {
    /// The address we were given is not one.
    #[error("{address:?} is not an address")]
    Address {
        /// The text.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// The node refused, broke off or is not there.
    #[error("ask {address}")]
    Call {
        /// Where.
        address: String,
        /// What it said.
        #[source]
        source: Box<tonic::Status>,
    },
    /// It sent fewer or more pages than it was asked for.
    #[error("{address} sent {sent} bytes for {pages} pages")]
    Length {
        /// Where.
        address: String,
        /// Bytes that came.
        sent: usize,
        /// Pages asked for.
        pages: usize,
    },
    /// What it says of a snapshot makes no sense.
    #[error("understand what {address} says of a snapshot")]
    Layout {
        /// Where.
        address: String,
        /// What is wrong.
        #[source]
        source: WireError,
    },
    /// It took too long.
    #[error("{address} took longer than {deadline:?}")]
    Deadline {
        /// Where.
        address: String,
        /// How long it had.
        deadline: Duration,
    },
}

/// Connections to other nodes, made when first needed.
#[derive(Debug)]
pub struct Peers {
    deadline: Duration,
    channels: Mutex<BTreeMap<String, Channel>>,
}

/// More peers than this and the least useful thing to do is to remember them all.
const CHANNELS_MAX: usize = 256;

impl Peers {
    /// No read takes longer than `deadline`.
    pub const fn new(deadline: Duration) -> Self {
        Self { deadline, channels: Mutex::new(BTreeMap::new()) }
    }

    /// Appends the bytes of `wanted`, all of `snapshot`, to `bytes`. On an error `bytes` is as it was.
    pub async fn read(
        &self,
        address: &str,
        snapshot: SnapshotId,
        wanted: &[BasePage],
        bytes: &mut Vec<u8>,
    ) -> Result<(), ReadRemoteError> {
        let start = bytes.len();
        let all = async {
            for some in wanted.chunks(READ_PAGES_MAX) {
                self.read_some(address, snapshot, some, bytes).await?;
            }
            Ok(())
        };
        let result = tokio::time::timeout(self.deadline, all).await.unwrap_or_else(|_elapsed| {
            Err(ReadRemoteError::Deadline { address: address.into(), deadline: self.deadline })
        });
        if result.is_err() {
            bytes.truncate(start);
        }
        result
    }

    /// What a node says of a snapshot it holds.
    pub async fn layout(
        &self,
        address: &str,
        snapshot: SnapshotId,
    ) -> Result<SnapshotLayout, ReadRemoteError> {
        let mut client = NodeClient::new(self.channel(address)?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let ask = client.read_layout(ReadLayoutRequest { snapshot: snapshot.get() });
        match tokio::time::timeout(self.deadline, ask).await {
            Ok(Ok(reply)) => SnapshotLayout::try_from(reply.into_inner())
                .map_err(|source| ReadRemoteError::Layout { address: address.into(), source }),
            Ok(Err(source)) => {
                Err(ReadRemoteError::Call { address: address.into(), source: Box::new(source) })
            }
            Err(_elapsed) => {
                Err(ReadRemoteError::Deadline { address: address.into(), deadline: self.deadline })
            }
        }
    }

    async fn read_some(
        &self,
        address: &str,
        snapshot: SnapshotId,
        wanted: &[BasePage],
        bytes: &mut Vec<u8>,
    ) -> Result<(), ReadRemoteError> {
        let call = |source| ReadRemoteError::Call { address: address.into(), source: Box::new(source) };
        let length = |sent| ReadRemoteError::Length { address: address.into(), sent, pages: wanted.len() };
        let expected = wanted.len() * PAGE_BYTES;
        let start = bytes.len();
        bytes.reserve(expected);
        let read = ReadPages { snapshot, pages: wanted.iter().map(|base| base.page).collect() };
        let mut client = NodeClient::new(self.channel(address)?).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut parts = client.read_pages(tonic::Request::new(read.into())).await.map_err(call)?.into_inner();
        while let Some(part) = parts.message().await.map_err(call)? {
            bytes.extend_from_slice(&part.bytes);
            if bytes.len() - start > expected {
                return Err(length(bytes.len() - start));
            }
        }
        match bytes.len() - start {
            sent if sent == expected => Ok(()),
            sent => Err(length(sent)),
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, ReadRemoteError> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|source| ReadRemoteError::Address { address: address.into(), source })?
            .connect_timeout(self.deadline);
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        let channel = endpoint.connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}
