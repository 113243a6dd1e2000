//! Files as a tar stream (ustar): the same files give the same bytes, whoever packs them and whenever.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    path::PathBuf,
};

const BLOCK: usize = 512;
const NAME_MAX: usize = 100;
const PREFIX_MAX: usize = 155;

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative, with `/`.
    pub name: String,
    /// What it is.
    pub what: What,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The bytes of a file of this machine.
    File {
        /// Where it is.
        from: PathBuf,
        /// May be executed.
        program: bool,
    },
    /// These bytes, which nobody executes.
    Text(Vec<u8>),
    /// These bytes, which may be executed.
    Script(Vec<u8>),
    /// A symbolic link.
    Link(PathBuf),
    /// A folder, whose name ends with a slash. Those of files need none.
    Folder,
}

/// An archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A file cannot be read.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The other end does not take it.
    #[error("write the archive")]
    Write(#[source] io::Error),
    /// A name that the format has no room for.
    #[error("the name {0:?} is too long for an archive")]
    Name(String),
}

/// Writes all entries and the end mark, as old as can be. Returns the bytes written.
///
/// # Errors
/// When a file cannot be read, is shorter than it was, or the writer fails.
pub fn write(entries: &[Entry], to: &mut dyn Write) -> Result<u64, ArchiveError> {
    write_as_of(entries, 0, to)
}

/// The same, with the moment (seconds since 1970) at which everything is said to have been written.
///
/// # Errors
/// As [`write`].
pub fn write_as_of(entries: &[Entry], moment: u64, to: &mut dyn Write) -> Result<u64, ArchiveError> {
    let mut written = 0;
    for entry in entries {
        written += write_entry(entry, moment, to)?;
    }
    to.write_all(&[0; 2 * BLOCK]).and_then(|()| to.flush()).map_err(ArchiveError::Write)?;
    Ok(written + 2 * BLOCK as u64)
}

fn write_entry(entry: &Entry, moment: u64, to: &mut dyn Write) -> Result<u64, ArchiveError> {
    let mut put = |bytes: &[u8]| to.write_all(bytes).map_err(ArchiveError::Write);
    let header = |mode, length, kind, target: &str| header(&entry.name, (mode, moment), length, kind, target);
    match &entry.what {
        What::Link(target) => {
            let target = target.to_string_lossy();
            if target.len() > NAME_MAX {
                return Err(ArchiveError::Name(target.into_owned()));
            }
            put(&header(0o777, 0, b'2', &target)?)?;
            Ok(BLOCK as u64)
        }
        What::Folder => {
            put(&header(0o755, 0, b'5', "")?)?;
            Ok(BLOCK as u64)
        }
        What::Text(bytes) | What::Script(bytes) => {
            let length = bytes.len() as u64;
            let mode = if matches!(entry.what, What::Script(_)) { 0o755 } else { 0o644 };
            put(&header(mode, length, b'0', "")?)?;
            put(bytes)?;
            put(&vec![0; padding(length)])?;
            Ok(BLOCK as u64 + length + padding(length) as u64)
        }
        What::File { from, program } => {
            let failed = |source| ArchiveError::Read { path: from.clone(), source };
            let mut file = File::open(from).map_err(failed)?;
            let length = file.metadata().map_err(failed)?.len();
            put(&header(if *program { 0o755 } else { 0o644 }, length, b'0', "")?)?;
            // Exactly as long as the header says, also when it grows meanwhile.
            let mut left = length;
            let mut buffer = vec![0; 64 << 10];
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                let read = file.read(&mut buffer[..most]).map_err(failed)?;
                if read == 0 {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                put(&buffer[..read])?;
                left -= read as u64;
            }
            put(&vec![0; padding(length)])?;
            Ok(BLOCK as u64 + length + padding(length) as u64)
        }
    }
}

/// Zeros after a file, up to the next block.
fn padding(length: u64) -> usize {
    let over = usize::try_from(length % BLOCK as u64).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

/// Owner root, and no time but the one that is given: what an archive says depends on its files alone.
fn header(
    name: &str,
    (mode, moment): (u32, u64),
    length: u64,
    kind: u8,
    target: &str,
) -> Result<[u8; BLOCK], ArchiveError> {
    let (prefix, base) = split(name).ok_or_else(|| ArchiveError::Name(name.into()))?;
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, base.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{length:011o}").as_bytes());
    put(136, format!("{moment:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

/// A long name is cut at a slash.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= NAME_MAX {
        return Some(("", name));
    }
    let cuts = name.match_indices('/').map(|(at, _)| name.split_at(at));
    let mut cuts = cuts.map(|(prefix, rest)| (prefix, &rest[1..]));
    cuts.find(|(prefix, base)| prefix.len() <= PREFIX_MAX && base.len() <= NAME_MAX && !base.is_empty())
}

/// Everything in a folder, in the order of names, under another name. Links stay links.
///
/// # Errors
/// When something in it cannot be looked at.
pub fn folder(from: &std::path::Path, name: &str) -> Result<Vec<Entry>, ArchiveError> {
    let failed = |source| ArchiveError::Read { path: from.into(), source };
    let entries = fs::read_dir(from).map_err(failed)?.collect::<io::Result<Vec<_>>>();
    let mut entries = entries.map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.path();
        let failed = |source| ArchiveError::Read { path: path.clone(), source };
        let name = format!("{name}/{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().map_err(failed)?;
        if kind.is_dir() {
            all.extend(folder(&path, &name)?);
        } else if kind.is_symlink() {
            all.push(Entry { name, what: What::Link(fs::read_link(&path).map_err(failed)?) });
        } else if kind.is_file() {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = entry.metadata().map_err(failed)?.permissions().mode();
            all.push(Entry { name, what: What::File { from: path, program: mode & 0o111 != 0 } });
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn tar_unpacks_what_was_packed() {
        let from = tempfile::tempdir().unwrap();
        let deep = format!("{}/{}", "d".repeat(90), "e".repeat(60));
        fs::create_dir_all(from.path().join(&deep)).unwrap();
        fs::write(from.path().join(&deep).join("file"), [7; 1000]).unwrap();
        fs::write(from.path().join("empty"), []).unwrap();
        std::os::unix::fs::symlink("empty", from.path().join("link")).unwrap();
        let mut entries = folder(from.path(), "top").unwrap();
        entries.push(Entry { name: "top/text".into(), what: What::Text(b"words\n".to_vec()) });
        let program = PathBuf::from("/bin/true");
        entries.push(Entry { name: "top/program".into(), what: What::File { from: program, program: true } });
        let mut bytes = Vec::new();
        assert_eq!(write(&entries, &mut bytes).unwrap(), bytes.len() as u64);
        let mut again = Vec::new();
        write(&entries, &mut again).unwrap();
        assert!(bytes == again, "the same files give the same bytes");

        let to = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        let mut tar = tar.arg("-xpf-").arg("-C").arg(to.path()).stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&bytes).unwrap();
        assert!(tar.wait().unwrap().success());
        let top = to.path().join("top");
        assert_eq!(fs::read(top.join(&deep).join("file")).unwrap(), [7; 1000]);
        assert_eq!(fs::read(top.join("text")).unwrap(), b"words\n");
        assert_eq!(fs::read_link(top.join("link")).unwrap(), PathBuf::from("empty"));
        assert_eq!(fs::read(top.join("link")).unwrap(), b"");
        assert!(Command::new(top.join("program")).status().unwrap().success());
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let entry = Entry { name: "x".repeat(101), what: What::Text(Vec::new()) };
        assert!(matches!(write(&[entry], &mut Vec::new()), Err(ArchiveError::Name(_))));
    }
}
