//! A housing whose processes go into CRIU's images and come back.

use std::path::{Path, PathBuf};

use medes_agent::criu::{
    Criu, DumpRequest, ExternalMount, Inherited, Leave, Output, RestoreRequest, Seat, Worker, dump, restore,
    tree,
};
use medes_agent::reaper::ExitStatus;
use medes_agent::sandbox::{AdoptError, Host, Housing, LaunchSpec, Tree, seat};

use medes_agent::watch::writes::WritesError;

use crate::node::{LIMIT, function, launch, on_node, refused, result, until};
use crate::runner::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_sandbox_leaves_and_comes_back", a_sandbox_leaves_and_comes_back),
    ("a_stranger_is_not_adopted", a_stranger_is_not_adopted),
];

/// The CRIU of this machine, or of the private copy that setup has made.
fn find_criu() -> Option<Criu> {
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/criu");
    let copy = Some(copy).filter(|path| path.exists() && std::env::var_os("MEDES_CRIU").is_none());
    Criu::find(copy.as_deref()).ok()
}

/// A worker that uses the network namespace and the output pipe the sandbox has.
async fn worker(criu: &Criu, host: &Host, housing: &Housing) -> (Worker, Vec<(String, Inherited)>) {
    let network = housing.network().try_clone_to_owned().unwrap();
    let (pipe, sink) = housing.inherited_fds().unwrap().remove(0);
    let output = Output { stdout: sink.try_clone().unwrap(), stderr: sink.try_clone().unwrap() };
    let worker = Worker::start(criu, host.reaper(), network, Some(output)).await.unwrap();
    (worker, vec![(pipe, Inherited::Stdout)])
}

/// A worker as the pool makes them: with a namespace and a pipe that the housing has to take over.
async fn pooled_worker(
    criu: &Criu,
    host: &Host,
    housing: &mut Housing,
) -> (Worker, Vec<(String, Inherited)>) {
    let Seat { netns, output, keep } = seat().unwrap();
    let worker = Worker::start(criu, host.reaper(), netns, output).await.unwrap();
    (worker, housing.move_in(keep).unwrap())
}

fn mounts(housing: &Housing) -> Vec<ExternalMount> {
    let same = |mount: &medes_agent::sandbox::ExternalMount| ExternalMount {
        key: mount.key.clone(),
        inside: mount.inside.clone(),
        outside: mount.outside.clone(),
    };
    housing.external_mounts().iter().map(same).collect()
}

async fn put_away(criu: &Criu, host: &Host, housing: &Housing, alive: &Tree, images: &Path) {
    std::fs::create_dir(images).unwrap();
    let request = DumpRequest {
        pid: alive.pid(),
        images,
        mounts: &mounts(housing),
        leave: Leave::Stopped,
        timeout: LIMIT,
        verbose: true,
    };
    let worker = Worker::start_beside(criu, host.reaper(), alive.pid()).await.unwrap();
    if let Err(error) = dump(worker, &request).await {
        panic!("{error}: {error:?}\n{}", log_of(images));
    }
    until("the tree is stopped", || tree::is_stopped(alive.pid()).unwrap());
    assert_eq!(alive.kill().await.unwrap().status, ExitStatus::Signal(9));
}

async fn bring_back(
    (worker, inherited): (Worker, Vec<(String, Inherited)>),
    host: &Host,
    housing: &Housing,
    images: &Path,
) -> Tree {
    let request = RestoreRequest {
        images,
        root: housing.root(),
        mounts: &mounts(housing),
        cgroup_procs: &housing.cgroup().procs_files(),
        inherited: &inherited,
        leave_stopped: true,
        timeout: LIMIT,
        verbose: true,
    };
    match restore(worker, host.reaper(), &request).await {
        Ok(restored) => {
            let adopted = housing.adopt(restored.pid).unwrap();
            tree::resume(restored.pid).unwrap();
            adopted
        }
        Err(error) => panic!("{error}: {error:?}\n{}", log_of(images)),
    }
}

fn log_of(images: &Path) -> String {
    let text = std::fs::read_to_string(images.join("criu.log")).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// What must be the same before and after, as the function itself sees it.
const VIEW: &str = "import os, socket\nresult = (os.getpid(), os.getsid(0), socket.gethostname(), os.getcwd(),\n\
    sorted(line.split()[4:6] for line in open('/proc/self/mountinfo')),\n\
    [line for line in open('/proc/self/status') if line.startswith(('Cap', 'NoNew', 'Seccomp', 'Uid', 'Gid'))],\n\
    open('/proc/self/limits').read())";

fn a_sandbox_leaves_and_comes_back() {
    let Some(criu) = find_criu() else {
        println!("SKIPPED a_sandbox_leaves_and_comes_back: no CRIU");
        return;
    };
    on_node(async |host| {
        criu.check(host.reaper(), host.run_dir()).await.unwrap();
        let spec = LaunchSpec { dir: PathBuf::from("/tmp"), ..function() };
        let (mut housing, alive) = launch(&host, "s1", &spec).await;
        let state = "import sys, threading, subprocess\nsys.kept = ['memory']\nsys.file = open('/tmp/open', 'w+')\n\
            sys.file.write('file'); sys.file.flush()\nsys.shm = open('/dev/shm/open', 'w+')\n\
            sys.gate = threading.Event()\nsys.thread = threading.Thread(target=lambda: (sys.gate.wait(), sys.kept.append('thread')))\n\
            sys.thread.start()\nsys.child = subprocess.Popen(['/bin/cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\nresult = 1";
        result(&housing, state).await;
        let before = result(&housing, VIEW).await;
        let group = housing.cgroup().id();
        // CRIU does not mind that its writes are tracked; a restore ends that.
        let writes = crate::writes::begin(&host, &alive).await;
        writes.take().unwrap();
        let images = housing.work_dir().join("first");
        put_away(&criu, &host, &housing, &alive, &images).await;
        assert!(housing.cgroup().pids().unwrap().is_empty());
        let worker = worker(&criu, &host, &housing).await;
        let alive = bring_back(worker, &host, &housing, &images).await;
        assert!(matches!(writes.take(), Err(WritesError::Gone)));
        crate::writes::begin(&host, &alive).await.take().unwrap();
        assert_eq!(result(&housing, VIEW).await, before);
        assert_eq!((housing.cgroup().id(), alive.pids().unwrap().len()), (group, 2));
        let go_on = "import sys\nsys.gate.set(); sys.thread.join()\nsys.file.seek(0)\n\
            out = sys.child.communicate(b'child')[0].decode()\nresult = sys.kept + [sys.file.read(), out]";
        assert_eq!(result(&housing, go_on).await, "['memory', 'thread', 'file', 'child']");
        // Its walls stand as before.
        let shown = crate::node::function_dir().join("x").display().to_string();
        for path in ["/x", "/dev/x", "/proc/sys/kernel/domainname", &shown] {
            refused(&housing, &format!("open('{path}', 'w')"), "Read-only file system").await;
        }
        refused(&housing, "import os\nos.chown('/tmp', 1, 1)", "PermissionError").await;
        // A system call that the filter refuses although it needs no capability.
        let unshare = "import ctypes\nresult = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)";
        assert_eq!(result(&housing, unshare).await, "-1");
        // It still prints into the same log.
        result(&housing, "print('back again', flush=True)").await;
        assert_eq!(housing.log().tail(1).to_string(), "back again");
        // And once more, from the images of a restored one.
        let images = housing.work_dir().join("second");
        put_away(&criu, &host, &housing, &alive, &images).await;
        let worker = pooled_worker(&criu, &host, &mut housing).await;
        let alive = bring_back(worker, &host, &housing, &images).await;
        assert_eq!(result(&housing, "print('and again', flush=True)\nresult = 1").await, "1");
        let tail = housing.log().tail(2).to_string();
        assert_eq!(tail, "back again\nand again");
        assert_eq!(result(&housing, "import sys\nresult = sys.kept").await, "['memory', 'thread']");
        // Its end is seen although the agent did not start it.
        let crash = crate::node::try_run(&housing, "import os\nos._exit(3)").await;
        assert!(crash.is_err());
        assert_eq!(alive.ended().await.status, ExitStatus::Code(3));
        housing.remove().await.unwrap();
    });
}

fn a_stranger_is_not_adopted() {
    on_node(async |host| {
        let (housing, _tree) = launch(&host, "s1", &function()).await;
        let stranger = housing.adopt(nix::unistd::Pid::this());
        assert!(matches!(stranger, Err(AdoptError::NotInside { .. })), "{stranger:?}");
        let (_child, mut exit) = host.reaper().spawn(&mut std::process::Command::new("/bin/true")).unwrap();
        assert_eq!(exit.wait().await, ExitStatus::Code(0));
        let gone = housing.adopt(exit.pid());
        assert!(matches!(gone, Err(AdoptError::Gone { .. })), "{gone:?}");
        // A program that cannot be started is an error, not a panic, with the reaper running.
        assert!(host.reaper().spawn(&mut std::process::Command::new("/no/such/program")).is_err());
        housing.remove().await.unwrap();
    });
}
