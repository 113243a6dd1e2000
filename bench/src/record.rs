//! What every report says about where its numbers come from, what they are held against, and how it gets to disk.

use std::{borrow::Cow, env, ffi::OsStr, fs, path::Path, process::Command};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::model::Machine;

/// Which experiment, of which code, on which machine, started how.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    name: &'static str,
    /// What is checked out, with `+` when files were changed since. Empty when this is not a git checkout.
    commit: String,
    cpu: String,
    kernel: String,
    /// As it was typed, paths seen from the current folder: the program's says how it was built.
    command: String,
}

impl Record {
    /// About this process.
    pub(crate) fn here(name: &'static str) -> Self {
        let kernel = nix::sys::utsname::uname()
            .map_or_else(|_| String::new(), |name| name.release().to_string_lossy().into_owned());
        let folder = env::current_dir().unwrap_or_default();
        let words: Vec<String> = env::args_os().map(|word| without_folder(&word, &folder)).collect();
        Self { name, commit: commit(), cpu: cpu(), kernel, command: words.join(" ") }
    }
}

impl Record {
    /// For a model, which says where it was measured.
    pub(crate) fn machine(&self) -> Machine {
        let Self { commit, cpu, kernel, command, .. } = self;
        let [commit, cpu, kernel, command] = [commit, cpu, kernel, command].map(Clone::clone);
        Machine { commit, cpu, kernel, command }
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        let Self { commit, cpu, kernel, command, .. } = self;
        format!("Commit {commit}, {cpu}, kernel {kernel}: {command}")
    }
}

/// Something the design asks for, and what was measured. A missed one stays in the report.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Target {
    name: Cow<'static, str>,
    target: f64,
    value: f64,
    unit: &'static str,
    met: bool,
}

impl Target {
    /// Met by `target` or less.
    pub(crate) fn at_most(
        name: impl Into<Cow<'static, str>>,
        target: f64,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self { name: name.into(), target, value, unit, met: value <= target }
    }

    /// Met by `target` or more.
    pub(crate) fn at_least(
        name: impl Into<Cow<'static, str>>,
        target: f64,
        value: f64,
        unit: &'static str,
    ) -> Self {
        Self { name: name.into(), target, value, unit, met: value >= target }
    }

    /// For people.
    pub(crate) fn line(&self) -> String {
        let Self { name, target, value, unit, met } = self;
        if value.is_nan() {
            // The run was told to leave it out.
            return format!("-      {name}: not measured (target {target} {unit})");
        }
        format!(
            "{} {name}: {value:.1} {unit} (target {target} {unit})",
            if *met { "met   " } else { "MISSED" }
        )
    }
}

/// Writes a report whole or not at all.
pub(crate) fn write_json(path: &Path, report: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(report).context("write the report as JSON")?;
    text.push('\n');
    let mut name = path.file_name().with_context(|| format!("{} is not a file", path.display()))?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    fs::write(&new, text).with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, path).with_context(|| format!("write {}", path.display()))
}

/// Reports are committed, and where a checkout lies is nobody's business.
fn without_folder(word: &OsStr, folder: &Path) -> String {
    let path = Path::new(word);
    match path.strip_prefix(folder) {
        Ok(inside) if path.is_absolute() => inside.to_string_lossy().into_owned(),
        _ => word.to_string_lossy().into_owned(),
    }
}

fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return String::new() };
    let changed = git(&["status", "--porcelain"]).is_some_and(|text| !text.is_empty());
    format!("{}{}", head.trim(), if changed { "+" } else { "" })
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let values = |key: &'static str| {
        text.lines().filter_map(move |line| Some(line.strip_prefix(key)?.split_once(':')?.1.trim()))
    };
    format!("{} x {}", values("processor").count(), values("model name").next().unwrap_or("unknown"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_knows_its_machine() {
        let value = serde_json::to_value(Record::here("restore")).unwrap();
        assert_eq!(value["name"], "restore");
        assert!(value["cpu"].as_str().unwrap().contains(" x "), "{value}");
        assert!(!value["kernel"].as_str().unwrap().is_empty());
    }

    #[test]
    fn paths_are_seen_from_the_current_folder() {
        let seen = |word: &str| without_folder(OsStr::new(word), Path::new("/a/b"));
        assert_eq!(seen("/a/b/target/release/medes-bench"), "target/release/medes-bench");
        assert_eq!(seen("--functions"), "--functions");
        assert_eq!(seen("/elsewhere/x"), "/elsewhere/x");
    }

    #[test]
    fn what_was_not_measured_is_neither_met_nor_missed() {
        let line = Target::at_most("size", 8.0, f64::NAN, "%").line();
        assert!(line.contains("size: not measured (target 8 %)") && !line.contains("MISSED"), "{line}");
    }

    #[test]
    fn a_target_is_met_from_the_right_side() {
        assert!(Target::at_most("a", 8.0, 8.0, "%").met && !Target::at_most("a", 8.0, 8.1, "%").met);
        assert!(
            Target::at_least("a", 250.0, 250.0, "MB/s").met && !Target::at_least("a", 250.0, 9.0, "MB/s").met
        );
        assert!(!Target::at_most("a", 8.0, f64::NAN, "%").met, "what was not measured is not met");
    }

    #[test]
    fn a_report_leaves_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        write_json(&path, &Target::at_most("a", 8.0, 1.0, "%")).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(value["met"], true);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write_json(Path::new("/"), &1).is_err());
    }
}
