//! Connections, and what happens to them.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::RawFd,
    ptr::{self, NonNull},
    slice,
    sync::Arc,
};

use rdma_sys as sys;

use super::{VerbsError, Waiter, done, failed, nonblocking, words};

/// The local acknowledgement timeout is 4.096 us times two to the power of this: 67 ms.
const ACK_TIMEOUT: u8 = 14;
/// Option numbers of librdmacm that the binding does not carry.
const OPTION_ID: i32 = 0;
const OPTION_ID_ACK_TIMEOUT: i32 = 3;

/// Events of the connection manager.
#[derive(Debug)]
pub(crate) struct Channel(NonNull<sys::rdma_event_channel>);

// SAFETY: the library locks inside; a channel is a descriptor that any thread may read.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

/// Tells one connection id from another. The address of the library's own record, never followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(usize);

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    AddressResolved,
    RouteResolved,
    /// A reader wants in. It will have up to `depth` reads under way.
    Request {
        id: Id,
        depth: u8,
        data: Vec<u8>,
    },
    Established {
        data: Vec<u8>,
    },
    Disconnected,
    /// Anything else: the connection is over or never was.
    Failed(VerbsError),
}

impl Channel {
    pub(crate) fn new() -> Result<Arc<Self>, VerbsError> {
        // SAFETY: no demands; null is an error.
        let raw = unsafe { sys::rdma_create_event_channel() };
        let channel = Self(NonNull::new(raw).ok_or_else(|| failed("rdma_create_event_channel"))?);
        nonblocking(channel.fd())?;
        Ok(Arc::new(channel))
    }

    fn fd(&self) -> RawFd {
        // SAFETY: a live channel.
        unsafe { (*self.0.as_ptr()).fd }
    }

    /// Waits for the next event.
    pub(crate) fn waiter(&self) -> Result<Waiter, VerbsError> {
        Waiter::new(self.fd())
    }

    /// The next event, if there is one, and whose.
    pub(crate) fn next(self: &Arc<Self>) -> Result<Option<(Key, Event)>, VerbsError> {
        let mut event = ptr::null_mut();
        // SAFETY: a live channel; `event` is a valid place for the pointer.
        if unsafe { sys::rdma_get_cm_event(self.0.as_ptr(), &raw mut event) } != 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => Err(VerbsError::Call { call: "rdma_get_cm_event", source: error }),
            };
        }
        // SAFETY: on success `event` points to an event that lives until it is acknowledged, which is below.
        let raised = unsafe { &*event };
        let key = Key(raised.id as usize);
        let told = self.read(raised);
        // SAFETY: acknowledged once; nothing of it is used after this (`read` copied).
        unsafe { sys::rdma_ack_cm_event(event) };
        Ok(Some((key, told)))
    }

    fn read(self: &Arc<Self>, event: &sys::rdma_cm_event) -> Event {
        use sys::rdma_cm_event_type as kind;
        match event.event {
            kind::RDMA_CM_EVENT_ADDR_RESOLVED => Event::AddressResolved,
            kind::RDMA_CM_EVENT_ROUTE_RESOLVED => Event::RouteResolved,
            kind::RDMA_CM_EVENT_DISCONNECTED | kind::RDMA_CM_EVENT_TIMEWAIT_EXIT => Event::Disconnected,
            kind::RDMA_CM_EVENT_CONNECT_REQUEST => {
                // SAFETY: this kind of event carries connection parameters.
                let conn = unsafe { &event.param.conn };
                let Some(id) = NonNull::new(event.id) else {
                    return Event::Failed(VerbsError::Event { event: "no id".into(), status: 0 });
                };
                let id = Id { raw: id, _channel: self.clone() };
                // The fields arrive mirrored: what the peer calls its initiator depth is our responder resources.
                Event::Request { id, depth: conn.responder_resources, data: private_data(conn) }
            }
            kind::RDMA_CM_EVENT_ESTABLISHED => {
                // SAFETY: this kind of event carries connection parameters.
                let conn = unsafe { &event.param.conn };
                Event::Established { data: private_data(conn) }
            }
            other => Event::Failed(VerbsError::Event { event: event_name(other), status: event.status }),
        }
    }
}

fn private_data(conn: &sys::rdma_conn_param) -> Vec<u8> {
    if conn.private_data.is_null() {
        return Vec::new();
    }
    // SAFETY: the library says that so many bytes are there until the event is acknowledged; they are copied now.
    unsafe { slice::from_raw_parts(conn.private_data.cast::<u8>(), usize::from(conn.private_data_len)) }
        .to_vec()
}

fn event_name(kind: sys::rdma_cm_event_type::Type) -> String {
    // SAFETY: takes any number.
    let text = unsafe { sys::rdma_event_str(kind) };
    words(text)
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: every id of it held an `Arc` of it, so none is left.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// A connection, or what listens for them.
#[derive(Debug)]
pub(crate) struct Id {
    pub(super) raw: NonNull<sys::rdma_cm_id>,
    _channel: Arc<Channel>,
}

// SAFETY: the library locks inside; an id is bound to no thread.
unsafe impl Send for Id {}
// SAFETY: `&Id` gives calls that the library allows from any thread.
unsafe impl Sync for Id {}

impl Id {
    pub(crate) fn new(channel: &Arc<Channel>) -> Result<Self, VerbsError> {
        let mut id = ptr::null_mut();
        let space = sys::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: a live channel, kept alive by the id; `id` is a valid place for the pointer.
        let made = unsafe { sys::rdma_create_id(channel.0.as_ptr(), &raw mut id, ptr::null_mut(), space) };
        done(made, "rdma_create_id")?;
        let raw = NonNull::new(id).ok_or_else(|| failed("rdma_create_id"))?;
        Ok(Self { raw, _channel: channel.clone() })
    }

    pub(crate) fn key(&self) -> Key {
        Key(self.raw.as_ptr() as usize)
    }

    pub(crate) fn listen(&self, address: SocketAddr, backlog: i32) -> Result<(), VerbsError> {
        let mut address = Address::new(address);
        // SAFETY: a live id, and an address that is as long as its family says.
        done(unsafe { sys::rdma_bind_addr(self.raw.as_ptr(), address.raw()) }, "rdma_bind_addr")?;
        // SAFETY: a live id.
        done(unsafe { sys::rdma_listen(self.raw.as_ptr(), backlog) }, "rdma_listen")
    }

    /// The port it is bound to.
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: a live id, and nobody changes it meanwhile.
        let id = unsafe { self.raw.as_ref() };
        // SAFETY: it has its address since it was bound.
        let address = unsafe { sys::rdma_get_local_addr(id) };
        // First in both families.
        let [high, low, ..] = address.sa_data.map(i8::cast_unsigned);
        u16::from_be_bytes([high, low])
    }

    pub(crate) fn resolve_address(&self, to: SocketAddr, timeout_ms: i32) -> Result<(), VerbsError> {
        let mut to = Address::new(to);
        // SAFETY: a live id; the source is left to the library; the address is as long as its family says.
        let asked =
            unsafe { sys::rdma_resolve_addr(self.raw.as_ptr(), ptr::null_mut(), to.raw(), timeout_ms) };
        done(asked, "rdma_resolve_addr")
    }

    pub(crate) fn resolve_route(&self, timeout_ms: i32) -> Result<(), VerbsError> {
        // SAFETY: a live id.
        done(unsafe { sys::rdma_resolve_route(self.raw.as_ptr(), timeout_ms) }, "rdma_resolve_route")
    }

    /// Shorter than the library's own, which is seconds. Old ones do not know the option: then a read's deadline must do.
    pub(crate) fn shorten_timeout(&self) {
        let mut value = ACK_TIMEOUT;
        let place = (&raw mut value).cast();
        // SAFETY: a live id; the value is one byte, as this option wants.
        let set =
            unsafe { sys::rdma_set_option(self.raw.as_ptr(), OPTION_ID, OPTION_ID_ACK_TIMEOUT, place, 1) };
        if set != 0 {
            tracing::debug!("rdma-core keeps its own acknowledgement timeout");
        }
    }

    /// Sends a reader away.
    pub(crate) fn reject(&self) -> Result<(), VerbsError> {
        // SAFETY: a live id; no private data.
        done(unsafe { sys::rdma_reject(self.raw.as_ptr(), ptr::null(), 0) }, "rdma_reject")
    }

    /// The device it was resolved to, or came by. The library keeps devices open for as long as the process lives.
    pub(super) fn device(&self) -> Result<NonNull<sys::ibv_context>, VerbsError> {
        // SAFETY: a live id.
        NonNull::new(unsafe { (*self.raw.as_ptr()).verbs }).ok_or(VerbsError::NoDevice)
    }

    /// Its queue pair; null if it has none.
    pub(super) fn pair(&self) -> *mut sys::ibv_qp {
        // SAFETY: a live id.
        unsafe { (*self.raw.as_ptr()).qp }
    }

    /// Reads that its device can have under way: as reader, as holder.
    pub(super) fn depths(&self) -> Result<(u8, u8), VerbsError> {
        // SAFETY: plain numbers and arrays of numbers.
        let mut device: sys::ibv_device_attr = unsafe { mem::zeroed() };
        let context = self.device()?;
        // SAFETY: a live device; `device` is a valid place.
        let asked = unsafe { sys::ibv_query_device(context.as_ptr(), &raw mut device) };
        done(asked, "ibv_query_device")?;
        let most = |number: i32| u8::try_from(number.max(1)).unwrap_or(u8::MAX);
        Ok((most(device.max_qp_init_rd_atom), most(device.max_qp_rd_atom)))
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: made by the library and destroyed once; its queue pair, if it had one, went before (see `QueuePair`).
        unsafe { sys::rdma_destroy_id(self.raw.as_ptr()) };
    }
}

/// A socket address as C has it.
enum Address {
    V4(libc::sockaddr_in),
    V6(libc::sockaddr_in6),
}

impl Address {
    fn new(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(address) => {
                // SAFETY: plain numbers.
                let mut raw: libc::sockaddr_in = unsafe { mem::zeroed() };
                raw.sin_family = libc::AF_INET as libc::sa_family_t;
                raw.sin_port = address.port().to_be();
                raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
                Self::V4(raw)
            }
            SocketAddr::V6(address) => {
                // SAFETY: plain numbers.
                let mut raw: libc::sockaddr_in6 = unsafe { mem::zeroed() };
                raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
                raw.sin6_port = address.port().to_be();
                raw.sin6_scope_id = address.scope_id();
                raw.sin6_addr.s6_addr = address.ip().octets();
                Self::V6(raw)
            }
        }
    }

    fn raw<T>(&mut self) -> *mut T {
        match self {
            Self::V4(raw) => ptr::from_mut(raw).cast(),
            Self::V6(raw) => ptr::from_mut(raw).cast(),
        }
    }
}
