//! The wire types of CRIU, as the agent has them.

use std::env;
use std::error::Error;

#[path = "../build/criu_protos.rs"]
mod criu_protos;

fn main() -> Result<(), Box<dyn Error>> {
    // The descriptions are named from where the agent is.
    env::set_current_dir("..")?;
    criu_protos::build()
}
