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
    let Some(merged) = merge(given, &overrides) else { return Ok(None) };
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

fn merge(given: Option<Table>, overrides: &[(&str, Option<Span>)]) -> Option<Table> {
    let mut table = given;
    for (key, value) in overrides {
        if let Some(value) = value {
            table.get_or_insert_default().insert((*key).into(), Value::String(value.to_string()));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn options_override_the_file_and_leave_the_rest() {
        let given: Table = "idle = '5s'\nother = 3\n[engine]\nchunks = 5\n".parse().unwrap();
        let idle = Span(Duration::from_secs(60));
        let merged = merge(Some(given), &[("idle", Some(idle)), ("keep_alive", None)]).unwrap();
        let expected: Table = "idle = '1m'\nother = 3\n[engine]\nchunks = 5\n".parse().unwrap();
        assert_eq!(merged, expected);
        assert_eq!(merged.to_string().parse::<Table>().unwrap(), expected);
    }

    #[test]
    fn nothing_to_say_is_no_file() {
        assert_eq!(merge(None, &[("idle", None)]), None);
    }
}
