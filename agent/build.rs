//! What the agent needs built before it: the kernel programs.

#[path = "build/kernel_programs.rs"]
mod kernel_programs;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    kernel_programs::build()
}
