//! The children of `medes up`: started, waited for, stopped in order. Each has a name and a log file.

use std::{
    fs::{File, OpenOptions},
    future, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::BufReader,
    process::{Child, ChildStdout, Command},
    signal::unix::{self, SignalKind},
    task::JoinSet,
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{
    error::{UpError, status_words},
    logs,
    orphans::Orphans,
    spawn::spawn,
};

/// After SIGKILL only the kernel can delay an end.
const KILLED_WITHIN: Duration = Duration::from_secs(5);

/// The signals that mean: stop.
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, UpError> {
        let listen = |kind| unix::signal(kind).map_err(|source| UpError::Signals { source });
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next of them. Cancel-safe.
    pub(super) async fn next(&mut self) {
        tokio::select! {
            _signal = self.interrupt.recv() => {}
            _signal = self.terminate.recv() => {}
            _signal = self.hangup.recv() => {}
        }
    }
}

struct Member {
    name: String,
    pid: Pid,
    log: PathBuf,
    end: End,
}

enum End {
    Running,
    /// By itself, or because it was told to.
    Ended(Option<ExitStatus>),
}

/// What is left of a child's output after its first line, and where it goes.
pub(super) struct Rest {
    pub(super) reader: BufReader<ChildStdout>,
    pub(super) log: PathBuf,
}

/// All children. Dropping it kills those that still run.
pub(super) struct Family {
    orphans: Orphans,
    members: Vec<Member>,
    waits: JoinSet<(usize, io::Result<ExitStatus>)>,
    copies: TaskTracker,
    died: bool,
}

impl Family {
    /// No children yet.
    pub(super) fn new(orphans: Orphans) -> Self {
        let (waits, copies) = (JoinSet::new(), TaskTracker::new());
        Self { orphans, members: Vec::new(), waits, copies, died: false }
    }

    /// Starts a child that writes only its log.
    pub(super) fn start(&mut self, name: &str, mut command: Command, log: &Path) -> Result<(), UpError> {
        let failed = |source| UpError::Start { name: name.into(), source };
        command.stdout(open_log(log).map_err(failed)?).stderr(open_log(log).map_err(failed)?);
        let child = spawn(command).map_err(failed)?;
        self.adopt(name, child, log).map_err(failed)
    }

    /// Starts a child whose output somebody here reads.
    pub(super) fn start_talking(
        &mut self,
        name: &str,
        mut command: Command,
        log: &Path,
    ) -> Result<ChildStdout, UpError> {
        let failed = |source| UpError::Start { name: name.into(), source };
        command.stdout(Stdio::piped()).stderr(open_log(log).map_err(failed)?);
        let mut child = spawn(command).map_err(failed)?;
        let stdout = child.stdout.take();
        self.adopt(name, child, log).map_err(failed)?;
        stdout.ok_or_else(|| failed(io::Error::from(io::ErrorKind::BrokenPipe)))
    }

    fn adopt(&mut self, name: &str, mut child: Child, log: &Path) -> io::Result<()> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::from(nix::errno::Errno::ESRCH))?;
        let index = self.members.len();
        self.members.push(Member { name: name.into(), pid, log: log.into(), end: End::Running });
        self.waits.spawn(async move { (index, child.wait().await) });
        Ok(())
    }

    /// Keeps reading a child's output into its log, so that the child never waits on a full pipe.
    pub(super) fn copy_rest(&self, mut rest: Rest) {
        self.copies.spawn(async move {
            // Ends with the child. A log that cannot be written is no reason to disturb it.
            if let Ok(log) = open_log(&rest.log) {
                let mut log = tokio::fs::File::from_std(log);
                drop(tokio::io::copy_buf(&mut rest.reader, &mut log).await);
            }
        });
    }

    /// The next child that ends; never, when none runs. Cancel-safe.
    pub(super) async fn next_exit(&mut self) -> usize {
        loop {
            match self.waits.join_next().await {
                Some(Ok((index, status))) => {
                    self.members[index].end = End::Ended(status.ok());
                    return index;
                }
                // A wait is never aborted and does not panic.
                Some(Err(_lost)) => {}
                None => future::pending::<()>().await,
            }
        }
    }

    /// The error that says how a child ended.
    pub(super) fn died(&mut self, index: usize) -> UpError {
        self.died = true;
        let Member { name, log, end, .. } = &self.members[index];
        let status = match end {
            End::Ended(status) => *status,
            End::Running => None,
        };
        UpError::Died { name: name.clone(), status, log: log.clone(), tail: logs::tail(log) }
    }

    /// Has any child ended without being told to?
    pub(super) const fn any_died(&self) -> bool {
        self.died
    }

    pub(super) fn not_ready(&self, within: Duration, missing: &str, index: usize) -> UpError {
        let log = self.log(index);
        UpError::NotReady { within, missing: missing.into(), log: log.into(), tail: logs::tail(log) }
    }

    pub(super) fn first_line(&self, index: usize) -> UpError {
        let log = self.log(index);
        UpError::FirstLine { log: log.into(), tail: logs::tail(log) }
    }

    pub(super) fn log(&self, index: usize) -> &Path {
        &self.members[index].log
    }

    pub(super) fn logs(&self) -> impl Iterator<Item = &Path> {
        self.members.iter().map(|member| member.log.as_path())
    }

    /// Ends what dead agents left behind. How many processes do not go.
    pub(super) async fn sweep(&self) -> usize {
        let ours = self.running(0..self.members.len()).map(|index| self.members[index].pid).collect();
        self.orphans.sweep(ours).await
    }

    fn running(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = usize> {
        range.filter(|&index| matches!(self.members[index].end, End::Running))
    }

    /// Agents first, while there is a controller to tell; then the controller; then whatever they left behind.
    /// True when all ended in time and well.
    pub(super) async fn stop_all(&mut self, within: Duration, signals: &mut Signals) -> bool {
        let count = self.members.len();
        let controller = super::CONTROLLER..count.min(super::CONTROLLER + 1);
        let agents_well = self.stop(controller.end..count, within, signals).await;
        let controller_well = self.stop(controller, within, signals).await;
        let left = self.sweep().await;
        if left > 0 {
            eprintln!("medes: {left} processes that agents left behind do not end");
        }
        self.copies.close();
        let copied = tokio::time::timeout(KILLED_WITHIN, self.copies.wait()).await.is_ok();
        agents_well && controller_well && copied && left == 0
    }

    /// SIGTERM; SIGKILL at the deadline or when asked to stop once more.
    async fn stop(&mut self, range: std::ops::Range<usize>, within: Duration, signals: &mut Signals) -> bool {
        self.send(range.clone(), Signal::SIGTERM);
        let deadline = Instant::now() + within;
        let mut well = true;
        while self.running(range.clone()).next().is_some() {
            tokio::select! {
                ended = self.next_exit() => well &= self.report_end(ended, &range),
                () = tokio::time::sleep_until(deadline) => break,
                () = signals.next() => break,
            }
        }
        let late: Vec<_> = self.running(range.clone()).collect();
        for &index in &late {
            eprintln!("medes: {} does not end, killing it", self.members[index].name);
        }
        self.send(range.clone(), Signal::SIGKILL);
        let deadline = Instant::now() + KILLED_WITHIN;
        while self.running(range.clone()).next().is_some() {
            tokio::select! {
                _ended = self.next_exit() => {}
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        well && late.is_empty()
    }

    /// Says when a child did not end as one that was asked to. True when it did.
    fn report_end(&mut self, index: usize, asked: &std::ops::Range<usize>) -> bool {
        let Member { name, end, .. } = &self.members[index];
        let End::Ended(status) = end else { return false };
        let well = asked.contains(&index) && status.is_some_and(|status| status.success());
        if !well {
            eprintln!("medes: {name} ended with {}", status_words(*status));
        }
        well
    }

    /// To those that run. Nobody else can have got their number: a child's number is free only after its wait
    /// has returned, and waits run on this thread, only while we await.
    fn send(&self, range: std::ops::Range<usize>, signal: Signal) {
        for index in self.running(range) {
            // It may have ended a moment ago. Then its wait says so.
            let _already_ended = kill(self.members[index].pid, signal);
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    // Append, so that several writers do not overwrite each other and a shortened log grows from its new end.
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
