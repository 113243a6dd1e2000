//! Programs under test as child processes: their output in a file, told to end when this program ends.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// More than any program takes to end in order.
const END_MAX: Duration = Duration::from_secs(40);
const LOOK: Duration = Duration::from_millis(10);

/// Looks until there is something, or time is over.
pub(crate) fn wait_for<T>(within: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        let found = look();
        if found.is_some() || begun.elapsed() > within {
            return found;
        }
        thread::sleep(LOOK);
    }
}

/// A child process.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Program {
    /// Starts `line`, whose first word is the program. Its errors go to the end of `log`.
    pub(crate) fn start(line: &[String], log: &Path, stdout: Stdio) -> Result<Self> {
        let errors = File::options().create(true).append(true).open(log);
        let errors = errors.with_context(|| format!("open {}", log.display()))?;
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .args(line)
            .env_remove("MEDES_CONTROLLER")
            .env_remove("MEDES_IDENTITY")
            .env("MEDES_RUNTIME_DIR", log.with_file_name("runtime"))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(errors)
            .spawn();
        let child = child.with_context(|| format!("start {}", line.join(" ")))?;
        Ok(Self { child, log: log.to_owned(), ended: None })
    }

    /// The one line of JSON it prints when it is ready.
    pub(crate) fn first_line(&mut self) -> Result<Value> {
        let stdout = self.child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("read its first line")?;
        serde_json::from_str(&line).with_context(|| format!("understand {line:?}; {}", self.tail(5)))
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The last lines of its log.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Whether it runs.
    pub(crate) fn lives(&mut self) -> bool {
        self.look().is_none()
    }

    fn look(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal, unless it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) -> Result<()> {
        match self.look() {
            Some(_) => Ok(()),
            // Not waited for yet, so the number is still its own.
            None => kill(Pid::from_raw(self.pid()), signal).context("send a signal"),
        }
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(END_MAX)
    }

    /// Its end.
    pub(crate) fn wait(&mut self, within: Duration) -> Result<()> {
        match wait_for(within, || self.look()) {
            Some(_) => Ok(()),
            None => bail!("process {} does not end within {within:?}", self.pid()),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Whoever cannot be told has ended.
        self.signal(Signal::SIGTERM).ok();
        if self.wait(END_MAX).is_err() {
            eprintln!("killed, since it does not end: {}", self.log.display());
            self.kill().ok();
        }
    }
}
