//! The log files of children: kept below a size, and their last lines for reports.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

/// A log larger than this is set aside once (as `.old`) and begun anew.
const LOG_BYTES_MAX: u64 = 32 << 20;
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 8 << 10;

/// Keeps a log that somebody appends to below its limit. Lines written meanwhile may be lost.
pub(super) fn bound(path: &Path) -> io::Result<()> {
    bound_to(path, LOG_BYTES_MAX)
}

fn bound_to(path: &Path, bytes_max: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() <= bytes_max {
        return Ok(());
    }
    // The writer holds the file open, so it is the file that must be emptied, not its name that must move.
    fs::copy(path, path.with_extension("log.old"))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The last lines; none if the log cannot be read.
pub(super) fn tail(path: &Path) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().map(crate::output::plain).collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_tail_is_the_last_lines_whatever_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        assert!(tail(&path).is_empty());
        let long = "x".repeat(1000);
        fs::write(&path, format!("{long}\n").repeat(100) + "last\n").unwrap();
        let lines = tail(&path);
        assert_eq!(lines.last().unwrap(), "last");
        assert!(lines.len() <= TAIL_LINES);
    }

    #[test]
    fn a_log_that_grows_too_large_begins_anew_for_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        writer.write_all(&[b'x'; 100]).unwrap();
        bound_to(&path, 100).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 100);
        bound_to(&path, 99).unwrap();
        writer.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(dir.path().join("a.log.old")).unwrap().len(), 100);
    }
}
