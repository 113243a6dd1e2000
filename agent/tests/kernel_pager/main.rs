//! Dedup in place on real processes: programs that check their own memory while it is taken and given back, what memory
//! calls mean for pages that are missing, and every trouble on the way.
//!
//! Needs root; skips itself loudly otherwise. The programs are this one, started as something else.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod checker;
mod desk;
mod marks;
mod meanings;
mod memory;
mod moved;
#[path = "../kernel_sandbox/node.rs"]
#[allow(dead_code, reason = "shared with the sandbox tests, which need more of it")]
mod node;
mod program;
mod programs;
#[path = "../kernel_sandbox/runner.rs"]
mod runner;
mod there_and_back;
mod trim;
mod trouble;

use std::process::ExitCode;

fn main() -> ExitCode {
    let tests: Vec<runner::Test> = [
        there_and_back::TESTS,
        trim::TESTS,
        marks::TESTS,
        meanings::TESTS,
        moved::TESTS,
        programs::TESTS,
        trouble::TESTS,
    ]
    .concat();
    let programs =
        [checker::PROGRAMS, marks::PROGRAMS, meanings::PROGRAMS, moved::PROGRAMS, trouble::HELPERS].concat();
    runner::main(&tests, &programs)
}
