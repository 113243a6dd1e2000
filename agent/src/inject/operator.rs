//! The agent's side of the helper. Blocks, for at most as long as the helper waits for a stop: call it from a blocking
//! thread.

use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::Pid;

use super::helper::{Ask, Said};
use super::stop::{InjectError, Stage};
use crate::reaper::Reaper;

/// Helpers kept for the next operation.
const IDLE_MAX: usize = 2;

/// Why an operation did not go on. What stood is let go, or dies if that is impossible.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// The helper could not be started or understood, or is gone.
    #[error("talk to the helper that stops processes")]
    Helper(#[source] io::Error),
    /// A process did not do it.
    #[error("operate on process {pid}")]
    Inject {
        /// The process.
        pid: Pid,
        /// Why not.
        source: InjectError,
    },
    /// A call that must work did not.
    #[error("have process {pid} {step}: {}", io::Error::from_raw_os_error(*errno))]
    Refused {
        /// The process.
        pid: Pid,
        /// What it was to do.
        step: Stage,
        /// The error number.
        errno: i32,
    },
}

/// Helpers, started when they are needed. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Operators {
    reaper: Reaper,
    program: Arc<PathBuf>,
    idle: Arc<Mutex<Vec<Line>>>,
}

/// A line to one helper.
#[derive(Debug)]
struct Line {
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Line {
    fn ask(&mut self, ask: &Ask) -> io::Result<Said> {
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        self.to.write_all(&line)?;
        let mut answer = Vec::new();
        if self.from.read_until(b'\n', &mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_slice(&answer)?)
    }
}

impl Operators {
    /// `program` is the agent's own.
    pub(crate) fn new(reaper: Reaper, program: PathBuf) -> Self {
        Self { reaper, program: Arc::new(program), idle: Arc::default() }
    }

    /// Begins an operation on no process yet.
    pub(crate) fn begin(&self) -> Result<Operation, OperatorError> {
        let waiting = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let line = match waiting {
            Some(line) => line,
            None => self.start().map_err(OperatorError::Helper)?,
        };
        Ok(Operation { operators: self.clone(), line: Some(line), held: Vec::new() })
    }

    fn start(&self) -> io::Result<Line> {
        let mut command = Command::new(&*self.program);
        command.arg("inject").env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let (mut child, _exit) = self.reaper.spawn(&mut command)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(to), Some(from)) => Ok(Line { to, from: BufReader::new(from) }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Processes that stand still for us. Dropped, they are put back and go on.
#[derive(Debug)]
pub(crate) struct Operation {
    operators: Operators,
    /// `None` once the helper is not to be trusted any more: its end kills what stood.
    line: Option<Line>,
    held: Vec<Pid>,
}

impl Operation {
    /// Stops one more process.
    pub(crate) fn hold(&mut self, pid: Pid) -> Result<(), OperatorError> {
        match self.ask(&Ask::Hold { pid: pid.as_raw() })? {
            Said::Done => {
                self.held.push(pid);
                Ok(())
            }
            Said::Failed(source) => Err(OperatorError::Inject { pid, source }),
            Said::Returned(_) | Said::LetGo { .. } => Err(self.broken()),
        }
    }

    /// Has a process make a call, which may fail: what it returned.
    pub(crate) fn try_call(
        &mut self,
        pid: Pid,
        number: libc::c_long,
        arguments: &[u64],
        step: Stage,
    ) -> Result<i64, OperatorError> {
        let mut six = [0; 6];
        six[..arguments.len()].copy_from_slice(arguments);
        match self.ask(&Ask::Call { pid: pid.as_raw(), number, arguments: six, step })? {
            Said::Returned(value) => Ok(value),
            Said::Failed(source) => Err(OperatorError::Inject { pid, source }),
            Said::Done | Said::LetGo { .. } => Err(self.broken()),
        }
    }

    /// Has a process make a call that must work: what it returned.
    pub(crate) fn call(
        &mut self,
        pid: Pid,
        number: libc::c_long,
        arguments: &[u64],
        step: Stage,
    ) -> Result<u64, OperatorError> {
        let value = self.try_call(pid, number, arguments, step)?;
        let refused = |_negative| OperatorError::Refused {
            pid,
            step,
            errno: i32::try_from(-value).unwrap_or(libc::EIO),
        };
        u64::try_from(value).map_err(refused)
    }

    /// Gives all their registers back; they still stand.
    pub(crate) fn put_back(&mut self) -> Result<(), OperatorError> {
        match self.ask(&Ask::PutBack)? {
            Said::Done => Ok(()),
            Said::Failed(source) => {
                self.line = None;
                let pid = self.held.first().copied().unwrap_or(Pid::from_raw(0));
                Err(OperatorError::Inject { pid, source })
            }
            Said::Returned(_) | Said::LetGo { .. } => Err(self.broken()),
        }
    }

    /// Lets all go on, and tells for how long they stood.
    pub(crate) fn let_go(mut self) -> Result<Duration, OperatorError> {
        self.put_back()?;
        self.release()
    }

    fn release(&mut self) -> Result<Duration, OperatorError> {
        let Said::LetGo { stood_us } = self.ask(&Ask::LetGo)? else { return Err(self.broken()) };
        self.held.clear();
        if let Some(line) = self.line.take() {
            let mut idle = self.operators.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(line);
            }
        }
        Ok(Duration::from_micros(stood_us))
    }

    fn ask(&mut self, ask: &Ask) -> Result<Said, OperatorError> {
        let gone = || OperatorError::Helper(io::ErrorKind::BrokenPipe.into());
        let said = self.line.as_mut().ok_or_else(gone)?.ask(ask);
        said.map_err(|error| {
            self.line = None;
            OperatorError::Helper(error)
        })
    }

    fn broken(&mut self) -> OperatorError {
        self.line = None;
        OperatorError::Helper(io::ErrorKind::InvalidData.into())
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if self.line.is_some()
            && let Err(error) = self.put_back().and_then(|()| self.release())
        {
            let error: &dyn std::error::Error = &error;
            tracing::error!(error, "processes that were stopped could not be let go: the kernel ends them");
        }
    }
}
