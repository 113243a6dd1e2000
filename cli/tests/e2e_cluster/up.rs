//! `medes up` with the real programs, and the verbs that need nobody.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    cluster::{can_run, left_by, mark, mounts_below, processes},
    program::{Program, until},
};

fn medes(args: &[&str], runtime: &Path) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_medes"))
        .args(args)
        .env("MEDES_RUNTIME_DIR", runtime)
        .env_remove("MEDES_CONTROLLER")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A running `medes up` with its own runtime folder.
struct Up {
    program: Program,
    dir: TempDir,
    /// What an earlier one that was killed without mercy may have left; not this one's business.
    before: Vec<String>,
    // Released last.
    _alone: MutexGuard<'static, ()>,
}

/// The nodes of every `medes up` have the same names.
static ALONE: Mutex<()> = Mutex::new(());

fn left_now() -> Vec<String> {
    [left_by("node-0"), left_by("node-1")].concat()
}

impl Up {
    fn start(nodes: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else at this machine may have one, too.
        let taken = || left_now().iter().any(|left| left.contains("@medes-node-"));
        until("no other medes up runs on this machine", || (!taken()).then_some(()));
        let before = left_now();
        let dir = TempDir::with_prefix("medes-e2e-").unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_medes"));
        // No sandbox but those that are asked for.
        let config = dir.path().join("up.toml");
        std::fs::write(&config, "[sandboxes]\ninit_snapshots = false\n").unwrap();
        let mut args = vec!["up", "--json", "--nodes", nodes, "--config", config.to_str().unwrap()];
        let copy = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/criu");
        if std::env::var_os("MEDES_CRIU").is_none() && Path::new(copy).exists() {
            args.extend(["--criu", copy]);
        }
        let program = Program::start(program, &args, &dir.path().join("up.log"), Stdio::piped());
        Self { program, dir, before, _alone: alone }
    }

    fn runtime(&self) -> PathBuf {
        self.dir.path().join("runtime")
    }

    /// A verb that finds this controller by itself.
    #[track_caller]
    fn ask(&self, args: &[&str]) -> Value {
        let (code, out, said) = medes(&[args, &["--json"]].concat(), &self.runtime());
        assert_eq!(code, Some(0), "{out}{said}");
        serde_json::from_str(&out).unwrap()
    }

    fn apply(&self, name: &str, mark: &str) {
        let file = self.dir.path().join(format!("{name}.toml"));
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e_cluster");
        let text = format!(
            "name = '{name}'\ncommand = ['/usr/bin/python3', 'function.py']\ndir = '{folder}'\n[env]\nMARK = '{mark}'\n"
        );
        std::fs::write(&file, text).unwrap();
        self.ask(&["function", "apply", file.to_str().unwrap()]);
    }
}

#[test]
fn ctrl_c_ends_up_and_leaves_nothing_behind() {
    if !can_run("ctrl_c_ends_up_and_leaves_nothing_behind") {
        return;
    }
    let mut up = Up::start("2");
    let ready = up.program.first_line();
    let state = PathBuf::from(ready["state_dir"].as_str().unwrap());
    let mark = mark();
    up.apply("f", &mark);
    let name = |view: &Value| view["sandbox"]["sandbox"].as_str().unwrap().to_owned();
    let base = name(&up.ask(&["start", "f", "--node", "node-0"]));
    let away = name(&up.ask(&["start", "f", "--node", "node-1"]));
    up.ask(&["base", &base]);
    up.ask(&["dedup", &away]);
    assert_eq!(up.ask(&["invoke", "f", "--path", "/count"])["start"], "warm");
    assert_eq!(processes(&mark).len(), 1);
    assert!(!mounts_below(&state).is_empty() && left_now().len() > up.before.len());

    up.program.signal(Signal::SIGINT);
    assert_eq!(up.program.wait().code(), Some(0), "{}", up.program.log());
    assert_eq!(processes(&mark), [0; 0]);
    let left = left_now();
    assert!(left.iter().all(|left| up.before.contains(left)), "{left:?}");
    assert_eq!(mounts_below(&state), [""; 0]);
    assert!(!state.exists());
    assert_eq!(std::fs::read_dir(up.runtime()).unwrap().count(), 0);
}

#[test]
fn a_second_up_is_told_of_the_first_and_does_not_disturb_it() {
    if !can_run("a_second_up_is_told_of_the_first_and_does_not_disturb_it") {
        return;
    }
    let mut up = Up::start("1");
    let ready = up.program.first_line();
    let mark = mark();
    up.apply("f", &mark);
    let invoke = ["invoke", "f", "--path", "/count"];
    assert_eq!(up.ask(&invoke)["start"], "cold");
    let (code, out, said) = medes(&["up"], &up.runtime());
    assert_eq!((code, &*out), (Some(1), ""));
    assert!(said.contains("node-0 is already running on this machine"), "{said}");
    // The first is still the one that is found, and its sandbox is the same.
    assert_eq!(up.ask(&invoke)["start"], "warm");
    assert_eq!(processes(&mark).len(), 1);
    let nodes = up.ask(&["nodes", "--controller", ready["control"].as_str().unwrap()]);
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1);
}

#[test]
fn doctor_and_completions_need_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, said) = medes(&["doctor", "--json"], dir.path());
    let doctor: Value = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {said}"));
    let missing = doctor["verdict"] == "missing";
    assert_eq!(code, Some(i32::from(missing)), "{doctor}");
    let names: Vec<_> =
        doctor["checks"].as_array().unwrap().iter().map(|check| check["name"].clone()).collect();
    assert!(
        names.iter().any(|name| name.as_str().unwrap().to_ascii_lowercase().contains("criu")),
        "{names:?}"
    );
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, script, said) = medes(&["completions", shell], dir.path());
        assert_eq!(code, Some(0), "{said}");
        assert!(script.contains("medes") && script.contains("invoke"), "{shell}: {script}");
    }
    let (code, script, _) = medes(&["completions", "bash"], dir.path());
    let checked = Command::new("bash").args(["-n", "-c", &script]).status().unwrap();
    assert!(code == Some(0) && checked.success());
}
