//! Only what was sent opens, in its order, up to its end, and only where it was meant to go.

use medes_proto::{ids::SandboxId, moving::OfferedSandbox};
use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;

fn key(tenant: &str) -> DomainKey {
    DomainKey::from_bytes([7; 32]).for_tenant(tenant)
}

fn function(name: &str) -> FunctionName {
    name.parse().unwrap()
}

fn request(sandbox: u64, to: &str, challenge: u8) -> ImageRequest {
    let offered = OfferedSandbox { sandbox: SandboxId::new(sandbox).unwrap(), to: to.parse().unwrap() };
    ImageRequest { offered, challenge: Challenge([challenge; 32]) }
}

type Sent = (Salt, Vec<EncryptedPart>);

/// Sent to node `n2`, which asked for sandbox 7.
fn sent(pieces: &[Vec<u8>]) -> Sent {
    let (mut encryptor, salt) = Encryptor::new(&key("a"), &function("f"), &request(7, "n2", 1)).unwrap();
    let last = pieces.len() - 1;
    let parts = pieces.iter().enumerate().map(|(at, piece)| encryptor.encrypt(piece, at == last).unwrap());
    (salt, parts.collect())
}

/// What comes out until something is wrong, and what that is.
fn read(mut decryptor: Decryptor, parts: Vec<EncryptedPart>) -> (Vec<Bytes>, Result<(), DecryptError>) {
    let mut plain = Vec::new();
    for part in parts {
        match decryptor.decrypt(part) {
            Ok(bytes) => plain.push(bytes),
            Err(error) => return (plain, Err(error)),
        }
    }
    let end = decryptor.finish();
    (plain, end)
}

fn received((salt, parts): Sent) -> (Vec<Bytes>, Result<(), DecryptError>) {
    read(Decryptor::new(&key("a"), &function("f"), &salt, &request(7, "n2", 1)).unwrap(), parts)
}

fn three() -> Vec<Vec<u8>> {
    vec![b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]
}

#[test]
fn what_was_sent_comes_out_and_nothing_of_it_shows() {
    let secret = b"the number of the card is 4711".to_vec();
    let (salt, parts) = sent(&[secret.clone(), Vec::new(), vec![0; 70_000]]);
    for part in &parts {
        assert!(!part.bytes.windows(8).any(|bytes| bytes == &secret[..8] || bytes == [0; 8]));
    }
    let (plain, end) = received((salt, parts));
    assert_eq!((end, &plain[0][..], plain[1].len(), plain[2].len()), (Ok(()), &secret[..], 0, 70_000));
}

#[test]
fn the_same_bytes_never_look_the_same() {
    let (first, second) = (sent(&[b"same".to_vec(), b"same".to_vec()]), sent(&[b"same".to_vec()]));
    assert_ne!(first.1[0].bytes, first.1[1].bytes);
    assert_ne!(first.0, second.0);
    assert_ne!(first.1[0].bytes, second.1[0].bytes);
}

#[test]
fn whoever_it_was_not_meant_for_reads_nothing() {
    let reads = |tenant: &str, name: &str, request: &ImageRequest| {
        let (salt, parts) = sent(&three());
        read(Decryptor::new(&key(tenant), &function(name), &salt, request).unwrap(), parts)
    };
    assert_eq!(reads("a", "f", &request(7, "n2", 1)).1, Ok(()));
    let forged = (Vec::new(), Err(DecryptError::Forged { position: 0 }));
    assert_eq!(reads("b", "f", &request(7, "n2", 1)), forged, "another tenant");
    assert_eq!(reads("a", "g", &request(7, "n2", 1)), forged, "another function");
    assert_eq!(reads("a", "f", &request(8, "n2", 1)), forged, "another sandbox");
    assert_eq!(reads("a", "f", &request(7, "n3", 1)), forged, "another node");
    assert_eq!(reads("a", "f", &request(7, "n2", 2)), forged, "what was recorded answers no later question");
}

#[test]
fn parts_of_two_answers_do_not_mix() {
    let (mut one, other) = (sent(&three()), sent(&three()));
    one.1[1] = other.1[1].clone();
    assert_eq!(received(one).1, Err(DecryptError::Forged { position: 1 }));
}

#[test]
fn the_end_is_the_end() {
    let changed = |change: fn(&mut Vec<EncryptedPart>)| {
        let (salt, mut parts) = sent(&three());
        change(&mut parts);
        received((salt, parts)).1
    };
    assert_eq!(changed(|parts| parts.truncate(2)), Err(DecryptError::Truncated { parts: 2 }));
    assert_eq!(changed(Vec::clear), Err(DecryptError::Truncated { parts: 0 }));
    assert_eq!(changed(|parts| parts.push(parts[2].clone())), Err(DecryptError::AfterLast));
    let cut_short = |parts: &mut Vec<EncryptedPart>| {
        parts.truncate(2);
        parts[1].last = true;
    };
    assert_eq!(changed(cut_short), Err(DecryptError::Forged { position: 1 }));
    assert_eq!(changed(|parts| parts[2].last = false), Err(DecryptError::Forged { position: 2 }));
}

proptest! {
    /// Whatever somebody between makes of it: what comes out is a beginning of what was sent, and all of it only where nothing was changed.
    #[test]
    fn nothing_else_than_what_was_sent_comes_out(
        pieces in vec(vec(any::<u8>(), 0..60), 1..6),
        (kind, from, to) in (0..5_u8, any::<Index>(), any::<Index>()),
        (at, bit) in (any::<Index>(), 0..8_u8),
    ) {
        let (salt, mut parts) = sent(&pieces);
        let before = parts.clone();
        let (from, to) = (from.index(parts.len()), to.index(parts.len()));
        match kind {
            0 => parts.swap(from, to),
            1 => drop(parts.remove(from)),
            2 => parts.insert(to, parts[from].clone()),
            3 => {
                let mut bytes = parts[from].bytes.to_vec();
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
                parts[from].bytes = bytes.into();
            }
            _ => parts[from].bytes.truncate(to),
        }
        let same = parts == before;
        let (plain, end) = received((salt, parts));
        prop_assert!(plain.iter().zip(&pieces).all(|(out, sent)| out[..] == sent[..]));
        prop_assert_eq!(end.is_ok(), same);
    }
}
