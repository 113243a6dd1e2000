//! One `criu swrk` process: started idle inside a network namespace, asked once, gone.
//!
//! The worker's descriptors are its interface: 0 is the socket it is asked on, 1 and 2 are what a restored sandbox
//! may get as its output ([`Output`]). CRIU itself prints nothing there, it writes its log beside the images.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use nix::unistd::Pid;
use prost::Message;
use tokio::net::UnixDatagram;

use super::find::Criu;
use super::spawn::{Birthplace, Running, spawn_worker};
use super::wire::rpc;
use crate::reaper::Reaper;

/// CRIU answers with a few hundred bytes: its longest field is one log line.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;
/// Stages of a restore that are told one by one; CRIU has fourteen.
const NOTIFICATIONS_MAX: u32 = 64;

/// What a sandbox restored by this worker writes its output to.
/// CRIU can only pass on descriptors it was born with, so they are chosen when the worker starts.
#[derive(Debug)]
pub struct Output {
    /// For pipes restored as [`super::Inherited::Stdout`].
    pub stdout: OwnedFd,
    /// For pipes restored as [`super::Inherited::Stderr`].
    pub stderr: OwnedFd,
}

/// An idle CRIU in a network namespace, good for one request. Dropping it kills it.
#[derive(Debug)]
pub struct Worker {
    running: Running,
    /// A sequenced-packet socket. It sends and receives like a datagram one, and ends like a stream.
    socket: UnixDatagram,
    netns: OwnedFd,
}

/// Why no worker came up.
#[derive(Debug, thiserror::Error)]
pub enum StartWorkerError {
    /// No socket, descriptor or thread for it.
    #[error("prepare a CRIU worker")]
    Prepare(#[source] io::Error),
    /// The namespace cannot be entered.
    #[error("enter the network namespace for a CRIU worker")]
    EnterNetns(#[source] io::Error),
    /// The program does not start.
    #[error("start {program}")]
    Start {
        /// The CRIU program.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Why a worker gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The request cannot be handed over.
    #[error("send a request to the CRIU worker")]
    Send(#[source] io::Error),
    /// The answer cannot be read.
    #[error("read the answer of the CRIU worker")]
    Receive(#[source] io::Error),
    /// The answer is no answer.
    #[error("understand the answer of the CRIU worker")]
    Decode(#[source] prost::DecodeError),
    /// It goes on and on, or answers something else.
    #[error("the CRIU worker does not keep to its protocol")]
    Protocol,
    /// The process ended first.
    #[error("the CRIU worker died before it answered")]
    Died,
    /// It took longer than allowed and was killed.
    #[error("the CRIU worker did not answer within {} ms and was killed", limit.as_millis())]
    Timeout {
        /// What was allowed.
        limit: Duration,
    },
}

impl Worker {
    /// Starts a worker inside `netns`. Takes about a millisecond; CRIU's own start-up then goes on by itself.
    /// Not cancelled by dropping the future: a worker that came up unseen finds its socket closed and ends.
    pub async fn start(
        criu: &Criu,
        reaper: &Reaper,
        netns: OwnedFd,
        output: Option<Output>,
    ) -> Result<Self, StartWorkerError> {
        Self::start_in(criu, reaper, Birthplace { netns, real: None }, output).await
    }

    async fn start_in(
        criu: &Criu,
        reaper: &Reaper,
        birthplace: Birthplace,
        output: Option<Output>,
    ) -> Result<Self, StartWorkerError> {
        let (criu, reaper) = (criu.clone(), reaper.clone());
        let started =
            tokio::task::spawn_blocking(move || spawn_worker(&criu, &reaper, birthplace, output)).await;
        let (running, socket, netns) =
            started.map_err(|join| StartWorkerError::Prepare(io::Error::other(join)))??;
        let socket = UnixDatagram::from_std(socket.into()).map_err(StartWorkerError::Prepare)?;
        Ok(Self { running, socket, netns })
    }

    /// Starts a worker inside the network namespace of a process, to dump it.
    pub async fn start_beside(criu: &Criu, reaper: &Reaper, pid: Pid) -> Result<Self, StartWorkerError> {
        Self::start_in(criu, reaper, Birthplace::beside(pid)?, None).await
    }

    /// Starts a worker in the agent's own network namespace, for questions that have no sandbox.
    pub(crate) async fn start_here(criu: &Criu, reaper: &Reaper) -> Result<Self, StartWorkerError> {
        Self::start_beside(criu, reaper, Pid::this()).await
    }

    /// The network namespace the worker lives in. A sandbox it restores lives there too.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// The worker process, as the agent sees it.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    /// Whether the process is still there. A worker that waits in a pool can die like any process.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.running.is_alive()
    }

    /// Asks and waits for the answer. While CRIU works it may tell of stages; `told` sees each and CRIU goes on
    /// when it returns. The worker is killed when `limit` is over.
    ///
    /// Not cancel-safe: dropping the future leaves the request half done and the worker unusable.
    pub(crate) async fn call(
        &mut self,
        request: &rpc::Request,
        limit: Duration,
        told: impl FnMut(&rpc::Notify),
    ) -> Result<rpc::Response, CallError> {
        let answer = tokio::time::timeout(limit, self.exchange(request, told)).await;
        let answer = answer.unwrap_or(Err(CallError::Timeout { limit }));
        if answer.is_err() {
            self.kill();
        }
        answer
    }

    async fn exchange(
        &mut self,
        request: &rpc::Request,
        mut told: impl FnMut(&rpc::Notify),
    ) -> Result<rpc::Response, CallError> {
        self.send(request).await?;
        for _ in 0..NOTIFICATIONS_MAX {
            let response = self.receive().await?;
            if response.r#type() != rpc::RequestType::Notify {
                return Ok(response);
            }
            if let Some(notify) = &response.notify {
                told(notify);
            }
            let go_on = rpc::Request {
                r#type: rpc::RequestType::Notify.into(),
                opts: None,
                notify_success: Some(true),
            };
            self.send(&go_on).await?;
        }
        Err(CallError::Protocol)
    }

    async fn send(&self, request: &rpc::Request) -> Result<(), CallError> {
        let message = request.encode_to_vec();
        match self.socket.send(&message).await {
            Ok(_) => Ok(()),
            Err(error) if is_hang_up(&error) => Err(CallError::Died),
            Err(error) => Err(CallError::Send(error)),
        }
    }

    async fn receive(&mut self) -> Result<rpc::Response, CallError> {
        let mut message = vec![0; RESPONSE_BYTES_MAX];
        let received = tokio::select! {
            biased;
            received = self.socket.recv(&mut message) => received,
            // The answer may lie in the socket although its sender is gone; tasks it left behind may keep the
            // socket open. So this is the end, after one more look.
            _ = self.running.gone() => look_once(&self.socket, &mut message),
        };
        match received {
            Ok(0) => Err(CallError::Died),
            // Cut off, for all we know.
            Ok(RESPONSE_BYTES_MAX) => Err(CallError::Protocol),
            Ok(len) => {
                message.truncate(len);
                rpc::Response::decode(message.as_slice()).map_err(CallError::Decode)
            }
            Err(error) if is_hang_up(&error) || error.kind() == io::ErrorKind::WouldBlock => {
                Err(CallError::Died)
            }
            Err(error) => Err(CallError::Receive(error)),
        }
    }

    /// Waits for the process to be gone after it has answered, or kills it when it lingers.
    pub(crate) async fn finish(self) {
        self.running.finish().await;
    }

    /// Kills the worker, its helpers, and whatever it has made that is not yet a session of its own.
    pub(crate) fn kill(&self) {
        self.running.kill();
    }
}

/// Takes what lies in the socket. Asks the kernel, for tokio may not have heard of it yet.
fn look_once(socket: &UnixDatagram, message: &mut [u8]) -> io::Result<usize> {
    Ok(recv(socket.as_raw_fd(), message, MsgFlags::MSG_DONTWAIT)?)
}

/// The other end went away.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}
