//! `medes up` with stand-ins for the controller and the agents: scripts that behave well or badly, and a fake
//! controller in this process that says which agents are attached.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on")]

mod fake;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use fake::{FakeController, medes};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);

/// Says its name and number in the story, then waits. Told to end, it says so and leaves its `sleep` behind.
const WELL: &str = r#"
trap 'echo "end $NAME" >> "$STORY"; exit 0' TERM
echo "begin $NAME $$" >> "$STORY"
sleep 1000 &
wait
"#;
const STUBBORN: &str = r#"
trap '' TERM
echo "begin $NAME $$" >> "$STORY"
while :; do sleep 1; done
"#;

/// A folder with stand-in programs, the story they write and a runtime folder.
struct Stage {
    dir: TempDir,
    controller: FakeController,
}

impl Stage {
    fn new(controller_script: &str, agent_script: &str) -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap(), controller: FakeController::start() };
        let at = stage.controller.address;
        let says = format!(r#"echo '{{"control":"{at}","gateway":"127.0.0.1:9"}}'"#);
        let controller_script = controller_script.replace("LISTEN", &says);
        stage.program("medes-controller", &format!("NAME=controller\n{controller_script}"));
        // $2 follows --node.
        stage.program("medes-agent", &format!("NAME=$2\n{agent_script}"));
        fs::write(stage.story_file(), "").unwrap();
        stage
    }

    /// Written by a shell: a file that this process had open for writing could still be open in a child that
    /// another test is just starting, and the kernel refuses to run such a file.
    fn program(&self, name: &str, body: &str) {
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2" && chmod 755 "$2""#;
        let path = self.dir.path().join(name);
        let status = Command::new("sh").args(["-c", write, "sh", body]).arg(path).status().unwrap();
        assert!(status.success());
    }

    fn story_file(&self) -> PathBuf {
        self.dir.path().join("story")
    }

    fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn story(&self) -> Vec<String> {
        fs::read_to_string(self.story_file()).unwrap().lines().map(Into::into).collect()
    }

    /// The processes that said they begin.
    fn pids(&self) -> Vec<i32> {
        let begun = self.story().into_iter().filter(|line| line.starts_with("begin"));
        begun.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect()
    }

    /// Told apart from processes of others by a variable that only they have.
    fn left_over(&self) -> Vec<i32> {
        let mark = format!("STORY={}", self.story_file().display());
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse::<i32>().ok()?;
            let environ = fs::read(format!("/proc/{pid}/environ")).ok()?;
            environ.split(|&byte| byte == 0).any(|var| var == mark.as_bytes()).then_some(pid)
        });
        processes.collect()
    }

    fn up(&self, args: &[&str]) -> Up {
        let mut command = medes(&["up", "--json"]);
        if !args.contains(&"--nodes") {
            command.args(["--nodes", "2"]);
        }
        let child = command
            .args(args)
            .env("MEDES_BIN_DIR", self.dir.path())
            .env("MEDES_RUNTIME_DIR", self.runtime_dir())
            .env("STORY", self.story_file())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(self.dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        Up::new(child)
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    fn wait_until(&self, what: &str, reached: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached() {
            assert!(Instant::now() < deadline, "never {what}: {:?}, {}", self.story(), self.stderr());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A running `medes up`; killed if a test fails on the way.
struct Up {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Up {
    fn new(mut child: Child) -> Self {
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdout }
    }

    fn ready(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Its end; and that it has said nothing more.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "medes up does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "", "one line only");
        status
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn alive(pid: i32) -> bool {
    // A zombie that its new parent has not reaped yet is dead.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

#[test]
fn agents_end_before_the_controller_and_nothing_is_left() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), WELL);
    let mut up = stage.up(&[]);
    let ready = up.ready();
    assert_eq!(ready["control"], stage.controller.address.to_string());
    assert_eq!(ready["gateway"], "127.0.0.1:9");
    let state = PathBuf::from(ready["state_dir"].as_str().unwrap());
    assert!(state.join("logs/node-1.log").is_file());
    stage.wait_until("begun", || stage.pids().len() == 3);

    // Other commands find it without being told.
    let found = medes(&["nodes", "--json"]).env("MEDES_RUNTIME_DIR", stage.runtime_dir()).output().unwrap();
    assert_eq!(fake::json(&found)["nodes"][0]["node"], "node-0");

    up.signal(Signal::SIGTERM);
    assert_eq!(up.end().code(), Some(0), "{}", stage.stderr());
    let ends: Vec<_> = stage.story().into_iter().filter(|line| line.starts_with("end")).collect();
    assert_eq!(ends.len(), 3);
    assert_eq!(ends[2], "end controller");
    assert_eq!(stage.left_over(), [0; 0]);
    assert!(!state.exists());
    assert!(!stage.runtime_dir().join("up.json").exists());
}

#[test]
fn ctrl_c_works_like_a_signal_from_outside() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), WELL);
    let mut up = stage.up(&["--control", "127.0.0.1:0", "--gateway", "127.0.0.1:0"]);
    up.ready();
    // The fake controller calls every node attached, also one that does not know yet what to do when told to end.
    stage.wait_until("begun", || stage.pids().len() == 3);
    up.signal(Signal::SIGINT);
    assert_eq!(up.end().code(), Some(0), "{}", stage.stderr());
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn who_does_not_end_is_killed_and_told_of() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), STUBBORN);
    let mut up = stage.up(&["--stop-within", "200ms"]);
    up.ready();
    stage.wait_until("begun", || stage.pids().len() == 3);
    up.signal(Signal::SIGTERM);
    assert_eq!(up.end().code(), Some(1));
    assert!(stage.stderr().contains("node-0 does not end, killing it"), "{}", stage.stderr());
    assert!(stage.story().contains(&"end controller".into()), "{:?}", stage.story());
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), STUBBORN);
    let mut up = stage.up(&["--stop-within", "1h"]);
    up.ready();
    stage.wait_until("begun", || stage.pids().len() == 3);
    up.signal(Signal::SIGINT);
    // Two that come close together are one; so again, until it has understood.
    let deadline = Instant::now() + PATIENCE;
    while up.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline);
        up.signal(Signal::SIGINT);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(up.end().code(), Some(1));
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn children_end_when_up_is_killed() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), WELL);
    let mut up = stage.up(&[]);
    up.ready();
    stage.wait_until("begun", || stage.pids().len() == 3);
    let pids = stage.pids();
    up.signal(Signal::SIGKILL);
    stage.wait_until("ended", || !pids.iter().any(|&pid| alive(pid)));
    // Their `sleep`s belong to nobody now.
    for pid in stage.left_over() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_dead_agent_is_told_of_with_its_log_and_the_rest_goes_on() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), &format!("echo 'about to break' >&2\n{WELL}"));
    let mut up = stage.up(&[]);
    up.ready();
    stage.wait_until("begun", || stage.pids().len() == 3);
    let line = stage.story().into_iter().find(|line| line.starts_with("begin node-1")).unwrap();
    let agent: i32 = line.rsplit(' ').next().unwrap().parse().unwrap();
    kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    stage.wait_until("told", || stage.stderr().contains("the other nodes go on"));
    let told = stage.stderr();
    assert!(told.contains("node-1 ended (signal: 9") && told.contains("  | about to break"), "{told}");
    let others: Vec<_> = stage.pids().into_iter().filter(|&pid| pid != agent).collect();
    assert!(others.iter().all(|&pid| alive(pid)));
    up.signal(Signal::SIGTERM);
    assert_eq!(up.end().code(), Some(1));
    assert!(stage.stderr().contains("state and logs are kept in"), "{}", stage.stderr());
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn when_the_controller_dies_all_ends_badly() {
    let stage = Stage::new(&format!("LISTEN\necho 'disk on fire' >&2\n{WELL}"), WELL);
    let mut up = stage.up(&[]);
    up.ready();
    stage.wait_until("begun", || stage.pids().len() == 3);
    let line = stage.story().into_iter().find(|line| line.starts_with("begin controller")).unwrap();
    kill(Pid::from_raw(line.rsplit(' ').next().unwrap().parse().unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(up.end().code(), Some(1));
    let told = stage.stderr();
    assert!(told.contains("medes: controller ended (signal: 9") && told.contains("disk on fire"), "{told}");
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn a_controller_that_cannot_start_says_why() {
    let stage = Stage::new("echo 'address in use' >&2; exit 7", WELL);
    let mut up = stage.up(&[]);
    assert_eq!(up.end().code(), Some(1));
    let told = stage.stderr();
    assert!(told.contains("controller ended (exit status: 7)") && told.contains("address in use"), "{told}");
}

#[test]
fn a_first_line_that_is_not_addresses_is_an_error() {
    let stage = Stage::new(&format!("echo hello\n{WELL}"), WELL);
    let mut up = stage.up(&[]);
    assert_eq!(up.end().code(), Some(1));
    assert!(stage.stderr().contains("first line"), "{}", stage.stderr());
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn an_agent_that_never_attaches_is_named() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), WELL);
    // The fake knows node-0 and node-1 only.
    let mut up = stage.up(&["--nodes", "3", "--ready-within", "1s"]);
    assert_eq!(up.end().code(), Some(1));
    assert!(stage.stderr().contains("not ready within 1s: node-2 is not attached"), "{}", stage.stderr());
    assert_eq!(stage.left_over(), [0; 0]);
}

#[test]
fn options_reach_the_programs() {
    let remember = format!(r#"echo "$NAME args $*" >> "$STORY"{WELL}"#);
    let stage = Stage::new(&format!("LISTEN\n{remember}"), &remember);
    let state = stage.dir.path().join("state");
    let args = ["--memory-cap", "4GiB", "--criu", "bin/criu", "--idle", "90s", "--state-dir"];
    let mut up = stage.up(&[&args[..], &[state.to_str().unwrap()]].concat());
    let ready = up.ready();
    assert_eq!(Path::new(ready["state_dir"].as_str().unwrap()), state.canonicalize().unwrap());
    stage.wait_until("begun", || stage.pids().len() == 3);
    let story = stage.story().join("\n");
    let control = stage.controller.address;
    for part in [
        format!("node-1 args --node node-1 --controller {control} --listen 127.0.0.1:0 --state-dir "),
        "--memory-cap 4GiB --criu bin/criu".into(),
        "controller args --state-dir ".into(),
        "--config ".into(),
    ] {
        assert!(story.contains(&part), "{part:?} is not in {story}");
    }
    let config = fs::read_to_string(state.join("controller.toml")).unwrap();
    assert_eq!(config.trim(), "[fleet]\nbase_copies = 1\n\n[policy]\nidle = \"90s\"");
    up.signal(Signal::SIGTERM);
    assert_eq!(up.end().code(), Some(0), "{}", stage.stderr());
    assert!(state.is_dir(), "a folder that was given is kept");
}

#[test]
fn children_that_were_there_before_are_left_alone() {
    let stage = Stage::new(&format!("LISTEN\n{WELL}"), WELL);
    let script = r#"sleep 1000 & echo "before $!" >> "$STORY"; exec "$0" up --json --nodes 1"#;
    let child = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_medes")])
        .env("MEDES_BIN_DIR", stage.dir.path())
        .env("MEDES_RUNTIME_DIR", stage.runtime_dir())
        .env("STORY", stage.story_file())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(stage.dir.path().join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let mut up = Up::new(child);
    up.ready();
    up.signal(Signal::SIGTERM);
    // Its standard output is still open in the child from before, so only the process is waited for.
    let deadline = Instant::now() + PATIENCE;
    while up.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "medes up does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
    let before: i32 = stage.story()[0].strip_prefix("before ").unwrap().parse().unwrap();
    assert_eq!(stage.left_over(), [before]);
    kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
}

#[test]
fn a_program_that_is_not_there_is_named_with_a_hint() {
    let empty = tempfile::tempdir().unwrap();
    let output = medes(&["up"]).env("MEDES_BIN_DIR", empty.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = fake::stderr(&output);
    assert!(told.contains("medes-controller is not there\nhint: "), "{told}");
}
