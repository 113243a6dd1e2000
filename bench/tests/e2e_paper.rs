//! Two of the paper's experiments, quick, on real sandboxes of the smallest function: what they leave is complete and says where it comes from.
//!
//! Needs root, CRIU and the functions' Python; skips itself loudly otherwise.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{fs, path::Path, process::Command};

use nix::unistd::geteuid;

fn lack() -> Option<&'static str> {
    if !geteuid().is_root() {
        return Some("not root");
    }
    if std::env::var_os("MEDES_PYTHON").is_none() {
        return Some("MEDES_PYTHON is not set; `cargo xtask test e2e` sets it");
    }
    None
}

/// Columns of a file, and its rows.
fn table(path: &Path) -> (Vec<String>, Vec<Vec<String>>) {
    let text = fs::read_to_string(path).unwrap();
    let fields = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut lines = text.lines().map(fields);
    (lines.next().unwrap(), lines.collect())
}

/// Values of one column in the rows whose other column has this value.
fn values(path: &Path, column: &str, (of, is): (&str, &str)) -> Vec<f64> {
    let (head, rows) = table(path);
    let place = |name: &str| head.iter().position(|one| one == name).unwrap();
    let (wanted, key) = (place(column), place(of));
    rows.iter().filter(|row| row[key] == is).map(|row| row[wanted].parse().unwrap()).collect()
}

#[test]
fn quick_experiments_leave_figures_with_their_origin() {
    if let Some(lack) = lack() {
        println!("SKIPPED quick_experiments_leave_figures_with_their_origin: {lack}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("paper");
    let status = Command::new(env!("CARGO_BIN_EXE_medes-bench"))
        .args(["paper", "--only", "redundancy,instead", "--quick", "--functions", "vanilla", "--out"])
        .arg(&out)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");

    let pairs = out.join("redundancy/pairs.csv");
    let fractions = |aslr| values(&pairs, "sampled_fraction", ("aslr", aslr));
    let (on, off) = (fractions("on"), fractions("off"));
    assert_eq!((on.len(), off.len()), (10, 10), "five sizes, two kinds of data");
    let sum = |all: &[f64]| all.iter().sum::<f64>();
    assert!(sum(&off) > sum(&on), "the same addresses make more the same: {off:?} {on:?}");
    assert!(on.iter().chain(&off).all(|fraction| (0.0..=1.0).contains(fraction)));

    let sandboxes = out.join("instead/sandboxes.csv");
    let held = |way| sum(&values(&sandboxes, "held_bytes", ("way", way)));
    assert!(held("dedup") < held("criu-zstd-3") && held("criu-zstd-3") < held("criu"), "each is smaller");
    assert!(held("parked") < held("keep-alive"));
    for way in ["cold", "clone", "keep-alive", "criu", "criu-zstd-1", "parked", "dedup"] {
        assert!(values(&sandboxes, "answer_ms", ("way", way)).iter().all(|ms| *ms > 0.0), "{way}");
    }
    // What was not asked for was not done, and that is said.
    assert!(values(&sandboxes, "answer_ms", ("way", "ksm")).is_empty());
    let readme = fs::read_to_string(out.join("instead/README.md")).unwrap();
    for part in ["kernel", "instead --quick", "--host-wide was not given", "sandboxes.csv"] {
        assert!(readme.contains(part), "{part}: {readme}");
    }
    let report = fs::read_to_string(out.join("report.html")).unwrap();
    for part in ["Where we lose", "id=\"redundancy\"", "It was not run.", "<svg"] {
        assert!(report.contains(part), "{part}");
    }
}
