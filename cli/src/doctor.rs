//! `medes doctor`: what this machine has and lacks to run sandboxes. Looks only; needs no controller.

use std::path::PathBuf;

use medes_agent::doctor::{self, Check, Inputs, Report, Verdict};
use serde::Serialize;

use crate::{
    error::{CliError, Ended},
    output::{Output, Sheet},
};

#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// The criu program to look at, or the folder of a private copy [default: the one the agent would find]
    #[arg(long, value_name = "PATH")]
    criu: Option<PathBuf>,
}

#[derive(Serialize)]
struct DoctorView<'a> {
    /// The worst of the checks.
    verdict: Verdict,
    checks: &'a [Check],
}

pub(crate) async fn run(args: DoctorArgs, output: &Output) -> Result<Ended, CliError> {
    let inputs = Inputs { criu: args.criu };
    let report =
        Box::pin(doctor::examine_alone(&inputs)).await.map_err(|source| CliError::Doctor { source })?;
    let verdict = report.verdict();
    output.answer(&DoctorView { verdict, checks: &report.checks }, || text(&report))?;
    Ok(if verdict == Verdict::Missing { Ended::Badly } else { Ended::Well })
}

fn text(report: &Report) -> String {
    let mut sheet = Sheet::new(&["CHECK", "VERDICT", "FOUND"]);
    for check in &report.checks {
        sheet.row(vec![check.name.clone(), word(check.verdict).into(), check.found.clone()]);
        let rest = [("so", &check.follows), ("fix", &check.fix)];
        for (what, said) in rest.into_iter().filter_map(|(what, said)| said.as_ref().map(|said| (what, said)))
        {
            sheet.row(vec![String::new(), String::new(), format!("{what}: {said}")]);
        }
    }
    let summary = match report.verdict() {
        Verdict::Ok => "This machine has all that Medes needs.",
        Verdict::Degraded => "Medes works here, with less than it could.",
        Verdict::Missing => "Something that Medes is for does not work here.",
    };
    format!("{}\n{summary}\n", sheet.text("nothing was looked at"))
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Degraded => "degraded",
        Verdict::Missing => "MISSING",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, verdict: Verdict, why: Option<&str>) -> Check {
        let why = why.map(Into::into);
        Check { name: name.into(), found: "6.18".into(), verdict, follows: why.clone(), fix: why }
    }

    #[test]
    fn what_lacks_is_told_with_what_follows_and_what_helps() {
        let long =
            "sandboxes can be neither dumped nor restored: they stay warm until they are purged ".repeat(2);
        let report = Report {
            checks: vec![check("kernel", Verdict::Ok, None), check("criu", Verdict::Missing, Some(&long))],
        };
        let text = text(&report);
        assert!(text.lines().all(|line| line.len() <= 100), "{text}");
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[1], "kernel  ok       6.18");
        assert_eq!(lines[2], "criu    MISSING  6.18");
        assert!(lines[3].trim_start().starts_with("so: sandboxes"), "{text}");
        assert!(text.contains("fix: sandboxes"), "{text}");
        assert!(text.ends_with("\nSomething that Medes is for does not work here.\n"), "{text}");
    }
}
