//! A sandbox in dedup on its way from one node to another: the node that has it says what it is, then sends its bytes,
//! then gives it up.

use std::time::Duration;

use bytes::Bytes;
use medes_dedup::key::{Challenge, Salt};

use crate::{
    WireError,
    ids::{NodeId, SandboxId, SnapshotId, snapshot_from_wire},
    limits::{IMAGE_BASES_MAX, MOVED_FILES_BYTES_MAX},
    registry::SnapshotPlace,
    sandbox::PageClasses,
    wire::{self, image_part::Part},
};

/// A sandbox that a node has been told to offer to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedSandbox {
    /// Which.
    pub sandbox: SandboxId,
    /// The node that may have it, and asks.
    pub to: NodeId,
}

/// A node asks for what is offered to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// What, and who asks.
    pub offered: OfferedSandbox,
    /// Goes into the key of the answer.
    pub challenge: Challenge,
}

/// A part of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePart {
    /// Goes into its key. Comes first.
    Salt(Salt),
    /// Bytes that only the node that asked can read.
    Encrypted(EncryptedPart),
}

/// The head, then the image, then the private files, piece by piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncryptedPart {
    /// Ciphertext and tag.
    pub bytes: Bytes,
    /// Whether nothing follows.
    pub last: bool,
}

/// What a sandbox in dedup is besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHead {
    /// Length of the dedup image.
    pub image_bytes: u64,
    /// Length of its private files, packed; they follow the image.
    pub file_bytes: u64,
    /// Where its bases are, as far as the sending node knows.
    pub places: Vec<SnapshotPlace>,
    /// The base that it was aligned with.
    pub aligned_with: Option<SnapshotId>,
    /// What became of its pages.
    pub pages: PageClasses,
    /// Requests it has answered.
    pub requests: u64,
    /// How often it came back from dedup.
    pub starts_from_dedup: u64,
    /// CLOCK_MONOTONIC of the sending node, just now.
    pub monotonic: Duration,
}

impl From<OfferedSandbox> for wire::OfferedSandbox {
    fn from(offered: OfferedSandbox) -> Self {
        Self { sandbox: offered.sandbox.get(), to: offered.to.into() }
    }
}

impl TryFrom<wire::OfferedSandbox> for OfferedSandbox {
    type Error = WireError;

    fn try_from(raw: wire::OfferedSandbox) -> Result<Self, WireError> {
        let wire::OfferedSandbox { sandbox, to } = raw;
        Ok(Self {
            sandbox: SandboxId::from_wire(sandbox, "offered.sandbox")?,
            to: to.parse().map_err(|_name| WireError::invalid("offered.to", "not a node name"))?,
        })
    }
}

impl From<ImageRequest> for wire::ReadImageRequest {
    fn from(request: ImageRequest) -> Self {
        let ImageRequest { offered, challenge } = request;
        Self { offered: Some(offered.into()), challenge: challenge.0.to_vec().into() }
    }
}

impl TryFrom<wire::ReadImageRequest> for ImageRequest {
    type Error = WireError;

    fn try_from(raw: wire::ReadImageRequest) -> Result<Self, WireError> {
        let wire::ReadImageRequest { offered, challenge } = raw;
        let offered = offered.ok_or(WireError::missing("image.offered"))?.try_into()?;
        Ok(Self { offered, challenge: Challenge(random(&challenge, "image.challenge")?) })
    }
}

impl From<ImagePart> for wire::ImagePart {
    fn from(part: ImagePart) -> Self {
        let part = match part {
            ImagePart::Salt(salt) => Part::Salt(salt.0.to_vec().into()),
            ImagePart::Encrypted(EncryptedPart { bytes, last }) => {
                Part::Encrypted(wire::EncryptedPart { bytes, last })
            }
        };
        Self { part: Some(part) }
    }
}

impl TryFrom<wire::ImagePart> for ImagePart {
    type Error = WireError;

    fn try_from(raw: wire::ImagePart) -> Result<Self, WireError> {
        Ok(match raw.part.ok_or(WireError::missing("image.part"))? {
            Part::Salt(salt) => Self::Salt(Salt(random(&salt, "image.salt")?)),
            Part::Encrypted(wire::EncryptedPart { bytes, last }) => {
                Self::Encrypted(EncryptedPart { bytes, last })
            }
        })
    }
}

/// What somebody has drawn.
fn random(raw: &[u8], field: &'static str) -> Result<[u8; 32], WireError> {
    raw.try_into().map_err(|_length| WireError::invalid(field, "not 32 bytes"))
}

impl From<ImageHead> for wire::ImageHead {
    fn from(head: ImageHead) -> Self {
        Self {
            image_bytes: head.image_bytes,
            file_bytes: head.file_bytes,
            places: head.places.into_iter().map(Into::into).collect(),
            aligned_with: head.aligned_with.map_or(0, SnapshotId::get),
            pages: Some(head.pages.into()),
            requests: head.requests,
            starts_from_dedup: head.starts_from_dedup,
            monotonic_ns: u64::try_from(head.monotonic.as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<wire::ImageHead> for ImageHead {
    type Error = WireError;

    fn try_from(raw: wire::ImageHead) -> Result<Self, WireError> {
        if raw.file_bytes > MOVED_FILES_BYTES_MAX {
            return Err(WireError::invalid("head.file_bytes", "too many"));
        }
        if raw.places.len() > IMAGE_BASES_MAX {
            return Err(WireError::invalid("head.places", "too many"));
        }
        let aligned_with = match raw.aligned_with {
            0 => None,
            snapshot => Some(snapshot_from_wire(snapshot, "head.aligned_with")?),
        };
        Ok(Self {
            image_bytes: raw.image_bytes,
            file_bytes: raw.file_bytes,
            places: raw.places.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            aligned_with,
            pages: raw.pages.ok_or(WireError::missing("head.pages"))?.into(),
            requests: raw.requests,
            starts_from_dedup: raw.starts_from_dedup,
            monotonic: Duration::from_nanos(raw.monotonic_ns),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> ImageHead {
        let snapshot = SnapshotId::new(7).unwrap();
        ImageHead {
            image_bytes: 5000,
            file_bytes: 512,
            places: vec![SnapshotPlace { snapshot, node: "n1".parse().unwrap(), address: "n1:1".into() }],
            aligned_with: Some(snapshot),
            pages: PageClasses { zero: 1, same: 2, ..PageClasses::default() },
            requests: 4,
            starts_from_dedup: 1,
            monotonic: Duration::from_nanos(12_345_678_901),
        }
    }

    #[test]
    fn it_comes_as_it_was_sent() {
        assert_eq!(ImageHead::try_from(wire::ImageHead::from(head())), Ok(head()));
        let without = ImageHead { aligned_with: None, places: Vec::new(), ..head() };
        assert_eq!(ImageHead::try_from(wire::ImageHead::from(without.clone())), Ok(without));
        let offered = OfferedSandbox { sandbox: SandboxId::new(9).unwrap(), to: "n2".parse().unwrap() };
        assert_eq!(
            OfferedSandbox::try_from(wire::OfferedSandbox::from(offered.clone())),
            Ok(offered.clone())
        );
        let request = ImageRequest { offered, challenge: Challenge([7; 32]) };
        assert_eq!(ImageRequest::try_from(wire::ReadImageRequest::from(request.clone())), Ok(request));
        let encrypted = EncryptedPart { bytes: vec![1, 2].into(), last: true };
        for part in [ImagePart::Salt(Salt([1; 32])), ImagePart::Encrypted(encrypted)] {
            assert_eq!(ImagePart::try_from(wire::ImagePart::from(part.clone())), Ok(part));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let broken = |change: fn(&mut wire::ImageHead)| {
            let mut raw = wire::ImageHead::from(head());
            change(&mut raw);
            ImageHead::try_from(raw).unwrap_err().field
        };
        assert_eq!(broken(|raw| raw.file_bytes = MOVED_FILES_BYTES_MAX + 1), "head.file_bytes");
        assert_eq!(broken(|raw| raw.pages = None), "head.pages");
        let places =
            |raw: &mut wire::ImageHead| raw.places = vec![raw.places[0].clone(); IMAGE_BASES_MAX + 1];
        assert_eq!(broken(places), "head.places");
        for raw in [(0, "n1"), (1, "")] {
            let raw = wire::OfferedSandbox { sandbox: raw.0, to: raw.1.into() };
            assert!(OfferedSandbox::try_from(raw).is_err());
        }
        let part = |part| ImagePart::try_from(wire::ImagePart { part }).unwrap_err().field;
        assert_eq!(part(None), "image.part");
        assert_eq!(part(Some(Part::Salt(vec![0; 31].into()))), "image.salt");
        let offered = Some(wire::OfferedSandbox { sandbox: 1, to: "n1".into() });
        let request = |offered, bytes: usize| {
            let challenge = vec![0; bytes].into();
            ImageRequest::try_from(wire::ReadImageRequest { offered, challenge }).unwrap_err().field
        };
        assert_eq!(request(offered, 33), "image.challenge");
        assert_eq!(request(None, 32), "image.offered");
    }
}
