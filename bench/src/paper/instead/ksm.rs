//! The kernel's own merging of equal pages (KSM), for the sandboxes that ask for it, for as long as it takes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use medes_proto::function::FunctionSpec;

use super::{
    kernel::{self, Changed},
    spent,
};

const FOLDER: &str = "/sys/kernel/mm/ksm";
/// Faster than by default, as somebody would have it who relies on it: 100,000 pages a second at most.
const PACE: [(&str, &str); 2] = [("pages_to_scan", "2000"), ("sleep_millisecs", "20")];
/// A page is merged when it has not changed between two scans.
const SCANS_MIN: u64 = 3;
const SETTLE_MAX: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// The kernel keeps so much for each page that may be merged. It is in no sandbox's account.
const ITEM_BYTES: u64 = 64;

/// KSM, running. Dropped, everything is unmerged and as it was.
#[derive(Debug)]
pub(super) struct Ksm {
    folder: PathBuf,
    _changed: Changed,
    daemon: i32,
}

/// The same program, whose memory may be merged: the kernel hands that wish on to what a program becomes.
pub(super) fn asking(spec: &FunctionSpec) -> FunctionSpec {
    // PR_SET_MEMORY_MERGE; there is no program of the system for it.
    const ASK: &str = "import ctypes, os, sys\n\
                       if ctypes.CDLL(None, use_errno=True).prctl(67, 1, 0, 0, 0): sys.exit('the kernel does not merge this process')\n\
                       os.execvp(sys.argv[1], sys.argv[1:])";
    let mut spec = spec.clone();
    let python = spec.command.first().cloned().unwrap_or_default();
    spec.command.splice(0..0, [python, "-c".to_owned(), ASK.to_owned()]);
    spec
}

impl Ksm {
    /// Starts it. Refuses where it is not, or where somebody uses it already.
    pub(super) fn start() -> Result<Self> {
        Self::start_in(Path::new(FOLDER), daemon()?)
    }

    fn start_in(folder: &Path, daemon: i32) -> Result<Self> {
        let run = folder.join("run");
        ensure!(folder.is_dir(), "this kernel has no KSM: {} is not there", folder.display());
        ensure!(kernel::number(&run)? == 0, "KSM runs already, for somebody else");
        let mut changed = Changed::default();
        // Put back in the opposite order: first everything is unmerged, then it stops.
        for (name, value) in PACE {
            changed.set(&folder.join(name), value)?;
        }
        changed.set(&run, "1")?;
        Ok(Self { folder: folder.to_owned(), _changed: changed, daemon })
    }

    /// Waits until a whole scan finds no more to merge.
    pub(super) async fn settle(&self) -> Result<()> {
        let (began, first) = (Instant::now(), self.number("full_scans")?);
        let (mut seen, mut before) = (first, 0);
        loop {
            tokio::time::sleep(POLL).await;
            let scans = self.number("full_scans")?;
            if scans > seen {
                let sharing = self.number("pages_sharing")?;
                let still = sharing.abs_diff(before) * 100 <= sharing;
                if scans >= first + SCANS_MIN && still {
                    return Ok(());
                }
                (seen, before) = (scans, sharing);
            }
            let limit = SETTLE_MAX.as_secs();
            ensure!(began.elapsed() < SETTLE_MAX, "KSM still finds pages to merge after {limit} s");
        }
    }

    /// Milliseconds of a processor that its thread has taken so far.
    pub(super) fn spent(&self) -> f64 {
        spent::of_process(self.daemon)
    }

    fn number(&self, name: &str) -> Result<u64> {
        kernel::number(&self.folder.join(name))
    }
}

impl Drop for Ksm {
    fn drop(&mut self) {
        if let Err(error) = kernel::write(&self.folder.join("run"), "2") {
            eprintln!("unmerge all pages: {error:#}");
        }
    }
}

/// Kernel memory behind the mergeable pages of a process.
pub(super) fn item_bytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/ksm_stat")).unwrap_or_default();
    let items =
        text.lines().find_map(|line| line.strip_prefix("ksm_rmap_items ")?.trim().parse::<u64>().ok());
    items.unwrap_or(0) * ITEM_BYTES
}

/// The thread of the kernel that does the work.
fn daemon() -> Result<i32> {
    let processes = fs::read_dir("/proc").context("list processes")?.flatten();
    let named = processes.filter(|entry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name.trim() == "ksmd")
    });
    let mut pids = named.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.next().context("the kernel has no thread for KSM")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(run: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [("run", run), ("pages_to_scan", "100"), ("sleep_millisecs", "7")] {
            fs::write(folder.path().join(name), value).unwrap();
        }
        folder
    }

    #[test]
    fn it_is_as_it_was_afterwards() {
        let folder = folder("0\n");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let ksm = Ksm::start_in(folder.path(), 1).unwrap();
        assert_eq!(
            (read("run"), read("pages_to_scan"), read("sleep_millisecs")),
            ("1".into(), "2000".into(), "20".into())
        );
        drop(ksm);
        assert_eq!(
            (read("run"), read("pages_to_scan"), read("sleep_millisecs")),
            ("0".into(), "100".into(), "7".into())
        );
    }

    #[test]
    fn it_is_not_taken_from_somebody_else() {
        let error = Ksm::start_in(folder("1\n").path(), 1).unwrap_err();
        assert!(error.to_string().contains("somebody else"), "{error}");
        let error = Ksm::start_in(Path::new("/nowhere/ksm"), 1).unwrap_err();
        assert!(error.to_string().contains("no KSM"), "{error}");
    }

    #[test]
    fn the_program_stays_the_last_words() {
        let spec = FunctionSpec::from_toml("name = 'x'\ncommand = ['python3', 'main.py']").unwrap();
        let asking = asking(&spec).command;
        assert_eq!(
            (&asking[..2], &asking[3..]),
            (&["python3".to_owned(), "-c".into()][..], &spec.command[..])
        );
    }
}
