//! The tool chain for the kernel programs: a compiler with `core` for bpf, and a linker.
//!
//! `agent/build/kernel_programs.rs` looks for the same things in the same order.

use std::fs;
use std::path::Path;

use super::step::Step;
use super::{Name, Part, apt};
use crate::command::{Call, on_path};
use crate::repo::Repo;

const LINKER_VERSION: &str = "0.13.0";
/// The LLVM inside Debian's `rustc-web`. The linker reads what that compiler writes, so it must
/// have the same.
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LLVM_FEATURE: &str = "llvm-22";
const COMPILER_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
const LINKER_PACKAGES: [&str; 3] = ["llvm-22-dev", "zlib1g-dev", "libzstd-dev"];

pub(super) fn look(repo: &Repo) -> Part {
    let (compiler, linker) = (compiler(), linker(repo));
    let mut packages = Vec::new();
    let mut steps = Vec::new();
    if compiler.is_none() {
        packages.extend(apt::missing(&COMPILER_PACKAGES));
    }
    if linker.is_none() {
        packages.extend(apt::missing(&LINKER_PACKAGES));
        steps.extend(build_linker(repo));
    }
    let found = match (compiler, linker) {
        (Some(compiler), Some(linker)) => Ok(format!("{compiler}; bpf-linker {linker}")),
        (None, _) => Err("no Rust compiler for bpf".to_owned()),
        (_, None) => Err(format!("no bpf-linker {LINKER_VERSION}")),
    };
    steps.push(Step::look_again());
    Part {
        name: Name::Ebpf,
        found,
        packages,
        steps,
        without: "the agent is built without kernel programs and watches sandboxes through procfs",
        by_hand: "Install a nightly Rust with rust-src (rustup) and bpf-linker built with that compiler's LLVM (cargo install), then run `cargo xtask ebpf`",
    }
}

fn compiler() -> Option<String> {
    let prebuilt = Call::new("/usr/bin/rustc").env("RUSTC_BOOTSTRAP", "1").args([
        "--print",
        "target-libdir",
        "--target",
        "bpfel-unknown-none",
    ]);
    if prebuilt.output().is_some_and(|folder| holds_core(Path::new(folder.trim()))) {
        return Some("rustc-web with core for bpf".into());
    }
    let nightly = ["run", "nightly", "rustc", "--print", "sysroot"];
    let sysroot = Call::new("rustup").env("RUSTUP_AUTO_INSTALL", "0").args(nightly).output()?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    source.is_dir().then(|| "nightly with rust-src".into())
}

fn holds_core(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

/// The version of a linker that starts: ours, or one on `PATH`.
fn linker(repo: &Repo) -> Option<String> {
    let ours = repo.installed("tools/bin/bpf-linker");
    let text = Call::new(ours.to_string_lossy())
        .arg("--version")
        .output()
        .filter(|text| text.trim().ends_with(LINKER_VERSION))
        .or_else(|| Call::new(on_path("bpf-linker")?.to_string_lossy()).arg("--version").output())?;
    text.split_whitespace().last().map(str::to_owned)
}

fn build_linker(repo: &Repo) -> Vec<Step> {
    let tools = repo.installed("tools");
    let scratch = tools.join("build");
    let install = Call::cargo(repo)
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .args(["install", "bpf-linker", "--locked", "--force", "--version", LINKER_VERSION])
        .args(["--no-default-features", "--features", LLVM_FEATURE])
        .arg("--root")
        .path(&tools)
        .arg("--target-dir")
        .path(&scratch);
    vec![
        Step::run(format!("build bpf-linker {LINKER_VERSION} (about a minute)"), install),
        Step::remove("remove what that build left", scratch),
    ]
}
