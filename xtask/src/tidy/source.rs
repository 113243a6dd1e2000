//! The files that the rules look at.

use std::fs;

use anyhow::{Context, Result};

use crate::command::Call;
use crate::repo::Repo;

const ENDINGS: [&str; 7] = ["rs", "toml", "proto", "py", "sh", "md", "run"];

/// One text file of the checkout.
pub(super) struct Source {
    /// Its path from the top folder.
    pub(super) name: String,
    pub(super) text: String,
}

impl Source {
    pub(super) fn is_rust(&self) -> bool {
        self.ending() == "rs"
    }

    fn ending(&self) -> &str {
        self.name.rsplit(['.', '/']).next().unwrap_or_default()
    }

    /// The lines before its unit tests, which stand at the end.
    pub(super) fn without_tests(&self) -> &str {
        self.text
            .find("\n#[cfg(test)]\nmod ")
            .map_or(self.text.as_str(), |at| self.text.get(..=at).unwrap_or_default())
    }

    /// Integration tests and benchmarks: held to fewer rules.
    pub(super) fn is_test(&self) -> bool {
        ["/tests/", "/benches/"].iter().any(|folder| self.name.contains(folder))
    }
}

/// All files that git knows or would take.
pub(super) fn all(repo: &Repo) -> Result<Vec<Source>> {
    let list = Call::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .folder(repo.root())
        .output()
        .context("list the files of the checkout with git")?;
    let mut sources = Vec::new();
    for name in list.split('\0').filter(|name| !name.is_empty()) {
        let mut source = Source { name: name.to_owned(), text: String::new() };
        let path = repo.path(name);
        // A file may be deleted and not yet committed.
        if !ENDINGS.contains(&source.ending()) || !path.is_file() {
            continue;
        }
        source.text = fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
        sources.push(source);
    }
    Ok(sources)
}
