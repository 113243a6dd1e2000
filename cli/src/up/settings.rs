//! The controller's configuration for this `medes up`: the given file, and the options that override it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use medes_proto::units::Span;
use toml::{Table, Value};

use super::{UpArgs, UpError, state::StateDir};

/// Writes the merged file into the state folder.
pub(super) fn write(args: &UpArgs, state: &StateDir) -> Result<PathBuf, UpError> {
    let given = args.config.as_deref().map(read).transpose()?;
    let overrides = [("idle", args.idle), ("keep_alive", args.keep_alive), ("keep_dedup", args.keep_dedup)];
    let merged = merge(given.unwrap_or_default(), &overrides).map_err(|problem| UpError::Config {
        // Only a given file can have something else where a section is.
        path: args.config.clone().unwrap_or_default(),
        problem: problem.into(),
    })?;
    let path = state.path().join("controller.toml");
    fs::write(&path, merged.to_string())
        .map_err(|source| UpError::WriteConfig { path: path.clone(), source })?;
    Ok(path)
}

fn read(path: &Path) -> Result<Table, UpError> {
    let bad = |problem: String| UpError::Config { path: path.into(), problem };
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    text.parse().map_err(|error: toml::de::Error| bad(error.message().into()))
}

/// The overrides go to the section `policy`, where the controller has its periods. All nodes are this machine, so a copy of a base on
/// another of them would only cost memory: there is none unless the file says so.
fn merge(mut file: Table, overrides: &[(&str, Option<Span>)]) -> Result<Table, &'static str> {
    let fleet = section(&mut file, "fleet").ok_or("fleet is not a section")?;
    fleet.entry("base_copies").or_insert(Value::Integer(1));
    for (key, value) in overrides {
        if let Some(value) = value {
            let policy = section(&mut file, "policy").ok_or("policy is not a section")?;
            policy.insert((*key).into(), Value::String(value.to_string()));
        }
    }
    Ok(file)
}

/// A section, begun if it is not there; `None`: something else has its name.
fn section<'f>(file: &'f mut Table, name: &str) -> Option<&'f mut Table> {
    file.entry(name).or_insert_with(|| Value::Table(Table::new())).as_table_mut()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn options_override_the_file_and_leave_the_rest() {
        let given: Table = "[policy]\nidle = '5s'\ndedup = true\n[engine]\nchunks = 5\n".parse().unwrap();
        let idle = Span(Duration::from_secs(60));
        let merged = merge(given, &[("idle", Some(idle)), ("keep_alive", None)]).unwrap();
        let expected =
            "[fleet]\nbase_copies = 1\n[policy]\nidle = '1m'\ndedup = true\n[engine]\nchunks = 5\n";
        assert_eq!(merged, expected.parse().unwrap());
        assert_eq!(merged.to_string().parse::<Table>().unwrap(), merged);
    }

    #[test]
    fn options_need_no_file() {
        let idle = Span(Duration::from_millis(1500));
        let merged = merge(Table::new(), &[("idle", Some(idle))]).unwrap();
        assert_eq!(merged, "[fleet]\nbase_copies = 1\n[policy]\nidle = '1500ms'\n".parse().unwrap());
    }

    #[test]
    fn one_machine_has_one_copy_of_a_base_unless_the_file_says_otherwise() {
        assert_eq!(merge(Table::new(), &[]), Ok("[fleet]\nbase_copies = 1\n".parse().unwrap()));
        let given: Table = "[fleet]\nbase_copies = 2\n".parse().unwrap();
        assert_eq!(merge(given.clone(), &[]), Ok(given));
    }

    #[test]
    fn a_file_that_has_no_section_there_is_refused() {
        let idle = Span(Duration::from_secs(1));
        assert!(merge("policy = 1".parse().unwrap(), &[("idle", Some(idle))]).is_err());
        assert!(merge("fleet = 1".parse().unwrap(), &[]).is_err());
    }
}
