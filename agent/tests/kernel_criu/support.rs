//! A sandbox made with `unshare`, and one runtime with one reaper for all tests of this file.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use medes_agent::criu::{Criu, ExternalMount, Output, Seat, run_dir};
use medes_agent::reaper::{ExitWatch, Reaper};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// What all tests share. They take turns, since there is one reaper per process.
pub(crate) struct Bench {
    pub(crate) criu: Criu,
    pub(crate) reaper: Reaper,
    pub(crate) handle: Handle,
    pub(crate) tasks: TaskTracker,
    /// A tmpfs only this test program sees.
    pub(crate) scratch: PathBuf,
    turn: Mutex<()>,
}

impl Bench {
    /// The bench, or None after saying why this machine has none.
    pub(crate) fn get(test: &str) -> Option<(&'static Self, MutexGuard<'static, ()>)> {
        static BENCH: OnceLock<Result<Bench, String>> = OnceLock::new();
        match BENCH.get_or_init(set_up) {
            Ok(bench) => Some((bench, bench.turn.lock().unwrap_or_else(PoisonError::into_inner))),
            Err(reason) => {
                println!("SKIPPED {test}: {reason}");
                None
            }
        }
    }

    /// Runs a future where the private mounts are seen, and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let limited = async { tokio::time::timeout(Duration::from_secs(120), work).await };
        let task = self.tasks.spawn_on(limited, &self.handle);
        match self.handle.block_on(task) {
            Ok(done) => done.expect("the test hangs"),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        static NEXT: Mutex<u32> = Mutex::new(0);
        let mut next = NEXT.lock().unwrap();
        *next += 1;
        let path = self.scratch.join(format!("{name}-{next}"));
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A network namespace with its loopback up.
    pub(crate) fn netns(&self) -> io::Result<OwnedFd> {
        let (reaper, handle) = (self.reaper.clone(), self.handle.clone());
        let made = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let (_child, mut exit) = reaper.spawn(Command::new("ip").args(["link", "set", "lo", "up"]))?;
            handle.block_on(exit.wait());
            Ok(OwnedFd::from(File::open("/proc/thread-self/ns/net")?))
        });
        made.join().expect("no panic")
    }

    /// A seat that keeps the namespace and the reading end of the output.
    pub(crate) fn seat(&self) -> io::Result<Seat<Outside>> {
        let netns = self.netns()?;
        let (read, write) = io::pipe()?;
        let keep = Outside { netns: netns.try_clone()?, output: read };
        let output = Output { stdout: write.try_clone()?.into(), stderr: File::open("/dev/null")?.into() };
        Ok(Seat { netns, output: Some(output), keep })
    }
}

/// What of a sandbox stays with the test.
pub(crate) struct Outside {
    pub(crate) netns: OwnedFd,
    pub(crate) output: io::PipeReader,
}

fn set_up() -> Result<Bench, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("needs root".into());
    }
    let private = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/criu");
    let private =
        Some(Path::new(private)).filter(|path| path.exists() && std::env::var_os("MEDES_CRIU").is_none());
    let criu = Criu::find(private).map_err(|error| error.to_string())?;
    let (done, wait) = mpsc::channel();
    // The runtime's threads are born where /run and the scratch folder are ours alone.
    thread::spawn(move || {
        done.send(in_private_mounts(criu)).expect("set_up waits");
        thread::park();
    });
    let bench = wait.recv().map_err(|error| error.to_string())??;
    let (criu, reaper, scratch) = (bench.criu.clone(), bench.reaper.clone(), bench.scratch.clone());
    bench.run(async move { criu.check(&reaper, &scratch).await }).map_err(|error| format!("{error}"))?;
    Ok(bench)
}

fn in_private_mounts(criu: Criu) -> Result<Bench, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| text(&e))?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| text(&e))?;
    run_dir::ensure().map_err(|e| text(&e))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(|e| text(&e))?;
    let scratch = TempDir::new().map_err(|e| text(&e))?.keep();
    mount(Some("scratch"), &scratch, Some("tmpfs"), MsFlags::empty(), Some("size=1g"))
        .map_err(|e| text(&e))?;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|e| text(&e))?;
    let tasks = TaskTracker::new();
    let _inside = runtime.enter();
    let reaper = Reaper::start(&tasks, CancellationToken::new()).map_err(|e| text(&e))?;
    let handle = runtime.handle().clone();
    // It lives as long as the test program.
    std::mem::forget(runtime);
    Ok(Bench { criu, reaper, handle, tasks, scratch, turn: Mutex::new(()) })
}

/// Mounts and processes of one sandbox. Ends with it.
pub(crate) struct Sandbox {
    pub(crate) pid: Pid,
    pub(crate) root: PathBuf,
    pub(crate) mounts: Vec<ExternalMount>,
    pub(crate) outside: Outside,
    exit: ExitWatch,
}

impl Sandbox {
    /// Starts `server.py` with that many children and waits until it is ready. To be called on the bench.
    pub(crate) fn start(bench: &Bench, children: u32) -> Self {
        let folder = bench.folder("sandbox");
        let root = folder.join("root");
        let private = folder.join("private");
        for dir in [&root, &private] {
            fs::create_dir(dir).unwrap();
        }
        let none: Option<&str> = None;
        mount(Some("/"), &root, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, &root, none, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, none).unwrap();
        mount(Some("private"), &private, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        for dir in ["tmp", "shm"] {
            fs::create_dir(private.join(dir)).unwrap();
        }
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernel_criu");
        // Into the sandbox's own /tmp: a checkout may lie below the host's, which it does not see.
        fs::copy(format!("{sources}/server.py"), private.join("tmp/server.py")).unwrap();
        let (mut read, write) = io::pipe().unwrap();
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--ipc", "--uts", "--net", "--fork", "sh", "-e"])
            .arg(format!("{sources}/enter.sh"))
            .args(["/usr/bin/python3", "/tmp/server.py", &children.to_string()])
            .env("ROOT", &root)
            .env("PRIVATE", &private)
            .stdin(Stdio::null())
            .stdout(write);
        let (child, exit) = bench.reaper.spawn(&mut command).unwrap();
        drop(command);
        wait_for_line(&mut read, "ready");
        let shim = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let listed = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
        let pid = Pid::from_raw(listed.trim().parse().unwrap());
        let netns = File::open(format!("/proc/{pid}/ns/net")).unwrap().into();
        let mount_at = |key: &str, inside: &str, outside: PathBuf| ExternalMount {
            key: key.into(),
            inside: inside.into(),
            outside,
        };
        let mounts = vec![
            mount_at("dev", "/dev", "/dev".into()),
            mount_at("tmp", "/tmp", private.join("tmp")),
            mount_at("shm", "/dev/shm", private.join("shm")),
        ];
        Self { pid, root, mounts, outside: Outside { netns, output: read }, exit }
    }

    /// How `/proc` names the sandbox's standard output.
    pub(crate) fn output_key(&self) -> String {
        fs::read_link(format!("/proc/{}/fd/1", self.pid)).unwrap().to_str().unwrap().to_owned()
    }

    /// What stands in its place after a restore.
    pub(crate) fn became(&mut self, bench: &Bench, pid: Pid, outside: Outside) {
        (self.pid, self.outside, self.exit) = (pid, outside, bench.reaper.claim(pid));
    }

    /// Where something is mounted, and with which options.
    pub(crate) fn mount_options(&self) -> Vec<String> {
        let info = fs::read_to_string(format!("/proc/{}/mountinfo", self.pid)).unwrap();
        let mut mounts: Vec<String> =
            info.lines().map(|line| line.split(' ').skip(4).take(2).collect::<Vec<_>>().join(" ")).collect();
        mounts.sort();
        mounts
    }

    /// Ends the processes and waits until they are gone. Mounts stay, for a restore.
    pub(crate) async fn end(&mut self) {
        kill_tree(self.pid);
        tokio::time::timeout(LIMIT, self.exit.wait()).await.expect("it ends when killed");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.exit.now().is_none() {
            kill_tree(self.pid);
        }
        // Mounts of a folder that goes away with the test program.
        let _busy = umount2(&self.root, MntFlags::MNT_DETACH);
    }
}

/// Killing the first process of a pid namespace kills the others.
pub(crate) fn kill_tree(root: Pid) {
    let _gone = kill(root, Signal::SIGKILL);
}

/// Ends a restored tree.
pub(crate) async fn end_restored(bench: &Bench, root: Pid) {
    let mut exit = bench.reaper.claim(root);
    kill_tree(root);
    tokio::time::timeout(LIMIT, exit.wait()).await.expect("it ends when killed");
}

/// Every process in that network namespace.
pub(crate) fn processes_in(netns: &OwnedFd) -> Vec<Pid> {
    let wanted = nix::sys::stat::fstat(netns).unwrap().st_ino;
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let theirs = nix::sys::stat::stat(format!("/proc/{pid}/ns/net").as_str());
        theirs.is_ok_and(|theirs| theirs.st_ino == wanted)
    })
    .map(Pid::from_raw)
    .collect()
}

/// Looks again and again, with a deadline.
pub(crate) async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let looked = tokio::time::timeout(LIMIT, async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    looked.await.unwrap_or_else(|_late| panic!("not so after {LIMIT:?}: {what}"));
}

/// Reads lines until this one comes.
pub(crate) fn wait_for_line(from: &mut impl Read, line: &str) {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&seen).lines().any(|l| l == line) || !seen.ends_with(b"\n") {
        assert_eq!(
            from.read(&mut byte).unwrap(),
            1,
            "the output ended after {}",
            String::from_utf8_lossy(&seen)
        );
        seen.push(byte[0]);
    }
}

/// Connects to the sandbox from inside its network namespace.
pub(crate) fn connect(netns: &OwnedFd) -> TcpStream {
    thread::scope(|scope| {
        let connected = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            TcpStream::connect("127.0.0.1:8080").unwrap()
        });
        let stream = connected.join().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    })
}

/// One request; gives the body of the answer.
pub(crate) async fn ask(netns: &OwnedFd) -> String {
    ask_for(netns, "/").await
}

/// Seconds, by the clock that the program measures time by.
pub(crate) async fn clock(netns: &OwnedFd) -> f64 {
    ask_for(netns, "/clock").await.parse().unwrap()
}

async fn ask_for(netns: &OwnedFd, path: &'static str) -> String {
    let netns = netns.try_clone().unwrap();
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = connect(&netns);
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
    });
    asked.await.unwrap()
}

/// What `server.py` answers to its n-th request when all is well.
pub(crate) fn good(number: u32) -> String {
    format!("number={number} kept=kept-0 gone=gone-data private=13000 thread=ticking")
}
