//! `cargo xtask lab`: real RDMA on any machine. A virtual machine with a stock kernel and RDMA in software runs the
//! tests named `lab_*`; two network namespaces in it are two hosts.
//!
//! The image is made from Debian packages once and kept under `target/lab`; it is made again when what it is made by
//! changes. It is emulated, so nothing here says anything about speed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command::{Call, on_path};
use crate::repo::Repo;

/// The machine.
pub(crate) const EMULATOR: &str = "qemu-system-x86_64";
/// The Debian release whose kernel it runs: RDMA in software works inside network namespaces there.
const SUITE: &str = "forky";
/// The machine is ended after this, and the tests have failed.
const SECONDS_MAX: u32 = 480;
/// Test binaries that run in it.
pub(crate) const TESTS: [&str; 3] = ["lab_verbs", "lab_pages", "lab_cluster"];
/// Programs that cargo builds along with these tests.
const PROGRAMS: [&str; 2] = ["medes", "medes-agent"];
/// What else is put into it: the controller knows nothing of RDMA, so that it is the one of all other tests.
const CONTROLLER: &str = "medes-controller";
const FUNCTION: &str = "cli/tests/e2e_cluster/function.py";

/// Runs the lab's tests with their output on the terminal.
pub(crate) fn run(repo: &Repo) -> Result<ExitCode> {
    if let Some(lack) = lacks() {
        println!("SKIPPED the lab: {lack}");
        return Ok(ExitCode::SUCCESS);
    }
    let end = tests(repo, |line| println!("{line}"))?;
    Ok(if end == End::Good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// How the machine came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All tests passed.
    Good,
    /// Some did not, or it did not come to an end.
    Bad,
    /// Its kernel has fallen over, which says nothing of what was tested: it met a breakpoint that it had put into its own code while it was
    /// changing that. Most likely the emulator, which runs each processor in a thread, still had the code as it was. It was seen at the
    /// watch's tracepoint of timers, which is why agents go without the watch there.
    FellOver,
}

/// What such a kernel says.
const FELL_OVER: &str = "Oops: int3";

/// Why there can be no lab here.
pub(crate) fn lacks() -> Option<String> {
    if on_path(EMULATOR).is_none() {
        return Some(format!("no {EMULATOR}; `cargo xtask setup --only lab` installs it"));
    }
    build::rdma_lacks().map(|lack| format!("{lack}; `cargo xtask setup --only rdma` installs it"))
}

/// Makes what is missing and runs all tests; every line the machine prints goes to `line`.
pub(crate) fn tests(repo: &Repo, mut line: impl FnMut(&str)) -> Result<End> {
    let folder = repo.installed("lab");
    let image = image(repo, &folder)?;
    let payload = payload(repo, &folder)?;
    let boot = Call::new("bash").path(&repo.path("xtask/lab/boot.sh")).path(&image).path(&payload);
    let mut fell_over = false;
    let good = boot.arg(SECONDS_MAX.to_string()).run_through(|text| {
        fell_over |= text.contains(FELL_OVER);
        line(text);
    })?;
    Ok(match (good, fell_over) {
        (true, _) => End::Good,
        (false, true) => End::FellOver,
        (false, false) => End::Bad,
    })
}

/// The image, made if it is not there or is made differently by now.
fn image(repo: &Repo, folder: &Path) -> Result<PathBuf> {
    let script = repo.path("xtask/lab/image.sh");
    let (image, fresh) = (folder.join(SUITE), folder.join("fresh"));
    let recipe = fs::read(&script).with_context(|| format!("read {}", script.display()))?;
    let stamp = image.join("recipe");
    if fs::read(&stamp).is_ok_and(|kept| kept == recipe) {
        return Ok(image);
    }
    println!("-- the lab's image, from Debian {SUITE}");
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let make = Call::new("bash").path(&script).path(&fresh).arg(SUITE);
    let log = folder.join("image.log");
    let file = fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
    if !make.run_into(&file)? {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let end: Vec<&str> = text.lines().rev().take(15).collect();
        bail!("{make} failed:\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n"));
    }
    fs::write(fresh.join("recipe"), recipe).context("write the image's recipe")?;
    if image.exists() {
        fs::remove_dir_all(&image).with_context(|| format!("remove {}", image.display()))?;
    }
    fs::rename(&fresh, &image).with_context(|| format!("put {} in its place", image.display()))?;
    Ok(image)
}

/// What is put into the machine: the test binaries and programs, and what it is to do with them.
fn payload(repo: &Repo, folder: &Path) -> Result<PathBuf> {
    build::for_tests(repo)?;
    let payload = folder.join("payload");
    fs::create_dir_all(&payload).with_context(|| format!("create {}", payload.display()))?;
    // All in one go and as a workspace, so that dependencies are those of every other build.
    let build = Call::cargo(repo).args(["test", "--no-run", "--workspace", "--message-format", "json"]);
    let build = build.args(["--features", build::RDMA_FEATURES]);
    let build = build.args(TESTS.iter().flat_map(|test| ["--test", *test]));
    let messages = build.output().with_context(|| format!("{build} failed"))?;
    for name in TESTS.into_iter().chain(PROGRAMS) {
        let binary = executable(&messages, name).with_context(|| format!("{build} built no {name}"))?;
        copy_small(Path::new(&binary), &payload.join(name))?;
    }
    copy_small(&repo.binaries(false).join(CONTROLLER), &payload.join(CONTROLLER))?;
    fs::copy(repo.path(FUNCTION), payload.join("function.py")).context("copy the function")?;
    fs::copy(repo.path("xtask/lab/guest.sh"), payload.join("run.sh")).context("copy the guest's script")?;
    Ok(payload)
}

/// Copies a program without what only a debugger reads, if there is something that can: all of it lies in the machine's
/// memory.
fn copy_small(from: &Path, to: &Path) -> Result<()> {
    let strip = Call::new("strip").arg("--strip-debug").arg("-o").path(to).path(from);
    if on_path("strip").is_some() && strip.succeeds() {
        return Ok(());
    }
    fs::copy(from, to).map(drop).with_context(|| format!("copy {}", from.display()))
}

/// Where cargo says that a test's binary is.
fn executable(messages: &str, test: &str) -> Option<String> {
    messages.lines().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message.get("target")?.get("name")? == test;
        message.get("executable")?.as_str().filter(|_| is_it).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::executable;

    #[test]
    fn a_binary_is_found_among_cargos_messages() {
        let messages = r#"
{"reason":"compiler-artifact","target":{"name":"medes_rdma"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"lab_other"},"executable":"/t/lab_other-1"}
{"reason":"compiler-artifact","target":{"name":"lab_verbs"},"executable":"/t/lab_verbs-1"}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(executable(messages, "lab_verbs").as_deref(), Some("/t/lab_verbs-1"));
        assert_eq!(executable(messages, "medes_rdma"), None);
    }
}
