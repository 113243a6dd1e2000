//! Files of the kernel that hold one setting each, put back as they were when nobody needs them any more.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Settings that were changed, with what they were before. Dropped, it puts them back, the last one first.
#[derive(Debug, Default)]
pub(super) struct Changed(Vec<(PathBuf, String)>);

impl Changed {
    /// Changes one, and remembers what it was.
    pub(super) fn set(&mut self, path: &Path, value: &str) -> Result<()> {
        let before = chosen(&read(path)?);
        write(path, value)?;
        self.0.push((path.to_owned(), before));
        Ok(())
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        while let Some((path, before)) = self.0.pop() {
            if let Err(error) = write(&path, &before) {
                eprintln!("{error:#}: it stays changed");
            }
        }
    }
}

/// The whole file.
pub(super) fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// A file that is one number.
pub(super) fn number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    text.trim().parse().with_context(|| format!("{} is {:?}, and no number", path.display(), text.trim()))
}

pub(super) fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("write {value:?} to {}", path.display()))
}

/// Of a list, the kernel puts the chosen word in brackets.
fn chosen(text: &str) -> String {
    let words = text.split_whitespace();
    let marked = words.clone().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'));
    marked.map_or_else(|| text.trim().to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_put_back_in_the_opposite_order() {
        let folder = tempfile::tempdir().unwrap();
        let (one, list) = (folder.path().join("run"), folder.path().join("algorithm"));
        fs::write(&one, "0\n").unwrap();
        fs::write(&list, "lzo [lzo-rle] lz4\n").unwrap();
        let mut changed = Changed::default();
        changed.set(&one, "1").unwrap();
        changed.set(&one, "2").unwrap();
        changed.set(&list, "lz4").unwrap();
        assert_eq!((read(&one).unwrap().as_str(), number(&one).unwrap()), ("2", 2));
        drop(changed);
        assert_eq!((read(&one).unwrap(), read(&list).unwrap()), ("0".into(), "lzo-rle".into()));
    }

    #[test]
    fn what_is_not_there_is_not_changed() {
        let error = Changed::default().set(Path::new("/nowhere/run"), "1").unwrap_err();
        assert!(format!("{error:#}").contains("/nowhere/run"), "{error:#}");
    }
}
