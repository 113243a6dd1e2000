//! Making a dedup image out of encoded pages.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

use super::layout::{HEADER_BYTES, Header};
use super::section::pack;
use super::tables;
use super::{
    BASES_MAX, DedupImage, PAGES_MAX, PageClasses, SECTION_NAME_BYTES_MAX, SECTIONS_BYTES_MAX, seal,
};
use crate::encode::{EncodedPage, EncodedRun, Form};
use crate::key::DomainKey;
use crate::page::{BasePage, SnapshotId};
use crate::recipe::{Kind, PAGES_PER_GROUP, RECIPE_BYTES_MAX, Record, write_group};
use crate::words::Relation;

/// Why an image cannot be made. The sandbox it was meant for stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BuildImageError {
    /// More memory than an image can describe.
    #[error("more than {max} pages in one dedup image", max = PAGES_MAX)]
    TooManyPages,
    /// More base snapshots than a recipe can name.
    #[error("more than {max} base snapshots behind one dedup image", max = BASES_MAX)]
    TooManyBases,
    /// More named sections than allowed.
    #[error("{sections} sections in one dedup image")]
    TooManySections {
        /// How many.
        sections: usize,
    },
    /// An empty section name, or a very long one.
    #[error("a section name of {bytes} bytes")]
    SectionName {
        /// How long.
        bytes: usize,
    },
    /// Two sections with the same name.
    #[error("two sections with one name of {bytes} bytes")]
    SectionTwice {
        /// How long the name is.
        bytes: usize,
    },
    /// More section data than an image may carry.
    #[error("sections of {bytes} bytes in one dedup image")]
    SectionsTooLong {
        /// How much.
        bytes: usize,
    },
    /// Pages of words, and no pointer table for their base.
    #[error("no pointer table for {snapshot}")]
    NoTable {
        /// The base.
        snapshot: SnapshotId,
    },
    /// More pointer tables than an image may carry.
    #[error("pointer tables of {bytes} bytes in one dedup image")]
    TablesTooLong {
        /// How much.
        bytes: usize,
    },
    /// zstd could not compress the sections.
    #[error("pack sections: zstd: {problem}")]
    PackSections {
        /// What zstd says.
        problem: &'static str,
    },
}

/// Collects encoded pages in page order and closes them into an image.
///
/// Pages may be encoded by several workers: each fills an [`EncodedRun`], and the runs are appended in order.
#[derive(Debug)]
pub struct ImageBuilder {
    key: DomainKey,
    /// Room for the header, then the arena: what `finish` completes into the file.
    file: Vec<u8>,
    /// Recipes of all groups that are full, and of the one that is not.
    recipes: Vec<u8>,
    group: Vec<Record>,
    bases: Vec<SnapshotId>,
    /// Bases of pages of words.
    word_bases: BTreeSet<SnapshotId>,
    tables: BTreeMap<SnapshotId, Vec<u8>>,
    sections: BTreeMap<String, Vec<u8>>,
    section_bytes: usize,
    classes: PageClasses,
}

impl ImageBuilder {
    /// An image without pages, in the domain of this key.
    pub fn new(key: &DomainKey) -> Self {
        Self {
            key: key.clone(),
            file: vec![0; HEADER_BYTES],
            recipes: Vec::new(),
            group: Vec::with_capacity(PAGES_PER_GROUP),
            bases: Vec::new(),
            word_bases: BTreeSet::new(),
            tables: BTreeMap::new(),
            sections: BTreeMap::new(),
            section_bytes: 0,
            classes: PageClasses::default(),
        }
    }

    /// Adds the next page.
    pub fn push(&mut self, page: &EncodedPage<'_>) -> Result<(), BuildImageError> {
        if self.classes.pages() as usize >= PAGES_MAX {
            return Err(BuildImageError::TooManyPages);
        }
        let kind = match page.form {
            Form::Zero => Kind::Zero,
            Form::Same(base) => Kind::Same { base: self.base(base)?, page: base.page },
            Form::Delta { base, codec, bytes } => {
                let position = self.base(base)?;
                if codec.is_of_words() {
                    self.word_bases.insert(base.snapshot);
                }
                Kind::Delta { base: position, page: base.page, codec, bytes: self.store(bytes) }
            }
            Form::Whole { codec, bytes } => Kind::Whole { codec, bytes: self.store(bytes) },
        };
        self.group.push(Record { hash: page.hash, kind });
        self.classes.count(kind);
        if self.group.len() == PAGES_PER_GROUP {
            self.write_group();
        }
        Ok(())
    }

    /// Adds the next pages.
    pub fn append(&mut self, run: &EncodedRun) -> Result<(), BuildImageError> {
        run.iter().try_for_each(|page| self.push(&page))
    }

    /// Adds the relation that pages of words of this base were made with; left out if there are none.
    pub fn relation(&mut self, snapshot: SnapshotId, relation: &Relation) {
        self.tables.insert(snapshot, relation.write());
    }

    /// Adds the relations of an image whose pages are taken over, and says for which bases it has any.
    pub fn relations_of<B: AsRef<[u8]>>(&mut self, image: &DedupImage<B>) -> Vec<SnapshotId> {
        let relations: Vec<_> =
            image.written_relations().filter(|(_, written)| !written.is_empty()).collect();
        self.tables.extend(relations.iter().map(|(snapshot, written)| (*snapshot, written.to_vec())));
        relations.into_iter().map(|(snapshot, _)| snapshot).collect()
    }

    /// Adds a named section.
    pub fn section(&mut self, name: &str, data: Vec<u8>) -> Result<(), BuildImageError> {
        if name.is_empty() || name.len() > SECTION_NAME_BYTES_MAX {
            return Err(BuildImageError::SectionName { bytes: name.len() });
        }
        if self.sections.contains_key(name) {
            return Err(BuildImageError::SectionTwice { bytes: name.len() });
        }
        self.section_bytes += data.len();
        if self.section_bytes > SECTIONS_BYTES_MAX {
            return Err(BuildImageError::SectionsTooLong { bytes: self.section_bytes });
        }
        self.sections.insert(name.to_owned(), data);
        Ok(())
    }

    /// The pages so far, by kind.
    pub const fn classes(&self) -> PageClasses {
        self.classes
    }

    /// The base snapshots so far, in order of first use.
    pub fn bases(&self) -> &[SnapshotId] {
        &self.bases
    }

    /// The image file. Open it before giving up what it was made from: that checks it once more from the outside.
    pub fn finish(mut self) -> Result<Vec<u8>, BuildImageError> {
        let (sections, sections_plain_bytes) = pack(&self.sections)?;
        if let Some(snapshot) = self.word_bases.iter().find(|base| !self.tables.contains_key(base)) {
            return Err(BuildImageError::NoTable { snapshot: *snapshot });
        }
        let tables = match self.word_bases.is_empty() {
            true => None,
            false => {
                self.tables.retain(|snapshot, _| self.word_bases.contains(snapshot));
                Some(tables::write(&self.bases, &self.tables))
            }
        };
        let tables_too_long = |tables: &Vec<u8>| BuildImageError::TablesTooLong { bytes: tables.len() };
        let table_bytes =
            tables.as_ref().map(|all| u32::try_from(all.len()).map_err(|_error| tables_too_long(all)));
        let tables = tables.as_deref().unwrap_or_default();
        let too_long = BuildImageError::SectionsTooLong { bytes: sections.len() };
        self.write_group();
        const { assert!(PAGES_MAX * RECIPE_BYTES_MAX < u32::MAX as usize) };
        let header = Header {
            bases: u16::try_from(self.bases.len()).ok().ok_or(BuildImageError::TooManyBases)?,
            pages: self.classes.pages(),
            recipe_bytes: self.recipes.len() as u32,
            sections_stored_bytes: u32::try_from(sections.len()).ok().ok_or(too_long)?,
            sections_plain_bytes,
            table_bytes: table_bytes.transpose()?,
            arena_bytes: (self.file.len() - HEADER_BYTES) as u64,
            key_check: self.key.check_value(),
        };
        let mut file = self.file;
        file[..HEADER_BYTES].copy_from_slice(&header.write());
        // Also gives back what the arena's buffer had in reserve: an image may live for hours.
        let rest =
            self.recipes.len() + self.bases.len() * 8 + tables.len() + sections.len() + seal::TRAILER_BYTES;
        file.shrink_to(file.len() + rest);
        file.reserve_exact(rest);
        file.extend_from_slice(&self.recipes);
        for snapshot in &self.bases {
            file.extend_from_slice(&snapshot.get().to_le_bytes());
        }
        file.extend_from_slice(tables);
        file.extend_from_slice(&sections);
        Ok(seal::seal(file, &self.key))
    }

    /// Writes down the recipes of the group at hand.
    fn write_group(&mut self) {
        write_group(&self.group, &mut self.recipes);
        self.group.clear();
    }

    /// Position of the page's snapshot in the table; adds it at first use.
    fn base(&mut self, base: BasePage) -> Result<u8, BuildImageError> {
        let known = self.bases.iter().position(|snapshot| *snapshot == base.snapshot);
        let position = known.unwrap_or(self.bases.len());
        if position >= BASES_MAX {
            return Err(BuildImageError::TooManyBases);
        }
        if known.is_none() {
            self.bases.push(base.snapshot);
        }
        u8::try_from(position).ok().ok_or(BuildImageError::TooManyBases)
    }

    fn store(&mut self, bytes: &[u8]) -> u16 {
        self.file.extend_from_slice(bytes);
        // An encoder never makes more than a page of it, and nobody else can make an encoded page.
        bytes.len() as u16
    }
}
