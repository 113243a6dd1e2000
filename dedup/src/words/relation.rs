//! How the words of one target follow from those of a base: its pointer table, the secret of its runtime if the base
//! has a runtime that is known, and the tables that what is left is coded with. Together with the base's [`Facts`] it predicts any word of the target.
//!
//! ```text
//! secret bytes, 1: 0 or 16 · the secret · length of what follows, 4 · zstd frame of the coder's tables (see `entropy`)
//! · the pointer table (see `translation`)
//! ```

use thiserror::Error;

use super::context::{ALL as CONTEXTS, OF_BYTES};
use super::entropy::{Model, SYMBOLS_MAX};
use super::facts::{Facts, SECRET_BYTES, Secret, TableCache};
use super::token::WORD_BYTES;
use super::translation::{ReadTranslationError, TRANSLATION_BYTES_MAX, Translation};

/// Most bytes of the coder's tables before compression: two varints for each symbol.
const MODEL_BYTES_MAX: usize = CONTEXTS * (2 + 4 * (SYMBOLS_MAX as usize + 1));

/// Most bytes a relation takes as it is written.
pub const RELATION_BYTES_MAX: usize = 5 + SECRET_BYTES + MODEL_BYTES_MAX * 3 / 2 + TRANSLATION_BYTES_MAX;

const LEVEL: i32 = 12;

/// Why bytes are not a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReadRelationError {
    /// They end too early.
    #[error("a relation to a base ends too early")]
    Short,
    /// A secret has another length.
    #[error("a runtime's secret of {bytes} bytes")]
    Secret {
        /// The length found.
        bytes: u8,
    },
    /// The coder's tables make no sense.
    #[error("its coder's tables make no sense")]
    Model,
    /// The pointer table cannot be read.
    #[error("its pointer table")]
    Translation(#[from] ReadTranslationError),
}

/// What turns words of a base into words of one target.
#[derive(Debug, Clone, Default)]
pub struct Relation {
    pub(super) translation: Translation,
    pub(super) secret: Option<Secret>,
    pub(super) model: Model,
    pub(super) tables: TableCache,
}

impl Relation {
    /// The pointer table.
    pub const fn translation(&self) -> &Translation {
        &self.translation
    }

    /// Does it need the base's facts?
    pub const fn needs_facts(&self) -> bool {
        self.secret.is_some()
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.translation.memory_bytes() + self.model.memory_bytes() + self.tables.memory_bytes()
    }

    /// Words of the base with their pointers as the target has them.
    #[inline]
    pub(super) fn translate(&self, from: &[[u8; WORD_BYTES]], out: &mut [[u8; WORD_BYTES]]) {
        let count = out.len().min(from.len());
        let (out, from) = (&mut out[..count], &from[..count]);
        out.copy_from_slice(from);
        self.translation.translate_all(out);
    }

    /// Puts right those of the translated words, from `first` of the base on, that follow from the target's secret.
    pub(super) fn put_secret(&self, facts: &Facts, first: usize, words: &mut [[u8; WORD_BYTES]]) {
        if let (Some(secret), Some(runtime)) = (&self.secret, facts.runtime()) {
            runtime.predict(*secret, &self.translation, &self.tables, first, words);
        }
    }

    /// As bytes.
    pub fn write(&self) -> Vec<u8> {
        let secret = self.secret.map(|[a, b]| [a.to_le_bytes(), b.to_le_bytes()]);
        let secret = secret.as_ref().map(|secret| secret.as_flattened()).unwrap_or_default();
        let mut bytes = vec![secret.len() as u8];
        bytes.extend_from_slice(secret);
        let mut model = Vec::new();
        self.model.write(&mut model);
        // Compression of memory into memory does not fail; were it to, the relation would not open and the maker would see it.
        let packed = zstd::bulk::compress(&model, LEVEL).unwrap_or_default();
        bytes.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&packed);
        bytes.extend_from_slice(&self.translation.write());
        bytes
    }

    /// Reads a relation from bytes that may come from anywhere.
    pub fn read(bytes: &[u8]) -> Result<Self, ReadRelationError> {
        let (length, rest) = bytes.split_first().ok_or(ReadRelationError::Short)?;
        let (secret, rest) = match *length {
            0 => (None, rest),
            16 => {
                let (secret, rest) =
                    rest.split_first_chunk::<SECRET_BYTES>().ok_or(ReadRelationError::Short)?;
                let (a, b) = secret.split_at(WORD_BYTES);
                let half = |half: &[u8]| half.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                (Some([half(a), half(b)]), rest)
            }
            bytes => return Err(ReadRelationError::Secret { bytes }),
        };
        let (length, rest) = rest.split_first_chunk().ok_or(ReadRelationError::Short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (packed, rest) = rest.split_at_checked(length).ok_or(ReadRelationError::Short)?;
        let plain =
            zstd::bulk::decompress(packed, MODEL_BYTES_MAX).map_err(|_error| ReadRelationError::Model)?;
        let mut left = plain.as_slice();
        let model = Model::read(&mut left, CONTEXTS, OF_BYTES)
            .filter(|_| left.is_empty())
            .ok_or(ReadRelationError::Model)?;
        Ok(Self { translation: Translation::read(rest)?, secret, model, tables: TableCache::default() })
    }
}
