//! Why `medes up` ends badly, with the end of the log that explains it.

use std::{io, path::PathBuf, process::ExitStatus, time::Duration};

use medes_proto::units::Span;

/// Why `medes up` ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error("find the folder of medes's own program")]
    OwnPath { source: io::Error },
    #[error("{} is not there", .path.display())]
    NoProgram { path: PathBuf },
    #[error("make the state folder {}", .path.display())]
    StateDir { path: PathBuf, source: io::Error },
    #[error("announce the controller's address to other commands")]
    Announce { source: io::Error },
    #[error("listen for signals")]
    Signals { source: io::Error },
    #[error("{}: {problem}", .path.display())]
    Config { path: PathBuf, problem: String },
    #[error("write the controller's configuration {}", .path.display())]
    WriteConfig { path: PathBuf, source: io::Error },
    #[error("start {name}")]
    Start { name: String, source: io::Error },
    #[error("{name} ended ({}); its log is {}", status_words(*.status), .log.display())]
    Died { name: String, status: Option<ExitStatus>, log: PathBuf, tail: Vec<String> },
    #[error("the controller's first line is not {{\"control\",\"gateway\"}}; its log is {}", .log.display())]
    FirstLine { log: PathBuf, tail: Vec<String> },
    #[error("not ready within {}: {missing}; its log is {}", Span(*.within), .log.display())]
    NotReady { within: Duration, missing: String, log: PathBuf, tail: Vec<String> },
}

impl UpError {
    pub(crate) const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NoProgram { .. } => {
                Some("build the whole workspace, or set MEDES_BIN_DIR to the folder of the programs")
            }
            Self::Died { .. } | Self::NotReady { .. } => Some("`medes doctor` says what this machine lacks"),
            _ => None,
        }
    }

    pub(crate) fn log_tail(&self) -> &[String] {
        match self {
            Self::Died { tail, .. } | Self::FirstLine { tail, .. } | Self::NotReady { tail, .. } => tail,
            _ => &[],
        }
    }
}

pub(super) fn status_words(status: Option<ExitStatus>) -> String {
    status.map_or_else(|| "nobody knows how".into(), |status| status.to_string())
}
