//! `medes-supervise` with a service that is a shell script: it is kept running, replaced, and ended; its socket stays.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use medes_deploy::service::{HERE, Service, Socket};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Says which version it is to everybody who connects. Python: a shell cannot accept.
const SERVER: &str = r#"#!/usr/bin/env python3
import os, socket, sys
assert os.environ["LISTEN_FDNAMES"] == "door" and os.environ["LISTEN_FDS"] == "1", os.environ
server = socket.socket(fileno=3)
while True:
    caller, _ = server.accept()
    caller.sendall(sys.argv[1].encode())
    caller.close()
"#;

struct Supervised {
    dir: tempfile::TempDir,
    child: Child,
    door: SocketAddr,
}

#[track_caller]
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn version(dir: &Path, name: &str, door: SocketAddr, program: &str) {
    let folder = dir.join("versions").join(name);
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(folder.join("service")).unwrap();
    symlink(env!("CARGO_BIN_EXE_medes-supervise"), folder.join("bin/medes-supervise")).unwrap();
    fs::write(folder.join("bin/serve"), program).unwrap();
    fs::set_permissions(folder.join("bin/serve"), fs::Permissions::from_mode(0o755)).unwrap();
    let service = Service {
        description: "A test".into(),
        program: "bin/serve".into(),
        args: vec![HERE.into()],
        capabilities: Vec::new(),
        stop_within_s: 5,
        sockets: vec![Socket { name: "door".into(), address: door }],
    };
    fs::write(folder.join("service/test.toml"), toml::to_string(&service).unwrap()).unwrap();
}

fn make_current(dir: &Path, name: &str) {
    symlink(format!("versions/{name}"), dir.join("current.new")).unwrap();
    fs::rename(dir.join("current.new"), dir.join("current")).unwrap();
}

/// Whether a process no longer runs, though nobody may have asked how it ended.
fn is_over(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

impl Supervised {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let door = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        version(dir.path(), "one", door, SERVER);
        make_current(dir.path(), "one");
        let mut command = Command::new(env!("CARGO_BIN_EXE_medes-supervise"));
        command
            .args(["run", "--name", "test", "--service"])
            .arg(dir.path().join("current/service/test.toml"));
        let child = command.arg("--run").arg(dir.path().join("run")).spawn().unwrap();
        Self { dir, child, door }
    }

    fn state(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.dir.path().join("run/test.state")).unwrap_or_default();
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// The program's process, when it is another than this.
    fn other_than(&self, before: i32) -> i32 {
        until("another process of the program", || {
            self.state().get("child")?.parse().ok().filter(|pid| *pid != before)
        })
    }

    /// Who answers at the door: the last part of the folder that its program is in.
    fn answer(&self) -> String {
        let mut stream = TcpStream::connect(self.door).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text.rsplit('/').next().unwrap_or_default().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        until("its end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(Signal::SIGTERM);
            let _ended = self.child.wait();
        }
    }
}

#[test]
fn a_program_that_dies_is_started_again_and_its_callers_wait_meanwhile() {
    let mut supervised = Supervised::start();
    let first = supervised.other_than(0);
    assert_eq!(supervised.answer(), "one");
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    // A call that the dying program still took ends with it: nothing that is told here waits for those.
    until("the end of the program", || is_over(first).then_some(()));
    // Nobody may be there to take the call at first, but the door is never closed.
    assert_eq!(supervised.answer(), "one");
    let second = supervised.other_than(first);
    assert_eq!(supervised.state()["starts"], "2");
    assert_eq!(supervised.state()["last_end"], "killed by SIGKILL");
    assert_eq!(supervised.end().code(), Some(0));
    assert!(kill(Pid::from_raw(second), None).is_err(), "it ends what it runs");
    let left: Vec<_> = fs::read_dir(supervised.dir.path().join("run")).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "only the log is left: {left:?}");
    assert!(TcpListener::bind(supervised.door).is_ok());
}

#[test]
fn it_becomes_the_current_version_and_keeps_its_door() {
    let mut supervised = Supervised::start();
    let first = supervised.other_than(0);
    version(supervised.dir.path(), "two", supervised.door, SERVER);
    make_current(supervised.dir.path(), "two");
    assert_eq!(supervised.answer(), "one", "not before it is told");
    supervised.signal(Signal::SIGHUP);
    let second = supervised.other_than(first);
    assert_eq!(supervised.answer(), "two");
    assert!(supervised.state()["version"].ends_with("versions/two"));
    assert_eq!(supervised.state()["starts"], "1");
    let pid = fs::read_to_string(supervised.dir.path().join("run/test.pid")).unwrap();
    assert_eq!(pid.trim(), supervised.child.id().to_string(), "the same process");
    assert_eq!(supervised.end().code(), Some(0));
    assert!(kill(Pid::from_raw(second), None).is_err());
}

#[test]
fn a_program_that_cannot_start_is_tried_again_and_again_and_a_second_supervisor_is_refused() {
    let mut supervised = Supervised::start();
    let first = supervised.other_than(0);
    version(supervised.dir.path(), "bad", supervised.door, "#!/bin/sh\necho no >&2\nexit 7\n");
    make_current(supervised.dir.path(), "bad");
    supervised.signal(Signal::SIGHUP);
    until("three starts", || (supervised.state().get("starts")?.parse::<u32>().ok()? >= 3).then_some(()));
    assert_eq!(supervised.state()["last_end"], "exit code 7");
    assert!(kill(Pid::from_raw(first), None).is_err());
    let log = fs::read_to_string(supervised.dir.path().join("run/test.log")).unwrap();
    assert!(log.matches("no\n").count() >= 2, "{log}");
    let mut second = Command::new(env!("CARGO_BIN_EXE_medes-supervise"));
    second.args(["run", "--name", "test", "--service"]);
    second.arg(supervised.dir.path().join("current/service/test.toml"));
    let second = second.arg("--run").arg(supervised.dir.path().join("run")).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another supervisor"));
    assert_eq!(supervised.end().code(), Some(0));
}

#[test]
fn what_is_not_a_description_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/service/x.toml");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(&path).unwrap().write_all(b"program = 1\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_medes-supervise"));
    command.args(["run", "--name", "x", "--service"]).arg(&path).arg("--run").arg(dir.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("understand"), "{output:?}");
}
