//! The key of a sharing domain, and the hashes that need it.
//!
//! Pages are only ever matched inside one domain (usually a tenant). Every hash that leaves this
//! crate is keyed by it: two domains holding the same bytes have nothing in common that the registry
//! or the owner of an image file could compare, and nobody without the key can make a page that
//! passes for another.

use std::fmt;

use zeroize::Zeroize;

mod page_hash;

pub use page_hash::{PageHash, PageHasher};

/// What each derived key is for. A key never does two jobs.
mod purpose {
    pub(super) const TENANT: &str = "medes dedup v1 tenant domain";
    pub(super) const PAGE_HASH: &str = "medes dedup v2 page hash";
    pub(super) const CHUNK_HASH: &str = "medes dedup v2 chunk hash";
    pub(super) const IMAGE_SEAL: &str = "medes dedup v1 image seal";
    pub(super) const KEY_CHECK: &str = "medes dedup v1 key check";
    pub(super) const TRANSFER: &str = "medes dedup v1 transfer";
}

/// What the sender of an image draws for one answer: no transfer has the key of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt(pub [u8; 32]);

/// What the reader of an image draws for one question: nothing that was sent earlier answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Challenge(pub [u8; 32]);

/// The secret of one sharing domain. Everything inside it may be matched with everything else inside it. Wiped from memory when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainKey([u8; 32]);

/// Tells one key from another without telling either: nothing of the key can be computed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:016x}", self.0)
    }
}

impl DomainKey {
    /// A key from 32 bytes that nobody can guess. Where they come from is the caller's business.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, for the one message that hands it to a node and the one file that keeps it.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of a tenant under this one: how tenants got their keys before each had one of its own. The same tenant always gets the same
    /// key, two tenants never do.
    pub fn for_tenant(&self, tenant: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose::TENANT);
        // The key has a fixed length, so key and name cannot run into each other.
        hasher.update(&self.0);
        hasher.update(tenant.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    /// Which key it is, for people and for programs that compare.
    pub fn id(&self) -> KeyId {
        let [a, b, c, d, e, f, g, h, ..] = self.check_value();
        KeyId(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Says which key made an image without telling the key.
    pub(crate) fn check_value(&self) -> [u8; 16] {
        truncate(&blake3::derive_key(purpose::KEY_CHECK, &self.0))
    }

    /// Proof that whoever wrote an image with this checksum had the key.
    pub(crate) fn image_seal(&self, checksum: &blake3::Hash) -> [u8; 16] {
        let key = blake3::derive_key(purpose::IMAGE_SEAL, &self.0);
        truncate(blake3::keyed_hash(&key, checksum.as_bytes()).as_bytes())
    }

    /// What one image is encrypted with on its way from one node to another.
    pub fn transfer_key(&self, salt: &Salt, challenge: &Challenge) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(purpose::TRANSFER);
        // All three have a fixed length.
        hasher.update(&self.0).update(&salt.0).update(&challenge.0);
        *hasher.finalize().as_bytes()
    }

    /// The secret numbers chunk hashes are made of.
    pub(crate) fn chunk_numbers(&self) -> impl FnMut() -> u64 + use<> {
        let mut hasher = blake3::Hasher::new_derive_key(purpose::CHUNK_HASH);
        hasher.update(&self.0);
        let mut stream = hasher.finalize_xof();
        move || {
            let mut number = [0; 8];
            stream.fill(&mut number);
            u64::from_le_bytes(number)
        }
    }
}

/// Copies that the compiler made on the way cannot be wiped; the one that is kept is.
impl Drop for DomainKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Never prints the key: debug output ends up in logs.
impl fmt::Debug for DomainKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DomainKey(..)")
    }
}

/// The first bytes of a hash, 32 at most.
fn truncate<const N: usize>(hash: &[u8; 32]) -> [u8; N] {
    const { assert!(N <= 32) };
    let mut short = [0; N];
    short.copy_from_slice(&hash[..N]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::ZERO_PAGE;

    const KEY: DomainKey = DomainKey::from_bytes([7; 32]);

    #[test]
    fn debug_output_tells_nothing_of_the_key() {
        assert_eq!(format!("{KEY:?}"), "DomainKey(..)");
    }

    #[test]
    fn tenants_have_keys_of_their_own() {
        let (a, b) = (KEY.for_tenant("a"), KEY.for_tenant("b"));
        assert_eq!(a, KEY.for_tenant("a"));
        assert_ne!(a, b);
        assert_ne!(a, KEY);
        assert_ne!(KEY.for_tenant(""), KEY);
        assert_ne!(PageHasher::new(&a).hash(&ZERO_PAGE), PageHasher::new(&b).hash(&ZERO_PAGE));
        assert_ne!(a.check_value(), b.check_value());
    }

    #[test]
    fn a_key_is_told_by_its_id_which_has_nothing_of_it() {
        assert_eq!(KEY.id(), KEY.clone().id());
        assert_ne!(KEY.id(), KEY.for_tenant("a").id());
        assert_eq!(
            KEY.id().to_string()[..8],
            blake3::Hash::from(blake3::derive_key(purpose::KEY_CHECK, &KEY.0)).to_hex()[..8]
        );
        assert_eq!(KEY.id().to_string().len(), 16);
    }

    #[test]
    fn each_transfer_has_a_key_of_its_own() {
        let key = |key: &DomainKey, salt: u8, challenge: u8| {
            key.transfer_key(&Salt([salt; 32]), &Challenge([challenge; 32]))
        };
        let all = [key(&KEY, 1, 2), key(&KEY, 2, 1), key(&KEY, 1, 1), key(&KEY.for_tenant("a"), 1, 2)];
        assert_eq!(key(&KEY, 1, 2), all[0]);
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }

    #[test]
    fn each_purpose_has_its_own_hash() {
        let checksum = blake3::hash(b"body");
        let mut numbers = KEY.chunk_numbers();
        let first: Vec<u8> = [numbers(), numbers()].iter().flat_map(|number| number.to_le_bytes()).collect();
        let all = [
            KEY.check_value().to_vec(),
            KEY.image_seal(&checksum).to_vec(),
            first,
            PageHasher::new(&KEY).zero().0.to_vec(),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }
}
