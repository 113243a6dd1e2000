//! Compiles the `.proto` files with a compiler written in Rust, so that a fresh machine needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files =
        ["common", "account", "heat", "fleet", "registry", "node", "trace", "control", "tokens", "tenants"]
            .map(|name| format!("proto/medes/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
