//! What can go wrong in a verb: one clear sentence, a hint where one helps, an exit code, and a JSON form.

use std::{io, path::PathBuf, process::ExitCode, time::Duration};

use medes_identity::{folder::FolderError, security::SecurityError};
use medes_load::{map::MapError, trace::TraceError};
use medes_proto::{WireError, failure::Failure, ids::TenantName, units::Span};
use serde::Serialize;
use tonic::Code;

use crate::{client::Address, output::plain, trace::RecordingError, up::UpError};

/// The operation failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// The command line makes no sense. Also clap's.
pub(crate) const EXIT_USAGE: u8 = 2;
/// Nobody answers at the controller's address.
pub(crate) const EXIT_UNREACHABLE: u8 = 3;

/// How a verb that has printed its answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As wanted.
    Well,
    /// The answer is complete, and is not a good one.
    Badly,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Well => Self::SUCCESS,
            Ended::Badly => Self::from(EXIT_FAILED),
        }
    }
}

/// Why a verb has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error("start the async runtime")]
    Runtime { source: io::Error },
    #[error("cannot reach the controller at {address}")]
    Unreachable { address: Address, source: tonic::transport::Error },
    #[error("{doing}: lost the connection to the controller at {address}")]
    Disconnected { doing: String, address: Address },
    #[error("{doing}: the controller at {address} has not answered within {}", Span(*.within))]
    Unanswered { doing: String, address: Address, within: Duration },
    /// The controller understood and said no.
    #[error("{doing}: {}", .status.message())]
    Refused { doing: String, status: Box<tonic::Status> },
    /// The operation was tried and failed.
    #[error("{doing}: {failure}")]
    Failed { doing: String, failure: Failure },
    #[error("{doing}: the controller's reply makes no sense")]
    Reply { doing: String, source: WireError },
    #[error("read {}", .path.display())]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("write {}", .path.display())]
    WriteFile { path: PathBuf, source: io::Error },
    #[error("read the request's body from standard input")]
    ReadStdin { source: io::Error },
    #[error("the request's body is larger than {max} bytes")]
    BodyTooLarge { max: usize },
    /// `place` is the file, with line and column where they are known.
    #[error("{place}: {problem}")]
    FunctionFile { place: String, problem: String },
    #[error("write to standard output")]
    Output { source: io::Error },
    #[error("start looking at this machine")]
    Doctor { source: io::Error },
    #[error("node {node} still has sandboxes ({sandboxes}) after {}", Span(*.within))]
    NotDrained { node: String, sandboxes: u32, within: Duration },
    #[error("node {node} still has sandboxes that do not rest ({sandboxes}) after {}", Span(*.within))]
    NotAtRest { node: String, sandboxes: u32, within: Duration },
    #[error(transparent)]
    Security(#[from] SecurityError),
    #[error(transparent)]
    Cert(#[from] FolderError),
    #[error(transparent)]
    LoadTrace(#[from] TraceError),
    #[error("--map")]
    Map(#[from] MapError),
    #[error("nothing of the trace is left to send")]
    NothingToSend,
    #[error("tenant {tenant}: its key, and what was made under it, would be gone for good")]
    Unconfirmed { tenant: TenantName },
    #[error("`medes top` needs a terminal")]
    NoTerminal,
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error(transparent)]
    Up(#[from] UpError),
}

/// An error as `--json` prints it, under the key `error`.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorView {
    pub(crate) kind: String,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'static str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    log_tail: Vec<String>,
}

impl CliError {
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_number())
    }

    const fn exit_number(&self) -> u8 {
        match self {
            Self::Unreachable { .. } | Self::Disconnected { .. } | Self::Unanswered { .. } => {
                EXIT_UNREACHABLE
            }
            _ => EXIT_FAILED,
        }
    }

    /// One word for programs.
    fn kind(&self) -> String {
        match self {
            Self::Unreachable { .. } | Self::Disconnected { .. } => "unreachable".into(),
            Self::Unanswered { .. } => "unanswered".into(),
            Self::Refused { status, .. } => match status.code() {
                Code::InvalidArgument => "invalid".into(),
                Code::DeadlineExceeded => "deadline".into(),
                Code::NotFound => "not_found".into(),
                code => snake(&format!("{code:?}")),
            },
            Self::Failed { failure, .. } => {
                failure.kind.as_str_name().trim_start_matches("FAILURE_KIND_").to_ascii_lowercase()
            }
            Self::Reply { .. } => "reply".into(),
            Self::FunctionFile { .. } => "function_file".into(),
            Self::BodyTooLarge { .. } => "invalid".into(),
            Self::ReadFile { .. } | Self::WriteFile { .. } | Self::ReadStdin { .. } | Self::Output { .. } => {
                "io".into()
            }
            Self::Recording(_) => "recording".into(),
            Self::NotDrained { .. } | Self::NotAtRest { .. } => "deadline".into(),
            Self::Unconfirmed { .. } => "unconfirmed".into(),
            Self::NoTerminal | Self::Map(_) | Self::NothingToSend => "invalid".into(),
            Self::LoadTrace(_) => "load_trace".into(),
            Self::Security(_) | Self::Cert(_) => "certificate".into(),
            Self::Runtime { .. } | Self::Doctor { .. } | Self::Up(_) => "local".into(),
        }
    }

    /// What to do about it, where that is known.
    fn hint(&self) -> Option<&'static str> {
        use medes_proto::failure::FailureKind as Kind;
        match self {
            Self::Unreachable { .. } => {
                Some("start one with `medes up`, or name another with --controller HOST:PORT")
            }
            Self::Disconnected { .. } => Some("it may want to see a certificate: --identity NAME.pem"),
            Self::Refused { status, .. } if status.code() == Code::PermissionDenied => {
                Some("`medes cert show` says what your certificate is for")
            }
            Self::Cert(FolderError::Exists(_)) => {
                Some("`medes cert rotate NAME` replaces a certificate; an authority is replaced by nobody")
            }
            Self::Failed { failure, .. } => match failure.kind {
                Kind::NotFound => Some("`medes function list` and `medes ps` show what there is"),
                Kind::Busy => Some("`medes ps` shows the sandbox's state; try again when it is idle"),
                Kind::CommandNotFound => Some("check `command`, `dir` and `mounts` in the function file"),
                Kind::NeverReady => Some("check `port` and `[ready]` in the function file"),
                Kind::OutOfMemory => Some("raise `memory` in the function file"),
                Kind::Crashed => Some("`medes logs SANDBOX` shows what it wrote, while it lives"),
                Kind::Unsupported => Some("`medes doctor` says what this machine lacks"),
                _ => None,
            },
            Self::Refused { status, .. } if status.code() == Code::NotFound => {
                Some("`medes function list` and `medes ps` show what there is")
            }
            Self::Unconfirmed { .. } => Some("say so with --yes"),
            Self::NoTerminal => {
                Some("for programs there are `medes ps`, `nodes` and `trace`, each with --json")
            }
            Self::Reply { .. } => Some("medes and the controller may be of different versions"),
            Self::Up(error) => error.hint(),
            _ => None,
        }
    }

    fn log_tail(&self) -> &[String] {
        match self {
            Self::Failed { failure, .. } => &failure.log_tail,
            Self::Up(error) => error.log_tail(),
            _ => &[],
        }
    }

    /// What a person reads, on several lines where there is a log or a hint.
    pub(crate) fn for_people(&self) -> String {
        // Logs and messages carry words of sandboxes; a terminal must not obey them.
        let mut text = format!("medes: {}\n", plain(&sentence(self)));
        for line in self.log_tail() {
            text.push_str("  | ");
            text.push_str(&plain(line));
            text.push('\n');
        }
        if let Some(hint) = self.hint() {
            text.push_str("hint: ");
            text.push_str(hint);
            text.push('\n');
        }
        text
    }

    pub(crate) fn view(&self) -> ErrorView {
        ErrorView {
            kind: self.kind(),
            message: sentence(self),
            hint: self.hint(),
            log_tail: self.log_tail().to_vec(),
        }
    }
}

/// An error and its causes as one sentence. A cause that only repeats what was said is left out.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

fn snake(camel: &str) -> String {
    let mut text = String::with_capacity(camel.len() + 4);
    for (at, letter) in camel.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use medes_proto::failure::FailureKind;

    fn address() -> Address {
        "127.0.0.1:7070".parse().unwrap()
    }

    fn refused(status: tonic::Status) -> CliError {
        CliError::Refused { doing: "list nodes".into(), status: Box::new(status) }
    }

    #[test]
    fn exit_codes_tell_failed_from_unreachable() {
        let lost = CliError::Disconnected { doing: "list nodes".into(), address: address() };
        let late = CliError::Unanswered {
            doing: "list nodes".into(),
            address: address(),
            within: Duration::from_secs(10),
        };
        assert_eq!(lost.exit_number(), EXIT_UNREACHABLE);
        assert_eq!(late.exit_number(), EXIT_UNREACHABLE);
        assert_eq!(refused(tonic::Status::unavailable("no node")).exit_number(), EXIT_FAILED);
        assert_eq!(CliError::BodyTooLarge { max: 1 }.exit_number(), EXIT_FAILED);
    }

    #[test]
    fn a_failure_is_told_with_its_log_and_a_hint() {
        let failure = Failure::new(FailureKind::NeverReady, "html did not answer GET /ready within 5s")
            .with_log(vec!["no such module".into()]);
        let error = CliError::Failed { doing: "start html".into(), failure };
        let text = error.for_people();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "medes: start html: html did not answer GET /ready within 5s");
        assert_eq!(lines[1], "  | no such module");
        assert!(lines[2].starts_with("hint: check `port`"), "{}", lines[2]);
        let json = serde_json::to_value(error.view()).unwrap();
        assert_eq!(json["kind"], "never_ready");
        assert_eq!(json["log_tail"][0], "no such module");
    }

    #[test]
    fn a_status_becomes_a_word_and_its_own_sentence() {
        let json =
            serde_json::to_value(refused(tonic::Status::failed_precondition("no node")).view()).unwrap();
        assert_eq!(json["kind"], "failed_precondition");
        assert_eq!(json["message"], "list nodes: no node");
        assert!(json.get("hint").is_none());
    }
}
