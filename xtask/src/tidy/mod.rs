//! `cargo xtask tidy`: house rules that no compiler keeps.
//!
//! What may break a rule, and how far, stands in `house-rules.toml`. That list may only shrink: an
//! exception that is larger than needed is a complaint too.

mod budgets;
mod claims;
mod fences;
mod manifests;
mod rules;
mod source;
mod words;

use std::process::ExitCode;

use anyhow::Result;

use self::rules::Rules;
use self::source::Source;
use crate::repo::Repo;

pub(crate) fn run(repo: &Repo) -> Result<ExitCode> {
    let complaints = complaints(repo)?;
    for complaint in &complaints {
        println!("{complaint}");
    }
    println!("tidy: {} complaints", complaints.len());
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Everything that is not as it should be, one line each.
pub(crate) fn complaints(repo: &Repo) -> Result<Vec<String>> {
    let rules = Rules::read(repo)?;
    let sources = source::all(repo)?;
    let mut complaints = Vec::new();
    for source in &sources {
        if source.is_rust() {
            complaints.extend(missing_doc(source));
            complaints.extend(budgets::check(source, &rules));
            complaints.extend(fences::check(source, &rules));
        }
        complaints.extend(words::check(source));
    }
    complaints.extend(rules.stale(&sources));
    complaints.extend(manifests::check(repo, &rules)?);
    complaints.extend(claims::check(repo, &sources)?);
    Ok(complaints)
}

/// Every file says in its first line what the room is for.
fn missing_doc(source: &Source) -> Option<String> {
    let first = source.text.lines().find(|line| !line.trim().is_empty())?;
    (!first.starts_with("//!"))
        .then(|| format!("{}: does not begin with a `//!` line that says what it is for", source.name))
}
