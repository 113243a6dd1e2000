//! What needs no process outlives its agent: base snapshots and sandboxes in dedup go to the next agent on the node.
//!
//! ```text
//! made or put away ─► left with the keeper: what it is, its sealed memory ─► (agent ends) ─► received ─► taken in
//! ```
//!
//! Nothing is copied: what is left is a second descriptor of the same memory. A sandbox is taken back before it is restored, removed or given
//! up, so that it never comes back twice. What the records say is taken as it is, since only a keeper of ours can have sent them; that the
//! images are true is seen when they are opened, as ever.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use medes_dedup::page::SnapshotId;
use medes_proto::{
    WireError,
    function::FunctionSpec,
    ids::SandboxId,
    layout::{InitSnapshot, SnapshotLayout},
    moving::ImageHead,
    wire,
};
use prost::Message;

use crate::{
    bases::local::{Init, Snapshot},
    driver::Taken,
    earlier::Origin,
    keeper::{Key, Left},
    launch_spec::launch_spec,
    memory_file::{MappedFile, MemoryFile},
    moving::{monotonic, send::Record},
    pager::Learnt,
    private_files,
    roads::{Stored, blocking},
    sandbox::{self, CreateError, Host},
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
}

/// What a sandbox in dedup is besides its image.
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
}

/// A sandbox in dedup, as the next agent is to have it.
#[derive(Debug)]
pub(crate) struct Resting<'n> {
    pub(crate) sandbox: SandboxId,
    /// Of which text of the function's file.
    pub(crate) revision: u64,
    pub(crate) stored: &'n Stored,
    pub(crate) record: Record,
    pub(crate) stored_bytes: u64,
    pub(crate) bases: &'n [SnapshotId],
    /// For how long it has been in dedup.
    pub(crate) age: Duration,
}

/// Leaves a sandbox to the next agent.
pub(crate) fn leave_sandbox(host: &Host, resting: &Resting<'_>) -> io::Result<()> {
    let Resting { sandbox, revision, stored, record, stored_bytes, bases, age } = *resting;
    let head = ImageHead {
        image_bytes: stored.image.len() as u64,
        // They stay where they are, and are packed when it comes to it.
        file_bytes: 0,
        places: stored.origin.places.values().cloned().collect(),
        aligned_with: stored.origin.aligned_with,
        pages: record.pages,
        requests: record.requests,
        starts_from_dedup: record.starts_from_dedup,
        monotonic: monotonic().saturating_sub(age),
    };
    let record = SandboxRecord {
        function: Some(wire::Function { toml: stored.spec.to_toml(), revision }),
        head: Some(head.into()),
        bases: bases.iter().map(|base| base.get()).collect(),
        stored_bytes,
    };
    let record = MemoryFile::sealed("medes-record", &record.encode_to_vec())?;
    host.leave(Key::Sandbox(sandbox.get()), &[record.file().as_fd(), stored.image.file().as_fd()]);
    Ok(())
}

/// Leaves a base snapshot to the next agent.
pub(crate) fn leave_base(host: &Host, snapshot: &Snapshot) -> io::Result<()> {
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
    let record = MemoryFile::sealed("medes-record", &wire::SnapshotLayout::from(layout).encode_to_vec())?;
    host.leave(Key::Base(snapshot.id.get()), &[record.file().as_fd(), snapshot.file().as_fd()]);
    Ok(())
}

/// Something that was left, as this agent has it.
#[derive(Debug)]
pub(crate) enum TakenIn {
    Base(Arc<Snapshot>),
    Sandbox(Box<TakenInSandbox>),
}

/// A sandbox in dedup that an agent before left.
#[derive(Debug)]
pub(crate) struct TakenInSandbox {
    pub(crate) sandbox: SandboxId,
    pub(crate) revision: u64,
    pub(crate) stored: Stored,
    pub(crate) taken: Taken,
    /// For how long it has been in dedup.
    pub(crate) age: Duration,
}

/// Takes in what an agent before left. What fails is lost: it is as if it had ended with that agent.
pub(crate) async fn take_in(
    host: &Host,
    node: &medes_proto::ids::NodeId,
    left: Left,
) -> Result<TakenIn, TakeInError> {
    let Left { key, files } = left;
    let mut files = files.into_iter();
    let mut next = || files.next().ok_or_else(|| TakeInError::Memory(io::ErrorKind::UnexpectedEof.into()));
    let (record, memory) = (received(next()?)?, received(next()?)?);
    match key {
        Key::Base(number) => base(number, &record, memory).map(TakenIn::Base),
        Key::Sandbox(number) => {
            let files = received(next()?)?;
            let taken = take_in_sandbox((host, node), number, (&record, memory, files)).await?;
            Ok(TakenIn::Sandbox(Box::new(taken)))
        }
    }
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

async fn take_in_sandbox(
    (host, node): (&Host, &medes_proto::ids::NodeId),
    number: u64,
    (record, image, files): (&MappedFile, MappedFile, MappedFile),
) -> Result<TakenInSandbox, TakeInError> {
    let sandbox = SandboxId::new(number).ok_or(TakeInError::Unlike("it has no number"))?;
    let SandboxRecord { function, head, bases, stored_bytes } = SandboxRecord::decode(record.as_ref())?;
    let wire::Function { toml, revision } = function.ok_or(WireError::missing("record.function"))?;
    let spec = FunctionSpec::from_toml(&toml).map_err(|_why| TakeInError::Unlike("its function is none"))?;
    let head = ImageHead::try_from(head.ok_or(WireError::missing("record.head"))?)?;
    if head.image_bytes != image.len() as u64 {
        return Err(TakeInError::Unlike("its image has another length"));
    }
    let bases: Option<Vec<_>> = bases.into_iter().map(SnapshotId::new).collect();
    let id = sandbox::SandboxId::new(sandbox.to_string()).map_err(CreateError::Spec)?;
    let housing = sandbox::Housing::create(host, &id, &launch_spec(&spec, sandbox, node)).await?;
    let folder = housing.private_dir().to_owned();
    if let Err(error) = blocking(move || private_files::unpack(files.as_ref(), &folder)).await {
        if let Err(error) = housing.remove().await {
            tracing::error!(%sandbox, error = &error as &dyn std::error::Error, "something of a sandbox stays behind");
        }
        return Err(TakeInError::Files(error));
    }
    let places = head.places.into_iter().map(|place| (place.snapshot, place)).collect::<BTreeMap<_, _>>();
    let origin = Origin { places, files: Vec::new(), aligned_with: head.aligned_with };
    let taken = Taken {
        stored_bytes,
        bases: bases.ok_or(TakeInError::Unlike("a base has no number"))?,
        pages: head.pages,
        requests: head.requests,
        starts_from_dedup: head.starts_from_dedup,
        phases: Vec::new(),
    };
    let age = monotonic().saturating_sub(head.monotonic);
    let stored =
        Stored { spec: Arc::new(spec), housing, image, origin, tracked: None, learnt: Learnt::default() };
    Ok(TakenInSandbox { sandbox, revision, stored, taken, age })
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
