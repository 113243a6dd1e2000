//! Reads the kernel's list of mounts of this mount namespace.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Largest list read; some 100,000 mounts.
const LIST_BYTES_MAX: u64 = 16 << 20;

/// One mount, as far as anybody here wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountLine {
    /// Which part of the file system is mounted.
    pub(crate) root: PathBuf,
    /// Where.
    pub(crate) mount_point: PathBuf,
    /// The file system's type.
    pub(crate) kind: String,
    /// Options of the file system itself; the controllers of a v1 cgroup hierarchy are here.
    pub(crate) super_options: String,
}

/// The mounts of the calling thread's namespace. Later ones lie on top of earlier ones.
pub(crate) fn read() -> io::Result<Vec<MountLine>> {
    let mut text = Vec::new();
    std::fs::File::open("/proc/thread-self/mountinfo")?.take(LIST_BYTES_MAX).read_to_end(&mut text)?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse).collect())
}

/// `36 35 98:0 /root /point rw,noatime master:1 - ext4 /dev/sda rw`
fn parse(line: &[u8]) -> Option<MountLine> {
    let mut words = line.split(|&byte| byte == b' ');
    let root = words.by_ref().nth(3)?;
    let mount_point = words.next()?;
    let mut after_dash = words.skip_while(|&word| word != b"-").skip(1);
    let kind = after_dash.next()?;
    let super_options = after_dash.nth(1)?;
    Some(MountLine {
        root: unescape(root),
        mount_point: unescape(mount_point),
        kind: String::from_utf8_lossy(kind).into_owned(),
        super_options: String::from_utf8_lossy(super_options).into_owned(),
    })
}

/// Space, tab, newline and backslash are written as `\040` and so on.
fn unescape(word: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&first, tail)) = rest.split_first() {
        let code = if first == b'\\' { tail.get(..3).and_then(octal) } else { None };
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// The mount that holds `path`: the longest mount point above it; of equal ones the last.
pub(crate) fn containing<'a>(mounts: &'a [MountLine], path: &Path) -> Option<&'a MountLine> {
    mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_with_any_number_of_optional_ones() {
        for optional in ["", "shared:1 ", "shared:1 master:2 "] {
            let line =
                format!(r"36 35 98:0 /sub\040dir /mnt/a\134b rw,noatime {optional}- cgroup none rw,memory");
            let mount = parse(line.as_bytes()).expect("a good line");
            assert_eq!(mount.root, Path::new("/sub dir"));
            assert_eq!(mount.mount_point, Path::new(r"/mnt/a\b"));
            assert_eq!((mount.kind.as_str(), mount.super_options.as_str()), ("cgroup", "rw,memory"));
        }
        assert_eq!(parse(b"36 35 98:0 /"), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn the_innermost_and_topmost_mount_holds_a_path() {
        let mount = |point: &str, kind: &str| MountLine {
            root: PathBuf::from("/"),
            mount_point: PathBuf::from(point),
            kind: kind.to_owned(),
            super_options: String::new(),
        };
        let mounts = [mount("/", "ext4"), mount("/a", "xfs"), mount("/a", "tmpfs"), mount("/ab", "nfs")];
        assert_eq!(containing(&mounts, Path::new("/a/b")).expect("held").kind, "tmpfs");
        assert_eq!(containing(&mounts, Path::new("/c")).expect("held").kind, "ext4");
    }
}
