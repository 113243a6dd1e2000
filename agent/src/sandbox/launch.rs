//! The cold start: from a housing to a function that answers.

use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::reaper::{ExitStatus, ExitWatch};

use super::cgroup::CgroupError;
use super::host::run_blocking;
use super::housing::Housing;
use super::http::{Request, RequestError};
use super::log::LogTail;
use super::order::{Order, REPORT_BYTES_MAX, Report, Step};
use super::sys;
use super::tree::{AdoptError, Ended, Tree};

/// How long the stage may take from its start to the function's program.
const STAGE_WAIT: Duration = Duration::from_secs(20);
/// Pause between two questions whether the function is ready; grows from the first to the last.
const PROBE_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));
/// How long one such question may take.
const PROBE_DEADLINE: Duration = Duration::from_secs(5);
/// Largest answer to it.
const PROBE_BYTES_MAX: usize = 1 << 20;
/// Log lines that go into an error.
const TAIL_LINES: usize = 20;

/// Why a cold start failed. No process is left, the housing still stands.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// There are processes in the sandbox already.
    #[error("the sandbox is running already ({processes} processes)")]
    AlreadyRunning {
        /// How many.
        processes: usize,
    },
    /// The control group could not be read.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The agent could not start its own program, or talk to it.
    #[error("start the stage of the sandbox")]
    Spawn {
        /// What the system said.
        source: io::Error,
    },
    /// The stage ended without a word.
    #[error("the stage of the sandbox ended silently: {status}")]
    StageDied {
        /// How it ended.
        status: ExitStatus,
    },
    /// The stage did not finish.
    #[error("the stage of the sandbox did not finish within {} s", STAGE_WAIT.as_secs())]
    StageStuck,
    /// A step of the stage failed.
    #[error("sandbox: {step}{}", .path.as_ref().map(|path| format!(" {}", path.display())).unwrap_or_default())]
    Stage {
        /// Which step.
        step: Step,
        /// What it was about.
        path: Option<PathBuf>,
        /// What the system said.
        source: io::Error,
    },
    /// There is no such program in the sandbox.
    #[error("command not found: {command}")]
    CommandNotFound {
        /// The program.
        command: String,
    },
    /// The program cannot be executed.
    #[error("cannot execute {command}")]
    CommandNotExecutable {
        /// The program.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// The working folder does not exist in the sandbox.
    #[error("no working folder {} in the sandbox", .dir.display())]
    NoWorkingFolder {
        /// The folder.
        dir: PathBuf,
    },
    /// The process could not be taken over (it ended at once and is gone).
    #[error(transparent)]
    Adopt(#[from] AdoptError),
    /// It ended before it was ready.
    #[error("the function ended before it was ready: {ended}")]
    EndedBeforeReady {
        /// How.
        ended: Ended,
        /// What it printed last.
        log: LogTail,
    },
    /// It needed more memory than it may have.
    #[error("the function ran out of memory before it was ready (limit {bytes_max} bytes)")]
    OutOfMemory {
        /// The limit.
        bytes_max: u64,
        /// What it printed last.
        log: LogTail,
    },
    /// It runs but does not answer.
    #[error("the function was not ready after {} ms ({last})", .after.as_millis())]
    NeverReady {
        /// The timeout.
        after: Duration,
        /// What the last question brought.
        last: NotReady,
        /// What it printed last.
        log: LogTail,
    },
}

/// What a question whether a function is ready brought.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// No answer.
    #[error("no answer")]
    NoAnswer(#[source] RequestError),
    /// An answer that is no yes.
    #[error("its readiness path answered {0}")]
    Status(hyper::StatusCode),
    /// There was no time to ask.
    #[error("never asked")]
    NeverAsked,
}

impl Housing {
    /// Starts the function and waits until it is ready.
    ///
    /// Not cancel-safe: dropped half way, processes may be running until [`Housing::remove`].
    pub async fn launch(&self) -> Result<Tree, LaunchError> {
        let processes = self.cgroup.pids()?.len();
        if processes > 0 {
            return Err(LaunchError::AlreadyRunning { processes });
        }
        let oom_kills = self.cgroup.oom_kills();
        let spawn = |source| LaunchError::Spawn { source };
        let (report, stage) = self.start_stage().await.map_err(spawn)?;
        let forked = match tokio::time::timeout(STAGE_WAIT, read_report(report)).await {
            Ok(Ok(reports)) => self.judge(reports, stage).await,
            Ok(Err(source)) => Err(spawn(source)),
            Err(_elapsed) => Err(LaunchError::StageStuck),
        };
        let begun = match forked {
            Ok(pid) => Tree::take(&self.host.shared.reaper, pid, self.cgroup.clone(), oom_kills),
            Err(error) => {
                self.kill_rest().await;
                return Err(error);
            }
        };
        let tree = match begun {
            Ok(tree) => tree,
            Err(error) => {
                self.kill_rest().await;
                return Err(error.into());
            }
        };
        match self.wait_ready(&tree).await {
            Ok(()) => Ok(tree),
            Err(error) => {
                self.kill_rest().await;
                Err(error)
            }
        }
    }

    /// After a failure that the caller is going to hear about anyway.
    async fn kill_rest(&self) {
        if let Err(error) = self.cgroup.kill().await {
            // `remove` will meet it again and report it; it must not hide the first error here.
            tracing::debug!(%error, sandbox = %self.id(), "processes are left after a failed start");
        }
    }

    async fn start_stage(&self) -> io::Result<(pipe::Receiver, ExitWatch)> {
        let order = self.order()?;
        let (report, report_sink) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (out, err) = (self.log().sink().try_clone()?, self.log().sink().try_clone()?);
        let network = self.network().try_clone_to_owned()?;
        let mut command = Command::new(&self.host.shared.config.program);
        command.arg("stage").args([&order, &report_sink, &network].map(|fd| fd.as_raw_fd().to_string()));
        command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(out).stderr(err);
        let reaper = self.host.shared.reaper.clone();
        let stage = run_blocking(move || {
            let fds = [&order, &report_sink, &network].map(AsRawFd::as_raw_fd).to_vec();
            sys::inherit_fds(&mut command, fds);
            // Our copy of the report's write end closes when this returns: then its end means the stage's end.
            reaper.spawn(&mut command).map(|(_child, watch)| watch)
        })
        .await?;
        Ok((pipe::Receiver::from_owned_fd(report)?, stage))
    }

    fn order(&self) -> io::Result<OwnedFd> {
        let spec = &self.spec;
        let order = Order {
            hostname: spec.name.clone(),
            command: spec.command.clone(),
            env: spec.full_env(),
            dir: spec.dir.clone(),
            root: self.root().to_owned(),
            binds: self.layout().binds().to_vec(),
            procs_files: self.cgroup.procs_files(),
            uid: spec.uid,
            gid: spec.gid,
        };
        let mut file = std::fs::File::from(memfd_create("medes-order", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(&order)?)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(file.into())
    }

    async fn judge(&self, reports: Vec<Report>, mut stage: ExitWatch) -> Result<Pid, LaunchError> {
        let mut forked = None;
        for report in reports {
            match report {
                Report::Forked { pid } => forked = Some(Pid::from_raw(pid)),
                Report::Failed { step, path, errno } => return Err(self.failed(step, path, errno)),
            }
        }
        match forked {
            Some(pid) => Ok(pid),
            None => {
                let status =
                    tokio::time::timeout(STAGE_WAIT, stage.wait()).await.unwrap_or(ExitStatus::Unknown);
                Err(LaunchError::StageDied { status })
            }
        }
    }

    fn failed(&self, step: Step, path: Option<PathBuf>, errno: i32) -> LaunchError {
        let source = io::Error::from_raw_os_error(errno);
        let command = self.spec.command.first().cloned().unwrap_or_default();
        match (step, errno) {
            (Step::Exec, libc::ENOENT | libc::ENOTDIR) => LaunchError::CommandNotFound { command },
            (Step::Exec, _) => LaunchError::CommandNotExecutable { command, source },
            (Step::Dir, libc::ENOENT | libc::ENOTDIR) => {
                LaunchError::NoWorkingFolder { dir: self.spec.dir.clone() }
            }
            _ => LaunchError::Stage { step, path, source },
        }
    }

    async fn wait_ready(&self, tree: &Tree) -> Result<(), LaunchError> {
        let after = self.spec.ready_timeout;
        let mut last = NotReady::NeverAsked;
        let asked = tokio::select! {
            biased;
            ended = tree.ended() => return Err(self.ended_early(ended)),
            asked = tokio::time::timeout(after, self.ask_until_ready(&mut last)) => asked,
        };
        if asked.is_ok() {
            return Ok(());
        }
        // It may have died of memory in this very moment; that is the better reason.
        if !tree.is_running() {
            return Err(self.ended_early(tree.ended().await));
        }
        Err(LaunchError::NeverReady { after, last, log: self.log().tail(TAIL_LINES) })
    }

    async fn ask_until_ready(&self, last: &mut NotReady) {
        let (mut pause, pause_max) = PROBE_PAUSE;
        let deadline = Instant::now() + self.spec.ready_timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let request = Request::get(&self.spec.ready_path, PROBE_DEADLINE.min(left), PROBE_BYTES_MAX);
            *last = match self.request(request).await {
                Ok(response) if response.status.is_success() => return,
                Ok(response) => NotReady::Status(response.status),
                Err(error) => NotReady::NoAnswer(error),
            };
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(pause_max);
        }
    }

    fn ended_early(&self, ended: Ended) -> LaunchError {
        let log = self.log().tail(TAIL_LINES);
        if ended.out_of_memory {
            return LaunchError::OutOfMemory { bytes_max: self.spec.memory_bytes_max, log };
        }
        LaunchError::EndedBeforeReady { ended, log }
    }
}

/// Reads until the pipe closes: the stage has ended and the function's program has been started, or has failed to.
async fn read_report(report: pipe::Receiver) -> io::Result<Vec<Report>> {
    let mut lines = Vec::new();
    report.take(REPORT_BYTES_MAX as u64).read_to_end(&mut lines).await?;
    let lines = lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(serde_json::from_slice).collect::<Result<_, _>>()?)
}
