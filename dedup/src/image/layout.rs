//! The first 64 bytes of an image, and where everything else follows from them.
//!
//! ```text
//!  0  magic, 8 bytes          24  sections stored bytes, 4     40  table bytes, 4 (0 at level 0); zero, 4
//!  8  version, 2              28  sections plain bytes, 4      48  key check value, 16
//! 10  level, 1; zero, 1       32  arena bytes, 8               64
//! 12  base count, 2; zero, 2
//! 16  page count, 4
//! 20  recipe bytes, 4
//! ```

use std::ops::Range;

use super::open::OpenImageError;
use super::{BASES_MAX, PAGES_MAX, SECTIONS_BYTES_MAX};
use crate::page::PAGE_BYTES;
use crate::recipe::RECIPE_BYTES_MAX;

pub(super) const HEADER_BYTES: usize = 64;
pub(super) const MAGIC: [u8; 8] = *b"MedesImg";
pub(super) const VERSION: u16 = 5;
/// No pointer tables.
const LEVEL_PAGES: u8 = 0;
/// With a pointer table for each base.
const LEVEL_WORDS: u8 = 1;
pub(super) const BASE_BYTES: usize = 8;

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) bases: u16,
    pub(super) pages: u32,
    pub(super) recipe_bytes: u32,
    pub(super) sections_stored_bytes: u32,
    pub(super) sections_plain_bytes: u32,
    pub(super) arena_bytes: u64,
    /// Bytes of all pointer tables; `None` where there is no such part.
    pub(super) table_bytes: Option<u32>,
    pub(super) key_check: [u8; 16],
}

/// Where the parts of the body lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) arena: Range<usize>,
    pub(super) recipes: Range<usize>,
    pub(super) bases: Range<usize>,
    pub(super) tables: Range<usize>,
    pub(super) sections: Range<usize>,
}

impl Header {
    pub(super) fn write(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..10].copy_from_slice(&VERSION.to_le_bytes());
        header[10] = if self.table_bytes.is_some() { LEVEL_WORDS } else { LEVEL_PAGES };
        header[12..14].copy_from_slice(&self.bases.to_le_bytes());
        header[16..20].copy_from_slice(&self.pages.to_le_bytes());
        header[20..24].copy_from_slice(&self.recipe_bytes.to_le_bytes());
        header[24..28].copy_from_slice(&self.sections_stored_bytes.to_le_bytes());
        header[28..32].copy_from_slice(&self.sections_plain_bytes.to_le_bytes());
        header[32..40].copy_from_slice(&self.arena_bytes.to_le_bytes());
        header[40..44].copy_from_slice(&self.table_bytes.unwrap_or(0).to_le_bytes());
        header[48..64].copy_from_slice(&self.key_check);
        header
    }

    /// Reads the header of a body whose checksum is right. Checks version, level and every limit.
    pub(super) fn parse(body: &[u8]) -> Result<Self, OpenImageError> {
        let too_short = OpenImageError::TooShort { bytes: body.len() };
        let header = body.first_chunk::<HEADER_BYTES>().ok_or(too_short)?;
        let version = u16::from_le_bytes(field(header, 8));
        if version != VERSION {
            return Err(OpenImageError::Version { version });
        }
        let [level] = field(header, 10);
        if level > LEVEL_WORDS {
            return Err(OpenImageError::Level { level });
        }
        let unused = [
            u32::from_le_bytes(field(header, 44)).into(),
            if level == LEVEL_PAGES { u32::from_le_bytes(field(header, 40)).into() } else { 0 },
            u16::from_le_bytes(field(header, 14)).into(),
            u8::from_le_bytes(field(header, 11)).into(),
        ];
        if unused != [0u64; 4] {
            return Err(OpenImageError::Reserved);
        }
        let parsed = Self {
            bases: u16::from_le_bytes(field(header, 12)),
            pages: u32::from_le_bytes(field(header, 16)),
            recipe_bytes: u32::from_le_bytes(field(header, 20)),
            sections_stored_bytes: u32::from_le_bytes(field(header, 24)),
            sections_plain_bytes: u32::from_le_bytes(field(header, 28)),
            arena_bytes: u64::from_le_bytes(field(header, 32)),
            table_bytes: (level == LEVEL_WORDS).then(|| u32::from_le_bytes(field(header, 40))),
            key_check: field(header, 48),
        };
        let within = |what, found: u64, max: usize| {
            let max = max as u64;
            if found <= max { Ok(()) } else { Err(OpenImageError::Limit { what, found, max }) }
        };
        within("base snapshots", parsed.bases.into(), BASES_MAX)?;
        within("pages", parsed.pages.into(), PAGES_MAX)?;
        within("recipe bytes", parsed.recipe_bytes.into(), parsed.pages as usize * RECIPE_BYTES_MAX)?;
        within("section bytes", parsed.sections_plain_bytes.into(), SECTIONS_BYTES_MAX)?;
        within("arena bytes", parsed.arena_bytes, parsed.pages as usize * PAGE_BYTES)?;
        Ok(parsed)
    }

    /// The parts of a body of this length, which must be exactly as long as they are together.
    pub(super) fn layout(&self, body_bytes: usize) -> Result<Layout, OpenImageError> {
        // No sum can overflow: each part has been held against its limit.
        let arena = HEADER_BYTES..HEADER_BYTES + self.arena_bytes as usize;
        let recipes = arena.end..arena.end + self.recipe_bytes as usize;
        let bases = recipes.end..recipes.end + usize::from(self.bases) * BASE_BYTES;
        let tables = bases.end..bases.end + self.table_bytes.unwrap_or(0) as usize;
        let sections = tables.end..tables.end + self.sections_stored_bytes as usize;
        if sections.end != body_bytes {
            return Err(OpenImageError::Length { expected: sections.end, found: body_bytes });
        }
        Ok(Layout { arena, recipes, bases, tables, sections })
    }
}

/// `N` bytes of the header. The positions are constants of this file, all inside.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}
