//! A sandbox in dedup on its way from one node to another: the node that has it says what it is, then sends its bytes,
//! then gives it up.

use std::time::Duration;

use crate::{
    WireError,
    ids::{NodeId, SandboxId, SnapshotId, snapshot_from_wire},
    limits::{IMAGE_BASES_MAX, MOVED_FILES_BYTES_MAX},
    registry::SnapshotPlace,
    sandbox::PageClasses,
    wire,
};

/// A sandbox that a node has been told to offer to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedSandbox {
    /// Which.
    pub sandbox: SandboxId,
    /// The node that may have it, and asks.
    pub to: NodeId,
}

/// What a sandbox in dedup is besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHead {
    /// Length of the dedup image.
    pub image_bytes: u64,
    /// Length of its private files, packed; they follow the image.
    pub file_bytes: u64,
    /// blake3 of both, one after the other.
    pub hash: [u8; 32],
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

impl From<ImageHead> for wire::ImageHead {
    fn from(head: ImageHead) -> Self {
        Self {
            image_bytes: head.image_bytes,
            file_bytes: head.file_bytes,
            hash: head.hash.to_vec().into(),
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
            hash: raw.hash[..]
                .try_into()
                .map_err(|_length| WireError::invalid("head.hash", "not 32 bytes"))?,
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
            hash: [3; 32],
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
        assert_eq!(OfferedSandbox::try_from(wire::OfferedSandbox::from(offered.clone())), Ok(offered));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let broken = |change: fn(&mut wire::ImageHead)| {
            let mut raw = wire::ImageHead::from(head());
            change(&mut raw);
            ImageHead::try_from(raw).unwrap_err().field
        };
        assert_eq!(broken(|raw| raw.hash = vec![1; 31].into()), "head.hash");
        assert_eq!(broken(|raw| raw.file_bytes = MOVED_FILES_BYTES_MAX + 1), "head.file_bytes");
        assert_eq!(broken(|raw| raw.pages = None), "head.pages");
        let places =
            |raw: &mut wire::ImageHead| raw.places = vec![raw.places[0].clone(); IMAGE_BASES_MAX + 1];
        assert_eq!(broken(places), "head.places");
        for raw in [(0, "n1"), (1, "")] {
            let raw = wire::OfferedSandbox { sandbox: raw.0, to: raw.1.into() };
            assert!(OfferedSandbox::try_from(raw).is_err());
        }
    }
}
