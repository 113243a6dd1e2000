//! The agent of one node: runs sandboxes, takes their memory away while they are idle, gives it back.
//!
//! The two roads of a page are [`dedupe`] and [`restore`]; both read from top to bottom. The short way, on which the processes
//! stay, is [`park`], and [`trim`] is the same for a part of one that stays warm. [`driver`] decides, [`node`]
//! does, [`link`] talks to the controller, [`service`] to everybody else.

pub mod account;
pub mod base;
pub mod bases;
pub mod clone;
pub mod config;
pub mod criu;
pub mod dedupe;
pub mod digest;
pub mod doctor;
pub mod driver;
pub mod dump;
pub mod earlier;
pub mod engine;
pub mod faults;
pub mod heap;
pub mod heat;
pub mod init;
pub mod inject;
pub mod keeper;
pub mod keys;
mod late;
pub mod launch_spec;
mod layout;
pub mod link;
mod maps;
pub mod memory_file;
mod metrics;
pub mod moving;
pub mod node;
pub mod page_work;
mod pagemap;
pub mod pager;
pub mod park;
mod pressure;
mod private_files;
pub mod reaper;
pub mod registry;
pub mod restore;
pub mod roads;
pub mod run;
pub mod sandbox;
pub mod service;
pub mod skeleton;
pub mod stage;
mod takeover;
pub mod trim;
mod uffd;
pub mod watch;
