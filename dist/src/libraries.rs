//! What a program needs of the system that it was linked on: its loader and its libraries, with those that they need in turn.
//! A root directory that has them, where they are here, runs it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use medes_deploy::archive::{Entry, What};
use object::{
    Endianness,
    elf::{DT_NEEDED, FileHeader64},
    read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _},
};

/// Files that one program may need: far more than any of ours does.
const LIBRARIES_MAX: usize = 256;

/// What a program needs is not to be found out, or not here.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// A file.
    #[error("read {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file that is no program for 64 bits.
    #[error("understand {}", .path.display())]
    Elf {
        /// Which.
        path: PathBuf,
        /// Why.
        source: object::Error,
    },
    /// A library.
    #[error("{name}, which {} needs, is in no folder that the loader looks through", .wanted_by.display())]
    Missing {
        /// Its name.
        name: String,
        /// By what.
        wanted_by: PathBuf,
    },
    /// They need each other without end.
    #[error("more than {LIBRARIES_MAX} libraries")]
    TooMany,
}

/// What one file says that it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    loader: Option<PathBuf>,
    libraries: Vec<String>,
}

/// Loader and libraries of programs, each under the name that it has here, with the bytes that are behind it.
///
/// # Errors
/// When a program cannot be read, or something that it needs is not here.
pub fn of_programs<'p>(programs: impl Iterator<Item = &'p Path>) -> Result<Vec<Entry>, LibraryError> {
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut open: Vec<PathBuf> = programs.map(Path::to_owned).collect();
    while let Some(file) = open.pop() {
        let needs = needs(&file)?;
        let wanted = |name: String| match search(&name) {
            Some(path) => Ok(path),
            None => Err(LibraryError::Missing { name, wanted_by: file.clone() }),
        };
        let libraries = needs.libraries.into_iter().filter(|name| names.insert(name.clone()));
        let paths = libraries.map(wanted).collect::<Result<Vec<_>, _>>()?;
        for path in needs.loader.into_iter().chain(paths) {
            let real = fs::canonicalize(&path)
                .map_err(|source| LibraryError::Read { path: path.clone(), source })?;
            if found.insert(path, real.clone()).is_none() {
                open.push(real);
            }
        }
        if found.len() > LIBRARIES_MAX {
            return Err(LibraryError::TooMany);
        }
    }
    let entry = |(path, from): (PathBuf, PathBuf)| Entry {
        name: path.to_string_lossy().trim_start_matches('/').to_owned(),
        what: What::File { from, program: true },
    };
    Ok(found.into_iter().map(entry).collect())
}

fn needs(path: &Path) -> Result<Needs, LibraryError> {
    let bytes = fs::read(path).map_err(|source| LibraryError::Read { path: path.into(), source })?;
    parse(&bytes).map_err(|source| LibraryError::Elf { path: path.into(), source })
}

fn parse(bytes: &[u8]) -> Result<Needs, object::Error> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = FileHeader64::<Endianness>::parse(bytes)?;
    let endian = header.endian()?;
    let mut needs = Needs::default();
    for segment in header.program_headers(endian, bytes)? {
        let loader = segment.interpreter(endian, bytes)?;
        needs.loader = needs.loader.or_else(|| loader.map(|path| PathBuf::from(text(path))));
    }
    let sections = header.sections(endian, bytes)?;
    if let Some((lines, strings)) = sections.dynamic(endian, bytes)? {
        let strings = sections.strings(endian, bytes, strings)?;
        for line in lines.iter().filter(|line| line.tag(endian) == DT_NEEDED) {
            needs.libraries.push(text(line.string(endian, strings)?));
        }
    }
    Ok(needs)
}

/// Where the loader finds a library: in the folders of this kind of machine, then in the general ones.
fn search(name: &str) -> Option<PathBuf> {
    let kind = format!("{}-linux-gnu", std::env::consts::ARCH);
    let folders = [format!("/lib/{kind}"), format!("/usr/lib/{kind}")];
    let general = ["/lib64", "/usr/lib64", "/lib", "/usr/lib"].map(str::to_owned);
    folders.into_iter().chain(general).map(|folder| Path::new(&folder).join(name)).find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_needs_the_c_library_and_its_loader() {
        let me = std::env::current_exe().unwrap();
        let entries = of_programs([&*me].into_iter()).unwrap();
        let names: Vec<_> = entries.iter().map(|entry| &*entry.name).collect();
        assert!(names.iter().any(|name| name.ends_with("/libc.so.6")), "{names:?}");
        assert!(names.iter().any(|name| name.contains("/ld-linux")), "{names:?}");
        assert!(names.iter().all(|name| !name.starts_with('/')), "{names:?}");
        for Entry { what, .. } in entries {
            let What::File { from, program: true } = what else { panic!("{what:?}") };
            assert!(from.is_file() && !from.is_symlink(), "{}", from.display());
        }
    }

    #[test]
    fn what_is_no_program_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        fs::write(&path, "no program").unwrap();
        assert!(matches!(of_programs([&*path].into_iter()), Err(LibraryError::Elf { .. })));
        assert!(matches!(of_programs([Path::new("/none")].into_iter()), Err(LibraryError::Read { .. })));
        assert_eq!(search("libnone.so.0"), None);
    }
}
