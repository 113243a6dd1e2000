//! The watch on a real kernel: a busy cgroup is seen, an idle one is not, nothing stays behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops where it is")]

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use medes_agent::watch::{Diagnostics, Watch, WatchError};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const ROUND_TRIPS: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(10);

/// A program that answers each line, alone in a cgroup of its own.
struct Echo {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    cgroup: PathBuf,
}

impl Echo {
    fn start(parent: &Path, name: &str) -> Self {
        let cgroup = parent.join(format!("medes-test-{}-{name}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec cat"])
            .arg(&cgroup)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, input, output, cgroup }
    }

    fn round_trip(&mut self) {
        self.input.write_all(b"again\n").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line, "again\n");
    }

    /// Waits until it sleeps in `read`, so that it has left the CPU for good.
    fn settle(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        wait_for("the echo program to sleep", || {
            let text = fs::read_to_string(&stat).unwrap();
            text.rsplit(')').next().unwrap().trim_start().starts_with('S')
        });
    }

    fn cgroup_id(&self) -> u64 {
        fs::metadata(&self.cgroup).unwrap().ino()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir(&self.cgroup));
    }
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "waited too long for {what}");
        yield_now();
    }
}

/// Where the v2 hierarchy is mounted: alone, or beside v1.
fn cgroup2() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2) == Some(&"cgroup2"))?.get(1).map(PathBuf::from)
}

/// The watch, or a reason printed for the summary of `cargo xtask test`.
fn watch_or_skip(test: &str) -> Result<Option<Watch>, WatchError> {
    match Watch::start_with(Diagnostics::On) {
        Ok(watch) => Ok(Some(watch)),
        Err(
            error
            @ (WatchError::NotBuilt { .. } | WatchError::NoBtf { .. } | WatchError::NoPermission { .. }),
        ) => {
            println!("SKIPPED {test}: {error}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// One CPU for this thread and the children it starts: every answer then needs a switch.
fn stay_on_one_cpu() {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let cpu = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(cpu).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

#[test]
fn a_busy_cgroup_is_counted_and_an_idle_one_is_not() -> Result<(), Box<dyn Error>> {
    const TEST: &str = "a_busy_cgroup_is_counted_and_an_idle_one_is_not";
    let Some(parent) = cgroup2() else {
        println!("SKIPPED {TEST}: no cgroup v2 hierarchy is mounted");
        return Ok(());
    };
    let Some(mut watch) = watch_or_skip(TEST)? else { return Ok(()) };
    stay_on_one_cpu();
    let mut busy = Echo::start(&parent, "busy");
    let mut idle = Echo::start(&parent, "idle");
    busy.round_trip();
    idle.round_trip();
    idle.settle();
    let busy_before = watch.activity(busy.cgroup_id()).ok_or("busy cgroup not seen")?;
    let idle_before = watch.activity(idle.cgroup_id()).ok_or("idle cgroup not seen")?;

    for _ in 0..ROUND_TRIPS {
        busy.round_trip();
    }
    // The last answer may come before its sender has left the CPU.
    busy.settle();

    let busy_after = watch.activity(busy.cgroup_id()).ok_or("busy cgroup not seen any more")?;
    assert!(busy_after.switches >= busy_before.switches + ROUND_TRIPS, "{busy_before:?} {busy_after:?}");
    assert!(busy_after.run_ns > busy_before.run_ns);
    assert!(busy_after.last_ran_ns > busy_before.last_ran_ns);
    assert_eq!(watch.activity(idle.cgroup_id()), Some(idle_before), "an idle sandbox must look idle");

    watch.forget(idle.cgroup_id());
    assert_eq!(watch.activity(idle.cgroup_id()), None);
    watch.pass_log_on();
    Ok(())
}

#[test]
fn nothing_stays_attached_after_drop() -> Result<(), Box<dyn Error>> {
    let Some(watch) = watch_or_skip("nothing_stays_attached_after_drop")? else { return Ok(()) };
    let ours = watch.program_ids();
    assert!(!ours.is_empty());
    let loaded = |id: &u32| aya::programs::loaded_programs().flatten().any(|program| program.id() == *id);
    assert!(ours.iter().all(loaded));
    drop(watch);
    // The kernel frees programs a moment later, after all CPUs have left them.
    wait_for("the programs to be unloaded", || !ours.iter().any(loaded));
    Ok(())
}
