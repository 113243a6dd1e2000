//! The keys of the tenants that have something on this node. The controller tells them and has them forgotten.
//!
//! Of what the agent before left is known under which key it was made ([`Keys::made_under`]), not the key: the controller tells that, or
//! another one if the first was deleted meanwhile. Then what is here is of no use to anybody, and goes.

use std::{
    collections::BTreeMap,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use medes_dedup::key::{DomainKey, KeyId};
use medes_proto::{
    fleet::{HeldKey, TenantKey},
    ids::TenantName,
};

#[derive(Debug)]
enum Known {
    Told(DomainKey),
    /// Something that was made under it is here.
    Seen(KeyId),
}

impl Known {
    fn id(&self) -> KeyId {
        match self {
            Self::Told(key) => key.id(),
            Self::Seen(id) => *id,
        }
    }
}

/// Whether what is here of a tenant was made under the key that was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fits {
    /// It was, or nothing is here.
    Yes,
    /// It was made under another one, which is no more.
    No,
}

/// The keys.
#[derive(Debug, Default)]
pub struct Keys(RwLock<BTreeMap<TenantName, Known>>);

impl Keys {
    /// A tenant's key, if it was told.
    pub fn get(&self, tenant: &TenantName) -> Option<DomainKey> {
        match self.read().get(tenant)? {
            Known::Told(key) => Some(key.clone()),
            Known::Seen(_) => None,
        }
    }

    /// Which key what is here of a tenant was made under, as far as anybody knows.
    pub fn id(&self, tenant: &TenantName) -> Option<KeyId> {
        self.read().get(tenant).map(Known::id)
    }

    /// The controller has told a key.
    pub fn learn(&self, TenantKey { tenant, key }: TenantKey) -> Fits {
        let id = key.id();
        let before = self.write().insert(tenant, Known::Told(key));
        if before.is_none_or(|before| before.id() == id) { Fits::Yes } else { Fits::No }
    }

    /// Something of a tenant is here that was made under this key.
    pub fn made_under(&self, tenant: &TenantName, id: KeyId) {
        self.write().entry(tenant.clone()).or_insert(Known::Seen(id));
    }

    /// Wipes a key. Where something of the tenant `is_here`, which key that was made under is still known.
    pub fn forget(&self, tenant: &TenantName, is_here: bool) {
        let mut known = self.write();
        let forgotten = known.remove(tenant);
        if let Some(forgotten) = forgotten.filter(|_| is_here) {
            known.insert(tenant.clone(), Known::Seen(forgotten.id()));
        }
    }

    /// Tenants of which something is known, the key or only which one it was.
    pub fn tenants(&self) -> Vec<TenantName> {
        self.read().keys().cloned().collect()
    }

    /// The keys that were told, without the keys.
    pub fn held(&self) -> Vec<HeldKey> {
        let known = self.read();
        let told = known.iter().filter(|(_, known)| matches!(known, Known::Told(_)));
        told.map(|(tenant, known)| HeldKey { tenant: tenant.clone(), id: known.id() }).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<TenantName, Known>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<TenantName, Known>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(tenant: &TenantName, byte: u8) -> TenantKey {
        TenantKey { tenant: tenant.clone(), key: DomainKey::from_bytes([byte; 32]) }
    }

    #[test]
    fn a_key_is_known_from_when_it_is_told_until_it_is_forgotten() {
        let (keys, a): (_, TenantName) = (Keys::default(), "a".parse().unwrap());
        assert!(keys.get(&a).is_none() && keys.held().is_empty());
        assert_eq!(keys.learn(told(&a, 1)), Fits::Yes);
        assert_eq!(keys.learn(told(&a, 1)), Fits::Yes);
        assert!(keys.get(&a) == Some(told(&a, 1).key));
        assert_eq!(keys.held(), [HeldKey { tenant: a.clone(), id: told(&a, 1).key.id() }]);
        keys.forget(&a, false);
        assert!(keys.get(&a).is_none() && keys.held().is_empty() && keys.tenants().is_empty());
        assert_eq!(keys.learn(told(&a, 2)), Fits::Yes, "nothing of it is here");
    }

    #[test]
    fn what_is_here_fits_the_key_it_was_made_under_and_no_other() {
        let (keys, a): (_, TenantName) = (Keys::default(), "a".parse().unwrap());
        let [first, second] = [told(&a, 1), told(&a, 2)];
        // Left by the agent before.
        keys.made_under(&a, first.key.id());
        assert!(keys.get(&a).is_none() && keys.held().is_empty(), "the key itself nobody has told");
        assert_eq!(keys.learn(first.clone()), Fits::Yes);
        // Taken back while something is here.
        keys.forget(&a, true);
        assert!(keys.get(&a).is_none() && keys.held().is_empty());
        assert_eq!((keys.id(&a), keys.tenants()), (Some(first.key.id()), vec![a.clone()]));
        assert_eq!(keys.learn(second.clone()), Fits::No);
        keys.made_under(&a, first.key.id());
        assert_eq!(keys.id(&a), Some(second.key.id()), "what was told counts");
    }

    #[test]
    fn no_key_is_printed() {
        let keys = Keys::default();
        keys.learn(told(&"a".parse().unwrap(), 0xab));
        let shown = format!("{keys:?}");
        assert!(shown.contains("DomainKey(..)") && !shown.contains("171"), "{shown}");
    }
}
