//! The relations of an image: for each base snapshot, in the order of the table of bases, 4 bytes that say how long
//! its relation is, and the relation. No bytes: no page is made of words of this base.

use std::collections::BTreeMap;

use super::OpenImageError;
use crate::page::SnapshotId;
use crate::words::{ReadRelationError, Relation};

/// The tables of these bases, one after another.
pub(super) fn write(bases: &[SnapshotId], tables: &BTreeMap<SnapshotId, Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    for base in bases {
        let table = tables.get(base).map(Vec::as_slice).unwrap_or_default();
        out.extend_from_slice(&(table.len() as u32).to_le_bytes());
        out.extend_from_slice(table);
    }
    out
}

/// The table of each base as it is written, of an image that was opened.
pub(super) fn split(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (length, behind) = rest.split_first_chunk()?;
        let (table, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        rest = behind;
        Some(table)
    })
}

/// Reads one table for each base; they must fill `bytes`.
pub(super) fn read(bytes: &[u8], bases: usize) -> Result<Vec<Relation>, OpenImageError> {
    let mut rest = bytes;
    let mut relations = Vec::with_capacity(bases);
    for position in 0..bases {
        let short = OpenImageError::Table { position, source: ReadRelationError::Short };
        let (length, behind) = rest.split_first_chunk().ok_or(short)?;
        let (table, behind) = behind.split_at_checked(u32::from_le_bytes(*length) as usize).ok_or(short)?;
        rest = behind;
        relations.push(match table {
            [] => Relation::default(),
            table => Relation::read(table).map_err(|source| OpenImageError::Table { position, source })?,
        });
    }
    match rest {
        [] => Ok(relations),
        _ => Err(OpenImageError::Table { position: bases, source: ReadRelationError::Short }),
    }
}
