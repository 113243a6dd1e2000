//! The whole thing on one machine through its public doors only: the real programs, the HTTP gateway,
//! `medes --json`. Bad input and trouble, and what a caller and an operator see of it.
//!
//! Needs root and CRIU; skips itself loudly otherwise. The agent and the controller must be built.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod accounting;
mod clones;
mod cluster;
mod dedup;
mod health;
mod hostile;
mod http;
mod identity;
mod input;
mod moving;
mod park;
mod policy;
mod program;
mod spans;
mod takeover;
mod tenants;
mod trace;
mod trouble;
mod up;
