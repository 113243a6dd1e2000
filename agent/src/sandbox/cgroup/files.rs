//! Reading and writing the small text files that control groups consist of.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;

/// Largest control file read; `cgroup.procs` of 32768 processes fits.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Writes one value. The file must exist already: control groups make their own.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads the file, up to a bound.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// A file that is a single number. `max` and anything else that is none reads as `None`.
pub(crate) fn read_number(path: &Path) -> Option<u64> {
    read(path).ok()?.trim().parse().ok()
}

/// The value after `key` in a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Process numbers in `cgroup.procs`. Processes outside our pid namespace read as 0 and are left out.
pub(crate) fn read_procs(dir: &Path) -> io::Result<Vec<i32>> {
    match read(&dir.join("cgroup.procs")) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect()),
        // ENODEV: the group is being removed.
        Err(error)
            if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV) =>
        {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

/// Makes a directory; one that is there already is fine.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_wants_the_whole_key() {
        let text = "low 0\nhigh 3\noom 1\noom_kill 2\n";
        assert_eq!(keyed(text, "oom"), Some(1));
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "oom_"), None);
    }
}
