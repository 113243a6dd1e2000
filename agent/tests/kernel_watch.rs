//! The watch on a real kernel: real programs do known things and are seen doing exactly these, and nothing stays behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops where it is")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use medes_agent::reaper::Reaper;
use medes_agent::watch::writes::Writes;
use medes_agent::watch::{
    Activity, Diagnostics, Group, Key, Membership, Options, Sight, Wants, Watch, WatchError, now_ns,
};

const DEADLINE: Duration = Duration::from_secs(20);
/// What the issue asks for: from the last run to the word that the sandbox is idle.
const IDLE_WITHIN: Duration = Duration::from_millis(100);
const PYTHON: &str = "/usr/bin/python3";

/// A Python program that runs each line it is given and answers "ok", alone in a cgroup of its own.
struct Subject {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    cgroup: PathBuf,
}

const LOOP: &str = "
import ctypes, mmap, os, sys, threading, time
for line in sys.stdin:
    exec(line.replace(';;', chr(10)))
    print('ok', flush=True)
";

impl Subject {
    fn start(name: &str) -> Option<Self> {
        let cgroup = cgroup2()?.join(format!("medes-test-{}-{name}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$1\" -c \"$2\""])
            .args([cgroup.as_os_str(), PYTHON.as_ref(), LOOP.as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut subject = Self { child, input, output, cgroup };
        subject.run("pass");
        Some(subject)
    }

    /// Has it begin with something, without waiting for the end.
    fn begin(&mut self, code: &str) {
        let line = format!("{}\n", code.trim().replace('\n', ";;"));
        self.input.write_all(line.as_bytes()).unwrap();
    }

    fn run(&mut self, code: &str) {
        self.begin(code);
        assert_eq!(self.line(), "ok");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn group(&self) -> Group {
        let cgroup_id = Some(fs::metadata(&self.cgroup).unwrap().ino());
        Group { cgroup_id, procs: self.cgroup.join("cgroup.procs") }
    }

    /// Waits until it sleeps in `read`, so that it has left the CPU for good.
    fn settle(&self) {
        let stat = format!("/proc/{}/stat", self.child.id());
        wait_for("the program to sleep", || {
            let text = fs::read_to_string(&stat).unwrap();
            text.rsplit(')').next().unwrap().trim_start().starts_with('S')
        });
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        let begun = Instant::now();
        while fs::remove_dir(&self.cgroup).is_err() && begun.elapsed() < DEADLINE {
            yield_now();
        }
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

/// A watch by kernel programs, or a reason printed for the summary of `cargo xtask test`.
fn ebpf_or_skip(test: &str, membership: Membership) -> Option<Watch> {
    let options = Options { membership: Some(membership), diagnostics: Diagnostics::On };
    match Watch::ebpf(options) {
        Ok(watch) => Some(watch),
        Err(
            error
            @ (WatchError::NotBuilt { .. } | WatchError::NoBtf { .. } | WatchError::NoPermission { .. }),
        ) => {
            println!("SKIPPED {test}: {error}");
            None
        }
        Err(error) => panic!("{error}: {error:?}"),
    }
}

fn subject_or_skip(test: &str) -> Option<Subject> {
    let subject = Subject::start(test);
    if subject.is_none() {
        println!("SKIPPED {test}: no cgroup v2 hierarchy is mounted");
    }
    subject
}

/// Every way to watch that works here.
fn watches(test: &str) -> Vec<Watch> {
    let ebpf = [Membership::Cgroup, Membership::Processes].map(|membership| ebpf_or_skip(test, membership));
    ebpf.into_iter().flatten().chain([Watch::procfs()]).collect()
}

fn activity(watch: &mut Watch, key: Key) -> Activity {
    watch.activity(key, now_ns()).expect("a watched sandbox")
}

/// Waits until it is idle; returns how it is then.
fn until_idle(watch: &mut Watch, key: Key) -> Activity {
    let start = Instant::now();
    loop {
        let seen = activity(watch, key);
        if !seen.runnable {
            return seen;
        }
        let late = start.elapsed() > DEADLINE;
        assert!(!late, "by {} it is never idle: {seen:?}, {:?}", watch.sight(), watch.lost());
        yield_now();
    }
}

#[test]
fn work_is_seen_and_its_end_too() {
    const TEST: &str = "work_is_seen_and_its_end_too";
    for mut watch in watches(TEST) {
        let Some(mut subject) = subject_or_skip(TEST) else { return };
        subject.settle();
        let key = watch.add(subject.group(), now_ns()).unwrap();
        let before = until_idle(&mut watch, key);
        let begun = now_ns();
        subject.begin(
            "end = time.process_time() + 0.1\nwhile time.process_time() < end: pass\nprint(time.monotonic_ns(), flush=True)",
        );
        wait_for("it to work", || activity(&mut watch, key).runnable);
        assert_eq!(activity(&mut watch, key).idle(now_ns()), None, "{}", watch.sight());
        let worked_ns: u64 = subject.line().parse().unwrap();
        assert_eq!(subject.line(), "ok");
        subject.settle();
        let after = until_idle(&mut watch, key);
        let ended = now_ns();
        println!("{}: it ran {:?}", watch.sight(), after.ran);
        assert!(after.last_work_ns > begun, "{before:?} {after:?}");
        assert!(after.ran - before.ran >= Duration::from_millis(50), "{before:?} {after:?}");
        if watch.sight() != Sight::Procfs {
            assert!(after.last_work_ns <= ended, "the kernel's own time, not that of the look");
            // By the kernel's clock alone, however long we were kept from looking: idle from the switch on that took the
            // last task off its CPU, and not before its last work.
            let idle_ns = after.idle_since_ns.unwrap();
            assert!((worked_ns..=ended).contains(&idle_ns), "{worked_ns} {idle_ns} {ended}");
            let late = Duration::from_nanos(idle_ns - after.last_ran_ns);
            println!("{}: idle {late:?} after it last ran", watch.sight());
            assert!(late <= IDLE_WITHIN, "{after:?}");
            assert!(after.counts.unwrap().wakes > before.counts.unwrap().wakes);
        }
        watch.remove(key);
        assert_eq!(watch.activity(key, now_ns()), None);
    }
}

#[test]
fn a_sandbox_that_only_timers_wake_is_idle() {
    const TEST: &str = "a_sandbox_that_only_timers_wake_is_idle";
    for membership in [Membership::Cgroup, Membership::Processes] {
        let Some(mut watch) = ebpf_or_skip(TEST, membership) else { return };
        let Some(mut subject) = subject_or_skip(TEST) else { return };
        let key = watch.add(subject.group(), now_ns()).unwrap();
        subject.run("stop = threading.Event()\nthreading.Thread(target=lambda: [time.sleep(.002) for _ in iter(stop.is_set, True)], daemon=True).start()");
        subject.settle();
        let first = activity(&mut watch, key);
        let mut last = first;
        wait_for("fifty timers", || {
            last = activity(&mut watch, key);
            last.counts.unwrap().timer_wakes >= first.counts.unwrap().timer_wakes + 50
        });
        println!("{}: {first:?} then {last:?}", watch.sight());
        assert!(last.last_ran_ns > first.last_ran_ns, "it did run");
        assert!(last.last_work_ns < last.last_ran_ns, "and that was no work");
        let others = |seen: Activity| seen.counts.unwrap().wakes - seen.counts.unwrap().timer_wakes;
        // Fifty wake-ups later nearly all are the timers'; the end of our own request may be among the others.
        assert!(others(last) - others(first) <= 5, "{first:?} {last:?}");
        // A timer that brings real work is work.
        let begun = now_ns();
        subject.begin(
            "time.sleep(0.01); end = time.process_time() + 0.05\nwhile time.process_time() < end: pass",
        );
        assert_eq!(subject.line(), "ok");
        assert!(activity(&mut watch, key).last_work_ns > begun);
    }
}

#[test]
fn a_storm_of_forks_is_counted_and_leaves_nothing() {
    const TEST: &str = "a_storm_of_forks_is_counted_and_leaves_nothing";
    const FORKS: u64 = 400;
    for membership in [Membership::Cgroup, Membership::Processes] {
        let Some(mut watch) = ebpf_or_skip(TEST, membership) else { return };
        let Some(mut subject) = subject_or_skip(TEST) else { return };
        let key = watch.add(subject.group(), now_ns()).unwrap();
        // Children with children and threads of their own, some ended by exec of another program.
        subject.run(&format!(
            "
pids = []
for i in range({FORKS}):
    pid = os.fork()
    if pid == 0:
        if i % 8 == 0: threading.Thread(target=lambda: os.execv('/bin/true', ['true'])).start(); time.sleep(9)
        if i % 8 == 1: os.wait() if os.fork() else os._exit(0)
        os._exit(0)
    pids.append(pid)
    if len(pids) > 20: os.waitpid(pids.pop(0), 0)
for pid in pids: os.waitpid(pid, 0)
"
        ));
        let after = until_idle(&mut watch, key);
        let counts = after.counts.unwrap();
        println!("{}: {counts:?}", watch.sight());
        // A fork per child, a thread and a grandchild for every eighth.
        assert_eq!(counts.forks, FORKS + FORKS / 8 * 2, "{counts:?}");
        assert_eq!(counts.exits, counts.forks, "{counts:?}");
        assert_eq!((watch.lost().tasks, watch.lost().members), (0, 0));
        assert_eq!(watch.sweep(), 0, "every end was seen");
        watch.pass_log_on();
    }
}

#[test]
fn tasks_that_were_there_before_the_watch_are_seen_when_they_run() {
    const TEST: &str = "tasks_that_were_there_before_the_watch_are_seen_when_they_run";
    for membership in [Membership::Cgroup, Membership::Processes] {
        let Some(mut watch) = ebpf_or_skip(TEST, membership) else { return };
        let Some(mut subject) = subject_or_skip(TEST) else { return };
        // A thread of a child, which begets a grandchild when it is told to; all but the grandchild sleep meanwhile.
        subject.run(
            "
go, told = os.pipe()
ended, end = os.pipe()
def work():
    os.write(end, b'.')
    os.read(go, 1)
    if os.fork(): os.wait()
    else:
        until = time.process_time() + .1
        while time.process_time() < until: pass
        os._exit(0)
    os.write(end, b'.')
if os.fork() == 0:
    thread = threading.Thread(target=work); thread.start(); thread.join()
    os._exit(0)
os.read(ended, 1)
",
        );
        subject.settle();
        let key = watch.add(subject.group(), now_ns()).unwrap();
        let before = until_idle(&mut watch, key);
        subject.run("os.write(told, b'.')");
        wait_for("the grandchild to work", || activity(&mut watch, key).runnable);
        subject.run("os.read(ended, 1); os.wait()");
        let after = until_idle(&mut watch, key);
        println!("{}: {before:?} then {after:?}", watch.sight());
        assert!(after.ran - before.ran >= Duration::from_millis(100), "{before:?} {after:?}");
        let counts = after.counts.unwrap();
        assert_eq!((counts.forks, counts.exits), (1, 3), "grandchild; and its parent's two threads");
        assert_eq!(watch.sweep(), 0);
    }
}

#[test]
fn a_stranger_that_never_leaves_its_cpu_is_seen_all_the_same() {
    const TEST: &str = "a_stranger_that_never_leaves_its_cpu_is_seen_all_the_same";
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this).unwrap();
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu).unwrap()).collect();
    let &[ours, theirs, ..] = &cpus[..] else { return println!("SKIPPED {TEST}: needs two CPUs") };
    let mut alone = CpuSet::new();
    alone.set(ours).unwrap();
    for membership in [Membership::Cgroup, Membership::Processes] {
        let Some(mut watch) = ebpf_or_skip(TEST, membership) else { return };
        let Some(mut subject) = subject_or_skip(TEST) else { return };
        // Nothing usual takes the CPU from it, and it must not take ours.
        subject.run(&format!(
            "os.sched_setaffinity(0, {{{theirs}}}); os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"
        ));
        sched_setaffinity(this, &alone).unwrap();
        // Something unusual, a thread of the kernel, may take it in one round, but not in each.
        let seen_on_cpu = (0..5).any(|_| {
            subject.settle();
            let key = watch.add(subject.group(), now_ns()).unwrap();
            subject.begin("end = time.process_time() + 0.1\nwhile time.process_time() < end: pass");
            let mut seen = activity(&mut watch, key);
            wait_for("it to be seen", || {
                seen = activity(&mut watch, key);
                seen.runnable || seen.counts.unwrap().switches > 0
            });
            assert_eq!(subject.line(), "ok");
            watch.remove(key);
            seen.counts.unwrap().switches == 0
        });
        assert!(seen_on_cpu, "{}: only when it left", watch.sight());
    }
}

#[test]
fn a_task_that_leaves_the_cgroup_leaves_the_sandbox() {
    const TEST: &str = "a_task_that_leaves_the_cgroup_leaves_the_sandbox";
    let Some(mut watch) = ebpf_or_skip(TEST, Membership::Cgroup) else { return };
    let Some(mut subject) = subject_or_skip(TEST) else { return };
    let key = watch.add(subject.group(), now_ns()).unwrap();
    subject.begin("while True: pass");
    wait_for("it to work", || activity(&mut watch, key).runnable);
    let outside = cgroup2().unwrap().join("cgroup.procs");
    fs::write(outside, subject.child.id().to_string()).unwrap();
    wait_for("it to be somebody else's", || !activity(&mut watch, key).runnable);
    let gone = activity(&mut watch, key);
    fs::write(subject.cgroup.join("cgroup.procs"), subject.child.id().to_string()).unwrap();
    wait_for("it to be back", || activity(&mut watch, key).runnable);
    assert!(activity(&mut watch, key).counts.unwrap().wakes > gone.counts.unwrap().wakes);
}

/// Maps private memory and says where.
fn map_pages(subject: &mut Subject, pages: u64) -> u64 {
    subject.begin(&format!(
        "
area = mmap.mmap(-1, {pages} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
area.madvise(mmap.MADV_NOHUGEPAGE)
print(ctypes.addressof(ctypes.c_char.from_buffer(area)), flush=True)
"
    ));
    let address = subject.line().parse().unwrap();
    assert_eq!(subject.line(), "ok");
    address
}

#[test]
fn faults_are_seen_in_the_order_they_happen() {
    const TEST: &str = "faults_are_seen_in_the_order_they_happen";
    // (page, written): reads first bring the shared zero page, a write after that copies it.
    const TOUCHES: [(u64, bool); 9] = [
        (5, true),
        (3, false),
        (60, true),
        (7, true),
        (3, true),
        (0, false),
        (63, true),
        (1, true),
        (0, true),
    ];
    for membership in [Membership::Cgroup, Membership::Processes] {
        let Some(mut watch) = ebpf_or_skip(TEST, membership) else { return };
        let Some(mut subject) = subject_or_skip(TEST) else { return };
        let key = watch.add(subject.group(), now_ns()).unwrap();
        let area = map_pages(&mut subject, 64);
        watch.want_faults(key, Wants { events: true, heat: true }).unwrap();
        for (page, write) in TOUCHES {
            let offset = page * 4096 + 8;
            subject.run(&if write { format!("area[{offset}] = 7") } else { format!("area[{offset}]") });
        }
        let faults = watch.faults(usize::MAX);
        let ours: Vec<_> =
            faults.iter().filter(|fault| (area..area + 64 * 4096).contains(&fault.address)).collect();
        let seen: Vec<_> = ours.iter().map(|fault| ((fault.address - area) / 4096, fault.write)).collect();
        assert_eq!(seen, TOUCHES);
        assert!(ours.is_sorted_by_key(|fault| fault.at_ns));
        assert!(ours.iter().all(|fault| fault.process == subject.child.id() && fault.key == key));
        let heat = watch.heat(key, now_ns());
        let of = |page: u64| heat.iter().find(|heat| heat.page == area / 4096 + page).copied();
        assert_eq!(of(2), None, "never touched");
        let [twice, once] = [of(3).unwrap(), of(5).unwrap()];
        assert!(twice.touches > once.touches && once.writes > 0.0, "{twice:?} {once:?}");
        // Nobody asks any more: nothing is said any more.
        watch.want_faults(key, Wants::default()).unwrap();
        watch.faults(usize::MAX);
        subject.run("area[9 * 4096] = 1");
        assert_eq!(watch.faults(usize::MAX), []);
    }
}

#[test]
fn what_does_not_fit_into_the_ring_is_counted() {
    const TEST: &str = "what_does_not_fit_into_the_ring_is_counted";
    let Some(mut watch) = ebpf_or_skip(TEST, Membership::Cgroup) else { return };
    let Some(mut subject) = subject_or_skip(TEST) else { return };
    let key = watch.add(subject.group(), now_ns()).unwrap();
    watch.want_faults(key, Wants { events: true, heat: false }).unwrap();
    map_pages(&mut subject, 40_000);
    subject.run("for page in range(40000): area[page * 4096] = 1");
    let counts = until_idle(&mut watch, key).counts.unwrap();
    let (waiting, lost) = (watch.faults(usize::MAX).len() as u64, watch.lost());
    println!("{} faults: {waiting} waited, {} lost", counts.faults, lost.faults);
    assert!(lost.faults > 0 && waiting > 0 && counts.faults >= 40_000);
    assert_eq!(waiting + lost.faults, counts.faults);
    assert_eq!(lost.odd, 0);
    // What was seen is not forgotten when nobody asks any more, or asks again.
    for wants in [Wants::default(), Wants { events: true, heat: false }] {
        watch.want_faults(key, wants).unwrap();
        assert!(activity(&mut watch, key).counts.unwrap().faults >= counts.faults);
    }
}

#[test]
fn a_watch_without_kernel_programs_says_what_it_cannot_do() {
    let mut watch = Watch::procfs();
    let group = Group { cgroup_id: None, procs: "/nowhere/cgroup.procs".into() };
    let key = watch.add(group, now_ns()).unwrap();
    let refused = watch.want_faults(key, Wants { events: true, heat: true });
    assert!(matches!(refused, Err(WatchError::OnlyEbpf)), "{refused:?}");
    assert_eq!(activity(&mut watch, key).counts, None);
    assert_eq!((watch.faults(9).len(), watch.heat(key, now_ns()).len()), (0, 0));
}

fn loaded(ids: &(Vec<u32>, Vec<u32>)) -> bool {
    let programs: Vec<u32> = aya::programs::loaded_programs().flatten().map(|program| program.id()).collect();
    let maps: Vec<u32> = aya::maps::loaded_maps().flatten().map(|map| map.id()).collect();
    ids.0.iter().any(|id| programs.contains(id)) || ids.1.iter().any(|id| maps.contains(id))
}

#[test]
fn nothing_stays_in_the_kernel_after_drop() {
    let Some(watch) = ebpf_or_skip("nothing_stays_in_the_kernel_after_drop", Membership::Cgroup) else {
        return;
    };
    let ours = watch.kernel_ids();
    assert!(ours.0.len() >= 7 && ours.1.len() >= 6, "{ours:?}");
    assert!(loaded(&ours));
    drop(watch);
    // The kernel frees programs a moment later, after all CPUs have left them.
    wait_for("programs and maps to be gone", || !loaded(&ours));
}

const HOLD: &str = "MEDES_TEST_HOLD_WATCH";

/// Not a test by itself: what the next one kills.
#[test]
fn holder_of_a_watch() {
    if std::env::var_os(HOLD).is_none() {
        return;
    }
    let watch = ebpf_or_skip("holder", Membership::Cgroup).unwrap();
    let (programs, maps) = watch.kernel_ids();
    println!("holds {programs:?}{maps:?}");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn nothing_stays_in_the_kernel_after_a_kill() {
    const TEST: &str = "nothing_stays_in_the_kernel_after_a_kill";
    if ebpf_or_skip(TEST, Membership::Cgroup).is_none() {
        return;
    }
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_of_a_watch", "--nocapture"])
        .env(HOLD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
    let line =
        lines.map_while(Result::ok).find_map(|line| line.split_once("holds ").map(|it| it.1.to_owned()));
    let line = line.expect("what it holds");
    let numbers = |text: &str| -> Vec<u32> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    let (programs, maps) = line.split_once("][").unwrap();
    let theirs = (numbers(programs), numbers(maps));
    assert!(loaded(&theirs) && theirs.0.len() >= 7, "{theirs:?}");
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_for("programs and maps to be gone", || !loaded(&theirs));
}

const HOLD_WRITES: &str = "MEDES_TEST_HOLD_WRITES";

/// Not a test by itself: what the next one kills.
#[test]
fn holder_of_writes() {
    let Some(pid) = std::env::var(HOLD_WRITES).ok().and_then(|pid| pid.parse().ok()) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let reaper = Reaper::start(&TaskTracker::new(), CancellationToken::new()).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_medes-agent"));
        let writes = Writes::begin(&reaper, program, Pid::from_raw(pid)).await.unwrap();
        println!("holds {}", writes.take().unwrap().pages());
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    });
}

#[test]
fn no_userfaultfd_stays_after_a_kill() {
    let Some(mut subject) = subject_or_skip("no_userfaultfd_stays_after_a_kill") else { return };
    subject.settle();
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_of_writes", "--nocapture"])
        .env(HOLD_WRITES, subject.child.id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(holder.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("holds ")), "it is tracked");
    let smaps = format!("/proc/{}/smaps", subject.child.id());
    let tracked = || {
        let flags = fs::read_to_string(&smaps).unwrap();
        flags.lines().any(|line| line.starts_with("VmFlags:") && line.contains(" uw"))
    };
    assert!(tracked());
    holder.kill().unwrap();
    holder.wait().unwrap();
    wait_for("the protection to be gone", || !tracked());
    let folder = fs::read_dir(format!("/proc/{}/fd", subject.child.id())).unwrap();
    let names = folder.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    assert_eq!(names.filter(|name| name.to_string_lossy().contains("userfaultfd")).count(), 0);
    subject.run("kept = [bytearray(4096) for _ in range(100)]");
}

#[test]
fn a_group_that_is_gone_has_no_processes() {
    assert_eq!(Group { cgroup_id: None, procs: Path::new("/nowhere").into() }.pids(), []);
}
