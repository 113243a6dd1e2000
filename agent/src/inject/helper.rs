//! The helper's own life: stops processes and has them make calls, as the agent tells it, one line each.

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::stop::{Held, InjectError, Stage};

/// What the agent wants.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Stop this process, beside those that stand already.
    Hold { pid: i32 },
    /// Have a process that stands make a call.
    Call { pid: i32, number: i64, arguments: [u64; 6], step: Stage },
    /// Give all their registers back.
    PutBack,
    /// Let all go.
    LetGo,
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Said {
    Done,
    Returned(i64),
    /// For how long the one that stood longest did.
    LetGo {
        stood_us: u64,
    },
    Failed(InjectError),
}

/// Reads orders until there are no more.
///
/// Ends without letting anything go when the agent is gone: what stood then, perhaps half way through something, is
/// killed by the kernel.
pub fn main() -> ExitCode {
    let mut held: Vec<(i32, Held)> = Vec::new();
    let mut lines = io::stdin().lock().lines();
    let mut output = io::stdout().lock();
    while let Some(Ok(line)) = lines.next() {
        let Ok(ask) = serde_json::from_str(&line) else { break };
        let said = obey(&ask, &mut held).unwrap_or_else(Said::Failed);
        let Ok(mut answer) = serde_json::to_vec(&said) else { break };
        answer.push(b'\n');
        if output.write_all(&answer).and_then(|()| output.flush()).is_err() {
            break;
        }
    }
    let half_way = !held.is_empty();
    std::mem::forget(held);
    if half_way { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn obey(ask: &Ask, held: &mut Vec<(i32, Held)>) -> Result<Said, InjectError> {
    match *ask {
        Ask::Hold { pid } => {
            let one = Held::take(Pid::from_raw(pid))?;
            held.push((pid, one));
            Ok(Said::Done)
        }
        Ask::Call { pid, number, arguments, step } => {
            let (_, one) = held.iter_mut().find(|(other, _)| *other == pid).ok_or(InjectError::Gone)?;
            Ok(Said::Returned(one.call(number, arguments, step)?))
        }
        Ask::PutBack => {
            let results: Vec<_> = held.iter_mut().map(|(_, one)| one.put_back()).collect();
            results.into_iter().collect::<Result<(), _>>()?;
            Ok(Said::Done)
        }
        Ask::LetGo => {
            let stood = held.iter().map(|(_, one)| one.begun().elapsed()).max().unwrap_or_default();
            held.clear();
            Ok(Said::LetGo { stood_us: u64::try_from(stood.as_micros()).unwrap_or(u64::MAX) })
        }
    }
}
