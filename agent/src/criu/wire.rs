//! CRIU's RPC messages and image entries as prost generates them from `proto/criu`. Nothing outside this folder sees them.

/// Messages of `criu swrk`.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub(crate) mod rpc {
    include!(concat!(env!("OUT_DIR"), "/criu.rpc.rs"));
}

/// Entries of image files.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub(crate) mod images {
    include!(concat!(env!("OUT_DIR"), "/criu.images.rs"));
}
