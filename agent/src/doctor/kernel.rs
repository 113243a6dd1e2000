//! The kernel: how new it is, whether it describes itself, whether our programs load.

use std::error::Error;
use std::fs;
use std::path::Path;

use super::Check;
use crate::watch::{Options, Watch, WatchError};

/// The first with `PAGEMAP_SCAN` and asynchronous write protection.
const WANTED: (u32, u32) = (6, 7);
const TYPES: &str = "/sys/kernel/btf/vmlinux";
/// What a node without kernel programs does.
const WITHOUT: &str =
    "sandboxes are watched through procfs: idle within one look, timers count as work, no faults seen";

pub(super) fn checks() -> Vec<Check> {
    vec![version(&release()), types(Path::new(TYPES).is_file()), watch(&Watch::start(Options::default()))]
}

/// As the kernel names itself; empty when it does not say.
pub(super) fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The first two numbers of a release.
pub(super) fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn version(release: &str) -> Check {
    if numbers(release) >= Some(WANTED) {
        return Check::ok("kernel", release);
    }
    let (major, minor) = WANTED;
    Check::degraded(
        "kernel",
        if release.is_empty() { "unknown" } else { release },
        "written pages cannot be told cheaply from others: every dump reads the whole sandbox",
        &format!("use Linux {major}.{minor} or newer"),
    )
}

fn types(there: bool) -> Check {
    if there {
        return Check::ok("btf", TYPES);
    }
    Check::degraded("btf", format!("no {TYPES}"), WITHOUT, "use a kernel built with CONFIG_DEBUG_INFO_BTF")
}

fn watch((watch, failure): &(Watch, Option<WatchError>)) -> Check {
    let name = "ebpf";
    let Some(failure) = failure else {
        return Check::ok(name, format!("the kernel programs load and attach ({})", watch.sight()));
    };
    let fix = match failure {
        WatchError::NotBuilt { .. } => "run `cargo xtask setup`, then build the agent again",
        WatchError::NoPermission { .. } => "give the agent CAP_BPF and CAP_PERFMON",
        WatchError::NoBtf { .. } | WatchError::NoTracepoint { .. } => "use a kernel with BTF and tracepoints",
        _ => "report this with the kernel's version: the programs should load",
    };
    Check::degraded(name, whole(failure), WITHOUT, fix)
}

/// An error with everything that led to it.
pub(super) fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, verdict) in [
            ("6.18.44", Verdict::Ok),
            ("6.7.0-rc1", Verdict::Ok),
            ("10.0", Verdict::Ok),
            ("6.1.0-18-amd64", Verdict::Degraded),
            ("5.15.0", Verdict::Degraded),
            ("", Verdict::Degraded),
            ("strange", Verdict::Degraded),
        ] {
            assert_eq!(version(release).verdict, verdict, "{release}");
        }
    }

    #[test]
    fn an_agent_without_kernel_programs_says_why_and_what_helps() {
        let failure = WatchError::NotBuilt { reason: "bpf-linker is not installed" };
        let check = watch(&(Watch::procfs(), Some(failure)));
        assert_eq!(check.verdict, Verdict::Degraded);
        assert!(check.found.contains("bpf-linker"), "{}", check.found);
        assert!(check.fix.is_some_and(|fix| fix.contains("xtask setup")));
    }
}
