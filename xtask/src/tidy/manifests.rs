//! Every package takes its lints and the versions of its dependencies from the workspace.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::rules::Rules;
use crate::repo::Repo;

pub(super) fn check(repo: &Repo, rules: &Rules) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    for package in repo.packages()? {
        let name = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        complaints.extend(package_complaints(&name, &read(&package.join("Cargo.toml"))?));
    }
    let workspace = read(&repo.path("Cargo.toml"))?;
    complaints.extend(two_versions(&workspace, &read(&repo.path("Cargo.lock"))?, rules));
    Ok(complaints)
}

fn read(path: &Path) -> Result<Table> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.parse().with_context(|| format!("parse {}", path.display()))
}

fn package_complaints(name: &str, manifest: &Table) -> Vec<String> {
    let mut complaints = Vec::new();
    let inherits =
        |value: Option<&Value>| value.and_then(|value| value.get("workspace")) == Some(&Value::Boolean(true));
    if !inherits(manifest.get("lints")) {
        complaints.push(format!("{name}/Cargo.toml: lacks `[lints] workspace = true`"));
    }
    let own = dependencies(manifest).into_iter().filter(|(_, value)| !inherits(Some(value)));
    complaints.extend(own.map(|(dependency, _)| {
        format!("{name}/Cargo.toml: {dependency}: name its version in the workspace, once for everyone")
    }));
    complaints
}

/// All dependencies, also those of the build, of tests and of single targets.
fn dependencies(manifest: &Table) -> Vec<(&String, &Value)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let tables = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table).chain([manifest]);
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let lists = tables.flat_map(|table| kinds.map(|kind| table.get(kind).and_then(Value::as_table)));
    lists.flatten().flat_map(Table::iter).collect()
}

/// Our own dependencies that are locked in more than one version.
fn two_versions(workspace: &Table, lock: &Table, rules: &Rules) -> Vec<String> {
    let ours = workspace.get("workspace").and_then(|workspace| workspace.get("dependencies")?.as_table());
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for package in lock.get("package").and_then(Value::as_array).into_iter().flatten() {
        if let Some(name) = package.get("name").and_then(Value::as_str) {
            *versions.entry(name).or_default() += 1;
        }
    }
    let mut complaints = Vec::new();
    for name in ours.into_iter().flat_map(Table::keys) {
        let twice = versions.get(name.as_str()).is_some_and(|count| *count > 1);
        match (twice, rules.two_versions.contains_key(name)) {
            (true, false) => complaints.push(format!("Cargo.lock: {name} is there in more than one version")),
            (false, true) => {
                complaints.push(format!("two_versions: {name} is there once; take it off the list"));
            }
            _ => {}
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_takes_everything_from_the_workspace() {
        let good = "[lints]\nworkspace = true\n[dependencies]\na.workspace = true\n[target.'cfg(unix)'.dependencies]\nb = { workspace = true, features = [\"x\"] }\n";
        assert!(package_complaints("p", &good.parse().unwrap()).is_empty());
        let bad = "[dependencies]\na = \"1\"\n[target.'cfg(unix)'.dev-dependencies]\nb = { path = \"b\" }\n";
        assert_eq!(package_complaints("p", &bad.parse().unwrap()).len(), 3);
    }
}
