//! Runs each test in a process of its own: a sandbox host needs a mount namespace entered before any thread exists,
//! which the usual test harness cannot give.

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

/// A test: a sentence as a name, and what to do in a process of its own.
pub(crate) type Test = (&'static str, fn());

/// How long one test may take before its process is ended.
const TEST_WAIT: Duration = Duration::from_secs(120);
/// Names the one test a process is to run, or the helper it is to be.
pub(crate) const ONE: &str = "MEDES_TEST_ONE";

/// Runs the tests whose name contains one of the words on the command line; all without words.
pub(crate) fn main(tests: &[Test], helpers: &[Test]) -> ExitCode {
    if let Ok(name) = std::env::var(ONE) {
        let (_, test) = tests.iter().chain(helpers).find(|(other, _)| *other == name).expect("a known test");
        test();
        return ExitCode::SUCCESS;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let told = |flag: &str| arguments.iter().any(|it| it == flag);
    if told("--list") {
        // None of them is ignored: asked for those alone, there is nothing to tell.
        if !told("--ignored") {
            tests.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let words: Vec<_> = arguments.iter().filter(|it| !it.starts_with('-')).collect();
    let fits = |name: &str, word: &str| if told("--exact") { name == word } else { name.contains(word) };
    let chosen =
        tests.iter().filter(|(name, _)| words.is_empty() || words.iter().any(|word| fits(name, word)));
    let mut failed = Vec::new();
    for (name, _) in chosen {
        if !geteuid().is_root() {
            println!("SKIPPED {name}: not root");
            continue;
        }
        let outcome = if run_one(name) { "ok" } else { "FAILED" };
        println!("test {name} ... {outcome}");
        if outcome != "ok" {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailed: {}", failed.join(", "));
    ExitCode::FAILURE
}

fn run_one(name: &str) -> bool {
    let program = std::env::current_exe().expect("own path");
    let mut child = Command::new(program).env(ONE, name).spawn().expect("start a test");
    let deadline = Instant::now() + TEST_WAIT;
    loop {
        match child.try_wait().expect("wait for a test") {
            Some(status) => return status.success(),
            None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            None => {
                println!("test {name} took longer than {TEST_WAIT:?}");
                child.kill().expect("end a test");
                child.wait().expect("wait for a test");
                return false;
            }
        }
    }
}
