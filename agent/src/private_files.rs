//! The private files of a sandbox that stands still (`/tmp`, `/run`, `/dev/shm`...), packed to be unpacked in another housing.

use std::{fs, io, os::unix::fs::FileTypeExt, path::Path};

/// Packs a sandbox's private files. Gives up soon after there are more than `bytes_max`.
pub(crate) fn pack(folder: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.follow_symlinks(false);
    archive.sparse(true);
    add(&mut archive, (folder, Path::new("")), bytes_max)?;
    archive.into_inner()
}

/// All but sockets, which CRIU makes anew.
fn add(
    archive: &mut tar::Builder<Vec<u8>>,
    (folder, inside): (&Path, &Path),
    bytes_max: usize,
) -> io::Result<()> {
    for entry in fs::read_dir(folder.join(inside))? {
        let entry = entry?;
        let (kind, path) = (entry.file_type()?, inside.join(entry.file_name()));
        if kind.is_socket() {
            continue;
        }
        if archive.get_ref().len() > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        archive.append_path_with_name(entry.path(), &path)?;
        if kind.is_dir() {
            add(archive, (folder, &path), bytes_max)?;
        }
    }
    Ok(())
}

/// Puts packed files into the folder of another sandbox. Nothing is written outside of it, whatever the archive says.
pub(crate) fn unpack(packed: &[u8], folder: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(packed);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_overwrite(true);
    archive.unpack(folder)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn nothing_is_written_outside_of_the_folder() {
        let (outside, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut archive = tar::Builder::new(Vec::new());
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, "tmp", outside.path()).unwrap();
        let file = |path: &str| {
            let mut header = tar::Header::new_gnu();
            header.set_size(4);
            header.set_mode(0o644);
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            header
        };
        archive.append(&file("tmp/through"), &b"evil"[..]).unwrap();
        assert!(unpack(&archive.into_inner().unwrap(), to.path()).is_err());
        let mut archive = tar::Builder::new(Vec::new());
        archive.append(&file("../up"), &b"evil"[..]).unwrap();
        let _skipped_or_refused = unpack(&archive.into_inner().unwrap(), to.path());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(!to.path().parent().unwrap().join("up").exists());
    }

    #[test]
    fn they_come_back_as_they_were() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("tmp/deep")).unwrap();
        fs::create_dir(to.path().join("tmp")).unwrap();
        fs::write(from.path().join("tmp/deep/data"), [7; 5000]).unwrap();
        fs::set_permissions(from.path().join("tmp/deep/data"), fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("deep/data", from.path().join("tmp/link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(from.path().join("tmp/socket")).unwrap();
        let packed = pack(from.path(), usize::MAX).unwrap();
        unpack(&packed, to.path()).unwrap();
        assert_eq!(fs::read(to.path().join("tmp/link")).unwrap(), [7; 5000]);
        let mode = fs::metadata(to.path().join("tmp/deep/data")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert!(!to.path().join("tmp/socket").exists());
    }

    #[test]
    fn too_many_are_refused_before_they_fill_the_memory() {
        let from = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            fs::write(from.path().join(name), [7; 5000]).unwrap();
        }
        let refused = pack(from.path(), 6000).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::FileTooLarge);
    }
}
