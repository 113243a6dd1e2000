//! The connection to the controller. Every call has a deadline, and every way it can fail has its own error.

use std::{
    fmt,
    path::Path,
    str::FromStr,
    time::{Duration, SystemTime},
};

use medes_identity::{access::Service, security::Security};
use medes_proto::{
    limits::MESSAGE_BYTES_MAX,
    trace::{Filter, Item},
    wire::{self, control_client::ControlClient, tenants_client::TenantsClient, tokens_client::TokensClient},
};
use tonic::{
    Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{error::CliError, place};

/// Where a controller is if nothing says otherwise.
const DEFAULT_ADDRESS: &str = "127.0.0.1:7070";
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// For calls that only read or write the controller's own tables.
pub(crate) const QUICK: Duration = Duration::from_secs(10);
/// For calls that wait for a node: starts, dumps, restores.
pub(crate) const OPERATION: Duration = Duration::from_secs(300);

const FOLLOW: &str = "follow the trace";

/// host:port of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address(String);

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// Text that is not an address.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not HOST:PORT")]
pub(crate) struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let plain = text.trim().trim_start_matches("http://").trim_end_matches('/');
        let good = plain.rsplit_once(':').is_some_and(|(host, port)| {
            let host_ok = !host.is_empty() && host.bytes().all(|c| c.is_ascii_graphic() && c != b'/');
            host_ok && port.parse::<u16>().is_ok()
        });
        if good { Ok(Self(plain.into())) } else { Err(AddressError(text.chars().take(64).collect())) }
    }
}

/// A connection to one controller.
#[derive(Debug)]
pub(crate) struct Client {
    address: Address,
    control: ControlClient<Channel>,
    tenants: TenantsClient<Channel>,
    tokens: TokensClient<Channel>,
}

impl Client {
    /// Connects to `named`, else to the controller of a running `medes up`, else to the usual address. With a
    /// certificate both ends must know each other; without one neither is asked.
    pub(crate) async fn connect(named: Option<Address>, identity: Option<&Path>) -> Result<Self, CliError> {
        let security = Security::choose(identity, false, &[], SystemTime::now())?;
        let address = named
            .or_else(|| place::find_active()?.control.parse().ok())
            .unwrap_or_else(|| Address(DEFAULT_ADDRESS.into()));
        let unreachable = |source| CliError::Unreachable { address: address.clone(), source };
        let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(unreachable)?;
        let endpoint = endpoint.connect_timeout(CONNECT_WITHIN);
        let channel = security.channel(&endpoint, Service::Control, None).await.map_err(unreachable)?;
        let tenants = TenantsClient::new(channel.clone());
        let tokens = TokensClient::new(channel.clone());
        let control = ControlClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok(Self { address, control, tenants, tokens })
    }

    /// Where the controller is.
    pub(crate) const fn address(&self) -> &Address {
        &self.address
    }

    /// What is asked about tenants.
    pub(crate) fn tenants(&self) -> TenantsClient<Channel> {
        self.tenants.clone()
    }

    /// What is asked about tokens.
    pub(crate) fn tokens(&self) -> TokensClient<Channel> {
        self.tokens.clone()
    }

    /// One call. `doing` begins the sentence when it fails: "list nodes".
    ///
    /// Cancelled or late, the controller may still do what it was asked.
    pub(crate) async fn call<T>(
        &self,
        doing: &str,
        within: Duration,
        rpc: impl AsyncFnOnce(ControlClient<Channel>) -> Result<Response<T>, Status>,
    ) -> Result<T, CliError> {
        match tokio::time::timeout(within, Box::pin(rpc(self.control.clone()))).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.refused(doing.into(), status)),
            Err(_elapsed) => {
                Err(CliError::Unanswered { doing: doing.into(), address: self.address.clone(), within })
            }
        }
    }

    /// A status with a source was made on this side, by a connection that broke.
    fn refused(&self, doing: String, status: Status) -> CliError {
        if std::error::Error::source(&status).is_some() {
            CliError::Disconnected { doing, address: self.address.clone() }
        } else {
            CliError::Refused { doing, status: Box::new(status) }
        }
    }

    /// Events from now on.
    pub(crate) async fn trace(&self, filter: Filter) -> Result<Streaming<wire::TraceItem>, CliError> {
        self.call(FOLLOW, QUICK, async |mut control| control.trace(wire::TraceFilter::from(filter)).await)
            .await
    }

    /// The next of them. `None`: the controller has ended the stream.
    pub(crate) async fn next_item(
        &self,
        items: &mut Streaming<wire::TraceItem>,
    ) -> Result<Option<Item>, CliError> {
        let item = items.message().await.map_err(|status| self.refused(FOLLOW.into(), status))?;
        let item = item.map(Item::try_from).transpose();
        item.map_err(|source| CliError::Reply { doing: FOLLOW.into(), source })
    }

    /// A stream that should have no end has ended.
    pub(crate) fn ended(&self, doing: &str) -> CliError {
        CliError::Disconnected { doing: doing.into(), address: self.address.clone() }
    }

    pub(crate) async fn list_nodes(&self) -> Result<wire::ListNodesReply, CliError> {
        self.call("list nodes", QUICK, async |mut control| {
            control.list_nodes(wire::ListNodesRequest {}).await
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for (text, plain) in
            [("127.0.0.1:7070", "127.0.0.1:7070"), ("http://host:1/", "host:1"), ("[::1]:80", "[::1]:80")]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), plain);
        }
        for bad in ["", ":80", "host", "host:", "host:99999", "a/b:80", "https://host", "a b:80"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
