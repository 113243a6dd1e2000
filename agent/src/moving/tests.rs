//! What is sent arrives, and nothing else is taken for it.

use futures::StreamExt;
use medes_proto::{limits::IMAGE_PART_BYTES_MAX, sandbox::PageClasses};

use super::{send::Packed, *};

fn packed(image: &[u8], files: &[u8]) -> Packed {
    let mut hasher = blake3::Hasher::new();
    hasher.update(image).update(files);
    let head = ImageHead {
        image_bytes: image.len() as u64,
        file_bytes: files.len() as u64,
        hash: *hasher.finalize().as_bytes(),
        places: Vec::new(),
        aligned_with: None,
        pages: PageClasses { zero: 3, ..PageClasses::default() },
        requests: 2,
        starts_from_dedup: 1,
        monotonic: monotonic(),
    };
    let image = MemoryFile::sealed("test", image).unwrap();
    Packed { head, image, files: files.to_vec().into() }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

async fn sent(packed: Packed) -> Vec<wire::ImagePart> {
    packed.parts().collect().await
}

async fn received(parts: Vec<wire::ImagePart>, image_bytes_max: u64) -> Result<Arrived, TakeError> {
    receive(futures::stream::iter(parts).map(Ok), image_bytes_max).await
}

#[tokio::test]
async fn what_is_sent_arrives() {
    let large = IMAGE_PART_BYTES_MAX * 2 + 17;
    for (image, files) in [(1, 0), (0, 5), (4096, 100), (IMAGE_PART_BYTES_MAX, large), (large, 1)] {
        let (image, files) = (bytes(image), bytes(files));
        let arrived = received(sent(packed(&image, &files)).await, 1 << 30).await.unwrap();
        assert_eq!((arrived.image.as_ref(), &arrived.files), (&image[..], &files));
        assert_eq!((arrived.head.requests, arrived.head.pages.zero), (2, 3));
    }
}

#[tokio::test]
async fn parts_may_be_cut_anywhere() {
    let mut parts = sent(packed(&bytes(5000), &bytes(3000))).await;
    let whole = [bytes(5000), bytes(3000)].concat();
    parts.truncate(1);
    let part =
        |bytes: &[u8]| wire::ImagePart { part: Some(wire::image_part::Part::Bytes(bytes.to_vec().into())) };
    parts.extend(whole.chunks(777).map(part));
    let arrived = received(parts, 1 << 30).await.unwrap();
    assert_eq!((arrived.image.as_ref().len(), arrived.files.len()), (5000, 3000));
}

#[tokio::test]
async fn anything_else_than_promised_is_refused() {
    let parts = || sent(packed(&bytes(5000), &bytes(3000)));
    let changed = async |change: fn(&mut Vec<wire::ImagePart>)| {
        let mut parts = parts().await;
        change(&mut parts);
        received(parts, 1 << 30).await.err().expect("refused")
    };
    use wire::image_part::Part;
    let flipped = changed(|parts| {
        let Some(Part::Bytes(bytes)) = &mut parts[1].part else { panic!("bytes") };
        let mut other = bytes.to_vec();
        other[17] ^= 1;
        *bytes = other.into();
    });
    assert!(matches!(flipped.await, TakeError::Hash));
    assert!(matches!(changed(|parts| parts.truncate(2)).await, TakeError::Length(_)));
    assert!(matches!(changed(|parts| drop(parts.remove(0))).await, TakeError::Length(_)));
    assert!(matches!(changed(Vec::clear).await, TakeError::Length(_)));
    let twice = changed(|parts| parts.insert(1, parts[1].clone()));
    assert!(matches!(twice.await, TakeError::Length(_)));
    let empty = changed(|parts| parts[1].part = Some(Part::Bytes(Default::default())));
    assert!(matches!(empty.await, TakeError::Length(_)));
    assert!(matches!(changed(|parts| parts[1].part = None).await, TakeError::Wire(_)));
    let large = received(parts().await, 4999).await;
    assert!(matches!(large, Err(TakeError::Length(_))));
    let broken = futures::stream::iter(parts().await.into_iter().take(1).map(Ok))
        .chain(futures::stream::iter([Err(tonic::Status::not_found("gone"))]));
    assert!(matches!(receive(broken, 1 << 30).await, Err(TakeError::Broken(_))));
}

#[tokio::test]
async fn a_node_that_started_later_takes_it() {
    let mut packed = packed(&bytes(10), &[]);
    packed.head.monotonic += Duration::from_secs(3600);
    assert_eq!(received(sent(packed).await, 1 << 30).await.is_ok(), has_time_namespaces());
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
