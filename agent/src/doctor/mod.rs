//! What this machine offers a node, what it lacks, and what follows from that.
//!
//! Looks only: no setting is changed and nothing is left behind. Each check first gathers facts and
//! then judges them; the judgements are pure and tested on machines we do not have.

mod cgroups;
mod criu;
mod host;
mod kernel;
mod memory;
mod rights;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::reaper::Reaper;

/// What the doctor is told before it looks.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The CRIU to look at: a program or the folder of a private copy. Else the one the agent would find.
    pub criu: Option<PathBuf>,
}

/// How things stand with one need of Medes. Later is worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Medes works, slower or with less.
    Degraded,
    /// Something that Medes is for does not work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A short name that stays the same, for programs.
    pub name: String,
    /// What is there.
    pub found: String,
    /// Whether that will do.
    pub verdict: Verdict,
    /// What follows from it, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub follows: Option<String>,
    /// What would change it. A host-wide setting is named, never made.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
}

impl Check {
    fn ok(name: &str, found: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Ok, follows: None, fix: None }
    }

    fn degraded(name: &str, found: impl Into<String>, follows: &str, fix: &str) -> Self {
        Self::lacking(Verdict::Degraded, name, found, follows, fix)
    }

    fn missing(name: &str, found: impl Into<String>, follows: &str, fix: &str) -> Self {
        Self::lacking(Verdict::Missing, name, found, follows, fix)
    }

    fn lacking(verdict: Verdict, name: &str, found: impl Into<String>, follows: &str, fix: &str) -> Self {
        let (follows, fix) = (Some(follows.into()), Some(fix.into()));
        Self { name: name.into(), found: found.into(), verdict, follows, fix }
    }
}

/// Everything that was looked at, in the order in which a person would fix it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// One entry per need.
    pub checks: Vec<Check>,
}

impl Report {
    /// The worst verdict: what the machine as a whole is good for.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok)
    }
}

/// Looks at everything, for a process that has a reaper. Takes some 100 ms, most of it in `criu check`; the
/// kernel programs are loaded and unloaded once. Cancel-safe: a CRIU that still runs is killed.
pub async fn examine(inputs: &Inputs, reaper: &Reaper) -> Report {
    let mut checks = rights::checks();
    checks.extend(kernel::checks());
    checks.extend(memory::checks());
    checks.push(criu::check(inputs, reaper).await);
    checks.extend(cgroups::checks());
    checks.extend(host::checks());
    Report { checks }
}

/// Looks at everything, for a process that has no reaper yet: it gets one meanwhile.
///
/// # Errors
/// When no reaper can be started.
pub async fn examine_alone(inputs: &Inputs) -> io::Result<Report> {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let reaper = Reaper::start(&tasks, stop.clone())?;
    let report = examine(inputs, &reaper).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_verdict_is_that_of_the_machine() {
        let ok = Check::ok("a", "x");
        let degraded = Check::degraded("b", "x", "y", "z");
        let missing = Check::missing("c", "x", "y", "z");
        let verdict = |checks: &[&Check]| {
            Report { checks: checks.iter().map(|check| (*check).clone()).collect() }.verdict()
        };
        assert_eq!(verdict(&[]), Verdict::Ok);
        assert_eq!(verdict(&[&ok, &degraded, &ok]), Verdict::Degraded);
        assert_eq!(verdict(&[&missing, &degraded]), Verdict::Missing);
    }

    #[test]
    fn a_good_check_has_no_empty_fields_in_json() {
        let json = serde_json::to_string(&Check::ok("kernel", "6.18")).unwrap();
        assert_eq!(json, r#"{"name":"kernel","found":"6.18","verdict":"ok"}"#);
    }
}
