//! The choices of the paper, as far as it makes them (sections 4.1 to 4.3), for comparison with our own.
//!
//! Five value-sampled chunks; the base page with the most of them, ties to the local node, any number of snapshots and
//! nodes behind an image; one delta per page at the lightest level; a page whose delta is not shorter than a page
//! stays whole, raw. Of our own doing even here, because without them the result would be wrong or meaningless: hashes of
//! every page, zero pages as a flag, pages equal to their base without a delta.

use crate::candidate::CandidateRules;
use crate::delta::{CODED_BYTES_MAX, Level};
use crate::encode::EncodeRules;
use crate::fingerprint::{ChunkCount, Sampling};
use crate::image::BASES_MAX;

/// Five chunks by value.
pub const fn sampling() -> Sampling {
    Sampling::Value { chunks: ChunkCount::constant(5) }
}

/// The best base page by votes, from anywhere. Only the image format bounds the number of snapshots.
pub const fn candidate_rules() -> CandidateRules {
    CandidateRules { snapshots_max: BASES_MAX, remote_nodes_max: usize::MAX, tries_max: 1 }
}

/// One light delta, or the raw page.
pub const fn encode_rules() -> EncodeRules {
    EncodeRules {
        delta_bytes_max: CODED_BYTES_MAX,
        delta_level: Level::FASTEST,
        whole_level: None,
        prefer_whole: None,
    }
}
