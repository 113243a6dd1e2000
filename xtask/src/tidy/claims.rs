//! What the threat model says that a test shows, a test of that name must be there to show.

use std::fs;

use anyhow::{Context, Result};

use super::source::Source;
use crate::repo::Repo;

const PAGE: &str = "THREAT-MODEL.md";

pub(super) fn check(repo: &Repo, sources: &[Source]) -> Result<Vec<String>> {
    let text = fs::read_to_string(repo.path(PAGE)).with_context(|| format!("read {PAGE}"))?;
    // Runners of our own list a test by its name in quotes.
    let is_there = |name: &str| {
        let (function, listed) = (format!("fn {name}("), format!("\"{name}\""));
        let has = |source: &Source| source.text.contains(&function) || source.text.contains(&listed);
        sources.iter().any(|source| source.is_rust() && has(source))
    };
    let lost = tests(&text).filter(|name| !is_there(name));
    Ok(lost.map(|name| format!("{PAGE}: names {name}, and there is no such test")).collect())
}

/// What stands between backticks and looks like the sentence that a test's name is.
fn tests(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    quoted.filter(|word| {
        let plain = word.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'_');
        plain && word.matches('_').count() >= 3
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn sentences_between_backticks_are_tests() {
        let text = "| `no_new_privs`, `dedup/fuzz` | `kernel_x`: `it_does_not_fall`, `nor_does_this_one` |\nit_is_not_quoted";
        assert_eq!(super::tests(text).collect::<Vec<_>>(), ["it_does_not_fall", "nor_does_this_one"]);
    }
}
