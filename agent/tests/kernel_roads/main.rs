//! Both roads on real processes: away into a dedup image and back, with every step failing once.
//!
//! Needs root and a working CRIU; skips itself loudly otherwise.

mod again;
mod clones;
mod holder;
mod keys;
mod late;
mod moving;
#[path = "../kernel_sandbox/node.rs"]
#[allow(dead_code, reason = "shared with the sandbox tests, which need more of it")]
mod node;
mod parked;
mod registry;
#[path = "../kernel_sandbox/runner.rs"]
mod runner;
mod shrink;
mod station;
mod there_and_back;
mod trouble;
mod words;

use std::process::ExitCode;

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [
        there_and_back::TESTS,
        again::TESTS,
        clones::TESTS,
        late::TESTS,
        moving::TESTS,
        trouble::TESTS,
        keys::TESTS,
        words::TESTS,
        shrink::TESTS,
        parked::TESTS,
    ]
    .concat();
    runner::main(&tests, &[])
}
