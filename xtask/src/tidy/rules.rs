//! `house-rules.toml`: the exceptions, each with what it is for.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::budgets;
use super::source::Source;
use crate::repo::Repo;

const FILE: &str = "xtask/house-rules.toml";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rules {
    /// Files that may hold unsafe code, and why.
    pub(super) unsafe_fences: BTreeMap<String, String>,
    /// Lines of files that are over the budget.
    pub(super) long_files: BTreeMap<String, usize>,
    /// Lines of functions that are over the budget, as `FILE::FUNCTION`.
    pub(super) long_functions: BTreeMap<String, usize>,
    /// Dependencies of ours of which another dependency brings a second version, and who does.
    pub(super) two_versions: BTreeMap<String, String>,
}

impl Rules {
    pub(super) fn read(repo: &Repo) -> Result<Self> {
        let text = fs::read_to_string(repo.path(FILE)).with_context(|| format!("read {FILE}"))?;
        toml::from_str(&text).with_context(|| format!("parse {FILE}"))
    }

    /// Exceptions that nothing needs any more.
    pub(super) fn stale(&self, sources: &[Source]) -> Vec<String> {
        let mut complaints = Vec::new();
        for name in self.unsafe_fences.keys() {
            let needed = |source: &Source| source.name == *name && source.text.contains("unsafe");
            if !sources.iter().any(needed) {
                complaints.push(format!(
                    "{FILE}: unsafe_fences: {name} holds no unsafe code; take it off the list"
                ));
            }
        }
        complaints.extend(over("long_files", &self.long_files, &budgets::long_files(sources)));
        complaints.extend(over("long_functions", &self.long_functions, &budgets::long_functions(sources)));
        complaints
    }
}

/// The list may only shrink: an entry above the real number must come down to it.
fn over(list: &str, allowed: &BTreeMap<String, usize>, real: &BTreeMap<String, usize>) -> Vec<String> {
    let shrunk = allowed.iter().filter_map(|(name, allowed)| match real.get(name) {
        None => Some(format!("{FILE}: {list}: {name} is within the budget; take it off the list")),
        Some(real) if real < allowed => {
            Some(format!("{FILE}: {list}: {name} has {real} lines now; write {real}"))
        }
        Some(_) => None,
    });
    shrunk.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_may_only_shrink() {
        let map =
            |entries: &[(&str, usize)]| entries.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
        let allowed = map(&[("gone.rs", 600), ("smaller.rs", 600), ("same.rs", 600)]);
        let real = map(&[("smaller.rs", 550), ("same.rs", 600)]);
        let complaints = over("long_files", &allowed, &real);
        assert_eq!(complaints.len(), 2, "{complaints:?}");
        assert!(complaints[0].contains("gone.rs is within the budget"));
        assert!(complaints[1].contains("write 550"));
    }
}
