//! What the agent holds of sandboxes is in no core dump, whatever the host does with those.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

/// How long a program may take to get ready, on a machine that is busy.
const START_WAIT: Duration = Duration::from_secs(60);

/// It is ready if it was found asleep so many times in a row.
const LOOKS: u32 = 30;

/// Ends a program by a signal that dumps core, once it waits for what comes on its standard input.
fn aborted(program: &str, argument: &str, folder: &Path) -> ExitStatus {
    let mut command = Command::new(program);
    // As the agent starts its helpers: settings in the environment are the agent's own.
    command.arg(argument).env_clear().current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    // What it waits for is nobody's business but root's; that it sleeps all the time, anybody may see.
    let sleeps = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    };
    let (begun, mut asleep) = (Instant::now(), 0);
    while asleep < LOOKS {
        assert!(begun.elapsed() < START_WAIT, "{program} does not get ready");
        thread::sleep(Duration::from_millis(10));
        asleep = if sleeps() { asleep + 1 } else { 0 };
    }
    kill(pid, Signal::SIGABRT).unwrap();
    child.wait().unwrap()
}

#[test]
fn an_agent_that_crashes_leaves_no_memory_behind() {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, hard, hard).unwrap();
    let folder = tempfile::tempdir().unwrap();
    if !aborted("/bin/cat", "-", folder.path()).core_dumped() {
        eprintln!("skipped: this machine dumps no core at all");
        return;
    }
    // One of its helpers; what they have in common comes before anything else.
    let agent = aborted(env!("CARGO_BIN_EXE_medes-agent"), "inject", folder.path());
    assert_eq!(agent.signal(), Some(libc::SIGABRT));
    assert!(!agent.core_dumped(), "its memory was dumped");
}
