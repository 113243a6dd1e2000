//! A failure as it crosses a wire: what kind, one sentence, and the last lines of output where they help.

use crate::{WireError, limits, wire};
pub use wire::FailureKind;

/// What went wrong on another machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides what happens next.
    pub kind: FailureKind,
    /// What was being done, to what, what went wrong.
    pub message: String,
    /// The sandbox's last lines of output.
    pub log_tail: Vec<String>,
}

impl Failure {
    /// A failure without output.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), log_tail: Vec::new() }
    }

    /// From an error and all its sources, as one sentence.
    pub fn from_error(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(": ");
            message.push_str(&cause.to_string());
            source = cause.source();
        }
        Self::new(kind, message)
    }

    /// With the last lines of output.
    #[must_use]
    pub fn with_log(mut self, log_tail: Vec<String>) -> Self {
        self.log_tail = log_tail;
        self
    }
}

/// Cuts `text` to at most `max` bytes, at a character's border.
pub(crate) fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}

impl From<Failure> for wire::Failure {
    fn from(failure: Failure) -> Self {
        let Failure { kind, message, mut log_tail } = failure;
        let skip = log_tail.len().saturating_sub(limits::FAILURE_LINES_MAX);
        let log_tail = log_tail.drain(skip..).map(|line| cut(line, 1 << 10)).collect();
        Self { kind: kind.into(), message: cut(message, limits::FAILURE_BYTES_MAX), log_tail }
    }
}

impl TryFrom<wire::Failure> for Failure {
    type Error = WireError;

    fn try_from(raw: wire::Failure) -> Result<Self, WireError> {
        let wire::Failure { kind, message, log_tail } = raw;
        // A kind that a newer peer knows and we do not is still a failure.
        let kind = FailureKind::try_from(kind).unwrap_or(FailureKind::Internal);
        if message.len() > limits::FAILURE_BYTES_MAX {
            return Err(WireError::invalid("failure.message", "too long"));
        }
        if log_tail.len() > limits::FAILURE_LINES_MAX {
            return Err(WireError::invalid("failure.log_tail", "too many lines"));
        }
        Ok(Self { kind, message, log_tail })
    }
}
