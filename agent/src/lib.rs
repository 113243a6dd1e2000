//! The agent of one node.

pub mod criu;
pub mod doctor;
pub mod reaper;
pub mod keeper;
pub mod sandbox;
pub mod stage;
pub mod watch;
