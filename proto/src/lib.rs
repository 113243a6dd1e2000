//! The wire.
/// Generated.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod wire { tonic::include_proto!("medes.v1"); }
