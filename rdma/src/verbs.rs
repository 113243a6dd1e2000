//! The fence around rdma-core: queue pairs, registered memory and events as types that cannot be misused.
//!
//! [`cm`] has connections and their events, [`pair`] queue pairs and memory. Who owns what: a queue pair owns its
//! connection id, its protection domain and its landing memory, and is taken down in the order the library wants. Memory
//! that the card may touch is never borrowed as a slice: a landing slot can be copied out only when no read is under way
//! into it, and exposed memory is a mapping of its own of a file that is sealed against change.
#![allow(unsafe_code, reason = "the fence around rdma-core")]

mod cm;
mod pair;

use std::{
    ffi::CStr,
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rdma_sys as sys;
use tokio::io::{Interest, unix::AsyncFd};

pub(crate) use self::{
    cm::{Channel, Event, Id, Key},
    pair::{Exposure, Posting, QueuePair},
};

/// A call of the library that failed, or an event that says that something did.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// A call.
    #[error("{call}")]
    Call {
        /// Its name.
        call: &'static str,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The connection manager.
    #[error("the connection manager says {event} ({status})")]
    Event {
        /// The event, in the library's words.
        event: String,
        /// Its status.
        status: i32,
    },
    /// A read.
    #[error("a read ended with: {status}")]
    Read {
        /// Its status, in the library's words.
        status: String,
    },
    /// Memory that may still change cannot be exposed.
    #[error("the memory file is not sealed")]
    NotSealed,
    /// There is no device.
    #[error("no RDMA device, or no rdma-core")]
    NoDevice,
    /// A place outside of its memory.
    #[error("a read outside of its memory")]
    Bounds,
}

fn failed(call: &'static str) -> VerbsError {
    VerbsError::Call { call, source: io::Error::last_os_error() }
}

fn done(result: i32, call: &'static str) -> Result<(), VerbsError> {
    // Some calls return the error, others set it.
    match result {
        0 => Ok(()),
        code if code > 0 => Err(VerbsError::Call { call, source: io::Error::from_raw_os_error(code) }),
        _ => Err(failed(call)),
    }
}

/// Whether rdma-core is here and has a device.
pub fn available() -> Result<(), VerbsError> {
    let mut count = 0;
    // SAFETY: `count` is a valid place for the number; the list is freed with its own function, once, below.
    let list = unsafe { sys::ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        return Err(VerbsError::NoDevice);
    }
    // SAFETY: what `ibv_get_device_list` returned, and no device of it is used.
    unsafe { sys::ibv_free_device_list(list) };
    if count > 0 { Ok(()) } else { Err(VerbsError::NoDevice) }
}

fn words(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return "unknown".into();
    }
    // SAFETY: a string constant of the library.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

fn nonblocking(fd: RawFd) -> Result<(), VerbsError> {
    // SAFETY: open for the length of this call: both callers own what it belongs to.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let set = fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    set.map(drop).map_err(|error| VerbsError::Call { call: "fcntl", source: error.into() })
}

/// Waits until a descriptor of the library can be read. Has a descriptor of its own for that.
#[derive(Debug)]
pub(crate) struct Waiter(AsyncFd<OwnedFd>);

impl Waiter {
    /// Waits for `fd`, which the caller owns for the length of this call.
    fn new(fd: RawFd) -> Result<Self, VerbsError> {
        let failed = |source| VerbsError::Call { call: "epoll", source };
        // SAFETY: open for the length of this call: the callers own what it belongs to.
        let own = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map_err(failed)?;
        // SAFETY: an owned descriptor is the same one until it is dropped, and it is dropped after its registration.
        let watched = unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) };
        Ok(Self(watched.map_err(|error| failed(error.into()))?))
    }

    /// Returns when there may be something. Whoever calls then looks until there is nothing.
    pub(crate) async fn ready(&self) -> Result<(), VerbsError> {
        let ready = self.0.readable().await;
        ready.map_err(|source| VerbsError::Call { call: "epoll", source })?.clear_ready();
        Ok(())
    }
}
