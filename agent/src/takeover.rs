//! What rests outlives its agent: base snapshots, sandboxes in dedup and parked ones go to the next agent on the node.
//!
//! ```text
//! made or put away ─► left with the keeper: what it is, its sealed memory ─► (agent ends) ─► received ─► taken in
//! ```
//!
//! Nothing is copied: what is left is a second descriptor of the same memory. A parked sandbox stays where it is, frozen, in its control group
//! and its mounts; its userfaultfds, its network and the pipe that it writes to are left as well. A sandbox is taken back before it is restored, removed or given
//! up, so that it never comes back twice. What the records say is taken as it is, since only a keeper of ours can have sent them; that the
//! images are true is seen when they are opened, as ever.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use medes_dedup::{
    key::{DomainKey, KeyId},
    page::SnapshotId,
};
use medes_proto::{
    WireError,
    function::FunctionSpec,
    ids::{NodeId, SandboxId, TenantName},
    layout::{InitSnapshot, SnapshotLayout},
    moving::ImageHead,
    wire,
};
use nix::unistd::Pid;
use prost::Message;

use crate::{
    bases::local::{Init, Snapshot},
    driver::Taken,
    earlier::Origin,
    keeper::{FILES_MAX, Key, Left},
    launch_spec::launch_spec,
    memory_file::{MappedFile, MemoryFile},
    moving::{monotonic, send::Record},
    node::Tools,
    pager::{KeptProcess, Learnt, Paged, ProcessRecord, TakeOverError},
    private_files,
    roads::{Stored, Warm, blocking},
    sandbox::{self, AdoptError, CreateError, Host, Housing, KeptHousing, Pipe},
};

/// Why something that was left is lost.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeInError {
    /// Files are missing, or are none that an agent seals.
    #[error("map its memory")]
    Memory(#[source] io::Error),
    /// The record was written by another kind of agent.
    #[error("read what it is")]
    Record(#[from] prost::DecodeError),
    /// The record says what cannot be.
    #[error("understand what it is")]
    Wire(#[from] WireError),
    /// The record does not fit to what came with it.
    #[error("it is not what its record says: {0}")]
    Unlike(&'static str),
    /// There is no housing for it.
    #[error("make a housing")]
    Create(#[from] CreateError),
    /// The private files could not be put there.
    #[error("unpack the private files")]
    Files(#[source] io::Error),
    /// Its housing is not what it was.
    #[error("take over its housing")]
    Housing(#[source] io::Error),
    /// Its processes are not there.
    #[error("take over its processes")]
    Adopt(#[from] AdoptError),
    /// Its memory cannot be served.
    #[error("take over its memory")]
    Memories(#[from] TakeOverError),
}

/// What a sandbox that rests is besides its memory.
#[derive(Clone, PartialEq, prost::Message)]
struct SandboxRecord {
    #[prost(message, optional, tag = "1")]
    function: Option<wire::Function>,
    /// Its image, but for the bytes. Its clock says when it was put away.
    #[prost(message, optional, tag = "2")]
    head: Option<wire::ImageHead>,
    #[prost(uint64, repeated, tag = "3")]
    bases: Vec<u64>,
    #[prost(uint64, tag = "4")]
    stored_bytes: u64,
    #[prost(message, optional, tag = "5")]
    parked: Option<ParkedRecord>,
}

/// What one that is parked is besides.
#[derive(Clone, PartialEq, prost::Message)]
struct ParkedRecord {
    /// Its first process.
    #[prost(int32, tag = "1")]
    pid: i32,
    #[prost(bytes, tag = "2")]
    layout: Vec<u8>,
    /// What its images are opened with: they serve it before a controller has told the new agent any key.
    #[prost(bytes, tag = "3")]
    tenant_key: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    processes: Vec<ProcessRecord>,
}

/// Follows in each record: which key it was made under. 0: the agent before did not say.
#[derive(Clone, PartialEq, prost::Message)]
struct MadeUnder {
    /// No other message that is a record has a field of this number.
    #[prost(fixed64, tag = "100")]
    key_id: u64,
}

impl MadeUnder {
    fn record(id: Option<KeyId>, record: &impl Message) -> io::Result<MappedFile> {
        let mut bytes = record.encode_to_vec();
        bytes.extend(Self { key_id: id.map_or(0, |id| id.0) }.encode_to_vec());
        MemoryFile::sealed("medes-record", &bytes)
    }

    fn read(record: &MappedFile) -> Result<Option<KeyId>, TakeInError> {
        let Self { key_id } = Self::decode(record.as_ref())?;
        Ok(Some(KeyId(key_id)).filter(|id| id.0 != 0))
    }
}

/// A sandbox that rests, as the next agent is to have it.
#[derive(Debug)]
pub(crate) struct Resting<'n> {
    pub(crate) sandbox: SandboxId,
    /// Of which text of the function's file.
    pub(crate) revision: u64,
    pub(crate) record: Record,
    pub(crate) stored_bytes: u64,
    pub(crate) bases: &'n [SnapshotId],
    /// For how long it has rested.
    pub(crate) age: Duration,
}

impl Resting<'_> {
    /// `image_bytes`, `origin`: of its image, if it has one.
    fn record(&self, spec: &FunctionSpec, (image_bytes, origin): (u64, Option<&Origin>)) -> SandboxRecord {
        let head = ImageHead {
            image_bytes,
            // They stay where they are, and are packed when it comes to it.
            file_bytes: 0,
            places: origin.map(|origin| origin.places.values().cloned().collect()).unwrap_or_default(),
            aligned_with: origin.and_then(|origin| origin.aligned_with),
            pages: self.record.pages,
            requests: self.record.requests,
            starts_from_dedup: self.record.starts_from_dedup,
            monotonic: monotonic().saturating_sub(self.age),
        };
        SandboxRecord {
            function: Some(wire::Function { toml: spec.to_toml(), revision: self.revision }),
            head: Some(head.into()),
            bases: self.bases.iter().map(|base| base.get()).collect(),
            stored_bytes: self.stored_bytes,
            parked: None,
        }
    }
}

/// Leaves a sandbox in dedup to the next agent.
pub(crate) fn leave_sandbox(
    host: &Host,
    resting: &Resting<'_>,
    (stored, id): (&Stored, Option<KeyId>),
) -> io::Result<()> {
    let image = (stored.image.len() as u64, Some(&stored.origin));
    let record = MadeUnder::record(id, &resting.record(&stored.spec, image))?;
    host.leave(Key::Sandbox(resting.sandbox.get()), &[record.file().as_fd(), stored.image.file().as_fd()]);
    Ok(())
}

/// Leaves a parked sandbox to the next agent; whether it could be. `key`: its tenant's.
pub(crate) fn leave_parked(
    host: &Host,
    resting: &Resting<'_>,
    (warm, key): (&Warm, &DomainKey),
) -> io::Result<bool> {
    let Some(processes) = warm.paged.as_ref().map(Paged::kept).transpose()?.flatten() else {
        return Ok(false);
    };
    let KeptHousing { layout, network, pipe } = warm.housing.kept()?;
    let mut files = vec![network, pipe.source, pipe.sink];
    let mut records = Vec::with_capacity(processes.len());
    for KeptProcess { record, uffd, image, plain } in processes {
        records.push(record);
        files.extend([uffd, image].into_iter().chain(plain));
    }
    if files.len() >= FILES_MAX {
        return Ok(false);
    }
    let parked = ParkedRecord {
        pid: warm.tree.pid().as_raw(),
        layout,
        tenant_key: key.expose().to_vec(),
        processes: records,
    };
    let record = SandboxRecord { parked: Some(parked), ..resting.record(&warm.spec, (0, None)) };
    let record = MadeUnder::record(Some(key.id()), &record)?;
    let files: Vec<_> = [record.file().as_fd()].into_iter().chain(files.iter().map(AsFd::as_fd)).collect();
    host.leave(Key::Parked(resting.sandbox.get()), &files);
    Ok(true)
}

/// Leaves a base snapshot to the next agent.
pub(crate) fn leave_base(host: &Host, (snapshot, id): (&Snapshot, Option<KeyId>)) -> io::Result<()> {
    let layout = SnapshotLayout {
        tenant: snapshot.tenant.clone(),
        function: snapshot.function.clone(),
        pages: snapshot.page_count(),
        // Nobody has to see that the pages are still the same: their file is sealed.
        hash: [0; 32],
        processes: snapshot.processes().to_vec(),
        init: snapshot.init().map(|init| InitSnapshot {
            revision: init.revision,
            image: init.image.as_ref().map(|image| image.as_ref().to_vec()).unwrap_or_default(),
        }),
    };
    let record = MadeUnder::record(id, &wire::SnapshotLayout::from(layout))?;
    host.leave(Key::Base(snapshot.id.get()), &[record.file().as_fd(), snapshot.file().as_fd()]);
    Ok(())
}

/// Something that was left, as this agent has it.
#[derive(Debug)]
pub(crate) enum TakenIn {
    Base(Arc<Snapshot>),
    Sandbox(Box<TakenInSandbox>),
}

/// A sandbox that an agent before left.
#[derive(Debug)]
pub(crate) struct TakenInSandbox {
    pub(crate) sandbox: SandboxId,
    pub(crate) revision: u64,
    pub(crate) spec: Arc<FunctionSpec>,
    pub(crate) body: Resumed,
    pub(crate) taken: Taken,
    /// For how long it has rested.
    pub(crate) age: Duration,
}

/// What there is of it.
#[derive(Debug)]
pub(crate) enum Resumed {
    Stored(Box<Stored>),
    /// And its tenant's key.
    Parked(Box<Warm>, DomainKey),
}

/// Takes in what an agent before left. What fails is lost: it is as if it had ended with that agent.
pub(crate) async fn take_in(tools: &Tools, node: &NodeId, left: Left) -> Result<TakenIn, TakeInError> {
    let Left { key, files } = left;
    let mut files = files.into_iter();
    let mut next = || files.next().ok_or_else(|| TakeInError::Memory(io::ErrorKind::UnexpectedEof.into()));
    let record = received(next()?)?;
    match key {
        Key::Node => Err(TakeInError::Unlike("it is the node")),
        Key::Base(number) => {
            let snapshot = base(number, &record, received(next()?)?)?;
            seen(tools, &snapshot.tenant, &record)?;
            Ok(TakenIn::Base(snapshot))
        }
        Key::Sandbox(number) => {
            let (image, files) = (received(next()?)?, received(next()?)?);
            let known = Known::read(number, &record)?;
            let stored = take_in_stored((&tools.host, node), &known, (image, files)).await?;
            seen(tools, &known.spec.tenant, &record)?;
            Ok(TakenIn::Sandbox(known.with(Resumed::Stored(Box::new(stored)))))
        }
        Key::Parked(number) => {
            let (network, source, sink) = (next()?, next()?, next()?);
            let mut known = Known::read(number, &record)?;
            let parked = known.parked.take().ok_or(TakeInError::Unlike("it is not parked"))?;
            let housing = (network, Pipe { source, sink });
            let (warm, key) = take_in_parked((tools, node), &known, (parked, housing, files.collect()))?;
            seen(tools, &known.spec.tenant, &record)?;
            Ok(TakenIn::Sandbox(known.with(Resumed::Parked(Box::new(warm), key))))
        }
    }
}

/// What of a tenant is here was made under this key: of use only if the controller tells the same one.
fn seen(tools: &Tools, tenant: &TenantName, record: &MappedFile) -> Result<(), TakeInError> {
    if let (Some(roads), Some(id)) = (&tools.roads, MadeUnder::read(record)?) {
        roads.keys.made_under(tenant, id);
    }
    Ok(())
}

fn received(file: OwnedFd) -> Result<MappedFile, TakeInError> {
    MappedFile::received(file).map_err(TakeInError::Memory)
}

fn base(number: u64, record: &MappedFile, pages: MappedFile) -> Result<Arc<Snapshot>, TakeInError> {
    let layout = SnapshotLayout::try_from(wire::SnapshotLayout::decode(record.as_ref())?)?;
    let SnapshotLayout { tenant, function, processes, init, .. } = layout;
    let id = SnapshotId::new(number).ok_or(TakeInError::Unlike("it has no number"))?;
    let snapshot = Snapshot::new(id, function, tenant, pages, processes);
    let snapshot = snapshot.ok_or(TakeInError::Unlike("its pages are not its processes'"))?;
    if let Some(InitSnapshot { revision, image }) = init {
        let image = (!image.is_empty()).then(|| crate::init::seal(&image)).transpose();
        snapshot.is_init(Init::new(revision, image.map_err(TakeInError::Memory)?));
    }
    Ok(Arc::new(snapshot))
}

/// What a record says of a sandbox.
struct Known {
    sandbox: SandboxId,
    spec: Arc<FunctionSpec>,
    revision: u64,
    head: ImageHead,
    bases: Vec<SnapshotId>,
    stored_bytes: u64,
    parked: Option<ParkedRecord>,
}

impl Known {
    fn read(number: u64, record: &MappedFile) -> Result<Self, TakeInError> {
        let SandboxRecord { function, head, bases, stored_bytes, parked } =
            SandboxRecord::decode(record.as_ref())?;
        let wire::Function { toml, revision } = function.ok_or(WireError::missing("record.function"))?;
        let spec = FunctionSpec::from_toml(&toml);
        let bases: Option<Vec<_>> = bases.into_iter().map(SnapshotId::new).collect();
        Ok(Self {
            sandbox: SandboxId::new(number).ok_or(TakeInError::Unlike("it has no number"))?,
            spec: Arc::new(spec.map_err(|_why| TakeInError::Unlike("its function is none"))?),
            revision,
            head: head.ok_or(WireError::missing("record.head"))?.try_into()?,
            bases: bases.ok_or(TakeInError::Unlike("a base has no number"))?,
            stored_bytes,
            parked,
        })
    }

    fn id(&self) -> Result<sandbox::SandboxId, TakeInError> {
        Ok(sandbox::SandboxId::new(self.sandbox.to_string()).map_err(CreateError::Spec)?)
    }

    fn with(self, body: Resumed) -> Box<TakenInSandbox> {
        let Self { sandbox, spec, revision, head, bases, stored_bytes, .. } = self;
        let taken = Taken {
            stored_bytes,
            bases,
            pages: head.pages,
            requests: head.requests,
            starts_from_dedup: head.starts_from_dedup,
            phases: Vec::new(),
        };
        let age = monotonic().saturating_sub(head.monotonic);
        Box::new(TakenInSandbox { sandbox, revision, spec, body, taken, age })
    }
}

async fn take_in_stored(
    (host, node): (&Host, &NodeId),
    known: &Known,
    (image, files): (MappedFile, MappedFile),
) -> Result<Stored, TakeInError> {
    let Known { sandbox, spec, head, .. } = known;
    if head.image_bytes != image.len() as u64 {
        return Err(TakeInError::Unlike("its image has another length"));
    }
    let housing = Housing::create(host, &known.id()?, &launch_spec(spec, *sandbox, node)).await?;
    let folder = housing.private_dir().to_owned();
    if let Err(error) = blocking(move || private_files::unpack(files.as_ref(), &folder)).await {
        if let Err(error) = housing.remove().await {
            tracing::error!(%sandbox, error = &error as &dyn std::error::Error, "something of a sandbox stays behind");
        }
        return Err(TakeInError::Files(error));
    }
    let places = head.places.iter().map(|place| (place.snapshot, place.clone())).collect::<BTreeMap<_, _>>();
    let origin = Origin { places, files: Vec::new(), aligned_with: head.aligned_with };
    let (spec, learnt) = (spec.clone(), Learnt::default());
    Ok(Stored { spec, housing, image, origin, tracked: None, learnt })
}

/// Whatever fails, the sandbox is where it was, and whoever takes in the others ends it.
fn take_in_parked(
    (tools, node): (&Tools, &NodeId),
    known: &Known,
    (parked, (network, pipe), files): (ParkedRecord, (OwnedFd, Pipe), Vec<OwnedFd>),
) -> Result<(Warm, DomainKey), TakeInError> {
    let ParkedRecord { pid, layout, tenant_key, processes } = parked;
    let pager = tools.pager.as_ref().ok_or(TakeInError::Unlike("nobody can serve it"))?;
    let key = DomainKey::from_bytes(
        tenant_key.try_into().map_err(|_length| TakeInError::Unlike("its key is none"))?,
    );
    let launch = launch_spec(&known.spec, known.sandbox, node);
    let kept = KeptHousing { layout, network, pipe };
    let housing =
        Housing::take_over(&tools.host, &known.id()?, &launch, kept).map_err(TakeInError::Housing)?;
    let tree = housing.adopt(Pid::from_raw(pid))?;
    let mut files = files.into_iter();
    let processes = processes.into_iter().map(|record| {
        let (uffd, image) = (files.next()?, files.next()?);
        let plain = if record.has_plain { Some(files.next()?) } else { None };
        Some(KeptProcess { record, uffd, image, plain })
    });
    let processes: Option<Vec<_>> = processes.collect();
    let processes = processes.ok_or(TakeInError::Unlike("files of its processes are missing"))?;
    let base = |id| tools.bases.local.get(id);
    let served = Paged::take_over(pager, housing.cgroup(), processes, (&key, base, tools.faults.clone()))?;
    let mut warm = Warm::new(known.spec.clone(), housing, tree);
    warm.paged = Some(served);
    Ok((warm, key))
}

#[cfg(test)]
mod tests {
    use medes_proto::layout::{Backing, ProcessLayout, Region, Run};

    use super::*;

    #[test]
    fn a_base_is_what_it_was() {
        let process = || {
            let region = Region { start: 4096, end: 3 * 4096, backing: Backing::Heap };
            ProcessLayout::new(vec![Run { address: 4096, pages: 2 }], vec![region]).unwrap()
        };
        let layout = SnapshotLayout {
            tenant: "t".parse().unwrap(),
            function: "f".parse().unwrap(),
            pages: 3,
            hash: [0; 32],
            processes: vec![process()],
            init: Some(InitSnapshot { revision: 7, image: b"image".to_vec() }),
        };
        let record = wire::SnapshotLayout::from(layout).encode_to_vec();
        let file = |bytes: &[u8]| MemoryFile::sealed("test", bytes).unwrap();
        let pages = [1, 2, 3].map(|byte| [byte; 4096]);
        let snapshot = base(9, &file(&record), file(pages.as_flattened())).unwrap();
        assert_eq!((snapshot.id.get(), snapshot.page_count()), (9, 3));
        assert_eq!((snapshot.tenant.as_str(), snapshot.function.as_str()), ("t", "f"));
        assert_eq!(snapshot.processes(), [process()]);
        let init = snapshot.init().unwrap();
        assert_eq!((init.revision, init.image.as_ref().unwrap().as_ref()), (7, &b"image"[..]));
        assert!(snapshot.pages().eq(&pages));
        let refused =
            |number, record: &[u8], pages: &[u8]| base(number, &file(record), file(pages)).unwrap_err();
        assert!(matches!(refused(0, &record, pages.as_flattened()), TakeInError::Unlike(_)));
        assert!(
            matches!(refused(9, &record, &pages[0]), TakeInError::Unlike(_)),
            "fewer than its process has"
        );
        assert!(matches!(refused(9, b"\xff", pages.as_flattened()), TakeInError::Record(_)));
    }
}
