//! What CRIU says when it fails: its error lines, without decoration, bounded, and what they mean for the caller.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Errors only. Warnings are plenty and mean nothing to us.
pub(super) const LEVEL_ERRORS: i32 = 1;
/// Everything, for a person who looks for the cause of a failure.
pub(super) const LEVEL_DEBUG: i32 = 4;

/// The end of the log is what counts; at the level of errors it is all of it.
const LOG_BYTES_MAX: u64 = 64 * 1024;
const LINES_MAX: usize = 8;
const LINE_CHARS_MAX: usize = 300;

/// CRIU's own words about a failure: its first error lines, at most eight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reason {
    lines: Vec<String>,
}

impl Reason {
    /// Reads the error lines of a log. `first` is the error that came with the answer.
    pub(super) fn read(log: &Path, first: Option<&str>) -> Self {
        let mut text = Vec::new();
        if let Ok(file) = File::open(log) {
            // A log that cannot be read leaves us with `first`, which is usually the point of it.
            let _read = file.take(LOG_BYTES_MAX).read_to_end(&mut text);
        }
        Self::parse(&String::from_utf8_lossy(&text), first)
    }

    fn parse(log: &str, first: Option<&str>) -> Self {
        let errors = log.lines().filter(|line| line.contains("Error ("));
        let mut lines: Vec<String> = Vec::new();
        for line in first.into_iter().chain(errors) {
            let line: String =
                undecorated(line).chars().take(LINE_CHARS_MAX).filter(|c| !c.is_control()).collect();
            let says_something = !line.is_empty() && !NOISE.iter().any(|words| line.starts_with(words));
            if lines.len() < LINES_MAX && says_something && !lines.contains(&line) {
                lines.push(line);
            }
        }
        Self { lines }
    }

    /// The lines, first cause first.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// CRIU met something in the sandbox that it cannot carry over, so trying again is pointless
    /// until the sandbox has changed.
    pub(super) fn is_refusal(&self) -> bool {
        self.lines.iter().any(|line| {
            let line = line.to_ascii_lowercase();
            REFUSALS.iter().any(|words| line.contains(words))
        })
    }

    /// The file system of the images is full.
    pub(super) fn is_no_space(&self) -> bool {
        self.lines.iter().any(|line| line.contains("No space left on device"))
    }
}

/// What CRIU's refusals have in common, in lower case. Collected from its sources: each stands before the dump gives
/// up on an object, not on a failing system call.
const REFUSALS: [&str; 22] = [
    "connected tcp socket",
    "in-flight connection",
    "external socket is used",
    "external stream socket",
    "external socket",
    "can't dump half of stream unix connection",
    "unsupported",
    "not supported",
    "isn't supported",
    "is not support",
    "don't know how to dump",
    "can't dump file",
    "can't dump ghost file",
    "can't dump nested",
    "can't dump unlinked",
    "unknown socket",
    "unknown ipproto",
    "can't lookup mount",
    "unable to handle",
    "some file locks are hold by dumping tasks",
    "is deleted and can't be dumped",
    "tasks with a corrupted",
];

/// Errors that CRIU lives with: it tries to raise its own limit of open files, which not every root may.
const NOISE: [&str; 1] = ["rlimit: Can't setup RLIMIT_NOFILE for self"];

/// `(00.012) Error (criu/sk-inet.c:188): inet: Connected` becomes `inet: Connected`.
fn undecorated(line: &str) -> &str {
    let Some((_, after)) = line.split_once("Error (") else { return line.trim() };
    after.split_once("): ").map_or(line, |(_, words)| words).trim()
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.lines.as_slice() {
            [] => f.write_str("CRIU gave no reason"),
            lines => f.write_str(&lines.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cause_comes_first_without_decoration() {
        let log = "(00.000123) Error (criu/rlimit.c:31): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
                   (00.01) Warn  (criu/x.c:1): never mind\n\
                   (00.02)     12: Error (criu/sk-inet.c:188): inet: Connected TCP socket, consider using --tcp-established option.\n\
                   (00.03) Error (criu/cr-dump.c:2111): Dumping FAILED.\n";
        let first = "Error (criu/sk-inet.c:188): inet: Connected TCP socket, consider using --tcp-established option.\n";
        let reason = Reason::parse(log, Some(first));
        assert_eq!(
            reason.lines(),
            ["inet: Connected TCP socket, consider using --tcp-established option.", "Dumping FAILED."]
        );
        assert!(reason.is_refusal() && !reason.is_no_space());
    }

    #[test]
    fn a_log_cannot_fill_the_memory_or_the_terminal() {
        let line = format!("Error (criu/x.c:1): {}\u{1b}[31m", "x".repeat(100_000));
        let log: String = (0..1000).map(|n| format!("{line}\nError (criu/x.c:1): {n}\n")).collect();
        let reason = Reason::parse(&log, None);
        assert!(
            reason.lines().len() <= LINES_MAX && reason.to_string().len() <= LINES_MAX * (LINE_CHARS_MAX + 2)
        );
        assert!(!reason.to_string().contains('\u{1b}'));
    }

    #[test]
    fn a_failing_system_call_is_no_refusal() {
        let reason = Reason::parse("Error (criu/image.c:1): Can't open img: No space left on device", None);
        assert!(reason.is_no_space() && !reason.is_refusal());
        assert_eq!(Reason::parse("", None).to_string(), "CRIU gave no reason");
    }
}
