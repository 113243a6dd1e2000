//! A dump that touches no file system: CRIU hands every image over as a pipe, and it becomes memory of the agent.
//!
//! CRIU's image streamer protocol, receiving side. CRIU connects to a socket in the folder of its images and asks, for each file it opens, with
//! the length of a message (32 bits of this machine's order), the message (`ImgStreamerRequestEntry`: a name), and a byte with which
//! the reading end of a pipe comes along. The file is whole when the pipe is at its end, and the dump when the socket and all
//! pipes are. Several pipes are open at once, so all are read at once. There are no words for errors: who closes a pipe early breaks it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use prost::Message;
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::unix::pipe;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::files::{FILES_MAX, InMemory, holds_pages, is_image_name};
use super::image_file::LARGE_BYTES_MAX;
use super::wire::images::StreamRequest;
use crate::memory_file::{MappedFile, MemoryFile};
use crate::sandbox::sys;

/// Where CRIU looks for whoever takes its images.
const SOCKET: &str = "streamer-capture.sock";
/// A name, and two bytes of framing.
const REQUEST_BYTES_MAX: usize = 256;
/// As much as the kernel lets everybody have (pipe(7)). With the usual 64 KiB the two ends would wait for each other more often.
const PIPE_BYTES: i32 = 1 << 20;

/// Why the images did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The socket could not be made.
    #[error("listen for CRIU's images at {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The socket broke.
    #[error("hear which image comes next")]
    Hear(#[source] io::Error),
    /// What came is no request.
    #[error("the image that comes next: {what}")]
    Request {
        /// What is wrong with it.
        what: &'static str,
    },
    /// An image could not be taken in.
    #[error("take in {name}")]
    Take {
        /// The image.
        name: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl CaptureError {
    /// Whether there was no room for it.
    pub(super) fn is_no_space(&self) -> bool {
        let (Self::Listen { source, .. } | Self::Hear(source) | Self::Take { source, .. }) = self else {
            return false;
        };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::OutOfMemory)
    }
}

/// Waits for the images of one dump.
#[derive(Debug)]
pub(super) struct Capture {
    door: UnixListener,
}

impl Capture {
    /// Listens in the folder that CRIU is told of.
    pub(super) fn listen(folder: &Path) -> Result<Self, CaptureError> {
        let path = folder.join(SOCKET);
        let door = UnixListener::bind(&path).map_err(|source| CaptureError::Listen { path, source })?;
        Ok(Self { door })
    }

    /// CRIU is there.
    pub(super) async fn accept(&self) -> Result<UnixStream, CaptureError> {
        let (line, _) = self.door.accept().await.map_err(CaptureError::Hear)?;
        Ok(line)
    }
}

/// Takes in everything. Ends when CRIU closes its ends, as it does however it ends.
///
/// Cancel-safe: what is not taken in breaks CRIU's pipes.
pub(super) async fn take(line: UnixStream) -> Result<InMemory, CaptureError> {
    let mut taking = JoinSet::new();
    let mut seen = BTreeSet::new();
    while let Some((name, pipe)) = next(&line).await? {
        if seen.len() == FILES_MAX || !seen.insert(name.clone()) {
            return Err(CaptureError::Request { what: "one of too many, or the second of its name" });
        }
        match holds_pages(&name) {
            true => drop(taking.spawn_blocking(move || (take_pages(&pipe).map(Taken::Pages), name))),
            false => drop(taking.spawn(async move { (take_other(pipe).await.map(Taken::Other), name) })),
        }
    }
    let (mut pages, mut others) = (BTreeMap::new(), BTreeMap::new());
    while let Some(taken) = taking.join_next().await {
        let (taken, name) = taken.map_err(|join| CaptureError::Hear(io::Error::other(join)))?;
        match taken {
            Ok(Taken::Pages(file)) => drop(pages.insert(name, file)),
            Ok(Taken::Other(bytes)) => drop(others.insert(name, bytes)),
            Err(source) => return Err(CaptureError::Take { name, source }),
        }
    }
    Ok(InMemory::new(pages, others))
}

enum Taken {
    Pages(MappedFile),
    Other(Vec<u8>),
}

/// The next file and where it comes from; `None` after the last one.
async fn next(line: &UnixStream) -> Result<Option<(String, OwnedFd)>, CaptureError> {
    let mut length = [0; 4];
    let Some(()) = read(line, &mut length).await? else { return Ok(None) };
    let length = usize::try_from(u32::from_ne_bytes(length)).unwrap_or(usize::MAX);
    if length > REQUEST_BYTES_MAX {
        return Err(CaptureError::Request { what: "its name is too long" });
    }
    let mut request = vec![0; length];
    let ended = CaptureError::Request { what: "it ends in the middle" };
    let Some(()) = read(line, &mut request).await? else { return Err(ended) };
    let name = name(&request)?;
    let mut byte = [0];
    let received = line.async_io(Interest::READABLE, || sys::receive(line.as_raw_fd(), &mut byte, 1)).await;
    match received.map_err(CaptureError::Hear)? {
        (1, files) => match files.into_iter().next() {
            Some(pipe) => Ok(Some((name, pipe))),
            None => Err(CaptureError::Request { what: "it comes without a pipe" }),
        },
        _ => Err(ended),
    }
}

/// The name in a request.
fn name(request: &[u8]) -> Result<String, CaptureError> {
    let request = StreamRequest::decode(request);
    let StreamRequest { filename } =
        request.map_err(|_broken| CaptureError::Request { what: "no message" })?;
    match is_image_name(&filename) {
        true => Ok(filename),
        false => Err(CaptureError::Request { what: "no name of an image" }),
    }
}

/// Fills `bytes`, and takes nothing that comes after: descriptors come with the bytes they were sent with. `None` at the end.
async fn read(line: &UnixStream, bytes: &mut [u8]) -> Result<Option<()>, CaptureError> {
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        line.readable().await.map_err(CaptureError::Hear)?;
        match line.try_read(rest) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(CaptureError::Request { what: "it ends in the middle" }),
            Ok(some) => filled += some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(CaptureError::Hear(error)),
        }
    }
    Ok(Some(()))
}

/// Pages go from pipe to memory file inside the kernel.
fn take_pages(pipe: &OwnedFd) -> io::Result<MappedFile> {
    // Slower if not.
    let _larger = fcntl(pipe.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    let file = MemoryFile::create("medes-dump")?;
    while file.append_from(pipe.as_fd(), PIPE_BYTES as usize)? > 0 {}
    file.seal()
}

/// Everything else is small, but for what was unlinked and is still open.
async fn take_other(pipe: OwnedFd) -> io::Result<Vec<u8>> {
    const MAX: u64 = if LARGE_BYTES_MAX > GHOST { LARGE_BYTES_MAX } else { GHOST };
    const GHOST: u64 = super::dump::GHOST_FILE_BYTES_MAX as u64;
    let mut bytes = Vec::new();
    pipe::Receiver::from_owned_fd(pipe)?.take(MAX + 1).read_to_end(&mut bytes).await?;
    match bytes.len() as u64 <= MAX {
        true => Ok(bytes),
        false => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
