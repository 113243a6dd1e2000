//! The dedup engine: what a page is stored as, and how it comes back.
//!
//! Pure: no clock, no socket, no thread, no random source. Everything here is a function of its
//! arguments, so a test, a fuzzer and the simulator see exactly what a node sees.
//!
//! A page's way through this crate, and the room each step lives in:
//!
//! ```text
//!  page ──► fingerprint ──► (registry, elsewhere) ──► candidate ──► encode ──► image
//!                                                                     │          │
//!                                                          delta, recipe      rebuild ──► page
//! ```
//!
//! Where the base is at hand as a whole, `words` takes the place of fingerprint and candidates: a sandbox is aligned with
//! its base through the `mapping`s of both, and its pages become words of the base, pointers predicted.
//!
//! `key` is what keeps tenants apart, and `paper` is the set of choices the paper made.
#![forbid(unsafe_code)]

pub mod candidate;
pub mod delta;
pub mod encode;
pub mod fingerprint;
pub mod image;
pub mod key;
pub mod mapping;
pub mod page;
pub mod paper;
pub mod rebuild;
pub mod recipe;
pub mod samples;
mod steps;
pub mod words;
