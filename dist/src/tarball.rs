//! Files as `.tar.gz`: sorted, owned by root, with one moment for all.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::Path,
};

use flate2::{Compression, GzBuilder};
use medes_deploy::archive::{self, ArchiveError, Entry, What};

use crate::stamp::Stamp;

/// A tar with every folder named before what is in it, sorted; names begin with `top` (such as `./`).
///
/// # Errors
/// When a file cannot be read.
pub fn tar(entries: &[Entry], top: &str, stamp: &Stamp) -> Result<Vec<u8>, ArchiveError> {
    let mut bytes = Vec::new();
    archive::write_as_of(&laid_out(entries, top), stamp.moment, &mut bytes)?;
    Ok(bytes)
}

/// Compressed; says neither when nor from what.
///
/// # Errors
/// None that memory has not.
pub fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Sorted by name, below `top`, each folder before what is in it. Two files of one name cannot be: the last one counts.
fn laid_out(entries: &[Entry], top: &str) -> Vec<Entry> {
    let mut all = BTreeMap::new();
    let mut folder = |name: &str| {
        let name = format!("{top}{name}");
        if !name.is_empty() {
            all.insert(name.clone(), Entry { name, what: What::Folder });
        }
    };
    folder("");
    for entry in entries {
        let parents =
            Path::new(&entry.name).ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty());
        parents.for_each(|parent| folder(&format!("{}/", parent.display())));
    }
    for entry in entries {
        let name = format!("{top}{}", entry.name);
        all.insert(name.clone(), Entry { name, what: entry.what.clone() });
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_before_what_is_in_them() {
        let text = |name: &str| Entry { name: name.into(), what: What::Text(Vec::new()) };
        let names = |top| -> Vec<String> {
            let all = laid_out(&[text("b/c/d"), text("a"), text("b/a")], top);
            all.into_iter().map(|entry| entry.name).collect()
        };
        assert_eq!(names("./"), ["./", "./a", "./b/", "./b/a", "./b/c/", "./b/c/d"]);
        assert_eq!(names(""), ["a", "b/", "b/a", "b/c/", "b/c/d"]);
    }
}
