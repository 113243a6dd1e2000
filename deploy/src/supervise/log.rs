//! The program's log file, kept below a size.

use std::{
    fs::{self, OpenOptions},
    io,
    path::Path,
};

/// A log larger than this is set aside once (as `.old`) and begun anew.
pub(crate) const BYTES_MAX: u64 = 32 << 20;

/// Keeps a log that somebody appends to below `bytes_max`. Lines written meanwhile may be lost.
pub(crate) fn bound(path: &Path, bytes_max: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() <= bytes_max {
        return Ok(());
    }
    // The writer holds the file open, so it is the file that must be emptied, not its name that must move.
    fs::copy(path, path.with_extension("log.old"))?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_log_that_grows_too_large_begins_anew_for_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.log");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        writer.write_all(&[b'x'; 100]).unwrap();
        bound(&path, 100).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 100);
        bound(&path, 99).unwrap();
        writer.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(folder.path().join("a.log.old")).unwrap().len(), 100);
    }
}
