//! The end of every image file: proof that the bytes before it are whole and come from a holder of the key.

use thiserror::Error;

use crate::key::DomainKey;

const SEAL_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 32;

/// Bytes that sealing adds.
pub(super) const TRAILER_BYTES: usize = SEAL_BYTES + CHECKSUM_BYTES;

/// Why a file's end does not vouch for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UnsealError {
    /// Too short to have an end like ours.
    #[error("{bytes} bytes are too few for a sealed file")]
    TooShort {
        /// The length.
        bytes: usize,
    },
    /// Some byte is not what was written.
    #[error("the file fails its checksum")]
    Checksum,
    /// Whole, but made without this key.
    #[error("the file was not sealed with this key")]
    Seal,
}

/// Closes a body: appends its seal and the checksum of both. Nothing may be appended or changed afterwards.
///
/// For tools and fuzz targets that write image bodies themselves; [`super::ImageBuilder`] does it on its own.
pub fn seal(mut body: Vec<u8>, key: &DomainKey) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&body);
    let seal = key.image_seal(&hasher.finalize());
    hasher.update(&seal);
    body.reserve_exact(TRAILER_BYTES);
    body.extend_from_slice(&seal);
    body.extend_from_slice(hasher.finalize().as_bytes());
    body
}

/// The body of a sealed file, once every byte of it has been checked.
pub fn unseal<'f>(file: &'f [u8], key: &DomainKey) -> Result<&'f [u8], UnsealError> {
    let checked = Checked::new(file)?;
    checked.sealed_with(key).then_some(checked.body).ok_or(UnsealError::Seal)
}

/// A file that is whole; by whom it was made is still open.
pub(super) struct Checked<'f> {
    pub(super) body: &'f [u8],
    seal: [u8; SEAL_BYTES],
    body_hash: blake3::Hash,
}

impl<'f> Checked<'f> {
    pub(super) fn new(file: &'f [u8]) -> Result<Self, UnsealError> {
        let too_short = UnsealError::TooShort { bytes: file.len() };
        let (sealed, checksum) = file.split_last_chunk::<CHECKSUM_BYTES>().ok_or(too_short)?;
        let (body, seal) = sealed.split_last_chunk::<SEAL_BYTES>().ok_or(too_short)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(body);
        let body_hash = hasher.finalize();
        hasher.update(seal);
        if hasher.finalize() != *checksum {
            return Err(UnsealError::Checksum);
        }
        Ok(Self { body, seal: *seal, body_hash })
    }

    pub(super) fn sealed_with(&self, key: &DomainKey) -> bool {
        // Through blake3's type, whose comparison takes the same time wherever the difference is.
        let widen = |seal: [u8; SEAL_BYTES]| {
            let mut wide = [0; 32];
            wide[..SEAL_BYTES].copy_from_slice(&seal);
            blake3::Hash::from_bytes(wide)
        };
        widen(self.seal) == widen(key.image_seal(&self.body_hash))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const KEY: DomainKey = DomainKey::from_bytes([1; 32]);

    proptest! {
        #[test]
        fn any_flipped_bit_is_seen(body in proptest::collection::vec(any::<u8>(), 0..300), at: Index, bit in 0u8..8) {
            let mut file = seal(body.clone(), &KEY);
            prop_assert_eq!(unseal(&file, &KEY), Ok(&body[..]));
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
            prop_assert_eq!(unseal(&file, &KEY), Err(UnsealError::Checksum));
        }

        #[test]
        fn any_cut_is_seen(body in proptest::collection::vec(any::<u8>(), 0..300), at: Index) {
            let file = seal(body, &KEY);
            let cut = at.index(file.len());
            prop_assert!(unseal(&file[..cut], &KEY).is_err());
        }
    }

    #[test]
    fn a_body_with_a_fresh_checksum_but_no_key_is_refused() {
        let other = DomainKey::from_bytes([2; 32]);
        let file = seal(b"body".to_vec(), &other);
        assert_eq!(unseal(&file, &KEY), Err(UnsealError::Seal));
    }
}
