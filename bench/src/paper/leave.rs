//! What an experiment leaves in its folder: raw CSV, a README that says where they come from, and its section of the report.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{
    csv::Csv,
    report,
    section::{Drawing, Section},
};
use crate::record::{Record, write_json};

/// Name of a section's file in an experiment's folder, and of what stands there when there is none.
pub(super) const SECTION: &str = "section.json";
pub(super) const FAILED: &str = "failed.txt";

/// What an experiment has found so far. It is kept whatever becomes of the rest.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) section: Section,
    pub(crate) files: Vec<(String, Csv)>,
}

/// A section with where it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) section: Section,
    /// Commit, machine and command.
    pub(super) line: String,
    pub(super) seed: u64,
    pub(super) seconds: f64,
    /// Times of such a build mean little.
    pub(super) debug_build: bool,
}

/// Writes it all, and the report anew.
pub(super) fn leave(
    out: &Path,
    name: &'static str,
    mut found: Found,
    (seed, took): (u64, Duration),
) -> Result<()> {
    let folder = out.join(name);
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let failed = folder.join(FAILED);
    if failed.exists() {
        fs::remove_file(&failed).with_context(|| format!("remove {}", failed.display()))?;
    }
    for (file, csv) in &found.files {
        csv.write(&folder.join(file))?;
    }
    found.section.drawings.iter_mut().for_each(Drawing::clean);
    let kept = Kept {
        line: without_places(&Record::here(name).line()),
        section: found.section,
        seed,
        seconds: took.as_secs_f64(),
        debug_build: cfg!(debug_assertions),
    };
    let path = folder.join("README.md");
    fs::write(&path, readme(name, &kept, &found.files))
        .with_context(|| format!("write {}", path.display()))?;
    write_json(&folder.join(SECTION), &kept)?;
    report::write(out)
}

/// What is left here is meant to be committed, and where files lay on a machine is nobody's business.
fn without_places(line: &str) -> String {
    let word = |word: &str| match word.rsplit_once('/') {
        Some((_, name)) if word.starts_with('/') => format!(".../{name}"),
        _ => word.to_owned(),
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn readme(name: &str, kept: &Kept, files: &[(String, Csv)]) -> String {
    let Kept { section, line, seed, seconds, debug_build } = kept;
    let mut text = format!("# {name}: {}\n\n", section.title);
    let mut say = |line: &str| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{line}");
    };
    say(&format!("{line}. Seed {seed}; it took {seconds:.0} s.\n"));
    if *debug_build {
        say("This was a debug build: its times mean little.\n");
    }
    if !section.figures.is_empty() {
        say(&format!("About {} of the paper.\n", section.figures));
    }
    section.about.iter().for_each(|about| say(&format!("{about}\n")));
    if !section.cautions.is_empty() {
        say("What did not work, was left out, or is not shown by these figures:\n");
        section.cautions.iter().for_each(|caution| say(&format!("- {caution}")));
        say("");
    }
    say("| file | columns |\n|---|---|");
    for (file, csv) in files {
        say(&format!("| `{file}` | {} |", csv.head().join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_files_elsewhere_are_kept() {
        let line =
            "Commit x, 2 x y: target/release/medes-bench paper --trace /some/where/a.csv --out target/x";
        let kept = "Commit x, 2 x y: target/release/medes-bench paper --trace .../a.csv --out target/x";
        assert_eq!(without_places(line), kept);
    }

    #[test]
    fn a_folder_explains_itself() {
        let out = tempfile::tempdir().unwrap();
        let mut found = Found { section: Section::new("How much is the same", "Fig 1"), files: Vec::new() };
        found.section.warn("html was skipped");
        found.files.push(("pairs.csv".into(), Csv::new(&["function", "fraction"])));
        fs::create_dir(out.path().join("redundancy")).unwrap();
        fs::write(out.path().join("redundancy").join(FAILED), "an earlier run").unwrap();
        leave(out.path(), "redundancy", found, (7, Duration::from_secs(3))).unwrap();
        let folder = out.path().join("redundancy");
        let text = fs::read_to_string(folder.join("README.md")).unwrap();
        for part in ["kernel", "Seed 7", "Fig 1", "html was skipped", "`pairs.csv` | function, fraction"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(fs::read_to_string(folder.join("pairs.csv")).unwrap(), "function,fraction\n");
        assert!(!folder.join(FAILED).exists() && out.path().join("report.html").exists());
    }
}
