//! Writes of a running sandbox, seen from outside; the sandbox must not notice.

use std::fs;
use std::path::Path;
use std::sync::mpsc;

use medes_agent::sandbox::{Host, Housing, Tree};
use medes_agent::watch::writes::{InjectError, Way, Writes, WritesError, Written};
use nix::sys::ptrace;

use crate::node::{function, launch, on_node, result, until};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("written_pages_are_seen_and_no_others", written_pages_are_seen_and_no_others),
    ("a_sandbox_does_not_notice_that_it_is_tracked", a_sandbox_does_not_notice_that_it_is_tracked),
    ("a_sandbox_under_a_debugger_is_left_alone", a_sandbox_under_a_debugger_is_left_alone),
    ("a_frozen_sandbox_is_left_as_it_was", a_frozen_sandbox_is_left_as_it_was),
    ("tracking_ends_with_the_program", tracking_ends_with_the_program),
    ("soft_dirty_bits_show_what_is_there_on_any_kernel", soft_dirty_bits_show_what_is_there_on_any_kernel),
];

pub(crate) async fn begin(host: &Host, tree: &Tree) -> Writes {
    let program = Path::new(env!("CARGO_BIN_EXE_medes-agent"));
    let writes = Writes::begin(host.reaper(), program, tree.pid()).await;
    writes.unwrap_or_else(|error| panic!("{error}: {error:?}"))
}

/// Maps private memory in the sandbox; returns its address.
async fn map_pages(housing: &Housing, pages: u64) -> u64 {
    let code = format!(
        "import sys, mmap, ctypes\nsys.area = mmap.mmap(-1, {pages} * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
        for i in range(0, {pages}, 2): sys.area[i * 4096] = 1\n\
        result = ctypes.addressof(ctypes.c_char.from_buffer(sys.area))"
    );
    result(housing, &code).await.parse().unwrap()
}

/// Which pages of an area were written.
fn within(written: &Written, area: u64, pages: u64) -> Vec<u64> {
    let first = area / 4096;
    written.numbers().filter(|number| (first..first + pages).contains(number)).map(|it| it - first).collect()
}

fn written_pages_are_seen_and_no_others() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let area = map_pages(&housing, 64).await;
        let writes = begin(&host, &tree).await;
        let everything = writes.take().unwrap();
        let even: Vec<u64> = (0..64).step_by(2).collect();
        assert_eq!(within(&everything, area, 64), even, "first all that is there");
        assert_eq!(within(&writes.take().unwrap(), area, 64), [0; 0], "and then nothing");
        // Pages that were there and pages that were not, and one that the kernel writes; reads do not count.
        let code = "import sys, os\nfor i in (60, 5, 3): sys.area[i * 4096 + 9] = 7\n\
            pipe = os.pipe(); os.write(pipe[1], b'kernel'); os.readv(pipe[0], [memoryview(sys.area)[4096 * 8:4096 * 8 + 6]])\n\
            result = sum(sys.area[i * 4096] for i in (0, 1, 2, 62))";
        result(&housing, code).await;
        let written = writes.take().unwrap();
        assert_eq!(within(&written, area, 64), [3, 5, 8, 60]);
        let first = area / 4096;
        let appeared =
            written.appeared().filter(|page| (first..first + 64).contains(page)).map(|page| page - first);
        assert_eq!(appeared.collect::<Vec<_>>(), [1, 3, 5], "page 1 was only read, for the first time");
        println!("stood still for {:?}; a request wrote {} pages", writes.stopped(), written.pages());
        // What is mapped later is written when it is touched, also in the place of something that was tracked.
        let code = "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.mmap.restype = ctypes.c_void_p\n\
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]\n";
        let again = format!(
            "{code}result = libc.mmap({area}, 16 * 4096, 3, 0x32, -1, 0) == {area} and ctypes.memset({area} + 4096, 1, 1)"
        );
        result(&housing, &again).await;
        assert_eq!(within(&writes.take().unwrap(), area, 16), [1]);
        result(&housing, &format!("import ctypes\nctypes.memset({area} + 4096 * 2, 1, 1)")).await;
        assert_eq!(within(&writes.take().unwrap(), area, 16), [2]);
        housing.remove().await.unwrap();
    });
}

/// What must be the same before and after, as the function itself sees it.
/// Without SigQ, which counts the signals of all processes of this user on the machine.
const VIEW: &str = "import os\nkeys = ('Cap', 'NoNew', 'Seccomp', 'SigPnd', 'SigBlk', 'SigIgn', 'SigCgt', 'Shd', 'Threads', 'TracerPid', 'Uid')\n\
    lines = [line for line in open('/proc/self/status') if line.startswith(keys)]\n\
    names = ['/proc/self/fd/' + fd for fd in os.listdir('/proc/self/fd')]\n\
    result = (sorted(os.readlink(name).split(':')[0] for name in names if os.path.lexists(name)), lines)";

fn a_sandbox_does_not_notice_that_it_is_tracked() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        // Threads in system calls that are restarted, and one that computes with all registers.
        let code = "
import sys, threading, time, signal, os
sys.stop = False; sys.early = []; sys.wrong = []; sys.rounds = 0
def sleeper():
    while not sys.stop:
        begun = time.monotonic(); time.sleep(0.3)
        if time.monotonic() - begun < 0.29: sys.early.append(1)
def reader(pipe):
    if os.read(pipe, 1) != b'x': sys.wrong.append('read')
def thinker():
    while not sys.stop:
        if sum(float(i) for i in range(200)) != 19900.0: sys.wrong.append('sum')
        sys.rounds += 1
sys.pipe = os.pipe(); sys.lock = threading.Lock(); sys.lock.acquire()
sys.threads = [threading.Thread(target=it, args=a) for it, a in
    [(sleeper, ()), (reader, (sys.pipe[0],)), (thinker, ()), (sys.lock.acquire, ())]]
for thread in sys.threads: thread.start()
result = 1";
        result(&housing, code).await;
        let before = result(&housing, VIEW).await;
        let flags = || fs::read_to_string(format!("/proc/{}/smaps", tree.pid())).unwrap();
        let tracked = || flags().lines().any(|line| line.starts_with("VmFlags:") && line.contains(" uw"));
        for round in 0..20 {
            let writes = begin(&host, &tree).await;
            writes.take().unwrap();
            assert!(tracked(), "round {round}");
            drop(writes);
            assert!(!tracked(), "round {round}: a dropped tracker leaves nothing");
        }
        assert_eq!(result(&housing, VIEW).await, before);
        let code = "import sys, os\nsys.stop = True; os.write(sys.pipe[1], b'x'); sys.lock.release()\n\
            for thread in sys.threads: thread.join(5)\n\
            result = (sys.early, sys.wrong, sys.rounds > 0, [t.is_alive() for t in sys.threads])";
        assert_eq!(result(&housing, code).await, "([], [], True, [False, False, False, False])");
        let unshare = "import ctypes\nresult = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)";
        assert_eq!(result(&housing, unshare).await, "-1", "the filter holds");
        let own = "import ctypes\nresult = ctypes.CDLL(None, use_errno=True).syscall(323, 1)";
        assert_eq!(result(&housing, own).await, "-1", "and it still cannot make a userfaultfd itself");
        housing.remove().await.unwrap();
    });
}

fn a_sandbox_under_a_debugger_is_left_alone() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let (pid, program) = (tree.pid(), Path::new(env!("CARGO_BIN_EXE_medes-agent")));
        let (attached, is_attached) = mpsc::channel();
        let (detach, told) = mpsc::channel::<()>();
        // A tracer is a thread: this one is the debugger.
        let debugger = std::thread::spawn(move || {
            ptrace::seize(pid, ptrace::Options::empty()).unwrap();
            attached.send(()).unwrap();
            told.recv().unwrap();
            ptrace::interrupt(pid).unwrap();
            until("it stops", || ptrace::detach(pid, None).is_ok());
        });
        is_attached.recv().unwrap();
        let refused = Writes::begin(host.reaper(), program, pid).await;
        let Err(WritesError::Inject { source: InjectError::Traced { tracer }, .. }) = &refused else {
            panic!("{refused:?}")
        };
        assert!(Path::new(&format!("/proc/self/task/{tracer}")).exists(), "a thread of ours: {tracer}");
        assert_eq!(result(&housing, "result = 1").await, "1");
        detach.send(()).unwrap();
        debugger.join().unwrap();
        begin(&host, &tree).await.take().unwrap();
        housing.remove().await.unwrap();
    });
}

fn a_frozen_sandbox_is_left_as_it_was() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        housing.cgroup().freeze().await.unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_medes-agent"));
        let refused = Writes::begin(host.reaper(), program, tree.pid()).await;
        assert!(
            matches!(&refused, Err(WritesError::Inject { source: InjectError::Stuck { .. }, .. })),
            "{refused:?}"
        );
        housing.cgroup().thaw().unwrap();
        assert_eq!(result(&housing, "result = 1").await, "1");
        // Once the helper has let go.
        until("nobody traces it", || {
            let status = fs::read_to_string(format!("/proc/{}/status", tree.pid())).unwrap();
            status.contains("TracerPid:\t0\n")
        });
        begin(&host, &tree).await.take().unwrap();
        housing.remove().await.unwrap();
    });
}

fn tracking_ends_with_the_program() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let writes = begin(&host, &tree).await;
        writes.take().unwrap();
        tree.kill().await.unwrap();
        assert!(matches!(writes.take(), Err(WritesError::Gone)));
        let program = Path::new(env!("CARGO_BIN_EXE_medes-agent"));
        let late = Writes::begin(host.reaper(), program, tree.pid()).await;
        assert!(matches!(late, Err(WritesError::Gone)), "{late:?}");
        housing.remove().await.unwrap();
    });
}

/// Which pages are written only a kernel with such bits says; which have appeared, each does.
fn soft_dirty_bits_show_what_is_there_on_any_kernel() {
    on_node(async |host| {
        let (housing, tree) = launch(&host, "s1", &function()).await;
        let writes = Writes::begin_by_bits(tree.pid()).unwrap();
        writes.take().unwrap();
        let area = map_pages(&housing, 64).await;
        let seen = writes.take().unwrap();
        let even: Vec<u64> = (0..64).step_by(2).map(|page| area / 4096 + page).collect();
        let ours = |page: &u64| (area / 4096..area / 4096 + 64).contains(page);
        assert_eq!(seen.appeared().filter(ours).collect::<Vec<_>>(), even);
        match Way::find() {
            Some(Way::Protection) | None => {
                println!("SKIPPED written pages: the best way here is {:?}", Way::find());
            }
            Some(Way::SoftDirty) => assert_eq!(within(&seen, area, 64).len(), 32),
        }
        tree.kill().await.unwrap();
        assert!(matches!(writes.take(), Err(WritesError::Gone)));
        housing.remove().await.unwrap();
    });
}
