//! The sandbox runtime on the real kernel: what a function can do, what it cannot, and what is left afterwards.
//!
//! Needs root; skips itself loudly otherwise. Each test is a process of its own, see `runner`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod contract;
mod criu;
mod node;
mod runner;
mod trouble;
mod walls;
mod writes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let tests: Vec<runner::Test> =
        [contract::TESTS, walls::TESTS, trouble::TESTS, criu::TESTS, writes::TESTS].concat();
    runner::main(&tests, trouble::HELPERS)
}
