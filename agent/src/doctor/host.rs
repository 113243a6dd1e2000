//! The rest of the host: `/run`, namespaces, limits, network cards.

use std::fs;
use std::path::Path;

use procfs::process::{LimitValue, Process};

use super::{Check, kernel::whole};
use crate::{
    bases::rdma::{self, NoRdma},
    criu::run_dir,
};

const NAMESPACES: [&str; 5] = ["pid", "mnt", "ipc", "uts", "net"];
const CARDS: &str = "/sys/class/infiniband";
/// A sandbox needs a few descriptors of the agent for each of its mappings while it is restored.
const DESCRIPTORS_WANTED: u64 = 65_536;

pub(super) fn checks() -> Vec<Check> {
    let there = |name: &&str| Path::new("/proc/self/ns").join(name).exists();
    let lacking: Vec<&str> = NAMESPACES.into_iter().filter(|name| !there(name)).collect();
    vec![
        run_folder(run_dir::is_tmpfs()),
        namespaces(&lacking),
        descriptors(open_files_max()),
        cards(&entries(Path::new(CARDS)), rdma::available()),
    ]
}

/// The hard limit; zero when it cannot be read.
fn open_files_max() -> u64 {
    let limits = Process::myself().and_then(|this| this.limits());
    match limits.map(|limits| limits.max_open_files.hard_limit) {
        Ok(LimitValue::Unlimited) => u64::MAX,
        Ok(LimitValue::Value(hard)) => hard,
        Err(_) => 0,
    }
}

fn run_folder(tmpfs: bool) -> Check {
    if tmpfs {
        return Check::ok("run", "/run is a tmpfs");
    }
    // The agent mends this for itself; other users of CRIU pay.
    Check::degraded(
        "run",
        "/run is on a disk",
        "the agent mounts a tmpfs there for itself alone; without that right each CRIU call takes 50 ms more",
        "mount a tmpfs on /run",
    )
}

fn namespaces(lacking: &[&str]) -> Check {
    if lacking.is_empty() {
        return Check::ok("namespaces", NAMESPACES.join(", "));
    }
    Check::missing(
        "namespaces",
        format!("none of kind {}", lacking.join(", ")),
        "sandboxes cannot be kept apart",
        "use a kernel with these namespaces",
    )
}

fn descriptors(hard: u64) -> Check {
    let found = format!("at most {hard} open files");
    if hard >= DESCRIPTORS_WANTED {
        return Check::ok("open_files", found);
    }
    let fix = format!("raise the agent's hard limit of open files to {DESCRIPTORS_WANTED}");
    Check::degraded("open_files", found, "fewer sandboxes fit on this node", &fix)
}

fn cards(names: &[String], available: Result<(), NoRdma>) -> Check {
    let (name, found) = ("rdma", names.join(", "));
    let lacking = |why: &str, fix| {
        Check::degraded(name, format!("{found}; {why}"), "base pages come over TCP all the same", fix)
    };
    match available {
        // Most machines have none; nothing needs fixing.
        _ if names.is_empty() => Check::ok(name, "no card: base pages come over TCP"),
        Ok(()) => Check::ok(name, found),
        Err(NoRdma::NotBuilt) => {
            let fix = "build Medes where there are CMake and libclang (`cargo xtask setup --only rdma`)";
            lacking("built without RDMA", fix)
        }
        Err(error) => {
            lacking(&whole(&error), "install rdma-core (Debian: libibverbs1 ibverbs-providers librdmacm1)")
        }
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn what_lacks_is_named() {
        assert_eq!(namespaces(&[]).verdict, Verdict::Ok);
        assert!(namespaces(&["net"]).found.contains("net"));
        assert_eq!(descriptors(1024).verdict, Verdict::Degraded);
        assert_eq!(descriptors(u64::MAX).verdict, Verdict::Ok);
        assert_eq!(run_folder(false).verdict, Verdict::Degraded);
    }

    #[test]
    fn no_card_is_no_fault() {
        let two = ["mlx5_0".into(), "rxe0".into()];
        assert_eq!(cards(&[], Err(NoRdma::NotBuilt)).verdict, Verdict::Ok);
        assert_eq!(cards(&two, Ok(())).found, "mlx5_0, rxe0");
        let lacking = cards(&two, Err(NoRdma::NotBuilt));
        assert_eq!(
            (lacking.verdict, &*lacking.found),
            (Verdict::Degraded, "mlx5_0, rxe0; built without RDMA")
        );
    }
}
