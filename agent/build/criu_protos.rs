//! Wire types for `src/criu`, from our own subset of CRIU's formats.

use std::error::Error;

pub(crate) fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/criu");
    let descriptors = protox::compile(["proto/criu/rpc.proto", "proto/criu/images.proto"], ["proto/criu"])?;
    tonic_prost_build::configure().build_client(false).build_server(false).compile_fds(descriptors)?;
    Ok(())
}
