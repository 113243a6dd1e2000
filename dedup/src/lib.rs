//! The dedup engine: what a page is stored as, and how it comes back.
//!
//! Pure: no clock, no socket, no thread, no random source.
#![forbid(unsafe_code)]

pub mod page;
