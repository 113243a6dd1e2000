//! Compiles the kernel programs of `agent-ebpf` and hands the object file to the crate.
//!
//! Where no eBPF tool chain is installed the object is empty and the reason is compiled in
//! instead, so that the agent still builds and can say at run time what it lacks.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

const TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "medes-watch";
/// Set to `off`, it leaves the kernel programs out although there is a tool chain.
const SWITCH: &str = "MEDES_EBPF";

/// A compiler that knows the bpf target, with a `core` for it.
enum Compiler {
    /// Debian's `rustc-web`: `core` for bpf comes prebuilt.
    Prebuilt { rustc: PathBuf },
    /// A rustup nightly with `rust-src`: `core` is built on the spot.
    Nightly,
}

/// Leaves `medes-watch.o` in `OUT_DIR` and sets `MEDES_EBPF_ABSENT` (empty when it was built).
pub(crate) fn build() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    let out = PathBuf::from(variable("OUT_DIR")?);
    // Setup touches build.rs when it has installed a tool chain: then this runs again.
    for watched in ["build.rs", "build", "../agent-ebpf/src", "../agent-ebpf/Cargo.toml"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    println!("cargo:rerun-if-env-changed={SWITCH}");
    let object = out.join("medes-watch.o");
    let absent = match tool_chain(&root) {
        Ok((compiler, linker)) => {
            let built = compile(&root, &out, &compiler, &linker)?;
            fs::copy(built, &object)?;
            String::new()
        }
        Err(reason) => {
            println!(
                "cargo:warning=no eBPF in this agent: {reason}; `cargo xtask setup` installs what is missing"
            );
            fs::write(&object, [])?;
            reason
        }
    };
    println!("cargo:rustc-env=MEDES_EBPF_ABSENT={absent}");
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("read {name}: {error}"))
}

fn tool_chain(root: &Path) -> Result<(Compiler, PathBuf), String> {
    if env::var_os(SWITCH).is_some_and(|value| value == "off") {
        return Err(format!("switched off by {SWITCH}=off"));
    }
    Ok((compiler()?, linker(root)?))
}

/// Debian's compiler comes first: setup builds the linker with the same LLVM.
fn compiler() -> Result<Compiler, String> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    if holds_core(Command::new(&rustc).args(["--print", "target-libdir", "--target", TARGET])) {
        return Ok(Compiler::Prebuilt { rustc });
    }
    let sysroot = stdout(nightly("rustc").args(["--print", "sysroot"]));
    match sysroot {
        Some(root) if Path::new(&root).join("lib/rustlib/src/rust/library/core").is_dir() => {
            Ok(Compiler::Nightly)
        }
        _ => {
            Err("no Rust compiler with a core library for bpf (rustc-web, or a nightly with rust-src)".into())
        }
    }
}

/// Never installs: rustup would otherwise fetch a missing tool chain here.
fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", program]).env("RUSTUP_AUTO_INSTALL", "0");
    command
}

fn holds_core(print_libdir: &mut Command) -> bool {
    let Some(libdir) = stdout(print_libdir.env("RUSTC_BOOTSTRAP", "1")) else { return false };
    let Ok(entries) = fs::read_dir(libdir) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
}

fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

fn linker(root: &Path) -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let ours = root.join("target/tools/bin");
    std::iter::once(ours)
        .chain(env::split_paths(&path))
        .map(|folder| folder.join("bpf-linker"))
        .find(|file| file.is_file())
        .ok_or_else(|| "bpf-linker is not installed".to_owned())
}

/// Runs a second cargo, for the bpf target, in a target folder of its own (the outer cargo holds
/// the lock of the usual one). Returns the object.
fn compile(root: &Path, out: &Path, compiler: &Compiler, linker: &Path) -> io::Result<PathBuf> {
    let target_dir = out.join("bpf");
    let mut cargo = match compiler {
        Compiler::Prebuilt { rustc } => {
            let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            clean(&mut cargo);
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
        Compiler::Nightly => {
            let mut cargo = nightly("cargo");
            clean(&mut cargo);
            cargo.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
            cargo
        }
    };
    cargo.args(["build", "--release", "--target", TARGET, "--bin", BINARY, "--features", "program"]);
    if matches!(compiler, Compiler::Nightly) {
        cargo.arg("-Zbuild-std=core");
    }
    cargo.arg("--manifest-path").arg(root.join("agent-ebpf/Cargo.toml"));
    cargo.arg("--target-dir").arg(&target_dir);
    // Bitcode goes to the linker as it is; cargo's own LTO would come between.
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_ENCODED_RUSTFLAGS", flags(linker));
    let status = cargo.status()?;
    if !status.success() {
        return Err(io::Error::other(format!("the kernel programs do not compile ({status}); see above")));
    }
    Ok(target_dir.join(TARGET).join("release").join(BINARY))
}

/// Takes away what the outer cargo set for host code.
fn clean(cargo: &mut Command) {
    for name in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOC",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(name);
    }
    // The outer cargo's features and target settings of this package mean nothing to the inner one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_FEATURE_")
            || text.starts_with("CARGO_CFG_")
            || text.starts_with("CARGO_PROFILE_")
        {
            cargo.env_remove(name);
        }
    }
}

/// Compiler flags, separated as cargo wants them: `cfg` for aya's argument access on the kernel's
/// own architecture, and BTF so that a verifier log names source lines.
fn flags(linker: &Path) -> String {
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_else(|_| "x86_64".into());
    [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        format!("-Clinker={}", linker.display()),
        "-Clink-arg=--btf".into(),
        "-Cdebuginfo=2".into(),
    ]
    .join("\u{1f}")
}
