//! The keys of all tenants, as the running controller goes by them. The store keeps them.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock},
    time::SystemTime,
};

use medes_dedup::key::{DomainKey, KeyId};
use medes_proto::{fleet::TenantKey, ids::TenantName};

/// A tenant's key, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptKey {
    /// The key.
    pub key: DomainKey,
    /// In whole seconds.
    pub created: SystemTime,
}

#[derive(Debug)]
struct Keys {
    of_tenants: BTreeMap<TenantName, KeptKey>,
    domain: Option<DomainKey>,
}

/// Every tenant's key.
#[derive(Debug)]
pub(crate) struct Keyring(RwLock<Keys>);

impl Keyring {
    /// `domain`: what keys of tenants of an earlier version were derived from, while it is kept.
    pub(crate) fn new(
        keys: impl IntoIterator<Item = (TenantName, KeptKey)>,
        domain: Option<DomainKey>,
    ) -> Self {
        Self(RwLock::new(Keys { of_tenants: keys.into_iter().collect(), domain }))
    }

    /// From now on it may be told.
    pub(crate) fn add(&self, tenant: TenantName, kept: KeptKey) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).of_tenants.insert(tenant, kept);
    }

    /// From now on it is told to nobody, and neither is what it was derived from, if it was.
    pub(crate) fn remove(&self, tenant: &TenantName) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let removed = keys.of_tenants.remove(tenant);
        if let (Some(removed), Some(domain)) = (removed, &keys.domain)
            && is_derived(&removed.key, domain, tenant)
        {
            keys.domain = None;
        }
    }

    /// What an agent of an earlier version derives tenants' keys from.
    pub(crate) fn domain_key(&self) -> Option<DomainKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).domain.clone()
    }

    /// The key of a tenant.
    pub(crate) fn get(&self, tenant: &TenantName) -> Option<DomainKey> {
        self.read(|keys| Some(keys.get(tenant)?.key.clone()))
    }

    /// The keys of those of these tenants that have one: of one that was just deleted there is none to tell.
    pub(crate) fn of(&self, tenants: Vec<TenantName>) -> Vec<TenantKey> {
        self.read(|keys| {
            let key = |tenant: TenantName| {
                let key = keys.get(&tenant)?.key.clone();
                Some(TenantKey { tenant, key })
            };
            tenants.into_iter().filter_map(key).collect()
        })
    }

    /// All tenants: which key each has, and since when.
    pub(crate) fn list(&self) -> Vec<(TenantName, KeyId, SystemTime)> {
        self.read(|keys| {
            keys.iter().map(|(tenant, kept)| (tenant.clone(), kept.key.id(), kept.created)).collect()
        })
    }

    fn read<T>(&self, look: impl FnOnce(&BTreeMap<TenantName, KeptKey>) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner).of_tenants)
    }
}

/// Whether whoever has the domain key can make this one.
pub(crate) fn is_derived(key: &DomainKey, domain: &DomainKey, tenant: &TenantName) -> bool {
    domain.for_tenant(tenant.as_str()) == *key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_until_it_is_removed() {
        let kept = |byte| KeptKey { key: DomainKey::from_bytes([byte; 32]), created: SystemTime::UNIX_EPOCH };
        let [a, b, c]: [TenantName; 3] = ["a", "b", "c"].map(|name| name.parse().unwrap());
        let ring = Keyring::new([(a.clone(), kept(1))], None);
        ring.add(b.clone(), kept(2));
        let told = |tenants: &[&TenantName]| {
            let tenants = tenants.iter().map(|tenant| (*tenant).clone()).collect();
            ring.of(tenants).into_iter().map(|told| (told.tenant, told.key.expose()[0])).collect::<Vec<_>>()
        };
        assert_eq!(told(&[&b, &c, &a]), [(b.clone(), 2), (a.clone(), 1)]);
        ring.remove(&a);
        assert_eq!(told(&[&a, &b]), [(b.clone(), 2)]);
        assert!(ring.get(&a).is_none() && ring.get(&b) == Some(kept(2).key));
        assert_eq!(ring.list(), [(b, kept(2).key.id(), SystemTime::UNIX_EPOCH)]);
        assert!(!format!("{ring:?}").contains("2, 2"), "it is never printed");
    }

    #[test]
    fn what_a_deleted_key_was_derived_from_goes_with_it() {
        let domain = DomainKey::from_bytes([9; 32]);
        let [a, b]: [TenantName; 2] = ["a", "b"].map(|name| name.parse().unwrap());
        let kept = |key| KeptKey { key, created: SystemTime::UNIX_EPOCH };
        let own = kept(DomainKey::from_bytes([1; 32]));
        let ring = Keyring::new([(a.clone(), own), (b.clone(), kept(domain.for_tenant("b")))], Some(domain));
        ring.remove(&a);
        assert!(ring.domain_key().is_some(), "a's key could not be made of it");
        ring.remove(&b);
        assert!(ring.domain_key().is_none());
    }
}
