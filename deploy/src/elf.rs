//! Which C library a program needs: the newest version that it names. A host with an older one cannot start it.

use std::{fmt, fs, io, path::Path};

/// A version of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Glibc(pub u32, pub u32);

impl fmt::Display for Glibc {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.0, self.1)
    }
}

impl Glibc {
    /// `2.36`, also at the end of a longer text such as `glibc 2.36`.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().rsplit([' ', '-']).next()?.split_once('.')?;
        let minor = minor.split('.').next()?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// What a program needs; `None` when it names none, as one that is linked statically.
///
/// The names of needed versions stand in the program's table of strings, each ended by a zero, and nowhere else does
/// `GLIBC_` begin a string that is a version.
///
/// # Errors
/// When the file cannot be read.
pub fn needs(program: &Path) -> io::Result<Option<Glibc>> {
    let bytes = fs::read(program)?;
    Ok(newest(&bytes))
}

fn newest(bytes: &[u8]) -> Option<Glibc> {
    const MARK: &[u8] = b"\0GLIBC_";
    let starts = (0..bytes.len().saturating_sub(MARK.len())).filter(|at| bytes[*at..].starts_with(MARK));
    let version = |at: usize| {
        let text = bytes[at + MARK.len()..].split(|byte| *byte == 0).next()?;
        Glibc::parse(std::str::from_utf8(text.get(..text.len().min(16))?).ok()?)
    };
    starts.filter_map(version).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_counts() {
        let bytes = b"\x7fELF..\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBC_PRIVATE\0xGLIBC_9.9\0";
        assert_eq!(newest(bytes), Some(Glibc(2, 34)));
        assert_eq!(newest(b"\0nothing\0"), None);
    }

    #[test]
    fn this_program_runs_with_what_it_says_it_needs() {
        let me = std::env::current_exe().unwrap();
        let Some(needed) = needs(&me).unwrap() else { return };
        let said = std::process::Command::new("getconf").arg("GNU_LIBC_VERSION").output().unwrap();
        let here = Glibc::parse(&String::from_utf8_lossy(&said.stdout)).unwrap();
        assert!(needed > Glibc(2, 2) && needed <= here, "{needed} {here}");
    }
}
