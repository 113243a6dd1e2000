//! The programs under test as child processes, and how a test waits for something to happen.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// For what takes long only when something is wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `look` finds something; fails with `what` after [`PATIENCE`].
#[track_caller]
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One of the programs, beside `medes` or where `MEDES_BIN_DIR` says.
pub(crate) fn path_of(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_medes")).parent().unwrap().to_owned();
    let path = std::env::var_os("MEDES_BIN_DIR").map_or(beside, PathBuf::from).join(name);
    let package = name;
    assert!(path.is_file(), "{} is not there; build it first: cargo build -p {package}", path.display());
    path
}

/// A child process, its output in a log file. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Program {
    /// The kernel tells the child to end if this process (or the test's thread) is killed.
    pub(crate) fn start(program: &Path, args: &[&str], log: &Path, stdout: Stdio) -> Self {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .arg(program)
            .args(args)
            .env_remove("MEDES_CONTROLLER")
            .env("MEDES_RUNTIME_DIR", log.with_file_name("runtime"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(File::options().create(true).append(true).open(log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log: log.into(), ended: None }
    }

    /// The one line of JSON a program prints when it is ready.
    #[track_caller]
    pub(crate) fn first_line(&mut self) -> Value {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}\n{}", self.log()))
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // Not reaped yet, so the number is still its own.
            kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        }
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        assert_eq!(self.wait().signal(), Some(9));
    }

    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = match self.ended {
            Some(status) => status,
            None => until("a program ends", || self.child.try_wait().unwrap()),
        };
        self.ended = Some(status);
        status
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        self.signal(Signal::SIGTERM);
        while self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
            if Instant::now() > deadline {
                println!("killed, since it does not end: {self:?}");
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
