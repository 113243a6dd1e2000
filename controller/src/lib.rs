//! The controller: takes requests, decides where they run, keeps the registry and the policy.
//!
//! ```text
//!  callers ──HTTP──► gateway ─┐                       ┌─► agents (requests out)
//!  tools ───gRPC───► control ─┤► shell ──► driver ────┤
//!  agents ──gRPC───► fleet ───┘   ▲    (owns state)   └─► fleet (commands out)
//!  agents ──gRPC───► registry_service ──► registry, places
//! ```
//!
//! The driver is the one owner of state and has no I/O; everything that has a socket, a file or a clock is around
//! it. Wire types end in `fleet`, `control`, `registry_service`, `tenant_service`, `token_service` and `agents`.
#![forbid(unsafe_code)]

mod accounting;
pub mod agents;
pub mod config;
mod control;
mod door;
pub mod driver;
mod fleet;
mod gateway;
mod invoke;
pub mod keyring;
mod latencies;
pub mod now;
mod page;
pub mod places;
pub mod policy;
pub mod registry;
mod registry_service;
pub mod server;
pub mod shell;
mod spans;
pub mod store;
mod tell;
mod tenant_service;
mod token_service;
pub mod tokens;
mod trace;
pub mod tuner;
