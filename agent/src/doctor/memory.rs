//! The kernel's memory interfaces: faults in our hands, which pages were written, where things lie.

use std::fs;
use std::io;

use super::Check;
use crate::{uffd, watch::writes::Way};

/// Bits of `UFFDIO_API` that dedup in place and lazy restore use, by the kernel's names.
const FEATURES: [(u64, &str); 7] = [
    (1 << 1, "EVENT_FORK"),
    (1 << 2, "EVENT_REMAP"),
    (1 << 3, "EVENT_REMOVE"),
    (1 << 6, "EVENT_UNMAP"),
    (1 << 0, "PAGEFAULT_FLAG_WP"),
    (1 << 13, "WP_UNPOPULATED"),
    (1 << 15, "WP_ASYNC"),
];

pub(super) fn checks() -> Vec<Check> {
    let aslr = fs::read_to_string("/proc/sys/kernel/randomize_va_space");
    vec![
        userfaultfd(uffd::features()),
        pagemap_scan(uffd::has_pagemap_scan()),
        write_tracking(Way::find()),
        aslr_on(aslr.as_deref().unwrap_or_default()),
    ]
}

fn userfaultfd(features: io::Result<u64>) -> Check {
    let name = "userfaultfd";
    let without = "memory is given back whole before a sandbox runs, never on demand";
    let bits = match features {
        Ok(bits) => bits,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let fix = "run the agent with CAP_SYS_PTRACE";
            return Check::degraded(name, "refused to this process", without, fix);
        }
        Err(error) => {
            return Check::degraded(name, error.to_string(), without, "use a kernel with userfaultfd");
        }
    };
    let lacking: Vec<&str> =
        FEATURES.iter().filter(|(bit, _)| bits & bit == 0).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return Check::ok(name, "with all features that are used");
    }
    let found = format!("without {}", lacking.join(", "));
    Check::degraded(name, found, "dedup in place is not possible", "use Linux 6.7 or newer")
}

fn pagemap_scan(outcome: io::Result<()>) -> Check {
    let name = "pagemap_scan";
    match outcome {
        Ok(()) => Check::ok(name, "PAGEMAP_SCAN works"),
        Err(error) => Check::degraded(
            name,
            error.to_string(),
            "written pages are found by reading all of them",
            "use Linux 6.7 or newer",
        ),
    }
}

fn write_tracking(way: Option<Way>) -> Check {
    let name = "write_tracking";
    let fix = "use Linux 6.7 or newer, and run the agent with CAP_SYS_PTRACE";
    match way {
        Some(Way::Protection) => Check::ok(name, "by write protection, page by page"),
        Some(Way::SoftDirty) => Check::degraded(
            name,
            "by soft-dirty bits",
            "each look costs a sandbox a flush of its TLBs, and may miss what is written meanwhile",
            fix,
        ),
        None => Check::degraded(
            name,
            "neither write protection nor soft-dirty bits",
            "no page is known to be hot: all are encoded by every dedup",
            fix,
        ),
    }
}

fn aslr_on(setting: &str) -> Check {
    let name = "aslr";
    match setting.trim() {
        "2" => Check::ok(name, "on"),
        "1" | "0" => Check::degraded(
            name,
            format!("kernel.randomize_va_space is {}", setting.trim()),
            "sandboxes are easier to attack; Medes gains nothing from it",
            "set kernel.randomize_va_space to 2 on this host",
        ),
        other => Check::degraded(
            name,
            if other.is_empty() { "not readable".to_owned() } else { other.to_owned() },
            "whether the addresses of sandboxes can be guessed is not known",
            "mount /proc/sys for the agent",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn each_lacking_feature_is_named() {
        assert_eq!(userfaultfd(Ok(u64::MAX)).verdict, Verdict::Ok);
        let check = userfaultfd(Ok(!(1 << 15)));
        assert_eq!((check.verdict, check.found.as_str()), (Verdict::Degraded, "without WP_ASYNC"));
    }

    #[test]
    fn a_refusal_is_told_from_an_old_kernel() {
        let refused = userfaultfd(Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert!(refused.fix.is_some_and(|fix| fix.contains("CAP_SYS_PTRACE")));
        let old = userfaultfd(Err(io::Error::from_raw_os_error(libc::ENOSYS)));
        assert!(old.fix.is_some_and(|fix| fix.contains("kernel")));
        assert_eq!(pagemap_scan(Err(io::Error::from_raw_os_error(libc::ENOTTY))).verdict, Verdict::Degraded);
    }

    #[test]
    fn which_way_writes_are_tracked_is_said() {
        let of = |way| write_tracking(way);
        assert_eq!(of(Some(Way::Protection)).verdict, Verdict::Ok);
        assert_eq!(
            (of(Some(Way::SoftDirty)).verdict, of(None).verdict),
            (Verdict::Degraded, Verdict::Degraded)
        );
        assert!(of(Some(Way::SoftDirty)).found.contains("soft-dirty"));
    }

    #[test]
    fn address_randomisation_must_be_fully_on() {
        assert_eq!(aslr_on("2\n").verdict, Verdict::Ok);
        assert_eq!(aslr_on("1\n").verdict, Verdict::Degraded);
        assert_eq!(aslr_on("").verdict, Verdict::Degraded);
    }
}
