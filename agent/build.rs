//! What the agent needs built before it: the kernel programs, and the wire types of CRIU.

#[path = "build/criu_protos.rs"]
mod criu_protos;
#[path = "build/kernel_programs.rs"]
mod kernel_programs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    criu_protos::build()?;
    kernel_programs::build()
}
