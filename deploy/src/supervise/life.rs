//! The supervisor's life: start the program, wait for signals and ends, start it again, end it, or become the next
//! version of itself.

use std::{
    fs, io,
    os::{fd::AsFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use medes_deploy::service::Service;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    RunArgs, child, log,
    sockets::{self, Open},
    state::{Files, State},
};

/// A program that ended is started again after this long, then after twice as long...
const PAUSE_FIRST: Duration = Duration::from_millis(100);
/// ...up to this.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A program that ran this long has started well.
const RAN_WELL: Duration = Duration::from_secs(30);
/// Between two looks at the log.
const LOG_LOOK: Duration = Duration::from_secs(60);

/// Why the program was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    End,
    /// Become the version that is current.
    Renew,
}

struct Life<'a> {
    args: &'a RunArgs,
    files: Files,
    /// The version's folder.
    folder: PathBuf,
    service: Service,
    sockets: Vec<Open>,
    child: Option<(Pid, Instant)>,
    state: State,
    pause: Duration,
    start_at: Option<Instant>,
    /// What comes when the program has ended, and when it is killed.
    ending: Option<(Then, Instant)>,
}

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let mut wanted = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        wanted.add(signal);
    }
    wanted.thread_block().context("block signals")?;
    let mut signals = SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("read signals")?;
    fs::create_dir_all(&args.run).with_context(|| format!("create {}", args.run.display()))?;
    let files = Files::of(args);
    let lock = files.claim()?;
    let handed_on = std::env::var(sockets::VARIABLE).ok();
    let (folder, service) = read(&args.service)?;
    let sockets = sockets::open(&service.sockets, handed_on.as_deref())?;
    let state = State { version: folder.clone(), ..State::default() };
    let (pause, start_at) = (PAUSE_FIRST, Some(Instant::now()));
    let mut life =
        Life { args, files, folder, service, sockets, child: None, state, pause, start_at, ending: None };
    let then = life.live(&mut signals)?;
    if then == Then::Renew {
        drop(lock);
        return Err(life.renew());
    }
    life.files.withdraw();
    Ok(())
}

/// The description, and the folder of the version it is part of.
fn read(path: &Path) -> Result<(PathBuf, Service)> {
    let real = fs::canonicalize(path).with_context(|| format!("find {}", path.display()))?;
    let folder = real.ancestors().nth(2).context("a description lies in a folder of a version")?.to_owned();
    let text = fs::read_to_string(&real).with_context(|| format!("read {}", real.display()))?;
    let service = toml::from_str(&text).with_context(|| format!("understand {}", real.display()))?;
    Ok((folder, service))
}

impl Life<'_> {
    fn live(&mut self, signals: &mut SignalFd) -> Result<Then> {
        let mut look_at_log = Instant::now();
        loop {
            let now = Instant::now();
            if now >= look_at_log {
                look_at_log = now + LOG_LOOK;
                // There is no log before the first start.
                let _missing = log::bound(&self.files.log, log::BYTES_MAX);
            }
            self.start_if_due(now);
            self.kill_if_due(now);
            let next = [Some(look_at_log), self.start_at, self.ending.map(|(_, at)| at)];
            let next = next.into_iter().flatten().min().unwrap_or(look_at_log);
            self.wait(signals, next.saturating_duration_since(Instant::now()))?;
            while let Some(signal) = signals.read_signal().context("read a signal")? {
                match i32::try_from(signal.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()) {
                    Some(Signal::SIGTERM | Signal::SIGINT) => self.end(Then::End),
                    Some(Signal::SIGHUP) => self.end(Then::Renew),
                    _ => {}
                }
            }
            self.reap();
            match (self.ending, self.child) {
                (Some((then, _)), None) => return Ok(then),
                _ => continue,
            }
        }
    }

    fn wait(&self, signals: &SignalFd, time: Duration) -> Result<()> {
        // Rounded up, or the last millisecond would be spent turning.
        let millis = u32::try_from(time.as_millis().saturating_add(1)).unwrap_or(u32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("wait for signals"),
        }
    }

    fn start_if_due(&mut self, now: Instant) {
        if self.ending.is_some() || self.start_at.is_none_or(|at| at > now) {
            return;
        }
        self.start_at = None;
        self.state.starts = self.state.starts.saturating_add(1);
        match child::start(&self.service, &self.folder, &self.files.log, &self.sockets) {
            Ok(pid) => {
                self.child = Some((pid, now));
                self.state.child = Some(pid.as_raw());
            }
            Err(error) => {
                self.state.last_end = Some(format!("{error:#}").replace('\n', " "));
                self.start_later(now);
            }
        }
        self.tell();
    }

    fn start_later(&mut self, now: Instant) {
        self.start_at = Some(now + self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    fn end(&mut self, then: Then) {
        let deadline = Instant::now() + Duration::from_secs(self.service.stop_within_s.into());
        let deadline = self.ending.map_or(deadline, |(_, earlier)| earlier);
        // Who asks for the end after having asked for the next version wants the end.
        let then =
            if self.ending.is_some_and(|(earlier, _)| earlier == Then::End) { Then::End } else { then };
        self.ending = Some((then, deadline));
        self.signal(match then {
            // An agent leaves what rests to the next one.
            Then::Renew => Signal::SIGTERM,
            // There will be no next one.
            Then::End => Signal::SIGINT,
        });
    }

    fn kill_if_due(&mut self, now: Instant) {
        if let Some((then, at)) = self.ending
            && at <= now
        {
            self.signal(Signal::SIGKILL);
            self.ending = Some((then, now + PAUSE_MAX));
        }
    }

    /// To the program. Its number is its own until it has been waited for, which only this thread does.
    fn signal(&self, signal: Signal) {
        if let Some((pid, _)) = self.child {
            // It may have ended a moment ago. Then its wait says so.
            let _already_ended = kill(pid, signal);
        }
    }

    fn reap(&mut self) {
        loop {
            let (pid, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit code {code}")),
                Ok(WaitStatus::Signaled(pid, signal, _core)) => (pid, format!("killed by {signal}")),
                Err(Errno::EINTR) => continue,
                Ok(_) | Err(_) => return,
            };
            let Some((_, since)) = self.child.filter(|(child, _)| *child == pid) else { continue };
            let now = Instant::now();
            self.child = None;
            (self.state.child, self.state.last_end) = (None, Some(end));
            if self.ending.is_none() {
                if now.duration_since(since) >= RAN_WELL {
                    self.pause = PAUSE_FIRST;
                }
                self.start_later(now);
            }
            self.tell();
        }
    }

    fn tell(&self) {
        if let Err(error) = self.state.write(&self.files.state) {
            eprintln!("medes-supervise: cannot write {}: {error}", self.files.state.display());
        }
    }

    /// Becomes the supervisor of the version that is current, with the sockets of this one. Returns when that fails.
    fn renew(&self) -> anyhow::Error {
        let program = || -> io::Result<PathBuf> {
            let real = fs::canonicalize(&self.args.service)?;
            let folder = real.ancestors().nth(2).ok_or(io::ErrorKind::NotFound)?;
            Ok(folder.join("bin/medes-supervise"))
        };
        let program = match program() {
            Ok(program) => program,
            Err(error) => return anyhow::Error::new(error).context("find the current version"),
        };
        let mut command = Command::new(&program);
        command.arg("run").arg("--service").arg(&self.args.service);
        command.arg("--name").arg(&self.args.name).arg("--run").arg(&self.args.run);
        command.env(sockets::VARIABLE, sockets::text(&self.sockets));
        anyhow::Error::new(command.exec()).context(format!("become {}", program.display()))
    }
}
