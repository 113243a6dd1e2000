//! The program as others start it: its first line, its signals, its exit codes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LONG: Duration = Duration::from_secs(20);

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_medes-controller"))
}

/// Waits for the end of a process, and ends it if it takes too long.
fn exit_code(mut child: Child) -> Option<i32> {
    let started = Instant::now();
    while started.elapsed() < LONG {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("the controller does not end");
}

#[test]
fn the_first_line_says_where_it_listens_and_a_signal_ends_it() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("made/when/missing");
        let mut child = program()
            .arg("--state-dir")
            .arg(&state)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        for name in ["control", "gateway"] {
            let address: SocketAddr = ready[name].as_str().unwrap().parse().unwrap();
            TcpStream::connect(address).unwrap();
        }
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        assert_eq!(exit_code(child), Some(0), "{signal}");
    }
}

/// Ends a program by a signal that dumps core, once it has said something, to whoever asks it something.
fn aborted(program: &str, args: &[&str], folder: &Path) -> ExitStatus {
    let mut child = Command::new("sh")
        .args(["-c", r#"ulimit -c "$(ulimit -H -c)"; exec "$0" "$@""#, program])
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.as_mut().unwrap().write_all(b"ready?\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGABRT).unwrap();
    child.wait().unwrap()
}

#[test]
fn a_controller_that_crashes_leaves_no_memory_behind() {
    let folder = tempfile::tempdir().unwrap();
    if !aborted("/bin/cat", &[], folder.path()).core_dumped() {
        eprintln!("skipped: this machine dumps no core at all");
        return;
    }
    let state = folder.path().join("state").display().to_string();
    let program = env!("CARGO_BIN_EXE_medes-controller");
    let ended = aborted(program, &["--state-dir", &state], folder.path());
    assert_eq!(ended.signal(), Some(Signal::SIGABRT as i32));
    assert!(!ended.core_dumped(), "its memory was dumped");
}

#[test]
fn what_it_cannot_use_it_says_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("controller.toml");
    std::fs::write(&file, "[policy]\nidel = '1s'\n").unwrap();
    let nowhere = folder.path().join("missing.toml");
    for (config, expected) in [(&file, "idel"), (&nowhere, "missing.toml")] {
        let mut child = program()
            .arg("--state-dir")
            .arg(folder.path())
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains(expected), "{said}");
        assert_eq!(exit_code(child), Some(1));
    }
}

#[test]
fn the_printed_configuration_is_one_it_takes() {
    let printed = program().arg("--print-config").output().unwrap();
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    medes_controller::config::Config::read(&text, &[]).unwrap();
}

/// Status and body of what is asked at the address of the metrics.
fn asked(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn it_is_ready_when_agents_had_the_time_to_connect_and_lives_before() {
    let folder = tempfile::tempdir().unwrap();
    let agents = "agents: they have the time to connect that fleet.settle gives them\n".to_owned();
    // A controller that has never run has nothing to wait for.
    for expected in [(200, "ready\n".to_owned()), (503, agents)] {
        let mut child = program()
            .args(["--metrics", "127.0.0.1:0", "--set", "fleet.settle=1h", "--state-dir"])
            .arg(folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let metrics = said["metrics"].as_str().unwrap();
        assert_eq!(asked(metrics, "/readyz"), expected);
        assert_eq!(asked(metrics, "/healthz"), (200, "alive\n".into()));
        assert_eq!(asked(metrics, "/metrics").0, 200);
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(exit_code(child), Some(0));
    }
}
