//! The stream to the controller: kept open, opened again when it breaks, never in the way of the sandboxes.

use std::time::Duration;

use medes_proto::{
    fleet::{AgentMessage, ControllerMessage, Hello},
    limits::MESSAGE_BYTES_MAX,
    wire::{self, fleet_client::FleetClient},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Messages to the controller that may wait. When it is full the stream is considered stuck and opened again.
const OUTGOING_MAX: usize = 4_096;

/// What the link tells the node.
#[derive(Debug)]
pub enum FromLink {
    /// A new stream is about to open: say who we are, and send everything after that into `outgoing`.
    Opening {
        /// Takes the Hello, which is the first message of the stream.
        hello: oneshot::Sender<Hello>,
        /// Messages for this stream; the queue of an older stream is worthless now.
        outgoing: mpsc::Sender<AgentMessage>,
    },
    /// The controller said something.
    Said(ControllerMessage),
    /// The stream broke. Another will open.
    Lost,
}

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Keeps a stream open until `stop`. `node` is how it reaches the node's loop.
pub async fn run(channel: Channel, node: mpsc::Sender<FromLink>, stop: CancellationToken) {
    let mut retry = RETRY_FIRST;
    while !stop.is_cancelled() {
        let ended = tokio::select! {
            ended = one_stream(&channel, &node) => ended,
            () = stop.cancelled() => return,
        };
        match ended {
            Ok(Ended::NodeGone) => return,
            Ok(Ended::Closed { spoke: true }) => retry = RETRY_FIRST,
            Ok(Ended::Closed { spoke: false }) => {}
            Err(status) => tracing::debug!(%status, "no stream to the controller"),
        }
        if node.send(FromLink::Lost).await.is_err() {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(retry) => {}
            () = stop.cancelled() => return,
        }
        retry = (retry * 2).min(RETRY_MAX);
    }
}

enum Ended {
    /// The node's loop has stopped.
    NodeGone,
    /// The stream is over. `spoke`: the controller had said something on it.
    Closed { spoke: bool },
}

async fn one_stream(channel: &Channel, node: &mpsc::Sender<FromLink>) -> Result<Ended, Box<tonic::Status>> {
    let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
    let (hello, said_hello) = oneshot::channel();
    if node.send(FromLink::Opening { hello, outgoing }).await.is_err() {
        return Ok(Ended::NodeGone);
    }
    let Ok(hello) = said_hello.await else { return Ok(Ended::NodeGone) };
    let first = tokio_stream::once(AgentMessage::Hello(hello));
    let messages = first.chain(ReceiverStream::new(queue)).map(wire::AgentMessage::from);
    let mut client = FleetClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let mut replies = client.attach(messages).await.map_err(Box::new)?.into_inner();
    let mut spoke = false;
    while let Some(message) = replies.message().await.map_err(Box::new)? {
        match ControllerMessage::try_from(message) {
            Ok(message) => {
                spoke = true;
                if node.send(FromLink::Said(message)).await.is_err() {
                    return Ok(Ended::NodeGone);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the controller sent nonsense; opening the stream again");
                break;
            }
        }
    }
    Ok(Ended::Closed { spoke })
}
