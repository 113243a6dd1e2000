//! A sandbox in dedup goes to another node: read over the real service, given up there, restored here.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use futures::{StreamExt, stream::BoxStream};
use medes_agent::{
    moving::{
        self, NotTaken,
        send::{Parcel, Record},
    },
    roads::Stored,
};
use medes_dedup::key::DomainKey;
use medes_proto::{
    failure::FailureKind,
    function::FunctionSpec,
    ids::{NodeId, SandboxId},
    moving::ImageRequest,
    wire::{
        AccountRequest, ForgetTenantReply, ForgetTenantRequest, GiveUpReply, HeatReply, HeatRequest,
        ImagePart, InvokeReply, InvokeRequest, LogsReply, LogsRequest, NodeAccount, OfferedSandbox,
        PageAccessReply, PageAccessRequest, ReadImageRequest, ReadLayoutRequest, SnapshotLayout,
        node_server::{Node, NodeServer},
    },
};
use prost::Message;
use tokio::{net::TcpListener, sync::Mutex};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use crate::{
    node,
    runner::Test,
    station::{Station, at_station, bytes, run, shows, value},
};

pub(crate) const TESTS: &[Test] = &[
    ("a_moved_sandbox_is_what_it_was", a_moved_sandbox_is_what_it_was),
    ("what_does_not_arrive_stays_where_it_was", what_does_not_arrive_stays_where_it_was),
    ("an_answer_that_is_lost_is_asked_for_again", an_answer_that_is_lost_is_asked_for_again),
    ("nothing_of_it_shows_on_the_way", nothing_of_it_shows_on_the_way),
];

const SCRATCH: u64 = 512 << 20;

/// What is wrong with the node that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// Its bytes stop in the middle.
    BreaksOff,
    /// One bit of them is another.
    FlippedBit,
    /// It does not give it up.
    Keeps,
    /// It gives it up, and its first answer is lost.
    FirstAnswerLost,
}

/// The node that has a sandbox.
struct Sender {
    has: Arc<Mutex<Option<Stored>>>,
    trouble: Trouble,
    asked: AtomicU32,
    /// Its tenant's.
    key: DomainKey,
    /// All that left this node, as it is on the wire.
    wire: Arc<Mutex<Vec<u8>>>,
}

/// What is left of a sandbox that is served, where, and what was sent of it.
struct Served {
    address: String,
    has: Arc<Mutex<Option<Stored>>>,
    wire: Arc<Mutex<Vec<u8>>>,
}

/// Serves a sandbox.
async fn serve(station: &Station, stored: Stored, trouble: Trouble) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = listener.local_addr().expect("address").to_string();
    let key = station.roads.keys.get(&stored.spec.tenant).expect("a key");
    let (has, wire) = (Arc::new(Mutex::new(Some(stored))), Arc::default());
    let served = Served { address, has: Arc::clone(&has), wire: Arc::clone(&wire) };
    let sender = Sender { has, trouble, asked: AtomicU32::new(0), key, wire };
    let server = tonic::transport::Server::builder().add_service(NodeServer::new(sender));
    TaskTracker::new().spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    served
}

#[tonic::async_trait]
impl Node for Sender {
    type ReadImageStream = BoxStream<'static, Result<ImagePart, Status>>;

    async fn read_image(
        &self,
        request: Request<ReadImageRequest>,
    ) -> Result<Response<Self::ReadImageStream>, Status> {
        let request = ImageRequest::try_from(request.into_inner())?;
        let record = Record { requests: 5, starts_from_dedup: 2, ..Record::default() };
        let has = self.has.lock().await;
        let parcel = Parcel::of(has.as_ref().expect("asked while it is there"), record, self.key.clone());
        let parts = parcel.pack().expect("packed").parts(&request).expect("a salt");
        let mut parts: Vec<_> = parts.map(|part| Ok(part.expect("encrypted"))).collect().await;
        let mut wire = self.wire.lock().await;
        parts.iter().flatten().for_each(|part| wire.extend(part.encode_to_vec()));
        match self.trouble {
            Trouble::BreaksOff => {
                parts.truncate(1);
                parts.push(Err(Status::unavailable("this node goes")));
            }
            Trouble::FlippedBit => {
                use medes_proto::wire::image_part::Part;
                let Ok(ImagePart { part: Some(Part::Encrypted(part)) }) = &mut parts[2] else {
                    panic!("bytes")
                };
                let mut other = part.bytes.to_vec();
                other[100] ^= 4;
                part.bytes = other.into();
            }
            Trouble::None | Trouble::Keeps | Trouble::FirstAnswerLost => {}
        }
        Ok(Response::new(futures::stream::iter(parts).boxed()))
    }

    async fn give_up(&self, _: Request<OfferedSandbox>) -> Result<Response<GiveUpReply>, Status> {
        if self.trouble == Trouble::Keeps {
            return Err(Status::failed_precondition("it is not offered any more"));
        }
        let first = self.asked.fetch_add(1, Ordering::SeqCst) == 0;
        if let Some(stored) = self.has.lock().await.take() {
            stored.housing.remove().await.expect("removed");
        }
        match first && self.trouble == Trouble::FirstAnswerLost {
            true => Err(Status::unavailable("the line is cut")),
            false => Ok(Response::new(GiveUpReply {})),
        }
    }

    async fn page_access(&self, _: Request<PageAccessRequest>) -> Result<Response<PageAccessReply>, Status> {
        Err(Status::unimplemented("not this one"))
    }

    async fn read_layout(&self, _: Request<ReadLayoutRequest>) -> Result<Response<SnapshotLayout>, Status> {
        Err(Status::unimplemented("not this one"))
    }

    async fn invoke(&self, _: Request<InvokeRequest>) -> Result<Response<InvokeReply>, Status> {
        Err(Status::unimplemented("not this one"))
    }

    async fn heat(&self, _: Request<HeatRequest>) -> Result<Response<HeatReply>, Status> {
        Err(Status::unimplemented("not this one"))
    }

    async fn forget_tenant(
        &self,
        _: Request<ForgetTenantRequest>,
    ) -> Result<Response<ForgetTenantReply>, Status> {
        Err(Status::unimplemented("not this one"))
    }

    async fn account(&self, _: Request<AccountRequest>) -> Result<Response<NodeAccount>, Status> {
        Err(Status::unimplemented("not this one"))
    }

    async fn logs(&self, _: Request<LogsRequest>) -> Result<Response<LogsReply>, Status> {
        Err(Status::unimplemented("not this one"))
    }
}

const SET_UP: &str = "
kept.numbers = [str(i) for i in range(100000)]
kept.file = open('/tmp/kept', 'w+'); kept.file.write('kept'); kept.file.flush()
os.makedirs('/dev/shm/deep'); open('/dev/shm/deep/data', 'w').write('x' * 5000)
kept.child = os.fork()
if kept.child == 0:
    while True: time.sleep(3600)
print('before', flush=True)
";

/// A sandbox with state of every kind, in dedup, with what its memory was.
async fn put_away(station: &mut Station) -> (Stored, [u8; 32]) {
    let base = station.base().await;
    let (id, warm) = station.start().await;
    run(&warm, SET_UP).await;
    let (stored, deduped) = station.dedup(id, warm).await.expect("deduplicated");
    assert!(deduped.bases.contains(&base.id), "it is made of a base");
    (stored, deduped.memory_digest.expect("a digest"))
}

/// On this machine the other node is this one: so it comes with another number.
async fn take(
    station: &mut Station,
    address: &str,
    spec: Arc<FunctionSpec>,
) -> Result<Stored, (Box<NotTaken>, SandboxId)> {
    let (id, from): (SandboxId, NodeId) = (station.id(), "elsewhere".parse().expect("a name"));
    let at = (&station.host, &node::function());
    let taken = moving::take(&station.roads, at, (id, spec), (&from, address)).await;
    let (stored, taken) = taken.map_err(|not| (not, id))?;
    assert_eq!((taken.requests, taken.starts_from_dedup), (5, 2));
    assert!(taken.stored_bytes > 0 && !taken.bases.is_empty());
    Ok(stored)
}

async fn is_as_it_was(station: &Station, stored: Stored, digest: [u8; 32]) {
    let (warm, restored) = station.restore(stored).await.expect("restored");
    assert_eq!(restored.memory_digest, Some(digest), "every byte");
    assert_eq!(value(&warm, "kept.numbers[77777], len(kept.numbers)").await, "('77777', 100000)");
    assert_eq!(value(&warm, "open('/tmp/kept').read()").await, "kept");
    assert_eq!(value(&warm, "len(open('/dev/shm/deep/data').read())").await, "5000");
    assert_eq!(value(&warm, "kept.file.write(' on'), kept.file.flush()").await, "(3, None)");
    assert_eq!(value(&warm, "open('/tmp/kept').read()").await, "kept on", "the file it has open is that one");
    assert_eq!(value(&warm, "os.kill(kept.child, 0)").await, "None", "its child is there as well");
    run(&warm, "print('after', flush=True)").await;
    assert!(warm.housing.log().tail(10).lines.iter().any(|line| line.text == "after"));
    warm.housing.remove().await.expect("removed");
}

fn a_moved_sandbox_is_what_it_was() {
    at_station(SCRATCH, async |mut station: Station| {
        let (stored, digest) = put_away(&mut station).await;
        let spec = stored.spec.clone();
        let served = serve(&station, stored, Trouble::None).await;
        let stored = take(&mut station, &served.address, spec).await.expect("taken");
        assert!(served.has.lock().await.is_none(), "it was given up before it was here");
        is_as_it_was(&station, stored, digest).await;
    });
}

fn what_does_not_arrive_stays_where_it_was() {
    at_station(SCRATCH, async |mut station: Station| {
        let (mut stored, digest) = put_away(&mut station).await;
        for (trouble, kind) in [
            (Trouble::BreaksOff, FailureKind::Internal),
            (Trouble::FlippedBit, FailureKind::Corrupt),
            (Trouble::Keeps, FailureKind::Internal),
        ] {
            let spec = stored.spec.clone();
            let served = serve(&station, stored, trouble).await;
            let (not, id) = take(&mut station, &served.address, spec).await.expect_err("not taken");
            assert_eq!(not.error.failure(id).kind, kind, "{trouble:?}: {:?}", not.error);
            if let Some(ruin) = &not.housing {
                ruin.remove().await.expect("removed");
            }
            stored = served.has.lock().await.take().expect("still there");
        }
        is_as_it_was(&station, stored, digest).await;
    });
}

fn an_answer_that_is_lost_is_asked_for_again() {
    at_station(SCRATCH, async |mut station: Station| {
        let (stored, digest) = put_away(&mut station).await;
        let spec = stored.spec.clone();
        let served = serve(&station, stored, Trouble::FirstAnswerLost).await;
        let stored = take(&mut station, &served.address, spec).await.expect("taken");
        assert!(served.has.lock().await.is_none());
        is_as_it_was(&station, stored, digest).await;
    });
}

/// A canary in memory, of which no compression makes anything smaller, and one in a private file, which is packed as it is.
const CANARIES: &str = "
kept.memory = os.urandom(4096 * 16)
open('/tmp/secret', 'w').write('the canary in the coal mine ' * 200)
";

fn nothing_of_it_shows_on_the_way() {
    at_station(SCRATCH, async |mut station: Station| {
        station.base().await;
        let (id, warm) = station.start().await;
        run(&warm, CANARIES).await;
        let in_memory = bytes(&warm, "kept.memory[30000:30032]").await;
        let in_file = b"the canary in the coal mine";
        let (stored, _) = station.dedup(id, warm).await.expect("deduplicated");
        assert!(shows(stored.image.as_ref(), &in_memory), "the image itself has it as it is");
        let (spec, folder) = (stored.spec.clone(), stored.housing.private_dir().to_owned());
        assert!(shows(&std::fs::read(folder.join("tmp/secret")).expect("there"), in_file));
        let served = serve(&station, stored, Trouble::None).await;
        let stored = take(&mut station, &served.address, spec.clone()).await.expect("taken");
        let wire = served.wire.lock().await;
        assert!(wire.len() > stored.image.as_ref().len(), "all of it was sent");
        for canary in [&in_memory[..], &in_memory[..8], in_file, b"tmp/secret", spec.name.as_str().as_bytes()]
        {
            assert!(!shows(&wire, canary), "{canary:?} shows");
        }
        stored.housing.remove().await.expect("removed");
    });
}
