//! The files of a dump, wherever they are: in a folder, as a restore needs them, or in memory, where a dump puts them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::image_file::{self, FormatError, ImageFileError};
use super::images::ReadImagesError;
use crate::memory_file::MappedFile;

pub(super) const FILES_MAX: usize = 100_000;

/// The files of one dump.
pub trait Files {
    /// Where they are, for messages.
    fn place(&self) -> &Path;

    /// Names of all that belong to the dump, sorted.
    ///
    /// # Errors
    ///
    /// The place cannot be listed, or something in it is none of CRIU's images.
    fn names(&self) -> Result<Vec<String>, ReadImagesError>;

    /// The bytes of one that holds no pages.
    ///
    /// # Errors
    ///
    /// There is none of this name, or it is longer than `max` bytes.
    fn read(&self, name: &str, max: u64) -> Result<Cow<'_, [u8]>, ImageFileError>;

    /// How many bytes one has that holds pages.
    ///
    /// # Errors
    ///
    /// `NotFound` where there is none of this name.
    fn pages_bytes(&self, name: &str) -> io::Result<u64>;
}

/// Whether CRIU gives an image such a name: a plain one, which stays inside its folder.
#[must_use]
pub fn is_image_name(name: &str) -> bool {
    name.ends_with(".img")
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// Whether the file of this name is nothing but pages.
pub(super) fn holds_pages(name: &str) -> bool {
    name.starts_with("pages-")
}

/// Reads one and takes it apart.
pub(super) fn parse<T>(
    files: &(impl Files + ?Sized),
    name: &str,
    max: u64,
    parse: impl FnOnce(&[u8]) -> Result<T, FormatError>,
) -> Result<T, ImageFileError> {
    parse(&files.read(name, max)?)
        .map_err(|source| ImageFileError::Format { path: files.place().join(name), source })
}

/// A folder as CRIU leaves it: with its log, its statistics and its sockets beside the images.
impl Files for Path {
    fn place(&self) -> &Path {
        self
    }

    fn names(&self) -> Result<Vec<String>, ReadImagesError> {
        let failed = |source| ReadImagesError::List { path: self.to_owned(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(self).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(failed)?;
            if name == "parent" {
                return Err(ReadImagesError::HasParent { path: self.to_owned() });
            }
            if name.starts_with("stats-") || name.ends_with(".log") || name.ends_with(".sock") {
                continue;
            }
            if !kind.is_file() || !is_image_name(&name) {
                return Err(ReadImagesError::Name { path: self.to_owned(), name });
            }
            names.push(name);
            if names.len() > FILES_MAX {
                return Err(ReadImagesError::TooMany { path: self.to_owned() });
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str, max: u64) -> Result<Cow<'_, [u8]>, ImageFileError> {
        image_file::read(&self.join(name), max).map(Cow::Owned)
    }

    fn pages_bytes(&self, name: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.join(name))?.len())
    }
}

/// A dump in memory.
#[derive(Debug, Default)]
pub struct InMemory {
    place: PathBuf,
    pages: BTreeMap<String, MappedFile>,
    others: BTreeMap<String, Vec<u8>>,
}

impl InMemory {
    /// Those that hold pages, and all others. Their names are [image names](is_image_name).
    #[must_use]
    pub fn new(pages: BTreeMap<String, MappedFile>, others: BTreeMap<String, Vec<u8>>) -> Self {
        Self { place: "memory".into(), pages, others }
    }

    /// One that holds pages.
    #[must_use]
    pub fn pages(&self, name: &str) -> Option<&MappedFile> {
        self.pages.get(name)
    }

    /// Those that hold none, by their names.
    pub fn others(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.others.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
    }
}

impl Files for InMemory {
    fn place(&self) -> &Path {
        &self.place
    }

    fn names(&self) -> Result<Vec<String>, ReadImagesError> {
        let mut names: Vec<String> = self.pages.keys().chain(self.others.keys()).cloned().collect();
        names.sort();
        Ok(names)
    }

    fn read(&self, name: &str, max: u64) -> Result<Cow<'_, [u8]>, ImageFileError> {
        let path = || self.place.join(name);
        let missing = || ImageFileError::Read { path: path(), source: io::ErrorKind::NotFound.into() };
        let bytes = self.others.get(name).ok_or_else(missing)?;
        match u64::try_from(bytes.len()).is_ok_and(|len| len <= max) {
            true => Ok(Cow::Borrowed(bytes)),
            false => Err(ImageFileError::TooLong { path: path(), max }),
        }
    }

    fn pages_bytes(&self, name: &str) -> io::Result<u64> {
        let file = self.pages.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_folder() {
        assert!(is_image_name("pages-1.img") && is_image_name("core-17.img"));
        for bad in ["", "../core-1.img", "a/b.img", "core-1", "/etc/x.img", "a\0.img"] {
            assert!(!is_image_name(bad), "{bad}");
        }
    }

    #[test]
    fn what_is_in_memory_reads_as_what_is_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("core-1.img"), b"core").unwrap();
        fs::write(folder.path().join("pages-1.img"), [7; 4096]).unwrap();
        fs::write(folder.path().join("stats-dump"), b"no part of it").unwrap();
        let pages = crate::memory_file::MemoryFile::sealed("pages", &[7; 4096]).unwrap();
        let memory = InMemory::new(
            BTreeMap::from([("pages-1.img".to_owned(), pages)]),
            BTreeMap::from([("core-1.img".to_owned(), b"core".to_vec())]),
        );
        check(&memory);
        check(folder.path());
    }

    fn check(files: &(impl Files + ?Sized)) {
        assert_eq!(files.names().unwrap(), ["core-1.img", "pages-1.img"]);
        assert_eq!(files.read("core-1.img", 4).unwrap().as_ref(), b"core");
        assert!(matches!(files.read("core-1.img", 3), Err(ImageFileError::TooLong { max: 3, .. })));
        assert!(matches!(files.read("core-2.img", 3), Err(ImageFileError::Read { .. })));
        assert_eq!(files.pages_bytes("pages-1.img").unwrap(), 4096);
        assert_eq!(files.pages_bytes("pages-2.img").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
