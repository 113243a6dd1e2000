//! Reading a dedup image: everything is checked once when it is opened, then pages are found in a few steps.

use std::fmt;

use thiserror::Error;

use super::layout::{BASE_BYTES, Header, Layout, MAGIC};
use super::seal::{Checked, UnsealError};
use super::section::{ReadSectionsError, Sections};
use super::tables;
use crate::key::{DomainKey, PageHash, PageHasher};
use crate::page::{BasePage, PageIndex, SnapshotId};
use crate::recipe::{Kind, PAGES_PER_GROUP, ParseRecipeError, Recipe, Recipes, Records};
use crate::words::{ReadRelationError, Relation};

/// Where the recipes of a group of pages begin, and the bytes of its first page. That is a quarter of a byte for each page.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// From the start of the arena.
    arena: u64,
    /// From the start of the table of recipes.
    recipes: u32,
}

/// Why a file is not a dedup image that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum OpenImageError {
    /// Something else, or nothing.
    #[error("not a dedup image")]
    Magic,
    /// Too short to have a header and an end.
    #[error("{bytes} bytes are too few for a dedup image")]
    TooShort {
        /// The length.
        bytes: usize,
    },
    /// Some byte is not what was written.
    #[error("the dedup image fails its checksum")]
    Checksum,
    /// Whole, but of another domain.
    #[error("the dedup image belongs to another key")]
    Key,
    /// Whole and names this key, but was written by somebody who does not have it.
    #[error("the dedup image is not sealed with its key")]
    Seal,
    /// Written by a later Medes.
    #[error("dedup image version {version} is unknown")]
    Version {
        /// The version found.
        version: u16,
    },
    /// Written by a later Medes.
    #[error("dedup image level {level} is unknown")]
    Level {
        /// The level found.
        level: u8,
    },
    /// A header field without a meaning is not zero.
    #[error("a reserved field of the dedup image is in use")]
    Reserved,
    /// More of something than there may be.
    #[error("dedup image has {found} {what}, the limit is {max}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// The parts do not add up to the file.
    #[error("dedup image body is {found} bytes long, its parts {expected}")]
    Length {
        /// What the header says.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// A recipe makes no sense, or is not written the one usual way.
    #[error("recipe of page {page}")]
    Recipe {
        /// The page.
        page: u32,
        /// What is wrong with it.
        source: ParseRecipeError,
    },
    /// The table of recipes goes on after the last page.
    #[error("{bytes} bytes after the last recipe")]
    RecipesLeft {
        /// How many.
        bytes: usize,
    },
    /// The pages' bytes do not fill the arena exactly.
    #[error("recipes use {used} bytes of an arena of {arena}")]
    Arena {
        /// Added up over all recipes.
        used: u64,
        /// What the header says.
        arena: u64,
    },
    /// A pointer table cannot be read.
    #[error("pointer table of base snapshot {position}")]
    Table {
        /// The base's place in the table of bases.
        position: usize,
        /// What is wrong with it.
        source: ReadRelationError,
    },
    /// The table of base snapshots holds a zero, a number twice, or a snapshot no page refers to.
    #[error("base snapshot {position} is zero, repeated or unused")]
    BaseTable {
        /// The place in the table.
        position: usize,
    },
}

/// How many pages of each kind an image has, and the bytes they take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageClasses {
    /// Pages of zeros.
    pub zero: u32,
    /// Pages equal to a base page.
    pub same: u32,
    /// Pages stored as a delta.
    pub delta: u32,
    /// Pages stored by themselves.
    pub whole: u32,
    /// Bytes of all deltas.
    pub delta_bytes: u64,
    /// Bytes of all pages stored by themselves.
    pub whole_bytes: u64,
}

impl PageClasses {
    /// All pages.
    pub const fn pages(&self) -> u32 {
        self.zero + self.same + self.delta + self.whole
    }

    pub(crate) fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Zero => self.zero += 1,
            Kind::Same { .. } => self.same += 1,
            Kind::Delta { bytes, .. } => {
                self.delta += 1;
                self.delta_bytes += u64::from(bytes);
            }
            Kind::Whole { bytes, .. } => {
                self.whole += 1;
                self.whole_bytes += u64::from(bytes);
            }
        }
    }
}

/// An image that has been checked from end to end, in memory of any sort: a `Vec`, a mapping, a borrowed slice.
pub struct DedupImage<B> {
    file: B,
    header: Header,
    layout: Layout,
    bases: Vec<SnapshotId>,
    /// For each base how its pointers translate; none at all in an image without tables.
    relations: Vec<Relation>,
    unchanged: Relation,
    /// One for each group of pages.
    marks: Box<[Mark]>,
    classes: PageClasses,
    hasher: PageHasher,
}

impl<B: AsRef<[u8]>> DedupImage<B> {
    /// Checks a file and makes it readable. Checksum, key and seal come before anything is parsed.
    pub fn open(file: B, key: &DomainKey) -> Result<Self, OpenImageError> {
        let bytes = file.as_ref();
        if !bytes.starts_with(&MAGIC) {
            return Err(OpenImageError::Magic);
        }
        let checked = Checked::new(bytes).map_err(|problem| match problem {
            UnsealError::TooShort { bytes } => OpenImageError::TooShort { bytes },
            UnsealError::Checksum => OpenImageError::Checksum,
            UnsealError::Seal => OpenImageError::Seal,
        })?;
        let header = Header::parse(checked.body)?;
        if header.key_check != key.check_value() {
            return Err(OpenImageError::Key);
        }
        if !checked.sealed_with(key) {
            return Err(OpenImageError::Seal);
        }
        let layout = header.layout(checked.body.len())?;
        let bases = parse_bases(&checked.body[layout.bases.clone()])?;
        let hasher = PageHasher::new(key);
        let recipes = &checked.body[layout.recipes.clone()];
        let (marks, classes) = check_recipes(recipes, &header, hasher.zero())?;
        let relations = match header.table_bytes {
            Some(_) => tables::read(&checked.body[layout.tables.clone()], bases.len())?,
            None => Vec::new(),
        };
        let unchanged = Relation::default();
        Ok(Self { file, header, layout, bases, relations, unchanged, marks, classes, hasher })
    }

    /// How many pages the image has.
    pub const fn pages(&self) -> u32 {
        self.header.pages
    }

    /// The base snapshots it refers to: these must be kept while the image is.
    pub fn bases(&self) -> &[SnapshotId] {
        &self.bases
    }

    /// The base snapshots whose facts are needed to rebuild some page.
    pub fn facts_needed(&self) -> impl Iterator<Item = SnapshotId> {
        let relations = self.bases.iter().zip(&self.relations);
        relations.filter(|(_, relation)| relation.needs_facts()).map(|(snapshot, _)| *snapshot)
    }

    /// How many pages of each kind it has.
    pub const fn classes(&self) -> PageClasses {
        self.classes
    }

    /// Every byte the image takes while it is kept: the file with header, tables and checksum, and the index of its pages.
    pub fn stored_bytes(&self) -> u64 {
        let index = size_of_val(&self.marks[..]) + size_of_val(&self.bases[..]);
        (self.file.as_ref().len() + index + size_of::<Self>() + PageHasher::memory_bytes()) as u64
    }

    /// Bytes of the unpacked pointer tables, which exist only while the image is open.
    pub fn table_bytes(&self) -> u64 {
        self.relations.iter().map(|one| size_of_val(one) + one.memory_bytes()).sum::<usize>() as u64
    }

    /// The recipe of a page. `None` past the last page.
    pub fn recipe(&self, page: PageIndex) -> Option<Recipe> {
        self.recipes_from(page)?.next()
    }

    /// The recipes of this page and of those behind it. `None` past the last page.
    pub(crate) fn recipes_from(&self, page: PageIndex) -> Option<impl Iterator<Item = Recipe>> {
        let at = usize::try_from(page.0).ok()?;
        let mark = self.marks.get(at / PAGES_PER_GROUP)?;
        let table = self.part(&self.layout.recipes).get(mark.recipes as usize..)?;
        let in_group = at % PAGES_PER_GROUP;
        let pages = self.pages().checked_sub(page.0)?.checked_add(in_group as u32)?;
        let recipes = Recipes::starting_at(mark.arena, table, pages, &self.bases, self.hasher.zero());
        // Checked when the file was opened; fails only if memory outside our control has changed since.
        Some(recipes.map_while(Result::ok).skip(in_group))
    }

    /// All recipes in page order.
    pub fn recipes(&self) -> impl Iterator<Item = Recipe> {
        let table = self.part(&self.layout.recipes);
        Recipes::new(table, self.pages(), &self.bases, self.hasher.zero()).map_while(Result::ok)
    }

    /// The relation to each base as it is written; nothing for a base that has none.
    pub(super) fn written_relations(&self) -> impl Iterator<Item = (SnapshotId, &[u8])> {
        self.bases.iter().copied().zip(tables::split(self.part(&self.layout.tables)))
    }

    /// Unpacks the named sections.
    pub fn sections(&self) -> Result<Sections, ReadSectionsError> {
        Sections::unpack(self.part(&self.layout.sections), self.header.sections_plain_bytes as usize)
    }

    /// The file, for writing it somewhere.
    pub fn file(&self) -> &[u8] {
        self.file.as_ref()
    }

    /// What holds the file.
    pub const fn source(&self) -> &B {
        &self.file
    }

    /// Gives the file back.
    pub fn into_file(self) -> B {
        self.file
    }

    pub(crate) fn hasher(&self) -> &PageHasher {
        &self.hasher
    }

    /// How pointers of this base translate.
    pub(crate) fn relation(&self, base: Option<BasePage>) -> &Relation {
        let position = base.and_then(|base| self.bases.iter().position(|one| *one == base.snapshot));
        position.and_then(|at| self.relations.get(at)).unwrap_or(&self.unchanged)
    }

    /// One for each base; none at all in an image without pages of words.
    pub(super) fn all_relations(&self) -> &[Relation] {
        &self.relations
    }

    pub(crate) fn arena(&self) -> &[u8] {
        self.part(&self.layout.arena)
    }

    /// A part of the file. Empty if an owner of a strange sort has made the file shorter meanwhile.
    fn part(&self, range: &std::ops::Range<usize>) -> &[u8] {
        self.file.as_ref().get(range.clone()).unwrap_or_default()
    }
}

impl<B: AsRef<[u8]>> fmt::Debug for DedupImage<B> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("DedupImage")
            .field("bytes", &self.file.as_ref().len())
            .field("bases", &self.bases)
            .field("classes", &self.classes)
            .finish_non_exhaustive()
    }
}

fn parse_bases(table: &[u8]) -> Result<Vec<SnapshotId>, OpenImageError> {
    let (numbers, _) = table.as_chunks::<BASE_BYTES>();
    let mut bases: Vec<SnapshotId> = Vec::with_capacity(numbers.len());
    for (position, number) in numbers.iter().enumerate() {
        let snapshot = SnapshotId::new(u64::from_le_bytes(*number)).filter(|one| !bases.contains(one));
        bases.push(snapshot.ok_or(OpenImageError::BaseTable { position })?);
    }
    Ok(bases)
}

/// Reads the whole table once; what it says of pages must fill the arena and use every base.
fn check_recipes(
    table: &[u8],
    header: &Header,
    zero: PageHash,
) -> Result<(Box<[Mark]>, PageClasses), OpenImageError> {
    let bases = usize::from(header.bases);
    // Grows with the recipes that are really there, not with the number of pages that somebody wrote down.
    let mut marks = Vec::new();
    let mut classes = PageClasses::default();
    let mut used = 0;
    let mut base_used = [false; super::BASES_MAX];
    let mut records = Records::new(table, header.pages, bases, zero);
    for page in 0..header.pages {
        if (page as usize).is_multiple_of(PAGES_PER_GROUP) {
            marks.push(Mark { arena: used, recipes: (table.len() - records.unread()) as u32 });
        }
        let Some(record) = records.next() else { break };
        let kind = record.map_err(|source| OpenImageError::Recipe { page, source })?.kind;
        used += u64::from(kind.stored_bytes());
        classes.count(kind);
        if let Some(base) = kind.base() {
            base_used[usize::from(base)] = true;
        }
    }
    if records.unread() > 0 {
        return Err(OpenImageError::RecipesLeft { bytes: records.unread() });
    }
    let arena = header.arena_bytes;
    if used != arena {
        return Err(OpenImageError::Arena { used, arena });
    }
    match base_used[..bases].iter().position(|used| !used) {
        Some(position) => Err(OpenImageError::BaseTable { position }),
        None => Ok((marks.into_boxed_slice(), classes)),
    }
}
