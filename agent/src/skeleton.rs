//! What a dedup image keeps besides pages: CRIU's other files, which pages belong to which file, and the memory
//! that a digest leaves out. All of it in the image's named sections.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use medes_dedup::{
    image::{BuildImageError, ImageBuilder, Sections},
    page::PAGE_BYTES,
};
use serde::{Deserialize, Serialize};

use crate::{
    criu::files::{InMemory, is_image_name},
    digest::Mask,
    dump::Dump,
    memory_file::NewFile,
};

const FILE_PREFIX: &str = "criu/";
const TABLE: &str = "table";

/// The section that says what the pages are.
#[derive(Debug, Serialize, Deserialize)]
struct Table {
    /// Pages files by name, with their number of pages, in the order of the image's pages.
    pages: Vec<(String, u64)>,
    /// Process, first address, length.
    masks: Vec<(i32, u64, u64)>,
    /// The pipe its output went to, as CRIU's files name it.
    pipe: String,
}

/// Puts everything but pages into the image.
pub fn pack(dump: &Dump, image: &mut ImageBuilder) -> Result<(), PackError> {
    let masks = dump.masks().into_iter().map(|m| (m.pid, m.range.start, m.range.end - m.range.start));
    let table = Table {
        pages: dump.pages_files().map(|(name, pages)| (name.to_owned(), pages)).collect(),
        masks: masks.collect(),
        pipe: dump.pipe().to_owned(),
    };
    image.section(TABLE, serde_json::to_vec(&table)?)?;
    for (name, bytes) in dump.skeleton() {
        image.section(&format!("{FILE_PREFIX}{name}"), bytes.to_vec())?;
    }
    Ok(())
}

/// The skeleton could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// More than an image can hold.
    #[error("add a section to the image")]
    Section(#[from] BuildImageError),
    /// The table could not be written.
    #[error("write the table of pages files")]
    Table(#[from] serde_json::Error),
}

/// The skeleton could not be laid out for CRIU.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The image has none, or one that makes no sense.
    #[error("the image's table of pages files is missing or wrong")]
    Table,
    /// A file name that CRIU would not use.
    #[error("the image holds a file named {name:?}")]
    Name {
        /// The name, cut to 64 characters.
        name: String,
    },
    /// No room, most likely.
    #[error("write {path}")]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The folder of a restore, all but the contents of its pages.
#[derive(Debug)]
pub struct Laid {
    /// The pages files, zeros still, in the order of the image's pages.
    pub pages: Vec<NewFile>,
    /// Memory that the kernel changes by itself.
    pub masks: Vec<Mask>,
    /// The pipe its output went to, as CRIU's files name it.
    pub pipe: String,
}

/// CRIU's files without the pages files.
#[derive(Debug)]
pub struct Files {
    /// Pages files by name, with their number of pages, in the order of the image's pages.
    pub pages: Vec<(String, u64)>,
    /// Memory that the kernel changes by itself.
    pub masks: Vec<Mask>,
    /// The pipe its output went to, as CRIU's files name it.
    pub pipe: String,
}

/// A dump as it was, in memory, all but the contents of its pages.
#[derive(Debug)]
pub struct LaidInMemory {
    /// The pages files, zeros still, in the order of the image's pages.
    pub pages: Vec<NewFile>,
    names: Vec<String>,
    others: BTreeMap<String, Vec<u8>>,
    /// The pipe its output went to, as CRIU's files name it.
    pub pipe: String,
}

impl LaidInMemory {
    /// The pages have their contents.
    pub fn finish(self) -> io::Result<InMemory> {
        let sealed = self.pages.into_iter().map(NewFile::seal);
        let pages = self.names.into_iter().zip(sealed).map(|(name, file)| Ok::<_, io::Error>((name, file?)));
        Ok(InMemory::new(pages.collect::<Result<_, _>>()?, self.others))
    }
}

/// Makes the dump that the image was made of, with pages files for `pages` pages in all.
pub fn unpack_in_memory(sections: &Sections, pages: u32) -> Result<LaidInMemory, UnpackError> {
    let table = table(sections, pages)?;
    let create = |(name, pages): &(String, u64)| {
        let made = NewFile::in_memory("medes-dump", pages * PAGE_BYTES as u64);
        made.map_err(|source| UnpackError::Write { path: name.into(), source })
    };
    let others = criu_files(sections).map(|file| file.map(|(name, bytes)| (name.to_owned(), bytes.to_vec())));
    Ok(LaidInMemory {
        pages: table.pages.iter().map(create).collect::<Result<_, _>>()?,
        names: table.pages.into_iter().map(|(name, _)| name).collect(),
        others: others.collect::<Result<_, _>>()?,
        pipe: table.pipe,
    })
}

/// Writes CRIU's files into `folder` and makes pages files for `pages` pages in all.
pub fn unpack(sections: &Sections, pages: u32, folder: &Path) -> Result<Laid, UnpackError> {
    let Files { pages, masks, pipe } = unpack_files(sections, pages, folder)?;
    let create = |(name, pages): &(String, u64)| {
        let path = folder.join(name);
        NewFile::create(&path, pages * PAGE_BYTES as u64)
            .map_err(|source| UnpackError::Write { path, source })
    };
    Ok(Laid { pages: pages.iter().map(create).collect::<Result<_, _>>()?, masks, pipe })
}

/// Writes CRIU's files into `folder`, all but those that hold its `pages` pages.
pub fn unpack_files(sections: &Sections, pages: u32, folder: &Path) -> Result<Files, UnpackError> {
    let table = table(sections, pages)?;
    for file in criu_files(sections) {
        let (name, bytes) = file?;
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|source| UnpackError::Write { path, source })?;
    }
    let masks = table
        .masks
        .iter()
        .filter_map(|&(pid, start, length)| Some(Mask { pid, range: start..start.checked_add(length)? }));
    Ok(Files { masks: masks.collect(), pages: table.pages, pipe: table.pipe })
}

/// What the pages are, if that goes with an image of `pages` pages.
fn table(sections: &Sections, pages: u32) -> Result<Table, UnpackError> {
    let table: Table =
        sections.get(TABLE).and_then(|bytes| serde_json::from_slice(bytes).ok()).ok_or(UnpackError::Table)?;
    let total = table.pages.iter().try_fold(0u64, |sum, (_, pages)| sum.checked_add(*pages));
    if total != Some(pages.into()) {
        return Err(UnpackError::Table);
    }
    table.pages.iter().try_for_each(|(name, _)| checked(name).map(drop))?;
    Ok(table)
}

/// CRIU's files but for those that hold pages.
fn criu_files(sections: &Sections) -> impl Iterator<Item = Result<(&str, &[u8]), UnpackError>> {
    let named = sections.iter().filter_map(|(name, bytes)| Some((name.strip_prefix(FILE_PREFIX)?, bytes)));
    named.map(|(name, bytes)| Ok((checked(name)?, bytes)))
}

/// An image may have travelled: a name out of it must stay inside the folder.
fn checked(name: &str) -> Result<&str, UnpackError> {
    match is_image_name(name) {
        true => Ok(name),
        false => Err(UnpackError::Name { name: name.chars().take(64).collect() }),
    }
}
