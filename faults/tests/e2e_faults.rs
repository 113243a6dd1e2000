//! The short fault matrix, as anybody would run it; `cargo xtask test faults` runs all of it.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::process::Command;

#[test]
fn a_handful_of_faults_lose_nothing_but_warm_state() {
    let out = tempfile::tempdir().unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_medes-faults"))
        .args(["matrix", "--short", "--lanes", "2", "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    // Also says so if this machine cannot.
    print!("{}", String::from_utf8_lossy(&done.stdout));
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
