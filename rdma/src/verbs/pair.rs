//! Queue pairs, and the memory they read from and into.

use std::{
    fs::File,
    mem,
    num::NonZeroUsize,
    os::fd::RawFd,
    ptr::{self, NonNull},
    sync::Arc,
};

use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};
use rdma_sys as sys;

use super::{
    VerbsError, Waiter,
    cm::{Id, Key},
    done, failed, nonblocking, words,
};

/// Retransmissions before a queue pair gives up.
const RETRIES: u8 = 5;
/// Bytes of private data that fit into a connection request of this port space.
const PRIVATE_BYTES_MAX: usize = 56;

/// Memory mapped here and nowhere borrowed: the card reads or writes it.
#[derive(Debug)]
struct Mapped {
    start: NonNull<libc::c_void>,
    bytes: NonZeroUsize,
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: mapped by us, unmapped once; whoever registered it holds it until after the deregistration.
        let unmapped = unsafe { munmap(self.start, self.bytes.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}

/// A protection domain: what is registered in it can be reached by its queue pair only.
#[derive(Debug)]
struct Domain(NonNull<sys::ibv_pd>);

impl Domain {
    fn new(id: &Id) -> Result<Arc<Self>, VerbsError> {
        let device = id.device()?;
        // SAFETY: a live device.
        let raw = unsafe { sys::ibv_alloc_pd(device.as_ptr()) };
        Ok(Arc::new(Self(NonNull::new(raw).ok_or_else(|| failed("ibv_alloc_pd"))?)))
    }
}

// SAFETY: the library locks inside.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: all that was made in it held an `Arc` of it, so nothing is left.
        unsafe { sys::ibv_dealloc_pd(self.0.as_ptr()) };
    }
}

/// Registered memory. Dropping it ends the card's access before the memory goes (fields drop in order).
#[derive(Debug)]
struct Region {
    mr: Registration,
    memory: Mapped,
}

#[derive(Debug)]
struct Registration {
    raw: NonNull<sys::ibv_mr>,
    _domain: Arc<Domain>,
}

// SAFETY: registration and mapping belong to no thread; the library locks inside.
unsafe impl Send for Region {}
// SAFETY: `&Region` gives out numbers only.
unsafe impl Sync for Region {}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: registered once, deregistered once.
        unsafe { sys::ibv_dereg_mr(self.raw.as_ptr()) };
    }
}

impl Region {
    fn new(domain: &Arc<Domain>, memory: Mapped, access: sys::ibv_access_flags) -> Result<Self, VerbsError> {
        let access = access.0.cast_signed();
        // SAFETY: a live domain; the mapping is of this length and outlives the registration (see `Region`).
        let raw =
            unsafe { sys::ibv_reg_mr(domain.0.as_ptr(), memory.start.as_ptr(), memory.bytes.get(), access) };
        let raw = NonNull::new(raw).ok_or_else(|| failed("ibv_reg_mr"))?;
        Ok(Self { mr: Registration { raw, _domain: domain.clone() }, memory })
    }
}

/// A sealed memory file that one reader may read. Dropping it revokes that.
#[derive(Debug)]
pub(crate) struct Exposure(Region);

impl Exposure {
    /// Address, key and length, for the reader.
    pub(crate) fn place(&self) -> (u64, u32, u64) {
        // SAFETY: a live registration.
        let key = unsafe { (*self.0.mr.raw.as_ptr()).rkey };
        (self.0.memory.start.as_ptr() as u64, key, self.0.memory.bytes.get() as u64)
    }
}

/// Where reads land: slots of equal size.
#[derive(Debug)]
struct Landing {
    region: Region,
    slot_bytes: usize,
    /// Whether a read is under way into each slot.
    busy: Vec<bool>,
}

/// One read of a run of remote bytes into a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Posting {
    pub(crate) slot: usize,
    pub(crate) address: u64,
    pub(crate) key: u32,
    pub(crate) bytes: usize,
}

/// A queue pair with its completions, and memory for its reads to land in.
#[derive(Debug)]
pub(crate) struct QueuePair {
    landing: Option<Landing>,
    queue: NonNull<sys::ibv_cq>,
    channel: NonNull<sys::ibv_comp_channel>,
    domain: Arc<Domain>,
    id: Id,
    has_pair: bool,
}

// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for QueuePair {}
// SAFETY: calls on `&QueuePair` are such that the library allows them from any thread.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    /// A pair for a connection, with `slots` reads at a time of `slot_bytes` each; none for a holder.
    pub(crate) fn new(id: Id, slots: usize, slot_bytes: usize) -> Result<Self, VerbsError> {
        let domain = Domain::new(&id)?;
        let device = id.device()?;
        // SAFETY: a live device.
        let channel = unsafe { sys::ibv_create_comp_channel(device.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| failed("ibv_create_comp_channel"))?;
        let entries = i32::try_from(slots + 1).unwrap_or(i32::MAX);
        // SAFETY: the same device; the channel lives longer (see `drop`); no context.
        let queue =
            unsafe { sys::ibv_create_cq(device.as_ptr(), entries, ptr::null_mut(), channel.as_ptr(), 0) };
        let Some(queue) = NonNull::new(queue) else {
            let error = failed("ibv_create_cq");
            // SAFETY: made above, and nothing uses it.
            unsafe { sys::ibv_destroy_comp_channel(channel.as_ptr()) };
            return Err(error);
        };
        let mut pair = Self { landing: None, queue, channel, domain, id, has_pair: false };
        nonblocking(pair.completions())?;
        if slots > 0 {
            pair.landing = Some(Landing::new(&pair.domain, slots, slot_bytes)?);
        }
        pair.create(slots)?;
        Ok(pair)
    }

    fn create(&mut self, slots: usize) -> Result<(), VerbsError> {
        // SAFETY: numbers and pointers that may be null.
        let mut wanted: sys::ibv_qp_init_attr = unsafe { mem::zeroed() };
        (wanted.send_cq, wanted.recv_cq) = (self.queue.as_ptr(), self.queue.as_ptr());
        wanted.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
        wanted.cap.max_send_wr = u32::try_from(slots.max(1)).unwrap_or(u32::MAX);
        (wanted.cap.max_recv_wr, wanted.cap.max_send_sge, wanted.cap.max_recv_sge) = (1, 1, 1);
        // SAFETY: a live id without a pair; domain and queue live until after the pair is destroyed (see `drop`).
        let made =
            unsafe { sys::rdma_create_qp(self.id.raw.as_ptr(), self.domain.0.as_ptr(), &raw mut wanted) };
        done(made, "rdma_create_qp")?;
        self.has_pair = true;
        self.arm()
    }

    pub(crate) fn key(&self) -> Key {
        self.id.key()
    }

    /// Connects as a reader that shows `data`.
    pub(crate) fn connect(&self, depth: u8, data: &[u8]) -> Result<(), VerbsError> {
        let (as_reader, _) = self.id.depths()?;
        let mut wanted = parameters(data);
        wanted.initiator_depth = depth.min(as_reader);
        // SAFETY: a live id with a pair; `wanted` and `data` live until the call returns, which copies them.
        done(unsafe { sys::rdma_connect(self.id.raw.as_ptr(), &raw mut wanted) }, "rdma_connect")
    }

    /// Lets a reader in that may have `depth` reads under way. 0 would connect, and its first read would never end.
    pub(crate) fn accept(&self, depth: u8, data: &[u8]) -> Result<(), VerbsError> {
        let (_, as_holder) = self.id.depths()?;
        let mut wanted = parameters(data);
        wanted.responder_resources = depth.clamp(1, as_holder);
        // SAFETY: as in `connect`.
        done(unsafe { sys::rdma_accept(self.id.raw.as_ptr(), &raw mut wanted) }, "rdma_accept")
    }

    /// Lets the other side of this pair read a memory file, and nobody change it.
    pub(crate) fn expose(&self, file: &File) -> Result<Exposure, VerbsError> {
        let system = |call| move |error: nix::errno::Errno| VerbsError::Call { call, source: error.into() };
        let seals = fcntl(file, FcntlArg::F_GET_SEALS).map_err(system("fcntl"))?;
        let needed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_WRITE;
        if !SealFlag::from_bits_truncate(seals).contains(needed) {
            return Err(VerbsError::NotSealed);
        }
        let length = file.metadata().map_err(|source| VerbsError::Call { call: "fstat", source })?.len();
        let bytes = usize::try_from(length).ok().and_then(NonZeroUsize::new).ok_or(VerbsError::Bounds)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap(None, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, 0) };
        let memory = Mapped { start: start.map_err(system("mmap"))?, bytes };
        let access = sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ;
        Ok(Exposure(Region::new(&self.domain, memory, access)?))
    }

    /// Waits until reads have ended.
    pub(crate) fn waiter(&self) -> Result<Waiter, VerbsError> {
        Waiter::new(self.completions())
    }

    fn completions(&self) -> RawFd {
        // SAFETY: a live completion channel.
        unsafe { (*self.channel.as_ptr()).fd }
    }

    /// Begins reads. None begins when one of them is out of bounds or its slot is in use.
    pub(crate) fn post(&mut self, postings: &[Posting]) -> Result<(), VerbsError> {
        let landing = self.landing.as_mut().ok_or(VerbsError::Bounds)?;
        let fits = |it: &Posting| {
            (1..=landing.slot_bytes).contains(&it.bytes) && landing.busy.get(it.slot) == Some(&false)
        };
        if postings.is_empty() || !postings.iter().all(fits) {
            return Err(VerbsError::Bounds);
        }
        let (start, lkey) = landing.place();
        let mut places: Vec<sys::ibv_sge> = postings
            .iter()
            .map(|it| sys::ibv_sge {
                addr: start + (it.slot * landing.slot_bytes) as u64,
                length: u32::try_from(it.bytes).unwrap_or(0),
                lkey,
            })
            .collect();
        let mut requests: Vec<sys::ibv_send_wr> = Vec::with_capacity(postings.len());
        for (it, place) in postings.iter().zip(&mut places) {
            // SAFETY: numbers and pointers that may be null.
            let mut request: sys::ibv_send_wr = unsafe { mem::zeroed() };
            (request.wr_id, request.sg_list, request.num_sge) = (it.slot as u64, place, 1);
            request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
            request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
            request.wr.rdma.remote_addr = it.address;
            request.wr.rdma.rkey = it.key;
            requests.push(request);
        }
        for at in 1..requests.len() {
            let next = &raw mut requests[at];
            requests[at - 1].next = next;
        }
        postings.iter().for_each(|it| landing.busy[it.slot] = true);
        let mut first_bad = ptr::null_mut();
        let pair = self.id.pair();
        // SAFETY: a live id has the pair that `create` made; the chain and what it points to live until the call
        // returns, which copies them; slots lie inside the landing memory, which is registered until after the pair is
        // destroyed, and are marked, so that nobody copies them out before they are complete.
        let posted = unsafe { sys::ibv_post_send(pair, requests.as_mut_ptr(), &raw mut first_bad) };
        done(posted, "ibv_post_send")
    }

    /// Asks to be told of the next completion.
    fn arm(&self) -> Result<(), VerbsError> {
        // SAFETY: a live completion queue.
        done(unsafe { sys::ibv_req_notify_cq(self.queue.as_ptr(), 0) }, "ibv_req_notify_cq")
    }

    /// Takes what has completed: the slots whose reads ended well. The first that did not is an error; the pair is then
    /// of no more use.
    pub(crate) fn completed(&mut self, slots: &mut Vec<usize>) -> Result<(), VerbsError> {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live channel; both are valid places for pointers. It does not block.
        while unsafe { sys::ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut context) } == 0 {
            // SAFETY: one event of this queue, acknowledged once.
            unsafe { sys::ibv_ack_cq_events(queue, 1) };
        }
        // Armed before looking: what comes in between is told again.
        self.arm()?;
        loop {
            // SAFETY: plain numbers.
            let mut ended: [sys::ibv_wc; 16] = unsafe { mem::zeroed() };
            // SAFETY: a live queue, and room for as many as asked for.
            let count = unsafe { sys::ibv_poll_cq(self.queue.as_ptr(), 16, ended.as_mut_ptr()) };
            let count = usize::try_from(count).map_err(|_negative| failed("ibv_poll_cq"))?;
            for end in &ended[..count] {
                if end.status != sys::ibv_wc_status::IBV_WC_SUCCESS {
                    // SAFETY: takes any number.
                    let status = words(unsafe { sys::ibv_wc_status_str(end.status) });
                    return Err(VerbsError::Read { status });
                }
                let slot = usize::try_from(end.wr_id).unwrap_or(usize::MAX);
                if let Some(busy) = self.landing.as_mut().and_then(|landing| landing.busy.get_mut(slot)) {
                    *busy = false;
                    slots.push(slot);
                }
            }
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// Copies the first bytes of a slot into which no read is under way.
    pub(crate) fn copy_out(&self, slot: usize, into: &mut [u8]) -> Result<(), VerbsError> {
        let landing = self.landing.as_ref().ok_or(VerbsError::Bounds)?;
        if landing.busy.get(slot) != Some(&false) || into.len() > landing.slot_bytes {
            return Err(VerbsError::Bounds);
        }
        let from = landing.region.memory.start.as_ptr().cast::<u8>();
        // SAFETY: the slot lies inside the landing memory.
        let from = unsafe { from.add(slot * landing.slot_bytes) };
        // SAFETY: a slot has as many bytes, the card does not write to it (it is not busy), and `into` is other memory,
        // being borrowed mutably.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }
}

impl Landing {
    fn new(domain: &Arc<Domain>, slots: usize, slot_bytes: usize) -> Result<Self, VerbsError> {
        let bytes = slots.checked_mul(slot_bytes).and_then(NonZeroUsize::new).ok_or(VerbsError::Bounds)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { mmap_anonymous(None, bytes, protection, MapFlags::MAP_PRIVATE) };
        let start = start.map_err(|error| VerbsError::Call { call: "mmap", source: error.into() })?;
        let access = sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
        let region = Region::new(domain, Mapped { start, bytes }, access)?;
        Ok(Self { region, slot_bytes, busy: vec![false; slots] })
    }

    fn place(&self) -> (u64, u32) {
        // SAFETY: a live registration.
        let key = unsafe { (*self.region.mr.raw.as_ptr()).lkey };
        (self.region.memory.start.as_ptr() as u64, key)
    }
}

fn parameters(data: &[u8]) -> sys::rdma_conn_param {
    debug_assert!(data.len() <= PRIVATE_BYTES_MAX, "private data");
    // SAFETY: numbers and a pointer that may be null.
    let mut wanted: sys::rdma_conn_param = unsafe { mem::zeroed() };
    wanted.private_data = data.as_ptr().cast();
    wanted.private_data_len = u8::try_from(data.len().min(PRIVATE_BYTES_MAX)).unwrap_or(0);
    (wanted.retry_count, wanted.rnr_retry_count) = (RETRIES, RETRIES);
    wanted
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        if self.has_pair {
            // SAFETY: a live id; fails when it is not connected, which does not matter.
            unsafe { sys::rdma_disconnect(self.id.raw.as_ptr()) };
            // SAFETY: the id has a pair. After this the card touches no memory for it.
            unsafe { sys::rdma_destroy_qp(self.id.raw.as_ptr()) };
        }
        // SAFETY: no pair uses it any more, and all its events are acknowledged.
        unsafe { sys::ibv_destroy_cq(self.queue.as_ptr()) };
        // SAFETY: its queue is gone.
        unsafe { sys::ibv_destroy_comp_channel(self.channel.as_ptr()) };
        // Then the fields: landing memory, domain, id.
    }
}
