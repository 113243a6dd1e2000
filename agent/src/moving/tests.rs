//! What is sent arrives, and nothing else is taken for it.

use futures::StreamExt;
use medes_dedup::key::Challenge;
use medes_proto::{limits::IMAGE_PART_BYTES_MAX, moving::EncryptedPart, sandbox::PageClasses};

use super::{encryption::Encryptor, send::Packed, *};

const MEMORY_BYTES: u64 = 64 << 20;

fn key() -> DomainKey {
    DomainKey::from_bytes([7; 32])
}

fn spec(memory_bytes: u64) -> FunctionSpec {
    let mut spec = FunctionSpec::from_toml("name = 'f'\ncommand = ['x']\ndir = '/'\n").unwrap();
    spec.memory_bytes = memory_bytes;
    spec
}

fn request() -> ImageRequest {
    let offered = OfferedSandbox { sandbox: SandboxId::new(7).unwrap(), to: "n2".parse().unwrap() };
    ImageRequest { offered, challenge: Challenge([1; 32]) }
}

fn packed(image: &[u8], files: &[u8]) -> Packed {
    let head = ImageHead {
        image_bytes: image.len() as u64,
        file_bytes: files.len() as u64,
        places: Vec::new(),
        aligned_with: None,
        pages: PageClasses { zero: 3, ..PageClasses::default() },
        requests: 2,
        starts_from_dedup: 1,
        monotonic: monotonic(),
    };
    let image = MemoryFile::sealed("test", image).unwrap();
    Packed { head, image, files: files.to_vec().into(), function: "f".parse().unwrap(), key: key() }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

async fn sent(packed: Packed) -> Vec<wire::ImagePart> {
    packed.parts(&request()).unwrap().map(Result::unwrap).collect().await
}

/// Sent by somebody who has the key and cuts what he likes where he likes.
fn cut(packed: Packed, pieces: &[&[u8]]) -> Vec<wire::ImagePart> {
    let (mut encryptor, salt) = Encryptor::new(&key(), &packed.function, &request()).unwrap();
    let head = wire::ImageHead::from(packed.head).encode_to_vec();
    let all: Vec<&[u8]> = [&[&head[..]], pieces].concat();
    let encrypted = all
        .iter()
        .enumerate()
        .map(|(at, piece)| ImagePart::Encrypted(encryptor.encrypt(piece, at + 1 == all.len()).unwrap()));
    [ImagePart::Salt(salt)].into_iter().chain(encrypted).map(Into::into).collect()
}

async fn received(parts: Vec<wire::ImagePart>) -> Result<Arrived, TakeError> {
    let parts = futures::stream::iter(parts).map(Ok);
    receive(parts, (&key(), &spec(MEMORY_BYTES)), &request()).await
}

#[tokio::test]
async fn what_is_sent_arrives() {
    let large = IMAGE_PART_BYTES_MAX * 2 + 17;
    for (image, files) in [(1, 0), (0, 5), (4096, 100), (IMAGE_PART_BYTES_MAX, large), (large, 1), (0, 0)] {
        let (image, files) = (bytes(image), bytes(files));
        let arrived = received(sent(packed(&image, &files)).await).await.unwrap();
        assert_eq!((arrived.image.as_ref(), &arrived.files), (&image[..], &files));
        assert_eq!((arrived.head.requests, arrived.head.pages.zero), (2, 3));
    }
}

#[tokio::test]
async fn parts_may_be_cut_anywhere() {
    let whole = [bytes(5000), bytes(3000)].concat();
    let pieces: Vec<&[u8]> = whole.chunks(777).collect();
    let arrived = received(cut(packed(&bytes(5000), &bytes(3000)), &pieces)).await.unwrap();
    assert_eq!((arrived.image.as_ref().len(), arrived.files.len()), (5000, 3000));
}

#[tokio::test]
async fn what_somebody_between_makes_of_it_is_refused() {
    let parts = || sent(packed(&bytes(5000), &bytes(3000)));
    let changed = async |change: fn(&mut Vec<wire::ImagePart>)| {
        let mut parts = parts().await;
        change(&mut parts);
        received(parts).await.err().expect("refused")
    };
    use wire::image_part::Part;
    let forged = |error: &TakeError| match error {
        TakeError::Decrypt(DecryptError::Forged { position }) => Some(*position),
        _ => None,
    };
    let flipped = changed(|parts| {
        let Some(Part::Encrypted(part)) = &mut parts[2].part else { panic!("bytes") };
        let mut other = part.bytes.to_vec();
        other[17] ^= 1;
        part.bytes = other.into();
    });
    let flipped = flipped.await;
    assert_eq!(forged(&flipped), Some(1));
    assert_eq!(flipped.failure(SandboxId::new(1).unwrap()).kind, FailureKind::Corrupt);
    let cut_off = changed(|parts| parts.truncate(3)).await;
    assert!(matches!(cut_off, TakeError::Decrypt(DecryptError::Truncated { parts: 2 })), "{cut_off:?}");
    assert_eq!(forged(&changed(|parts| parts.swap(2, 3)).await), Some(1));
    assert_eq!(forged(&changed(|parts| parts.insert(2, parts[2].clone())).await), Some(2));
    assert_eq!(forged(&changed(|parts| drop(parts.remove(1))).await), Some(0));
    let salt = ImagePart::Salt(medes_dedup::key::Salt([0; 32]));
    let mut resalted = parts().await;
    resalted[0] = salt.clone().into();
    assert_eq!(forged(&received(resalted).await.err().expect("refused")), Some(0));
    assert!(matches!(changed(|parts| drop(parts.remove(0))).await, TakeError::Length(_)));
    assert!(matches!(changed(Vec::clear).await, TakeError::Length(_)));
    assert!(matches!(changed(|parts| parts[1].part = None).await, TakeError::Wire(_)));
    let mut twice = parts().await;
    twice.insert(1, salt.into());
    assert!(matches!(received(twice).await, Err(TakeError::Length(_))));
    let broken = futures::stream::iter(parts().await.into_iter().take(1).map(Ok))
        .chain(futures::stream::iter([Err(tonic::Status::not_found("gone"))]));
    let broken = receive(broken, (&key(), &spec(MEMORY_BYTES)), &request()).await;
    assert!(matches!(broken, Err(TakeError::Broken(_))));
}

#[tokio::test]
async fn a_node_that_says_one_thing_and_sends_another_is_refused() {
    let (image, files) = (bytes(5000), bytes(3000));
    let refused = async |pieces: &[&[u8]]| {
        received(cut(packed(&bytes(5000), &bytes(3000)), pieces)).await.err().expect("refused")
    };
    for pieces in
        [&[&image[..]] as &[&[u8]], &[&image, &files[1..]], &[&image, &files, &files], &[&image, &[], &files]]
    {
        let error = refused(pieces).await;
        let known =
            matches!(error, TakeError::Length(_) | TakeError::Decrypt(DecryptError::Truncated { .. }));
        assert!(known, "{error:?}");
    }
    let parts = futures::stream::iter(sent(packed(&image, &files)).await).map(Ok);
    let mut small = packed(&image, &files);
    small.head.image_bytes = MEMORY_BYTES + IMAGE_SLACK_BYTES + 1;
    assert!(
        matches!(received(cut(small, &[&image])).await, Err(TakeError::Length(_))),
        "more than it can have"
    );
    let stranger = DomainKey::from_bytes([8; 32]);
    let error = receive(parts, (&stranger, &spec(MEMORY_BYTES)), &request()).await.err().expect("refused");
    assert!(matches!(error, TakeError::Decrypt(DecryptError::Forged { position: 0 })), "{error:?}");
    let nonsense = EncryptedPart { bytes: Default::default(), last: true };
    let parts =
        vec![ImagePart::Salt(medes_dedup::key::Salt([0; 32])).into(), ImagePart::Encrypted(nonsense).into()];
    assert!(matches!(received(parts).await, Err(TakeError::Decrypt(_))), "less than a tag");
}

#[tokio::test]
async fn a_node_that_started_later_takes_it() {
    let mut packed = packed(&bytes(10), &[]);
    packed.head.monotonic += Duration::from_secs(3600);
    assert_eq!(received(sent(packed).await).await.is_ok(), has_time_namespaces());
}

#[test]
fn nobody_sees_time_go_back() {
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    assert_eq!(behind(hours(3), hours(1), true), None, "it has a clock of its own");
    assert_eq!(behind(hours(1), hours(3), false), None);
    let behind = behind(hours(3), hours(1), false).expect("the kernel gives it the node's clock");
    assert_eq!(behind, hours(2));
    let failure = TakeError::Clock { behind }.failure(SandboxId::new(1).unwrap());
    assert_eq!(failure.kind, FailureKind::Unsupported);
}
