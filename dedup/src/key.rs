//! The key of a sharing domain, and the hashes that need it.
//!
//! Pages are only ever matched inside one domain (usually a tenant). Every hash that leaves this
//! crate is keyed by it: two domains holding the same bytes have nothing in common that the registry
//! or the owner of an image file could compare, and nobody without the key can make a page that
//! passes for another.

use std::fmt;

use crate::page::{Page, ZERO_PAGE};

/// What each derived key is for. A key never does two jobs.
mod purpose {
    pub(super) const TENANT: &str = "medes dedup v1 tenant domain";
    pub(super) const PAGE_HASH: &str = "medes dedup v1 page hash";
    pub(super) const CHUNK_HASH: &str = "medes dedup v1 chunk hash";
    pub(super) const IMAGE_SEAL: &str = "medes dedup v1 image seal";
    pub(super) const KEY_CHECK: &str = "medes dedup v1 key check";
}

/// The secret of one sharing domain. Everything inside it may be matched with everything else inside it.
#[derive(Clone, PartialEq, Eq)]
pub struct DomainKey([u8; 32]);

impl DomainKey {
    /// A key from 32 bytes that nobody can guess. Where they come from is the caller's business.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret itself, for the one message that hands it to a node and the one file that keeps it.
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key of a tenant under this one. The same tenant always gets the same key, two tenants never do.
    pub fn for_tenant(&self, tenant: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose::TENANT);
        // The key has a fixed length, so key and name cannot run into each other.
        hasher.update(&self.0);
        hasher.update(tenant.as_bytes());
        Self(*hasher.finalize().as_bytes())
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

    /// The secret numbers chunk hashes are made of.
    pub(crate) fn chunk_numbers(&self) -> impl FnMut() -> u64 {
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

/// Keyed hash of one page: blake3, cut to 64 bits. A rebuilt page is only used if it has this hash.
///
/// 64 bits are enough, because each page is only ever held against its own hash. An accident passes once in 2^64 damaged
/// pages. To do it on purpose takes the key: without it nobody can tell which hash a page has, so all that is left is to
/// try, and each try that fails is seen. And whoever changes an image instead of a base page has its checksum and its
/// seal to pass first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHash(pub [u8; 8]);

impl fmt::Display for PageHash {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// Hashes pages of one domain. Cheap to clone, so each worker may hold its own.
#[derive(Clone)]
pub struct PageHasher {
    key: [u8; 32],
    zero: PageHash,
}

impl PageHasher {
    /// The hasher of a domain.
    pub fn new(domain: &DomainKey) -> Self {
        let key = blake3::derive_key(purpose::PAGE_HASH, &domain.0);
        let zero = PageHash(truncate(blake3::keyed_hash(&key, &ZERO_PAGE).as_bytes()));
        Self { key, zero }
    }

    /// The hash of a page.
    pub fn hash(&self, page: &Page) -> PageHash {
        PageHash(truncate(blake3::keyed_hash(&self.key, page).as_bytes()))
    }

    /// The hash of the page of zeros, which is by far the most common one.
    pub const fn zero(&self) -> PageHash {
        self.zero
    }
}

impl fmt::Debug for PageHasher {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("PageHasher(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: DomainKey = DomainKey::from_bytes([7; 32]);

    #[test]
    fn debug_output_tells_nothing_of_the_key() {
        assert_eq!(format!("{KEY:?}"), "DomainKey(..)");
        assert_eq!(format!("{:?}", PageHasher::new(&KEY)), "PageHasher(..)");
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
    fn the_kept_zero_hash_is_the_hash_of_zeros() {
        let hasher = PageHasher::new(&KEY);
        assert_eq!(hasher.zero(), hasher.hash(&ZERO_PAGE));
        let mut page = ZERO_PAGE;
        page[4095] = 1;
        assert_ne!(hasher.zero(), hasher.hash(&page));
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
