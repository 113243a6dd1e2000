//! The controller's configuration for this `medes up`: the given file, and the options that override it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use medes_proto::units::Span;
use toml::{Table, Value};

use super::{UpArgs, UpError, state::StateDir};

/// Writes the merged file into the state folder. `None` when there is nothing to say.
pub(super) fn write(args: &UpArgs, state: &StateDir) -> Result<Option<PathBuf>, UpError> {
    let given = args.config.as_deref().map(read).transpose()?;
    let overrides = [("idle", args.idle), ("keep_alive", args.keep_alive), ("keep_dedup", args.keep_dedup)];
    let Some(merged) = merge(given, &overrides).map_err(|problem| UpError::Config {
        // Only a given file can have something else where the section is.
        path: args.config.clone().unwrap_or_default(),
        problem: problem.into(),
    })?
    else {
        return Ok(None);
    };
    let path = state.path().join("controller.toml");
    fs::write(&path, merged.to_string())
        .map_err(|source| UpError::WriteConfig { path: path.clone(), source })?;
    Ok(Some(path))
}

fn read(path: &Path) -> Result<Table, UpError> {
    let bad = |problem: String| UpError::Config { path: path.into(), problem };
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    text.parse().map_err(|error: toml::de::Error| bad(error.message().into()))
}

/// The overrides go to the section `policy`, where the controller has its periods.
fn merge(given: Option<Table>, overrides: &[(&str, Option<Span>)]) -> Result<Option<Table>, &'static str> {
    let mut table = given;
    for (key, value) in overrides {
        let Some(value) = value else { continue };
        let file = table.get_or_insert_default();
        let section = file.entry("policy").or_insert_with(|| Value::Table(Table::new()));
        let section = section.as_table_mut().ok_or("policy is not a section")?;
        section.insert((*key).into(), Value::String(value.to_string()));
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn options_override_the_file_and_leave_the_rest() {
        let given: Table = "[policy]\nidle = '5s'\ndedup = true\n[engine]\nchunks = 5\n".parse().unwrap();
        let idle = Span(Duration::from_secs(60));
        let merged = merge(Some(given), &[("idle", Some(idle)), ("keep_alive", None)]).unwrap().unwrap();
        let expected = "[policy]\nidle = '1m'\ndedup = true\n[engine]\nchunks = 5\n";
        assert_eq!(merged, expected.parse().unwrap());
        assert_eq!(merged.to_string().parse::<Table>().unwrap(), merged);
    }

    #[test]
    fn options_need_no_file() {
        let idle = Span(Duration::from_millis(1500));
        let merged = merge(None, &[("idle", Some(idle))]).unwrap().unwrap();
        assert_eq!(merged, "[policy]\nidle = '1500ms'\n".parse().unwrap());
        assert_eq!(merge(None, &[("idle", None)]), Ok(None));
    }

    #[test]
    fn a_file_that_has_no_section_there_is_refused() {
        let idle = Span(Duration::from_secs(1));
        assert!(merge(Some("policy = 1".parse().unwrap()), &[("idle", Some(idle))]).is_err());
    }
}
